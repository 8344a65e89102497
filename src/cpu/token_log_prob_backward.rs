//! Token log-probs, backward, on the CPU: one read of the logits, one write of their gradient.
//!
//! With z = c·tanh(x/c)/T, p = softmax(z), g and e the upstream gradients of log-prob and entropy H, and [·] 1 or 0:
//!
//! d loss / d x_j = { g·([j = target] − p_j) − e·p_j·(log p_j + H) } · dz_j/dx_j
//!
//! The first term is the derivative of log p_t, the second that of −Σ p log p. The loop knows no target: it
//! writes −g·p_j everywhere, and the one target column is then written from g·(1 − p_t), formed in f64. Adding g to a
//! −g·p_t that was already rounded would lose everything where p_t is near 1.

use crate::cpu::Cpu;
use crate::cpu::conversion::{narrow, widen};
use crate::cpu::dispatch::{Available, Kernel};
use crate::cpu::elementary::{clamp_exponent, exp2, multiply_add};
use crate::cpu::softmax::{Scale, target_power};
use crate::cpu::token_log_prob::{GRAIN, LANES, padded};
use crate::data::shard::{SLICE, Shard};
use crate::element::Element;
use crate::error::Result;
use crate::host::{Matrix, MatrixMut, RowGradients, SavedRows, Targets};
use crate::options::LogitOptions;
use crate::stage::token_log_prob::{SoftmaxState, check_gradient, check_logits, check_saved};
use rayon::join;

/// What turns an exponent into a gradient: 2^t·(constant + slope·t).
#[derive(Debug, Clone, Copy)]
struct RowFactors {
    r: f32,
    /// −(g + e·(H − ln s))/(T·s)
    constant: f32,
    /// −e·ln 2/(T·s); 0 without an entropy gradient.
    slope: f32,
}

/// Logits and where their gradient goes.
enum Place<'a, T> {
    Into(&'a [T], &'a mut [T]),
    InPlace(&'a mut [T]),
}

impl<'a, T: Element> Place<'a, T> {
    fn columns(&self) -> usize {
        match self {
            Place::Into(logits, _) => logits.len(),
            Place::InPlace(logits) => logits.len(),
        }
    }

    fn logit(&self, column: usize) -> f32 {
        match self {
            Place::Into(logits, _) => logits[column].to_f32(),
            Place::InPlace(logits) => logits[column].to_f32(),
        }
    }

    fn gradient(&mut self) -> &mut [T] {
        match self {
            Place::Into(_, grad) => grad,
            Place::InPlace(logits) => logits,
        }
    }

    fn reborrow(&mut self) -> Place<'_, T> {
        match self {
            Place::Into(logits, grad) => Place::Into(logits, grad),
            Place::InPlace(logits) => Place::InPlace(logits),
        }
    }

    fn split_at(self, column: usize) -> (Place<'a, T>, Place<'a, T>) {
        match self {
            Place::Into(logits, grad) => {
                let (logits, logits_after) = logits.split_at(column);
                let (grad, grad_after) = grad.split_at_mut(column);
                (Place::Into(logits, grad), Place::Into(logits_after, grad_after))
            }
            Place::InPlace(logits) => {
                let (logits, logits_after) = logits.split_at_mut(column);
                (Place::InPlace(logits), Place::InPlace(logits_after))
            }
        }
    }
}

/// The gradient of one slice of a row, as if no column of it were the target.
struct SliceGradient<'a, T, const SOFTCAP: bool, const ENTROPY: bool> {
    place: Place<'a, T>,
    scale: &'a Scale,
    factors: RowFactors,
}

impl<T: Element, const SOFTCAP: bool, const ENTROPY: bool> Kernel for SliceGradient<'_, T, SOFTCAP, ENTROPY> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let (scale, factors) = (self.scale, &self.factors);
        match self.place {
            Place::Into(logits, grad) => {
                let (groups, rest) = logits.as_chunks::<LANES>();
                let (grad_groups, grad_rest) = grad.as_chunks_mut::<LANES>();
                for (group, grad) in groups.iter().zip(grad_groups) {
                    *grad = gradients::<T, FMA, SOFTCAP, ENTROPY>(group, scale, factors);
                }
                if !rest.is_empty() {
                    let gradients = gradients::<T, FMA, SOFTCAP, ENTROPY>(&padded(rest), scale, factors);
                    grad_rest.copy_from_slice(&gradients[..rest.len()]);
                }
            }
            Place::InPlace(logits) => {
                let (groups, rest) = logits.as_chunks_mut::<LANES>();
                for group in groups {
                    *group = gradients::<T, FMA, SOFTCAP, ENTROPY>(group, scale, factors);
                }
                if !rest.is_empty() {
                    let gradients = gradients::<T, FMA, SOFTCAP, ENTROPY>(&padded(rest), scale, factors);
                    rest.copy_from_slice(&gradients[..rest.len()]);
                }
            }
        }
    }
}

#[inline(always)]
fn gradients<T: Element, const FMA: bool, const SOFTCAP: bool, const ENTROPY: bool>(
    group: &[T; LANES],
    scale: &Scale,
    factors: &RowFactors,
) -> [T; LANES] {
    // Loops of their own: widening, arithmetic and rounding in one are more than the compiler makes vectors of for every type.
    let (wide, mut values) = (widen::<T, FMA, LANES>(group), [0.0; LANES]);
    let (exponents, slopes) = scale.exponents::<FMA, SOFTCAP>(&wide, factors.r);
    for lane in 0..LANES {
        let t = clamp_exponent(exponents[lane]);
        let power = exp2::<FMA>(t);
        let factor = if ENTROPY { multiply_add::<FMA>(t, factors.slope, factors.constant) } else { factors.constant };
        let value = power * factor;
        values[lane] = if SOFTCAP { value * slopes[lane] } else { value };
    }
    narrow::<T, FMA, LANES>(&values)
}

/// What all rows share.
pub(super) struct Backward<'t, 's, 'u> {
    instructions: Available,
    /// Of logits: where in the vocabulary they are; a head has all columns.
    shard: Shard,
    scale: Scale,
    inverse_temperature: f64,
    largest_upstream: f64,
    targets: Targets<'t>,
    saved: SavedRows<'s>,
    gradients: RowGradients<'u>,
}

/// The gradient of a scored row, before a logit of it is seen.
#[derive(Clone, Copy)]
pub(super) enum RowGradient {
    /// All of it is 0.
    Zero,
    /// All of it is NaN.
    Nan,
    /// It must be computed.
    Run(RowTerms),
}

/// What a row's gradient is made of.
#[derive(Clone, Copy)]
pub(super) struct RowTerms {
    factors: RowFactors,
    sum: f64,
    entropy: f64,
    /// d loss / d log-prob and d loss / d entropy.
    g: f64,
    e: f64,
}

impl RowTerms {
    /// −g/(T·s), of a row without a gradient of its entropy.
    pub(super) fn coefficient(&self) -> f32 {
        self.factors.constant
    }
}

impl<'t, 's, 'u> Backward<'t, 's, 'u> {
    pub(super) fn new(
        instructions: Available,
        shard: Shard,
        targets: Targets<'t>,
        options: &LogitOptions,
        saved: SavedRows<'s>,
        gradients: RowGradients<'u>,
    ) -> Self {
        Self {
            instructions,
            shard,
            scale: Scale::new(options),
            inverse_temperature: 1.0 / options.temperature(),
            largest_upstream: options.largest_upstream(),
            targets,
            saved,
            gradients,
        }
    }

    fn slices<T: Element>(&self, place: Place<'_, T>, factors: RowFactors, entropy: bool) {
        let columns = place.columns();
        if columns > SLICE {
            let (left, right) = place.split_at(columns.div_ceil(SLICE) / 2 * SLICE);
            join(|| self.slices(left, factors, entropy), || self.slices(right, factors, entropy));
            return;
        }
        let (run, scale) = (self.instructions, &self.scale);
        match (scale.has_softcap(), entropy) {
            (false, false) => run.run(SliceGradient::<T, false, false> { place, scale, factors }),
            (false, true) => run.run(SliceGradient::<T, false, true> { place, scale, factors }),
            (true, false) => run.run(SliceGradient::<T, true, false> { place, scale, factors }),
            (true, true) => run.run(SliceGradient::<T, true, true> { place, scale, factors }),
        }
    }

    /// d loss / d log-prob of a row and, if there is one, d loss / d entropy.
    fn upstream(&self, row: usize) -> (f32, Option<f32>) {
        match self.gradients {
            RowGradients::PerRow { log_probs, entropies } => {
                (log_probs[row], entropies.map(|entropies| entropies[row]))
            }
            RowGradients::PerSequence { row_sequences, weights, loss_scale } => {
                // A sequence that is none has no weight: NaN, which goes through the row and through no other.
                let sequence = usize::try_from(row_sequences[row]).ok();
                let weight = sequence.and_then(|sequence| weights.get(sequence)).copied();
                ((weight.unwrap_or(f64::NAN) * loss_scale) as f32, None)
            }
        }
    }

    /// What is known of a scored row's gradient without its logits.
    pub(super) fn row_gradient(&self, row: usize) -> RowGradient {
        let SoftmaxState { r, s } = self.saved.states[row];
        if s.is_nan() {
            return RowGradient::Nan;
        }
        let (g, of_entropy) = self.upstream(row);
        let (e, entropy) = match (of_entropy, self.saved.entropies) {
            // Without a gradient of its entropy a row's entropy is not looked at: 0 · NaN is NaN.
            (Some(gradient), Some(entropies)) if gradient != 0.0 => (f64::from(gradient), f64::from(entropies[row])),
            _ => (0.0, 0.0),
        };
        let g = f64::from(g);
        let fits = 2.0 * g.abs() + 256.0 * e.abs() <= self.largest_upstream * (2.0 * f64::from(s)).min(1.0);
        // A NaN does not fit; and so no NaN of the caller's, with whatever bits, goes through the loop.
        if !fits || (e != 0.0 && !entropy.is_finite()) {
            return RowGradient::Nan;
        }
        if g == 0.0 && e == 0.0 {
            return RowGradient::Zero;
        }
        let (sum, unit) = (f64::from(s), self.inverse_temperature / f64::from(s));
        let factors = RowFactors {
            r,
            constant: (-(g + e * (entropy - sum.ln())) * unit) as f32,
            slope: (-e * std::f64::consts::LN_2 * unit) as f32,
        };
        RowGradient::Run(RowTerms { factors, sum, entropy, g, e })
    }

    /// g/T, of a row without a gradient of its entropy.
    pub(super) fn unit_factor(&self, terms: &RowTerms) -> f32 {
        (terms.g * self.inverse_temperature) as f32
    }

    /// Overwrites some of a row's logits with their gradient; `target` is among them, or `None`.
    pub(super) fn overwrite(&self, gradient: RowGradient, logits: &mut [f32], target: Option<usize>) {
        self.write(gradient, Place::InPlace(logits), target);
    }

    fn write<T: Element>(&self, gradient: RowGradient, mut place: Place<'_, T>, target: Option<usize>) {
        let terms = match gradient {
            RowGradient::Zero => return place.gradient().fill(T::from_f32(0.0)),
            RowGradient::Nan => return place.gradient().fill(T::NAN),
            RowGradient::Run(terms) => terms,
        };
        // Before the row is overwritten.
        let at_target = target.map(|column| (column, self.target_gradient(&terms, place.logit(column))));
        self.slices(place.reborrow(), terms.factors, terms.e != 0.0);
        if let Some((column, value)) = at_target {
            place.gradient()[column] = T::from_f32(value);
        }
    }

    /// The gradient of the target's logit x.
    fn target_gradient(&self, terms: &RowTerms, x: f32) -> f32 {
        let RowTerms { factors, sum, entropy, g, e } = *terms;
        let (power, t) = target_power(self.instructions, &self.scale, x, factors.r);
        let p = f64::from(power) / sum;
        let log_p = (t - sum.log2()) * std::f64::consts::LN_2;
        let entropy_part = if p > 0.0 { e * p * (log_p + entropy) } else { 0.0 };
        let slope = self.scale.exact_slope(x);
        ((g * (1.0 - p) - entropy_part) * self.inverse_temperature * slope) as f32
    }

    fn row<T: Element>(&self, row: usize, mut place: Place<'_, T>) {
        let Some(target) = self.targets.column(row) else { return place.gradient().fill(T::from_f32(0.0)) };
        let held = place.columns();
        let (columns, mut padding) = place.split_at(self.shard.columns(held));
        padding.gradient().fill(T::from_f32(0.0));
        self.write(self.row_gradient(row), columns, self.shard.column_of(target, held));
    }
}

/// Rows of logits and where their gradient goes.
enum Rows<'a, 'l, T: Element> {
    Into(&'a Matrix<'l, T>, &'a mut [T], usize),
    InPlace(&'a mut [T], usize),
}

/// Rows `first..first + count`, divided between threads down to [`GRAIN`].
fn backward_rows<T: Element>(
    backward: &Backward<'_, '_, '_>,
    rows: Rows<'_, '_, T>,
    vocab: usize,
    first: usize,
    count: usize,
) {
    if count > 1 && count.saturating_mul(vocab) > GRAIN {
        let half = count / 2;
        let (left, right) = match rows {
            Rows::Into(logits, grad, stride) => {
                let (left, right) = grad.split_at_mut(half * stride);
                (Rows::Into(logits, left, stride), Rows::Into(logits, right, stride))
            }
            Rows::InPlace(logits, stride) => {
                let (left, right) = logits.split_at_mut(half * stride);
                (Rows::InPlace(left, stride), Rows::InPlace(right, stride))
            }
        };
        join(
            || backward_rows(backward, left, vocab, first, half),
            || backward_rows(backward, right, vocab, first + half, count - half),
        );
        return;
    }
    match rows {
        Rows::Into(logits, grad, stride) => {
            for index in 0..count {
                let (row, start) = (first + index, index * stride);
                backward.row(row, Place::Into(logits.row(row), &mut grad[start..start + vocab]));
            }
        }
        Rows::InPlace(logits, stride) => {
            for index in 0..count {
                let start = index * stride;
                backward.row(first + index, Place::InPlace(&mut logits[start..start + vocab]));
            }
        }
    }
}

/// [`Backend::token_log_probs_backward`](crate::Backend::token_log_probs_backward).
pub(super) fn backward<T: Element>(
    cpu: Cpu,
    logits: &Matrix<'_, T>,
    targets: Targets<'_>,
    options: &LogitOptions,
    saved: &SavedRows<'_>,
    upstream: &RowGradients<'_>,
    gradient: MatrixMut<'_, T>,
) -> Result<()> {
    check_gradient(&cpu, logits, &gradient)?;
    let backward = prepare(cpu, logits.rows(), logits.columns(), targets, options, saved, upstream)?;
    let MatrixMut { data, shape } = gradient;
    backward_rows(&backward, Rows::Into(logits, data, shape.row_stride), shape.columns, 0, shape.rows);
    Ok(())
}

/// [`Backend::token_log_probs_backward_in_place`](crate::Backend::token_log_probs_backward_in_place).
pub(super) fn backward_in_place<T: Element>(
    cpu: Cpu,
    logits: MatrixMut<'_, T>,
    targets: Targets<'_>,
    options: &LogitOptions,
    saved: &SavedRows<'_>,
    upstream: &RowGradients<'_>,
) -> Result<()> {
    check_logits(&cpu, &logits.as_matrix())?;
    let backward = prepare(cpu, logits.rows(), logits.columns(), targets, options, saved, upstream)?;
    let MatrixMut { data, shape } = logits;
    backward_rows(&backward, Rows::InPlace(data, shape.row_stride), shape.columns, 0, shape.rows);
    Ok(())
}

/// Checks that everything fits, and gathers what all rows share.
pub(super) fn prepare<'t, 's, 'u>(
    cpu: Cpu,
    rows: usize,
    vocab: usize,
    targets: Targets<'t>,
    options: &LogitOptions,
    saved: &SavedRows<'s>,
    upstream: &RowGradients<'u>,
) -> Result<Backward<'t, 's, 'u>> {
    let shard = options.shard_of(vocab);
    targets.check(rows, shard.vocab())?;
    check_saved(&cpu, saved, upstream, rows)?;
    Ok(Backward::new(cpu.instructions, shard, targets, options, *saved, *upstream))
}
