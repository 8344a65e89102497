//! A fixture computed by a backend, each output held against the fixture's expected values and the bounds of
//! `exo_kernels::reference::bounds`.

use exo_kernels::reference::bounds::{self, Arithmetic, GroupBounds, RowBounds};
use exo_kernels::reference::preference_loss::{self, Step};
use exo_kernels::reference::{objective, token_log_prob};
use exo_kernels::{
    Cpu, Element, GroupStatistics, Head, LinearGradients, LogRatio, Logits, LogitsMut, LossOptions, Matrix, MatrixMut,
    ObjectiveInputs, ObjectiveOutputs, Reduction, Reference, Result, RowGradients, SavedRows, SoftmaxState,
    TokenLogProbs,
};

use crate::fixture::{Fixture, StoredLogits};

/// Who computes.
#[derive(Debug, Clone)]
pub(crate) enum Backend {
    Cpu(Cpu),
    /// From hidden states: the linear stage, with twice the identity for a head.
    #[allow(dead_code, reason = "examples/evaluate has no use for it")]
    CpuLinear(Cpu),
    #[cfg(feature = "cuda")]
    Cuda(exo_kernels::cuda::Cuda),
    Reference,
}

/// How far one output is from what was expected.
#[derive(Debug, Clone)]
pub(crate) struct OutputError {
    /// Which output.
    pub(crate) output: &'static str,
    /// The largest absolute error.
    pub(crate) largest: f64,
    /// The largest error as a share of its bound: above 1 is over.
    pub(crate) share: f64,
}

impl OutputError {
    pub(crate) fn is_within(&self) -> bool {
        self.share <= 1.0
    }
}

/// The golden values' own error, relative to max(1, |value|): they were compared with 80-bit and 50-digit arithmetic.
const EXPECTED_ERROR: f64 = 1e-14;

/// A type that fixtures hold logits in, on every backend that is built.
#[cfg(not(feature = "cuda"))]
pub(crate) trait Stored: Element {}
#[cfg(not(feature = "cuda"))]
impl<T: Element> Stored for T {}
/// A type that fixtures hold logits in, on every backend that is built.
#[cfg(feature = "cuda")]
pub(crate) trait Stored: Element + cudarc::driver::DeviceRepr {}
#[cfg(feature = "cuda")]
impl<T: Element + cudarc::driver::DeviceRepr> Stored for T {}

/// What a backend made of a fixture.
pub(crate) struct Computed {
    pub(crate) log_probs: Vec<f64>,
    pub(crate) log_sum_exps: Vec<f64>,
    pub(crate) entropies: Vec<f64>,
    pub(crate) log_ratios: Vec<f64>,
    pub(crate) groups: Groups,
    /// The rows that the fixture has a gradient of.
    pub(crate) gradient: Vec<f64>,
}

/// The objective stage.
pub(crate) struct Groups {
    pub(crate) losses: Vec<f64>,
    pub(crate) loss: f64,
    pub(crate) coefficients: Vec<f64>,
}

/// All outputs of a fixture, in the order of the pipeline, and the K-sample stage alone (fed with the expected
/// log-ratios). What a [`PreferenceLoss`](exo_kernels::PreferenceLoss) refuses is refused for every backend.
pub(crate) fn compare(fixture: &Fixture, backend: &Backend) -> Result<Vec<OutputError>> {
    match &fixture.logits {
        StoredLogits::F32(logits) => compare_typed(fixture, logits, backend),
        StoredLogits::F16(logits) => compare_typed(fixture, logits, backend),
        StoredLogits::Bf16(logits) => compare_typed(fixture, logits, backend),
    }
}

fn compare_typed<T: Stored>(fixture: &Fixture, values: &[T], backend: &Backend) -> Result<Vec<OutputError>> {
    let logits = Logits::new(values, fixture.vocab)?;
    let options = fixture.options.with_entropy(true);
    let reference = Reference::PerToken(&fixture.reference);
    let exact = preference_loss::forward(
        &options,
        logits,
        &fixture.targets,
        &fixture.batch,
        reference,
        fixture.rewards.as_slice(),
    )?;
    let (computed, arithmetic) = match backend {
        Backend::Cpu(cpu) => (on_cpu(fixture, logits, &options, *cpu), Arithmetic::BACKEND),
        Backend::CpuLinear(cpu) => (from_hidden(fixture, logits, &options, *cpu), Arithmetic::BACKEND),
        #[cfg(feature = "cuda")]
        Backend::Cuda(cuda) => (crate::comparison_cuda::computed(fixture, values, cuda), Arithmetic::CUDA),
        Backend::Reference => (on_reference(fixture, logits, &options, &exact), Arithmetic::reference(fixture.vocab)),
    };
    let bounds = StepBounds::new(fixture, &options, &exact, arithmetic);
    let alone = objective_alone(fixture, backend);
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
    errors.push(against_gradient(fixture, logits, &options, &exact, &bounds, backend, &computed.gradient));
    errors.extend(against_groups(
        ["group loss, stage alone", "loss, stage alone", "sequence gradient, stage alone"],
        &alone,
        fixture,
        &alone_bounds,
    ));
    Ok(errors)
}

fn on_cpu<T: Element>(fixture: &Fixture, logits: Logits<'_, T>, options: &LossOptions, cpu: Cpu) -> Computed {
    let (targets, options) = (&fixture.targets, options.logits());
    let forward = |outputs: TokenLogProbs<'_>| cpu.token_log_probs(logits, targets, &options, outputs);
    let backward = |saved: SavedRows<'_>, upstream: RowGradients<'_>| {
        let mut gradient = vec![T::from_f32(f32::NAN); targets.len() * fixture.vocab];
        let out = LogitsMut::new(&mut gradient, fixture.vocab)?;
        cpu.token_log_probs_backward(logits, targets, &options, saved, upstream, out)?;
        Ok(gradient.iter().map(|value| f64::from(value.to_f32())).collect())
    };
    stages_on_cpu(fixture, cpu, forward, backward)
}

/// The logits as products that are exact: half of each, times twice the identity. Half of −inf is the lowest f32, which
/// twice is −inf again, so that no 0 · −inf comes into being. The gradient of half a logit is twice that of the logit.
fn from_hidden<T: Element>(fixture: &Fixture, logits: Logits<'_, T>, options: &LossOptions, cpu: Cpu) -> Computed {
    let (targets, options, vocab) = (&fixture.targets, options.logits(), fixture.vocab);
    let half = |x: f32| if x == f32::NEG_INFINITY { f32::MIN } else { x * 0.5 };
    let rows = (0..logits.rows()).flat_map(|row| logits.row(row));
    let hidden: Vec<f32> = rows.map(|x| half(x.to_f32())).collect();
    let weight: Vec<f32> = (0..vocab * vocab).map(|i| if i / vocab == i % vocab { 2.0 } else { 0.0 }).collect();
    let hidden = Matrix::new(&hidden, vocab).expect("rows");
    let head = Head::new(Matrix::new(&weight, vocab).expect("rows")).expect("a head");
    let forward = |outputs: TokenLogProbs<'_>| cpu.linear_token_log_probs(hidden, &head, targets, &options, outputs);
    let backward = |saved: SavedRows<'_>, upstream: RowGradients<'_>| {
        let mut gradient = vec![f32::NAN; targets.len() * vocab];
        let gradients = LinearGradients::<f32, f32>::new(Some(MatrixMut::new(&mut gradient, vocab)?), None);
        cpu.linear_token_log_probs_backward(hidden, &head, targets, &options, saved, upstream, gradients)?;
        Ok(gradient.iter().map(|value| f64::from(*value) * 0.5).collect())
    };
    stages_on_cpu(fixture, cpu, forward, backward)
}

/// The stages in order, `forward` and `backward` the first one's.
fn stages_on_cpu(
    fixture: &Fixture,
    cpu: Cpu,
    forward: impl FnOnce(TokenLogProbs<'_>) -> Result<()>,
    backward: impl FnOnce(SavedRows<'_>, RowGradients<'_>) -> Result<Vec<f64>>,
) -> Computed {
    let rows = fixture.targets.len();
    let (mut log_probs, mut entropies) = (vec![0.0; rows], vec![0.0; rows]);
    let mut states = vec![SoftmaxState::default(); rows];
    let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: Some(&mut entropies) };
    forward(outputs).expect("token log-probs");

    let mut log_ratios = vec![0.0; fixture.batch.sequences()];
    let reference = Reference::PerToken(&fixture.reference);
    cpu.log_ratios(&log_probs, &fixture.targets, reference, &fixture.batch, LogRatio::Sum, &mut log_ratios)
        .expect("log-ratios");
    let groups = objective_on_cpu(fixture, &log_ratios, cpu);

    let mut row_gradients = vec![0.0; rows];
    for (sequence, range) in fixture.batch.sequence_offsets().windows(2).enumerate() {
        row_gradients[range[0]..range[1]].fill(groups.coefficients[sequence] as f32);
    }
    let saved = SavedRows { states: &states, entropies: None };
    let gradient = backward(saved, RowGradients { log_probs: &row_gradients, entropies: None });
    let gradient = gradient.expect("token log-probs, backward");

    let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect();
    let of_row = |row: &usize| gradient[row * fixture.vocab..(row + 1) * fixture.vocab].iter().copied();
    Computed {
        log_probs: wide(&log_probs),
        log_sum_exps: (0..rows)
            .map(|row| if fixture.targets[row] < 0 { 0.0 } else { states[row].log_sum_exp() })
            .collect(),
        entropies: wide(&entropies),
        log_ratios,
        groups,
        gradient: fixture.gradient.rows.iter().flat_map(of_row).collect(),
    }
}

fn on_reference<T: Element>(fixture: &Fixture, logits: Logits<'_, T>, options: &LossOptions, step: &Step) -> Computed {
    let rows = &fixture.gradient.rows;
    Computed {
        log_probs: step.rows.iter().map(|row| row.log_prob).collect(),
        log_sum_exps: step.rows.iter().map(|row| row.log_sum_exp).collect(),
        entropies: step.rows.iter().map(|row| row.entropy).collect(),
        log_ratios: step.log_ratios.clone(),
        groups: Groups {
            losses: step.groups.iter().map(|group| group.loss).collect(),
            loss: step.loss,
            coefficients: step.coefficients.clone(),
        },
        gradient: rows.iter().flat_map(|&row| step.grad_logits(options, logits, &fixture.targets, row)).collect(),
    }
}

fn objective_on_cpu(fixture: &Fixture, log_ratios: &[f64], cpu: Cpu) -> Groups {
    let batch = &fixture.batch;
    let (mut losses, mut coefficients) = (vec![0.0; batch.groups()], vec![0.0; batch.sequences()]);
    let mut statistics = vec![GroupStatistics::default(); batch.groups()];
    cpu.objective(
        &fixture.options.objective(),
        ObjectiveInputs { log_ratios, batch, rewards: fixture.rewards.as_slice().into() },
        Reduction::Mean,
        ObjectiveOutputs { group_losses: &mut losses, coefficients: &mut coefficients, statistics: &mut statistics },
    )
    .expect("objective");
    let loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    Groups { losses, loss, coefficients }
}

/// The K-sample stage, fed with the expected log-ratios.
fn objective_alone(fixture: &Fixture, backend: &Backend) -> Groups {
    match backend {
        Backend::Cpu(cpu) | Backend::CpuLinear(cpu) => objective_on_cpu(fixture, &fixture.log_ratios, *cpu),
        #[cfg(feature = "cuda")]
        Backend::Cuda(cuda) => crate::comparison_cuda::objective(fixture, &fixture.log_ratios, cuda),
        Backend::Reference => {
            let weight = 1.0 / fixture.batch.groups().max(1) as f64;
            let groups = exact_groups(fixture);
            let losses: Vec<f64> = groups.iter().map(|group| group.loss).collect();
            let beta = fixture.options.objective().beta_policy();
            Groups {
                loss: losses.iter().sum::<f64>() * weight,
                losses,
                coefficients: groups.iter().flat_map(|group| &group.gradient).map(|g| g * beta * weight).collect(),
            }
        }
    }
}

fn group_rewards(fixture: &Fixture) -> Vec<(std::ops::Range<usize>, Vec<f64>)> {
    let offsets = fixture.batch.group_offsets();
    let ranges = offsets.windows(2).map(|pair| pair[0]..pair[1]);
    ranges.map(|range| (range.clone(), range.map(|i| f64::from(fixture.rewards[i])).collect())).collect()
}

fn exact_groups(fixture: &Fixture) -> Vec<objective::GroupLoss> {
    let groups = group_rewards(fixture).into_iter();
    groups
        .map(|(range, rewards)| {
            let none = vec![0.0; rewards.len()];
            objective::group_loss(&fixture.options.objective(), &fixture.log_ratios[range], &rewards, &none)
        })
        .collect()
}

/// Bounds of each group, for log-ratios (the expected ones) that are off by at most these, one per sequence.
fn group_bounds(fixture: &Fixture, log_ratio_bounds: &[f64]) -> Vec<GroupBounds> {
    let groups = group_rewards(fixture).into_iter().zip(exact_groups(fixture));
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
    logits: Logits<'_, T>,
    options: &LossOptions,
    exact: &Step,
    bounds: &StepBounds,
    backend: &Backend,
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
            let stored = match backend {
                Backend::Reference => 0.0,
                _ => bounds::rounding(value.abs() + unrounded, T::UNIT_ROUNDOFF, T::SMALLEST),
            };
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
