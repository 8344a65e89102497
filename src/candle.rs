//! Differentiable operations on [candle](candle_core) tensors (feature `candle`).
//!
//! - [`token_log_probs`]: logits `[N, V]`, targets `[N]` → log-probs `[N]` in f32, differentiable in the logits.
//! - [`token_log_probs_and_entropies`]: the entropies with them, differentiable too.
//! - [`preference_loss`]: logits, targets, batch, reference, rewards → the loss, a differentiable scalar, and a report.
//!
//! Logits are CPU tensors of f32, f16 or bf16. Rows may be strided (a narrowed vocabulary, say) and are read where they
//! lie; any other layout is made contiguous first. Every other device and dtype is refused with an error: an operation
//! that cannot send a gradient back does not run.
//!
//! The softmax state that the backward pass needs is kept inside the operation, O(N); no `[N, V]` tensor is made but
//! the gradient.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use exo_kernels::{Batch, Betas, LogitOptions, LossOptions, Objective, Reference};
//!
//! // Two completions of two tokens each for one prompt, over a vocabulary of three.
//! let logits = Var::randn(0f32, 1f32, (4, 3), &Device::Cpu)?;
//! let targets = Tensor::new(&[0u32, 2, 1, 1], &Device::Cpu)?;
//! let batch = Batch::new(&[0, 2, 4], &[0, 2])?;
//! let options = LossOptions::from(Objective::exo(Betas { policy: 0.5, reward: 0.5 })?)
//!     .with_logits(LogitOptions::default().with_temperature(0.8)?);
//! let reference = Reference::PerToken(&[-1.0, -1.2, -0.9, -1.1]);
//! let (loss, report) =
//!     exo_kernels::candle::preference_loss(logits.as_tensor(), &targets, &batch, reference, &[1.0f32, 0.0], options)?;
//! let gradients = loss.backward()?;
//! assert!(gradients.get(&logits).is_some());
//! assert_eq!(report.check()?.scored_rows, 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Error, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use half::{bf16, f16};

use crate::batch::Batch;
use crate::cpu::Cpu;
use crate::element::Element;
use crate::logits::{LogitOptions, Logits, LogitsMut};
use crate::loss::PreferenceLoss;
use crate::loss_options::LossOptions;
use crate::report::Report;
use crate::stages::{Reference, Rewards, RowGradients, SavedRows, SoftmaxState, TokenLogProbs};

/// log softmax(z)\[target\] of each row: logits `[N, V]` or `[.., V]`, targets of u32 or i64 in the same leading shape
/// → f32 of that shape; 0 where the target is negative.
///
/// # Errors
/// A device other than the CPU, logits of another dtype than f32, f16 and bf16, targets of another than u32 and i64,
/// shapes that do not fit, a target of V or more.
pub fn token_log_probs(logits: &Tensor, targets: &Tensor, options: &LogitOptions) -> Result<Tensor> {
    run_token_log_probs(logits, targets, options, false)?.reshape(targets.shape())
}

/// [`token_log_probs`] and, from the same pass, the entropy of each row's distribution; both differentiable.
///
/// # Errors
/// As [`token_log_probs`].
pub fn token_log_probs_and_entropies(
    logits: &Tensor,
    targets: &Tensor,
    options: &LogitOptions,
) -> Result<(Tensor, Tensor)> {
    let both = run_token_log_probs(logits, targets, options, true)?;
    Ok((both.get(0)?.reshape(targets.shape())?, both.get(1)?.reshape(targets.shape())?))
}

/// The preference loss: logits `[N, V]` or `[.., V]`, targets in the same leading shape, a [`Batch`] over the N rows →
/// a differentiable f32 scalar, and what a trainer logs.
///
/// A row without a softmax makes the loss NaN, not an error: loss scaling looks for it in the gradient.
/// [`Report::check`] names it.
///
/// # Errors
/// As [`token_log_probs`], and everything that [`PreferenceLoss::forward`] refuses.
pub fn preference_loss<'a>(
    logits: &Tensor,
    targets: &Tensor,
    batch: &Batch,
    reference: Reference<'_>,
    rewards: impl Into<Rewards<'a>>,
    options: impl Into<LossOptions>,
) -> Result<(Tensor, Report)> {
    let logits = rows_of(logits, targets)?;
    let targets = target_ids(targets)?;
    let mut loss = PreferenceLoss::new(Cpu::default(), options);
    let rewards = rewards.into();
    with_logits(&logits, LossForward { loss: &mut loss, targets: &targets, batch, reference, rewards })?;
    let report = loss.unchecked_report().map_err(Error::wrap)?.clone();
    let value = report.loss as f32;
    Ok((logits.apply_op1(LossOp { value, loss: Mutex::new(loss) })?, report))
}

/// `[N]`, or `[2, N]` with the entropies.
fn run_token_log_probs(logits: &Tensor, targets: &Tensor, options: &LogitOptions, entropy: bool) -> Result<Tensor> {
    let logits = rows_of(logits, targets)?;
    let targets = target_ids(targets)?;
    let rows = targets.len();
    let mut op = TokenLogProbOp {
        targets,
        options: *options,
        states: vec![SoftmaxState::default(); rows],
        values: vec![0.0; if entropy { 2 * rows } else { rows }],
    };
    with_logits(&logits, TokenForward { op: &mut op })?;
    logits.apply_op1(op)
}

/// The logits as `[N, V]` with contiguous columns, without a copy where they are so already.
fn rows_of(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let dims = logits.dims();
    let Some((&vocab, leading)) = dims.split_last() else { bail!("logits: a scalar given, [.., V] expected") };
    if leading != targets.dims() {
        bail!(
            "targets: shape {:?} given, {leading:?} (that of the logits without the vocabulary) expected",
            targets.dims()
        );
    }
    let rows: usize = leading.iter().product();
    let logits = if leading.len() == 1 { logits.clone() } else { logits.reshape((rows, vocab))? };
    let strides = logits.stride();
    if strides[1] == 1 && strides[0] >= vocab { Ok(logits) } else { logits.contiguous() }
}

fn target_ids(targets: &Tensor) -> Result<Vec<i64>> {
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

/// Runs on the logits `[N, V]` of a CPU tensor as [`rows_of`] made it; refuses every other device and dtype.
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
        let TokenLogProbOp { targets, options, states, values } = self.op;
        let (log_probs, entropies) = values.split_at_mut(targets.len());
        let entropies = (!entropies.is_empty()).then_some(entropies);
        Cpu::default().token_log_probs(logits, targets, options, TokenLogProbs { log_probs, states, entropies })
    }
}

/// A finished forward pass: the values, and what the backward pass needs.
struct TokenLogProbOp {
    targets: Vec<i64>,
    options: LogitOptions,
    states: Vec<SoftmaxState>,
    /// Log-probs and, if asked for, entropies behind them.
    values: Vec<f32>,
}

impl CustomOp1 for TokenLogProbOp {
    fn name(&self) -> &'static str {
        "exo-token-log-probs"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = self.targets.len();
        let shape = if self.values.len() == rows { Shape::from(rows) } else { Shape::from((2, rows)) };
        Ok((CpuStorage::F32(self.values.clone()), shape))
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
    type Output = ();

    fn run<T: Element + WithDType>(self, logits: Logits<'_, T>) -> crate::error::Result<()> {
        self.loss.forward(logits, self.targets, self.batch, self.reference, self.rewards)
    }
}

/// A finished forward pass; the lock is for the backward pass, which keeps its workspace in it.
struct LossOp {
    value: f32,
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
        with_logits(logits, LossBackward { loss: &mut loss })?.map(Some)
    }
}

struct LossBackward<'a> {
    loss: &'a mut PreferenceLoss<Cpu>,
}

impl WithLogits for LossBackward<'_> {
    type Output = Result<Tensor>;

    fn run<T: Element + WithDType>(self, logits: Logits<'_, T>) -> crate::error::Result<Result<Tensor>> {
        gradient(logits, |logits, grad| self.loss.backward(logits, grad))
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
