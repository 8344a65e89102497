//! Runs one warp for a while: fetch, guard, count, execute, and where its paths part and meet.

use super::block::{BARRIERS, BarrierFault, ClusterBarrier, gather};
use super::execute;
use super::program::ASSERT;
use super::step::{LaneFault, Launched, Step, Tally, lanes};
use super::team::Team;
use super::warp::{Frame, Path, Pending, Wait, Warp};
use super::window;
use crate::check::clock::TeamClocks;
use crate::ptx::decode::barrier::{Barrier, BlockBarrier};
use crate::ptx::decode::code::{Control, Operation, Target};
use crate::ptx::decode::warp::{Collective, Warp as WarpOperation};
use crate::report::{Fault, FaultKind};

/// The most calls in progress.
const DEEPEST_CALL: usize = 1024;

/// How a warp's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All its lanes have exited.
    Finished,
    /// It can go on.
    Ready,
    /// Every path waits.
    Blocked,
}

/// What an instruction does to its path.
enum Next {
    /// The next instruction.
    Advance,
    /// Another instruction, for all lanes of the path.
    Jump(u32),
    /// The active lanes go to another instruction; the others, if any, to the next.
    Branch(u32),
    /// The active lanes wait; `after`: they stand behind the instruction.
    Wait { wait: Wait, after: bool },
    /// The active lanes have a path of their own: the others go on.
    Leave(Vec<Path>),
    /// The next instruction, after the other warps' turn.
    Yield,
}

/// Runs warp `index` of the team for at most `slice` instructions; how it ended, and how many it executed.
///
/// # Errors
/// The first fault.
pub fn run_warp(
    team: &mut Team,
    index: usize,
    launched: &Launched,
    tally: &mut Tally,
    slice: u32,
) -> Result<(Progress, u32), Box<Fault>> {
    let mut left = slice;
    loop {
        let (warp, blocks, _, cluster, _) = team.parts(index);
        if warp.paths.is_empty() {
            return Ok((Progress::Finished, slice - left));
        }
        if left == 0 {
            return Ok((Progress::Ready, slice));
        }
        if warp.paths.len() > 1 {
            warp.merge();
        }
        let block = &blocks[warp.block];
        let ready = |path: &Path| match path.wait {
            Wait::Ready => true,
            Wait::Block { id, generation, .. } => block.barriers[id as usize].generation > generation,
            Wait::Cluster { phase } => cluster.phase > phase,
            Wait::Collective { .. } | Wait::Aligned => false,
        };
        let Some(chosen) = warp.next(ready) else { return Ok((Progress::Blocked, slice - left)) };
        let mut path = warp.paths.swap_remove(chosen);
        warp.select(launched.program, path.frame);
        if let Wait::Block { id, instruction, .. } = path.wait {
            let result = block.barriers[id as usize].result;
            deliver_ballot(warp, launched, path.mask, instruction, result);
        }
        if let Wait::Cluster { .. } = path.wait {
            let (warp, _, clocks, cluster, _) = team.parts(index);
            learn_from_cluster(cluster, clocks, warp.first_thread, path.mask);
        }
        path.wait = Wait::Ready;
        let mut place = path.place;
        let ended = straight(team, index, launched, tally, &mut path, &mut left, &mut place);
        match ended {
            Ok(yielded) => {
                if path.mask != 0 {
                    path.postponed = yielded || left == 0;
                    team.warps[index].paths.push(path);
                }
                if yielded {
                    let state = if team.warps[index].paths.is_empty() { Progress::Finished } else { Progress::Ready };
                    return Ok((state, slice - left));
                }
            }
            Err(fault) => return Err(team.fault(launched, index, place, fault)),
        }
    }
}

/// What a cluster barrier teaches those that have waited for it.
fn learn_from_cluster(cluster: &ClusterBarrier, clocks: &mut TeamClocks, first_thread: usize, mask: u32) {
    if let Some(known) = &cluster.known {
        for lane in lanes(mask) {
            clocks.acquire(first_thread + lane, known);
        }
    }
}

/// Writes the result of a reducing barrier to the lanes that waited for it.
fn deliver_ballot(warp: &mut Warp, launched: &Launched, mask: u32, instruction: u32, ballot: super::block::Ballot) {
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

/// Follows one path until it ends, waits, parts, meets another one, or the slice is spent. Whether it asked for others to go first.
fn straight(
    team: &mut Team,
    index: usize,
    launched: &Launched,
    tally: &mut Tally,
    path: &mut Path,
    left: &mut u32,
    place: &mut u32,
) -> Result<bool, LaneFault> {
    let program = launched.program;
    // Lanes' counts are kept for the whole path until its mask changes.
    let mut together = 0_u64;
    let count_lanes = |team: &mut Team, mask: u32, number: u64| {
        for lane in lanes(mask) {
            team.warps[index].executed[lane] += number;
        }
    };
    loop {
        *place = path.place;
        let instruction = &program.instructions[path.place as usize];
        let warp = &mut team.warps[index];
        let active = match instruction.guard {
            None => path.mask,
            Some(condition) => {
                let bits = warp.registers.predicate(condition.predicate);
                path.mask & if condition.negated { !bits } else { bits }
            }
        };
        *left -= 1;
        let next = if active == 0 {
            tally.predicated_off += 1;
            Next::Advance
        } else {
            if active == path.mask {
                together += 1;
            } else {
                count_lanes(team, active, 1);
            }
            if let Operation::Arithmetic(arithmetic) = &instruction.operation {
                execute::arithmetic(arithmetic, &mut team.warps[index].registers, active);
                count(tally, path.place, active);
                Next::Advance
            } else {
                let next = perform(team, index, launched, tally, path, active, &instruction.operation)?;
                // A path that waits before an instruction comes to it again: it is counted when it is executed.
                if matches!(next, Next::Wait { after: false, .. }) {
                    if active == path.mask {
                        together -= 1;
                    } else {
                        lanes(active).for_each(|lane| team.warps[index].executed[lane] -= 1);
                    }
                } else {
                    count(tally, path.place, active);
                }
                next
            }
        };
        let mut yielded = false;
        let stop = match next {
            Next::Advance => {
                path.place += 1;
                false
            }
            Next::Jump(target) => {
                path.place = target;
                false
            }
            Next::Branch(target) if active == path.mask => {
                path.place = target;
                false
            }
            other => {
                count_lanes(team, path.mask, std::mem::take(&mut together));
                let rest = path.mask & !active;
                let warp = &mut team.warps[index];
                match other {
                    Next::Branch(target) => {
                        tally.divergent_branches += 1;
                        warp.paths.push(Path { mask: active, place: target, ..path.clone() });
                    }
                    Next::Wait { wait, after } => {
                        warp.paths.push(Path {
                            mask: active,
                            place: path.place + u32::from(after),
                            wait,
                            ..path.clone()
                        });
                    }
                    Next::Leave(paths) => warp.paths.extend(paths),
                    _ => yielded = true,
                }
                if yielded {
                    path.place += 1;
                } else {
                    path.mask = rest;
                    path.place += 1;
                }
                true
            }
        };
        if stop || *left == 0 || team.warps[index].paths.iter().any(|other| other.place == path.place) {
            count_lanes(team, path.mask, together);
            return Ok(yielded);
        }
    }
}

fn count(tally: &mut Tally, place: u32, active: u32) {
    let threads = u64::from(active.count_ones());
    let count = &mut tally.instructions[place as usize];
    count.warp += 1;
    count.thread += threads;
    tally.thread_instructions += threads;
}

/// Executes what is not arithmetic.
fn perform(
    team: &mut Team,
    index: usize,
    launched: &Launched,
    tally: &mut Tally,
    path: &Path,
    active: u32,
    operation: &Operation,
) -> Result<Next, LaneFault> {
    let (warp, blocks, clocks, cluster, _) = team.parts(index);
    let mut step =
        Step { launched, warp, blocks, clocks, cluster, tally, place: path.place, local_frame: path.frame.local };
    match operation {
        Operation::Arithmetic(_) => {}
        Operation::Memory(memory) => execute::memory::execute(memory, &mut step, active)?,
        Operation::Atomic(atomic) => execute::atomic::execute(atomic, &mut step, active)?,
        Operation::Asynchronous(asynchronous) => {
            if execute::asynchronous::execute(asynchronous, &mut step, active)? {
                return Ok(Next::Yield);
            }
        }
        Operation::Matrix(matrix) => {
            whole_warp(step.warp, active)?;
            execute::matrix::execute(matrix, &mut step.warp.registers);
        }
        Operation::Fragment(fragment) => {
            whole_warp(step.warp, active)?;
            execute::fragment::execute(fragment, &mut step)?;
        }
        Operation::Warp(collective) => return meet(collective, &mut step, path, active),
        Operation::Barrier(barrier) => return wait(barrier, &mut step, path, active),
        Operation::Control(control) => return go(team, index, launched, path, active, *control),
    }
    Ok(Next::Advance)
}

/// Matrix instructions need all 32 lanes.
fn whole_warp(warp: &Warp, active: u32) -> Result<(), LaneFault> {
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
fn meet(collective: &Collective, step: &mut Step, path: &Path, active: u32) -> Result<Next, LaneFault> {
    let masks = step.warp.registers.word(collective.members);
    let synchronize = collective.operation == WarpOperation::Synchronize;
    let mut rest = active;
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
            return Ok(assemble(step, path, active, members, synchronize));
        }
        rest &= !named;
    }
    let mut rest = active;
    while rest != 0 {
        let members = masks[rest.trailing_zeros() as usize];
        let together = members & step.warp.live;
        if let Some(lane) = execute::warp::execute(&collective.operation, &mut step.warp.registers, together) {
            let message = format!(
                "lane {lane} reads a lane that is not in the member mask {members:#010x}, or has exited: the value is undefined"
            );
            return Err(LaneFault::new(lane, FaultKind::MissingLanes, message));
        }
        if synchronize {
            step.clocks.join(&[(step.warp.first_thread, together)]);
        }
        rest &= !together;
    }
    Ok(Next::Advance)
}

/// Some of the lanes named are not here: the path waits, unless they wait at other `bar.warp.sync` instructions and all are there now.
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
fn wait(barrier: &Barrier, step: &mut Step, path: &Path, active: u32) -> Result<Next, LaneFault> {
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
        Barrier::Fence(orders) => {
            if *orders {
                for lane in lanes(active) {
                    step.clocks.fence(step.warp.first_thread + lane);
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
            for lane in lanes(active) {
                let knowledge = step.clocks.publish(step.warp.first_thread + lane, *release);
                gather(&mut step.cluster.gathered, knowledge);
            }
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
    let strict = step.launched.checks.divergent_barriers;
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
        for lane in lanes(active) {
            gather(&mut barrier.gathered, step.clocks.publish(step.warp.first_thread + lane, true));
        }
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
    match block.settle(id as usize, step.clocks, strict) {
        Ok(done) => step.tally.block_barriers += u64::from(done),
        Err(fault) => return Err(barrier_fault(lane, id, fault)),
    }
    if *kind == BlockBarrier::Arrive {
        return Ok(Next::Advance);
    }
    Ok(Next::Wait { wait: Wait::Block { id, generation, instruction: path.place }, after: true })
}

fn barrier_fault(lane: usize, id: u32, fault: BarrierFault) -> LaneFault {
    let message = match fault {
        BarrierFault::Exited { threads } => {
            format!("{threads} threads of the block have exited without reaching barrier {id}")
        }
        BarrierFault::TooMany { expected, arrived } => {
            format!("barrier {id} is for {expected} threads, and {arrived} have come")
        }
    };
    LaneFault::new(lane, FaultKind::DivergentBarrier, message)
}

/// Control flow.
fn go(
    team: &mut Team,
    index: usize,
    launched: &Launched,
    path: &Path,
    active: u32,
    control: Control,
) -> Result<Next, LaneFault> {
    let first = active.trailing_zeros() as usize;
    match control {
        Control::Branch(target) => Ok(Next::Branch(target)),
        Control::BranchTable(reg, table) => {
            let indices = team.warps[index].registers.word(reg);
            let targets = &launched.program.tables[table as usize];
            let mut paths: Vec<Path> = Vec::new();
            for lane in lanes(active) {
                let Some(target) = targets.get(indices[lane] as usize) else {
                    let message = format!("index {} into a table of {} branch targets", indices[lane], targets.len());
                    return Err(LaneFault::new(lane, FaultKind::InvalidOperation, message));
                };
                match paths.iter_mut().find(|path| path.place == *target) {
                    Some(path) => path.mask |= 1 << lane,
                    None => paths.push(Path { mask: 1 << lane, place: *target, ..path.clone() }),
                }
            }
            if paths.len() == 1 && active == path.mask {
                return Ok(Next::Jump(paths[0].place));
            }
            Ok(Next::Leave(paths))
        }
        Control::Call(site) => call(team, index, launched, path, active, site),
        Control::Return if !path.calls.is_empty() => give_back(team, index, launched, path, active),
        Control::Return | Control::Exit => exit(team, index, launched, active),
        Control::Trap => Err(LaneFault::new(first, FaultKind::Trap, "trap")),
        Control::Yield => Ok(Next::Yield),
        Control::ActiveMask(reg) => {
            team.warps[index].registers.set_word(reg, active, &[active; 32]);
            Ok(Next::Advance)
        }
        Control::Clock(reg) => {
            let executed = team.warps[index].executed;
            team.warps[index].registers.set_extended(reg, active, &executed);
            Ok(Next::Advance)
        }
        Control::Nothing => Ok(Next::Advance),
    }
}

/// Lanes exit: barriers and paths that waited for them look again.
fn exit(team: &mut Team, index: usize, launched: &Launched, active: u32) -> Result<Next, LaneFault> {
    let (warp, blocks, clocks, cluster, _) = team.parts(index);
    warp.live &= !active;
    warp.reconsider();
    let block = &mut blocks[warp.block];
    block.live -= active.count_ones();
    block.exited += active.count_ones();
    for id in 0..BARRIERS {
        if block.barriers[id].arrived > 0
            && let Err(fault) = block.settle(id, clocks, launched.checks.divergent_barriers)
        {
            // The fault is the barrier's, not that of the thread that happened to exit last.
            let first = block.barriers[id].first;
            return Err(LaneFault {
                elsewhere: Some(first),
                ..barrier_fault(active.trailing_zeros() as usize, id as u32, fault)
            });
        }
    }
    let live = blocks.iter().map(|block| block.live).sum();
    cluster.settle(live);
    Ok(Next::Leave(Vec::new()))
}

fn call(
    team: &mut Team,
    index: usize,
    launched: &Launched,
    path: &Path,
    active: u32,
    site: u32,
) -> Result<Next, LaneFault> {
    let program = launched.program;
    let call = &program.calls[site as usize];
    let first = active.trailing_zeros() as usize;
    if path.calls.len() >= DEEPEST_CALL {
        return Err(LaneFault::new(first, FaultKind::InvalidOperation, format!("more than {DEEPEST_CALL} calls deep")));
    }
    // The callee's frame lies behind the caller's, in registers and in local memory.
    let caller = &program.functions[path.frame.function as usize].frame;
    let mut groups: Vec<(u32, u32)> = Vec::new();
    match call.target {
        Target::Function(function) => groups.push((function, active)),
        Target::Register(reg) => {
            let addresses = team.warps[index].registers.extended(reg);
            for lane in lanes(active) {
                let function = window::function_at(addresses[lane])
                    .filter(|function| (*function as usize) < program.functions.len());
                let Some(function) = function else {
                    let message = format!("{:#x} is not the address of a function", addresses[lane]);
                    return Err(LaneFault::new(lane, FaultKind::InvalidOperation, message));
                };
                match groups.iter_mut().find(|group| group.0 == function) {
                    Some(group) => group.1 |= 1 << lane,
                    None => groups.push((function, 1 << lane)),
                }
            }
        }
    }
    let mut paths = Vec::new();
    for (function, mask) in groups {
        let callee = &program.functions[function as usize];
        let Some(entry) = callee.entry else {
            let kind = if callee.name == ASSERT { FaultKind::Trap } else { FaultKind::InvalidOperation };
            let message = if callee.name == ASSERT {
                "an assertion failed".to_owned()
            } else {
                format!("{} has no body", callee.name)
            };
            return Err(LaneFault::new(mask.trailing_zeros() as usize, kind, message));
        };
        if call.arguments.len() != callee.parameters.len() || call.results.len() != callee.results.len() {
            let message = format!(
                "{} takes {} arguments, and gets {}",
                callee.name,
                callee.parameters.len(),
                call.arguments.len()
            );
            return Err(LaneFault::new(mask.trailing_zeros() as usize, FaultKind::InvalidOperation, message));
        }
        let frame = Frame {
            function,
            rows: path.frame.rows + caller.rows as usize,
            predicates: path.frame.predicates + caller.predicates as usize,
            local: (path.frame.local + caller.local_bytes).next_multiple_of(16),
        };
        let warp = &mut team.warps[index];
        for lane in lanes(mask) {
            warp.local.reserve(lane, frame.local + callee.frame.local_bytes);
            warp.local.forget(lane, frame.local, callee.frame.local_bytes);
            for ((from, bytes), (to, size)) in call.arguments.iter().zip(&callee.parameters) {
                let copied = warp.local.copy(lane, path.frame.local + from, frame.local + to, *bytes.min(size));
                copied.map_err(|_| {
                    LaneFault::new(lane, FaultKind::OutOfBounds, "an argument lies outside of local memory")
                })?;
            }
        }
        let (warp, _, _, _, specials) = team.parts(index);
        warp.enter(program, frame, mask, specials);
        let mut calls = path.calls.clone();
        calls.push(Pending { site, resume: path.place + 1, frame: path.frame });
        paths.push(Path { mask, place: entry, frame, calls, wait: Wait::Ready, postponed: false });
    }
    Ok(Next::Leave(paths))
}

fn give_back(team: &mut Team, index: usize, launched: &Launched, path: &Path, active: u32) -> Result<Next, LaneFault> {
    let program = launched.program;
    let mut calls = path.calls.clone();
    let Some(pending) = calls.pop() else { return Ok(Next::Leave(Vec::new())) };
    let callee = &program.functions[path.frame.function as usize];
    let results = &program.calls[pending.site as usize].results;
    for lane in lanes(active) {
        for ((from, bytes), (to, size)) in callee.results.iter().zip(results) {
            let copied =
                team.warps[index].local.copy(lane, path.frame.local + from, pending.frame.local + to, *bytes.min(size));
            copied
                .map_err(|_| LaneFault::new(lane, FaultKind::OutOfBounds, "a result lies outside of local memory"))?;
        }
    }
    let returned =
        Path { mask: active, place: pending.resume, frame: pending.frame, calls, wait: Wait::Ready, postponed: false };
    Ok(Next::Leave(vec![returned]))
}
