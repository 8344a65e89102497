//! The stages over device addresses: for tch, and for frameworks that own their memory.
//!
//! Every function launches on the stream of its [`Cuda`] and returns. An address of 0 is "none" where that is allowed.
//! Checked here are lengths and settings; that an address is one, nobody can check.

pub(crate) mod linear;
pub(crate) mod log_ratio;
pub(crate) mod objective;
pub(crate) mod partial_row;
pub(crate) mod sequence_part;
pub(crate) mod token_log_prob;

use crate::cuda::Cuda;
use crate::cuda::blas::Operand;
use crate::cuda::context::{CurrentContext, bind};
use crate::cuda::driver::called;
use crate::cuda::kernels::{Kernel, KernelId};
use crate::cuda::status::Status;
use crate::data::matrix::Shape;
use crate::element::{Dtype, Element};
use crate::error::{Error, Result};
use crate::options::LogitOptions;
use cudarc::driver::DeviceRepr;
use cudarc::driver::result::launch_kernel;
use std::ffi::c_void;

pub use crate::cuda::memory::Address;
pub use crate::cuda::raw::linear::log_prob::{linear_token_log_probs, linear_token_log_probs_backward};
pub use crate::cuda::raw::linear::row_loss::{RowLossesAt, linear_row_loss};
pub use crate::cuda::raw::linear::shard::{GatheredRowsAt, UnitSumsAt, linear_partial_rows, linear_unit_gradients};
pub use crate::cuda::raw::linear::{LinearGradientsAt, LinearInputs, LinearOutputsAt, SavedLinearAt};
pub use crate::cuda::raw::log_ratio::{LogRatioInputs, LogRatioOutputs, log_ratios};
pub use crate::cuda::raw::objective::{ObjectiveInputs, ObjectiveOutputs, Rewards, objective};
pub use crate::cuda::raw::partial_row::{PartialRowsAt, merge_rows, partial_rows};
pub use crate::cuda::raw::token_log_prob::{ForwardOutputs, Upstream, token_log_probs, token_log_probs_backward};

/// Target ids on the device: which of the two types, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// `[N]` u32; an id with its highest bit set masks its row.
    U32(Address),
    /// `[N]` i64; a negative id masks its row.
    I64(Address),
}

impl Targets {
    fn parts(self) -> (Address, i32) {
        match self {
            Self::U32(address) => (address, 4),
            Self::I64(address) => (address, 8),
        }
    }
}

/// Bytes of an element.
pub(crate) fn bytes(dtype: Dtype) -> usize {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

/// Whether offsets in bytes within these rows are numbers that a kernel has, i64.
fn bytes_fit(rows: usize, row_stride: usize, dtype: Dtype) -> bool {
    let end = row_stride.checked_mul(rows).and_then(|elements| elements.checked_mul(bytes(dtype)));
    end.is_some_and(|end| i64::try_from(end).is_ok())
}

/// log2 e / T: logits are exponents of two inside of the kernels.
fn scale(options: &LogitOptions) -> f32 {
    (std::f64::consts::LOG2_E / options.temperature()) as f32
}

/// Launches a kernel, `kernel!(file, name)`, with its one struct of arguments: one call of the driver.
///
/// # Safety
/// `arguments` is the struct that this kernel declares, and its addresses are what the kernel takes them for.
pub(super) unsafe fn launch<A: DeviceRepr>(
    cuda: &Cuda,
    kernel: KernelId,
    grid: (u32, u32),
    arguments: &A,
) -> Result<()> {
    let Kernel { function, threads } = cuda.kernels.kernel(kernel)?;
    bind(cuda.stream.context())?;
    let mut of_kernel = [std::ptr::from_ref(arguments).cast_mut().cast::<c_void>()];
    // SAFETY: the caller's promise; the driver has copied the arguments when it returns.
    let launched = unsafe {
        launch_kernel(
            function.cu_function(),
            (grid.0, grid.1, 1),
            (*threads, 1, 1),
            0,
            cuda.stream.cu_stream(),
            &mut of_kernel,
        )
    };
    called("cuLaunchKernel", launched)
}

/// The place of a type in an array of one kernel for each.
pub(super) fn index(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
    }
}

impl Cuda {
    /// What the device has found in the calls of this module and of the stages since the word was cleared. Waits for
    /// the stream.
    ///
    /// # Errors
    /// [`Error::DeviceRowInput`] and [`Error::WithheldRows`], until the word is [cleared](Self::clear_status);
    /// [`Error::Cuda`].
    pub fn status(&self) -> Result<Status> {
        self.unchecked_status()?.check()
    }

    /// The same, whatever was found.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn unchecked_status(&self) -> Result<Status> {
        let _current = CurrentContext::enter(self.stream.context())?;
        self.status.read(&self.stream)
    }

    /// Clears the status word, in the stream's order.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn clear_status(&self) -> Result<()> {
        let _current = CurrentContext::enter(self.stream.context())?;
        self.status.clear(&self.stream)
    }
}

macro_rules! passed_by_value {
    ($($arguments:ty),*) => {$(
        // SAFETY: plain C layout of numbers only, as the kernel declares it.
        unsafe impl cudarc::driver::DeviceRepr for $arguments {}
    )*};
}

pub(crate) use passed_by_value;

/// A matrix of this type and shape at an address.
pub(super) fn at<T: Element>(address: Address, shape: Shape) -> MatrixAt {
    let Shape { rows, columns, row_stride } = shape;
    MatrixAt { address, rows, columns, row_stride, dtype: <T as Element>::DTYPE }
}

/// A matrix on the device: `[rows, columns]`, row stride ≥ columns in elements, aligned to an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixAt {
    /// The first element.
    pub address: Address,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Elements from the start of one row to the start of the next.
    pub row_stride: usize,
    /// The type of an element.
    pub dtype: Dtype,
}

impl MatrixAt {
    pub(crate) fn check(&self) -> Result<()> {
        let Self { rows, columns, row_stride, dtype, .. } = *self;
        let fits = |length: usize| i32::try_from(length).is_ok();
        let is_matrix = columns > 0 && row_stride >= columns;
        if !is_matrix || !fits(rows) || !fits(row_stride) || !bytes_fit(rows, row_stride, dtype) {
            return Err(Error::Shape { elements: usize::MAX, rows: Some(rows), columns, row_stride });
        }
        Ok(())
    }

    /// The address of a row.
    pub(crate) fn row(&self, row: usize) -> Address {
        self.address + (row * self.row_stride * bytes(self.dtype)) as Address
    }

    /// As an operand, from a row on.
    pub(in crate::cuda) fn operand(&self, row: usize, transposed: bool) -> Operand {
        Operand { address: self.row(row), stride: self.row_stride, dtype: self.dtype, transposed }
    }
}
