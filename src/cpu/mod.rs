//! The CPU backend: vector instructions chosen at run time, threads by rayon, nothing of the size of the logits but the
//! logits.
//!
//! - Work is divided over rows and, within a row, over fixed slices of the vocabulary; rayon's current pool decides who
//!   does which. The division of a row, and the order in which its slices come together, depend on V alone. So the bits
//!   of a row's result depend on that row alone: not on N, on its place in the batch, or on the number of threads.
//! - Different [instruction sets](InstructionSet) give results that differ within the bounds of
//!   [`reference::bounds`](crate::reference::bounds).

mod backend;
mod conversion;
mod dispatch;
mod elementary;
mod linear;
mod log_ratio;
mod objective;
mod objective_math;
mod partial_row;
mod softmax;
mod token_log_prob;
mod token_log_prob_backward;

use crate::cpu::dispatch::Available;
use crate::error::Result;

pub use crate::cpu::dispatch::InstructionSet;
pub use crate::cpu::partial_row::PartialRow;

/// What this backend's arithmetic is measured at is within what every backend promises.
const _: () = {
    let promised = crate::reference::bounds::Arithmetic::BACKEND;
    assert!(elementary::EXP2_ERROR <= promised.exp2);
    assert!(elementary::TANH_ERROR <= promised.tanh);
    assert!(token_log_prob::SUM_ERROR <= promised.additions);
};

/// The CPU as a backend. Runs on rayon's current thread pool: the global one, or the one whose `install` it is called
/// in.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    instructions: Available,
}

impl Default for Cpu {
    /// With the widest vector instructions that this processor has.
    fn default() -> Self {
        Cpu { instructions: Available::best() }
    }
}

impl Cpu {
    /// With these vector instructions.
    ///
    /// # Errors
    /// [`Error::InstructionSet`](crate::Error::InstructionSet) if this processor does not have them.
    pub fn with_instruction_set(set: InstructionSet) -> Result<Self> {
        Ok(Cpu { instructions: Available::require(set)? })
    }

    /// The vector instructions in use.
    pub fn instruction_set(&self) -> InstructionSet {
        self.instructions.get()
    }
}
