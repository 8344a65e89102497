//! Hidden states and a head, one number of which may be hostile, and buffers for their gradients.

use super::choices::Choices;
use super::guarded::{Guarded, Sentinel};
use super::rows::{self, Kind, VOCAB, kind_of_logits, usual};
use super::token_log_prob::largest;
use exo_kernels::backend::kept_logit_words;
use exo_kernels::{Dtype, Element, Head, Hidden, LinearGradients, LogitOptions, Matrix, MatrixMut};

/// Columns of a hidden state, H.
pub(crate) const SIZE: usize = 2;

/// Hidden states `[N, H]`, weight `[V, H]`, bias `[V]` or none, targets.
#[derive(Debug)]
pub(crate) struct Case<T, W> {
    pub(crate) rows: usize,
    pub(crate) hidden: Vec<T>,
    pub(crate) hidden_stride: usize,
    pub(crate) weight: Vec<W>,
    pub(crate) weight_stride: usize,
    pub(crate) bias: Option<Vec<W>>,
    pub(crate) targets: Vec<i64>,
}

/// A matrix of usual numbers with NaN between the rows; one number may be anything.
fn matrix<T: Element + Sentinel>(choices: &mut Choices<'_>, rows: usize, seed: usize) -> (Vec<T>, usize) {
    let stride = SIZE + choices.of(0, &[3]);
    let mut data = vec![T::sentinel(); rows * stride];
    for row in 0..rows {
        for column in 0..SIZE {
            data[row * stride + column] = T::from_f32(usual(seed + row * SIZE + column));
        }
    }
    let (row, column) = (choices.choose(rows.max(1)), choices.choose(SIZE));
    if rows > 0 {
        let place = &mut data[row * stride + column];
        *place = T::from_f32(choices.f32(place.to_f32()));
    }
    (data, stride)
}

impl<T: Element + Sentinel, W: Element + Sentinel> Case<T, W> {
    pub(crate) fn choose(choices: &mut Choices<'_>, rows: usize) -> Self {
        let (hidden, hidden_stride) = matrix(choices, rows, 1);
        let (weight, weight_stride) = matrix(choices, VOCAB, 5);
        let bias = choices.yes().then(|| {
            let mut bias: Vec<W> = (0..VOCAB).map(|column| W::from_f32(usual(column))).collect();
            bias[choices.choose(VOCAB)] = W::from_f32(choices.f32(0.5));
            bias
        });
        Self { rows, hidden, hidden_stride, weight, weight_stride, bias, targets: rows::targets(choices, rows) }
    }

    pub(crate) fn hidden(&self) -> Matrix<'_, T> {
        Matrix::strided(&self.hidden, self.rows, SIZE, self.hidden_stride).expect("room for the rows")
    }

    pub(crate) fn head(&self) -> Head<'_, W> {
        let weight = Matrix::strided(&self.weight, VOCAB, SIZE, self.weight_stride).expect("room for the rows");
        let head = Head::new(weight).expect("a vocabulary");
        match &self.bias {
            Some(bias) => head.with_bias(bias).expect("V long"),
            None => head,
        }
    }

    fn number(&self, row: usize, column: usize) -> f64 {
        f64::from(self.hidden[row * self.hidden_stride + column].to_f32())
    }

    fn factor(&self, column: usize, of_size: usize) -> f64 {
        f64::from(self.weight[column * self.weight_stride + of_size].to_f32())
    }

    /// What a row is. Its logits are products in f32, which may overflow, or cancel.
    pub(crate) fn kind(&self, row: usize, options: &LogitOptions) -> Kind {
        if self.targets[row] < 0 {
            return Kind::Masked;
        }
        let (mut logits, mut edge) = (Vec::new(), false);
        for column in 0..VOCAB {
            let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[column].to_f32()));
            let terms = (0..SIZE).map(|i| self.number(row, i) * self.factor(column, i)).chain([bias]);
            let sizes = terms.clone().map(f64::abs).filter(|size| size.is_finite());
            let (largest, logit) = (sizes.fold(0.0, f64::max), terms.sum::<f64>());
            edge |= largest > 1e38 || (logit.is_finite() && largest > 1e6 * logit.abs().max(1.0));
            logits.push(logit);
        }
        if edge { Kind::Edge } else { kind_of_logits(&logits, self.targets[row], options) }
    }

    pub(crate) fn kinds(&self, options: &LogitOptions) -> Vec<Kind> {
        (0..self.rows).map(|row| self.kind(row, options)).collect()
    }

    /// Largest number in size of the weight; infinite if one is not finite.
    pub(crate) fn largest_weight(&self) -> f64 {
        let sizes = (0..VOCAB).flat_map(|column| (0..SIZE).map(move |i| self.factor(column, i).abs()));
        sizes.map(|size| if size.is_finite() { size } else { f64::INFINITY }).fold(1.0, f64::max)
    }

    fn largest_hidden(&self, row: usize) -> f64 {
        let sizes = (0..SIZE).map(|i| self.number(row, i).abs());
        sizes.map(|size| if size.is_finite() { size } else { f64::INFINITY }).fold(1.0, f64::max)
    }
}

/// What comes back to a row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Upstream {
    /// Finite; no gradient of a logit is larger than this in size. With 0 the row may be left out, or not.
    UpTo(f64),
    /// NaN or infinite: it reaches no gradient that is added to.
    NotFinite,
    /// Nothing is known, but that it is that row's alone.
    Any,
}

/// Buffers for gradients, some of them left out, one perhaps of a wrong shape.
pub(crate) struct Gradients<T, G> {
    pub(crate) hidden: Option<Guarded<T>>,
    pub(crate) hidden_shape: (usize, usize, usize),
    pub(crate) weight: Option<Guarded<G>>,
    pub(crate) weight_shape: (usize, usize, usize),
    pub(crate) bias: Option<Guarded<G>>,
    pub(crate) accumulate: bool,
}

impl<T: Element + Sentinel, G: Element + Sentinel> Gradients<T, G> {
    pub(crate) fn choose(choices: &mut Choices<'_>, rows: usize) -> Self {
        let accumulate = choices.yes();
        let mut shape = |rows: usize| {
            let (rows, columns) = (choices.length(rows), choices.of(SIZE, &[SIZE + 1, 1]));
            (rows, columns, columns + choices.of(0, &[2]))
        };
        let (hidden_shape, weight_shape) = (shape(rows), shape(VOCAB));
        let bias = choices.length(VOCAB);
        // What earlier micro-batches added.
        let earlier = |length: usize| -> Guarded<G> {
            let numbers: Vec<G> = (0..length).map(|i| G::from_f32(1.5 - i as f32)).collect();
            if accumulate { Guarded::holding(&numbers) } else { Guarded::new(length) }
        };
        Self {
            hidden: (!choices.yes()).then(|| Guarded::new(hidden_shape.0 * hidden_shape.2)),
            weight: (!choices.yes()).then(|| earlier(weight_shape.0 * weight_shape.2)),
            bias: (!choices.yes()).then(|| earlier(bias)),
            hidden_shape,
            weight_shape,
            accumulate,
        }
    }

    pub(crate) fn fit(&self, rows: usize) -> bool {
        let hidden = self.hidden.is_none() || (self.hidden_shape.0, self.hidden_shape.1) == (rows, SIZE);
        let weight = self.weight.is_none() || (self.weight_shape.0, self.weight_shape.1) == (VOCAB, SIZE);
        hidden && weight && self.bias.as_ref().is_none_or(|bias| bias.get().len() == VOCAB)
    }

    pub(crate) fn views(&mut self) -> LinearGradients<'_, T, G> {
        fn view<N: Element + Sentinel>(
            buffer: &mut Option<Guarded<N>>,
            (rows, columns, stride): (usize, usize, usize),
        ) -> Option<MatrixMut<'_, N>> {
            let buffer = buffer.as_mut()?;
            Some(MatrixMut::strided(buffer.get_mut(), rows, columns, stride).expect("room for the rows"))
        }
        let hidden = view(&mut self.hidden, self.hidden_shape);
        let gradients = LinearGradients::new(hidden, view(&mut self.weight, self.weight_shape));
        let gradients = match &mut self.bias {
            Some(bias) => gradients.with_bias(bias.get_mut()),
            None => gradients,
        };
        if self.accumulate { gradients.accumulating() } else { gradients }
    }

    pub(crate) fn untouched(&self) {
        if let Some(hidden) = &self.hidden {
            hidden.untouched("hidden gradient");
        }
        if let Some(weight) = &self.weight {
            weight.untouched("weight gradient");
        }
        if let Some(bias) = &self.bias {
            bias.untouched("bias gradient");
        }
    }

    /// Asserts what an accepted call must have left.
    pub(crate) fn check<W: Element + Sentinel>(&self, case: &Case<T, W>, kinds: &[Kind], upstream: &[Upstream]) {
        if let Some(hidden) = &self.hidden {
            let stride = self.hidden_shape.2;
            hidden.untouched_between_rows("hidden gradient", SIZE, stride);
            hidden.rows_written("hidden gradient", case.rows, SIZE, stride);
            for (row, (kind, upstream)) in kinds.iter().zip(upstream).enumerate() {
                let found: Vec<f32> = hidden.get()[row * stride..][..SIZE].iter().map(|value| value.to_f32()).collect();
                let told =
                    format!("row {row} is {kind:?} with upstream {upstream:?}: hidden gradient {found:?} of {case:?}");
                let right = match (kind, upstream) {
                    (Kind::Masked, _) => found.iter().all(|value| *value == 0.0),
                    (Kind::NoSoftmax, Upstream::UpTo(bound)) if *bound > 0.0 => {
                        found.iter().all(|value| value.is_nan())
                    }
                    (Kind::Scored | Kind::Impossible, Upstream::UpTo(bound))
                        if bound * case.largest_weight() * 3.0 < largest::<T>() =>
                    {
                        found.iter().all(|value| value.is_finite())
                    }
                    _ => true,
                };
                assert!(right, "{told}");
            }
        }
        if let Some(weight) = &self.weight {
            let stride = self.weight_shape.2;
            weight.untouched_between_rows("weight gradient", SIZE, stride);
            let places = (0..VOCAB).flat_map(|row| (0..SIZE).map(move |column| row * stride + column));
            self.check_sums("weight gradient", weight, places, case, kinds, upstream, |row| case.largest_hidden(row));
        }
        if let Some(bias) = &self.bias {
            bias.untouched_but("bias gradient", |_| true);
            self.check_sums("bias gradient", bias, 0..VOCAB, case, kinds, upstream, |_| 1.0);
        }
    }

    /// Sums over rows.
    #[allow(clippy::too_many_arguments)]
    fn check_sums<W: Element + Sentinel>(
        &self,
        what: &str,
        buffer: &Guarded<G>,
        places: impl Iterator<Item = usize>,
        case: &Case<T, W>,
        kinds: &[Kind],
        upstream: &[Upstream],
        largest_factor: impl Fn(usize) -> f64,
    ) {
        let (mut bound, mut certain, mut poisoned, mut adding) = (10.0, true, false, 0);
        for (row, (kind, upstream)) in kinds.iter().zip(upstream).enumerate() {
            match (kind, upstream) {
                (Kind::Masked, _) => {}
                (Kind::Edge | Kind::NoColumn, _) | (_, Upstream::Any) => certain = false,
                (Kind::NoSoftmax, Upstream::UpTo(bound)) => {
                    poisoned |= *bound > 0.0;
                    certain &= self.accumulate || *bound > 0.0;
                }
                (_, Upstream::NotFinite) => certain &= self.accumulate,
                (_, Upstream::UpTo(size)) => {
                    adding += usize::from(*size > 0.0);
                    bound += size * largest_factor(row);
                }
            }
        }
        if !certain {
            return;
        }
        for place in places {
            let (found, before) = (buffer.get()[place], buffer.before()[place]);
            let told = || {
                format!(
                    "{what}, element {place}: {before:?} became {found:?}; accumulate {}; rows {kinds:?}, upstream \
                     {upstream:?}, {case:?}",
                    self.accumulate
                )
            };
            if self.accumulate && adding == 0 {
                assert!(found.to_f32() == before.to_f32(), "{}", told());
            } else if poisoned && !self.accumulate {
                assert!(found.to_f32().is_nan() && !found.same(&G::sentinel()), "{}", told());
            } else if bound < largest::<G>() {
                assert!(found.to_f32().is_finite(), "{}", told());
            }
        }
    }
}

/// Buffers for what a forward pass keeps, of lengths that need not be right.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) units: Option<Vec<f32>>,
    pub(crate) words: Option<Vec<u32>>,
}

impl Kept {
    /// Of M rows at most, under a head of this type.
    pub(crate) fn choose(choices: &mut Choices<'_>, rows: usize, head: Dtype) -> Self {
        choices.calls(&["stage/linear::kept_logit_words"]);
        let many = choices.size(rows);
        assert!(kept_logit_words(head, many, usize::MAX) >= many, "it saturates");
        let (units, words) = (rows * SIZE, kept_logit_words(head, rows, VOCAB));
        let of_units = choices.of(Some(units), &[None, Some(units + 1), Some(0), Some(units.saturating_sub(1))]);
        let of_words = choices.of(None, &[Some(words), Some(words + 1), Some(0)]);
        Self {
            units: of_units.map(|length| vec![f32::MAX; length]),
            words: of_words.map(|length| vec![u32::MAX; length]),
        }
    }

    /// Whether these are the lengths for so many rows. A forward pass writes the words only with the units.
    pub(crate) fn fit(&self, rows: usize, head: Dtype, is_forward: bool) -> bool {
        let (units, words) = (rows * SIZE, kept_logit_words(head, rows, VOCAB));
        self.units.as_ref().is_none_or(|numbers| numbers.len() == units)
            && self.words.as_ref().is_none_or(|numbers| numbers.len() == words)
            && (!is_forward || self.words.is_none() || self.units.as_ref().map_or(0, Vec::len) == units)
    }
}

/// M: how many rows are scored at most, as far as it was said.
pub(crate) fn most_scored<T: Element>(hidden: &Hidden<'_, '_, T>) -> usize {
    hidden.scored_rows().map_or(hidden.states().rows(), |rows| rows.min(hidden.states().rows()))
}
