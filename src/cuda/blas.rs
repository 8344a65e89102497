//! cuBLAS: whether there is one, a handle on a stream, and the one product that the linear stage is made of.

use crate::cuda::context::{FreedInContext, bind};
use crate::cuda::driver::opens;
use crate::cuda::memory::Address;
use crate::element::Dtype;
use crate::error::{Error, Result};
use cudarc::cublas::result::CublasError;
use cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasMath_t, cublasOperation_t, cublasPointerMode_t, cudaDataType_t,
};
use cudarc::cublas::{CudaBlas, result, sys};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtrMut};
use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::sync::Arc;

/// Memory for cuBLAS, in bytes: what its manual recommends for the largest devices. With memory of its own, a handle
/// allocates nothing, can be captured in a graph, and gives the same bits whatever other streams do.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// The names that cudarc looks for and that systems have.
#[cfg(unix)]
fn names() -> Vec<String> {
    let major = cudarc::driver::sys::CUDA_VERSION / 1000;
    let mut names = vec!["libcublas.so".to_owned()];
    names.extend([major, 12, 11].map(|version| format!("libcublas.so.{version}")));
    names
}

#[cfg(windows)]
fn names() -> Vec<String> {
    let major = cudarc::driver::sys::CUDA_VERSION / 1000;
    [major, 12, 11].map(|version| format!("cublas64_{version}.dll")).to_vec()
}

/// Whether cuBLAS can be loaded. Without it cudarc panics at its first call of it; this crate asks first.
pub fn cublas_present() -> bool {
    names().into_iter().filter_map(|name| CString::new(name).ok()).any(|name| opens(&name))
}

fn called<T>(call: &'static str, result: std::result::Result<T, CublasError>) -> Result<T> {
    result.map_err(|error| Error::Cuda { call, code: error.0 as i32, message: error.to_string() })
}

/// A matrix in device memory as cuBLAS sees it: the rows of ours are its columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    pub(super) address: Address,
    /// Elements from one row of ours to the next.
    pub(super) stride: usize,
    pub(super) dtype: Dtype,
    /// Used as its transpose.
    pub(super) transposed: bool,
}

/// C = A·B, in column-major: op(A) m × k, op(B) k × n.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) a: Operand,
    pub(super) b: Operand,
    pub(super) c: Operand,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Adds to C.
    pub(super) accumulate: bool,
    /// Four f32 on the device: the second is what the product is multiplied with, then 0 and 1. 0: a factor of 1.
    pub(super) factors: Address,
}

/// In what the linear stage multiplies numbers of f32 on CUDA. Sums are in f32 always, and products of 16-bit numbers are exact
/// whatever this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LinearPrecision {
    /// f32, as it is written. The default, as in PyTorch.
    #[default]
    F32,
    /// Operands are rounded to TF32, which has 11 significant bits: each is off by up to 2⁻¹¹ of itself. Several times as fast
    /// on tensor cores.
    Tf32,
    /// By products of bf16 parts, which keep f32's digits and are faster on Blackwell: cuBLAS's, from 12.9 on. Where it has none
    /// for a shape or a device it multiplies in f32.
    Bf16x9,
}

impl LinearPrecision {
    /// As cuBLAS is asked for it.
    fn compute_type(self) -> Result<cublasComputeType_t> {
        match self {
            Self::F32 => Ok(cublasComputeType_t::CUBLAS_COMPUTE_32F),
            Self::Tf32 => Ok(cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32),
            Self::Bf16x9 => emulated(),
        }
    }

    /// Checks that this build knows how to ask for it.
    pub(super) fn check(self) -> Result<()> {
        self.compute_type().map(drop)
    }
}

/// `CUBLAS_COMPUTE_32F_EMULATED_16BFX9`, which cudarc has a name for where it is built for CUDA 12.9 or later.
fn emulated() -> Result<cublasComputeType_t> {
    const EMULATED: u32 = 78;
    if cudarc::driver::sys::CUDA_VERSION < 12_090 {
        return Err(Error::Cuda {
            call: "cublasGemmEx",
            code: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED as i32,
            message: "this build is for a CUDA before 12.9, whose cuBLAS has no BF16x9 products".to_owned(),
        });
    }
    // SAFETY: a name of the enumeration in each version of cudarc's bindings from 12.9 on, which has just been asked for.
    Ok(unsafe { std::mem::transmute::<u32, cublasComputeType_t>(EMULATED) })
}

/// A handle on a stream, with its memory.
pub(crate) struct Blas {
    stream: Arc<CudaStream>,
    handle: CudaBlas,
    /// Where it takes factors from, if that has been said.
    pointer_mode: Cell<Option<cublasPointerMode_t>>,
    /// Freed behind the handle, since fields are dropped in their order.
    _workspace: CudaSlice<u8>,
}

impl Blas {
    /// How many references to the stream it holds: its own, cudarc's handle's, and the workspace's.
    pub(super) const STREAM_REFERENCES: usize = 3;

    /// A handle on a stream.
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        if !cublas_present() {
            return Err(Error::NoCublas);
        }
        bind(stream.context())?;
        let handle = called("cublasCreate_v2", CudaBlas::new(stream.clone()))?;
        // SAFETY: nobody but cuBLAS uses it, which reads nothing that it has not written.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE_BYTES) };
        let mut workspace = crate::cuda::driver::called("cuMemAllocAsync", workspace)?;
        let address = workspace.device_ptr_mut(stream).0 as *mut c_void;
        // SAFETY: a live handle; the memory is as long as said and outlives it.
        let set = unsafe { sys::cublasSetWorkspace_v2(*handle.handle(), address, WORKSPACE_BYTES) };
        called("cublasSetWorkspace_v2", set.result())?;
        // f32 products are f32, not TF32; and 16-bit results are rounded once, behind a sum in f32.
        let mode = cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: a live handle.
        called("cublasSetMathMode", unsafe { sys::cublasSetMathMode(*handle.handle(), mode) }.result())?;
        Ok(Self { stream: stream.clone(), handle, pointer_mode: Cell::new(None), _workspace: workspace })
    }

    /// Launches a product. Sums are in f32; without atomics, so that it gives the same bits again.
    ///
    /// # Safety
    /// The addresses are of matrices of these shapes and types, which nothing else touches until the stream has run it;
    /// C overlaps neither A nor B.
    pub(super) unsafe fn product(&self, product: &Product, precision: LinearPrecision) -> Result<()> {
        let Product { a, b, c, m, n, k, accumulate, factors } = *product;
        let length = |length: usize| {
            i32::try_from(length).map_err(|_| Error::Parameter {
                name: "length of a matrix product",
                given: length as f64,
                expected: "at most 2^31 - 1",
            })
        };
        let values = [1.0_f32, if accumulate { 1.0 } else { 0.0 }];
        let (alpha, beta, mode) = if factors == 0 {
            let mode = cublasPointerMode_t::CUBLAS_POINTER_MODE_HOST;
            ((&raw const values[0]).cast::<c_void>(), (&raw const values[1]).cast::<c_void>(), mode)
        } else {
            let beta = factors + if accumulate { 12 } else { 8 };
            ((factors + 4) as *const c_void, beta as *const c_void, cublasPointerMode_t::CUBLAS_POINTER_MODE_DEVICE)
        };
        // The handle's context must be that of the calling thread, whichever made it.
        bind(self.stream.context())?;
        if self.pointer_mode.get() != Some(mode) {
            called("cublasSetPointerMode_v2", self.handle.set_pointer_mode(mode))?;
            self.pointer_mode.set(Some(mode));
        }
        let (m, n, k) = (length(m)?, length(n)?, length(k)?);
        let (a_stride, b_stride, c_stride) = (length(a.stride)?, length(b.stride)?, length(c.stride)?);
        // SAFETY: the caller's promise; the factors are read by the call, or lie on the device.
        let done = unsafe {
            result::gemm_ex(
                *self.handle.handle(),
                operation(a.transposed),
                operation(b.transposed),
                m,
                n,
                k,
                alpha,
                a.address as *const c_void,
                data_type(a.dtype),
                a_stride,
                b.address as *const c_void,
                data_type(b.dtype),
                b_stride,
                beta,
                c.address as *mut c_void,
                data_type(c.dtype),
                c_stride,
                precision.compute_type()?,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        called("cublasGemmEx", done)
    }
}

/// The handle is destroyed in the context that is current.
impl FreedInContext for Blas {
    fn freed_in(&self) -> Option<&CudaContext> {
        Some(self.stream.context())
    }
}

fn operation(transposed: bool) -> cublasOperation_t {
    if transposed { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N }
}

fn data_type(dtype: Dtype) -> cudaDataType_t {
    match dtype {
        Dtype::F32 => cudaDataType_t::CUDA_R_32F,
        Dtype::F16 => cudaDataType_t::CUDA_R_16F,
        Dtype::Bf16 => cudaDataType_t::CUDA_R_16BF,
    }
}
