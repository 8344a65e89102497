//! cuBLAS and cuRAND for softcuda, as far as candle calls them: f32 matrix products by plain loops on the host, and a
//! generator that can be made but draws nothing. Everything else says that it is not supported.
//!
//! `build.rs` compiles this file alone, to the library `libcublas.so` that the tests are linked with.

#![allow(non_snake_case, reason = "the names are NVIDIA's")]

use std::ffi::{c_int, c_longlong, c_void};

/// `CUBLAS_STATUS_*`; 0 is `CURAND_STATUS_SUCCESS` too.
const SUCCESS: c_int = 0;
const EXECUTION_FAILED: c_int = 13;
const NOT_SUPPORTED: c_int = 15;
/// `cublasOperation_t`.
const NOT_TRANSPOSED: c_int = 0;
const TRANSPOSED: c_int = 1;
/// `cudaDataType`.
const F32: c_int = 0;
/// `cublasComputeType_t`: in f32, or by hardware that rounds to TF32 first, which nobody has to have.
const COMPUTE_F32: [c_int; 2] = [68, 77];

// Of the driver, which is softcuda: the program has it open.
unsafe extern "C" {
    fn cuMemcpyDtoH_v2(host: *mut c_void, device: u64, bytes: usize) -> c_int;
    fn cuMemcpyHtoD_v2(device: u64, host: *const c_void, bytes: usize) -> c_int;
    fn cuStreamSynchronize(stream: *mut c_void) -> c_int;
}

/// What a handle points to.
struct Handle {
    stream: *mut c_void,
}

/// # Safety
/// `handle` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasCreate_v2(handle: *mut *mut Handle) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { handle.write(Box::into_raw(Box::new(Handle { stream: std::ptr::null_mut() }))) };
    SUCCESS
}

/// # Safety
/// `handle` is one, and is not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasDestroy_v2(handle: *mut Handle) -> c_int {
    // SAFETY: the caller's promise; it was made of a box.
    drop(unsafe { Box::from_raw(handle) });
    SUCCESS
}

/// # Safety
/// `handle` is one, and nobody else uses it now.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasSetStream_v2(handle: *mut Handle, stream: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { (*handle).stream = stream };
    SUCCESS
}

/// One operand: `rows` by `columns` in memory, column after column, `leading` elements apart.
#[derive(Clone, Copy)]
struct Matrix {
    address: u64,
    rows: usize,
    columns: usize,
    leading: usize,
}

impl Matrix {
    /// Columns without the gaps between them.
    fn read(self) -> Option<Vec<f32>> {
        let mut elements = vec![0.0; self.rows * self.columns];
        for (column, place) in elements.chunks_mut(self.rows.max(1)).enumerate() {
            // SAFETY: the place is as long as is copied; the driver checks the other end.
            let status = unsafe { cuMemcpyDtoH_v2(place.as_mut_ptr().cast(), self.column(column), size_of_val(place)) };
            (status == 0).then_some(())?;
        }
        Some(elements)
    }

    fn write(self, elements: &[f32]) -> Option<()> {
        for (column, place) in elements.chunks(self.rows.max(1)).enumerate() {
            // SAFETY: as in `read`.
            let status = unsafe { cuMemcpyHtoD_v2(self.column(column), place.as_ptr().cast(), size_of_val(place)) };
            (status == 0).then_some(())?;
        }
        Some(())
    }

    fn column(self, column: usize) -> u64 {
        self.address + (column * self.leading * size_of::<f32>()) as u64
    }
}

/// C = alpha·op(A)·op(B) + beta·C for each of `batch` triples, with op(A) m by k and op(B) k by n.
///
/// # Safety
/// `handle` is one; `alpha` and `beta` point to an f32 on the host.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasGemmStridedBatchedEx(
    handle: *const Handle,
    operation_a: c_int,
    operation_b: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const f32,
    a: u64,
    type_a: c_int,
    leading_a: c_int,
    stride_a: c_longlong,
    b: u64,
    type_b: c_int,
    leading_b: c_int,
    stride_b: c_longlong,
    beta: *const f32,
    c: u64,
    type_c: c_int,
    leading_c: c_int,
    stride_c: c_longlong,
    batch: c_int,
    compute: c_int,
    _algorithm: c_int,
) -> c_int {
    let types = [type_a, type_b, type_c] == [F32; 3] && COMPUTE_F32.contains(&compute);
    let operations = [operation_a, operation_b].iter().all(|given| [NOT_TRANSPOSED, TRANSPOSED].contains(given));
    // SAFETY: the caller's promise.
    let (stream, alpha, beta) = unsafe { ((*handle).stream, *alpha, *beta) };
    if !types || !operations || beta != 0.0 {
        return NOT_SUPPORTED;
    }
    let [m, n, k, leading_a, leading_b, leading_c] = [m, n, k, leading_a, leading_b, leading_c].map(|n| n as usize);
    // SAFETY: the stream that the handle was given; the driver checks it.
    if unsafe { cuStreamSynchronize(stream) } != 0 {
        return EXECUTION_FAILED;
    }
    let of_batch = |address: u64, stride: c_longlong, index: c_int| {
        address.wrapping_add_signed(stride * c_longlong::from(index) * size_of::<f32>() as c_longlong)
    };
    let stored = |rows, columns, operation| if operation == NOT_TRANSPOSED { (rows, columns) } else { (columns, rows) };
    for index in 0..batch {
        let (rows, columns) = stored(m, k, operation_a);
        let a = Matrix { address: of_batch(a, stride_a, index), rows, columns, leading: leading_a };
        let (rows, columns) = stored(k, n, operation_b);
        let b = Matrix { address: of_batch(b, stride_b, index), rows, columns, leading: leading_b };
        let c = Matrix { address: of_batch(c, stride_c, index), rows: m, columns: n, leading: leading_c };
        let (Some(left), Some(right)) = (a.read(), b.read()) else { return EXECUTION_FAILED };
        let (left_row, left_inner) = if operation_a == NOT_TRANSPOSED { (1, a.rows) } else { (a.rows, 1) };
        let (right_inner, right_column) = if operation_b == NOT_TRANSPOSED { (1, b.rows) } else { (b.rows, 1) };
        let product: Vec<f32> = (0..m * n)
            .map(|place| {
                let (row, column) = (place % m, place / m);
                let term =
                    |i: usize| left[row * left_row + i * left_inner] * right[i * right_inner + column * right_column];
                alpha * (0..k).map(term).sum::<f32>()
            })
            .collect();
        if c.write(&product).is_none() {
            return EXECUTION_FAILED;
        }
    }
    SUCCESS
}

/// # Safety
/// `generator` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn curandCreateGenerator(generator: *mut *mut c_void, _kind: c_int) -> c_int {
    // SAFETY: the caller's promise. Nobody looks behind it.
    unsafe { generator.write(std::ptr::NonNull::dangling().as_ptr()) };
    SUCCESS
}

/// Functions that give a status, whatever their arguments: C lets a caller give more than a function takes.
macro_rules! give {
    ($($status:ident: $($name:ident)*;)*) => {$($(
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> c_int {
            $status
        }
    )*)*};
}

give! {
    SUCCESS: curandDestroyGenerator curandSetStream curandSetPseudoRandomGeneratorSeed;
    NOT_SUPPORTED: cublasDgemmStridedBatched;
}
