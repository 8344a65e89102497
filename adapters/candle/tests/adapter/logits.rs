//! What the candle adapter does, on any device: a gradient reaches the logits and is the reference's; what cannot have
//! one is refused.

use exo_kernels::reference::bounds::{self, Arithmetic};
use exo_kernels::reference::{preference_loss as reference_loss, token_log_prob};
use exo_kernels::{Batch, Betas, Element, LogitOptions, LossOptions, Matrix, Objective, Reference};
use exo_kernels_candle::candle_core::{self, DType, Device, Tensor, Var};
use exo_kernels_candle::{preference_loss, token_log_probs, token_log_probs_and_entropies};
use half::{bf16, f16};

const ROWS: usize = 6;
const VOCAB: usize = 41;
const TARGETS: [i64; ROWS] = [0, 40, -100, 7, 7, 13];

fn values() -> Vec<f32> {
    (0..ROWS * VOCAB).map(|i| ((i * 7919) % 512) as f32 / 64.0 - 4.0).collect()
}

fn logit_options() -> LogitOptions {
    LogitOptions::default().with_temperature(0.8).expect("valid")
}

/// Where the cases run, and how exact that is.
pub(crate) struct Setting {
    pub(crate) device: Device,
    pub(crate) arithmetic: Arithmetic,
}

impl Setting {
    fn variable(&self, dtype: DType) -> Var {
        let logits = Tensor::from_vec(values(), (ROWS, VOCAB), &Device::Cpu).expect("a tensor");
        let logits = logits.to_dtype(dtype).and_then(|logits| logits.to_device(&self.device));
        Var::from_tensor(&logits.expect("cast")).expect("a variable")
    }

    fn targets(&self) -> Tensor {
        Tensor::new(&TARGETS, &self.device).expect("a tensor")
    }

    /// Of the gradient `expected` of one row, rounded to its type.
    fn gradient_bounds<T: Element>(&self, row: usize, weight: f64, expected: &[f64]) -> Vec<f64> {
        let Ok(target) = usize::try_from(TARGETS[row]) else { return vec![0.0; VOCAB] };
        let (logits, options) = (stored_row::<T>(row), logit_options());
        let exact = token_log_prob::forward(&logits, target, &options);
        let bound = bounds::row(self.arithmetic, &exact, &options);
        let scaled = token_log_prob::scaled_logits(&logits, &options);
        let of = |column: usize| {
            let (logit, log_p) = (f64::from(logits[column].to_f32()), scaled[column] - exact.log_sum_exp);
            let unrounded = bound.grad_logit(expected[column], logit, log_p, weight, 0.0);
            unrounded + bounds::rounding(expected[column].abs() + unrounded, T::UNIT_ROUNDOFF, T::SMALLEST)
        };
        (0..VOCAB).map(of).collect()
    }
}

/// The values of a tensor, brought to the host before they are widened.
pub(crate) fn wide(tensor: &Tensor) -> Vec<f64> {
    let host = tensor.to_device(&Device::Cpu).and_then(|tensor| tensor.to_dtype(DType::F64));
    host.and_then(|host| host.flatten_all()).and_then(|flat| flat.to_vec1()).expect("values")
}

fn stored_row<T: Element>(row: usize) -> Vec<T> {
    values()[row * VOCAB..(row + 1) * VOCAB].iter().map(|&x| T::from_f32(x)).collect()
}

/// The gradient of one row through Σ w_i·log p_i + v_i·H_i.
fn expected_row<T: Element>(row: usize, w: f64, v: f64) -> Vec<f64> {
    match usize::try_from(TARGETS[row]) {
        Ok(target) => token_log_prob::backward(&stored_row::<T>(row), target, &logit_options(), w, v),
        Err(_) => vec![0.0; VOCAB],
    }
}

fn assert_close(computed: &[f64], expected: &[f64], unit_roundoff: f64, what: &str) {
    assert_eq!(computed.len(), expected.len(), "{what}");
    for (computed, expected) in computed.iter().zip(expected) {
        // f32's errors are below 1e-5 of a gradient of order 1; then one rounding to the tensor's type.
        let bound = 1e-5 + unit_roundoff * expected.abs();
        assert!((computed - expected).abs() <= bound, "{what}: {computed} vs {expected}");
    }
}

fn token_gradient<T: Element>(setting: &Setting, dtype: DType) {
    let logits = setting.variable(dtype);
    let weights = [0.5f32, -1.0, 3.0, 0.25, 1.0, -0.5];
    let log_probs = token_log_probs(logits.as_tensor(), &setting.targets(), &logit_options()).expect("forward");
    assert_eq!((log_probs.dims(), log_probs.dtype()), (&[ROWS][..], DType::F32));
    for (row, log_prob) in wide(&log_probs).into_iter().enumerate() {
        let (expected, bound) = match usize::try_from(TARGETS[row]) {
            Ok(target) => {
                let exact = token_log_prob::forward(&stored_row::<T>(row), target, &logit_options());
                (exact.log_prob, bounds::row(setting.arithmetic, &exact, &logit_options()).log_prob)
            }
            Err(_) => (0.0, 0.0),
        };
        assert!((log_prob - expected).abs() <= bound, "{dtype:?}, row {row}: {log_prob} vs {expected}");
    }
    let weighted = (log_probs * Tensor::new(&weights, &setting.device).expect("weights")).expect("product");
    let gradients = weighted.sum_all().expect("sum").backward().expect("backward");
    let gradient = gradients.get(&logits).expect("a gradient reaches the logits");
    assert_eq!((gradient.dims(), gradient.dtype()), (&[ROWS, VOCAB][..], dtype));
    assert!(gradient.device().same_device(&setting.device), "the gradient is on {:?}", gradient.device());
    let computed = wide(gradient);
    assert!(computed.iter().any(|value| value.abs() > 0.1));
    for (row, computed) in computed.chunks(VOCAB).enumerate() {
        let weight = f64::from(weights[row]);
        let expected = expected_row::<T>(row, weight, 0.0);
        let limits = setting.gradient_bounds::<T>(row, weight, &expected);
        for ((computed, expected), limit) in computed.iter().zip(&expected).zip(limits) {
            assert!((computed - expected).abs() <= limit, "{dtype:?}, row {row}: {computed} vs {expected}");
        }
    }
}

pub(crate) fn gradient_of_token_log_probs_is_the_references(setting: &Setting) {
    token_gradient::<f32>(setting, DType::F32);
    token_gradient::<f16>(setting, DType::F16);
    token_gradient::<bf16>(setting, DType::BF16);
}

pub(crate) fn gradient_of_entropies_is_the_references(setting: &Setting) {
    let logits = setting.variable(DType::F32);
    let (log_probs, entropies) =
        token_log_probs_and_entropies(logits.as_tensor(), &setting.targets(), &logit_options()).expect("forward");
    let loss =
        (log_probs.sum_all().expect("sum") + (entropies.sum_all().expect("sum") * 0.25).expect("scale")).expect("sum");
    let gradients = loss.backward().expect("backward");
    let expected: Vec<f64> = (0..ROWS).flat_map(|row| expected_row::<f32>(row, 1.0, 0.25)).collect();
    assert_close(&wide(gradients.get(&logits).expect("a gradient")), &expected, 0.0, "entropy");
}

fn loss_gradient<T: Element>(setting: &Setting, dtype: DType) {
    let logits = setting.variable(dtype);
    let batch = Batch::new(&[0, 2, 4, 6], &[0, 3]).expect("valid");
    let rewards = [0.9f32, -0.3, 0.2];
    let options = LossOptions::from(Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid"))
        .with_logits(logit_options());
    let (loss, report) =
        preference_loss(logits.as_tensor(), &setting.targets(), &batch, Reference::None, &rewards, options)
            .expect("forward");

    let stored: Vec<T> = values().iter().map(|&x| T::from_f32(x)).collect();
    let view = Matrix::new(&stored, VOCAB).expect("rows");
    let exact = reference_loss::forward(&options, &view, &TARGETS, &batch, &Reference::None, &rewards)
        .expect("inputs that fit");
    assert_close(&[f64::from(loss.to_scalar::<f32>().expect("a scalar"))], &[exact.loss], 0.0, "loss");
    assert_close(&[report.check().expect("finite").loss], &[exact.loss], 0.0, "report");
    // Upstream of 3: whatever the trainer does to the loss comes back.
    let gradients = (loss * 3.0).expect("scale").backward().expect("backward");
    let expected: Vec<f64> =
        (0..ROWS).flat_map(|row| exact.grad_logits(&options, &view, &TARGETS, row)).map(|g| 3.0 * g).collect();
    assert!(expected.iter().any(|value| value.abs() > 0.1));
    assert_close(
        &wide(gradients.get(&logits).expect("a gradient")),
        &expected,
        T::UNIT_ROUNDOFF,
        &format!("{dtype:?}"),
    );
}

pub(crate) fn gradient_of_the_preference_loss_is_the_references(setting: &Setting) {
    loss_gradient::<f32>(setting, DType::F32);
    loss_gradient::<f16>(setting, DType::F16);
    loss_gradient::<bf16>(setting, DType::BF16);
}

/// A gradient in the layout of its variable, as `[N, V]`.
type Rows = fn(&Tensor) -> candle_core::Result<Tensor>;

pub(crate) fn layouts_of_all_kinds(setting: &Setting) {
    let dense = setting.variable(DType::F32);
    let on_host = Tensor::new(&TARGETS, &Device::Cpu).expect("targets");
    let pairs = Tensor::stack(&[setting.targets(), setting.targets()], 1).expect("stack");
    let padded = Tensor::zeros((ROWS, 9), DType::F32, &setting.device).expect("padding");
    let padded = Var::from_tensor(&Tensor::cat(&[dense.as_tensor(), &padded], 1).expect("cat")).expect("a variable");
    let transposed = Var::from_tensor(&dense.t().and_then(|t| t.contiguous()).expect("transpose")).expect("a variable");
    let above = Tensor::zeros((2, VOCAB), DType::F32, &setting.device).expect("rows");
    let inside =
        Var::from_tensor(&Tensor::cat(&[&above, dense.as_tensor(), &above], 0).expect("cat")).expect("a variable");
    let around = Tensor::new(&[1i64, 2], &setting.device).expect("targets");
    let around = Tensor::cat(&[&around, &setting.targets(), &around], 0).expect("cat");
    let as_it_is: Rows = |gradient| Ok(gradient.clone());
    // [B, T, V] out of a padded vocabulary, and out of a padded sequence too, whose rows have no one stride.
    let shaped = |targets: Tensor, shape: &[usize]| targets.reshape(shape).expect("reshape");
    let cube = Tensor::zeros((ROWS, 9), DType::F32, &setting.device).expect("padding");
    let cube = Tensor::cat(&[dense.as_tensor(), &cube], 1).and_then(|cube| cube.reshape((2, 3, VOCAB + 9)));
    let cube = Var::from_tensor(&cube.expect("reshape")).expect("a variable");
    let longer = Tensor::zeros((2, 2, VOCAB + 9), DType::F32, &setting.device).expect("padding");
    let longer = Var::from_tensor(&Tensor::cat(&[cube.as_tensor(), &longer], 1).expect("cat")).expect("a variable");
    // [T, B, V] with the batch in front, and the vocabulary in front.
    let time_first = dense.reshape((2, 3, VOCAB)).and_then(|cube| cube.transpose(0, 1)?.contiguous());
    let time_first = Var::from_tensor(&time_first.expect("transpose")).expect("a variable");
    let vocabulary_first = dense.t().and_then(|t| t.reshape((VOCAB, 2, 3))?.contiguous()).expect("transpose");
    let vocabulary_first = Var::from_tensor(&vocabulary_first).expect("a variable");
    let layouts: [(&str, &Var, Tensor, Tensor, Rows); 13] = [
        (
            "[B, T, V] of a padded vocabulary",
            &cube,
            cube.narrow(2, 0, VOCAB).expect("narrow"),
            shaped(setting.targets(), &[2, 3]),
            |gradient| gradient.narrow(2, 0, VOCAB),
        ),
        (
            "[B, 1, T, V] of a padded vocabulary",
            &cube,
            cube.narrow(2, 0, VOCAB).and_then(|rows| rows.unsqueeze(1)).expect("narrow"),
            shaped(setting.targets(), &[2, 1, 3]),
            |gradient| gradient.narrow(2, 0, VOCAB),
        ),
        (
            "[B, T, V] of a padded vocabulary and longer sequences",
            &longer,
            longer.narrow(2, 0, VOCAB).and_then(|rows| rows.narrow(1, 0, 3)).expect("narrow"),
            shaped(setting.targets(), &[2, 3]),
            |gradient| gradient.narrow(1, 0, 3)?.narrow(2, 0, VOCAB),
        ),
        (
            "[B, T, V] of [T, B, V]",
            &time_first,
            time_first.transpose(0, 1).expect("transpose"),
            shaped(setting.targets(), &[2, 3]),
            |gradient| gradient.transpose(0, 1),
        ),
        (
            "[B, T, V] of [V, B, T]",
            &vocabulary_first,
            vocabulary_first.permute((1, 2, 0)).expect("permute"),
            shaped(setting.targets(), &[2, 3]),
            |gradient| gradient.permute((1, 2, 0)),
        ),
        ("dense", &dense, dense.as_tensor().clone(), setting.targets(), as_it_is),
        ("padded vocabulary", &padded, padded.narrow(1, 0, VOCAB).expect("narrow"), setting.targets(), |gradient| {
            gradient.narrow(1, 0, VOCAB)
        }),
        (
            "rows of a larger tensor",
            &inside,
            inside.narrow(0, 2, ROWS).expect("narrow"),
            around.narrow(0, 2, ROWS).expect("narrow"),
            |gradient| gradient.narrow(0, 2, ROWS),
        ),
        ("transposed", &transposed, transposed.t().expect("transpose"), setting.targets(), Tensor::t),
        (
            "[B, T, V]",
            &dense,
            dense.reshape((2, 3, VOCAB)).expect("reshape"),
            setting.targets().reshape((2, 3)).expect("reshape"),
            as_it_is,
        ),
        (
            "u32 targets",
            &dense,
            dense.as_tensor().clone(),
            Tensor::new(&TARGETS.map(|id| id as u32), &setting.device).expect("targets"),
            as_it_is,
        ),
        ("targets on the host", &dense, dense.as_tensor().clone(), on_host, as_it_is),
        ("strided targets", &dense, dense.as_tensor().clone(), pairs.get_on_dim(1, 1).expect("a column"), as_it_is),
    ];
    let mut expected: Option<(Vec<f64>, Vec<f64>)> = None;
    for (name, variable, logits, targets, rows) in layouts {
        let log_probs = token_log_probs(&logits, &targets, &logit_options()).expect(name);
        assert_eq!(log_probs.dims(), targets.dims(), "{name}");
        let gradients = log_probs.sum_all().expect("sum").backward().expect("backward");
        let gradient = rows(gradients.get(variable).expect(name)).expect(name);
        let found = (wide(&log_probs), wide(&gradient));
        assert!(found.1.iter().any(|value| value.abs() > 0.1), "{name}: no gradient");
        assert_eq!(&found, expected.get_or_insert_with(|| found.clone()), "{name}");
    }
}

/// One row: in no leading dimension, in several, and for all of a batch.
pub(crate) fn one_row_in_any_layout(setting: &Setting) {
    let dense = setting.variable(DType::F32);
    let target = |shape: &[usize]| Tensor::full(7i64, shape, &setting.device).expect("a target");
    let gradient_of = |logits: &Tensor, targets: &Tensor| {
        let log_probs = token_log_probs(logits, targets, &logit_options()).expect("forward");
        assert_eq!(log_probs.dims(), targets.dims());
        // candle's sum of a scalar fails on CUDA, where it brings its shape, of no length, to the device.
        let sum = if log_probs.rank() == 0 { Ok(log_probs.clone()) } else { log_probs.sum_all() };
        let gradients = sum.and_then(|sum| sum.backward()).expect("backward");
        let gradient = gradients.get(&dense).and_then(|gradient| gradient.narrow(0, 4, 1).ok()).expect("a gradient");
        (wide(&log_probs), wide(&gradient))
    };
    let row = dense.narrow(0, 4, 1).expect("narrow");
    let (log_prob, gradient) = gradient_of(&row, &target(&[1]));
    assert!(gradient.iter().any(|value| value.abs() > 0.1));
    let vector = dense.get(4).expect("a row");
    assert_eq!(gradient_of(&vector, &target(&[])), (log_prob.clone(), gradient.clone()), "[V]");
    let shaped = row.unsqueeze(0).and_then(|row| row.unsqueeze(0)).expect("a shape");
    assert_eq!(gradient_of(&shaped, &target(&[1, 1, 1])), (log_prob.clone(), gradient.clone()), "[1, 1, 1, V]");
    // A column of the transposed, then turned: a row whose stride is below its length.
    let turned = dense.t().and_then(|t| t.narrow(1, 4, 1)?.contiguous()?.t()).expect("transpose");
    assert_eq!(gradient_of(&turned, &target(&[1])), (log_prob.clone(), gradient.clone()), "[V, 1] turned");
    let broadcast = row.broadcast_as((4, VOCAB)).expect("broadcast");
    let (log_probs, summed) = gradient_of(&broadcast, &target(&[4]));
    assert_eq!(log_probs, [log_prob[0]; 4], "broadcast");
    for (summed, one) in summed.iter().zip(&gradient) {
        assert!((summed - 4.0 * one).abs() <= 1e-6 * one.abs(), "broadcast: {summed}, not 4 × {one}");
    }
}

pub(crate) fn what_cannot_be_done_is_refused(setting: &Setting) {
    let logits = setting.variable(DType::F32);
    let message = |result: candle_core::Result<Tensor>| result.expect_err("refused").to_string();
    for (dtype, name) in [(DType::F64, "F64"), (DType::U32, "U32")] {
        let logits = logits.to_dtype(dtype).expect("cast");
        let message = message(token_log_probs(&logits, &setting.targets(), &logit_options()));
        assert!(message.contains(name) && message.contains("f32, f16 or bf16"), "{message}");
    }
    let floats = setting.targets().to_dtype(DType::F32).expect("cast");
    assert!(message(token_log_probs(&logits, &floats, &logit_options())).contains("u32 or i64"));
    let fewer = setting.targets().narrow(0, 0, 5).expect("narrow");
    assert!(message(token_log_probs(&logits, &fewer, &logit_options())).contains("targets: shape [5]"));
    // On the host: ids that lie on a GPU are not looked at.
    let beyond = Tensor::new(&[0i64, 0, 0, 41, 0, 0], &Device::Cpu).expect("targets");
    assert!(message(token_log_probs(&logits, &beyond, &logit_options())).contains("target of row 3: 41 given"));
    let batch = Batch::padded(2, 2, 2).expect("valid");
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid");
    let refused = preference_loss(&logits, &setting.targets(), &batch, Reference::None, &[0.0f32, 1.0], objective);
    assert!(refused.expect_err("refused").to_string().contains("the last offset is 4, 6 expected"));
}

/// A micro-batch in which nothing was sampled.
pub(crate) fn no_rows(setting: &Setting) {
    let logits = setting.variable(DType::F32).narrow(0, 0, 0).expect("narrow");
    for device in [&setting.device, &Device::Cpu] {
        let targets = Tensor::new(&TARGETS, device).and_then(|targets| targets.narrow(0, 0, 0)).expect("targets");
        let log_probs = token_log_probs(&logits, &targets, &logit_options()).expect("forward");
        assert_eq!(log_probs.dims(), [0]);
        let (log_probs, entropies) =
            token_log_probs_and_entropies(&logits, &targets, &logit_options()).expect("forward");
        assert_eq!((log_probs.dims(), entropies.dims()), (&[0][..], &[0][..]));
        let batch = Batch::new(&[0], &[0]).expect("valid");
        let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid");
        let nothing: [f32; 0] = [];
        let (loss, report) =
            preference_loss(&logits, &targets, &batch, Reference::None, &nothing, objective).expect("forward");
        assert_eq!((loss.to_scalar::<f32>().expect("a scalar"), report.loss), (0.0, 0.0));
    }
}
