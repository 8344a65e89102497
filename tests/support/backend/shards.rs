//! Rows whose columns lie on several ranks, played by one backend in turn.

use crate::backend::TestBackend;
use crate::backend::calls::{BackwardInputs, ForwardBuffers, Ids, Upstream, download, upload};
use crate::host_rows::{Forward, Rows};
use exo_kernels::backend::{MatrixMut, partial_rows_of};
use exo_kernels::{Element, LogitOptions, Result, Shard};
use std::ops::Range;

/// A rank's columns of some rows, with padding behind those of the last rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// Where each rank's columns begin, in ascending order, from 0 on.
    pub starts: Vec<usize>,
    /// Columns of the last rank beyond the vocabulary.
    pub padding: usize,
}

impl Layout {
    pub fn new(starts: &[usize]) -> Self {
        Self { starts: starts.to_vec(), padding: 0 }
    }

    /// The columns of each rank.
    pub fn ranks(&self, vocab: usize) -> Vec<Range<usize>> {
        let ends = self.starts.iter().skip(1).copied().chain([vocab]);
        self.starts.iter().zip(ends).map(|(start, end)| *start..end).collect()
    }

    /// The columns of one rank, contiguous, and what the padding is filled with.
    pub fn of_rank<T: Element>(&self, rows: &Rows<T>, rank: usize) -> Rows<T> {
        let columns = self.ranks(rows.vocab)[rank].clone();
        let padding = if rank + 1 == self.starts.len() { self.padding } else { 0 };
        let mut logits = Vec::new();
        for row in 0..rows.count() {
            logits.extend_from_slice(&rows.row(&rows.logits, row)[columns.clone()]);
            logits.extend(std::iter::repeat_n(T::NAN, padding));
        }
        Rows {
            targets_in_32_bits: rows.targets_in_32_bits,
            ..Rows::new(logits, rows.targets.clone(), columns.len() + padding)
        }
    }
}

/// The options of one rank.
pub fn of_rank(options: &LogitOptions, layout: &Layout, rank: usize, vocab: usize) -> LogitOptions {
    options.with_shard(Shard::new(layout.starts[rank], vocab).expect("a shard"))
}

/// Each rank's part of the rows, gathered, and the whole of them.
pub(crate) fn try_forward<B: TestBackend, T: Element>(
    backend: &B,
    rows: &Rows<T>,
    options: &LogitOptions,
    layout: &Layout,
    entropies: bool,
) -> Result<Forward> {
    let (count, ranks) = (rows.count(), layout.starts.len());
    let parts: Vec<Rows<T>> = (0..ranks).map(|rank| layout.of_rank(rows, rank)).collect();
    let per_row = parts.iter().map(|part| partial_rows_of(part.vocab)).max().expect("a rank");
    let ids = Ids::of(backend, rows);
    let mut gathered = Vec::new();
    for (rank, part) in parts.iter().enumerate() {
        let logits = upload(backend, &part.logits);
        let view = crate::backend::place(backend, &logits, part, count)?;
        let mut partial = upload(backend, &vec![B::PartialRow::default(); count * per_row]);
        let options = of_rank(options, layout, rank, rows.vocab);
        let out = backend.view_mut(&mut partial, count * per_row);
        backend.partial_rows(&view, ids.view(backend), &options, entropies, out)?;
        gathered.extend(download(backend, &partial, count * per_row));
    }
    let placed = upload(backend, &gathered);
    let mut outputs = ForwardBuffers::new(backend, count);
    let view = backend.view(&placed, gathered.len());
    backend.merge_rows(&view, ranks, ids.view(backend), options, outputs.views(backend, count, entropies))?;
    Ok(outputs.download(backend, count, entropies))
}

/// The gradient of each rank's columns, `[N, columns and padding]`.
pub(crate) fn try_backward<B: TestBackend, T: Element>(
    backend: &B,
    rows: &Rows<T>,
    options: &LogitOptions,
    layout: &Layout,
    forward: &Forward,
    upstream: Upstream<'_>,
    in_place: bool,
) -> Result<Vec<Vec<T>>> {
    let count = rows.count();
    let inputs = BackwardInputs::new(backend, forward, upstream);
    let ids = Ids::of(backend, rows);
    let (saved, upstream) = (inputs.saved(backend), inputs.upstream(backend));
    (0..layout.starts.len())
        .map(|rank| {
            let part = layout.of_rank(rows, rank);
            let options = of_rank(options, layout, rank, rows.vocab);
            let logits = upload(backend, &part.logits);
            let mut written = upload(backend, &part.logits);
            let all = backend.view_mut(&mut written, part.logits.len());
            let gradient = MatrixMut::strided(all, count, part.vocab, part.vocab)?;
            if in_place {
                backend.token_log_probs_backward_in_place(gradient, ids.view(backend), &options, &saved, &upstream)?;
            } else {
                let view = crate::backend::place(backend, &logits, &part, count)?;
                backend.token_log_probs_backward(&view, ids.view(backend), &options, &saved, &upstream, gradient)?;
            }
            Ok(download(backend, &written, part.logits.len()))
        })
        .collect()
}
