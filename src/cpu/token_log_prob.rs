//! Token log-probs, forward, on the CPU: one read of the logits, three numbers a row written.
//!
//! A row is read in chunks of [`CHUNK`] columns, in f32 from there on: once for the maximum, which brings the chunk
//! into the first-level cache, and once more, from there, for Σ 2^t with t = fma(x, log2 e/T, −r). r is the largest
//! scaled logit so far, rounded up to an integer: when it grows, what has been summed is multiplied by a power of two,
//! exactly. [`LANES`] partial sums run over [`BLOCK`] columns in f32 and are then added up in f64, so no f32 sum has
//! more than [`SUM_ERROR`] roundings, however long the row.

use crate::cpu::Cpu;
use crate::cpu::dispatch::{Available, Kernel};
use crate::cpu::elementary::{clamp_exponent, exp2_factors, multiply_add};
use crate::cpu::softmax::{PartialSums, Scale, target_power};
use crate::data::shard::SLICE;
use crate::element::{Dtype, Element};
use crate::error::Result;
use crate::host::{Matrix, Targets, TokenLogProbs};
use crate::options::LogitOptions;
use crate::stage::token_log_prob::{LARGEST_EXPONENT, SoftmaxState, check_logits};
use rayon::join;

/// Partial results side by side: two AVX-512 registers, four AVX2 ones.
pub(super) const LANES: usize = 32;

/// Columns summed in f32 before the sum goes to f64.
const BLOCK: usize = 512;

/// Columns that share a maximum: 8 KiB of f32, a quarter of the smallest first-level cache.
const CHUNK: usize = 2048;

/// Slices of a row that are summed side by side before their sums are added up.
const SLICES_AT_ONCE: usize = 64;

/// Rows are handed to another thread only in portions of at least this many logits.
pub(super) const GRAIN: usize = 32_768;

/// The most roundings that any term of a row's f32 sums goes through: additions within a lane, then across lanes.
pub(super) const SUM_ERROR: f64 = (BLOCK / LANES + LANES.ilog2() as usize) as f64;

/// r before any logit was seen: finite, so that a leading −inf gives −inf − r and not −inf − (−inf), which is NaN; and as low as that
/// of a row that has a softmax can be. Relative to a lower one, which is that of columns that mask (−1e20, say), the exponents would be
/// off by as much as neighbouring f32 are apart there, and their powers no numbers, of which not even 0 times is 0.
pub(crate) const START: f32 = -LARGEST_EXPONENT;

/// The sums of one slice of a row.
struct SliceSums<'a, T, const SOFTCAP: bool, const ENTROPY: bool> {
    logits: &'a [T],
    scale: &'a Scale,
}

impl<T: Element, const SOFTCAP: bool, const ENTROPY: bool> Kernel for SliceSums<'_, T, SOFTCAP, ENTROPY> {
    type Output = PartialSums;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> PartialSums {
        let mut sums = PartialSums::EMPTY;
        let mut buffer = [0.0; CHUNK];
        for chunk in self.logits.chunks(CHUNK) {
            let chunk = widen(chunk, &mut buffer);
            let largest = largest(chunk);
            let scaled = self.scale.exponent::<FMA, SOFTCAP>(largest, 0.0).0.ceil();
            // A chunk of only −inf (and NaN) leaves r where it is.
            if scaled > sums.r {
                sums = sums.at(scaled);
            }
            for block in chunk.chunks(BLOCK) {
                let (groups, rest) = block.as_chunks::<LANES>();
                let (mut sum, mut weighted) = ([0.0f32; LANES], [0.0f32; LANES]);
                for group in groups {
                    add::<FMA, SOFTCAP, ENTROPY>(group, self.scale, sums.r, &mut sum, &mut weighted);
                }
                if !rest.is_empty() {
                    add::<FMA, SOFTCAP, ENTROPY>(&padded(rest), self.scale, sums.r, &mut sum, &mut weighted);
                }
                sums.sum += f64::from(across_lanes(sum));
                if ENTROPY {
                    sums.weighted += f64::from(across_lanes(weighted));
                }
            }
        }
        sums
    }
}

/// An incomplete group of lanes, filled up with excluded columns.
#[inline(always)]
pub(super) fn padded<T: Element>(rest: &[T]) -> [T; LANES] {
    let mut group = [T::NEG_INFINITY; LANES];
    group[..rest.len()].copy_from_slice(rest);
    group
}

/// Adds one group of lanes to the partial sums.
#[inline(always)]
fn add<const FMA: bool, const SOFTCAP: bool, const ENTROPY: bool>(
    group: &[f32; LANES],
    scale: &Scale,
    r: f32,
    sum: &mut [f32; LANES],
    weighted: &mut [f32; LANES],
) {
    let (exponents, _) = scale.exponents::<FMA, SOFTCAP>(group, r);
    for lane in 0..LANES {
        let t = clamp_exponent(exponents[lane]);
        let (p, power) = exp2_factors::<FMA>(t);
        sum[lane] = multiply_add::<FMA>(p, power, sum[lane]);
        if ENTROPY {
            weighted[lane] = multiply_add::<FMA>(t, p * power, weighted[lane]);
        }
    }
}

/// A chunk in f32: itself, or a copy in the buffer, which stays in the first-level cache.
///
/// A loop that does nothing but convert becomes vector code for every type. Inside the loops over the maximum and the
/// sum, the conversion kept the compiler from that, and was done twice.
#[inline(always)]
fn widen<'a, T: Element>(chunk: &'a [T], buffer: &'a mut [f32; CHUNK]) -> &'a [f32] {
    if T::DTYPE == Dtype::F32 {
        return bytemuck::cast_slice(chunk);
    }
    let buffer = &mut buffer[..chunk.len()];
    for (wide, x) in buffer.iter_mut().zip(chunk) {
        *wide = x.to_f32();
    }
    buffer
}

/// The largest logit that is a number; −inf if there is none.
#[inline(always)]
fn largest(chunk: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (groups, rest) = chunk.as_chunks::<LANES>();
    for group in groups {
        for lane in 0..LANES {
            largest[lane] = if group[lane] > largest[lane] { group[lane] } else { largest[lane] };
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        largest[lane] = if x > largest[lane] { x } else { largest[lane] };
    }
    let mut all = f32::NEG_INFINITY;
    for x in largest {
        all = if x > all { x } else { all };
    }
    all
}

/// The lanes' sum, in the order of a balanced tree.
#[inline(always)]
pub(super) fn across_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// What one row needs beside its logits.
pub(super) struct RowForward<'a> {
    pub(super) instructions: Available,
    pub(super) scale: &'a Scale,
    pub(super) entropy: bool,
}

/// A row's results: log-prob, state, entropy.
pub(super) type Row = (f32, SoftmaxState, f32);

impl RowForward<'_> {
    /// The sums of a part of a row that begins at a multiple of [`SLICE`]: those of its slices, added up in ascending order on
    /// any number of threads, and on any number of ranks that hold slices of it.
    pub(super) fn sums<T: Element>(&self, logits: &[T]) -> PartialSums {
        if logits.len() <= SLICE {
            return self.of_slice(logits);
        }
        let mut sums = PartialSums::EMPTY;
        for some in logits.chunks(SLICES_AT_ONCE * SLICE) {
            let mut slices = [PartialSums::EMPTY; SLICES_AT_ONCE];
            let slices = &mut slices[..some.len().div_ceil(SLICE)];
            self.of_slices(some, slices);
            for slice in slices {
                sums = sums.merge(*slice);
            }
        }
        sums
    }

    /// The sums of each of some slices.
    fn of_slices<T: Element>(&self, logits: &[T], sums: &mut [PartialSums]) {
        if let [sums] = sums {
            *sums = self.of_slice(logits);
            return;
        }
        let middle = sums.len() / 2;
        let (left, right) = sums.split_at_mut(middle);
        let (logits, logits_after) = logits.split_at(middle * SLICE);
        join(|| self.of_slices(logits, left), || self.of_slices(logits_after, right));
    }

    /// The sums of a slice, or of less.
    fn of_slice<T: Element>(&self, logits: &[T]) -> PartialSums {
        let (run, scale) = (self.instructions, self.scale);
        match (scale.has_softcap(), self.entropy) {
            (false, false) => run.run(SliceSums::<T, false, false> { logits, scale }),
            (false, true) => run.run(SliceSums::<T, false, true> { logits, scale }),
            (true, false) => run.run(SliceSums::<T, true, false> { logits, scale }),
            (true, true) => run.run(SliceSums::<T, true, true> { logits, scale }),
        }
    }

    fn row<T: Element>(&self, logits: &[T], target: usize) -> Row {
        self.finish(self.sums(logits), logits[target].to_f32())
    }

    /// A row's results, from its sums and the target's logit.
    pub(super) fn finish(&self, sums: PartialSums, target: f32) -> Row {
        // r at its start: only −inf. r infinite: a +inf. A sum that is NaN: a NaN.
        if sums.r.abs() >= LARGEST_EXPONENT || sums.sum.is_nan() {
            return (f32::NAN, SoftmaxState { r: 0.0, s: f32::NAN }, f32::NAN);
        }
        // Without a -0, which an r between -1 and 0 is rounded up to.
        let (r, target) = (sums.r + 0.0, target + 0.0);
        let state = SoftmaxState { r, s: sums.sum as f32 };
        let (power, t) = target_power(self.instructions, self.scale, target, r);
        let tail = sums.sum - f64::from(power);
        // Where the target has most of the probability, what counts is what the others have.
        let log_prob = if f64::from(power) > tail {
            -(tail.max(0.0) / f64::from(power)).ln_1p()
        } else {
            (t - sums.sum.log2()) * std::f64::consts::LN_2
        };
        let entropy = (sums.sum.log2() - sums.weighted / sums.sum) * std::f64::consts::LN_2;
        // The roundings of the sum must not make a probability larger than 1, nor an entropy negative.
        (if log_prob > 0.0 { 0.0 } else { log_prob as f32 }, state, if entropy < 0.0 { 0.0 } else { entropy as f32 })
    }
}

/// [`Backend::token_log_probs`](crate::Backend::token_log_probs).
pub(super) fn forward<T: Element>(
    cpu: Cpu,
    logits: &Matrix<'_, T>,
    targets: Targets<'_>,
    options: &LogitOptions,
    outputs: TokenLogProbs<'_>,
) -> Result<()> {
    let rows = logits.rows();
    check_logits(&cpu, logits)?;
    options.check_whole(logits.columns())?;
    targets.check(rows, logits.columns())?;
    outputs.check(&cpu, rows)?;
    let scale = Scale::new(options);
    let forward = RowForward { instructions: cpu.instructions, scale: &scale, entropy: outputs.entropies.is_some() };
    forward_rows(&forward, logits, targets, 0, outputs);
    Ok(())
}

/// Rows `first..first + N` of `logits`, with N the length of the outputs, divided between threads down to [`GRAIN`].
fn forward_rows<T: Element>(
    forward: &RowForward<'_>,
    logits: &Matrix<'_, T>,
    targets: Targets<'_>,
    first: usize,
    outputs: TokenLogProbs<'_>,
) {
    let rows = outputs.log_probs.len();
    if rows > 1 && rows.saturating_mul(logits.columns()) > GRAIN {
        let (left, right) = split_at(outputs, rows / 2);
        join(
            || forward_rows(forward, logits, targets, first, left),
            || forward_rows(forward, logits, targets, first + rows / 2, right),
        );
        return;
    }
    let TokenLogProbs { log_probs, states, mut entropies } = outputs;
    for index in 0..rows {
        let row = first + index;
        let (log_prob, state, entropy) = match targets.column(row) {
            Some(target) => forward.row(logits.row(row), target),
            None => (0.0, SoftmaxState::default(), 0.0),
        };
        log_probs[index] = log_prob;
        states[index] = state;
        if let Some(entropies) = entropies.as_deref_mut() {
            entropies[index] = entropy;
        }
    }
}

/// The outputs of the rows before `row`, and of those from it on.
fn split_at(outputs: TokenLogProbs<'_>, row: usize) -> (TokenLogProbs<'_>, TokenLogProbs<'_>) {
    let (log_probs, log_probs_after) = outputs.log_probs.split_at_mut(row);
    let (states, states_after) = outputs.states.split_at_mut(row);
    let (entropies, entropies_after) = outputs.entropies.map(|entropies| entropies.split_at_mut(row)).unzip();
    (
        TokenLogProbs { log_probs, states, entropies },
        TokenLogProbs { log_probs: log_probs_after, states: states_after, entropies: entropies_after },
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A row that shows the order in which its slices are added up. The f32 results would hide another order of the f64 sums
    /// nearly always, and so would f64 sums of terms of one size, which are exact. Here the slices' sums differ by up to 2⁴³.
    pub(in crate::cpu) fn slices_of_many_sizes() -> Vec<f32> {
        let heights = [0.0, 14.0, 7.0, 30.0, 22.0, 3.0, 27.0, 11.0];
        let noise = |j: usize| ((j * 7919) % 10_007) as f32 * 1.7e-4;
        (0..7 * SLICE + 5).map(|j| heights[j / SLICE] + noise(j)).collect()
    }

    #[test]
    fn sums_do_not_depend_on_the_number_of_threads() {
        let logits = slices_of_many_sizes();
        let scale = Scale::new(&LogitOptions::default());
        let forward = RowForward { instructions: Available::best(), scale: &scale, entropy: true };
        let bits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let sums = pool.install(|| forward.sums(&logits));
            (sums.r.to_bits(), sums.sum.to_bits(), sums.weighted.to_bits())
        };
        let one = bits(1);
        for threads in [2, 3, 5, 8] {
            assert_eq!(bits(threads), one, "{threads} threads");
        }
    }
}
