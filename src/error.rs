//! What can go wrong.

mod message;

use crate::element::Dtype;
use crate::operand::Operand;

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call was refused.
///
/// A refused call has written nothing to the caller's buffers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A buffer has the wrong number of elements.
    Length {
        /// Which buffer.
        what: &'static str,
        /// Elements given.
        given: usize,
        /// Elements expected.
        expected: usize,
    },
    /// A matrix (logits, hidden states, a weight, a gradient) whose elements do not make its rows, or without a column.
    Shape {
        /// Elements given.
        elements: usize,
        /// Rows asked for; `None` where they follow from the length.
        rows: Option<usize>,
        /// Columns per row.
        columns: usize,
        /// Elements from the start of one row to the start of the next.
        row_stride: usize,
    },
    /// A vocabulary of no column, or of more than `i32::MAX`.
    Vocabulary {
        /// Columns given.
        vocab: usize,
    },
    /// Offsets that do not begin with 0.
    OffsetsStart {
        /// Which offsets.
        what: &'static str,
        /// The first offset; `None` if there is none at all.
        first: Option<usize>,
    },
    /// Offsets that go back.
    OffsetsOrder {
        /// Which offsets.
        what: &'static str,
        /// Index of the offset that is too small.
        index: usize,
        /// The offset before it.
        previous: usize,
        /// The offset itself.
        given: usize,
    },
    /// Offsets whose last entry is not the number of things they divide.
    OffsetsEnd {
        /// Which offsets.
        what: &'static str,
        /// The last offset.
        last: usize,
        /// What it must be.
        expected: usize,
    },
    /// An offset or a length that does not fit the type it must have.
    OffsetRange {
        /// Which offsets.
        what: &'static str,
        /// Index of the offset.
        index: usize,
    },
    /// A buffer larger than there is memory for.
    Memory {
        /// Elements asked for.
        elements: usize,
    },
    /// A group without sequences.
    EmptyGroup {
        /// Index of the group.
        group: usize,
    },
    /// A setting outside its range.
    Parameter {
        /// Which setting.
        name: &'static str,
        /// The value given.
        given: f64,
        /// The range, in words.
        expected: &'static str,
    },
    /// A target id that is no column of the logits.
    Target {
        /// First row with such a target.
        row: usize,
        /// The id.
        target: i64,
        /// Columns per row.
        vocab: usize,
    },
    /// A shard of a vocabulary that begins at its end or beyond.
    ShardStart {
        /// Its first column.
        start: usize,
        /// Columns of the vocabulary.
        vocab: usize,
    },
    /// Some columns of a vocabulary, given to a call that needs all.
    PartOfVocabulary {
        /// The first column given.
        start: usize,
        /// Columns given.
        columns: usize,
        /// Columns of the vocabulary.
        vocab: usize,
    },
    /// Another rank has refused its part of a common call, or is gone. Nothing has been written.
    Rank {
        /// Which rank.
        rank: usize,
        /// What it says.
        reason: String,
    },
    /// Ranks that differ in what must be the same, or fit together. Every rank gets this, and nothing has been written.
    RanksDisagree {
        /// What.
        what: &'static str,
        /// A rank that does not fit.
        rank: usize,
        /// What it has.
        given: f64,
        /// The rank that it does not fit.
        other: usize,
        /// What it would have to have.
        expected: f64,
    },
    /// A batch whose first or last group has more sequences on other ranks ([`Batch::with_open_ends`](crate::Batch::with_open_ends)), given where no
    /// ranks of groups are.
    OpenGroup {
        /// Index of the group.
        group: usize,
    },
    /// What ranks exchange their words with (MPI, NCCL, a trainer's own) has failed, or cannot be used so.
    Engine {
        /// Its name.
        engine: &'static str,
        /// The call that failed.
        call: &'static str,
        /// What it says about it.
        reason: String,
    },
    /// The gradient of hidden states under a head that lies on several ranks, after a forward pass that kept nothing for it, or said another number
    /// of scored rows.
    UnitGradientsNotKept,
    /// A token range that does not lie within its sequence, or begins with its first token.
    TokenRange {
        /// Index of the sequence.
        sequence: usize,
        /// First token scored.
        start: usize,
        /// One past the last token scored.
        end: usize,
        /// Tokens of the sequence.
        length: usize,
    },
    /// A reward or a reference log-prob that is NaN or infinite.
    NotFinite {
        /// Which input.
        what: &'static str,
        /// Index of the sequence it belongs to.
        sequence: usize,
        /// The value.
        value: f64,
    },
    /// A target distribution that gives a sequence no probability, under a divergence that is infinite there,
    /// or that gives a whole group none.
    ZeroTarget {
        /// Index of the sequence, the group's first where the whole group has none.
        sequence: usize,
    },
    /// An objective that is defined for pairs, given a larger group.
    PairsOnly {
        /// Index of the group.
        group: usize,
        /// Sequences in it.
        size: usize,
    },
    /// Rows whose log-prob is NaN: a NaN or +inf logit, a row of only −inf, or one whose largest logit is 2³⁰ or more
    /// in size when scaled and written in base 2. Found when a report is read.
    NonFiniteRow {
        /// The first such row.
        row: usize,
        /// How many there are.
        count: usize,
    },
    /// A number of a row loss that is NaN, infinite, or so large that the row's loss or gradient would not fit f32.
    RowInput {
        /// Which number.
        what: &'static str,
        /// The first row with such a number.
        row: usize,
        /// The number.
        given: f64,
        /// How large it may be in size.
        largest: f64,
    },
    /// The same on a device: loss and gradient of these rows are 0. Found when the status is read.
    DeviceRowInput {
        /// The first such row.
        row: usize,
        /// How many there are.
        count: usize,
    },
    /// Rows that a call on a device has left out of gradients that it adds to, because they would add NaN or an
    /// infinity: they have no softmax, or an upstream gradient that is not finite. Found when the status is read.
    WithheldRows {
        /// The first such row.
        row: usize,
        /// How many there are.
        count: usize,
    },
    /// An entropy gradient was given, or sums of entropies were asked for, but not the entropies of the forward pass.
    EntropiesNotKept,
    /// A backward pass or a report before any forward pass.
    NoForward,
    /// A backward pass with the step of another forward pass than the last one of this loss.
    OtherStep {
        /// Number of the step's forward pass.
        given: u64,
        /// Number of the loss's last forward pass; `None` if there was none, or an option has changed since, or a driver's
        /// error broke it off.
        last: Option<u64>,
    },
    /// A backward pass over other inputs than its forward pass.
    OtherInputs {
        /// The first operand that differs, in the forward pass; `None` if it had no such operand.
        forward: Option<Operand>,
        /// The same in the backward pass.
        backward: Option<Operand>,
    },
    /// An instruction set that this processor does not have.
    InstructionSet {
        /// Its name.
        name: &'static str,
    },
    /// No CUDA driver could be loaded.
    NoDriver,
    /// The crate was built without nvcc: there are no kernels in it. `build.rs` looks for it in the variable NVCC, in the
    /// toolkits at CUDA_HOME and CUDA_PATH, in PATH, in a conda environment and in `/usr/local/cuda*`. Cargo does not see
    /// that one was installed later: `cargo clean -p exo-kernels` makes it look again.
    KernelsNotBuilt,
    /// More rows on the device are scored than the call said. Found when a report is read.
    ScoredRows {
        /// How many more.
        beyond: usize,
    },
    /// cuBLAS could not be loaded. Only the linear stage needs it.
    NoCublas,
    /// NCCL could not be loaded. Only ranks that exchange by it need it.
    NoNccl,
    /// A gradient of a type that the linear stage does not write, or operands of two types.
    GradientType {
        /// The type given.
        given: Dtype,
        /// The head's type.
        head: Dtype,
    },
    /// A view of device memory that does not lie in the context of the backend's stream.
    Device {
        /// Which argument.
        what: &'static str,
        /// Ordinal of the device that it lies on.
        given: usize,
        /// Ordinal of the backend's device: the same, if the two are contexts of one device.
        expected: usize,
    },
    /// A kernel that the device would run in blocks of another size than its code is made for: the kernels in this program
    /// are not those of its host code, or the device cannot hold such a block.
    BlockSize {
        /// Its name.
        kernel: String,
        /// Threads of a block at most, as the driver says.
        given: u32,
        /// Threads of a block that the code counts with.
        expected: u32,
    },
    /// The driver took none of the kernels: it is older than the nvcc that compiled them needs, or the device is none of those
    /// that they were compiled for.
    KernelsRefused {
        /// `CUresult` of `cuModuleLoadData`.
        code: i32,
        /// What the driver says about it.
        message: String,
        /// The nvcc that compiled the kernels, as in 13.0; `None` if it did not say.
        nvcc: Option<&'static str>,
        /// The oldest branch of NVIDIA's driver that takes what this nvcc makes, as in R580; `None` if that is not known.
        oldest_driver: Option<&'static str>,
        /// The version of CUDA that the driver is for: 12.4 is 12040, as the driver says it.
        driver: i32,
        /// The device's compute capability.
        capability: (u32, u32),
    },
    /// A call of the CUDA driver, or of cuBLAS, failed.
    Cuda {
        /// The call.
        call: &'static str,
        /// Its `CUresult`, or `cublasStatus_t`.
        code: i32,
        /// What the driver says about it.
        message: String,
    },
    /// Target ids on the device that are no columns of the logits. Found when a report is read.
    DeviceTarget {
        /// First row with such a target.
        row: usize,
        /// How many there are.
        count: usize,
        /// Columns per row.
        vocab: usize,
    },
}

impl std::error::Error for Error {}

/// That a buffer has as many elements as it must.
pub(crate) fn check_length(what: &'static str, given: usize, expected: usize) -> Result<()> {
    if given == expected { Ok(()) } else { Err(Error::Length { what, given, expected }) }
}
