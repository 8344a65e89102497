//! What the operations are given, and where it lies.

use super::candle_core::{D, Device, Error, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use super::device;
use super::host;
use super::row_layout::in_place;
use exo_kernels::{Batch, Reference, Rewards};

/// What the preference loss is computed from besides logits and targets.
#[derive(Clone, Copy)]
pub(super) struct LossInputs<'a> {
    pub(super) batch: &'a Batch,
    pub(super) reference: Reference<'a>,
    pub(super) rewards: Rewards<'a>,
}

/// The targets of the rows, `[N]`, where the rows lie.
pub(super) enum Targets {
    Host(Vec<i64>),
    #[cfg(feature = "cuda")]
    Device(device::Targets),
}

impl Targets {
    /// The targets of logits or hidden states `rows`, over a vocabulary of `vocab`.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "on the host the stages check the targets"))]
    pub(super) fn new(rows: &Tensor, vocab: usize, targets: &Tensor) -> Result<Self> {
        match rows.device() {
            Device::Cpu => host::target_ids(targets).map(Self::Host),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => device::Targets::new(device, vocab, targets).map(Self::Device),
            device => Err(refused(device)),
        }
    }

    /// The ids, of an operation on the host.
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "with CUDA it may be the other"))]
    pub(super) fn on_host(&self) -> Result<&[i64]> {
        match self {
            Self::Host(ids) => Ok(ids),
            #[cfg(feature = "cuda")]
            Self::Device(_) => bail!("the forward pass was made on a CUDA device"),
        }
    }

    /// The ids, of an operation on a CUDA device.
    #[cfg(feature = "cuda")]
    pub(super) fn on_device(&self) -> Result<&device::Targets> {
        match self {
            Self::Host(_) => bail!("the forward pass was made on the CPU"),
            Self::Device(targets) => Ok(targets),
        }
    }
}

/// The shape of log-probs, and of entropies below them.
pub(super) fn result_shape(rows: usize, entropy: bool) -> Shape {
    if entropy { Shape::from((2, rows)) } else { Shape::from(rows) }
}

pub(super) fn refused(device: &Device) -> Error {
    let built = if cfg!(feature = "cuda") {
        "the CPU or a CUDA device expected"
    } else {
        "the CPU expected (exo-kernels-candle is built without its feature cuda)"
    };
    Error::msg(format!("logits: a tensor on {:?} given, {built}", device.location()))
}

/// Logits `[.., V]`, or hidden states `[.., H]`, of rows that can be read where they lie: see [`in_place`].
pub(super) fn rows_of(what: &str, rows: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let Some((_, leading)) = rows.dims().split_last() else { bail!("{what}: a scalar given, rows expected") };
    if leading != targets.dims() {
        bail!(
            "targets: shape {:?} given, {leading:?} (that of the {what} without the last dimension) expected",
            targets.dims()
        );
    }
    in_place(rows)
}

/// What makes the logits: on one device, of one dtype, with rows that lie at one stride.
pub(super) struct Linear {
    /// `[.., H]`
    pub(super) hidden: Tensor,
    /// `[V, H]`
    pub(super) weight: Tensor,
    /// `[V]`
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn new(hidden: &Tensor, weight: &Tensor, bias: Option<&Tensor>, targets: &Tensor) -> Result<Self> {
        let hidden = rows_of("hidden", hidden, targets)?;
        let size = hidden.dim(D::Minus1)?;
        let &[vocab, columns] = weight.dims() else {
            bail!("weight: shape {:?} given, [V, {size}] expected", weight.dims())
        };
        if columns != size {
            bail!("weight: shape {:?} given, [V, {size}] expected", weight.dims());
        }
        for (what, tensor) in [("weight", Some(weight)), ("bias", bias)] {
            let Some(tensor) = tensor else { continue };
            if tensor.dtype() != hidden.dtype() {
                bail!(
                    "{what}: dtype {:?} given, {:?} (that of the hidden states) expected",
                    tensor.dtype(),
                    hidden.dtype()
                );
            }
            if !tensor.device().same_device(hidden.device()) {
                bail!("{what}: a tensor on {:?} given, {:?} expected", tensor.device(), hidden.device());
            }
        }
        if let Some(bias) = bias
            && bias.dims() != [vocab]
        {
            bail!("bias: shape {:?} given, [{vocab}] expected", bias.dims());
        }
        Ok(Self { hidden, weight: in_place(weight)?, bias: bias.map(Tensor::contiguous).transpose()? })
    }
}
