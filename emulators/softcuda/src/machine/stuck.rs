//! What to say when nothing in a team can go on.

use super::execute::asynchronous;
use super::step::{LaneFault, Launched, lanes};
use super::team::{Team, coordinates};
use super::warp::Wait;
use crate::report::{Fault, FaultKind, OtherAccess};

impl Team {
    /// A lane's fault with its place.
    pub fn fault(&self, launched: &Launched, warp: usize, place: u32, fault: LaneFault) -> Box<Fault> {
        let program = launched.program;
        let (warp, place, lane) = match fault.elsewhere {
            None => (warp, place, fault.lane),
            Some((place, thread)) => {
                let warp = self.warps.iter().rposition(|warp| warp.first_thread <= thread).unwrap_or(warp);
                (warp, place, thread - self.warps[warp].first_thread)
            }
        };
        let line = program.instructions.get(place as usize).map_or(0, |instruction| instruction.line);
        let warp = &self.warps[warp];
        let refusal = fault.refusal;
        let other = refusal.other.map(|earlier| {
            let line = program.instructions.get(earlier.instruction as usize).map_or(0, |instruction| instruction.line);
            OtherAccess {
                wrote: earlier.wrote,
                block: coordinates(u64::from(earlier.block), launched.launch.grid),
                thread: coordinates(u64::from(earlier.thread), launched.launch.block),
                line,
                instruction: program.line(line).to_owned(),
            }
        });
        Box::new(Fault {
            kind: refusal.kind,
            kernel: launched.kernel.name.clone(),
            line,
            instruction: program.line(line).to_owned(),
            block: self.blocks[warp.block].index,
            thread: coordinates(u64::from(warp.first_in_block) + lane as u64, launched.launch.block),
            address: fault.address,
            message: refusal.message,
            other,
        })
    }

    /// The fault of a launch that has spent its instructions.
    pub fn out_of_budget(&self, launched: &Launched, warp: usize) -> Box<Fault> {
        let path = self.warps[warp].paths.first();
        let (place, lane) = path.map_or((0, 0), |path| (path.place, path.mask.trailing_zeros() as usize));
        let message = "the launch has spent its instruction budget: does the kernel end?";
        self.fault(launched, warp, place, LaneFault::new(lane, FaultKind::InstructionBudget, message))
    }

    /// The fault of a team in which every thread waits: the most telling one.
    pub fn stuck(&self, launched: &Launched) -> Box<Fault> {
        let waiting = || {
            self.warps
                .iter()
                .enumerate()
                .flat_map(|(index, warp)| warp.paths.iter().map(move |path| (index, warp, path)))
        };
        for (index, warp, path) in waiting() {
            let lane = path.mask.trailing_zeros() as usize;
            if let Wait::Collective { members, .. } = path.wait {
                let missing: Vec<_> = lanes(members & warp.live & !path.mask).collect();
                let message =
                    format!("lanes {missing:?} of the member mask {members:#010x} do not come to this instruction");
                return self.fault(launched, index, path.place, LaneFault::new(lane, FaultKind::MissingLanes, message));
            }
        }
        for (index, warp, path) in waiting() {
            let lane = path.mask.trailing_zeros() as usize;
            if path.wait == Wait::Aligned {
                let missing: Vec<_> = lanes(warp.live & !path.mask).collect();
                let message = format!("lanes {missing:?} of the warp do not come to this barrier with the others");
                return self.fault(
                    launched,
                    index,
                    path.place,
                    LaneFault::new(lane, FaultKind::DivergentBarrier, message),
                );
            }
        }
        for (index, warp, path) in waiting() {
            let lane = path.mask.trailing_zeros() as usize;
            if let Wait::Block { id, instruction, .. } = path.wait {
                let block = &self.blocks[warp.block];
                let barrier = &block.barriers[id as usize];
                let expected = barrier.expected.unwrap_or(block.live);
                let message = format!(
                    "barrier {id} waits for {expected} threads, and {} have come: the others wait elsewhere",
                    barrier.arrived
                );
                return self.fault(
                    launched,
                    index,
                    instruction,
                    LaneFault::new(lane, FaultKind::DivergentBarrier, message),
                );
            }
        }
        if let Some((index, _, path)) = waiting().next() {
            let lane = path.mask.trailing_zeros() as usize;
            let message = format!("the cluster barrier waits, and {} threads have arrived", self.cluster.arrived);
            return self.fault(
                launched,
                index,
                path.place.saturating_sub(1),
                LaneFault::new(lane, FaultKind::DivergentBarrier, message),
            );
        }
        self.fault(launched, 0, 0, LaneFault::new(0, FaultKind::Deadlock, "nothing can go on"))
    }

    /// Lets what is still on its way to global memory arrive.
    ///
    /// # Errors
    /// A copy was refused.
    pub fn flush(&mut self, launched: &Launched) -> Result<(), Box<Fault>> {
        asynchronous::flush(launched, &mut self.blocks, &self.clocks).map_err(|(place, thread, address, refusal)| {
            let warp = self.warps.iter().rposition(|warp| warp.first_thread <= thread).unwrap_or(0);
            let lane = thread - self.warps[warp].first_thread;
            self.fault(launched, warp, place, LaneFault::at(lane, address, refusal))
        })
    }
}
