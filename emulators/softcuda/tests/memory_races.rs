//! The race detector: planted races and their repaired twins.

use softcuda::check::clock::TeamClocks;
use softcuda::check::scope::{Fence, MemoryScope};
use softcuda::machine::memory::Refusal;
use softcuda::machine::memory::global::{GlobalMemory, LaunchMemory, Who};
use softcuda::machine::memory::shared::SharedMemory;
use softcuda::report::FaultKind;
use softcuda::settings::Checks;

fn who(clocks: &TeamClocks, thread: usize, instruction: u32) -> Who<'_> {
    Who::weak(thread, clocks, instruction)
}

fn strong(clocks: &TeamClocks, thread: usize, instruction: u32) -> Who<'_> {
    scoped(clocks, thread, instruction, MemoryScope::Device)
}

fn scoped(clocks: &TeamClocks, thread: usize, instruction: u32, scope: MemoryScope) -> Who<'_> {
    Who { scope: Some(scope), ..who(clocks, thread, instruction) }
}

/// (the later access wrote?, the earlier one wrote, its block, thread and instruction)
fn race(result: Result<(), Refusal>) -> (bool, u32, u32, u32) {
    let refusal = result.expect_err("a race");
    assert_eq!(refusal.kind, FaultKind::Race);
    let earlier = refusal.other.expect("the other access");
    (earlier.wrote, earlier.block, earlier.thread, earlier.instruction)
}

fn shared() -> (SharedMemory, TeamClocks) {
    (SharedMemory::new(1024, &Checks::default()), TeamClocks::new(&[4], 64))
}

/// A word of global memory, which the host has written, and the threads of block 4.
fn global() -> (LaunchMemory, u64, TeamClocks) {
    let memory = GlobalMemory::new(1 << 20);
    let address = memory.allocate(4).expect("memory");
    memory.write(address, &[7; 4]).expect("write");
    (memory.begin_launch(&Checks::default()), address, TeamClocks::new(&[4], 64))
}

const ALL: [(usize, u32); 2] = [(0, u32::MAX), (32, u32::MAX)];

#[test]
fn write_then_read_and_read_then_write() {
    let (mut memory, mut clocks) = shared();
    memory.store(&who(&clocks, 3, 10), 8, &[1; 4]).expect("first");
    assert_eq!(race(memory.load(&who(&clocks, 35, 11), 8, &mut [0; 4])), (true, 4, 3, 10));
    clocks.join(&ALL);
    for thread in 0..64 {
        memory.load(&who(&clocks, thread, 12), 8, &mut [0; 4]).expect("a barrier is between");
    }
    // The first of the many readers that the writer is not ordered behind is named; the writer's own read is not one of
    // them.
    assert_eq!(race(memory.store(&who(&clocks, 0, 13), 8, &[1; 4])), (false, 4, 1, 12));
    clocks.join(&[(0, u32::MAX)]);
    assert_eq!(race(memory.store(&who(&clocks, 0, 13), 8, &[1; 4])), (false, 4, 32, 12));
    clocks.join(&ALL);
    memory.store(&who(&clocks, 0, 14), 8, &[1; 4]).expect("a barrier is between");
    assert_eq!(race(memory.store(&who(&clocks, 1, 15), 8, &[1; 4])), (true, 4, 0, 14));
}

#[test]
fn adjacent_bytes_do_not_race() {
    let (mut memory, mut clocks) = shared();
    for thread in 0..64 {
        memory.store(&who(&clocks, thread, 1), thread as u32, &[thread as u8]).expect("its own byte");
    }
    for thread in 0..32 {
        memory.store(&who(&clocks, thread, 2), 256 + 2 * thread as u32, &[thread as u8; 2]).expect("its own half");
    }
    for thread in 0..64 {
        memory.load(&who(&clocks, thread, 3), thread as u32, &mut [0]).expect("its own byte");
    }
    assert_eq!(race(memory.load(&who(&clocks, 8, 4), 8, &mut [0; 4])), (true, 4, 9, 1));
    assert_eq!(race(memory.store(&who(&clocks, 0, 5), 258, &[0])), (true, 4, 1, 2));
    clocks.join(&ALL);
    memory.store(&who(&clocks, 0, 6), 0, &[0; 16]).expect("a barrier is between");
    memory.load(&who(&clocks, 0, 7), 3, &mut [0]).expect("its own");
    assert_eq!(race(memory.load(&who(&clocks, 1, 8), 3, &mut [0])), (true, 4, 0, 6));
}

#[test]
fn atomics_race_with_plain_accesses_only() {
    let (mut memory, mut clocks) = shared();
    memory.store(&who(&clocks, 0, 1), 0, &[0; 4]).expect("first");
    assert_eq!(
        race(memory.atomic(&who(&clocks, 1, 2), 0, 4, &mut |old| Some(old + 1)).map(drop)),
        (true, 4, 0, 1),
        "no barrier after the store of 0"
    );
    clocks.join(&ALL);
    for thread in 0..64 {
        let old = memory.atomic(&who(&clocks, thread, 3), 0, 4, &mut |old| Some(old + 1)).expect("atomics do not race");
        assert_eq!(old, thread as u128);
    }
    memory.load(&strong(&clocks, 5, 4), 0, &mut [0; 4]).expect("volatile");
    assert_eq!(race(memory.load(&who(&clocks, 62, 5), 0, &mut [0; 4])), (true, 4, 63, 3));
    assert_eq!(race(memory.store(&who(&clocks, 62, 5), 0, &[0; 4])), (true, 4, 63, 3));
    // Thread 63's atomic has read what all others left, through theirs: they are ordered before what it does next.
    memory.load(&who(&clocks, 63, 5), 0, &mut [0; 4]).expect("observed");
    assert_eq!(race(memory.atomic(&who(&clocks, 5, 6), 0, 4, &mut Some).map(drop)), (false, 4, 63, 5));
    clocks.join(&ALL);
    let mut sum = [0; 4];
    memory.load(&who(&clocks, 63, 6), 0, &mut sum).expect("a barrier is between");
    assert_eq!(u32::from_le_bytes(sum), 64);
}

#[test]
fn a_failed_compare_and_swap_is_a_read() {
    let (mut memory, mut clocks) = shared();
    memory.store(&who(&clocks, 0, 1), 0, &[7; 4]).expect("first");
    clocks.join(&ALL);
    memory.atomic(&who(&clocks, 1, 2), 0, 4, &mut |_| None).expect("after a barrier");
    memory.load(&who(&clocks, 2, 3), 0, &mut [0; 4]).expect("two reads");
    assert_eq!(race(memory.store(&who(&clocks, 2, 4), 0, &[0; 4])), (false, 4, 1, 2));

    let (memory, address, clocks) = global();
    memory.atomic(&who(&clocks, 1, 2), address, 4, &mut |_| None).expect("first");
    memory.load(&who(&clocks, 2, 3), address, &mut [0; 4]).expect("two reads");
    assert_eq!(race(memory.store(&who(&clocks, 2, 4), address, &[0; 4])), (false, 4, 1, 2));
}

#[test]
fn lanes_that_store_one_value_with_one_instruction() {
    let (mut memory, clocks) = shared();
    for thread in 0..32 {
        memory.store(&who(&clocks, thread, 1), 0, &[5; 4]).expect("one value, one instruction, one warp");
    }
    assert_eq!(race(memory.store(&who(&clocks, 32, 1), 0, &[5; 4])), (true, 4, 31, 1), "another warp");
    assert_eq!(race(memory.store(&who(&clocks, 3, 2), 0, &[5; 4])), (true, 4, 31, 1), "another instruction");
    assert_eq!(race(memory.store(&who(&clocks, 3, 1), 0, &[6; 4])), (true, 4, 31, 1), "another value");

    let (memory, address, clocks) = global();
    for thread in 0..32 {
        memory.store(&who(&clocks, thread, 1), address, &[5; 4]).expect("one value, one instruction, one warp");
    }
    assert_eq!(race(memory.store(&who(&clocks, 32, 1), address, &[5; 4])), (true, 4, 31, 1), "another warp");
    assert_eq!(race(memory.store(&who(&clocks, 3, 2), address, &[5; 4])), (true, 4, 31, 1), "another instruction");
    assert_eq!(race(memory.store(&who(&clocks, 3, 1), address, &[6; 4])), (true, 4, 31, 1), "another value");
}

#[test]
fn reset_forgets_races() {
    let (mut memory, mut clocks) = shared();
    memory.store(&who(&clocks, 0, 1), 0, &[5; 16]).expect("first");
    memory.store(&who(&clocks, 0, 1), 17, &[5]).expect("first");
    memory.reset();
    clocks.reset(&[5]);
    memory.store(&who(&clocks, 1, 1), 0, &[5; 16]).expect("another block");
    memory.store(&who(&clocks, 1, 1), 16, &[5; 4]).expect("another block");
}

#[test]
fn an_unchecked_device_finds_no_race() {
    let checks = Checks { races: false, ..Checks::default() };
    let (mut memory, clocks) = (SharedMemory::new(64, &checks), TeamClocks::new(&[0], 64));
    memory.store(&who(&clocks, 0, 1), 0, &[1; 4]).expect("first");
    memory.store(&who(&clocks, 33, 2), 0, &[1; 4]).expect("not checked");
}

/// Block 0 writes data and a flag, block 1 reads the flag and the data; (scope of the flag's accesses, fence, whether
/// the flag's access releases or acquires) of either.
fn message(
    writer: (MemoryScope, Option<Fence>, bool),
    reader: (MemoryScope, Option<Fence>, bool),
) -> Result<(), Refusal> {
    let memory = GlobalMemory::new(1 << 20);
    let base = memory.allocate(64).expect("room");
    memory.fill(base, &[0], 64).expect("in bounds");
    let launch = memory.begin_launch(&Checks::default());
    let (mut first, mut second) = (TeamClocks::new(&[0], 32), TeamClocks::new(&[1], 32));
    launch.store(&who(&first, 0, 1), base, &[1; 16])?;
    if let Some(fence) = writer.1 {
        first.fence(0, fence);
    }
    if let Some(message) = first.publish(0, writer.0, writer.2) {
        launch.publish_at(base + 32, &message);
    }
    launch.store(&scoped(&first, 0, 2, writer.0), base + 32, &[1; 4])?;
    launch.load(&scoped(&second, 9, 3, reader.0), base + 32, &mut [0; 4])?;
    if let Some(found) = launch.message_at(base + 32, second.reader(9, reader.0)) {
        second.read_flag(9, &found, reader.2);
    }
    if let Some(fence) = reader.1 {
        second.fence(9, fence);
    }
    launch.load(&who(&second, 9, 4), base, &mut [0; 16])
}

#[test]
fn flags_in_global_memory() {
    use MemoryScope::{Block, Device, System};
    let fence = |scope| Some(Fence::of(scope));
    let right = [(Device, fence(Device), false), (System, fence(Device), false), (Device, None, true)];
    for writer in right {
        for reader in right {
            message(writer, reader).expect("a release pattern and an acquire pattern");
        }
    }
    for wrong in [(Device, None, false), (Device, fence(Block), false)] {
        assert_eq!(race(message(wrong, right[0])), (true, 0, 0, 1), "{wrong:?} does not release");
        assert_eq!(race(message(right[0], wrong)), (true, 0, 0, 1), "{wrong:?} does not acquire");
    }
    for narrow in [(Block, fence(Device), false), (Block, None, true)] {
        assert_eq!(race(message(narrow, right[0])), (true, 0, 0, 2), "the flag itself: {narrow:?}");
        assert_eq!(race(message(right[0], narrow)), (true, 0, 0, 2), "the flag itself: {narrow:?}");
    }
}

/// Two blocks count with atomics of these scopes.
fn count(first: MemoryScope, second: MemoryScope) -> Result<(), Refusal> {
    let (launch, address, here) = global();
    let there = TeamClocks::new(&[9], 64);
    launch.atomic(&scoped(&here, 0, 1, first), address, 4, &mut |old| Some(old + 1))?;
    launch.atomic(&scoped(&here, 33, 2, first), address, 4, &mut |old| Some(old + 1)).expect("the same block");
    launch.atomic(&scoped(&there, 0, 3, second), address, 4, &mut |old| Some(old + 1)).map(drop)
}

#[test]
fn atomics_of_a_block_race_with_those_of_another() {
    use MemoryScope::{Block, Cluster, Device, System};
    count(Device, System).expect("both scopes hold both blocks");
    for (first, second) in [(Block, Device), (Device, Block), (Block, Block), (Cluster, Device), (System, Cluster)] {
        assert_eq!(race(count(first, second)), (true, 4, 33, 2), "{first:?} {second:?}");
    }
    // Two blocks of one cluster.
    let (launch, address, _) = global();
    let cluster = TeamClocks::new(&[4, 5], 64);
    launch.atomic(&scoped(&cluster, 0, 1, Cluster), address, 4, &mut Some).expect("first");
    launch.atomic(&scoped(&cluster, 64, 2, Device), address, 4, &mut Some).expect("one cluster");
    assert_eq!(race(launch.atomic(&scoped(&cluster, 5, 3, Block), address, 4, &mut Some).map(drop)), (true, 5, 0, 2));
}

#[test]
fn a_ticket_counter_may_be_reset_by_who_drew_the_last() {
    let (launch, address, first) = global();
    let mut second = TeamClocks::new(&[9], 64);
    let third = TeamClocks::new(&[11], 64);
    for clocks in [&first, &third, &second] {
        launch.atomic(&who(clocks, 0, 1), address, 4, &mut |old| Some(old + 1)).expect("atomics do not race");
    }
    assert_eq!(race(launch.store(&who(&third, 0, 2), address, &[0; 4])), (true, 9, 0, 1), "not the last");
    assert_eq!(race(launch.store(&who(&second, 40, 2), address, &[0; 4])), (true, 9, 0, 1), "another thread");
    second.join(&ALL);
    launch.store(&who(&second, 40, 2), address, &[0; 4]).expect("behind the last, by a barrier");
}

#[test]
fn a_flag_that_was_seen_may_be_reset_by_who_saw_it() {
    for shared_flag in [false, true] {
        let (global, address, first) = global();
        let (mut shared, _) = shared();
        let mut second = TeamClocks::new(&[9], 64);
        let mut access = |who: &Who, writes: bool| match (shared_flag, writes) {
            (false, false) => global.load(who, address, &mut [0; 4]),
            (false, true) => global.store(who, address, &[1; 4]),
            (true, false) => shared.load(who, 0, &mut [0; 4]),
            (true, true) => shared.store(who, 0, &[1; 4]),
        };
        access(&strong(&first, 3, 1), true).expect("the first");
        assert_eq!(race(access(&who(&second, 5, 2), false)), (true, 4, 3, 1), "a plain read");
        for _ in 0..3 {
            access(&strong(&second, 5, 3), false).expect("strong ones do not race");
        }
        access(&who(&second, 5, 4), false).expect("it has seen the write");
        assert_eq!(race(access(&who(&second, 6, 4), false)), (true, 4, 3, 1), "its neighbour has not");
        second.join(&[(0, u32::MAX)]);
        access(&who(&second, 6, 5), false).expect("behind one that saw it");
        second.join(&[(0, u32::MAX)]);
        access(&who(&second, 7, 6), true).expect("the reset");
        assert_eq!(race(access(&strong(&first, 3, 1), true)), (true, 9, 7, 6), "nothing orders the next round");
    }
}

#[test]
fn equal_bytes_may_be_stored_twice_if_the_settings_say_so() {
    let checks = Checks { equal_stores: false, ..Checks::default() };
    for lenient in [false, true] {
        let mut memory = SharedMemory::new(64, &if lenient { checks } else { Checks::default() });
        let clocks = TeamClocks::new(&[0], 64);
        memory.store(&who(&clocks, 0, 1), 4, &[7; 4]).expect("first");
        memory.store(&who(&clocks, 0, 1), 0, &[5; 4]).expect("first");
        // Only the word that both store must be equal.
        let again = memory.store(&who(&clocks, 33, 2), 0, &[5; 16]).map_err(|refusal| refusal.message);
        assert!(again.is_err(), "bytes 4 to 7 differ");
        let again = memory.store(&who(&clocks, 34, 2), 0, &[5, 5, 5, 5, 7, 7, 7, 7]).map_err(|refusal| refusal.message);
        match again {
            Ok(()) => assert!(lenient),
            Err(message) => assert!(!lenient && message.contains("equal_stores"), "{message}"),
        }
        assert!(race(memory.load(&who(&clocks, 50, 3), 4, &mut [0; 4])).0, "a read is not excused");
    }
}

#[test]
fn plain_reads_of_swapped_words_pass_if_the_settings_say_so() {
    for lenient in [false, true] {
        let memory = GlobalMemory::new(1 << 20);
        let address = memory.allocate(4).expect("memory");
        memory.write(address, &[7; 4]).expect("write");
        let launch = memory.begin_launch(&Checks { compare_and_swap_reads: !lenient, ..Checks::default() });
        let [first, second] = [0, 1].map(|block| TeamClocks::new(&[block], 64));
        let mut results = Vec::new();
        for clocks in [&first, &second] {
            results.push(launch.load(&who(clocks, 0, 1), address, &mut [0; 4]));
            let swapper = Who { compare_and_swap: true, ..who(clocks, 0, 2) };
            results.push(launch.atomic(&swapper, address, 4, &mut |old| Some(old + 1)).map(drop));
        }
        let messages: Vec<_> = results.into_iter().filter_map(Result::err).map(|refusal| refusal.message).collect();
        assert_eq!(messages.is_empty(), lenient, "{messages:?}");
        assert!(messages.iter().all(|message| message.contains("compare_and_swap_reads")), "{messages:?}");
        // Another atomic, or a plain write, is not excused.
        let other = TeamClocks::new(&[2], 64);
        race(launch.atomic(&who(&other, 0, 3), address, 4, &mut |old| Some(old + 1)).map(drop));
        race(launch.store(&who(&second, 0, 5), address, &[0; 4]));
    }
}

#[test]
fn global_memory_remembers_readers_of_several_blocks() {
    let memory = GlobalMemory::new(1 << 20);
    let base = memory.allocate(64).expect("room");
    memory.fill(base, &[0], 64).expect("in bounds");
    let launch = memory.begin_launch(&Checks::default());
    let mut teams: Vec<_> = (0..20).map(|block| TeamClocks::new(&[block], 64)).collect();
    for team in &teams {
        for thread in 0..64 {
            launch.load(&who(team, thread, 1), base, &mut [0; 16]).expect("reads do not race");
        }
    }
    teams[0].join(&ALL);
    let (wrote, block, _, instruction) = race(launch.store(&who(&teams[0], 0, 2), base + 4, &[0; 4]));
    assert!(!wrote && block != 0 && instruction == 1);
    assert!(!race(launch.store(&who(&teams[19], 0, 2), base + 4, &[0; 4])).0);
}
