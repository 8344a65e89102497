//! The race detector: planted races, their repaired twins, and random programs judged by a detector that keeps
//! everything.

use softcuda::check::clock::{Knowledge, TeamClocks};
use softcuda::machine::memory::Refusal;
use softcuda::machine::memory::global::{GlobalMemory, LaunchMemory, Who};
use softcuda::machine::memory::shared::SharedMemory;
use softcuda::report::FaultKind;
use softcuda::settings::Checks;

fn who(clocks: &TeamClocks, thread: usize, instruction: u32) -> Who<'_> {
    Who { thread, clocks, instruction, strong: false, read_only: false }
}

fn strong(clocks: &TeamClocks, thread: usize, instruction: u32) -> Who<'_> {
    Who { strong: true, ..who(clocks, thread, instruction) }
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
    // The last atomic was thread 63's own: the others' are still in the way.
    assert_eq!(race(memory.load(&who(&clocks, 63, 5), 0, &mut [0; 4])), (true, 4, 0, 3));
    assert_eq!(race(memory.store(&who(&clocks, 63, 5), 0, &[0; 4])), (true, 4, 0, 3));
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

/// Block 0 writes data and a flag, block 1 reads the flag and the data.
fn message(fence: bool, release: bool) -> Result<(), Refusal> {
    let memory = GlobalMemory::new(1 << 20);
    let base = memory.allocate(64).expect("room");
    memory.fill(base, &[0], 64).expect("in bounds");
    let launch = memory.begin_launch(&Checks::default());
    let (mut writer, mut reader) = (TeamClocks::new(&[0], 32), TeamClocks::new(&[1], 32));
    launch.store(&who(&writer, 0, 1), base, &[1; 16])?;
    if fence {
        writer.fence(0);
    }
    if let Some(knowledge) = writer.publish(0, release) {
        launch.publish_at(base + 32, knowledge);
    }
    launch.store(&strong(&writer, 0, 2), base + 32, &[1; 4])?;
    launch.load(&strong(&reader, 9, 3), base + 32, &mut [0; 4])?;
    if let Some(knowledge) = launch.knowledge_at(base + 32) {
        reader.acquire(9, &knowledge);
    }
    launch.load(&who(&reader, 9, 4), base, &mut [0; 16])
}

#[test]
fn flags_in_global_memory() {
    message(true, false).expect("fence and relaxed flag");
    message(false, true).expect("released flag");
    assert_eq!(race(message(false, false)), (true, 0, 0, 1), "the fence is missing");
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

// Random programs.

/// One of two teams of one block each, with what a detector needs that forgets nothing.
const BLOCKS: [u32; 2] = [3, 8];
const THREADS: usize = 40;
const TOTAL: usize = 2 * THREADS;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

/// The plain definition: full vectors, all accesses kept.
#[derive(Clone)]
struct Reference {
    now: Vec<[u32; TOTAL]>,
    fenced: Vec<[u32; TOTAL]>,
    history: Vec<(usize, u32, std::ops::Range<usize>, bool, bool)>,
}

fn raise(mine: &mut [u32; TOTAL], theirs: &[u32; TOTAL]) {
    mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
}

impl Reference {
    fn new() -> Self {
        let now = (0..TOTAL).map(|thread| std::array::from_fn(|other| u32::from(other == thread))).collect();
        Self { now, fenced: vec![[0; TOTAL]; TOTAL], history: Vec::new() }
    }

    fn join(&mut self, threads: &[usize]) {
        for views in [&mut self.now, &mut self.fenced] {
            let mut all = [0; TOTAL];
            for &thread in threads {
                raise(&mut all, &views[thread]);
            }
            for &thread in threads {
                views[thread] = all;
            }
        }
        for &thread in threads {
            self.now[thread][thread] += 1;
        }
    }

    fn access(&mut self, thread: usize, range: std::ops::Range<usize>, writes: bool, strong: bool) -> bool {
        let races = self.history.iter().any(|(other, clock, bytes, wrote, was_strong)| {
            *other != thread
                && bytes.start < range.end
                && range.start < bytes.end
                && (writes || *wrote)
                && !(strong && *was_strong)
                && self.now[thread][*other] < *clock
        });
        self.history.push((thread, self.now[thread][thread], range, writes, strong));
        races
    }
}

enum Memory {
    Shared(SharedMemory),
    Global(LaunchMemory, u64),
}

impl Memory {
    fn access(&mut self, who: &Who, at: usize, width: usize, kind: usize) -> Result<(), Refusal> {
        let (mut read, written) = ([0; 16], [0; 16]);
        match (self, kind) {
            (Self::Shared(memory), 0) => memory.load(who, at as u32, &mut read[..width]),
            (Self::Shared(memory), 1) => memory.store(who, at as u32, &written[..width]),
            (Self::Shared(memory), _) => memory.atomic(who, at as u32, width as u32, &mut Some).map(drop),
            (Self::Global(memory, base), 0) => memory.load(who, *base + at as u64, &mut read[..width]),
            (Self::Global(memory, base), 1) => memory.store(who, *base + at as u64, &written[..width]),
            (Self::Global(memory, base), _) => memory.atomic(who, *base + at as u64, width as u32, &mut Some).map(drop),
        }
    }
}

/// Runs random operations until the first race; returns at which step the reference found it and at which the detector.
fn random_program(seed: u64, is_shared: bool) -> (Option<usize>, Option<usize>) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let checks = Checks { uninitialized: false, ..Checks::default() };
    let device = GlobalMemory::new(1 << 20);
    let mut memory = if is_shared {
        Memory::Shared(SharedMemory::new(64, &checks))
    } else {
        let base = device.allocate(64).expect("room");
        Memory::Global(device.begin_launch(&checks), base)
    };
    let mut teams = BLOCKS.map(|block| TeamClocks::new(&[block], THREADS as u32));
    let mut reference = Reference::new();
    let mut flags: [(Option<Knowledge>, [u32; TOTAL]); 3] = std::array::from_fn(|_| (None, [0; TOTAL]));
    // Programs that synchronise much run long before they race; few bytes and threads make accesses meet.
    let (bytes, sync, active) = ([4, 8, 16][random.below(3)], random.below(10), 1 + random.below(TOTAL));
    let weak = random.below(4);
    for step in 0..300 {
        let thread = random.below(active) * (TOTAL / active) % TOTAL;
        let (team, local) = (thread / THREADS, thread % THREADS);
        if random.below(12) < sync {
            match random.below(6) {
                0 => {
                    reference.join(&(0..THREADS).map(|local| team * THREADS + local).collect::<Vec<_>>());
                    teams[team].join(&[(0, u32::MAX), (32, 0xff)]);
                }
                1 => {
                    let mask = (random.below(1 << 31) as u32) | 1 << (local % 32);
                    let mask = if local < 32 { mask } else { mask & 0xff };
                    let lanes = (0..32).filter(|lane| mask >> lane & 1 != 0);
                    let first = local / 32 * 32;
                    reference.join(&lanes.map(|lane| team * THREADS + first + lane).collect::<Vec<_>>());
                    teams[team].join(&[(first, mask)]);
                }
                2 => {
                    reference.fenced[thread] = reference.now[thread];
                    reference.now[thread][thread] += 1;
                    teams[team].fence(local);
                }
                3 => {
                    let (flag, release) = (random.below(3), random.below(2) == 0);
                    let known = if release { &reference.now } else { &reference.fenced }[thread];
                    raise(&mut flags[flag].1, &known);
                    if release {
                        reference.now[thread][thread] += 1;
                    }
                    match (teams[team].publish(local, release), &mut flags[flag].0) {
                        (Some(knowledge), Some(record)) => record.learn(&knowledge),
                        (Some(knowledge), record) => *record = Some(knowledge),
                        (None, _) => {}
                    }
                }
                _ => {
                    let flag = random.below(3);
                    if let Some(knowledge) = &flags[flag].0 {
                        teams[team].acquire(local, knowledge);
                    }
                    raise(&mut reference.now[thread], &flags[flag].1);
                }
            }
            continue;
        }
        let width = [1, 2, 4, 4, 4, 8, 16][random.below(7)];
        let at = random.below(bytes.max(width) / width) * width;
        let kind = [0, 0, 1, 2][random.below(4)];
        let is_strong = kind == 2 || random.below(4) >= weak;
        let expected = reference.access(thread, at..at + width, kind != 0, is_strong);
        // Every instruction is one of its own: nothing is excused as one store of one warp.
        let who = Who { strong: is_strong, ..who(&teams[team], local, step as u32) };
        let found = memory.access(&who, at, width, kind);
        if let Err(refusal) = &found {
            assert_eq!(refusal.kind, FaultKind::Race, "{refusal:?}");
            let other = refusal.other.as_ref().expect("the other access");
            let index = BLOCKS.iter().position(|&block| block == other.block).expect("a block") * THREADS;
            assert_ne!(index + other.thread as usize, thread);
        }
        if expected || found.is_err() {
            return (expected.then_some(step), found.is_err().then_some(step));
        }
    }
    (None, None)
}

#[test]
fn shared_memory_finds_each_race_at_once_and_no_other() {
    let mut late = 0;
    for seed in 0..4_000 {
        let (expected, found) = random_program(seed, true);
        assert_eq!(expected, found, "seed {seed}");
        late += usize::from(expected.is_some_and(|step| step > 20));
    }
    assert!(late > 200, "the programs test something: {late}");
}

#[test]
fn global_memory_finds_nearly_each_race_and_no_other() {
    let (mut races, mut missed) = (0, 0);
    for seed in 0..4_000 {
        let (expected, found) = random_program(seed, false);
        assert!(found.is_none() || expected == found, "seed {seed}: a race that is none");
        races += usize::from(expected.is_some());
        missed += usize::from(expected.is_some() && found.is_none());
    }
    assert!(missed * 50 < races, "{missed} of {races} missed");
}
