//! The entry points: handles, their settings, and products.

use softload::library;
use softload::product::{BF16, F16, F32, FUNCTION, Operand, Product, Scalar};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::panic::catch_unwind;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// `cublasStatus_t`.
pub(crate) type Status = c_int;
pub(crate) const SUCCESS: Status = 0;
const NOT_INITIALIZED: Status = 1;
const INVALID_VALUE: Status = 7;
const EXECUTION_FAILED: Status = 13;
const INTERNAL_ERROR: Status = 14;
pub(crate) const NOT_SUPPORTED: Status = 15;

/// `cublasComputeType_t`: f32, and f32 as it is written.
const COMPUTE_32F: c_int = 68;
const COMPUTE_32F_PEDANTIC: c_int = 69;
/// f32 by way of TF32; and f32 by nine products of bf16 parts, which is as exact as f32: here it is f32.
const COMPUTE_32F_FAST_TF32: c_int = 77;
const COMPUTE_32F_EMULATED_16BFX9: c_int = 78;
/// `cublasPointerMode_t`: scalars in memory of the device.
const POINTER_MODE_DEVICE: c_int = 1;
/// `cublasMath_t`: default, pedantic, and no reduction in less than the type that was asked for. TF32 is there as a compute
/// type only: what is not implemented must not look as if it were.
const MATH_MODES: [c_int; 4] = [0, 2, 16, 18];

/// A handle's settings.
#[derive(Clone, Copy, Default)]
struct Settings {
    stream: u64,
    device_scalars: bool,
}

#[derive(Default)]
struct Handles {
    settings: HashMap<usize, Settings>,
    last: usize,
}

fn handles() -> MutexGuard<'static, Handles> {
    static HANDLES: LazyLock<Mutex<Handles>> = LazyLock::new(Mutex::default);
    HANDLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the body of an entry point: no unwinding into C.
fn run(body: impl FnOnce() -> Result<(), Status> + std::panic::UnwindSafe) -> Status {
    match catch_unwind(body) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(status)) => status,
        Err(_) => INTERNAL_ERROR,
    }
}

/// Changes a handle's settings.
fn set(handle: usize, change: impl FnOnce(&mut Settings) -> Result<(), Status>) -> Result<(), Status> {
    change(handles().settings.get_mut(&handle).ok_or(NOT_INITIALIZED)?)
}

/// Says on stderr what was asked for that is not there.
fn unsupported(what: &str, value: c_int) -> Status {
    eprintln!("softcublas: {what} {value} is not supported");
    NOT_SUPPORTED
}

/// By this function the library is told from any other of its name.
#[unsafe(no_mangle)]
extern "C" fn softcublas_is_here() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cublasCreate_v2(handle: *mut usize) -> Status {
    run(|| {
        if handle.is_null() {
            return Err(INVALID_VALUE);
        }
        let mut handles = handles();
        handles.last += 16;
        let new = handles.last;
        handles.settings.insert(new, Settings::default());
        // SAFETY: the caller gives a place for a handle.
        unsafe { handle.write(new) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasDestroy_v2(handle: usize) -> Status {
    run(|| handles().settings.remove(&handle).map(drop).ok_or(NOT_INITIALIZED))
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetStream_v2(handle: usize, stream: u64) -> Status {
    run(|| {
        set(handle, |settings| {
            settings.stream = stream;
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetWorkspace_v2(handle: usize, workspace: *mut c_void, bytes: usize) -> Status {
    // Not needed here; cuBLAS asks for this alignment.
    run(|| {
        set(handle, |_| {
            if bytes > 0 && (workspace.is_null() || !(workspace as usize).is_multiple_of(256)) {
                return Err(INVALID_VALUE);
            }
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetMathMode(handle: usize, mode: c_int) -> Status {
    run(|| set(handle, |_| if MATH_MODES.contains(&mode) { Ok(()) } else { Err(unsupported("math mode", mode)) }))
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetPointerMode_v2(handle: usize, mode: c_int) -> Status {
    run(|| {
        set(handle, |settings| {
            settings.device_scalars = mode == POINTER_MODE_DEVICE;
            if (0..=POINTER_MODE_DEVICE).contains(&mode) { Ok(()) } else { Err(INVALID_VALUE) }
        })
    })
}

/// `cublasOperation_t`: whether it is transposed; conjugated is the same for real numbers.
fn transposed(operation: c_int) -> Result<u32, Status> {
    match operation {
        0 => Ok(0),
        1 | 2 => Ok(1),
        _ => Err(INVALID_VALUE),
    }
}

/// A scalar of the caller's, read now or where the stream comes to it.
///
/// # Safety
/// Unless it is in memory of the device, `pointer` is null or points to an f32.
unsafe fn scalar(pointer: *const f32, on_device: bool) -> Result<Scalar, Status> {
    if pointer.is_null() {
        return Err(INVALID_VALUE);
    }
    if on_device {
        return Ok(Scalar { address: pointer as u64, value: 0.0 });
    }
    // SAFETY: the caller's promise.
    Ok(Scalar { address: 0, value: unsafe { pointer.read_unaligned() } })
}

fn operand(address: u64, data_type: c_int, leading_dimension: c_int, rows: u64) -> Result<Operand, Status> {
    let leading_dimension = u64::try_from(leading_dimension).map_err(|_| INVALID_VALUE)?;
    if leading_dimension < rows.max(1) {
        return Err(INVALID_VALUE);
    }
    Ok(Operand { address, leading_dimension, data_type: data_type as u64 })
}

/// The driver's function that performs a product.
fn driver() -> Result<extern "C" fn(u64, *const Product) -> c_int, Status> {
    let function = library::symbol(c"libcuda.so", FUNCTION).ok_or(NOT_INITIALIZED)?;
    // SAFETY: softcuda's function of this name has this signature.
    Ok(unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(u64, *const Product) -> c_int>(function) })
}

/// # Safety
/// As cuBLAS asks for: `alpha` and `beta` point to f32, of the host or of the device as the pointer mode says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cublasGemmEx(
    handle: usize,
    operation_a: c_int,
    operation_b: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const f32,
    a: u64,
    a_type: c_int,
    a_leading: c_int,
    b: u64,
    b_type: c_int,
    b_leading: c_int,
    beta: *const f32,
    c: u64,
    c_type: c_int,
    c_leading: c_int,
    compute_type: c_int,
    _algorithm: c_int,
) -> Status {
    run(|| {
        let settings = *handles().settings.get(&handle).ok_or(NOT_INITIALIZED)?;
        let length = |length: c_int| u64::try_from(length).map_err(|_| INVALID_VALUE);
        let (m, n, k) = (length(m)?, length(n)?, length(k)?);
        let (transpose_a, transpose_b) = (transposed(operation_a)?, transposed(operation_b)?);
        let known = [COMPUTE_32F, COMPUTE_32F_PEDANTIC, COMPUTE_32F_FAST_TF32, COMPUTE_32F_EMULATED_16BFX9];
        if !known.contains(&compute_type) {
            return Err(unsupported("compute type", compute_type));
        }
        // The table of cublasGemmEx for f32 sums of real numbers: C has the operands' type, or is f32.
        let (a_kind, c_kind) = (a_type as u64, c_type as u64);
        if a_type != b_type || ![F32, F16, BF16].contains(&a_kind) || ![a_kind, F32].contains(&c_kind) {
            return Err(unsupported("a product of these types, that of C being", c_type));
        }
        let product = Product {
            transpose_a,
            transpose_b,
            m,
            n,
            k,
            a: operand(a, a_type, a_leading, if transpose_a == 0 { m } else { k })?,
            b: operand(b, b_type, b_leading, if transpose_b == 0 { k } else { n })?,
            c: operand(c, c_type, c_leading, m)?,
            // SAFETY: the caller's promise.
            alpha: unsafe { scalar(alpha, settings.device_scalars)? },
            // SAFETY: the caller's promise.
            beta: unsafe { scalar(beta, settings.device_scalars)? },
            tf32: u32::from(compute_type == COMPUTE_32F_FAST_TF32),
        };
        if m == 0 || n == 0 {
            return Ok(());
        }
        if driver()?(settings.stream, &raw const product) == 0 { Ok(()) } else { Err(EXECUTION_FAILED) }
    })
}
