//! Token log-probs and entropies of logits.

#[cfg(feature = "cuda")]
use super::candle_core::backend::BackendStorage;
#[cfg(feature = "cuda")]
use super::candle_core::cuda_backend::CudaStorageSlice;
#[cfg(feature = "cuda")]
use super::candle_core::cuda_backend::cudarc::driver::CudaSlice;
use super::candle_core::{CpuStorage, CustomOp1, D, Error, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use super::candle_core::{CudaDevice, CudaStorage};
#[cfg(feature = "cuda")]
use super::device;
use super::host;
use super::operands::{Targets, result_shape, rows_of};
#[cfg(feature = "cuda")]
use exo_kernels::cuda;
use exo_kernels::{Cpu, LogitOptions, RowGradients, SavedRows, SoftmaxState, TokenLogProbs};
use std::sync::OnceLock;

/// log softmax(z)\[target\] of each row: logits `[N, V]` or `[.., V]`, targets of u32 or i64 in the same leading shape
/// → f32 of that shape; 0 where the target is negative.
///
/// # Errors
/// A device that this build has no operation for, logits of another dtype than f32, f16 and bf16, targets of another
/// than u32 and i64 or on another device than the logits' and the CPU, shapes that do not fit, a target of V or more
/// (on a CUDA device it gives NaN). What CUDA says.
pub fn token_log_probs(logits: &Tensor, targets: &Tensor, options: &LogitOptions) -> Result<Tensor> {
    run(logits, targets, options, false)?.reshape(targets.shape())
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
    let both = run(logits, targets, options, true)?;
    Ok((both.get(0)?.reshape(targets.shape())?, both.get(1)?.reshape(targets.shape())?))
}

/// `[N]`, or `[2, N]` with the entropies.
fn run(logits: &Tensor, targets: &Tensor, options: &LogitOptions, entropy: bool) -> Result<Tensor> {
    let logits = rows_of("logits", logits, targets)?;
    let targets = Targets::new(&logits, logits.dim(D::Minus1)?, targets)?;
    logits.apply_op1(TokenLogProbOp(TokenLogProbPass::new(targets, options, entropy)))
}

/// A forward pass from logits or from hidden states: what it is given besides them, and what it leaves, where they lie, for
/// the backward pass.
pub(super) struct TokenLogProbPass {
    targets: Targets,
    options: LogitOptions,
    entropy: bool,
    /// Of the forward pass.
    states: OnceLock<States>,
}

enum States {
    Host(Vec<SoftmaxState>),
    #[cfg(feature = "cuda")]
    Device(CudaSlice<SoftmaxState>),
}

impl TokenLogProbPass {
    pub(super) fn new(targets: Targets, options: &LogitOptions, entropy: bool) -> Self {
        Self { targets, options: *options, entropy, states: OnceLock::new() }
    }

    pub(super) fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Makes the pass on the host: `run` fills its outputs.
    pub(super) fn forward_on_host(
        &self,
        run: impl FnOnce(&[i64], &LogitOptions, TokenLogProbs<'_>) -> exo_kernels::Result<()>,
    ) -> Result<(CpuStorage, Shape)> {
        let targets = self.targets.on_host()?;
        let shape = result_shape(targets.len(), self.entropy);
        let mut values = vec![0.0; shape.elem_count()];
        let mut states = vec![SoftmaxState::default(); targets.len()];
        let (log_probs, entropies) = values.split_at_mut(targets.len());
        let entropies = self.entropy.then_some(entropies);
        run(targets, &self.options, TokenLogProbs { log_probs, states: &mut states, entropies })
            .map_err(Error::wrap)?;
        self.keep(States::Host(states));
        Ok((CpuStorage::F32(values), shape))
    }

    /// Goes backward on the host, from what the pass gave and the gradient of that.
    pub(super) fn backward_on_host(
        &self,
        values: &Tensor,
        upstream: &Tensor,
        run: impl FnOnce(&[i64], &LogitOptions, SavedRows<'_>, RowGradients<'_>) -> exo_kernels::Result<()>,
    ) -> Result<()> {
        let targets = self.targets.on_host()?;
        let Some(States::Host(states)) = self.states.get() else { bail!("no forward pass has been made on the CPU") };
        let upstream = upstream.flatten_all()?.to_vec1::<f32>()?;
        let (log_probs, of_entropies) = upstream.split_at(targets.len());
        let entropies = self.entropy.then(|| values.get(1)?.to_vec1::<f32>()).transpose()?;
        let saved = SavedRows { states, entropies: entropies.as_deref() };
        let upstream = RowGradients { log_probs, entropies: self.entropy.then_some(of_entropies) };
        run(targets, &self.options, saved, upstream).map_err(Error::wrap)
    }

    /// Makes the pass on the device: `run` fills its outputs.
    #[cfg(feature = "cuda")]
    pub(super) fn forward_on_device(
        &self,
        device: &CudaDevice,
        rows: usize,
        run: impl FnOnce(&LogitOptions, &mut cuda::TokenLogProbs<'_>) -> Result<()>,
    ) -> Result<(CudaStorage, Shape)> {
        let shape = result_shape(rows, self.entropy);
        let mut values = device::unwritten::<f32>(device, shape.elem_count())?;
        let mut states = device::unwritten::<SoftmaxState>(device, rows)?;
        {
            let (mut log_probs, mut entropies) = values.split_at_mut(rows);
            let mut outputs = cuda::TokenLogProbs {
                log_probs: log_probs.slice_mut(..rows),
                states: states.slice_mut(..rows),
                entropies: self.entropy.then(|| entropies.slice_mut(..rows)),
            };
            run(&self.options, &mut outputs)?;
        }
        self.keep(States::Device(states));
        Ok((CudaStorage::wrap_cuda_slice(values, device.clone()), shape))
    }

    /// Goes backward on the device. `values` and `upstream`, both contiguous, have the shape of the values.
    #[cfg(feature = "cuda")]
    pub(super) fn backward_on_device<R>(
        &self,
        rows: usize,
        values: &Tensor,
        upstream: &Tensor,
        run: impl FnOnce(&LogitOptions, &cuda::SavedRows<'_>, &cuda::RowGradients<'_>) -> Result<R>,
    ) -> Result<R> {
        let Some(States::Device(states)) = self.states.get() else {
            bail!("no forward pass has been made on a CUDA device")
        };
        let (values, values_layout) = values.storage_and_layout();
        let (upstream, upstream_layout) = upstream.storage_and_layout();
        let (values, upstream) = (device::cuda_storage(&values)?, device::cuda_storage(&upstream)?);
        let values = device::elements(values.as_cuda_slice::<f32>()?, values_layout);
        let upstream = device::elements(upstream.as_cuda_slice::<f32>()?, upstream_layout);
        let second_row = rows..2 * rows;
        let saved = cuda::SavedRows {
            states: states.slice(..rows),
            entropies: self.entropy.then(|| values.slice(second_row.clone())),
        };
        let upstream = cuda::RowGradients {
            log_probs: upstream.slice(..rows),
            entropies: self.entropy.then(|| upstream.slice(second_row)),
        };
        run(&self.options, &saved, &upstream)
    }

    fn keep(&self, states: States) {
        // Nobody has set it: candle runs an operation's forward pass once.
        let _ = self.states.set(states);
    }
}

struct TokenLogProbOp(TokenLogProbPass);

impl CustomOp1 for TokenLogProbOp {
    fn name(&self) -> &'static str {
        "exo-token-log-probs"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        host::by_type!(logits, |logits| {
            let logits = host::logits(logits, layout)?;
            self.0.forward_on_host(|targets, options, outputs| {
                Cpu::default().token_log_probs(logits, targets, options, outputs)
            })
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = logits.device();
        let cuda = device::backend(device)?;
        let (ids, ids_layout) = self.0.targets.on_device()?.ids.storage_and_layout();
        let ids = device::cuda_storage(&ids)?;
        device::by_types!(logits, ids, |logits, ids| {
            let (logits, ids) = (device::logits(logits, layout)?, device::elements(ids, ids_layout));
            self.0.forward_on_device(device, logits.rows(), |options, outputs| {
                cuda.token_log_probs(&logits, &ids, options, outputs).map_err(Error::wrap)
            })
        })
    }

    fn bwd(&self, logits: &Tensor, values: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let upstream = upstream.contiguous()?;
        logits.apply_op1_no_bwd(&TokenLogProbGradient { pass: &self.0, values, upstream: &upstream }).map(Some)
    }
}

/// The backward pass of [`TokenLogProbOp`]: an operation of its own, without a gradient, over the same logits.
struct TokenLogProbGradient<'a> {
    pass: &'a TokenLogProbPass,
    /// What the forward pass gave, for the entropies in it.
    values: &'a Tensor,
    /// In the shape of the values, contiguous.
    upstream: &'a Tensor,
}

impl CustomOp1 for TokenLogProbGradient<'_> {
    fn name(&self) -> &'static str {
        "exo-token-log-probs-backward"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        host::by_type!(logits, |logits| {
            host::gradient(logits, layout, |logits, gradient| {
                self.pass.backward_on_host(self.values, self.upstream, |targets, options, saved, upstream| {
                    Cpu::default().token_log_probs_backward(logits, targets, options, saved, upstream, gradient)
                })
            })
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = logits.device();
        let cuda = device::backend(device)?;
        let (ids, ids_layout) = self.pass.targets.on_device()?.ids.storage_and_layout();
        let ids = device::cuda_storage(&ids)?;
        device::by_types!(logits, ids, |logits, ids| {
            let (logits, ids) = (device::logits(logits, layout)?, device::elements(ids, ids_layout));
            self.pass.backward_on_device(logits.rows(), self.values, self.upstream, |options, saved, upstream| {
                device::gradient(device, &logits, layout.shape(), |gradient| {
                    cuda.token_log_probs_backward(&logits, &ids, options, saved, upstream, gradient)
                })
            })
        })
    }
}
