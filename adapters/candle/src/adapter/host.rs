//! Tensors on the CPU, as the stages take them.

use super::candle_core::backend::BackendStorage;
use super::candle_core::{CpuStorage, DType, Device, Error, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use super::row_layout::RowLayout;
use exo_kernels::{Element, Head, LinearGradients, Logits, LogitsMut, Matrix, MatrixMut};

/// A storage and where the tensor lies in it.
pub(super) type Located<'a> = (&'a CpuStorage, &'a Layout);

/// Runs `$run` with the elements of logits, whatever their type: f32, f16 or bf16. Other types are refused.
macro_rules! by_type {
    ($logits:expr, |$x:ident| $run:expr) => {
        match $logits {
            CpuStorage::F32($x) => $run,
            CpuStorage::F16($x) => $run,
            CpuStorage::BF16($x) => $run,
            other => return Err(host::unexpected_type("logits", other)),
        }
    };
}
pub(super) use by_type;

/// Runs `$run` with hidden states and head, whatever their one type: f32, f16 or bf16. Other types are refused.
macro_rules! by_linear_type {
    ($operands:expr, |$hidden:ident, $head:ident| $run:expr) => {{
        let operands = &$operands;
        match host::dtype(operands.hidden.0) {
            DType::F32 => operands.typed::<f32>().and_then(|($hidden, $head)| $run),
            DType::F16 => operands.typed::<half::f16>().and_then(|($hidden, $head)| $run),
            DType::BF16 => operands.typed::<half::bf16>().and_then(|($hidden, $head)| $run),
            _ => return Err(host::unexpected_type("hidden", operands.hidden.0)),
        }
    }};
}
pub(super) use by_linear_type;

pub(super) fn dtype(storage: &CpuStorage) -> DType {
    storage.dtype()
}

pub(super) fn unexpected_type(what: &str, rows: &CpuStorage) -> Error {
    Error::msg(format!("{what}: dtype {:?} given, f32, f16 or bf16 expected", rows.dtype()))
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

pub(super) fn cpu_storage<'a>(what: &str, storage: &'a Storage) -> Result<&'a CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("{what}: a tensor on {:?} given, the CPU expected", storage.device().location()),
    }
}

/// The logits `[N, V]` of a tensor whose rows lie at one stride.
pub(super) fn logits<'a, T: Element>(data: &'a [T], layout: &Layout) -> Result<Logits<'a, T>> {
    let RowLayout { start, rows, columns, stride } = RowLayout::of_operand("logits", layout)?;
    Logits::strided(&data[start..], rows, columns, stride).map_err(Error::wrap)
}

/// A new contiguous tensor in the shape of the logits, which `write` fills with their gradient.
pub(super) fn gradient<T: Element + WithDType>(
    data: &[T],
    layout: &Layout,
    write: impl FnOnce(Logits<'_, T>, LogitsMut<'_, T>) -> Result<()>,
) -> Result<(CpuStorage, Shape)> {
    let logits = logits(data, layout)?;
    let mut gradient = vec![T::from_f32(0.0); logits.rows() * logits.vocab()];
    write(logits, LogitsMut::new(&mut gradient, logits.vocab()).map_err(Error::wrap)?)?;
    Ok((T::to_cpu_storage_owned(gradient), layout.shape().clone()))
}

/// Hidden states, weight and bias, of one type.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) hidden: Located<'a>,
    pub(super) weight: Located<'a>,
    pub(super) bias: Option<Located<'a>>,
}

impl<'a> Operands<'a> {
    /// Hidden states and head, of type `T`.
    pub(super) fn typed<T: Element + WithDType>(&self) -> Result<(Matrix<'a, T>, Head<'a, T>)> {
        let hidden = matrix::<T>("hidden", self.hidden)?;
        let mut head = Head::new(matrix::<T>("weight", self.weight)?).map_err(Error::wrap)?;
        if let Some((storage, layout)) = self.bias {
            let elements = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
            head = head.with_bias(&numbers::<T>("bias", storage)?[elements]).map_err(Error::wrap)?;
        }
        Ok((hidden, head))
    }
}

/// Runs `run` with the storages of CPU tensors.
pub(super) fn with_operands<R>(
    [hidden, weight]: [&Tensor; 2],
    bias: Option<&Tensor>,
    run: impl FnOnce(Operands<'_>) -> Result<R>,
) -> Result<R> {
    let ((hidden, hidden_layout), (weight, weight_layout)) = (hidden.storage_and_layout(), weight.storage_and_layout());
    let bias = bias.map(Tensor::storage_and_layout);
    let bias = match &bias {
        Some((storage, layout)) => Some((cpu_storage("bias", storage)?, *layout)),
        None => None,
    };
    run(Operands {
        hidden: (cpu_storage("hidden", &hidden)?, hidden_layout),
        weight: (cpu_storage("weight", &weight)?, weight_layout),
        bias,
    })
}

fn numbers<'a, T: WithDType>(what: &str, storage: &'a CpuStorage) -> Result<&'a [T]> {
    match storage.as_slice::<T>() {
        Ok(numbers) => Ok(numbers),
        Err(_) => bail!("{what}: another dtype than the hidden states'"),
    }
}

/// `[rows, columns]`, of a tensor whose rows lie at one stride.
fn matrix<'a, T: Element + WithDType>(what: &str, (storage, layout): Located<'a>) -> Result<Matrix<'a, T>> {
    let RowLayout { start, rows, columns, stride } = RowLayout::of_operand(what, layout)?;
    Matrix::strided(&numbers::<T>(what, storage)?[start..], rows, columns, stride).map_err(Error::wrap)
}

/// The gradients of those of the three tensors that take part in a gradient, which `write` fills.
pub(super) fn linear_gradients<T: Element + WithDType>(
    tensors: [Option<&Tensor>; 3],
    size: usize,
    write: impl FnOnce(LinearGradients<'_, T, T>) -> Result<()>,
) -> Result<[Option<Tensor>; 3]> {
    // Nothing for a frozen tensor, which would otherwise cost a product and a buffer of its size.
    let buffers = tensors.map(|tensor| {
        let tensor = tensor.filter(|tensor| tensor.track_op())?;
        Some(vec![T::from_f32(0.0); tensor.elem_count()])
    });
    let [mut of_hidden, mut of_weight, mut of_bias] = buffers;
    let matrix = |buffer| MatrixMut::new(buffer, size).map_err(Error::wrap);
    let mut gradients = LinearGradients::new(
        of_hidden.as_deref_mut().map(matrix).transpose()?,
        of_weight.as_deref_mut().map(matrix).transpose()?,
    );
    if let Some(of_bias) = &mut of_bias {
        gradients = gradients.with_bias(of_bias);
    }
    write(gradients)?;
    let tensor = |buffer: Option<Vec<T>>, like: Option<&Tensor>| {
        buffer.zip(like).map(|(buffer, like)| Tensor::from_vec(buffer, like.shape(), &Device::Cpu)).transpose()
    };
    let [hidden, weight, bias] = tensors;
    Ok([tensor(of_hidden, hidden)?, tensor(of_weight, weight)?, tensor(of_bias, bias)?])
}
