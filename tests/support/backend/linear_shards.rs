//! A head whose rows lie on several ranks, played by one backend in turn.

use crate::backend::calls::{ForwardBuffers, Upstream, download, upload};
use crate::backend::shards::{Layout, of_rank};
use crate::backend::{Forward, Placed, TestBackend};
use crate::linear::{Case, Gradients, Wanted};
use exo_kernels::backend::{GatheredRows, LinearParts, UnitSums, partial_rows_of};
use exo_kernels::{Element, LogitOptions, Result, SoftmaxState};

/// Hidden states, and a rank's rows of a head each, in the backend's memory.
pub struct HeadRanks<B: TestBackend, T: Element, W: Element> {
    backend: B,
    layout: Layout,
    vocab: usize,
    rows: usize,
    size: usize,
    /// M: what is said of the number of scored rows, or N.
    most_scored: usize,
    ranks: Vec<Placed<B, T, W>>,
    columns: Vec<usize>,
}

/// What the ranks have made together, and each of them of the unit gradients.
#[derive(Debug)]
pub struct OfRanks {
    pub forward: Forward,
    /// The words of each rank's parts, `[N, k]`.
    pub parts: Vec<Vec<u32>>,
    /// Shares in the unit gradients of scored rows, `[M, H]` of each rank; none where nothing was kept.
    pub shares: Vec<Vec<f32>>,
}

impl OfRanks {
    /// What an all-reduce in f32 makes of the shares: unit gradients.
    pub fn units(&self) -> Vec<f32> {
        let mut sums = self.shares[0].clone();
        for share in &self.shares[1..] {
            sums.iter_mut().zip(share).for_each(|(sum, share)| *sum += share);
        }
        sums
    }
}

impl<B: TestBackend, T: Element, W: Element> HeadRanks<B, T, W> {
    /// The last rank's padding is NaN.
    pub fn new(backend: &B, case: &Case<T, W>, layout: &Layout, scored_rows: Option<usize>) -> Self {
        let size = case.hidden_size;
        let mut columns = Vec::new();
        let of_rank = |(rank, range): (usize, std::ops::Range<usize>)| {
            let padding = if rank + 1 == layout.starts.len() { layout.padding } else { 0 };
            columns.push(range.len());
            let pad = |numbers: &[W], count: usize| [numbers, &vec![W::NAN; count]].concat();
            let part = Case {
                vocab: range.len() + padding,
                weight: pad(&case.weight[range.start * size..range.end * size], padding * size),
                bias: case.bias.as_ref().map(|bias| pad(&bias[range.clone()], padding)),
                ..case.clone()
            };
            let mut placed = Placed::new(backend, &part);
            placed.scored_rows = scored_rows;
            placed
        };
        let ranks = layout.ranks(case.vocab).into_iter().enumerate().map(of_rank).collect();
        let most_scored = scored_rows.map_or(case.rows, |rows| rows.min(case.rows));
        let (vocab, rows, layout) = (case.vocab, case.rows, layout.clone());
        Self { backend: backend.clone(), layout, vocab, rows, size, most_scored, ranks, columns }
    }

    /// The options of one rank.
    pub fn options(&self, options: &LogitOptions, rank: usize) -> LogitOptions {
        of_rank(options, &self.layout, rank, self.vocab)
    }

    /// Each rank's parts, gathered; the whole of the rows; and, where units are kept, each rank's share in them.
    pub fn try_forward(&self, options: &LogitOptions, entropies: bool, keeps: bool) -> Result<OfRanks> {
        let (backend, rows, count) = (&self.backend, self.rows, self.ranks.len());
        let held = |rank: usize| self.columns[rank] + if rank + 1 == count { self.layout.padding } else { 0 };
        let per_row = (0..count).map(|rank| partial_rows_of(held(rank))).max().expect("a rank");
        let (numbers, most) = (self.most_scored * self.size, self.most_scored);
        let (mut gathered, mut of_units) = (Vec::new(), Vec::new());
        for (rank, placed) in self.ranks.iter().enumerate() {
            let mut parts = upload(backend, &vec![B::PartialRow::default(); rows * per_row]);
            let mut sums = upload(backend, &vec![f32::MAX; numbers]);
            let mut rests = upload(backend, &vec![B::PartialRow::default(); most]);
            placed.with(|hidden, head| {
                let outputs = LinearParts {
                    partial_rows: backend.view_mut(&mut parts, rows * per_row),
                    unit_sums: keeps.then(|| UnitSums {
                        sums: backend.view_mut(&mut sums, numbers),
                        rests: backend.view_mut(&mut rests, most),
                    }),
                };
                let options = self.options(options, rank);
                backend.linear_partial_rows(hidden, head, placed.targets(), &options, entropies, outputs)
            })?;
            gathered.extend(download(backend, &parts, rows * per_row));
            of_units.push((sums, rests));
        }
        let words = |parts: &[B::PartialRow]| bytemuck::cast_slice::<_, u32>(parts).to_vec();
        let parts_of_ranks = gathered.chunks(rows * per_row).map(words).collect();
        let parts = upload(backend, &gathered);
        let parts = || backend.view(&parts, gathered.len());
        let mut outputs = ForwardBuffers::new(backend, rows);
        let targets = self.ranks[0].targets();
        backend.merge_rows(&parts(), count, targets, options, outputs.views(backend, rows, entropies))?;
        let forward = outputs.download(backend, rows, entropies);
        let states: B::Buffer<SoftmaxState> = upload(backend, &forward.states);
        let mut shares = Vec::new();
        for (rank, (placed, (mut sums, mut rests))) in self.ranks.iter().zip(of_units).enumerate().filter(|_| keeps) {
            placed.with(|hidden, head| {
                let states = backend.view(&states, rows);
                let gathered = GatheredRows { partial_rows: parts(), ranks: count, rank, states };
                let unit_sums =
                    UnitSums { sums: backend.view_mut(&mut sums, numbers), rests: backend.view_mut(&mut rests, most) };
                let options = self.options(options, rank);
                backend.linear_unit_gradients(hidden, head, placed.targets(), &options, &gathered, unit_sums)
            })?;
            shares.push(download(backend, &sums, numbers));
        }
        Ok(OfRanks { forward, parts: parts_of_ranks, shares })
    }

    pub fn forward(&self, options: &LogitOptions, entropies: bool, keeps: bool) -> OfRanks {
        self.try_forward(options, entropies, keeps).expect("forward")
    }

    /// Each rank's gradients, padding included; with unit gradients those of the hidden states are whole.
    pub fn backward<G: Element>(
        &mut self,
        options: &LogitOptions,
        forward: &Forward,
        units: Option<&[f32]>,
        upstream: Upstream<'_>,
        wanted: Wanted,
    ) -> Vec<Gradients<T, G>> {
        let options: Vec<LogitOptions> = (0..self.ranks.len()).map(|rank| self.options(options, rank)).collect();
        let of_rank = |(placed, options): (&mut Placed<B, T, W>, &LogitOptions)| {
            if let Some(units) = units {
                placed.use_units(units);
            }
            placed.backward(options, forward, upstream, wanted)
        };
        self.ranks.iter_mut().zip(&options).map(of_rank).collect()
    }

    /// The ranks' gradients as one head's. Gives besides what the padding's are. `hidden`: one rank's, or the sum of all ranks'.
    pub fn whole<G: Element>(&self, of_ranks: &[Gradients<T, G>], sum_hidden: bool) -> (Gradients<T, G>, Vec<G>) {
        let mut whole = Gradients { hidden: of_ranks[0].hidden.clone(), weight: Vec::new(), bias: Vec::new() };
        let mut padding = Vec::new();
        for (gradients, columns) in of_ranks.iter().zip(&self.columns) {
            let (weight, of_padding) = gradients.weight.split_at(columns * self.size);
            whole.weight.extend_from_slice(weight);
            padding.extend_from_slice(of_padding);
            let (bias, of_padding) = gradients.bias.split_at(*columns);
            whole.bias.extend_from_slice(bias);
            padding.extend_from_slice(of_padding);
        }
        if sum_hidden {
            for (i, sum) in whole.hidden.iter_mut().enumerate() {
                *sum = T::from_f32(of_ranks.iter().map(|gradients| gradients.hidden[i].to_f32()).sum());
            }
        }
        (whole, padding)
    }
}
