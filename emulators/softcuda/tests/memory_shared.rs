//! Shared memory: the checks other than races, and asynchronous copies.

use softcuda::check::clock::TeamClocks;
use softcuda::check::scope::MemoryScope;
use softcuda::machine::memory::Refusal;
use softcuda::machine::memory::global::Who;
use softcuda::machine::memory::shared::SharedMemory;
use softcuda::report::FaultKind;
use softcuda::settings::Checks;

const ALL: [(usize, u32); 2] = [(0, u32::MAX), (32, u32::MAX)];

fn who(clocks: &TeamClocks, thread: usize) -> Who<'_> {
    Who::weak(thread, clocks, 1)
}

fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, kind: FaultKind, words: &str) {
    let refusal = result.expect_err("a fault");
    assert_eq!(refusal.kind, kind, "{refusal:?}");
    assert!(refusal.message.contains(words), "{:?} does not say {words:?}", refusal.message);
}

fn shared() -> (SharedMemory, TeamClocks) {
    (SharedMemory::new(1000, &Checks::default()), TeamClocks::new(&[0], 64))
}

#[test]
fn out_of_bounds_and_misaligned() {
    let (mut memory, clocks) = shared();
    let lane = who(&clocks, 0);
    assert_eq!(memory.bytes(), 1000);
    memory.store(&lane, 992, &[0; 8]).expect("in bounds");
    memory.store(&lane, 999, &[0]).expect("in bounds");
    refused(memory.store(&lane, 992, &[0; 16]), FaultKind::OutOfBounds, "the last 8 of 16 bytes at 0x3e0");
    refused(memory.load(&lane, 1004, &mut [0; 4]), FaultKind::OutOfBounds, "4 bytes after the end of the block's 1000");
    refused(memory.load(&lane, u32::MAX - 3, &mut [0; 4]), FaultKind::OutOfBounds, "after the end");
    refused(memory.store(&lane, 2, &[0; 4]), FaultKind::Misaligned, "0x2 is not a multiple of the access's 4 bytes");
    refused(memory.load(&lane, 8, &mut [0; 16]), FaultKind::Misaligned, "");
    refused(memory.atomic(&lane, 4, 8, &mut Some), FaultKind::Misaligned, "");
    refused(memory.atomic(&lane, 0, 32, &mut Some), FaultKind::InvalidOperation, "32 bytes");
    memory.store_bulk(&lane, 3, &[0; 5]).expect("any alignment");
    let mut none = SharedMemory::new(0, &Checks::default());
    refused(none.load(&lane, 0, &mut [0]), FaultKind::OutOfBounds, "0 bytes of shared memory");
}

#[test]
fn uninitialised_until_written_and_again_after_reset() {
    let (mut memory, clocks) = shared();
    let lane = who(&clocks, 0);
    memory.store(&lane, 8, &[1; 4]).expect("in bounds");
    memory.store(&lane, 13, &[2]).expect("in bounds");
    refused(memory.load(&lane, 8, &mut [0; 8]), FaultKind::Uninitialized, "byte 0xc of shared memory");
    refused(memory.load(&lane, 14, &mut [0; 2]), FaultKind::Uninitialized, "byte 0xe of");
    refused(memory.atomic(&lane, 16, 4, &mut Some), FaultKind::Uninitialized, "byte 0x10 of");
    let mut read = [0];
    memory.load(&lane, 13, &mut read).expect("written");
    assert_eq!(read, [2]);
    memory.reset();
    refused(memory.load(&lane, 8, &mut [0; 4]), FaultKind::Uninitialized, "byte 0x8 of");
    let mut lenient = SharedMemory::new(16, &Checks { uninitialized: false, ..Checks::default() });
    lenient.load(&lane, 0, &mut [0; 16]).expect("not checked");
}

#[test]
fn bytes_in_flight_may_not_be_touched() {
    let (mut memory, mut clocks) = shared();
    memory.begin_async(64, 16).expect("in bounds");
    refused(memory.load(&who(&clocks, 0), 76, &mut [0; 4]), FaultKind::InFlight, "0x40 to 0x50");
    refused(memory.store(&who(&clocks, 0), 64, &[0]), FaultKind::InFlight, "");
    refused(memory.atomic(&who(&clocks, 0), 64, 4, &mut Some), FaultKind::InFlight, "");
    refused(memory.begin_async(72, 16), FaultKind::InFlight, "");
    refused(memory.begin_async(992, 16), FaultKind::OutOfBounds, "");
    memory.store(&who(&clocks, 0), 60, &[0; 4]).expect("before it");
    memory.store(&who(&clocks, 0), 80, &[0; 4]).expect("behind it");
    refused(memory.complete_async(&who(&clocks, 3), 64, &[5; 8]), FaultKind::InvalidOperation, "no asynchronous copy");
    memory.complete_async(&who(&clocks, 3), 64, &[5; 16]).expect("begun");
    let mut read = [0; 16];
    memory.load(&who(&clocks, 3), 64, &mut read).expect("its own copy");
    assert_eq!(read, [5; 16]);
    refused(memory.load(&who(&clocks, 4), 64, &mut read), FaultKind::Race, "written by thread 3");
    clocks.join(&ALL);
    memory.load(&who(&clocks, 4), 64, &mut read).expect("a barrier is between");
    // The next copy into the buffer that thread 4 has just read.
    refused(memory.begin_async_by(&who(&clocks, 3), 64, 16), FaultKind::Race, "read by thread 4");
    clocks.join(&ALL);
    memory.begin_async_by(&who(&clocks, 3), 64, 16).expect("a barrier is between");
    memory.reset();
    memory.store(&who(&clocks, 0), 64, &[0; 16]).expect("nothing is in flight in the next block");
}

#[test]
fn a_copy_that_was_not_checked_when_it_began_is_when_it_arrives() {
    let (mut memory, mut clocks) = shared();
    memory.store(&who(&clocks, 9), 0, &[0; 16]).expect("first");
    clocks.join(&ALL);
    memory.load(&who(&clocks, 9), 0, &mut [0; 16]).expect("written");
    memory.begin_async(0, 16).expect("in bounds");
    refused(memory.complete_async(&who(&clocks, 3), 0, &[5; 16]), FaultKind::Race, "read by thread 9");
}

#[test]
fn atomics_read_modify_and_write() {
    let (mut memory, clocks) = shared();
    let lane = who(&clocks, 0);
    memory.store(&lane, 0, &0x0102_0304_0506_0708_u64.to_le_bytes()).expect("in bounds");
    assert_eq!(memory.atomic(&lane, 2, 2, &mut |old| Some(old + 1)).expect("in order"), 0x0506);
    assert_eq!(memory.atomic(&lane, 0, 8, &mut |_| None).expect("in order"), 0x0102_0304_0507_0708);
}

#[test]
fn flags_carry_knowledge() {
    let (mut memory, mut clocks) = shared();
    memory.store(&who(&clocks, 0), 0, &[1; 4]).expect("first");
    let at = |memory: &SharedMemory, clocks: &TeamClocks, offset| {
        memory.message_at(offset, clocks.reader(50, MemoryScope::Block))
    };
    assert!(at(&memory, &clocks, 8).is_none());
    let message = clocks.publish(0, MemoryScope::Block, true).expect("a release");
    memory.publish_at(8, &message);
    assert!(at(&memory, &clocks, 12).is_none());
    let found = at(&memory, &clocks, 8).expect("published");
    clocks.read_flag(50, &found, true);
    memory.load(&who(&clocks, 50), 0, &mut [0; 4]).expect("ordered by the flag");
    refused(memory.load(&who(&clocks, 51), 0, &mut [0; 4]), FaultKind::Race, "");
    memory.reset();
    assert!(at(&memory, &clocks, 8).is_none());
}
