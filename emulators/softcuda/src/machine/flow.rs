//! Control flow: branches through tables, calls and returns, exits.

use super::block::BARRIERS;
use super::meet::barrier_fault;
use super::run::Next;
use super::step::{LaneFault, Launched, Step, Tally, lanes};
use super::system;
use super::team::Team;
use super::warp::{Frame, Path, Pending, Wait};
use super::window;
use crate::ptx::decode::code::{Control, MOST_LOCAL_BYTES, Target};
use crate::report::FaultKind;

/// The most calls in progress.
const DEEPEST_CALL: usize = 1024;
/// The most rows of registers of a warp's calls in progress, 128 bytes each.
const MOST_ROWS: usize = 1 << 19;

/// Control flow.
pub(super) fn go(
    team: &mut Team,
    index: usize,
    launched: &Launched,
    tally: &mut Tally,
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
        Control::Call(site) => call(team, index, launched, tally, path, active, site),
        Control::Return if !path.calls.is_empty() => give_back(team, index, launched, path, active),
        Control::Return | Control::Exit => exit(team, index, tally, active),
        Control::Trap => Err(LaneFault::new(first, FaultKind::Trap, "trap")),
        Control::Yield => Ok(Next::Yield),
        Control::ActiveMask(reg) => {
            team.warps[index].registers.set_word(reg, active, &[active; 32]);
            Ok(Next::Advance)
        }
        Control::Clock { destination, high } => {
            let executed = team.warps[index].executed.map(|number| if high { number >> 32 } else { number });
            team.warps[index].registers.set_extended(destination, active, &executed);
            Ok(Next::Advance)
        }
        Control::Nothing => Ok(Next::Advance),
    }
}

/// Lanes exit: barriers and paths that waited for them look again.
fn exit(team: &mut Team, index: usize, tally: &mut Tally, active: u32) -> Result<Next, LaneFault> {
    let (warp, blocks, clocks, cluster, _) = team.parts(index);
    warp.live &= !active;
    warp.reconsider();
    let block = &mut blocks[warp.block];
    block.live -= active.count_ones();
    for id in 0..BARRIERS {
        match block.settle(id, clocks) {
            Ok(done) => tally.block_barriers += u64::from(done),
            Err(fault) => {
                // The fault is the barrier's, not that of the thread that happened to exit last.
                let first = block.barriers[id].first;
                let fault = barrier_fault(active.trailing_zeros() as usize, id as u32, fault);
                return Err(LaneFault { elsewhere: Some(first), ..fault });
            }
        }
    }
    let live = blocks.iter().map(|block| block.live).sum();
    tally.cluster_barriers += u64::from(cluster.settle(live));
    Ok(Next::Leave(Vec::new()))
}

fn call(
    team: &mut Team,
    index: usize,
    launched: &Launched,
    tally: &mut Tally,
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
        if call.arguments.len() != callee.parameters.len() || call.results.len() != callee.results.len() {
            let message = format!(
                "{} takes {} arguments, and gets {}",
                callee.name,
                callee.parameters.len(),
                call.arguments.len()
            );
            return Err(LaneFault::new(mask.trailing_zeros() as usize, FaultKind::InvalidOperation, message));
        }
        let Some(entry) = callee.entry else {
            let Some(system) = callee.system else {
                let message = format!("{} has no body", callee.name);
                return Err(LaneFault::new(mask.trailing_zeros() as usize, FaultKind::InvalidOperation, message));
            };
            let (warp, blocks, clocks, cluster, _) = team.parts(index);
            let (place, local_frame) = (path.place, path.frame.local);
            let mut step = Step { launched, warp, blocks, clocks, cluster, tally, place, local_frame };
            system::call(system, call, &mut step, mask)?;
            paths.push(Path { mask, place: path.place + 1, ..path.clone() });
            continue;
        };
        let frame = Frame {
            function,
            rows: path.frame.rows + caller.rows as usize,
            predicates: path.frame.predicates + caller.predicates as usize,
            local: (path.frame.local + caller.local_bytes).next_multiple_of(16),
        };
        let refuse = |kind, message| Err(LaneFault::new(mask.trailing_zeros() as usize, kind, message));
        if frame.local + callee.frame.local_bytes > MOST_LOCAL_BYTES {
            let message = format!("the functions in progress need more than {MOST_LOCAL_BYTES} bytes of local memory");
            return refuse(FaultKind::OutOfBounds, message);
        }
        if frame.rows + callee.frame.rows as usize > MOST_ROWS {
            let message = format!("the functions in progress need more than {MOST_ROWS} registers");
            return refuse(FaultKind::InvalidOperation, message);
        }
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
