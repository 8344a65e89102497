#![doc = include_str!("backend.md")]

use crate::data::batch::Batch;
use crate::element::Element;
use crate::error::Result;
use crate::objective::Objective;
use crate::options::{LogRatio, LogitOptions, Reduction};
use crate::stage::row_loss::RowLoss;
use std::borrow::Cow;
use std::fmt::Debug;

pub use crate::data::head::{Head, Hidden, LinearGradients};
pub use crate::data::matrix::{Matrix, MatrixMut};
pub use crate::data::memory::{Host, Memory, Place, View, ViewMut};
pub use crate::data::reference::Reference;
pub use crate::data::rewards::Rewards;
pub use crate::data::shard::{SLICE, Shard};
pub use crate::data::targets::Targets;
pub use crate::element::Number;
pub use crate::ranks::Ranked;
pub use crate::report::{ReadResults, RowSummary, ScoredLogProbs, StageResults};
pub use crate::stage::linear::{LinearOutputs, SavedLinear, kept_logit_words};
pub use crate::stage::linear_shard::{GatheredRows, LinearParts, UnitSums};
pub use crate::stage::log_ratio::{LogRatioOutputs, RowLogProbs};
pub use crate::stage::objective::{ObjectiveOutputs, RowWeights};
pub use crate::stage::partial_row::partial_rows_of;
pub use crate::stage::row_loss::RowLosses;
pub use crate::stage::sequence_part::{CountPart, RewardsMut, RowsOfRanks, SequencePart, Sequences, SequencesMut};
pub use crate::stage::token_log_prob::{RowGradients, SavedRows, TokenLogProbs};
pub use crate::step_buffers::StepBuffers;

/// Where the stages run.
///
/// Every stage checks what it is given, as far as the host can see it, before it writes anything: a refused call has changed
/// nothing. What only a device can see becomes NaN and is counted there. Inputs come by reference, outputs by value. After
/// the first call of a shape none of the stages allocates memory of the backend, but for the CPU's linear stage: its scratch memory is a
/// call's own.
pub trait Backend: Ranked + Clone + Debug + Send + Sync {
    /// A buffer of that memory that grows when it must. Used with one backend and its clones: another stream would not wait
    /// for what this one writes.
    type Buffer<T: Number>: Default + Debug + Send + Sync;
    /// A batch whose offsets are where the stages read them.
    type Batch: AsRef<Batch> + Default + Debug + Send + Sync;
    /// Rewards, wherever they may lie: on the host always.
    type Rewards<'a>: From<Rewards<'a, Host>>;
    /// What rewards are brought to the backend's memory in.
    type RewardBuffers: Default + Debug + Send + Sync;
    /// What keeps the use of a view in its order: see [`Backend::ordered`].
    type Ordered<'a>
    where
        Self: 'a;
    /// What ranks that hold parts of a vocabulary exchange of each row: see [`Backend::partial_rows`]. Only a backend of the same
    /// kind can read it.
    type PartialRow: Number;
    /// Held while several calls are made: see [`Backend::enter`].
    type Entered;

    /// Begins a sequence of calls from one thread: what each of them would do first is done once, and undone when the value is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    fn enter(&self) -> Result<Self::Entered>;

    /// A view for all stages of a sequence of calls: what each of them would do for the order of this backend's work and that of
    /// others is done once, here and when the second value is dropped, which has to be after the last of them. The view has been
    /// [checked](Place::check_place).
    fn ordered<'a, T: Number>(&'a self, view: &'a View<'_, Self, T>) -> (View<'a, Self, T>, Self::Ordered<'a>);

    /// The same of a view to write.
    fn ordered_mut<'a, T: Number>(
        &'a self,
        view: &'a mut ViewMut<'_, Self, T>,
    ) -> (ViewMut<'a, Self, T>, Self::Ordered<'a>);

    /// The same backend, with a count of its own of what it finds wrong in its inputs.
    #[must_use]
    fn counting_apart(self) -> Self;

    // Memory.

    /// Checks that the buffers of another backend can be used by this one.
    ///
    /// # Errors
    /// As [`Place::check_place`].
    fn check_memory_of(&self, what: &'static str, other: &Self) -> Result<()>;

    /// Makes a buffer at least `length` numbers long. What it held is lost if it has to grow.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory); [`Error::Cuda`](crate::Error::Cuda).
    fn reserve<T: Number>(&self, buffer: &mut Self::Buffer<T>, length: usize) -> Result<()>;

    /// The first `length` numbers of a buffer; all of them, if it has fewer.
    fn view<'a, T: Number>(&self, buffer: &'a Self::Buffer<T>, length: usize) -> View<'a, Self, T>;

    /// The first `length` numbers of a buffer, to write; all of them, if it has fewer.
    fn view_mut<'a, T: Number>(&self, buffer: &'a mut Self::Buffer<T>, length: usize) -> ViewMut<'a, Self, T>;

    /// Copies numbers of the host into a buffer, which grows if it must.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    fn upload<T: Number>(&self, numbers: &[T], buffer: &mut Self::Buffer<T>) -> Result<()>;

    /// Copies numbers into a buffer, which grows if it must.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda).
    fn copy<T: Number>(&self, from: &View<'_, Self, T>, buffer: &mut Self::Buffer<T>) -> Result<()>;

    /// Numbers as the host sees them, once what writes them is done.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda).
    fn read<'a, T: Number>(&self, view: &View<'a, Self, T>) -> Result<Cow<'a, [T]>>;

    /// Brings the offsets of a batch to where the stages read them, unless they are there.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    fn place_batch(&self, batch: &Batch, placed: &mut Self::Batch) -> Result<()>;

    /// A batch with its offsets where the stages read them.
    ///
    /// # Errors
    /// As [`Backend::place_batch`].
    fn upload_batch(&self, batch: &Batch) -> Result<Self::Batch> {
        let mut placed = Self::Batch::default();
        self.place_batch(batch, &mut placed)?;
        Ok(placed)
    }

    /// Checks rewards against the objective and the batch, as far as the host can see them.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length), [`Error::NotFinite`](crate::Error::NotFinite),
    /// [`Error::PairsOnly`](crate::Error::PairsOnly), [`Error::ZeroTarget`](crate::Error::ZeroTarget),
    /// [`Error::Device`](crate::Error::Device).
    fn check_rewards(&self, objective: &Objective, rewards: &Self::Rewards<'_>, batch: &Batch) -> Result<()>;

    /// Whether there are proposal offsets with the rewards.
    fn has_proposal(rewards: &Self::Rewards<'_>) -> bool;

    /// Checks, before a step of a loss writes anything, that it can bring to the backend's memory what is not there: not in a
    /// capture of a CUDA graph, which would read the host's memory again when it is launched. `same_batch`: the batch is that
    /// of the step before.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    fn check_step(&self, rewards: &Self::Rewards<'_>, same_batch: bool) -> Result<()>;

    /// Clears the counts of what was found wrong in the inputs, in the order of the backend's calls.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    fn clear_counts(&self) -> Result<()>;

    /// Rewards in the backend's memory: where they are, or in `buffers`.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    fn bring_rewards<'a>(
        &self,
        rewards: &'a Self::Rewards<'_>,
        buffers: &'a mut Self::RewardBuffers,
    ) -> Result<Rewards<'a, Self::Memory>>;

    /// Makes room for the rewards and the results of a step, which a backend may lay together: then it brings and reads them
    /// with fewer copies.
    ///
    /// # Errors
    /// As [`Backend::reserve`].
    fn reserve_step(
        &self,
        buffers: &mut StepBuffers<Self>,
        sequences: usize,
        groups: usize,
        entropy: bool,
    ) -> Result<()>;

    /// Begins a step: [clears the counts](Backend::clear_counts) and [brings the rewards](Backend::bring_rewards), in the order
    /// of the backend's calls.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    fn begin_step<'a>(
        &self,
        rewards: &'a Self::Rewards<'_>,
        buffers: &'a mut Self::RewardBuffers,
    ) -> Result<Rewards<'a, Self::Memory>>;

    // Stages.

    /// Checks target ids: one per row, in the backend's memory; on the host also that each is a column or masks its row.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length), [`Error::Target`](crate::Error::Target),
    /// [`Error::Device`](crate::Error::Device).
    fn check_targets(&self, targets: &Targets<'_, Self::Memory>, rows: usize, vocab: usize) -> Result<()>;

    /// Checks the reference's log-probs: their length and place; on the host also that those of scored rows are finite.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length), [`Error::NotFinite`](crate::Error::NotFinite),
    /// [`Error::Device`](crate::Error::Device).
    fn check_reference(
        &self,
        reference: &Reference<'_, Self::Memory>,
        targets: &Targets<'_, Self::Memory>,
        batch: &Batch,
    ) -> Result<()>;

    /// Logits `[N, V]` and targets `[N]` → log-probs, softmax states and, if asked for, entropies, `[N]` each.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for a buffer that is not N long;
    /// [`Error::Vocabulary`](crate::Error::Vocabulary); [`Error::Target`](crate::Error::Target) for an id of V or more;
    /// [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda). On a GPU a target that is no column and
    /// a row without a softmax are counted in its status.
    fn token_log_probs<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T, Self::Memory>,
        targets: impl Into<Targets<'i, Self::Memory>>,
        options: &LogitOptions,
        outputs: TokenLogProbs<'_, Self::Memory>,
    ) -> Result<()>;

    /// Writes d loss / d logits, `[N, V]`; zeros on masked rows. Columns beyond V are not touched. Of a
    /// [shard](LogitOptions::with_shard), these columns of it: `saved` is then what [`Backend::merge_rows`] gave.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for a buffer that is not N long, or a gradient of another shape; as
    /// [`Backend::token_log_probs`]; [`Error::EntropiesNotKept`](crate::Error::EntropiesNotKept) for an entropy gradient
    /// without entropies.
    fn token_log_probs_backward<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T, Self::Memory>,
        targets: impl Into<Targets<'i, Self::Memory>>,
        options: &LogitOptions,
        saved: &SavedRows<'_, Self::Memory>,
        upstream: &RowGradients<'_, Self::Memory>,
        gradient: MatrixMut<'_, T, Self::Memory>,
    ) -> Result<()>;

    /// Overwrites the logits with their gradient; the bits are those of [`Backend::token_log_probs_backward`].
    ///
    /// # Errors
    /// As there.
    fn token_log_probs_backward_in_place<'i, T: Element>(
        &self,
        logits: MatrixMut<'_, T, Self::Memory>,
        targets: impl Into<Targets<'i, Self::Memory>>,
        options: &LogitOptions,
        saved: &SavedRows<'_, Self::Memory>,
        upstream: &RowGradients<'_, Self::Memory>,
    ) -> Result<()>;

    /// Some columns of a vocabulary, of each row: what their softmax is made of, for all ranks that hold columns of these rows
    /// to exchange. `options` says which columns ([`LogitOptions::with_shard`]), and `partial_rows` is `[N, k]`, with at least the
    /// [`partial_rows_of`] that these columns make to a row; what is beyond them is filled with parts that count for nothing. So
    /// ranks of unequal sizes can exchange buffers of one size.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for a number of partial rows that is no multiple of N, or too small;
    /// [`Error::Target`](crate::Error::Target) for an id that is no column of the whole vocabulary;
    /// [`Error::Vocabulary`](crate::Error::Vocabulary); [`Error::Device`](crate::Error::Device);
    /// [`Error::Cuda`](crate::Error::Cuda).
    fn partial_rows<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T, Self::Memory>,
        targets: impl Into<Targets<'i, Self::Memory>>,
        options: &LogitOptions,
        entropy: bool,
        partial_rows: ViewMut<'_, Self, Self::PartialRow>,
    ) -> Result<()>;

    /// The partial rows of P ranks in their order, `[P, N, k]`, → what [`Backend::token_log_probs`] gives for rows of all of their
    /// columns: in the same bits on every rank. Where every rank begins at a multiple of [`SLICE`] columns they are those of
    /// one call over all columns; elsewhere they differ within the bounds of
    /// [`reference::bounds`](crate::reference::bounds).
    ///
    /// `options` are those of the partial rows; which columns they are of is not looked at. Entropies need partial rows
    /// that were made with `entropy`.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for a buffer that is not N long, or a number of partial rows that is no
    /// multiple of P·N; [`Error::Parameter`](crate::Error::Parameter) for no rank;
    /// [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda).
    fn merge_rows<'i>(
        &self,
        partial_rows: &View<'_, Self, Self::PartialRow>,
        ranks: usize,
        targets: impl Into<Targets<'i, Self::Memory>>,
        options: &LogitOptions,
        outputs: TokenLogProbs<'_, Self::Memory>,
    ) -> Result<()>;

    /// Token log-probs `[N]` and the reference's → log-ratios `[S]` and what goes with them.
    ///
    /// # Errors
    /// [`Error::OffsetsEnd`](crate::Error::OffsetsEnd) and [`Error::Length`](crate::Error::Length) for buffers that do not fit
    /// the batch; [`Error::EntropiesNotKept`](crate::Error::EntropiesNotKept) for sums of entropies without entropies;
    /// [`Error::NotFinite`](crate::Error::NotFinite) for a reference log-prob that is not finite, which a GPU counts in its
    /// status; [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda).
    fn log_ratios(
        &self,
        rows: &RowLogProbs<'_, Self::Memory>,
        reference: &Reference<'_, Self::Memory>,
        batch: &Self::Batch,
        log_ratio: LogRatio,
        outputs: LogRatioOutputs<'_, Self::Memory>,
    ) -> Result<()>;

    /// Log-ratios `[S]` and rewards `[S]` → the loss of each group, d loss / d log-ratio of each sequence, statistics.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for buffers that do not fit the batch;
    /// [`Error::NotFinite`](crate::Error::NotFinite) for a reward or proposal offset that is not finite;
    /// [`Error::PairsOnly`](crate::Error::PairsOnly) and [`Error::ZeroTarget`](crate::Error::ZeroTarget) for a target
    /// that is not defined or not allowed; [`Error::Parameter`](crate::Error::Parameter) for a normaliser out of range;
    /// [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda). What is wrong with rewards on a GPU is
    /// counted in its status. A log-ratio of NaN or +inf makes its group NaN, one of −inf is an impossible sequence.
    fn objective(
        &self,
        objective: &Objective,
        log_ratios: &View<'_, Self, f64>,
        batch: &Self::Batch,
        rewards: &Rewards<'_, Self::Memory>,
        reduction: Reduction,
        outputs: ObjectiveOutputs<'_, Self::Memory>,
    ) -> Result<()>;

    /// What a forward pass has found in its rows, and what the stages after it have left: what a report is made of.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for numbers that do not fit the batch; what a device has found in inputs that
    /// the host would have refused; [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda).
    fn read_results<'a>(
        &self,
        rows: &ScoredLogProbs<'a, Self::Memory>,
        results: &StageResults<'a, Self::Memory>,
        batch: &Batch,
    ) -> Result<ReadResults<'a>>;

    // The linear stage: hidden states and a head in place of logits.

    /// Checks what can be checked before the forward pass of the linear stage, and loads what it needs.
    ///
    /// # Errors
    /// As [`Backend::linear_token_log_probs`].
    fn check_linear<T: Element, W: Element>(
        &self,
        hidden: &Hidden<'_, '_, T, Self::Memory>,
        head: &Head<'_, W, Self::Memory>,
        targets: &Targets<'_, Self::Memory>,
    ) -> Result<()>;

    /// Token log-probs of hidden states `[N, H]` under a head, without its logits ever being held: log-probs, softmax
    /// states and, if asked for, entropies, `[N]` each. The states are what [`Backend::token_log_probs`] would leave for logits
    /// that are the products in f32. A masked row's hidden state is not read.
    ///
    /// One matrix product; two where something is kept for the backward pass ([`LinearKept`](crate::LinearKept)).
    ///
    /// # Errors
    /// As [`Backend::token_log_probs`]; [`Error::Length`](crate::Error::Length) for a hidden state that is not as long as a
    /// row of the weight, or a buffer of what is kept that is not as long as [`LinearOutputs`] says;
    /// [`Error::ScoredRows`](crate::Error::ScoredRows); on a GPU
    /// [`Error::GradientType`](crate::Error::GradientType) for a head of another type than the hidden states, and
    /// [`Error::NoCublas`](crate::Error::NoCublas).
    fn linear_token_log_probs<'m, 'd: 'm, 'i, 'o, T: Element, W: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T, Self::Memory>>,
        head: &Head<'_, W, Self::Memory>,
        targets: impl Into<Targets<'i, Self::Memory>>,
        options: &LogitOptions,
        outputs: impl Into<LinearOutputs<'o, Self::Memory>>,
    ) -> Result<()>;

    /// Writes the gradients of the hidden states `[N, H]`, the weight `[V, H]` and the bias `[V]`, of those that `gradients`
    /// has. The logits are made a second time where what was kept is not enough.
    ///
    /// With kept unit gradients the gradient of a hidden state is its product with g/T, rounded once: within its bounds that
    /// of the call without them, but not bit for bit.
    ///
    /// Of a [shard](LogitOptions::with_shard) these are the gradients of its rows of the head, with what [`Backend::merge_rows`] gave
    /// for `saved`; padding at the end of the last rank gets 0, or stays as it is where gradients are added to. The gradient of the
    /// hidden states is whole where the kept unit gradients are the sums over ranks, and this rank's share of it without them.
    ///
    /// # Errors
    /// As [`Backend::linear_token_log_probs`] and [`Backend::token_log_probs_backward`]; on a GPU
    /// [`Error::GradientType`](crate::Error::GradientType) for gradients of the head that are neither f32 nor of its type.
    #[allow(clippy::too_many_arguments)]
    fn linear_token_log_probs_backward<'m, 'd: 'm, 'i, 's, T: Element, W: Element, G: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T, Self::Memory>>,
        head: &Head<'_, W, Self::Memory>,
        targets: impl Into<Targets<'i, Self::Memory>>,
        options: &LogitOptions,
        saved: impl Into<SavedLinear<'s, Self::Memory>>,
        upstream: &RowGradients<'_, Self::Memory>,
        gradients: LinearGradients<'_, T, G, Self::Memory>,
    ) -> Result<()>;

    /// What [`Backend::check_linear`] checks, of a rank's rows of a head: targets are columns of the whole vocabulary.
    ///
    /// # Errors
    /// As [`Backend::linear_partial_rows`].
    fn check_linear_shard<T: Element, W: Element>(
        &self,
        hidden: &Hidden<'_, '_, T, Self::Memory>,
        head: &Head<'_, W, Self::Memory>,
        targets: &Targets<'_, Self::Memory>,
        options: &LogitOptions,
    ) -> Result<()>;

    /// [`Backend::partial_rows`] from hidden states, under a rank's rows of a head: those of the [shard](LogitOptions::with_shard),
    /// and padding at the end of the last rank, which is not read. Asked for unit sums, it makes two matrix products, else one.
    ///
    /// # Errors
    /// As [`Backend::partial_rows`] and [`Backend::linear_token_log_probs`].
    fn linear_partial_rows<'m, 'd: 'm, 'i, T: Element, W: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T, Self::Memory>>,
        head: &Head<'_, W, Self::Memory>,
        targets: impl Into<Targets<'i, Self::Memory>>,
        options: &LogitOptions,
        entropy: bool,
        outputs: LinearParts<'_, Self::Memory, Self::PartialRow>,
    ) -> Result<()>;

    /// Turns the unit sums of [`Backend::linear_partial_rows`], with the same operands, into this rank's share of the
    /// [unit gradients](LinearOutputs::unit_gradients) `[M, H]`: these are the sum of all ranks' shares. No hidden state is read.
    ///
    /// With s·2ʳ the state of all columns and r' that of the rank's sums, the share is σ_t·W_t·(Σ' e_j)/s, where the rank has the
    /// target t, less 2^(r' − r)·(Σ' e_j·σ_j·W_j)/s of its columns. The first sum is of all ranks' columns but t: it is never formed
    /// as s − e_t, which has no digits next to p = 1. A row without a softmax gets NaN.
    ///
    /// # Errors
    /// As [`Backend::linear_partial_rows`] and [`Backend::merge_rows`]; [`Error::Parameter`](crate::Error::Parameter) for a rank that
    /// is none of them.
    fn linear_unit_gradients<'m, 'd: 'm, 'i, T: Element, W: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T, Self::Memory>>,
        head: &Head<'_, W, Self::Memory>,
        targets: impl Into<Targets<'i, Self::Memory>>,
        options: &LogitOptions,
        gathered: &GatheredRows<'_, Self::Memory, Self::PartialRow>,
        unit_sums: UnitSums<'_, Self::Memory, Self::PartialRow>,
    ) -> Result<()>;

    /// A loss over rows of hidden states `[N, H]` under a head, and its gradients, in one pass: what
    /// [`Backend::linear_token_log_probs`] with kept unit gradients and [`Backend::linear_token_log_probs_backward`] give with
    /// the loss's gradient between them. Two matrix products under a frozen head.
    ///
    /// # Errors
    /// As these two; [`Error::Parameter`](crate::Error::Parameter) for a clipping range or a limit out of range;
    /// [`Error::RowInput`](crate::Error::RowInput) for numbers of the loss that [`RowLoss`] does not accept, which a GPU
    /// counts in its status.
    #[allow(clippy::too_many_arguments)]
    fn linear_row_loss<'m, 'd: 'm, 'i, T: Element, W: Element, G: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T, Self::Memory>>,
        head: &Head<'_, W, Self::Memory>,
        targets: impl Into<Targets<'i, Self::Memory>>,
        options: &LogitOptions,
        loss: &RowLoss<View<'_, Self, f32>>,
        outputs: RowLosses<'_, Self::Memory>,
        gradients: LinearGradients<'_, T, G, Self::Memory>,
    ) -> Result<()>;
}
