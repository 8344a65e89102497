//! The operations on CPU tensors.

use crate::candle::row_layout::RowLayout;
use crate::candle::{LossInputs, result_shape};
use crate::cpu::Cpu;
use crate::data::batch::Batch;
use crate::data::logits::{Logits, LogitsMut};
use crate::data::reference::Reference;
use crate::data::rewards::Rewards;
use crate::element::Element;
use crate::forward_pass::ForwardPass;
use crate::loss::PreferenceLoss;
use crate::options::{LogitOptions, LossOptions};
use crate::report::Report;
use crate::stage::token_log_prob::{RowGradients, SavedRows, SoftmaxState, TokenLogProbs};
use candle_core::{
    CpuStorage, CustomOp1, DType, Device, Error, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};
use half::{bf16, f16};

/// `[N]`, or `[2, N]` with the entropies, of logits `[.., V]`.
pub(super) fn token_log_probs(
    logits: &Tensor,
    targets: &Tensor,
    options: &LogitOptions,
    entropy: bool,
) -> Result<Tensor> {
    let targets = target_ids(targets)?;
    let rows = targets.len();
    let mut op = TokenLogProbOp {
        targets,
        options: *options,
        entropy,
        states: vec![SoftmaxState::default(); rows],
        values: vec![0.0; if entropy { 2 * rows } else { rows }],
    };
    with_logits(logits, TokenForward { op: &mut op })?;
    logits.apply_op1(op)
}

/// The loss of logits `[.., V]`, and its report.
pub(super) fn preference_loss(
    logits: &Tensor,
    inputs: LossInputs<'_>,
    options: LossOptions,
) -> Result<(Tensor, Report)> {
    let LossInputs { targets, batch, reference, rewards } = inputs;
    let targets = target_ids(targets)?;
    let mut loss = PreferenceLoss::new(Cpu::default(), options);
    with_logits(logits, LossForward { loss: &mut loss, targets: &targets, batch, reference, rewards })?;
    let (pass, report) = finished(loss)?;
    Ok((logits.apply_op1(LossOp { value: report.loss as f32, pass })?, report))
}

/// The forward pass of a loss that has made one, and its report.
pub(super) fn finished(loss: PreferenceLoss<Cpu>) -> Result<(ForwardPass, Report)> {
    loss.into_forward_pass().ok_or_else(|| Error::wrap(crate::error::Error::NoForward))
}

/// The ids of a CPU tensor in any layout.
pub(super) fn target_ids(targets: &Tensor) -> Result<Vec<i64>> {
    if !targets.device().is_cpu() {
        bail!("targets: a tensor on {:?} given, the CPU expected", targets.device().location());
    }
    let flat = targets.flatten_all()?;
    match flat.dtype() {
        DType::I64 => flat.to_vec1::<i64>(),
        // As an i32, so that -100i32 as u32 masks a row.
        DType::U32 => Ok(flat.to_vec1::<u32>()?.into_iter().map(|id| i64::from(id as i32)).collect()),
        dtype => bail!("targets: dtype {dtype:?} given, u32 or i64 expected"),
    }
}

/// What is done with logits once their element type is known.
trait WithLogits {
    type Output;

    fn run<T: Element + WithDType>(self, logits: Logits<'_, T>) -> crate::error::Result<Self::Output>;
}

/// Runs on the logits of a CPU tensor whose rows lie at one stride; refuses every other dtype.
fn with_logits<W: WithLogits>(logits: &Tensor, run: W) -> Result<W::Output> {
    let (storage, layout) = logits.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("logits: a tensor on {:?} given, the CPU expected", logits.device().location());
    };
    let layout = RowLayout::of_operand("logits", layout)?;
    match storage {
        CpuStorage::F32(data) => view(data, layout).and_then(|logits| run.run::<f32>(logits)),
        CpuStorage::F16(data) => view(data, layout).and_then(|logits| run.run::<f16>(logits)),
        CpuStorage::BF16(data) => view(data, layout).and_then(|logits| run.run::<bf16>(logits)),
        _ => bail!("logits: dtype {:?} given, f32, f16 or bf16 expected", logits.dtype()),
    }
    .map_err(Error::wrap)
}

fn view<T: Element>(data: &[T], layout: RowLayout) -> crate::error::Result<Logits<'_, T>> {
    Logits::strided(&data[layout.start..], layout.rows, layout.columns, layout.stride)
}

struct TokenForward<'a> {
    op: &'a mut TokenLogProbOp,
}

impl WithLogits for TokenForward<'_> {
    type Output = ();

    fn run<T: Element + WithDType>(self, logits: Logits<'_, T>) -> crate::error::Result<()> {
        let TokenLogProbOp { targets, options, entropy: _, states, values } = self.op;
        let (log_probs, entropies) = values.split_at_mut(targets.len());
        let entropies = (!entropies.is_empty()).then_some(entropies);
        Cpu::default().token_log_probs(logits, targets, options, TokenLogProbs { log_probs, states, entropies })
    }
}

/// A finished forward pass: the values, and what the backward pass needs.
struct TokenLogProbOp {
    targets: Vec<i64>,
    options: LogitOptions,
    entropy: bool,
    states: Vec<SoftmaxState>,
    /// Log-probs and, if asked for, entropies behind them.
    values: Vec<f32>,
}

impl CustomOp1 for TokenLogProbOp {
    fn name(&self) -> &'static str {
        "exo-token-log-probs"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.values.clone()), result_shape(self.targets.len(), self.entropy)))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let upstream = upstream.flatten_all()?.to_vec1::<f32>()?;
        with_logits(logits, TokenBackward { op: self, upstream: &upstream, shape: logits.shape() })?.map(Some)
    }
}

struct TokenBackward<'a> {
    op: &'a TokenLogProbOp,
    upstream: &'a [f32],
    /// Of the logits' tensor.
    shape: &'a Shape,
}

impl WithLogits for TokenBackward<'_> {
    type Output = Result<Tensor>;

    fn run<T: Element + WithDType>(self, logits: Logits<'_, T>) -> crate::error::Result<Result<Tensor>> {
        let op = self.op;
        let (log_probs, entropies) = self.upstream.split_at(op.targets.len());
        let (_, kept) = op.values.split_at(op.targets.len());
        let saved = SavedRows { states: &op.states, entropies: (!kept.is_empty()).then_some(kept) };
        let gradients = RowGradients { log_probs, entropies: (!entropies.is_empty()).then_some(entropies) };
        gradient(logits, self.shape, |logits, grad| {
            Cpu::default().token_log_probs_backward(logits, &op.targets, &op.options, saved, gradients, grad)
        })
    }
}

struct LossForward<'a> {
    loss: &'a mut PreferenceLoss<Cpu>,
    targets: &'a [i64],
    batch: &'a Batch,
    reference: Reference<'a>,
    rewards: Rewards<'a>,
}

impl WithLogits for LossForward<'_> {
    type Output = ();

    fn run<T: Element + WithDType>(self, logits: Logits<'_, T>) -> crate::error::Result<()> {
        // The step ties a backward pass of the loss to this pass; here the pass itself is taken out.
        self.loss.forward(logits, self.targets, self.batch, self.reference, self.rewards).map(drop)
    }
}

/// A finished forward pass, its value, and what the backward pass needs. Nothing in it changes, so that nothing is locked
/// while rayon works: a thread that waits for a part of its work takes up other work, perhaps of this very operation.
struct LossOp {
    value: f32,
    pass: ForwardPass,
}

impl CustomOp1 for LossOp {
    fn name(&self) -> &'static str {
        "exo-preference-loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let row_gradients = self.pass.row_gradients(f64::from(upstream.to_vec0::<f32>()?));
        let backward = LossBackward { pass: &self.pass, row_gradients: &row_gradients, shape: logits.shape() };
        with_logits(logits, backward)?.map(Some)
    }
}

struct LossBackward<'a> {
    pass: &'a ForwardPass,
    row_gradients: &'a [f32],
    /// Of the logits' tensor.
    shape: &'a Shape,
}

impl WithLogits for LossBackward<'_> {
    type Output = Result<Tensor>;

    fn run<T: Element + WithDType>(self, logits: Logits<'_, T>) -> crate::error::Result<Result<Tensor>> {
        let ForwardPass { backend, options, targets, .. } = self.pass;
        let (saved, gradients) = self.pass.for_backward(self.row_gradients);
        gradient(logits, self.shape, |logits, grad| {
            backend.token_log_probs_backward(logits, targets, options, saved, gradients, grad)
        })
    }
}

/// A new tensor of `shape` that `write` fills with the gradient of the logits, `[N, V]`.
fn gradient<T: Element + WithDType>(
    logits: Logits<'_, T>,
    shape: &Shape,
    write: impl FnOnce(Logits<'_, T>, LogitsMut<'_, T>) -> crate::error::Result<()>,
) -> crate::error::Result<Result<Tensor>> {
    let (rows, vocab) = (logits.rows(), logits.vocab());
    let mut grad = vec![<T as bytemuck::Zeroable>::zeroed(); rows * vocab];
    write(logits, LogitsMut::new(&mut grad, vocab)?)?;
    Ok(Tensor::from_vec(grad, shape, &Device::Cpu))
}
