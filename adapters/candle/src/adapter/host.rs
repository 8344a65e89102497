//! Tensors on the CPU.

use super::candle_core::cpu_backend::CpuDevice;
use super::candle_core::op::BackpropOp;
use super::candle_core::{CpuStorage, DType, Result, Shape, Storage, Tensor, bail};
use super::operation::{Pass, forward};
use super::tensor_backend::{Located, Scalar, TensorBackend};
use exo_kernels::{Cpu, Targets};

impl TensorBackend for Cpu {
    type Storage = CpuStorage;
    type Numbers<T: Scalar> = Vec<T>;
    type Targets = Vec<i64>;

    fn of(_: &CpuDevice) -> Result<Self> {
        Ok(Cpu::default())
    }

    fn storage<'a>(what: &str, storage: &'a Storage) -> Result<&'a CpuStorage> {
        match storage {
            Storage::Cpu(storage) => Ok(storage),
            _ => bail!("{what}: a tensor on {:?} given, the CPU expected", storage.device().location()),
        }
    }

    fn numbers<'a, T: Scalar>(what: &str, storage: &'a CpuStorage) -> Result<&'a [T]> {
        match storage.as_slice::<T>() {
            Ok(numbers) => Ok(numbers),
            Err(_) => bail!("{what}: another dtype than the hidden states'"),
        }
    }

    fn allocate<T: Scalar>(_: &CpuDevice, length: usize) -> Result<Vec<T>> {
        Ok(vec![T::default(); length])
    }

    fn split<T: Scalar>(numbers: &mut Vec<T>, length: usize) -> (&mut [T], &mut [T]) {
        numbers.split_at_mut(length)
    }

    fn into_storage<T: Scalar>(numbers: Vec<T>, _: &CpuDevice) -> CpuStorage {
        T::to_cpu_storage_owned(numbers)
    }

    fn into_tensor(storage: CpuStorage, shape: &Shape) -> Tensor {
        Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), false)
    }

    fn scalar(value: f32, _: &CpuDevice) -> Result<CpuStorage> {
        Ok(CpuStorage::F32(vec![value]))
    }

    /// The stages check them.
    fn targets(_: &Tensor, _: usize, targets: &Tensor) -> Result<Vec<i64>> {
        target_ids(targets)
    }

    fn scored_rows(_: &Vec<i64>) -> Option<usize> {
        None
    }

    fn with_targets<R>(targets: &Vec<i64>, run: impl FnOnce(Targets<'_>) -> Result<R>) -> Result<R> {
        run(targets.into())
    }

    fn forward_on_host<P: Pass<Backend = Self>>(
        pass: &P,
        operands: &[Located<'_, CpuStorage>],
    ) -> Result<(CpuStorage, Shape)> {
        forward(pass, operands)
    }
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
