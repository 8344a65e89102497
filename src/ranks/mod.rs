//! Rows whose columns lie on several ranks, from end to end: one exchange of partial rows, merged on every rank in the same order.
//!
//! This crate brings no transport of its own but [`Threads`]. A trainer's, NCCL's or MPI's is a [`Communicator`]: an
//! all-gather of words in the backend's memory. What it does with them is copying, so that every rank has the same bits.

pub(crate) mod agreement;
pub(crate) mod gather;
pub(crate) mod hidden_rows;
pub(crate) mod mesh;
pub(crate) mod on_host;
mod ranked;
pub(crate) mod sequences;
mod sums;
mod threads;
mod traffic;

use crate::backend::{Backend, Matrix, Targets, TokenLogProbs, ViewMut};
use crate::element::Element;
use crate::error::Result;
use crate::options::LogitOptions;
use crate::ranks::agreement::{Agreement, Call, Divided};
use crate::ranks::gather::gather;
use crate::stage::partial_row::partial_rows_of;
use crate::stage::token_log_prob::check_logits;
use std::fmt::Debug;

pub use crate::ranks::mesh::Ranks;
pub use crate::ranks::ranked::Ranked;
pub use crate::ranks::sums::{clear_others, gather_by_sum, sum_by_gather};
pub use crate::ranks::threads::Threads;
pub use crate::ranks::traffic::{StepShape, Traffic};

/// Ranks that work on the same rows together. Every rank makes the same calls in the same order.
pub trait Communicator<B: Backend>: Debug + Send + Sync {
    /// This rank, from 0 on.
    fn rank(&self) -> usize;

    /// How many there are, P.
    fn ranks(&self) -> usize;

    /// Words of all ranks, `[P, n]`: this rank's are in their place, the others' are to be brought there, bit for bit. In the order of
    /// the backend's calls; nothing has to be waited for on the host.
    ///
    /// # Errors
    /// Whatever the engine has. A rank that is gone or gives another number of words must not leave the others waiting.
    fn all_gather(&self, backend: &B, words: ViewMut<'_, B, u32>) -> Result<()>;

    /// Adds up over ranks, in place, `numbers` of this rank `[n]` and as many of each other: every rank gets the same bits. `meanwhile` is
    /// the caller's other work, to be called exactly once, which an engine can hide the sum behind. In the order of the backend's
    /// calls, as [`Communicator::all_gather`].
    ///
    /// # Errors
    /// As [`Communicator::all_gather`]; what `meanwhile` gives, once the sum is made.
    fn sum(&self, backend: &B, numbers: ViewMut<'_, B, f32>, meanwhile: &mut dyn FnMut() -> Result<()>) -> Result<()>;

    /// Words of all ranks in their order, `[P, n]`, of n that each has on its host: apart from the backend's calls, which need not be
    /// waited for. An engine that can exchange nothing there gives `None`; then nobody learns what another rank refuses, and what
    /// ranks disagree about is not found.
    ///
    /// # Errors
    /// As [`Communicator::all_gather`].
    fn exchange(&self, words: &[u32]) -> Result<Option<Vec<u32>>>;

    /// This rank has failed between two exchanges of one call, and will not make the next: the others should not wait for it. An
    /// engine that can tell them does.
    fn abort(&self) {}
}

/// The sum over ranks of a count that each has, such as the groups of all of its micro-batches, for
/// [`Reduction::Normalizer`](crate::Reduction::Normalizer); `None` where hosts exchange nothing.
///
/// # Errors
/// As [`Communicator::exchange`].
pub fn total<B: Backend>(communicator: &(impl Communicator<B> + ?Sized), count: u64) -> Result<Option<u64>> {
    let words = communicator.exchange(&[count as u32, (count >> 32) as u32])?;
    let sum = |words: Vec<u32>| {
        let counts = words.chunks_exact(2).map(|pair| u64::from(pair[1]) << 32 | u64::from(pair[0]));
        counts.fold(0, u64::saturating_add)
    };
    Ok(words.map(sum))
}

/// [`Backend::token_log_probs`] of rows whose columns lie on several ranks: each has the columns that `options` say
/// ([`LogitOptions::with_shard`]), the same targets, and gets the same results, bit for bit. One exchange of
/// [`Backend::partial_rows`]: 16 bytes a row on CUDA, 24 on the CPU, for each 32768 columns of the rank that has most. The backward
/// passes need none: [`Backend::token_log_probs_backward`] with the same options.
///
/// `parts` is kept by the caller from step to step.
///
/// # Errors
/// As [`Backend::partial_rows`] and [`Backend::merge_rows`]. Where ranks can exchange notes, what one refuses is
/// [`Error::Rank`](crate::Error::Rank) on the others, and ranks that differ in what must be the same, or whose columns overlap or leave
/// some out, all get [`Error::RanksDisagree`](crate::Error::RanksDisagree); then nothing has been written.
pub fn token_log_probs<'i, B: Backend, T: Element>(
    backend: &B,
    communicator: &(impl Communicator<B> + ?Sized),
    logits: &Matrix<'_, T, B::Memory>,
    targets: impl Into<Targets<'i, B::Memory>>,
    options: &LogitOptions,
    outputs: TokenLogProbs<'_, B::Memory>,
    parts: &mut B::Buffer<B::PartialRow>,
) -> Result<()> {
    let _entered = backend.enter()?;
    let (targets, rows) = (targets.into(), logits.rows());
    let shard = options.shard_of(logits.columns());
    let checked = check_logits(backend, logits)
        .and_then(|()| backend.check_targets(&targets, rows, shard.vocab()))
        .and_then(|()| outputs.check(backend, rows));
    let columns = logits.columns();
    let agreement = Agreement::new(Call::TokenLogProbs, rows, options, columns, outputs.entropies.is_some());
    let notes = agreement.reach(Divided::Vocab, communicator, checked)?;
    let most = notes.map_or(columns, |notes| notes.most_columns());
    exchange_rows(backend, communicator, most, logits, &targets, options, outputs, parts)
        .inspect_err(|_| communicator.abort())
}

/// The exchange of [`token_log_probs`], of ranks that have agreed about it. `most`: columns of the rank that has most.
#[allow(clippy::too_many_arguments)]
pub(crate) fn exchange_rows<B: Backend, T: Element>(
    backend: &B,
    communicator: &(impl Communicator<B> + ?Sized),
    most: usize,
    logits: &Matrix<'_, T, B::Memory>,
    targets: &Targets<'_, B::Memory>,
    options: &LogitOptions,
    outputs: TokenLogProbs<'_, B::Memory>,
    parts: &mut B::Buffer<B::PartialRow>,
) -> Result<()> {
    let (of_rank, entropy) = (logits.rows() * partial_rows_of(most), outputs.entropies.is_some());
    let all = gather(backend, communicator, parts, of_rank, |own| {
        backend.partial_rows(logits, targets.clone(), options, entropy, own)
    })?;
    backend.merge_rows(&all, communicator.ranks(), targets.clone(), options, outputs)
}
