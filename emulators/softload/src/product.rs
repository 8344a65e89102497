//! How a stand-in for cuBLAS asks the driver for a matrix product: plain data, handed from one library to the other.

/// The name of the driver's function that takes a stream and a [`Product`].
pub const FUNCTION: &std::ffi::CStr = c"softcuda_product";

/// C = alpha · op(A)·op(B) + beta · C, column-major, as `cublasGemmEx` describes it. op(A) is m × k, op(B) k × n.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Product {
    /// 1 if A is stored transposed, k × m.
    pub transpose_a: u32,
    /// 1 if B is stored transposed, n × k.
    pub transpose_b: u32,
    /// Rows of C.
    pub m: u64,
    /// Columns of C.
    pub n: u64,
    /// Terms of each sum.
    pub k: u64,
    /// A.
    pub a: Operand,
    /// B.
    pub b: Operand,
    /// C.
    pub c: Operand,
    /// alpha.
    pub alpha: Scalar,
    /// beta. Where it is 0, C is not read.
    pub beta: Scalar,
    /// 1 if operands of f32 are rounded to TF32, which has 11 significant bits.
    pub tf32: u32,
}

/// A matrix in device memory.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Operand {
    /// Address of the first element.
    pub address: u64,
    /// Elements from one column to the next.
    pub leading_dimension: u64,
    /// `cudaDataType`: one of [`F32`], [`F16`], [`BF16`].
    pub data_type: u64,
}

/// A factor in f32: in device memory, read when the stream comes to it, or a value.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scalar {
    /// Its address; 0 if it is the value.
    pub address: u64,
    /// The value.
    pub value: f32,
}

/// `CUDA_R_32F`.
pub const F32: u64 = 0;
/// `CUDA_R_16F`.
pub const F16: u64 = 2;
/// `CUDA_R_16BF`.
pub const BF16: u64 = 14;
