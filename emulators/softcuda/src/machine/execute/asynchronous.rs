//! Asynchronous copies and `mbarrier`.
//!
//! A copy takes its source when it is issued and gives its destination when it is waited for; between the two the
//! destination is in flight, and nothing may touch it. Bytes that an `mbarrier` counts arrive when somebody asks the
//! barrier for them. The bytes count as written by the thread that issued the copy, at the time at which they arrive:
//! others must be ordered after that by the barrier.

use crate::check::clock::{Knowledge, TeamClocks};
use crate::machine::block::{Block, gather};
use crate::machine::memory::Refusal;
use crate::machine::memory::Who;
use crate::machine::step::{LaneFault, Launched, Step, lanes};
use crate::machine::window;
use crate::ptx::decode::address::Address;
use crate::ptx::decode::asynchronous::Asynchronous;
use crate::ptx::types::Space;
use crate::report::FaultKind;
use std::collections::{HashMap, VecDeque};

/// A place in the shared memory of a block of the team.
type Place = (usize, u32);

/// Bytes on their way.
#[derive(Clone)]
struct Copy {
    destination: Destination,
    bytes: Vec<u8>,
    /// The instruction that issued it.
    instruction: u32,
}

#[derive(Clone, Copy)]
enum Destination {
    Shared(Place),
    Global(u64),
}

/// Bytes that an `mbarrier` counts.
struct Counted {
    copy: Copy,
    barrier: Place,
    thread: usize,
}

/// Copies of one thread.
#[derive(Default)]
struct ThreadCopies {
    open: Vec<Copy>,
    groups: VecDeque<Vec<Copy>>,
    open_bulk: Vec<Copy>,
    bulk_groups: VecDeque<Vec<Copy>>,
}

/// An `mbarrier` object.
#[derive(Default)]
struct Object {
    /// Completed phases.
    phase: u64,
    /// Arrivals that a phase expects.
    expected: u32,
    /// Arrivals that the current phase still waits for.
    pending: i64,
    /// Bytes that the current phase still waits for.
    transactions: i64,
    /// What those that arrived in the current phase knew.
    gathered: Option<Knowledge>,
    /// What those that completed the last phase knew.
    known: Option<Knowledge>,
}

impl Object {
    /// Completes the phase if nothing is pending.
    fn settle(&mut self) {
        if self.pending <= 0 && self.transactions == 0 {
            self.phase += 1;
            self.pending = i64::from(self.expected);
            self.known = self.gathered.take();
        }
    }
}

/// What a block has in flight, and its `mbarrier` objects.
#[derive(Default)]
pub struct AsyncState {
    threads: HashMap<usize, ThreadCopies>,
    objects: HashMap<u32, Object>,
    counted: Vec<Counted>,
}

/// Bits of an arrival's state that hold the pending count, which is less than 2^20, and one more while a copy's arrival
/// adds to it.
const STATE_PENDING_BITS: u32 = 21;

/// Bytes of a bulk copy that are read or written at once.
const CHUNK: usize = 16;

/// Executes for the lanes of `active`; whether other warps should go first.
///
/// # Errors
/// The first lane whose operation is refused.
pub fn execute(operation: &Asynchronous, step: &mut Step, active: u32) -> Result<bool, LaneFault> {
    let mut waits = false;
    let mut done_bits = 0;
    for lane in lanes(active) {
        match operation {
            Asynchronous::Copy { .. } => copy(operation, step, lane)?,
            Asynchronous::CommitGroup => {
                let copies = copies(step, lane);
                let group = std::mem::take(&mut copies.open);
                copies.groups.push_back(group);
            }
            Asynchronous::WaitGroup { pending, all } => wait_group(step, lane, *pending, *all)?,
            Asynchronous::CopyArrive { barrier, counted } => {
                wait_group(step, lane, 0, true)?;
                if !counted {
                    object(step, lane, barrier)?.pending += 1;
                }
                arrive(step, lane, barrier, 1, 0)?;
            }
            Asynchronous::Bulk { .. } => bulk(operation, step, lane)?,
            Asynchronous::Prefetch => {}
            Asynchronous::BulkCommit => {
                let copies = copies(step, lane);
                let group = std::mem::take(&mut copies.open_bulk);
                copies.bulk_groups.push_back(group);
            }
            Asynchronous::BulkWait(pending) => {
                while copies(step, lane).bulk_groups.len() > *pending as usize {
                    let group = copies(step, lane).bulk_groups.pop_front().unwrap_or_default();
                    let thread = step.thread(lane);
                    for copy in group {
                        land(step.launched, step.blocks, step.clocks, thread, &copy)
                            .map_err(|refusal| LaneFault::at(lane, target(&copy), refusal))?;
                    }
                }
            }
            Asynchronous::Store { destination, values, count, bytes, barrier } => {
                let mut data = Vec::with_capacity(16);
                for value in &values[..*count as usize] {
                    data.extend_from_slice(
                        &step.warp.registers.extended(*value)[lane].to_le_bytes()[..*bytes as usize],
                    );
                }
                let place = shared(step, lane, destination)?;
                let barrier = shared(step, lane, barrier)?;
                enqueue(step, lane, place, data, barrier)?;
            }
            Asynchronous::Initialize(barrier, count) => {
                let count = step.warp.registers.word(*count)[lane];
                initialize(step, lane, barrier, count)?;
            }
            Asynchronous::Invalidate(barrier) => {
                object(step, lane, barrier)?;
                let (block, offset) = shared(step, lane, barrier)?;
                step.blocks[block].asynchronous.objects.remove(&offset);
            }
            Asynchronous::Transaction { barrier, bytes, complete } => {
                let bytes = i64::from(step.warp.registers.word(*bytes)[lane]);
                let object = object(step, lane, barrier)?;
                object.transactions += if *complete { -bytes } else { bytes };
                if *complete {
                    object.settle();
                }
            }
            Asynchronous::Arrive { barrier, state, count, expect, drop } => {
                let count = count.map_or(1, |reg| step.warp.registers.word(reg)[lane]);
                let expect = expect.map_or(0, |reg| step.warp.registers.word(reg)[lane]);
                if *drop {
                    let object = object(step, lane, barrier)?;
                    object.expected = object.expected.saturating_sub(count);
                }
                let before = arrive(step, lane, barrier, count, expect)?;
                if let Some(reg) = state {
                    step.warp.registers.set_extended(*reg, 1 << lane, &[before; 32]);
                }
            }
            Asynchronous::Wait { barrier, phase, parity, .. } => {
                let wanted = step.warp.registers.extended(*phase)[lane];
                let done = wait(step, lane, barrier, wanted, *parity)?;
                done_bits |= u32::from(done) << lane;
                waits |= !done;
            }
            Asynchronous::PendingCount(destination, state) => {
                let pending = step.warp.registers.extended(*state)[lane] & ((1 << STATE_PENDING_BITS) - 1);
                step.warp.registers.set_word(*destination, 1 << lane, &[pending as u32; 32]);
            }
        }
    }
    if let Asynchronous::Wait { done, .. } = operation {
        step.warp.registers.set_predicate(*done, active, done_bits);
    }
    Ok(waits)
}

fn copies<'a>(step: &'a mut Step, lane: usize) -> &'a mut ThreadCopies {
    let thread = step.thread(lane);
    step.blocks[step.warp.block].asynchronous.threads.entry(thread).or_default()
}

fn target(copy: &Copy) -> u64 {
    match copy.destination {
        Destination::Shared((_, offset)) => u64::from(offset + window::RESERVED_SHARED),
        Destination::Global(address) => address,
    }
}

/// The place that a lane's address of shared memory (or a generic one) means.
fn shared(step: &Step, lane: usize, address: &Address) -> Result<Place, LaneFault> {
    let given = step.addresses(address)[lane];
    let (space, within) = if address.space == Space::Generic { window::resolve(given) } else { (address.space, given) };
    if !matches!(space, Space::Shared | Space::SharedCluster) {
        let message = "the address is not one of shared memory";
        return Err(LaneFault::at(lane, given, Refusal::new(FaultKind::InvalidOperation, message)));
    }
    step.shared_place(lane, within)
}

fn object<'a>(step: &'a mut Step, lane: usize, address: &Address) -> Result<&'a mut Object, LaneFault> {
    let (block, offset) = shared(step, lane, address)?;
    step.blocks[block].asynchronous.objects.get_mut(&offset).ok_or_else(|| {
        let message = "there is no mbarrier here: it was not initialised, or it was invalidated";
        LaneFault::at(
            lane,
            u64::from(offset + window::RESERVED_SHARED),
            Refusal::new(FaultKind::InvalidOperation, message),
        )
    })
}

fn initialize(step: &mut Step, lane: usize, address: &Address, count: u32) -> Result<(), LaneFault> {
    let (block, offset) = shared(step, lane, address)?;
    let at = u64::from(offset + window::RESERVED_SHARED);
    if !offset.is_multiple_of(8) {
        return Err(LaneFault::at(lane, at, Refusal::new(FaultKind::Misaligned, "an mbarrier is aligned to 8 bytes")));
    }
    if count == 0 || count >= 1 << 20 {
        let message = format!("an mbarrier expects 1 to 1048575 arrivals, not {count}");
        return Err(LaneFault::at(lane, at, Refusal::new(FaultKind::InvalidOperation, message)));
    }
    // The object lies in shared memory: whoever overlaps it with data is found by the races of this write.
    let who = Who::weak(step.thread(lane), step.clocks, step.place);
    let stored = step.blocks[block].shared.store(&who, offset, &u64::from(count).to_le_bytes());
    stored.map_err(|refusal| LaneFault::at(lane, at, refusal))?;
    let object = Object { expected: count, pending: i64::from(count), ..Object::default() };
    step.blocks[block].asynchronous.objects.insert(offset, object);
    Ok(())
}

/// Arrives; the state before that: the phase, and in the low bits how many arrivals it waited for.
fn arrive(step: &mut Step, lane: usize, address: &Address, count: u32, expect: u32) -> Result<u64, LaneFault> {
    let knowledge = step.clocks.publish_lanes(step.thread(lane), 1, true);
    let object = object(step, lane, address)?;
    object.transactions += i64::from(expect);
    if object.pending < i64::from(count) {
        let message = format!("{count} arrivals, and the phase waits for {}", object.pending);
        return Err(LaneFault::new(lane, FaultKind::InvalidOperation, message));
    }
    let before = object.phase << STATE_PENDING_BITS | object.pending as u64;
    object.pending -= i64::from(count);
    gather(&mut object.gathered, knowledge);
    object.settle();
    Ok(before)
}

/// Whether the phase is complete; bytes that were on their way to this barrier have arrived by then.
fn wait(step: &mut Step, lane: usize, address: &Address, wanted: u64, parity: bool) -> Result<bool, LaneFault> {
    let place = shared(step, lane, address)?;
    let complete = |object: &Object| {
        if parity { object.phase & 1 != wanted & 1 } else { object.phase > wanted >> STATE_PENDING_BITS }
    };
    if !complete(object(step, lane, address)?) {
        receive(step, lane, place)?;
    }
    let object = object(step, lane, address)?;
    let done = complete(object);
    if done && let Some(known) = object.known.clone() {
        step.clocks.acquire(step.thread(lane), &known);
    }
    Ok(done)
}

/// Delivers what is on its way to a barrier.
fn receive(step: &mut Step, lane: usize, barrier: Place) -> Result<(), LaneFault> {
    let counted = &mut step.blocks[barrier.0].asynchronous.counted;
    let arrived: Vec<Counted> = counted.extract_if(.., |counted| counted.barrier == barrier).collect();
    for counted in arrived {
        land(step.launched, step.blocks, step.clocks, counted.thread, &counted.copy)
            .map_err(|refusal| LaneFault::at(lane, target(&counted.copy), refusal))?;
        let knowledge = step.clocks.publish_lanes(counted.thread, 1, true);
        if let Some(object) = step.blocks[barrier.0].asynchronous.objects.get_mut(&barrier.1) {
            gather(&mut object.gathered, knowledge);
            object.transactions -= counted.copy.bytes.len() as i64;
            object.settle();
        }
    }
    Ok(())
}

/// Puts bytes that nobody may touch on their way to a place in shared memory.
fn enqueue(step: &mut Step, lane: usize, place: Place, bytes: Vec<u8>, barrier: Place) -> Result<(), LaneFault> {
    let refuse = |refusal| LaneFault::at(lane, u64::from(place.1 + window::RESERVED_SHARED), refusal);
    begin(step, lane, place, bytes.len()).map_err(refuse)?;
    let copy = Copy { destination: Destination::Shared(place), bytes, instruction: step.place };
    let thread = step.thread(lane);
    step.blocks[barrier.0].asynchronous.counted.push(Counted { copy, barrier, thread });
    Ok(())
}

fn begin(step: &mut Step, lane: usize, place: Place, bytes: usize) -> Result<(), Refusal> {
    let who = Who::weak(step.thread(lane), step.clocks, step.place);
    step.blocks[place.0].shared.begin_async_by(&who, place.1, bytes as u32)
}

/// Gives a copy's bytes to their destination.
fn land(
    launched: &Launched,
    blocks: &mut [Block],
    clocks: &TeamClocks,
    thread: usize,
    copy: &Copy,
) -> Result<(), Refusal> {
    let who = Who::weak(thread, clocks, copy.instruction);
    match copy.destination {
        Destination::Shared((block, offset)) => blocks[block].shared.complete_async(&who, offset, &copy.bytes),
        Destination::Global(address) => {
            for (index, chunk) in copy.bytes.chunks(CHUNK).enumerate() {
                launched.memory.store(&who, address + (index * CHUNK) as u64, chunk)?;
            }
            Ok(())
        }
    }
}

/// Lets the bulk copies to global memory that nobody has waited for arrive: the blocks have ended.
///
/// # Errors
/// The instruction and thread of the copy that was refused, and why.
pub fn flush(launched: &Launched, blocks: &mut [Block], clocks: &TeamClocks) -> Result<(), (u32, usize, u64, Refusal)> {
    for index in 0..blocks.len() {
        let mut threads: Vec<_> = blocks[index].asynchronous.threads.drain().collect();
        threads.sort_unstable_by_key(|thread| thread.0);
        for (thread, copies) in threads {
            for copy in copies.bulk_groups.into_iter().flatten().chain(copies.open_bulk) {
                land(launched, blocks, clocks, thread, &copy)
                    .map_err(|refusal| (copy.instruction, thread, target(&copy), refusal))?;
            }
        }
    }
    Ok(())
}

fn copy(operation: &Asynchronous, step: &mut Step, lane: usize) -> Result<(), LaneFault> {
    let Asynchronous::Copy { destination, source, bytes, source_bytes, ignore_source } = operation else {
        return Ok(());
    };
    let place = shared(step, lane, destination)?;
    let from = step.addresses(source)[lane];
    let width = *bytes as usize;
    for address in [u64::from(place.1), from] {
        if !address.is_multiple_of(width as u64) {
            let refusal = Refusal::new(FaultKind::Misaligned, format!("the address is not a multiple of {width}"));
            return Err(LaneFault::at(lane, address, refusal));
        }
    }
    let ignored = ignore_source.is_some_and(|condition| {
        (step.warp.registers.predicate(condition.predicate) >> lane & 1 == 1) != condition.negated
    });
    let wanted = source_bytes.map_or(*bytes, |reg| step.warp.registers.word(reg)[lane]).min(*bytes) as usize;
    let mut data = vec![0; width];
    if !ignored && wanted > 0 {
        let who = Who::weak(step.thread(lane), step.clocks, step.place);
        // Only the bytes asked for are read: they need not be aligned to their number.
        for (index, byte) in data[..wanted].chunks_mut(if wanted == width { width } else { 1 }).enumerate() {
            let step_width = if wanted == width { width } else { 1 };
            let address = from + (index * step_width) as u64;
            step.launched.memory.load(&who, address, byte).map_err(|refusal| LaneFault::at(lane, address, refusal))?;
        }
        // Lane by lane, as the sectors: copies of one warp seldom overlap.
        step.tally.global.bytes_loaded += wanted as u64;
        step.tally.global.warp_bytes_loaded += wanted as u64;
        step.tally.global.sectors_loaded += 1;
    }
    step.tally.shared.bytes_stored += width as u64;
    begin(step, lane, place, width)
        .map_err(|refusal| LaneFault::at(lane, u64::from(place.1 + window::RESERVED_SHARED), refusal))?;
    let issued = Copy { destination: Destination::Shared(place), bytes: data, instruction: step.place };
    copies(step, lane).open.push(issued);
    Ok(())
}

fn wait_group(step: &mut Step, lane: usize, pending: u32, all: bool) -> Result<(), LaneFault> {
    let copies = copies(step, lane);
    let mut landed = Vec::new();
    while copies.groups.len() > pending as usize {
        landed.extend(copies.groups.pop_front().unwrap_or_default());
    }
    if all {
        landed.append(&mut copies.open);
    }
    let thread = step.thread(lane);
    for copy in landed {
        land(step.launched, step.blocks, step.clocks, thread, &copy)
            .map_err(|refusal| LaneFault::at(lane, target(&copy), refusal))?;
    }
    Ok(())
}

fn bulk(operation: &Asynchronous, step: &mut Step, lane: usize) -> Result<(), LaneFault> {
    let Asynchronous::Bulk { destination, source, bytes, barrier, multicast } = operation else { return Ok(()) };
    let bytes = step.warp.registers.word(*bytes)[lane] as usize;
    let from = step.addresses(source)[lane];
    let to = step.addresses(destination)[lane];
    if bytes == 0
        || !bytes.is_multiple_of(CHUNK)
        || !from.is_multiple_of(CHUNK as u64)
        || !to.is_multiple_of(CHUNK as u64)
    {
        let message = format!(
            "bulk copies move multiples of 16 bytes between addresses that are multiples of 16, not {bytes} from {from:#x}"
        );
        return Err(LaneFault::at(lane, to, Refusal::new(FaultKind::Misaligned, message)));
    }
    let mut data = vec![0; bytes];
    let thread = step.thread(lane);
    for index in 0..bytes / CHUNK {
        let chunk = &mut data[index * CHUNK..(index + 1) * CHUNK];
        let address = from + (index * CHUNK) as u64;
        let refuse = |refusal| LaneFault::at(lane, address, refusal);
        if source.space == Space::Global {
            let who = Who::weak(thread, step.clocks, step.place);
            step.launched.memory.load(&who, address, chunk).map_err(refuse)?;
        } else {
            let (block, offset) = step.shared_place(lane, address)?;
            let who = Who::weak(thread, step.clocks, step.place);
            step.blocks[block].shared.load(&who, offset, chunk).map_err(refuse)?;
        }
    }
    let sectors = (bytes as u64).div_ceil(32);
    if source.space == Space::Global {
        step.tally.global.bytes_loaded += bytes as u64;
        step.tally.global.warp_bytes_loaded += bytes as u64;
        step.tally.global.sectors_loaded += sectors;
    }
    let Some(barrier) = barrier else {
        step.tally.global.bytes_stored += bytes as u64;
        step.tally.global.warp_bytes_stored += bytes as u64;
        step.tally.global.sectors_stored += sectors;
        let issued = Copy { destination: Destination::Global(to), bytes: data, instruction: step.place };
        copies(step, lane).open_bulk.push(issued);
        return Ok(());
    };
    let place = shared(step, lane, destination)?;
    let barrier = shared(step, lane, barrier)?;
    step.tally.shared.bytes_stored += bytes as u64;
    let Some(mask) = multicast else { return enqueue(step, lane, place, data, barrier) };
    let mask = step.warp.registers.word(*mask)[lane];
    for rank in (0..step.blocks.len()).filter(|rank| mask >> rank & 1 == 1) {
        enqueue(step, lane, (rank, place.1), data.clone(), (rank, barrier.1))?;
    }
    Ok(())
}
