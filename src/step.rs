//! What ties a backward pass to its forward pass.

use crate::data::head::{Head, Hidden};
use crate::data::matrix::Matrix;
use crate::data::memory::Memory;
use crate::element::Number;
use crate::error::{Error, Result, check_length};
use crate::operand::Operand;
use std::sync::atomic::{AtomicU64, Ordering};

/// One forward pass of a [`PreferenceLoss`](crate::PreferenceLoss): what its backward pass takes.
///
/// The softmax states and coefficients stay in the loss until its next forward pass; a step says which pass they must be
/// of, and over which inputs. A backward pass with the step of an earlier forward pass, or of another loss, or over
/// other inputs than the step's, is refused. The backward pass in place consumes the step, since the logits are gone
/// afterwards.
///
/// A step that is not needed (evaluation without a gradient) can be dropped. No backward pass can follow one in place:
///
/// ```compile_fail,E0382
/// # use exo_kernels::*;
/// # fn twice(loss: &mut PreferenceLoss<Cpu>, step: Step, logits: &mut [f32]) -> Result<()> {
/// loss.backward_in_place(step, MatrixMut::new(logits, 3)?)?;
/// loss.backward_in_place(step, MatrixMut::new(logits, 3)?)?; // use of moved value: `step`
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Step {
    number: u64,
    inputs: Inputs,
    moved: bool,
}

/// What a pass reads again: logits, or hidden states, weight and bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inputs {
    /// N.
    pub(crate) rows: usize,
    /// V.
    pub(crate) vocab: usize,
    /// Logits; or hidden states, weight and, if there is one, bias.
    pub(crate) operands: [Option<Operand>; 3],
}

impl Inputs {
    /// Where logits lie.
    pub(crate) fn of_logits<T: Number, M: Memory>(logits: &Matrix<'_, T, M>) -> Self {
        Self { rows: logits.rows(), vocab: logits.columns(), operands: [Some(operand("logits", logits)), None, None] }
    }

    /// Where hidden states and head lie.
    pub(crate) fn of_hidden<T: Number, W: Number, M: Memory>(
        hidden: &Hidden<'_, '_, T, M>,
        head: &Head<'_, W, M>,
    ) -> Self {
        let bias = head.bias().map(|bias| Operand::new("bias", M::address(bias), 1, 0));
        let operands = [Some(operand("hidden states", hidden.states)), Some(operand("weight", head.weight())), bias];
        Self { rows: hidden.states.rows(), vocab: head.vocab(), operands }
    }

    /// Checks that a backward pass over others has as many rows and columns.
    pub(crate) fn check_shape(&self, others: &Self) -> Result<()> {
        check_length("rows of the backward pass", others.rows, self.rows)?;
        check_length("vocabulary of the backward pass", others.vocab, self.vocab)
    }

    /// Checks that others are of the same kinds, wherever they lie: a forward pass from hidden states has no logits.
    pub(crate) fn check_kinds(&self, others: &Self) -> Result<()> {
        let kind = |operand: &Option<Operand>| operand.map(|operand| operand.what);
        let mut pairs = self.operands.iter().zip(&others.operands);
        match pairs.find(|(forward, backward)| kind(forward) != kind(backward)) {
            Some((forward, backward)) => Err(Error::OtherInputs { forward: *forward, backward: *backward }),
            None => Ok(()),
        }
    }
}

fn operand<T: Number, M: Memory>(what: &'static str, matrix: &Matrix<'_, T, M>) -> Operand {
    Operand::new(what, M::address(&matrix.data), matrix.rows(), matrix.row_stride())
}

impl Step {
    /// The step of a forward pass that has just been made.
    pub(crate) fn new(inputs: Inputs) -> Self {
        // Numbers are never used twice in a process, so that the step of another loss is told apart too.
        static PASSES: AtomicU64 = AtomicU64::new(0);
        Self { number: PASSES.fetch_add(1, Ordering::Relaxed), inputs, moved: false }
    }

    /// Lets the backward pass read the same numbers from elsewhere: logits that were computed again into another buffer
    /// (activation checkpointing), for example. That they are the same numbers is not checked.
    #[must_use]
    pub fn with_moved_inputs(self) -> Self {
        Self { moved: true, ..self }
    }

    /// What its forward pass read.
    pub(crate) fn inputs(&self) -> Inputs {
        self.inputs
    }

    /// The number of its forward pass: no other forward pass of this process has the same.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Checks that this is the last forward pass of a loss.
    pub(crate) fn check_number(&self, last_of_loss: Option<u64>) -> Result<()> {
        if last_of_loss == Some(self.number) {
            return Ok(());
        }
        Err(Error::OtherStep { given: self.number, last: last_of_loss })
    }

    /// Checks that this is the last forward pass of a loss, and that it was made over these inputs.
    pub(crate) fn check(&self, last_of_loss: Option<u64>, inputs: &Inputs) -> Result<()> {
        self.check_number(last_of_loss)?;
        self.inputs.check_shape(inputs)?;
        if self.moved {
            return self.inputs.check_kinds(inputs);
        }
        match self.inputs.operands.iter().zip(&inputs.operands).find(|(forward, backward)| forward != backward) {
            Some((forward, backward)) => Err(Error::OtherInputs { forward: *forward, backward: *backward }),
            None => Ok(()),
        }
    }
}
