//! A fixture computed by a backend, each output held against the fixture's expected values and the bounds of
//! `exo_kernels::reference::bounds`.

use exo_kernels::reference::bounds::{self, Arithmetic, GroupBounds, RowBounds};
use exo_kernels::reference::preference_loss::{self, Step};
use exo_kernels::reference::{objective, token_log_prob};
use exo_kernels::{Element, LossOptions, Matrix, Reference, Result};

use crate::fixture::{Fixture, StoredLogits};

/// Who computes a fixture: the stages of a backend, or the specification.
pub trait Computes {
    /// What bounds are derived from, at this vocabulary.
    fn arithmetic(&self, vocab: usize) -> Arithmetic;

    /// Whether a gradient is rounded to the type of the logits.
    fn rounds_gradients(&self) -> bool;

    /// Every output; `exact` is the specification's step.
    fn computed(&self, fixture: &Fixture, exact: &Step) -> Computed;

    /// The objective stage alone, fed with these log-ratios.
    fn objective(&self, fixture: &Fixture, log_ratios: &[f64]) -> Groups;
}

/// How far one output is from what was expected.
#[derive(Debug, Clone)]
pub struct OutputError {
    /// Which output.
    pub output: &'static str,
    /// The largest absolute error.
    pub largest: f64,
    /// The largest error as a share of its bound: above 1 is over.
    pub share: f64,
}

impl OutputError {
    /// Whether the output is within its bound.
    pub fn is_within(&self) -> bool {
        self.share <= 1.0
    }
}

/// The golden values' own error, relative to max(1, |value|): they were compared with 80-bit and 50-digit arithmetic.
const EXPECTED_ERROR: f64 = 1e-14;

/// What a backend made of a fixture; shapes as in the file.
pub struct Computed {
    /// \[N\].
    pub log_probs: Vec<f64>,
    /// \[N\], 0 on masked rows.
    pub log_sum_exps: Vec<f64>,
    /// \[N\].
    pub entropies: Vec<f64>,
    /// \[S\].
    pub log_ratios: Vec<f64>,
    /// The objective stage.
    pub groups: Groups,
    /// The rows that the fixture has a gradient of, \[R, V\].
    pub gradient: Vec<f64>,
}

/// What the objective stage gave.
pub struct Groups {
    /// \[G\].
    pub losses: Vec<f64>,
    /// Their mean.
    pub loss: f64,
    /// d loss / d log-ratio, \[S\].
    pub coefficients: Vec<f64>,
}

/// All outputs of a fixture, in the order of the pipeline, and the K-sample stage alone (fed with the expected
/// log-ratios).
///
/// # Errors
///
/// What a [`PreferenceLoss`](exo_kernels::PreferenceLoss) refuses is refused for every backend.
pub fn compare(fixture: &Fixture, backend: &impl Computes) -> Result<Vec<OutputError>> {
    match &fixture.logits {
        StoredLogits::F32(logits) => compare_typed(fixture, logits, backend),
        StoredLogits::F16(logits) => compare_typed(fixture, logits, backend),
        StoredLogits::Bf16(logits) => compare_typed(fixture, logits, backend),
    }
}

fn compare_typed<T: Element>(fixture: &Fixture, values: &[T], backend: &impl Computes) -> Result<Vec<OutputError>> {
    let logits = Matrix::new(values, fixture.vocab)?;
    let options = fixture.options.with_entropy(true);
    let reference = Reference::PerToken(&fixture.reference);
    let exact = preference_loss::forward(
        &options,
        &logits,
        &fixture.targets,
        &fixture.batch,
        &reference,
        fixture.rewards.as_slice(),
    )?;
    let computed = backend.computed(fixture, &exact);
    let bounds = StepBounds::new(fixture, &options, &exact, backend.arithmetic(fixture.vocab));
    let alone = backend.objective(fixture, &fixture.log_ratios);
    let alone_bounds = group_bounds(fixture, &vec![0.0; fixture.batch.sequences()]);

    let row_bound = |pick: fn(&RowBounds) -> f64| {
        bounds.rows.iter().map(move |bound| bound.as_ref().map_or(0.0, pick)).collect::<Vec<_>>()
    };
    let mut errors = vec![
        against("token log-prob", &computed.log_probs, &fixture.log_probs, &row_bound(|bound| bound.log_prob)),
        against("log-sum-exp", &computed.log_sum_exps, &fixture.log_sum_exps, &row_bound(|bound| bound.log_sum_exp)),
        against("entropy", &computed.entropies, &fixture.entropies, &row_bound(|bound| bound.entropy)),
        against("log-ratio", &computed.log_ratios, &fixture.log_ratios, &bounds.log_ratios),
    ];
    errors.extend(against_groups(
        ["group loss", "loss", "sequence gradient"],
        &computed.groups,
        fixture,
        &bounds.groups,
    ));
    errors.push(against_gradient(
        fixture,
        logits,
        &options,
        &exact,
        &bounds,
        backend.rounds_gradients(),
        &computed.gradient,
    ));
    errors.extend(against_groups(
        ["group loss, stage alone", "loss, stage alone", "sequence gradient, stage alone"],
        &alone,
        fixture,
        &alone_bounds,
    ));
    Ok(errors)
}

fn group_rewards(fixture: &Fixture) -> Vec<(std::ops::Range<usize>, Vec<f64>)> {
    let offsets = fixture.batch.group_offsets();
    let ranges = offsets.windows(2).map(|pair| pair[0]..pair[1]);
    ranges.map(|range| (range.clone(), range.map(|i| f64::from(fixture.rewards[i])).collect())).collect()
}

pub(crate) fn exact_groups(fixture: &Fixture, log_ratios: &[f64]) -> Vec<objective::GroupLoss> {
    let groups = group_rewards(fixture).into_iter();
    groups
        .map(|(range, rewards)| {
            let none = vec![0.0; rewards.len()];
            objective::group_loss(&fixture.options.objective(), &log_ratios[range], &rewards, &none)
        })
        .collect()
}

/// Bounds of each group, for log-ratios (the expected ones) that are off by at most these, one per sequence.
fn group_bounds(fixture: &Fixture, log_ratio_bounds: &[f64]) -> Vec<GroupBounds> {
    let groups = group_rewards(fixture).into_iter().zip(exact_groups(fixture, &fixture.log_ratios));
    groups
        .map(|((range, rewards), exact)| {
            let target = fixture.options.objective().target();
            let target_logits = objective::target_logits(target, &rewards, &vec![0.0; rewards.len()]);
            let bound = log_ratio_bounds[range.clone()].iter().copied().fold(0.0, f64::max);
            bounds::group(&fixture.options.objective(), &fixture.log_ratios[range], &target_logits, bound, &exact)
        })
        .collect()
}

struct StepBounds {
    /// `None` for a masked row.
    rows: Vec<Option<RowBounds>>,
    log_ratios: Vec<f64>,
    groups: Vec<GroupBounds>,
}

impl StepBounds {
    fn new(fixture: &Fixture, options: &LossOptions, exact: &Step, arithmetic: Arithmetic) -> Self {
        let rows: Vec<Option<RowBounds>> = (0..fixture.targets.len())
            .map(|row| {
                (fixture.targets[row] >= 0).then(|| bounds::row(arithmetic, &exact.rows[row], &options.logits()))
            })
            .collect();
        let log_ratios: Vec<f64> = fixture
            .batch
            .sequence_offsets()
            .windows(2)
            .map(|pair| {
                bounds::log_ratio((pair[0]..pair[1]).filter_map(|row| {
                    let difference = exact.rows[row].log_prob - f64::from(fixture.reference[row]);
                    rows[row].map(|bound| (bound.log_prob + EXPECTED_ERROR, difference.abs()))
                }))
            })
            .collect();
        let groups = group_bounds(fixture, &log_ratios);
        StepBounds { rows, log_ratios, groups }
    }
}

fn against_groups(
    names: [&'static str; 3],
    groups: &Groups,
    fixture: &Fixture,
    bounds: &[GroupBounds],
) -> [OutputError; 3] {
    let weight = 1.0 / bounds.len().max(1) as f64;
    let losses: Vec<f64> = bounds.iter().map(|bound| bound.loss).collect();
    let coefficients: Vec<f64> = group_rewards(fixture)
        .iter()
        .zip(bounds)
        .flat_map(|((range, _), bound)| vec![bound.coefficient * weight; range.len()])
        .collect();
    [
        against(names[0], &groups.losses, &fixture.group_losses, &losses),
        against(names[1], &[groups.loss], &[fixture.loss], &[losses.iter().sum::<f64>() * weight]),
        against(names[2], &groups.coefficients, &fixture.coefficients, &coefficients),
    ]
}

fn against_gradient<T: Element>(
    fixture: &Fixture,
    logits: Matrix<'_, T>,
    options: &LossOptions,
    exact: &Step,
    bounds: &StepBounds,
    rounded: bool,
    computed: &[f64],
) -> OutputError {
    let weight = 1.0 / fixture.batch.groups().max(1) as f64;
    // The group of each row.
    let mut row_bound = vec![0.0; fixture.targets.len()];
    for ((sequences, _), group) in group_rewards(fixture).iter().zip(&bounds.groups) {
        let offsets = fixture.batch.sequence_offsets();
        row_bound[offsets[sequences.start]..offsets[sequences.end]].fill(group.coefficient * weight);
    }
    let mut limits = Vec::with_capacity(computed.len());
    for (index, &row) in fixture.gradient.rows.iter().enumerate() {
        let expected = &fixture.gradient.values[index * fixture.vocab..(index + 1) * fixture.vocab];
        let Some(bound) = &bounds.rows[row] else {
            limits.extend(vec![0.0; fixture.vocab]);
            continue;
        };
        let scaled = token_log_prob::scaled_logits(logits.row(row), &options.logits());
        for column in 0..fixture.vocab {
            let logit = f64::from(logits.row(row)[column].to_f32());
            let log_p = scaled[column] - exact.rows[row].log_sum_exp;
            let g = exact.row_gradients[row];
            let value = expected[column];
            let unrounded = bound.grad_logit(value, logit, log_p, g, row_bound[row]);
            let stored =
                if rounded { bounds::rounding(value.abs() + unrounded, T::UNIT_ROUNDOFF, T::SMALLEST) } else { 0.0 };
            let file = if fixture.gradient.rounded {
                bounds::rounding(value, f32::UNIT_ROUNDOFF, f32::SMALLEST)
            } else {
                EXPECTED_ERROR * g.abs()
            };
            limits.push(unrounded + stored + file);
        }
    }
    against_exactly("logit gradient", computed, &fixture.gradient.values, &limits)
}

fn against(output: &'static str, computed: &[f64], expected: &[f64], bounds: &[f64]) -> OutputError {
    let limits: Vec<f64> =
        bounds.iter().zip(expected).map(|(bound, value)| bound + EXPECTED_ERROR * value.abs()).collect();
    against_exactly(output, computed, expected, &limits)
}

fn against_exactly(output: &'static str, computed: &[f64], expected: &[f64], limits: &[f64]) -> OutputError {
    assert_eq!((computed.len(), limits.len()), (expected.len(), expected.len()), "{output}: number of values");
    let (mut largest, mut share) = (0.0f64, 0.0f64);
    for ((&computed, &expected), &limit) in computed.iter().zip(expected).zip(limits) {
        if computed == expected {
            continue;
        }
        let error = (computed - expected).abs();
        let error = if error.is_nan() { f64::INFINITY } else { error };
        largest = largest.max(error);
        share = share.max(if error == 0.0 { 0.0 } else { error / limit });
    }
    OutputError { output, largest, share }
}
