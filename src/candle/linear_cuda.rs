//! The operations from hidden states on CUDA tensors: everything in the order of candle's stream, nothing through the
//! host.

use crate::candle::cuda::{
    backend, cuda_storage, elements, placed_reference, placed_targets, unexpected_types, unwritten, upload,
};
use crate::candle::linear::{Linear, LinearOp, Pass, Place};
use crate::candle::row_layout::RowLayout;
use crate::candle::{LossInputs, result_shape};
use crate::cuda::Cuda;
use crate::cuda::forward_pass::ForwardPass;
use crate::cuda::linear::{Head, Hidden, LinearGradients};
use crate::cuda::memory::{Matrix, MatrixMut};
use crate::cuda::token_log_prob::{RowGradients, SavedRows, TokenLogProbs};
use crate::data::targets::TokenId;
use crate::element::Element;
use crate::loss::PreferenceLoss;
use crate::options::{LogitOptions, LossOptions};
use crate::report::Report;
use crate::stage::token_log_prob::SoftmaxState;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, Shape, Storage, Tensor, bail};
use cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use half::{bf16, f16};
use std::sync::OnceLock;

/// `[N]`, or `[2, N]` with the entropies.
pub(super) fn token_log_probs(
    device: &CudaDevice,
    linear: &Linear,
    targets: &Tensor,
    options: &LogitOptions,
    entropy: bool,
) -> Result<Tensor> {
    let rows = RowLayout::of_operand("hidden", linear.hidden.layout())?.rows;
    let ids = placed_targets(device, rows, linear.weight.dim(0)?, targets)?;
    let scored_rows = scored_rows(targets)?;
    let states = OnceLock::new();
    let pass = TokenLogProbPass { targets: ids, scored_rows, options: *options, entropy, states };
    LinearOp(OnDevice(pass)).apply(linear)
}

/// The loss, and its report, for which this waits.
pub(super) fn preference_loss(
    device: &CudaDevice,
    linear: &Linear,
    inputs: LossInputs<'_>,
    options: LossOptions,
) -> Result<(Tensor, Report)> {
    let rows = RowLayout::of_operand("hidden", linear.hidden.layout())?.rows;
    let targets = placed_targets(device, rows, linear.weight.dim(0)?, inputs.targets)?;
    let scored_rows = scored_rows(inputs.targets)?;
    let mut loss = PreferenceLoss::new(backend(device)?, options);
    let forward = LossForward { loss: &mut loss, device, inputs, scored_rows };
    with_tensors([&linear.hidden, &linear.weight], linear.bias.as_ref(), &targets, forward)?;
    let report = loss.unchecked_report().map_err(Error::wrap)?.clone();
    let forward = loss.into_forward_pass().map_err(Error::wrap)?;
    let pass = LossPass { value: report.loss as f32, targets, scored_rows, forward };
    Ok((LinearOp(OnDevice(pass)).apply(linear)?, report))
}

/// How many rows are scored, where the host can tell: then the products leave out the others.
fn scored_rows(targets: &Tensor) -> Result<Option<usize>> {
    if !targets.device().is_cpu() {
        return Ok(None);
    }
    Ok(Some(crate::candle::cpu::target_ids(targets)?.iter().filter(|id| **id >= 0).count()))
}

/// What is done with hidden states, head and ids once their types are known.
trait WithTypes {
    type Output;

    fn run<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        self,
        hidden: &Matrix<'_, T>,
        head: &Head<'_, T>,
        ids: &CudaView<'_, I>,
    ) -> Result<Self::Output>;
}

/// Runs on the places of hidden states, weight, bias and ids; refuses every type but f32, f16 and bf16, u32 and i64.
fn with_types<W: WithTypes>(
    hidden: Place<'_>,
    weight: Place<'_>,
    bias: Option<Place<'_>>,
    ids: Place<'_>,
    run: W,
) -> Result<W::Output> {
    match (hidden.0.dtype(), ids.0.dtype()) {
        (DType::F32, DType::U32) => typed::<f32, u32, W>(hidden, weight, bias, ids, run),
        (DType::F32, DType::I64) => typed::<f32, i64, W>(hidden, weight, bias, ids, run),
        (DType::F16, DType::U32) => typed::<f16, u32, W>(hidden, weight, bias, ids, run),
        (DType::F16, DType::I64) => typed::<f16, i64, W>(hidden, weight, bias, ids, run),
        (DType::BF16, DType::U32) => typed::<bf16, u32, W>(hidden, weight, bias, ids, run),
        (DType::BF16, DType::I64) => typed::<bf16, i64, W>(hidden, weight, bias, ids, run),
        _ => Err(unexpected_types("hidden", hidden.0, ids.0)),
    }
}

fn typed<T, I, W>(
    hidden: Place<'_>,
    weight: Place<'_>,
    bias: Option<Place<'_>>,
    ids: Place<'_>,
    run: W,
) -> Result<W::Output>
where
    T: Element + CudaDType + DeviceRepr,
    I: TokenId + CudaDType + DeviceRepr,
    W: WithTypes,
{
    let mut head = Head::new(matrix::<T>("weight", weight)?).map_err(Error::wrap)?;
    if let Some((storage, layout)) = bias {
        head = head.with_bias(elements(storage.as_cuda_slice::<T>()?, layout)).map_err(Error::wrap)?;
    }
    run.run(&matrix::<T>("hidden", hidden)?, &head, &elements(ids.0.as_cuda_slice::<I>()?, ids.1))
}

/// `[rows, columns]`, of a tensor whose rows lie at one stride.
fn matrix<'a, T: Element + CudaDType>(what: &str, (storage, layout): Place<'a>) -> Result<Matrix<'a, T>> {
    let RowLayout { start, rows, columns, stride } = RowLayout::of_operand(what, layout)?;
    Matrix::strided(storage.as_cuda_slice::<T>()?.slice(start..), rows, columns, stride).map_err(Error::wrap)
}

/// As [`with_types`], for tensors.
fn with_tensors<W: WithTypes>(
    [hidden, weight]: [&Tensor; 2],
    bias: Option<&Tensor>,
    ids: &Tensor,
    run: W,
) -> Result<W::Output> {
    let ((hidden, hidden_layout), (weight, weight_layout)) = (hidden.storage_and_layout(), weight.storage_and_layout());
    let (ids, ids_layout) = ids.storage_and_layout();
    let bias = bias.map(Tensor::storage_and_layout);
    let bias = match &bias {
        Some((storage, layout)) => Some((cuda_storage(storage)?, *layout)),
        None => None,
    };
    let (hidden, weight) = ((cuda_storage(&hidden)?, hidden_layout), (cuda_storage(&weight)?, weight_layout));
    with_types(hidden, weight, bias, (cuda_storage(&ids)?, ids_layout), run)
}

/// A forward pass, and its way back.
trait Way: Send + Sync + 'static {
    const NAME: &'static str;

    /// `[N]`, contiguous, on the device.
    fn targets(&self) -> &Tensor;

    /// The values, and their shape.
    fn forward(
        &self,
        device: &CudaDevice,
        hidden: Place<'_>,
        weight: Place<'_>,
        bias: Option<Place<'_>>,
    ) -> Result<(CudaSlice<f32>, Shape)>;

    /// `values` and `upstream` have the shape of the values.
    fn backward<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        operands: (&Matrix<'_, T>, &Head<'_, T>, &CudaView<'_, I>),
        values: &Tensor,
        upstream: &Tensor,
        gradients: LinearGradients<'_, T, T>,
    ) -> Result<()>;
}

/// The forward pass of the token log-probs; what it leaves for the backward pass stays on the device.
struct TokenLogProbPass {
    targets: Tensor,
    scored_rows: Option<usize>,
    options: LogitOptions,
    entropy: bool,
    /// Of the forward pass.
    states: OnceLock<CudaSlice<SoftmaxState>>,
}

/// [`Hidden`] with the number of scored rows, if that is known.
fn hidden<'m, 'a, T>(states: &'m Matrix<'a, T>, scored_rows: Option<usize>) -> Hidden<'m, 'a, T> {
    match scored_rows {
        Some(count) => Hidden::new(states).with_scored_rows(count),
        None => Hidden::new(states),
    }
}

struct TokenForward<'a, 'b> {
    cuda: Cuda,
    pass: &'a TokenLogProbPass,
    outputs: &'a mut TokenLogProbs<'b>,
}

impl WithTypes for TokenForward<'_, '_> {
    type Output = ();

    fn run<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        self,
        states: &Matrix<'_, T>,
        head: &Head<'_, T>,
        ids: &CudaView<'_, I>,
    ) -> Result<()> {
        let TokenLogProbPass { scored_rows, options, .. } = self.pass;
        let hidden = hidden(states, *scored_rows);
        self.cuda.linear_token_log_probs(hidden, head, ids, options, self.outputs).map_err(Error::wrap)
    }
}

impl Way for TokenLogProbPass {
    const NAME: &'static str = "exo-linear-token-log-probs";

    fn targets(&self) -> &Tensor {
        &self.targets
    }

    fn forward(
        &self,
        device: &CudaDevice,
        hidden: Place<'_>,
        weight: Place<'_>,
        bias: Option<Place<'_>>,
    ) -> Result<(CudaSlice<f32>, Shape)> {
        let count = RowLayout::of_operand("hidden", hidden.1)?.rows;
        let shape = result_shape(count, self.entropy);
        let mut values = unwritten::<f32>(device, shape.elem_count())?;
        let mut states = unwritten::<SoftmaxState>(device, count)?;
        let (ids, ids_layout) = self.targets.storage_and_layout();
        {
            let (mut log_probs, mut entropies) = values.split_at_mut(count);
            let mut outputs = TokenLogProbs {
                log_probs: log_probs.slice_mut(..count),
                states: states.slice_mut(..count),
                entropies: self.entropy.then(|| entropies.slice_mut(..count)),
            };
            let forward = TokenForward { cuda: backend(device)?, pass: self, outputs: &mut outputs };
            with_types(hidden, weight, bias, (cuda_storage(&ids)?, ids_layout), forward)?;
        }
        // Nobody has set it: candle runs an operation's forward pass once.
        let _ = self.states.set(states);
        Ok((values, shape))
    }

    fn backward<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        (states, head, ids): (&Matrix<'_, T>, &Head<'_, T>, &CudaView<'_, I>),
        values: &Tensor,
        upstream: &Tensor,
        gradients: LinearGradients<'_, T, T>,
    ) -> Result<()> {
        let Some(saved) = self.states.get() else { bail!("{}: no forward pass has been made", Self::NAME) };
        let count = states.rows();
        let (values, values_layout) = values.storage_and_layout();
        let (upstream, upstream_layout) = upstream.storage_and_layout();
        let values = elements(cuda_storage(&values)?.as_cuda_slice::<f32>()?, values_layout);
        let upstream = elements(cuda_storage(&upstream)?.as_cuda_slice::<f32>()?, upstream_layout);
        let second_row = count..2 * count;
        let saved = SavedRows {
            states: saved.slice(..count),
            entropies: self.entropy.then(|| values.slice(second_row.clone())),
        };
        let upstream = RowGradients {
            log_probs: upstream.slice(..count),
            entropies: self.entropy.then(|| upstream.slice(second_row)),
        };
        let hidden = hidden(states, self.scored_rows);
        backend(device)?
            .linear_token_log_probs_backward(hidden, head, ids, &self.options, &saved, &upstream, gradients)
            .map_err(Error::wrap)
    }
}

struct LossForward<'a> {
    loss: &'a mut PreferenceLoss<Cuda>,
    device: &'a CudaDevice,
    inputs: LossInputs<'a>,
    scored_rows: Option<usize>,
}

impl WithTypes for LossForward<'_> {
    type Output = ();

    fn run<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        self,
        states: &Matrix<'_, T>,
        head: &Head<'_, T>,
        ids: &CudaView<'_, I>,
    ) -> Result<()> {
        let LossInputs { batch, reference, rewards, .. } = self.inputs;
        let placed = placed_reference(self.device, reference)?;
        let hidden = hidden(states, self.scored_rows);
        self.loss.forward_linear(hidden, head, ids, batch, &placed.view(), rewards).map(drop).map_err(Error::wrap)
    }
}

/// A finished forward pass, its value, and what the backward pass needs; nothing is locked, as in `LossOp` of `cuda`.
struct LossPass {
    value: f32,
    targets: Tensor,
    scored_rows: Option<usize>,
    forward: ForwardPass,
}

impl Way for LossPass {
    const NAME: &'static str = "exo-linear-preference-loss";

    fn targets(&self) -> &Tensor {
        &self.targets
    }

    fn forward(
        &self,
        device: &CudaDevice,
        _: Place<'_>,
        _: Place<'_>,
        _: Option<Place<'_>>,
    ) -> Result<(CudaSlice<f32>, Shape)> {
        Ok((upload(device, &[self.value])?, Shape::from(())))
    }

    fn backward<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        (states, head, _): (&Matrix<'_, T>, &Head<'_, T>, &CudaView<'_, I>),
        _: &Tensor,
        upstream: &Tensor,
        gradients: LinearGradients<'_, T, T>,
    ) -> Result<()> {
        let (cuda, loss_scale) = (backend(device)?, f64::from(upstream.to_vec0::<f32>()?));
        let hidden = hidden(states, self.scored_rows);
        self.forward.backward_linear(&cuda, loss_scale, &hidden, head, gradients).map_err(Error::wrap)
    }
}

/// A pass on CUDA tensors.
struct OnDevice<W>(W);

impl<W: Way> Pass for OnDevice<W> {
    const NAME: &'static str = W::NAME;

    fn cuda_values(
        &self,
        hidden: Place<'_>,
        weight: Place<'_>,
        bias: Option<Place<'_>>,
    ) -> Result<(CudaStorage, Shape)> {
        let device = hidden.0.device();
        let (values, shape) = self.0.forward(device, hidden, weight, bias)?;
        Ok((CudaStorage::wrap_cuda_slice(values, device.clone()), shape))
    }

    fn gradients(
        &self,
        [hidden, weight]: [&Tensor; 2],
        bias: Option<&Tensor>,
        values: &Tensor,
        upstream: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let upstream = upstream.contiguous()?;
        let tensors = [Some(hidden), Some(weight), bias];
        let backward = Backward { way: &self.0, tensors, values, upstream: &upstream };
        with_tensors([hidden, weight], bias, self.0.targets(), backward)
    }
}

struct Backward<'a, W> {
    way: &'a W,
    /// Hidden states, weight, bias.
    tensors: [Option<&'a Tensor>; 3],
    values: &'a Tensor,
    upstream: &'a Tensor,
}

impl<W: Way> WithTypes for Backward<'_, W> {
    type Output = [Option<Tensor>; 3];

    fn run<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        self,
        hidden: &Matrix<'_, T>,
        head: &Head<'_, T>,
        ids: &CudaView<'_, I>,
    ) -> Result<[Option<Tensor>; 3]> {
        let Some(device) = self.tensors.iter().flatten().find_map(|tensor| tensor.device().as_cuda_device().ok())
        else {
            bail!("{}: no tensor on a CUDA device", W::NAME)
        };
        // Nothing for a frozen tensor, which would otherwise cost a product and a buffer of its size.
        let buffer = |tensor: Option<&Tensor>| {
            let tracked = tensor.filter(|tensor| tensor.track_op());
            tracked.map(|tensor| unwritten::<T>(device, tensor.elem_count())).transpose()
        };
        let [of_hidden, of_weight, of_bias] = self.tensors;
        let (mut of_hidden, mut of_weight, mut of_bias) = (buffer(of_hidden)?, buffer(of_weight)?, buffer(of_bias)?);
        let (size, rows, vocab) = (hidden.columns(), hidden.rows(), head.vocab());
        let mut gradients = LinearGradients::new(
            of_hidden
                .as_mut()
                .map(|buffer| MatrixMut::new(buffer.slice_mut(..rows * size), size))
                .transpose()
                .map_err(Error::wrap)?,
            of_weight
                .as_mut()
                .map(|buffer| MatrixMut::new(buffer.slice_mut(..vocab * size), size))
                .transpose()
                .map_err(Error::wrap)?,
        );
        if let Some(buffer) = &mut of_bias {
            gradients = gradients.with_bias(buffer.slice_mut(..vocab));
        }
        self.way.backward(device, (hidden, head, ids), self.values, self.upstream, gradients)?;
        let tensor = |buffer: Option<CudaSlice<T>>, like: Option<&Tensor>| {
            buffer.zip(like).map(|(buffer, like)| {
                let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(buffer, device.clone()));
                Tensor::from_storage(storage, like.shape(), BackpropOp::none(), false)
            })
        };
        let [hidden, weight, bias] = self.tensors;
        Ok([tensor(of_hidden, hidden), tensor(of_weight, weight), tensor(of_bias, bias)])
    }
}
