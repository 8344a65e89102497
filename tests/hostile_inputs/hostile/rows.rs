//! Rows of logits, and what the documentation promises for each.

use super::choices::Choices;
use super::guarded::Sentinel;
use super::numbers::HOSTILE_F32;
use exo_kernels::{Batch, Element, LogitOptions, SoftmaxState};

/// Columns, V.
pub(crate) const VOCAB: usize = 3;

/// What a row is, and so what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Never read; log-prob 0.
    Masked,
    /// Its target is no column: refused, or, where that is found on the device alone, NaN.
    NoColumn,
    /// NaN.
    NoSoftmax,
    /// Too near a limit to tell which of the others it is in f32.
    Edge,
    /// −inf at the target: log-prob −inf.
    Impossible,
    /// A finite log-prob.
    Scored,
}

/// What a row of logits is.
pub(crate) fn kind_of_logits(logits: &[f64], target: i64, options: &LogitOptions) -> Kind {
    let Ok(target) = usize::try_from(target) else { return Kind::Masked };
    if target >= logits.len() {
        return Kind::NoColumn;
    }
    let infinite = |x: &f64| *x == f64::NEG_INFINITY;
    if logits.iter().any(|x| x.is_nan() || *x == f64::INFINITY) || logits.iter().all(infinite) {
        return Kind::NoSoftmax;
    }
    // In base 2, as the limit of 2^30 is.
    let scaled = |x: f64| {
        let (c, scale) = (options.softcap(), std::f64::consts::LOG2_E / options.temperature());
        if c > 0.0 && x.is_finite() { c * (x / c).tanh() * scale } else { x * scale }
    };
    let limit = f64::from(1u32 << 30);
    let largest = logits.iter().map(|x| scaled(*x)).fold(f64::NEG_INFINITY, f64::max);
    match largest.abs() / limit {
        size if size > 1.0001 => return Kind::NoSoftmax,
        size if size > 0.9999 => return Kind::Edge,
        _ => {}
    }
    if logits[target] == f64::NEG_INFINITY {
        return Kind::Impossible;
    }
    // A log-prob that f32 does not hold is −inf.
    if scaled(logits[target]).abs() > 3e38 { Kind::Edge } else { Kind::Scored }
}

/// As [`kind_of_logits`].
pub(crate) fn kind<T: Element>(logits: &[T], target: i64, options: &LogitOptions) -> Kind {
    let logits: Vec<f64> = logits.iter().map(|x| f64::from(x.to_f32())).collect();
    kind_of_logits(&logits, target, options)
}

impl Kind {
    /// Asserts that a row got what it must.
    pub(crate) fn check_log_prob(self, row: usize, log_prob: f32) {
        let right = match self {
            Kind::Masked => log_prob == 0.0,
            Kind::NoSoftmax | Kind::NoColumn => log_prob.is_nan(),
            Kind::Edge => log_prob.is_nan() || log_prob <= 0.0,
            Kind::Impossible => log_prob == f32::NEG_INFINITY,
            Kind::Scored => log_prob.is_finite() && log_prob <= 0.0,
        };
        assert!(right, "row {row} is {self:?}, its log-prob {log_prob}");
    }

    pub(crate) fn check_state(self, row: usize, state: SoftmaxState, vocab: usize) {
        let right = match self {
            Kind::Masked => state == SoftmaxState::default(),
            Kind::NoSoftmax => state.r.is_nan() || state.s.is_nan(),
            Kind::Edge | Kind::NoColumn => true,
            Kind::Impossible | Kind::Scored => {
                // r is an integer that f32 has: from 2^24 on their distance, up to 64, is what r may be off by.
                let most = vocab as f32 * 1.0001;
                let range = if state.r.abs() < 16_777_216.0 { 0.4999..=most } else { 1e-20..=1e20 };
                state.r.fract() == 0.0 && range.contains(&state.s)
            }
        };
        assert!(right, "row {row} is {self:?}, its softmax state {state:?}");
    }

    pub(crate) fn check_entropy(self, row: usize, entropy: f32, vocab: usize) {
        let right = match self {
            Kind::Masked => entropy == 0.0,
            Kind::NoSoftmax => entropy.is_nan(),
            Kind::Edge | Kind::NoColumn => true,
            Kind::Impossible | Kind::Scored => (-1e-6..=(vocab as f32).ln() + 1e-5).contains(&entropy),
        };
        assert!(right, "row {row} is {self:?}, its entropy {entropy}");
    }

    /// Whether the row has a softmax, for all that can be told.
    pub(crate) fn has_softmax(self) -> bool {
        matches!(self, Kind::Impossible | Kind::Scored)
    }
}

/// Logits `[N, V]` with a row stride, and targets.
#[derive(Debug)]
pub(crate) struct Rows<T> {
    pub(crate) count: usize,
    pub(crate) stride: usize,
    /// NaN between the rows.
    pub(crate) data: Vec<T>,
    pub(crate) targets: Vec<i64>,
    /// Whether the ids are given as u32; then none needs more.
    pub(crate) narrow: bool,
}

/// A number of unit size, another for each index.
pub(crate) fn usual(index: usize) -> f32 {
    ((index * 7 + 3) % 11) as f32 * 0.3 - 1.4
}

impl<T: Element + Sentinel> Rows<T> {
    /// `rows` of them, one of which may be spoiled.
    pub(crate) fn choose(choices: &mut Choices<'_>, rows: usize) -> Self {
        let stride = VOCAB + choices.of(0, &[1, 5]);
        let mut data = vec![T::sentinel(); rows * stride];
        for row in 0..rows {
            for column in 0..VOCAB {
                data[row * stride + column] = T::from_f32(usual(row * VOCAB + column));
            }
        }
        if rows > 0 {
            // A row where one number is anything, or two are, or all are the same.
            let row = choices.choose(rows);
            let spoiled = &mut data[row * stride..][..VOCAB];
            match choices.choose(4) {
                0 => {}
                1 => spoiled[choices.choose(VOCAB)] = T::from_f32(choices.f32(0.5)),
                2 => {
                    let (one, other) = (choices.f32(0.5), choices.f32(-0.5));
                    let at = choices.choose(VOCAB);
                    spoiled[at] = T::from_f32(one);
                    spoiled[(at + 1) % VOCAB] = T::from_f32(other);
                }
                _ => spoiled.fill(T::from_f32(choices.of(f32::NEG_INFINITY, &HOSTILE_F32))),
            }
        }
        Self { count: rows, stride, data, targets: targets(choices, rows), narrow: choices.yes() }
    }

    pub(crate) fn row(&self, row: usize) -> &[T] {
        &self.data[row * self.stride..][..VOCAB]
    }

    pub(crate) fn kind(&self, row: usize, options: &LogitOptions) -> Kind {
        kind(self.row(row), self.targets[row], options)
    }

    pub(crate) fn narrow_targets(&self) -> Vec<u32> {
        narrow(&self.targets)
    }
}

/// Targets, one of which may be masked, or be none.
pub(crate) fn targets(choices: &mut Choices<'_>, rows: usize) -> Vec<i64> {
    let mut targets: Vec<i64> = (0..rows).map(|row| (row % VOCAB) as i64).collect();
    if rows > 0 {
        let row = choices.choose(rows);
        targets[row] = choices
            .of(targets[row], &[0, VOCAB as i64 - 1, -100, -1, i64::from(i32::MIN), VOCAB as i64, i64::from(i32::MAX)]);
        if choices.yes() {
            targets.fill(-1);
        }
    }
    targets
}

pub(crate) fn narrow(targets: &[i64]) -> Vec<u32> {
    targets.iter().map(|target| *target as i32 as u32).collect()
}

/// Whether every target is a column, or masks.
pub(crate) fn are_columns(targets: &[i64], vocab: usize) -> bool {
    targets.iter().all(|target| *target < vocab as i64)
}

/// Structures that a batch can have; the first is usual.
pub(crate) fn batch(choices: &mut Choices<'_>) -> Batch {
    const STRUCTURES: [(&[usize], &[usize]); 6] = [
        // Two completions and three.
        (&[0, 2, 3, 4, 5, 7], &[0, 2, 5]),
        // One of no row, and a group of one.
        (&[0, 2, 2, 5], &[0, 2, 3]),
        // Nothing at all; rows of no completion do not exist.
        (&[0], &[0]),
        // Completions of no row alone.
        (&[0, 0, 0], &[0, 2]),
        // Pairs.
        (&[0, 1, 2, 3, 4], &[0, 2, 4]),
        // One row.
        (&[0, 1], &[0, 1]),
    ];
    let (sequences, groups) = STRUCTURES[choices.choose(STRUCTURES.len())];
    Batch::new(sequences, groups).expect("a valid structure")
}
