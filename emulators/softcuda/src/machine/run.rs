//! Runs one warp for a while: fetch, guard, count, execute, and where its paths part and meet.

use super::execute;
use super::flow::go;
use super::meet::{deliver_ballot, learn_from_cluster, meet, wait, whole_warp};
use super::step::{LaneFault, Launched, Step, Tally, lanes};
use super::team::Team;
use super::undefined;
use super::warp::{Path, Wait};
use crate::ptx::decode::code::{Control, Operation};
use crate::ptx::decode::memory::{Memory, Order};
use crate::report::Fault;

/// How a warp's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All its lanes have exited.
    Finished,
    /// It can go on.
    Ready,
    /// It can go on, but has looked in vain for what another thread has to do.
    Waiting,
    /// Every path waits.
    Blocked,
}

/// What an instruction does to its path.
pub(super) enum Next {
    /// The next instruction.
    Advance,
    /// Another instruction, for all lanes of the path.
    Jump(u32),
    /// The active lanes go to another instruction; the others, if any, to the next.
    Branch(u32),
    /// The active lanes wait; `after`: they stand behind the instruction.
    Wait { wait: Wait, after: bool },
    /// The next instruction, but for these lanes, which come to this one again.
    Part { waiting: u32 },
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
                    let state = if team.warps[index].paths.is_empty() { Progress::Finished } else { Progress::Waiting };
                    return Ok((state, slice - left));
                }
            }
            Err(fault) => return Err(team.fault(launched, index, place, fault)),
        }
    }
}

/// Follows one path until it ends, waits, parts, meets another one, or the slice is spent. Whether it asked for others
/// to go first.
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
        if warp.registers.has_undefined() {
            let (warp, blocks, clocks, cluster, _) = team.parts(index);
            let (place, local_frame) = (path.place, path.frame.local);
            let mut step = Step { launched, warp, blocks, clocks, cluster, tally, place, local_frame };
            undefined::before(&mut step, instruction, path.mask, active)?;
        }
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
                if matches!(instruction.operation, Operation::Control(Control::Clock { .. })) {
                    // The clock is the lanes' counts: they must be up to date.
                    count_lanes(team, path.mask, std::mem::take(&mut together));
                }
                let next = perform(team, index, launched, tally, path, active, &instruction.operation)?;
                // A path that waits before an instruction comes to it again: it is counted when it is executed.
                let waiting = match next {
                    Next::Wait { after: false, .. } => active,
                    Next::Part { waiting } => waiting,
                    _ => 0,
                };
                if waiting != 0 {
                    if active == path.mask {
                        together -= 1;
                        count_lanes(team, active, 1);
                    }
                    lanes(waiting).for_each(|lane| team.warps[index].executed[lane] -= 1);
                }
                if waiting != active {
                    count(tally, path.place, active & !waiting);
                }
                next
            }
        };
        let mut yielded = false;
        let before = path.place;
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
                let mut rest = path.mask & !active;
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
                    Next::Part { waiting } => {
                        warp.paths.push(Path { mask: waiting, ..path.clone() });
                        rest = path.mask & !waiting;
                    }
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
        // Ahead of another path after a jump: that one goes first, so that both come together where branches meet.
        let jumped = path.place != before + 1;
        let lets_pass = |other: &Path| {
            other.place == path.place
                || jumped
                    && other.place < path.place
                    && other.wait == Wait::Ready
                    && !other.postponed
                    && other.calls.len() >= path.calls.len()
        };
        if stop || *left == 0 || team.warps[index].paths.iter().any(lets_pass) {
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
        Operation::Memory(memory) => {
            execute::memory::execute(memory, &mut step, active)?;
            if let Memory::Load(access) = memory
                && access.order != Order::Weak
                && step.warp.reads_again(path.place, active, access.registers[0])
            {
                return Ok(Next::Yield);
            }
        }
        Operation::Atomic(atomic) => {
            execute::atomic::execute(atomic, &mut step, active)?;
            if let Some(destinations) = atomic.destinations
                && step.warp.reads_again(path.place, active, destinations[0])
            {
                return Ok(Next::Yield);
            }
        }
        Operation::Asynchronous(asynchronous) => {
            if execute::asynchronous::execute(asynchronous, &mut step, active)? {
                return Ok(Next::Yield);
            }
        }
        Operation::Matrix(matrix) => {
            whole_warp(step.warp, active)?;
            execute::matrix::execute(matrix, &mut step.warp.registers);
        }
        Operation::Wmma(wmma) => {
            whole_warp(step.warp, active)?;
            execute::wmma::execute(&launched.program.wmma[*wmma as usize], &mut step)?;
        }
        Operation::Fragment(fragment) => {
            whole_warp(step.warp, active)?;
            execute::fragment::execute(fragment, &mut step)?;
        }
        Operation::Warp(collective) => return meet(collective, &mut step, path, active),
        Operation::Barrier(barrier) => return wait(barrier, &mut step, path, active),
        Operation::Control(control) => return go(team, index, launched, tally, path, active, *control),
    }
    Ok(Next::Advance)
}
