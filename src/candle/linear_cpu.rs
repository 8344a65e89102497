//! The operations from hidden states on CPU tensors.

use crate::candle::cpu::{finished, target_ids};
use crate::candle::linear::{Linear, LinearOp, Pass};
use crate::candle::row_layout::RowLayout;
use crate::candle::{LossInputs, result_shape};
use crate::cpu::Cpu;
use crate::data::head::{Head, LinearGradients};
use crate::data::matrix::{Matrix, MatrixMut};
use crate::element::Element;
use crate::forward_pass::ForwardPass;
use crate::loss::PreferenceLoss;
use crate::options::{LogitOptions, LossOptions};
use crate::report::Report;
use crate::stage::token_log_prob::{RowGradients, SavedRows, SoftmaxState, TokenLogProbs};
use candle_core::{CpuStorage, Device, Error, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use half::{bf16, f16};

/// `[N]`, or `[2, N]` with the entropies.
pub(super) fn token_log_probs(
    linear: &Linear,
    targets: &Tensor,
    options: &LogitOptions,
    entropy: bool,
) -> Result<Tensor> {
    let targets = target_ids(targets)?;
    let rows = targets.len();
    let mut pass = TokenLogProbPass {
        targets,
        options: *options,
        states: vec![SoftmaxState::default(); rows],
        log_probs: vec![0.0; rows],
        entropies: vec![0.0; if entropy { rows } else { 0 }],
    };
    with_linear(&linear.hidden, &linear.weight, linear.bias.as_ref(), TokenForward { pass: &mut pass })?;
    let values = [pass.log_probs.as_slice(), pass.entropies.as_slice()].concat();
    LinearOp(Finished { values, shape: result_shape(rows, entropy), way: pass }).apply(linear)
}

/// The loss, and its report.
pub(super) fn preference_loss(
    linear: &Linear,
    inputs: LossInputs<'_>,
    options: LossOptions,
) -> Result<(Tensor, Report)> {
    let targets = target_ids(inputs.targets)?;
    let mut loss = PreferenceLoss::new(Cpu::default(), options);
    let forward = LossForward { loss: &mut loss, targets: &targets, inputs };
    with_linear(&linear.hidden, &linear.weight, linear.bias.as_ref(), forward)?;
    let (way, report) = finished(loss)?;
    let pass = Finished { values: vec![report.loss as f32], shape: Shape::from(()), way };
    Ok((LinearOp(pass).apply(linear)?, report))
}

/// What is done with hidden states and head once their element type is known.
trait WithLinear {
    fn run<T: Element + WithDType>(self, hidden: Matrix<'_, T>, head: &Head<'_, T>) -> Result<()>;
}

/// Runs on CPU tensors of one type whose rows lie at one stride; refuses every other dtype.
fn with_linear(hidden: &Tensor, weight: &Tensor, bias: Option<&Tensor>, run: impl WithLinear) -> Result<()> {
    let (hidden_storage, hidden_layout) = hidden.storage_and_layout();
    let (weight_storage, weight_layout) = weight.storage_and_layout();
    let bias = bias.map(Tensor::storage_and_layout);
    let bias = bias.as_ref().map(|(storage, layout)| (&**storage, *layout));
    let hidden_layout = RowLayout::of_operand("hidden", hidden_layout)?;
    let weight_layout = RowLayout::of_operand("weight", weight_layout)?;
    macro_rules! typed {
        ($variant:ident, $type:ty) => {{
            let (Storage::Cpu(CpuStorage::$variant(hidden)), Storage::Cpu(CpuStorage::$variant(weight))) =
                (&*hidden_storage, &*weight_storage)
            else {
                bail!("weight: another dtype or device than the hidden states'")
            };
            let bias = match bias {
                Some((Storage::Cpu(CpuStorage::$variant(bias)), layout)) => Some(&bias[elements(layout)]),
                Some(_) => bail!("bias: another dtype or device than the hidden states'"),
                None => None,
            };
            let head = matrix::<$type>(weight, weight_layout).and_then(Head::new);
            let head = head.and_then(|head| bias.map_or(Ok(head), |bias| head.with_bias(bias)));
            run.run::<$type>(matrix(hidden, hidden_layout).map_err(Error::wrap)?, &head.map_err(Error::wrap)?)
        }};
    }
    match &*hidden_storage {
        Storage::Cpu(CpuStorage::F32(_)) => typed!(F32, f32),
        Storage::Cpu(CpuStorage::F16(_)) => typed!(F16, f16),
        Storage::Cpu(CpuStorage::BF16(_)) => typed!(BF16, bf16),
        _ => bail!("hidden: dtype {:?} given, f32, f16 or bf16 expected", hidden.dtype()),
    }
}

fn elements(layout: &Layout) -> std::ops::Range<usize> {
    layout.start_offset()..layout.start_offset() + layout.shape().elem_count()
}

fn matrix<T: Element>(data: &[T], layout: RowLayout) -> crate::error::Result<Matrix<'_, T>> {
    Matrix::strided(&data[layout.start..], layout.rows, layout.columns, layout.stride)
}

struct TokenForward<'a> {
    pass: &'a mut TokenLogProbPass,
}

impl WithLinear for TokenForward<'_> {
    fn run<T: Element + WithDType>(self, hidden: Matrix<'_, T>, head: &Head<'_, T>) -> Result<()> {
        let TokenLogProbPass { targets, options, states, log_probs, entropies } = self.pass;
        let entropies = (!entropies.is_empty()).then_some(entropies.as_mut_slice());
        let outputs = TokenLogProbs { log_probs, states, entropies };
        Cpu::default().linear_token_log_probs(hidden, head, targets, options, outputs).map_err(Error::wrap)
    }
}

struct LossForward<'a> {
    loss: &'a mut PreferenceLoss<Cpu>,
    targets: &'a [i64],
    inputs: LossInputs<'a>,
}

impl WithLinear for LossForward<'_> {
    fn run<T: Element + WithDType>(self, hidden: Matrix<'_, T>, head: &Head<'_, T>) -> Result<()> {
        let LossInputs { batch, reference, rewards, .. } = self.inputs;
        let step = self.loss.forward_linear(hidden, head, self.targets, batch, reference, rewards);
        step.map(drop).map_err(Error::wrap)
    }
}

/// A finished forward pass that can go backward.
trait Way: Send + Sync + 'static {
    const NAME: &'static str;

    /// `upstream`: the gradient of the operation's values.
    fn backward<T: Element + WithDType>(
        &self,
        hidden: Matrix<'_, T>,
        head: &Head<'_, T>,
        upstream: &[f32],
        gradients: LinearGradients<'_, T, T>,
    ) -> crate::error::Result<()>;
}

/// What the backward pass of the token log-probs needs.
struct TokenLogProbPass {
    targets: Vec<i64>,
    options: LogitOptions,
    states: Vec<SoftmaxState>,
    log_probs: Vec<f32>,
    /// Empty if not asked for.
    entropies: Vec<f32>,
}

impl Way for TokenLogProbPass {
    const NAME: &'static str = "exo-linear-token-log-probs";

    fn backward<T: Element + WithDType>(
        &self,
        hidden: Matrix<'_, T>,
        head: &Head<'_, T>,
        upstream: &[f32],
        gradients: LinearGradients<'_, T, T>,
    ) -> crate::error::Result<()> {
        let (log_probs, entropies) = upstream.split_at(self.targets.len());
        let entropy = !self.entropies.is_empty();
        let saved = SavedRows { states: &self.states, entropies: entropy.then_some(&self.entropies) };
        let upstream = RowGradients { log_probs, entropies: entropy.then_some(entropies) };
        let (targets, options) = (&self.targets, &self.options);
        Cpu::default().linear_token_log_probs_backward(hidden, head, targets, options, saved, upstream, gradients)
    }
}

/// What the backward pass of the loss needs; nothing is locked, for the reason that `LossOp` of `cpu` has.
impl Way for ForwardPass {
    const NAME: &'static str = "exo-linear-preference-loss";

    fn backward<T: Element + WithDType>(
        &self,
        hidden: Matrix<'_, T>,
        head: &Head<'_, T>,
        upstream: &[f32],
        gradients: LinearGradients<'_, T, T>,
    ) -> crate::error::Result<()> {
        let row_gradients = self.row_gradients(upstream.iter().copied().map(f64::from).sum());
        let (saved, upstream) = self.for_backward(&row_gradients);
        let (targets, options) = (&self.targets, &self.options);
        self.backend.linear_token_log_probs_backward(hidden, head, targets, options, saved, upstream, gradients)
    }
}

/// The values of a finished forward pass, and its way back.
struct Finished<W> {
    values: Vec<f32>,
    shape: Shape,
    way: W,
}

impl<W: Way> Pass for Finished<W> {
    const NAME: &'static str = W::NAME;

    fn cpu_values(&self) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.values.clone()), self.shape.clone()))
    }

    fn gradients(
        &self,
        [hidden, weight]: [&Tensor; 2],
        bias: Option<&Tensor>,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let upstream = upstream.flatten_all()?.to_vec1::<f32>()?;
        let mut gradients = [None, None, None];
        let tensors = [Some(hidden), Some(weight), bias];
        let backward = Backward { way: &self.way, upstream: &upstream, tensors, gradients: &mut gradients };
        with_linear(hidden, weight, bias, backward)?;
        Ok(gradients)
    }
}

struct Backward<'a, W> {
    way: &'a W,
    upstream: &'a [f32],
    /// Hidden states, weight, bias.
    tensors: [Option<&'a Tensor>; 3],
    gradients: &'a mut [Option<Tensor>; 3],
}

impl<W: Way> WithLinear for Backward<'_, W> {
    fn run<T: Element + WithDType>(self, hidden: Matrix<'_, T>, head: &Head<'_, T>) -> Result<()> {
        // Nothing for a frozen tensor, which would otherwise cost a product and a buffer of its size.
        let [mut of_hidden, mut of_weight, mut of_bias] = self.tensors.map(|tensor| {
            let tensor = tensor.filter(|tensor| tensor.track_op())?;
            Some(vec![T::from_f32(0.0); tensor.elem_count()])
        });
        let mut gradients = LinearGradients::new(
            of_hidden.as_mut().map(|gradient| gradient_matrix(gradient, hidden.columns())).transpose()?,
            of_weight.as_mut().map(|gradient| gradient_matrix(gradient, hidden.columns())).transpose()?,
        );
        if let Some(of_bias) = &mut of_bias {
            gradients = gradients.with_bias(of_bias);
        }
        self.way.backward(hidden, head, self.upstream, gradients).map_err(Error::wrap)?;
        for ((slot, gradient), tensor) in
            self.gradients.iter_mut().zip([of_hidden, of_weight, of_bias]).zip(self.tensors)
        {
            if let (Some(gradient), Some(tensor)) = (gradient, tensor) {
                *slot = Some(Tensor::from_vec(gradient, tensor.shape(), &Device::Cpu)?);
            }
        }
        Ok(())
    }
}

fn gradient_matrix<T: Element>(gradient: &mut [T], columns: usize) -> Result<MatrixMut<'_, T>> {
    MatrixMut::new(gradient, columns).map_err(Error::wrap)
}
