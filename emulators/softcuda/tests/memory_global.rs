//! Global memory: allocations, host copies, and the checks of a kernel's accesses other than races.

use softcuda::check::clock::TeamClocks;
use softcuda::machine::memory::Refusal;
use softcuda::machine::memory::global::{GlobalMemory, LaunchMemory, Range, Who};
use softcuda::report::FaultKind;
use softcuda::settings::Checks;

fn who(clocks: &TeamClocks, thread: usize) -> Who<'_> {
    Who::weak(thread, clocks, 1)
}

fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, kind: FaultKind, words: &str) {
    let refusal = result.expect_err("a fault");
    assert_eq!(refusal.kind, kind, "{refusal:?}");
    assert!(refusal.message.contains(words), "{:?} does not say {words:?}", refusal.message);
}

/// Memory with one allocation of this many bytes of 0, and a launch.
fn filled(bytes: u64) -> (GlobalMemory, u64, LaunchMemory, TeamClocks) {
    let memory = GlobalMemory::new(1 << 30);
    let base = memory.allocate(bytes).expect("room");
    memory.fill(base, &[0], bytes).expect("in bounds");
    let launch = memory.begin_launch(&Checks::default());
    (memory, base, launch, TeamClocks::new(&[0], 64))
}

#[test]
fn allocations_are_aligned_apart_and_never_at_an_address_used_before() {
    let memory = GlobalMemory::new(1 << 20);
    let mut bases = Vec::new();
    for bytes in [1, 511, 512, 513, 4096, 10_000] {
        let base = memory.allocate(bytes).expect("room");
        assert!(base >= 0x0300_0000_0000 && base.is_multiple_of(512));
        bases.push((base, bytes));
        assert_eq!(memory.containing(base + bytes - 1), Some(Range { base, bytes }));
        assert_eq!(memory.containing(base + bytes), None);
        assert_eq!(memory.containing(base - 1), None);
    }
    assert!(bases.windows(2).all(|pair| pair[0].0 + pair[0].1 + 4096 <= pair[1].0));
    let used: u64 = bases.iter().map(|base| base.1.next_multiple_of(512)).sum();
    assert_eq!(memory.usage(), ((1 << 20) - used, 1 << 20));
    for &(base, _) in &bases {
        memory.free(base).expect("live");
        refused(memory.free(base), FaultKind::UseAfterFree, "freed before");
    }
    assert_eq!(memory.usage(), (1 << 20, 1 << 20));
    assert!(memory.allocate(512).expect("room") > bases[5].0);
    refused(memory.free(bases[0].0 + 1), FaultKind::OutOfBounds, "no allocation begins");
}

#[test]
fn capacity() {
    let memory = GlobalMemory::new(4096);
    assert_eq!(memory.allocate(0), None);
    assert_eq!(memory.allocate(4097), None);
    assert_eq!(memory.allocate(u64::MAX), None);
    let base = memory.allocate(4096).expect("room");
    assert_eq!(memory.allocate(1), None);
    memory.free(base).expect("live");
    assert!(memory.allocate(1).is_some());
}

#[test]
fn host_copies_cross_pages_and_carry_initialised_bits() {
    let memory = GlobalMemory::new(1 << 30);
    let (a, b) = (memory.allocate(20_000).expect("room"), memory.allocate(20_000).expect("room"));
    let data: Vec<u8> = (0..9_000_u32).map(|index| (index * 7 % 251) as u8).collect();
    memory.write(a + 5, &data).expect("in bounds");
    let mut read = vec![1; 9_010];
    memory.read(a, &mut read).expect("in bounds");
    assert_eq!((&read[..5], &read[5..9_005], &read[9_005..]), (&[0; 5][..], &data[..], &[0; 5][..]));
    memory.copy(b + 4_099, a, 9_010).expect("in bounds");
    memory.read(b + 4_099, &mut read).expect("in bounds");
    assert_eq!(&read[5..9_005], &data[..]);
    let (launch, clocks) = (memory.begin_launch(&Checks::default()), TeamClocks::new(&[0], 32));
    let mut byte = [0];
    for offset in 4_080..13_200 {
        let is_written = (4_104..13_104).contains(&offset);
        assert_eq!(launch.load(&who(&clocks, 0), b + offset, &mut byte).is_ok(), is_written, "{offset}");
    }
    // A copy of bytes that nobody has written makes them unknown again.
    memory.copy(a + 5, b, 3).expect("in bounds");
    refused(launch.load(&who(&clocks, 0), a + 7, &mut byte), FaultKind::Uninitialized, &format!("{:#x}", a + 7));
    launch.load(&who(&clocks, 0), a + 8, &mut byte).expect("written");
    refused(memory.write(a + 19_999, &[0; 2]), FaultKind::OutOfBounds, "the last 1 of 2 bytes");
    refused(memory.copy(b, a + 1, 20_000), FaultKind::OutOfBounds, "beyond the end");
    refused(memory.read(u64::MAX - 1, &mut [0; 4]), FaultKind::OutOfBounds, "nowhere near");
    memory.read(a, &mut []).expect("nothing");
}

#[test]
fn fills_repeat_their_pattern_across_pages() {
    let memory = GlobalMemory::new(1 << 30);
    let base = memory.allocate(10_000).expect("room");
    for pattern in [&[1_u8][..], &[1, 2], &[1, 2, 3, 4]] {
        let count = 9_996 / pattern.len() as u64;
        memory.fill(base + 2, pattern, count).expect("in bounds");
        let mut read = vec![0; count as usize * pattern.len()];
        memory.read(base + 2, &mut read).expect("in bounds");
        assert!(read.chunks(pattern.len()).all(|part| part == pattern));
    }
    refused(memory.fill(base, &[0; 4], 2_501), FaultKind::OutOfBounds, "the last 4 of 10004 bytes");
    refused(memory.fill(base, &[0; 4], u64::MAX), FaultKind::OutOfBounds, "exceed all memory");
}

#[test]
fn out_of_bounds() {
    let (memory, base, launch, clocks) = filled(1024);
    let lane = who(&clocks, 0);
    launch.load(&lane, base + 1008, &mut [0; 16]).expect("in bounds");
    let message =
        format!("address {:#x} is 16 bytes after the end of an allocation of 1024 bytes at {base:#x}", base + 1040);
    refused(launch.load(&lane, base + 1040, &mut [0; 16]), FaultKind::OutOfBounds, &message);
    refused(launch.store(&lane, base + 1024, &[0; 4]), FaultKind::OutOfBounds, "0 bytes after the end");
    refused(launch.store(&lane, base - 4, &[0; 4]), FaultKind::OutOfBounds, "4 bytes before an allocation of 1024");
    refused(launch.load_bulk(&lane, base + 1000, &mut [0; 32]), FaultKind::OutOfBounds, "the last 8 of 32 bytes");
    refused(launch.load(&lane, 0, &mut [0; 4]), FaultKind::OutOfBounds, "null pointer");
    refused(launch.load(&lane, u64::MAX - 3, &mut [0; 4]), FaultKind::OutOfBounds, "nowhere near");
    refused(launch.load(&lane, &raw const launch as u64 & !7, &mut [0; 8]), FaultKind::OutOfBounds, "");
    let odd = memory.allocate(7).expect("room");
    memory.fill(odd, &[0], 7).expect("in bounds");
    let launch = memory.begin_launch(&Checks::default());
    launch.load(&lane, odd + 6, &mut [0]).expect("in bounds");
    refused(launch.load(&lane, odd + 4, &mut [0; 4]), FaultKind::OutOfBounds, "the last 1 of 4 bytes");
    refused(launch.atomic(&lane, odd + 8, 4, &mut |_| None), FaultKind::OutOfBounds, "1 bytes after the end");
}

#[test]
fn use_after_free() {
    let (memory, base, launch, clocks) = filled(1024);
    let lane = who(&clocks, 0);
    memory.free(base).expect("live");
    let words = format!("64 bytes into an allocation of 1024 bytes at {base:#x} that was freed");
    refused(launch.load(&lane, base + 64, &mut [0; 16]), FaultKind::UseAfterFree, &words);
    refused(memory.read(base + 64, &mut [0; 16]), FaultKind::UseAfterFree, &words);
    let launch = memory.begin_launch(&Checks::default());
    refused(launch.store(&lane, base + 64, &[0; 16]), FaultKind::UseAfterFree, &words);
    refused(
        launch.store(&lane, base + 1024, &[0; 16]),
        FaultKind::OutOfBounds,
        "after the end of an allocation of 1024",
    );
}

#[test]
fn misaligned() {
    let (_memory, base, launch, clocks) = filled(1024);
    let lane = who(&clocks, 0);
    for width in [1, 2, 4, 8, 16, 32] {
        for offset in 0..64 {
            let mut buffer = [0; 32];
            let result = launch.load(&lane, base + offset, &mut buffer[..width as usize]);
            if offset % width == 0 {
                result.expect("aligned");
            } else {
                refused(
                    result,
                    FaultKind::Misaligned,
                    &format!("{:#x} is not a multiple of the access's {width}", base + offset),
                );
                refused(launch.store(&lane, base + offset, &buffer[..width as usize]), FaultKind::Misaligned, "");
            }
        }
    }
    refused(launch.atomic(&lane, base + 2, 4, &mut |_| None), FaultKind::Misaligned, "");
    refused(launch.atomic(&lane, base, 3, &mut |_| None), FaultKind::InvalidOperation, "3 bytes");
}

#[test]
fn uninitialised_bytes_are_named_exactly() {
    let memory = GlobalMemory::new(1 << 30);
    let base = memory.allocate(8192).expect("room");
    let clocks = TeamClocks::new(&[0], 64);
    memory.write(base, &[1; 13]).expect("in bounds");
    let launch = memory.begin_launch(&Checks::default());
    let lane = who(&clocks, 0);
    let words = format!("byte {:#x} (13 of an allocation of 8192 bytes at {base:#x})", base + 13);
    refused(launch.load(&lane, base, &mut [0; 16]), FaultKind::Uninitialized, &words);
    refused(launch.atomic(&lane, base + 12, 4, &mut Some), FaultKind::Uninitialized, &words);
    launch.store(&lane, base + 13, &[2]).expect("in bounds");
    launch.store(&lane, base + 14, &[3; 2]).expect("in bounds");
    let mut read = [0; 16];
    launch.load(&lane, base, &mut read).expect("all written now");
    assert_eq!(read, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3]);
    launch.store_bulk(&lane, base + 4000, &[7; 200]).expect("in bounds");
    launch.load_bulk(&lane, base + 4001, &mut [0; 199]).expect("written");
    refused(
        launch.load_bulk(&lane, base + 4001, &mut [0; 200]),
        FaultKind::Uninitialized,
        &format!("{:#x}", base + 4200),
    );
    let lenient = memory.begin_launch(&Checks { uninitialized: false, ..Checks::default() });
    let mut read = [1; 16];
    lenient.load(&lane, base + 1024, &mut read).expect("not checked");
    assert_eq!(read, [0; 16]);
    // What a kernel has written stays initialised after its launch.
    memory.begin_launch(&Checks::default()).load(&lane, base + 4000, &mut [0; 16]).expect("written");
}

#[test]
fn constants_are_read_only() {
    let memory = GlobalMemory::new(1 << 30);
    let base = memory.allocate_constant(64).expect("room");
    memory.write(base, &[9; 64]).expect("the host may");
    let (launch, clocks) = (memory.begin_launch(&Checks::default()), TeamClocks::new(&[0], 64));
    let mut read = [0; 4];
    launch.load(&who(&clocks, 0), base, &mut read).expect("readable");
    assert_eq!(read, [9; 4]);
    refused(launch.store(&who(&clocks, 0), base, &read), FaultKind::ReadOnlyWrite, "constant");
    refused(launch.atomic(&who(&clocks, 0), base, 4, &mut Some), FaultKind::ReadOnlyWrite, "constant");
    assert_eq!(launch.finish(), (0, 0), "constants are not global traffic");
}

#[test]
fn read_only_loads_of_what_the_kernel_writes() {
    let (_memory, base, launch, clocks) = filled(1024);
    let (plain, read_only) = (who(&clocks, 0), Who { read_only: true, ..who(&clocks, 0) });
    launch.store(&plain, base + 6, &[1; 2]).expect("first");
    launch.load(&read_only, base, &mut [0; 4]).expect("other bytes");
    refused(launch.load(&read_only, base + 4, &mut [0; 4]), FaultKind::StaleReadOnlyLoad, "has written");
    refused(launch.store(&plain, base + 3, &[1]), FaultKind::StaleReadOnlyLoad, "ld.global.nc");
    refused(launch.atomic(&plain, base, 4, &mut Some), FaultKind::StaleReadOnlyLoad, "ld.global.nc");
    launch.load(&plain, base + 4, &mut [0; 4]).expect("an ordinary load");
}

#[test]
fn atomics_read_modify_and_write() {
    let (memory, base, launch, clocks) = filled(1024);
    memory.write(base, &0x0102_0304_0506_0708_u64.to_le_bytes()).expect("in bounds");
    let lane = who(&clocks, 0);
    assert_eq!(launch.atomic(&lane, base + 2, 2, &mut |old| Some(old + 1)).expect("in order"), 0x0506);
    assert_eq!(launch.atomic(&lane, base, 8, &mut |_| None).expect("in order"), 0x0102_0304_0507_0708);
    let wide = 0xfeed_u128 << 112 | 5;
    launch.atomic(&lane, base + 16, 16, &mut |_| Some(wide)).expect("in order");
    let mut read = [0; 16];
    memory.read(base + 16, &mut read).expect("in bounds");
    assert_eq!(u128::from_le_bytes(read), wide);
}

#[test]
fn distinct_bytes_are_counted_once() {
    let (_memory, base, launch, mut clocks) = filled(100_000);
    for thread in 0..64 {
        launch.load(&who(&clocks, thread), base + 32, &mut [0; 32]).expect("in bounds");
        launch.load(&who(&clocks, thread), base + 32 * (1 + thread as u64 / 2), &mut [0; 2]).expect("in bounds");
    }
    // 32 bytes, and two in each of 31 further places.
    assert_eq!(launch.finish(), (32 + 62, 0));
    clocks.join(&[(0, u32::MAX), (32, u32::MAX)]);
    launch.store(&who(&clocks, 0), base + 40, &[0; 8]).expect("in bounds");
    launch.store(&who(&clocks, 0), base + 40, &[0; 4]).expect("in bounds");
    launch.atomic(&who(&clocks, 0), base + 80_000, 4, &mut Some).expect("in bounds");
    launch.atomic(&who(&clocks, 0), base + 90_000, 4, &mut |_| None).expect("in bounds");
    launch.load_bulk(&who(&clocks, 0), base + 4_095, &mut [0; 4_098]).expect("in bounds");
    assert_eq!(launch.finish(), (94 + 8 + 4_098, 12));
}

#[test]
fn a_huge_allocation_costs_nothing_until_it_is_touched() {
    let memory = GlobalMemory::new(80 << 30);
    let bytes = 64 << 30;
    let base = memory.allocate(bytes).expect("room");
    assert_eq!(memory.usage(), (16 << 30, 80 << 30));
    memory.write(base + bytes - 4, &[1; 4]).expect("in bounds");
    let (launch, clocks) = (memory.begin_launch(&Checks::default()), TeamClocks::new(&[0], 64));
    let mut read = [0; 4];
    launch.load(&who(&clocks, 0), base + bytes - 4, &mut read).expect("written");
    launch.store(&who(&clocks, 1), base + bytes / 2, &read).expect("in bounds");
    refused(launch.load(&who(&clocks, 0), base + bytes / 2, &mut read), FaultKind::Race, "thread 1");
    refused(launch.load(&who(&clocks, 0), base + bytes, &mut read), FaultKind::OutOfBounds, "0 bytes after the end");
    assert_eq!(launch.finish(), (4, 4));
}

#[test]
fn memory_of_the_host_under_its_own_address() {
    let memory = GlobalMemory::new(1 << 20);
    let mut words = vec![7_u32; 3000];
    let base = words.as_mut_ptr() as u64;
    // SAFETY: `words` lives, and is not touched, until after `free`.
    unsafe { memory.map_host(words.as_mut_ptr().cast(), 12_000) };
    assert_eq!(memory.containing(base + 11_999), Some(Range { base, bytes: 12_000 }));
    assert_eq!(memory.usage().0, 1 << 20);
    let (launch, clocks) = (memory.begin_launch(&Checks::default()), TeamClocks::new(&[0], 64));
    let mut read = [0; 4];
    launch.load(&who(&clocks, 0), base + 8_000, &mut read).expect("the host's bytes count as written");
    assert_eq!(u32::from_le_bytes(read), 7);
    launch.store(&who(&clocks, 0), base + 8_000, &9_u32.to_le_bytes()).expect("in bounds");
    refused(launch.load(&who(&clocks, 40), base + 8_000, &mut read), FaultKind::Race, "thread 0");
    refused(launch.load(&who(&clocks, 40), base + 12_000, &mut read), FaultKind::OutOfBounds, "after the end");
    memory.free(base).expect("mapped");
    refused(launch.load(&who(&clocks, 0), base, &mut read), FaultKind::UseAfterFree, "freed");
    assert_eq!((words[1999], words[2000], words[2001]), (7, 9, 7));
    // The host's allocator may hand the address out again.
    // SAFETY: as above.
    unsafe { memory.map_host(words.as_mut_ptr().cast(), 8) };
    let launch = memory.begin_launch(&Checks::default());
    launch.load(&who(&clocks, 0), base, &mut read).expect("mapped again");
    refused(launch.load(&who(&clocks, 0), base + 8, &mut read), FaultKind::OutOfBounds, "0 bytes after the end");
    memory.free(base).expect("mapped");
}

#[test]
fn host_threads_hammer_one_page() {
    let (memory, base, launch, _) = filled(4096);
    let rounds = 5_000_u32;
    std::thread::scope(|scope| {
        for block in 0..2_u32 {
            let (launch, memory) = (&launch, &memory);
            scope.spawn(move || {
                let clocks = TeamClocks::new(&[block], 32);
                for round in 0..rounds {
                    let lane = who(&clocks, round as usize % 32);
                    launch.atomic(&lane, base, 4, &mut |old| Some(old + 1)).expect("atomics do not race");
                    // Sixteen bytes of one value are never seen half written.
                    let strong = Who { scope: Some(softcuda::check::scope::MemoryScope::Device), ..lane };
                    launch.store(&strong, base + 64, &[(round % 200) as u8; 16]).expect("strong");
                    let mut read = [0; 16];
                    launch.load(&strong, base + 64, &mut read).expect("strong");
                    assert!(read.iter().all(|byte| *byte == read[0]));
                    let own = base + 1024 + u64::from(block) * 512 + u64::from(round % 32) * 4;
                    launch.store(&lane, own, &round.to_le_bytes()).expect("its own");
                    launch.load(&lane, own, &mut read[..4]).expect("its own");
                    assert_eq!(read[..4], round.to_le_bytes());
                    if round % 64 == 0 {
                        memory.write(base + 2048, &[block as u8; 32]).expect("in bounds");
                        memory.read(base, &mut read).expect("in bounds");
                    }
                }
            });
        }
    });
    let mut sum = [0; 4];
    memory.read(base, &mut sum).expect("in bounds");
    assert_eq!(u32::from_le_bytes(sum), 2 * rounds);
}

#[test]
fn allocations_come_and_go_while_kernels_run() {
    let (memory, base, launch, _) = filled(65_536);
    std::thread::scope(|scope| {
        let (launch, memory) = (&launch, &memory);
        scope.spawn(move || {
            let clocks = TeamClocks::new(&[0], 32);
            for round in 0..20_000_u64 {
                launch.load(&who(&clocks, 0), base + round % 4096 * 16, &mut [0; 16]).expect("in bounds");
            }
        });
        scope.spawn(move || {
            for bytes in 1..500 {
                let other = memory.allocate(bytes * 100).expect("room");
                memory.fill(other, &[1], bytes * 100).expect("in bounds");
                memory.copy(base + 60_000, other, 100).expect("in bounds");
                memory.free(other).expect("live");
            }
        });
    });
}
