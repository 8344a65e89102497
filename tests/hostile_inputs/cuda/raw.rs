//! The functions over device addresses: shapes and numbers that the host can see to be wrong, over buffers that are large
//! enough for the right ones. A shape that is not wrong in itself but larger than its buffer is the caller's false word,
//! and not passed.

use super::stages::MOST_COLUMNS;
use super::{Placed, cuda};
use crate::hostile::Choices;
use crate::hostile::guarded::untouched;
use crate::hostile::settings;
use cudarc::driver::{DevicePtr, DevicePtrMut};
use exo_kernels::cuda::{Cuda, raw};
use exo_kernels::{Dtype, Result, RowLoss};

/// Rows, columns, hidden size of what there is.
const ROWS: usize = 2;
const VOCAB: usize = 3;
const SIZE: usize = 4;
/// What a grid has room for along y: chunks of 8192 columns.
const MOST_LINEAR_COLUMNS: usize = 65_535 * 8192;

/// A shape, whether it must be refused, and whether it is that of the buffer.
struct Shape {
    rows: usize,
    columns: usize,
    stride: usize,
    usual: (usize, usize),
}

impl Shape {
    fn choose(choices: &mut Choices<'_>, rows: usize, columns: usize) -> Self {
        Self {
            rows: choices.size(rows),
            columns: choices.size(columns),
            stride: choices.size(columns),
            usual: (rows, columns),
        }
    }

    fn is_usual(&self) -> bool {
        (self.rows, self.columns, self.stride) == (self.usual.0, self.usual.1, self.usual.1)
    }

    /// What no grid, no kernel and no address can be made of.
    fn is_wrong(&self, most_columns: usize) -> bool {
        let Self { rows, columns, stride, .. } = *self;
        let bytes = stride.checked_mul(rows).and_then(|elements| elements.checked_mul(size_of::<f32>()));
        let end = bytes.and_then(|bytes| i64::try_from(bytes).ok());
        columns == 0 || columns > most_columns || stride < columns || end.is_none() || i32::try_from(rows).is_err()
    }
}

/// Numbers on the device, by address; everything that a call could write.
struct Memory {
    cuda: Cuda,
    /// Zeros: logits, hidden states, ids, offsets where nothing else is said.
    read: Placed<f64>,
    written: Placed<f64>,
}

impl Memory {
    fn new() -> Self {
        let cuda = cuda();
        let zeros = crate::hostile::guarded::Guarded::holding(&[0.0; 64]);
        Self { read: Placed::of(&cuda, zeros), written: Placed::new(&cuda, 64), cuda }
    }

    fn read(&self) -> raw::Address {
        self.read.slice.slice(self.read.range.clone()).device_ptr(self.cuda.stream()).0
    }

    /// Room for eight numbers, one of eight such places.
    fn write(&mut self, place: u64) -> raw::Address {
        let cuda = self.cuda.clone();
        let address = self.written.slice.slice_mut(self.written.range.clone()).device_ptr_mut(cuda.stream()).0;
        address + 64 * place
    }

    /// Asserts that a call was refused, and has written nothing, exactly if it must be.
    fn check(self, result: Result<()>, refused: bool) {
        let written = self.written.fetch(&self.cuda);
        match result {
            Err(error) => {
                assert!(refused, "refused: {error:?}");
                untouched!(written);
            }
            Ok(()) => assert!(!refused, "accepted"),
        }
    }
}

fn matrix(address: raw::Address, shape: &Shape, dtype: Dtype) -> raw::MatrixAt {
    let Shape { rows, columns, stride, .. } = *shape;
    raw::MatrixAt { address, rows, columns, row_stride: stride, dtype }
}

pub(super) fn token_log_probs(choices: &mut Choices<'_>) {
    choices.calls(&["cuda/raw/token_log_prob::token_log_probs"]);
    let shape = Shape::choose(choices, ROWS, VOCAB);
    let options = settings::logit_options(choices);
    // No row: nothing is launched, whatever else there is.
    let refused = shape.is_wrong(MOST_COLUMNS);
    if !refused && !shape.is_usual() && shape.rows > 0 {
        return;
    }
    let mut memory = Memory::new();
    let outputs =
        raw::ForwardOutputs { log_probs: memory.write(0), states: memory.write(1), entropies: memory.write(2) };
    let (logits, targets) = (matrix(memory.read(), &shape, Dtype::F32), raw::Targets::I64(memory.read()));
    // SAFETY: a shape that is not refused is the buffer's, or has no row.
    let result = unsafe { raw::token_log_probs(&memory.cuda, logits, targets, &options, outputs) };
    memory.check(result, refused);
}

pub(super) fn token_log_probs_backward(choices: &mut Choices<'_>) {
    choices.calls(&["cuda/raw/token_log_prob::token_log_probs_backward"]);
    let (shape, of_gradient) = (Shape::choose(choices, ROWS, VOCAB), Shape::choose(choices, ROWS, VOCAB));
    let options = settings::logit_options(choices);
    let (dtype, with_entropies, kept) = (choices.of(Dtype::F32, &[Dtype::F16]), choices.yes(), !choices.yes());
    let per_sequence = choices.yes();
    // The buffer has one weight and more; with none of them every row's sequence is out of range.
    let sequences = choices.of(1, &[0]);
    let loss_scale = choices.f64(1.0);
    let same = (shape.rows, shape.columns) == (of_gradient.rows, of_gradient.columns) && dtype == Dtype::F32;
    let refused = shape.is_wrong(MOST_COLUMNS)
        || of_gradient.is_wrong(MOST_COLUMNS)
        || !same
        || (shape.rows > 0 && !per_sequence && with_entropies && !kept);
    let usual = shape.is_usual() && of_gradient.is_usual();
    if !(refused || usual || shape.rows == 0) {
        return;
    }
    let mut memory = Memory::new();
    let (logits, targets) = (matrix(memory.read(), &shape, Dtype::F32), raw::Targets::I64(memory.read()));
    let gradients = matrix(memory.write(0), &of_gradient, dtype);
    let read = memory.read();
    let upstream = if per_sequence {
        raw::Upstream::PerSequence { row_sequences: read, weights: read, sequences, loss_scale }
    } else {
        raw::Upstream::PerRow { log_probs: read, entropies: if with_entropies { read } else { 0 } }
    };
    let entropies = if kept { read } else { 0 };
    // SAFETY: as above; states of 0 are those of masked rows, for which no number means anything.
    let result = unsafe {
        raw::token_log_probs_backward(&memory.cuda, logits, targets, &options, read, entropies, upstream, gradients)
    };
    memory.check(result, refused);
}

pub(super) fn partial_rows(choices: &mut Choices<'_>) {
    choices.calls(&["cuda/raw/partial_row::partial_rows"]);
    let shape = Shape::choose(choices, ROWS, VOCAB);
    let options = settings::logit_options(choices);
    let (per_row, entropy) = (choices.size(1), choices.yes());
    let slices = shape.columns.div_ceil(exo_kernels::backend::SLICE);
    let refused = shape.is_wrong(MOST_COLUMNS) || per_row < slices || per_row > 65_535;
    if !refused && (!shape.is_usual() || per_row > 1) && shape.rows > 0 {
        return;
    }
    let mut memory = Memory::new();
    let (logits, targets) = (matrix(memory.read(), &shape, Dtype::F32), raw::Targets::I64(memory.read()));
    // To 16 bytes, as the parts are.
    let parts = raw::PartialRowsAt { address: memory.write(0).next_multiple_of(16), per_row };
    // SAFETY: as above.
    let result = unsafe { raw::partial_rows(&memory.cuda, logits, targets, &options, entropy, parts) };
    memory.check(result, refused);
}

pub(super) fn merge_rows(choices: &mut Choices<'_>) {
    choices.calls(&["cuda/raw/partial_row::merge_rows"]);
    let (rows, ranks, per_row) = (choices.size(ROWS), choices.size(1), choices.of(1, &[0, 2]));
    let options = settings::logit_options(choices);
    let refused = i32::try_from(rows).is_err() || i32::try_from(ranks).is_err();
    if !refused && (rows > ROWS || ranks > 1) {
        return;
    }
    let mut memory = Memory::new();
    let outputs =
        raw::ForwardOutputs { log_probs: memory.write(0), states: memory.write(1), entropies: memory.write(2) };
    let (parts, targets) =
        (raw::PartialRowsAt { address: memory.read().next_multiple_of(16), per_row }, raw::Targets::I64(memory.read()));
    // SAFETY: there is room for as many rows, ranks and parts as are not refused.
    let result = unsafe { raw::merge_rows(&memory.cuda, parts, (ranks, rows), targets, &options, outputs) };
    memory.check(result, refused);
}

pub(super) fn log_ratios(choices: &mut Choices<'_>) {
    choices.calls(&["cuda/raw/log_ratio::log_ratios"]);
    let sequences = choices.size(1);
    let refused = i32::try_from(sequences).is_err();
    if !refused && sequences > 1 {
        return;
    }
    let mut memory = Memory::new();
    let read = memory.read();
    let inputs = raw::LogRatioInputs {
        log_probs: read,
        entropies: 0,
        targets: raw::Targets::I64(read),
        reference_tokens: 0,
        reference_sequences: 0,
        // [0, 0]: a sequence of no row.
        sequence_offsets: read,
        sequences,
        mean: choices.yes(),
    };
    let outputs = raw::LogRatioOutputs {
        log_ratios: memory.write(0),
        log_prob_sums: memory.write(1),
        entropy_sums: 0,
        scored_rows: memory.write(2),
        row_sequences: memory.write(3),
        row_targets: if choices.yes() { 0 } else { memory.write(4) },
    };
    // SAFETY: there is room for the one sequence that is not refused.
    let result = unsafe { raw::log_ratios(&memory.cuda, inputs, outputs) };
    memory.check(result, refused);
}

pub(super) fn objective(choices: &mut Choices<'_>) {
    choices.calls(&["cuda/raw/objective::objective"]);
    let objective = settings::objective(choices);
    let groups = choices.size(0);
    let refused = i32::try_from(groups).is_err();
    if !refused && groups > 0 {
        return;
    }
    let mut memory = Memory::new();
    let read = memory.read();
    let inputs = raw::ObjectiveInputs {
        log_ratios: read,
        rewards: raw::Rewards::F64(read),
        proposal_offsets: 0,
        group_offsets: read,
        scored_rows: 0,
        groups,
        mean: false,
        weight: choices.f64(1.0),
    };
    let outputs = raw::ObjectiveOutputs {
        group_losses: memory.write(0),
        coefficients: memory.write(1),
        sequence_weights: 0,
        statistics: memory.write(2),
    };
    // SAFETY: what is not refused has no group.
    let result = unsafe { raw::objective(&memory.cuda, &objective, inputs, outputs) };
    memory.check(result, refused);
}

/// What both passes of the linear stage take.
struct Operands {
    hidden: Shape,
    weight: Shape,
    of_hidden: Shape,
    of_weight: Shape,
    dtypes: [Dtype; 3],
}

impl Operands {
    fn choose(choices: &mut Choices<'_>) -> Self {
        Self {
            hidden: Shape::choose(choices, ROWS, SIZE),
            weight: Shape::choose(choices, VOCAB, SIZE),
            of_hidden: Shape::choose(choices, ROWS, SIZE),
            of_weight: Shape::choose(choices, VOCAB, SIZE),
            dtypes: std::array::from_fn(|_| choices.of(Dtype::F32, &[Dtype::Bf16])),
        }
    }

    fn inputs_are_wrong(&self) -> bool {
        let vocab = self.weight.rows;
        let is_wrong = |shape: &Shape| shape.is_wrong(usize::MAX) || i32::try_from(shape.stride).is_err();
        vocab == 0
            || vocab > MOST_LINEAR_COLUMNS
            || is_wrong(&self.hidden)
            || is_wrong(&self.weight)
            || self.hidden.columns != self.weight.columns
            || self.dtypes[0] != Dtype::F32
    }

    fn gradients_are_wrong(&self) -> bool {
        let is_wrong = |shape: &Shape| shape.is_wrong(usize::MAX) || i32::try_from(shape.stride).is_err();
        let shape = |shape: &Shape| (shape.rows, shape.columns);
        is_wrong(&self.of_hidden)
            || is_wrong(&self.of_weight)
            || shape(&self.of_hidden) != shape(&self.hidden)
            || shape(&self.of_weight) != (self.weight.rows, self.hidden.columns)
            || self.dtypes[1] != Dtype::F32
            || self.dtypes[2] != Dtype::F32
    }

    fn inputs_are_usual(&self) -> bool {
        self.hidden.is_usual() && self.weight.is_usual()
    }

    fn inputs(&self, memory: &Memory, scored_rows: Option<usize>) -> raw::LinearInputs {
        let read = memory.read();
        raw::LinearInputs {
            hidden: matrix(read, &self.hidden, Dtype::F32),
            weight: matrix(read, &self.weight, self.dtypes[0]),
            bias: 0,
            targets: raw::Targets::I64(read),
            scored_rows,
        }
    }

    fn gradients(&self, memory: &mut Memory) -> raw::LinearGradientsAt {
        raw::LinearGradientsAt {
            hidden: Some(matrix(memory.write(3), &self.of_hidden, self.dtypes[1])),
            weight: Some(matrix(memory.write(4), &self.of_weight, self.dtypes[2])),
            bias: memory.write(6),
            bias_dtype: Dtype::F32,
            accumulate: false,
        }
    }
}

pub(super) fn linear(choices: &mut Choices<'_>) {
    choices.calls(&[
        "cuda/raw/linear/log_prob::linear_token_log_probs",
        "cuda/raw/linear/log_prob::linear_token_log_probs_backward",
    ]);
    let operands = Operands::choose(choices);
    let options = settings::logit_options(choices);
    let scored_rows = choices.of(None, &[Some(usize::MAX), Some(0)]);
    let (with_entropies, kept) = (choices.yes(), !choices.yes());
    let refused = operands.inputs_are_wrong();
    let usual = operands.inputs_are_usual();
    if refused || usual {
        let mut memory = Memory::new();
        let outputs = raw::ForwardOutputs { log_probs: memory.write(0), states: memory.write(1), entropies: 0 };
        let inputs = operands.inputs(&memory, scored_rows);
        // SAFETY: what is not refused has the buffers' shapes.
        let result = unsafe { raw::linear_token_log_probs(&memory.cuda, &inputs, &options, outputs) };
        memory.check(result, refused);
    }
    let refused = refused || operands.gradients_are_wrong() || (with_entropies && !kept);
    if refused || (usual && operands.of_hidden.is_usual() && operands.of_weight.is_usual()) {
        let mut memory = Memory::new();
        let (inputs, read) = (operands.inputs(&memory, scored_rows), memory.read());
        let gradients = operands.gradients(&mut memory);
        let upstream = raw::Upstream::PerRow { log_probs: read, entropies: if with_entropies { read } else { 0 } };
        let saved = (read, if kept { read } else { 0 });
        // SAFETY: as above.
        let result = unsafe {
            raw::linear_token_log_probs_backward(&memory.cuda, &inputs, &options, saved, upstream, &gradients)
        };
        memory.check(result, refused);
    }
}

pub(super) fn linear_row_loss(choices: &mut Choices<'_>) {
    choices.calls(&["cuda/raw/linear/row_loss::linear_row_loss"]);
    let operands = Operands::choose(choices);
    let options = settings::logit_options(choices);
    let scored_rows = choices.of(None, &[Some(usize::MAX), Some(0)]);
    let (low, high, limit) = (choices.f32(0.2), choices.f32(0.2), choices.f32(20.0));
    let range = (0.0..=1.0).contains(&low) && high >= 0.0 && limit > 0.0 && limit <= 88.0;
    let refused = operands.inputs_are_wrong() || operands.gradients_are_wrong() || !range;
    let usual = operands.inputs_are_usual() && operands.of_hidden.is_usual() && operands.of_weight.is_usual();
    if !(refused || usual) {
        return;
    }
    let mut memory = Memory::new();
    let (inputs, read) = (operands.inputs(&memory, scored_rows), memory.read());
    let gradients = operands.gradients(&mut memory);
    let loss = RowLoss::ClippedRatio {
        weights: read,
        advantages: read,
        old_log_probs: read,
        low,
        high,
        log_ratio_limit: limit,
    };
    let outputs = raw::RowLossesAt { losses: memory.write(0), log_probs: memory.write(1) };
    // SAFETY: what is not refused has the buffers' shapes.
    let result = unsafe { raw::linear_row_loss(&memory.cuda, &inputs, &options, &loss, outputs, &gradients) };
    memory.check(result, refused);
}

pub(super) fn linear_partial_rows(choices: &mut Choices<'_>) {
    choices.calls(&["cuda/raw/linear/shard::linear_partial_rows"]);
    let operands = Operands::choose(choices);
    let options = settings::logit_options(choices);
    let scored_rows = choices.of(None, &[Some(usize::MAX), Some(0)]);
    let (per_row, entropy, keeps) = (choices.size(1), choices.yes(), !choices.yes());
    let slices = operands.weight.rows.div_ceil(exo_kernels::backend::SLICE);
    let refused = operands.inputs_are_wrong() || per_row < slices || per_row > 65_535;
    if !(refused || operands.inputs_are_usual() && per_row == 1) {
        return;
    }
    let mut memory = Memory::new();
    // To 16 bytes, as the parts are: each two of these places.
    let parts = raw::PartialRowsAt { address: memory.write(0).next_multiple_of(16), per_row };
    let (sums, rests) = (memory.write(2), memory.write(4).next_multiple_of(16));
    let unit_sums = if keeps { raw::UnitSumsAt { sums, rests } } else { raw::UnitSumsAt::default() };
    let inputs = operands.inputs(&memory, scored_rows);
    // SAFETY: what is not refused has the buffers' shapes.
    let result = unsafe { raw::linear_partial_rows(&memory.cuda, &inputs, &options, entropy, parts, unit_sums) };
    memory.check(result, refused);
}

pub(super) fn linear_unit_gradients(choices: &mut Choices<'_>) {
    choices.calls(&["cuda/raw/linear/shard::linear_unit_gradients"]);
    let operands = Operands::choose(choices);
    let options = settings::logit_options(choices);
    let scored_rows = choices.of(None, &[Some(usize::MAX), Some(0)]);
    let (ranks, rank) = (choices.size(1), choices.size(0));
    let refused = operands.inputs_are_wrong() || rank >= ranks || i32::try_from(ranks).is_err();
    if !(refused || operands.inputs_are_usual() && ranks <= 2) {
        return;
    }
    let mut memory = Memory::new();
    let (sums, rests) = (memory.write(2), memory.write(4).next_multiple_of(16));
    let inputs = operands.inputs(&memory, scored_rows);
    let read = memory.read();
    let partial_rows = raw::PartialRowsAt { address: read.next_multiple_of(16), per_row: 1 };
    let gathered = raw::GatheredRowsAt { partial_rows, ranks, rank, states: read };
    // SAFETY: as above.
    let result = unsafe {
        raw::linear_unit_gradients(&memory.cuda, &inputs, &options, &gathered, raw::UnitSumsAt { sums, rests })
    };
    memory.check(result, refused);
}
