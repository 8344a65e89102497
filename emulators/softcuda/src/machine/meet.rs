//! Where lanes and threads wait for one another: warp instructions, barriers, fences.

use super::block::{BARRIERS, Ballot, ClusterBarrier, TooMany, gather};
use super::execute;
use super::run::Next;
use super::step::{LaneFault, Launched, Step, lanes};
use super::undefined;
use super::warp::{Path, Wait, Warp};
use crate::check::clock::TeamClocks;
use crate::ptx::decode::barrier::{Barrier, BlockBarrier};
use crate::ptx::decode::code::Operation;
use crate::ptx::decode::warp::{Collective, Warp as WarpOperation};
use crate::report::FaultKind;

/// Matrix instructions need all 32 lanes.
pub(super) fn whole_warp(warp: &Warp, active: u32) -> Result<(), LaneFault> {
    if active == u32::MAX {
        return Ok(());
    }
    let missing: Vec<_> = lanes(!active).collect();
    let gone = !warp.live;
    let message =
        format!("lanes {missing:?} of the warp do not take part (exited: {gone:#010x}); the result would be undefined");
    Err(LaneFault::new(active.trailing_zeros() as usize, FaultKind::MissingLanes, message))
}

/// Warp instructions: the lanes of the member mask that have not exited must be there.
pub(super) fn meet(collective: &Collective, step: &mut Step, path: &Path, active: u32) -> Result<Next, LaneFault> {
    let masks = step.warp.registers.word(collective.members);
    let synchronize = collective.operation == WarpOperation::Synchronize;
    let (mut rest, mut missed) = (active, None);
    let mut waiting = 0;
    while rest != 0 {
        let lane = rest.trailing_zeros() as usize;
        let members = masks[lane];
        let named = members & step.warp.live;
        if members >> lane & 1 == 0 {
            let message = format!("lane {lane} executes it with the member mask {members:#010x}, which leaves it out");
            return Err(LaneFault::new(lane, FaultKind::MissingLanes, message));
        }
        let same = lanes(named & active).find(|other| masks[*other] != members);
        if let Some(other) = same {
            let message = format!(
                "lane {lane} has the member mask {members:#010x}, and lane {other}, which it names, {:#010x}",
                masks[other]
            );
            return Err(LaneFault::new(lane, FaultKind::MissingLanes, message));
        }
        if named & !active != 0 {
            missed = missed.or(Some(members));
            waiting |= named & active;
        }
        rest &= !named;
    }
    if let Some(members) = missed.filter(|_| waiting == active) {
        return Ok(assemble(step, path, active, members, synchronize));
    }
    let mut rest = active & !waiting;
    while rest != 0 {
        let members = masks[rest.trailing_zeros() as usize];
        let together = members & step.warp.live;
        if step.warp.registers.has_undefined() {
            let from = execute::warp::sources(&collective.operation, &step.warp.registers);
            undefined::collective(step, together, from.as_ref());
        }
        if let Some(lane) = execute::warp::execute(&collective.operation, &mut step.warp.registers, together) {
            let message = format!(
                "lane {lane} reads a lane that is not in the member mask {members:#010x}, or has exited: the value is undefined"
            );
            return Err(LaneFault::new(lane, FaultKind::MissingLanes, message));
        }
        // The manual says so of bar.warp.sync only; cooperative groups and others rely on it for all.
        step.clocks.join(&[(step.warp.first_thread, together)]);
        rest &= !together;
    }
    // Lanes whose mask is complete do not wait for those with another one: these may depend on them.
    Ok(if waiting == 0 { Next::Advance } else { Next::Part { waiting } })
}

/// Some of the lanes named are not here: the path waits, unless they wait at other `bar.warp.sync` instructions and all
/// are there now.
fn assemble(step: &mut Step, path: &Path, active: u32, members: u32, synchronize: bool) -> Next {
    let wait = Wait::Collective { members, synchronize };
    if synchronize {
        let others = step.warp.paths.iter().filter(|other| other.wait == wait).fold(0, |mask, other| mask | other.mask);
        let together = others | active;
        if members & step.warp.live & !together == 0 && path.mask == active {
            for other in step.warp.paths.iter_mut().filter(|other| other.wait == wait) {
                other.wait = Wait::Ready;
                other.place += 1;
            }
            step.clocks.join(&[(step.warp.first_thread, together)]);
            return Next::Advance;
        }
    }
    Next::Wait { wait, after: false }
}

/// Barriers and fences.
pub(super) fn wait(barrier: &Barrier, step: &mut Step, path: &Path, active: u32) -> Result<Next, LaneFault> {
    let live = step.warp.live;
    let aligned = match barrier {
        Barrier::Block { aligned, .. } | Barrier::ClusterArrive { aligned, .. } | Barrier::ClusterWait { aligned } => {
            *aligned
        }
        _ => false,
    };
    if aligned && active != live && step.launched.checks.divergent_barriers {
        return Ok(Next::Wait { wait: Wait::Aligned, after: false });
    }
    match barrier {
        Barrier::Fence(fence) => {
            if let Some(fence) = fence {
                for lane in lanes(active) {
                    step.clocks.fence(step.warp.first_thread + lane, *fence);
                }
            }
            Ok(Next::Advance)
        }
        Barrier::Block { kind, aligned, id, threads } => {
            let ids = step.warp.registers.word(*id);
            let counts = threads.map(|reg| step.warp.registers.word(reg));
            let lane = active.trailing_zeros() as usize;
            block_barrier(step, path, active, (kind, *aligned, ids[lane], counts.map(|counts| counts[lane])))
        }
        Barrier::ClusterArrive { release, .. } => {
            let phase = step.cluster.phase;
            for lane in lanes(active) {
                step.warp.cluster_phase[lane] = phase;
            }
            gather(&mut step.cluster.gathered, step.clocks.publish_lanes(step.warp.first_thread, active, *release));
            step.cluster.arrived += active.count_ones();
            let live = step.blocks.iter().map(|block| block.live).sum();
            step.tally.cluster_barriers += u64::from(step.cluster.settle(live));
            Ok(Next::Advance)
        }
        Barrier::ClusterWait { .. } => {
            let phase = step.warp.cluster_phase[active.trailing_zeros() as usize];
            if step.cluster.phase > phase {
                learn_from_cluster(step.cluster, step.clocks, step.warp.first_thread, active);
                return Ok(Next::Advance);
            }
            Ok(Next::Wait { wait: Wait::Cluster { phase }, after: true })
        }
        Barrier::Warp(collective) => meet(collective, step, path, active),
    }
}

fn block_barrier(
    step: &mut Step,
    path: &Path,
    active: u32,
    (kind, aligned, id, threads): (&BlockBarrier, bool, u32, Option<u32>),
) -> Result<Next, LaneFault> {
    let lane = active.trailing_zeros() as usize;
    let invalid = |message: String| LaneFault::new(lane, FaultKind::InvalidOperation, message);
    if id as usize >= BARRIERS {
        return Err(invalid(format!("there are {BARRIERS} barriers, and this is number {id}")));
    }
    if let Some(threads) = threads
        && (threads == 0 || !threads.is_multiple_of(32))
    {
        return Err(invalid(format!("a barrier of {threads} threads: the number must be a positive multiple of 32")));
    }
    let block = &mut step.blocks[step.warp.block];
    let barrier = &mut block.barriers[id as usize];
    if barrier.arrived == 0 {
        barrier.expected = threads;
        barrier.first = (path.place, step.warp.first_thread + lane);
    } else if barrier.expected != threads {
        let message = format!("barrier {id} waits for {:?} threads, and this one says {threads:?}", barrier.expected);
        return Err(LaneFault::new(lane, FaultKind::DivergentBarrier, message));
    }
    if *kind == BlockBarrier::Arrive {
        gather(&mut barrier.gathered, step.clocks.publish_lanes(step.warp.first_thread, active, true));
    } else {
        barrier.participants.push((step.warp.first_thread, active));
    }
    // With a count, a warp that takes part counts in full, whatever part of it there is.
    barrier.arrived += if aligned && threads.is_some() { 32 } else { active.count_ones() };
    if let BlockBarrier::Vote { source, .. } | BlockBarrier::Count { source, .. } = kind {
        let bits = step.warp.registers.predicate(source.predicate);
        let yes = if source.negated { !bits } else { bits } & active;
        barrier.ballot.yes += yes.count_ones();
        barrier.ballot.all += active.count_ones();
    }
    let generation = barrier.generation;
    match block.settle(id as usize, step.clocks) {
        Ok(done) => step.tally.block_barriers += u64::from(done),
        Err(fault) => return Err(barrier_fault(lane, id, fault)),
    }
    if *kind == BlockBarrier::Arrive {
        return Ok(Next::Advance);
    }
    Ok(Next::Wait { wait: Wait::Block { id, generation, instruction: path.place }, after: true })
}

pub(super) fn barrier_fault(lane: usize, id: u32, fault: TooMany) -> LaneFault {
    let TooMany { expected, arrived } = fault;
    let message = format!("barrier {id} is for {expected} threads, and {arrived} have come");
    LaneFault::new(lane, FaultKind::DivergentBarrier, message)
}

/// What a cluster barrier teaches those that have waited for it.
pub(super) fn learn_from_cluster(cluster: &ClusterBarrier, clocks: &mut TeamClocks, first_thread: usize, mask: u32) {
    if let Some(known) = &cluster.known {
        clocks.acquire_lanes(first_thread, mask, known);
    }
}

/// Writes the result of a reducing barrier to the lanes that waited for it.
pub(super) fn deliver_ballot(warp: &mut Warp, launched: &Launched, mask: u32, instruction: u32, ballot: Ballot) {
    let Operation::Barrier(Barrier::Block { kind, .. }) = launched.program.instructions[instruction as usize].operation
    else {
        return;
    };
    match kind {
        BlockBarrier::Vote { destination, all, .. } => {
            let answer = if all { ballot.yes == ballot.all } else { ballot.yes > 0 };
            warp.registers.set_predicate(destination, mask, if answer { u32::MAX } else { 0 });
        }
        BlockBarrier::Count { destination, .. } => warp.registers.set_word(destination, mask, &[ballot.yes; 32]),
        BlockBarrier::Wait | BlockBarrier::Arrive => {}
    }
}
