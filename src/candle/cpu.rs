//! The operations on CPU tensors.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Error, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use half::{bf16, f16};

use super::{LossInputs, result_shape};
use crate::batch::Batch;
use crate::cpu::Cpu;
use crate::element::Element;
use crate::logits::{LogitOptions, Logits, LogitsMut};
use crate::loss::PreferenceLoss;
use crate::loss_options::LossOptions;
use crate::report::Report;
use crate::stages::{Reference, Rewards, RowGradients, SavedRows, SoftmaxState, TokenLogProbs};
use crate::step::Step;

/// `[N]`, or `[2, N]` with the entropies, of logits `[N, V]`.
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

/// The loss of logits `[N, V]`, and its report.
pub(super) fn preference_loss(
    logits: &Tensor,
    inputs: LossInputs<'_>,
    options: LossOptions,
) -> Result<(Tensor, Report)> {
    let LossInputs { targets, batch, reference, rewards } = inputs;
    let targets = target_ids(targets)?;
    let mut loss = PreferenceLoss::new(Cpu::default(), options);
    let step = with_logits(logits, LossForward { loss: &mut loss, targets: &targets, batch, reference, rewards })?;
    let report = loss.unchecked_report().map_err(Error::wrap)?.clone();
    let value = report.loss as f32;
    Ok((logits.apply_op1(LossOp { value, step, loss: Mutex::new(loss) })?, report))
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

/// Runs on the logits `[N, V]` of a CPU tensor with contiguous columns; refuses every other dtype.
fn with_logits<W: WithLogits>(logits: &Tensor, run: W) -> Result<W::Output> {
    let (storage, layout) = logits.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("logits: a tensor on {:?} given, the CPU expected", logits.device().location());
    };
    match storage {
        CpuStorage::F32(data) => view(data, layout).and_then(|logits| run.run::<f32>(logits)),
        CpuStorage::F16(data) => view(data, layout).and_then(|logits| run.run::<f16>(logits)),
        CpuStorage::BF16(data) => view(data, layout).and_then(|logits| run.run::<bf16>(logits)),
        _ => bail!("logits: dtype {:?} given, f32, f16 or bf16 expected", logits.dtype()),
    }
    .map_err(Error::wrap)
}

fn view<'a, T: Element>(data: &'a [T], layout: &Layout) -> crate::error::Result<Logits<'a, T>> {
    let (rows, vocab) = (layout.dims()[0], layout.dims()[1]);
    Logits::strided(&data[layout.start_offset()..], rows, vocab, layout.stride()[0].max(vocab))
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
        with_logits(logits, TokenBackward { op: self, upstream: &upstream })?.map(Some)
    }
}

struct TokenBackward<'a> {
    op: &'a TokenLogProbOp,
    upstream: &'a [f32],
}

impl WithLogits for TokenBackward<'_> {
    type Output = Result<Tensor>;

    fn run<T: Element + WithDType>(self, logits: Logits<'_, T>) -> crate::error::Result<Result<Tensor>> {
        let op = self.op;
        let (log_probs, entropies) = self.upstream.split_at(op.targets.len());
        let (_, kept) = op.values.split_at(op.targets.len());
        let saved = SavedRows { states: &op.states, entropies: (!kept.is_empty()).then_some(kept) };
        let gradients = RowGradients { log_probs, entropies: (!entropies.is_empty()).then_some(entropies) };
        gradient(logits, |logits, grad| {
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
    type Output = Step;

    fn run<T: Element + WithDType>(self, logits: Logits<'_, T>) -> crate::error::Result<Step> {
        self.loss.forward(logits, self.targets, self.batch, self.reference, self.rewards)
    }
}

/// A finished forward pass; the lock is for the backward pass, which keeps its workspace in it.
struct LossOp {
    value: f32,
    step: Step,
    loss: Mutex<PreferenceLoss<Cpu>>,
}

impl CustomOp1 for LossOp {
    fn name(&self) -> &'static str {
        "exo-preference-loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let upstream = f64::from(upstream.to_vec0::<f32>()?);
        // What a panic elsewhere left behind is overwritten by the next two lines.
        let mut loss = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        loss.set_loss_scale(upstream);
        with_logits(logits, LossBackward { loss: &mut loss, step: &self.step })?.map(Some)
    }
}

struct LossBackward<'a> {
    step: &'a Step,
    loss: &'a mut PreferenceLoss<Cpu>,
}

impl WithLogits for LossBackward<'_> {
    type Output = Result<Tensor>;

    fn run<T: Element + WithDType>(self, logits: Logits<'_, T>) -> crate::error::Result<Result<Tensor>> {
        gradient(logits, |logits, grad| self.loss.backward(self.step, logits, grad))
    }
}

/// A new tensor `[N, V]` that `write` fills with the gradient.
fn gradient<T: Element + WithDType>(
    logits: Logits<'_, T>,
    write: impl FnOnce(Logits<'_, T>, LogitsMut<'_, T>) -> crate::error::Result<()>,
) -> crate::error::Result<Result<Tensor>> {
    let (rows, vocab) = (logits.rows(), logits.vocab());
    let mut grad = vec![<T as bytemuck::Zeroable>::zeroed(); rows * vocab];
    write(logits, LogitsMut::new(&mut grad, vocab)?)?;
    Ok(Tensor::from_vec(grad, (rows, vocab), &candle_core::Device::Cpu))
}
