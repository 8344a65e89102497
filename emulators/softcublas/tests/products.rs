//! Products against f64, and that they are work of a stream: ordered, captured, checked and counted. One test at a time
//! has the settings of softcuda. Where there is a real driver and cuBLAS, the arithmetic is held to the same bounds.

use cudarc::cublas::result::CublasError;
use cudarc::cublas::sys::{
    self, cublasComputeType_t, cublasGemmAlgo_t, cublasMath_t, cublasOperation_t, cublasPointerMode_t, cublasStatus_t,
    cudaDataType_t,
};
use cudarc::cublas::{CudaBlas, result};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr};
use half::{bf16, f16};
use softcuda::Settings;
use softcuda::report::FaultKind;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static ALONE: Mutex<()> = Mutex::new(());

/// A stream that is ordered with no other, and a handle on it.
fn blas(settings: &Settings) -> (MutexGuard<'static, ()>, Arc<CudaStream>, CudaBlas) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    softcuda::install().expect("softcuda");
    softcublas::install().expect("softcublas");
    if let Some(control) = softcuda::control() {
        control.reset();
        control.configure(settings);
    }
    let context = CudaContext::new(0).expect("a device");
    // SAFETY: the tests use one stream, or order two by hand.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    let blas = CudaBlas::new(stream.clone()).expect("a handle");
    (alone, stream, blas)
}

trait Number: DeviceRepr + Copy + PartialEq + std::fmt::Debug {
    const TYPE: cudaDataType_t;
    /// Of one rounding to this type.
    const ROUNDOFF: f64;
    fn of(value: f64) -> Self;
    fn wide(self) -> f64;
}

macro_rules! number {
    ($($number:ty, $kind:ident, $roundoff:expr, $of:expr, $wide:expr;)*) => {$(
        impl Number for $number {
            const TYPE: cudaDataType_t = cudaDataType_t::$kind;
            const ROUNDOFF: f64 = $roundoff;
            fn of(value: f64) -> Self { $of(value) }
            fn wide(self) -> f64 { $wide(self) }
        }
    )*};
}
number! {
    f32, CUDA_R_32F, 1.0 / (1u64 << 24) as f64, |value| value as f32, f64::from;
    f16, CUDA_R_16F, 1.0 / 2048.0, f16::from_f64, f16::to_f64;
    bf16, CUDA_R_16BF, 1.0 / 256.0, bf16::from_f64, bf16::to_f64;
}

/// Numbers between -1 and 1 without a pattern.
fn numbers<T: Number>(count: usize, seed: u64) -> Vec<T> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::of((state >> 40) as f64 / (1u64 << 23) as f64 - 1.0)
    };
    (0..count).map(|_| next()).collect()
}

/// Shape, transposes, and how many elements the leading dimensions are larger than they must be.
#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    transpose_a: bool,
    transpose_b: bool,
    padding: usize,
}

impl Case {
    fn leading(&self) -> [usize; 3] {
        let a = if self.transpose_a { self.k } else { self.m };
        let b = if self.transpose_b { self.n } else { self.k };
        [a, b, self.m].map(|rows| rows.max(1).wrapping_add(self.padding))
    }

    fn lengths(&self) -> [usize; 3] {
        let [a, b, c] = self.leading();
        let columns_a = if self.transpose_a { self.m } else { self.k };
        let columns_b = if self.transpose_b { self.k } else { self.n };
        // An allocation of nothing would be none.
        [a * columns_a, b * columns_b, c * self.n].map(|length| length.max(1))
    }
}

fn operation(transposed: bool) -> cublasOperation_t {
    if transposed { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N }
}

/// Where alpha and beta are.
#[derive(Clone, Copy)]
enum Factors<'a> {
    Values(f32, f32),
    Device(&'a CudaSlice<f32>),
}

fn product<T: Number, C: Number>(
    blas: &CudaBlas,
    stream: &Arc<CudaStream>,
    case: Case,
    factors: Factors<'_>,
    matrices: (&CudaSlice<T>, &CudaSlice<T>, &mut CudaSlice<C>),
) -> Result<(), CublasError> {
    product_in(cublasComputeType_t::CUBLAS_COMPUTE_32F, blas, stream, case, factors, matrices)
}

fn product_in<T: Number, C: Number>(
    compute_type: cublasComputeType_t,
    blas: &CudaBlas,
    stream: &Arc<CudaStream>,
    case: Case,
    factors: Factors<'_>,
    (a, b, c): (&CudaSlice<T>, &CudaSlice<T>, &mut CudaSlice<C>),
) -> Result<(), CublasError> {
    let leading = case.leading().map(|leading| leading as i32);
    let values;
    let (alpha, beta, mode) = match factors {
        Factors::Values(alpha, beta) => {
            values = [alpha, beta];
            (&raw const values[0], &raw const values[1], cublasPointerMode_t::CUBLAS_POINTER_MODE_HOST)
        }
        Factors::Device(both) => {
            let address = both.device_ptr(stream).0;
            (address as *const f32, (address + 4) as *const f32, cublasPointerMode_t::CUBLAS_POINTER_MODE_DEVICE)
        }
    };
    blas.set_pointer_mode(mode)?;
    // SAFETY: the matrices have the lengths of the case, and are used in the order of one stream.
    unsafe {
        result::gemm_ex(
            *blas.handle(),
            operation(case.transpose_a),
            operation(case.transpose_b),
            case.m as i32,
            case.n as i32,
            case.k as i32,
            alpha.cast(),
            a.device_ptr(stream).0 as *const c_void,
            T::TYPE,
            leading[0],
            b.device_ptr(stream).0 as *const c_void,
            T::TYPE,
            leading[1],
            beta.cast(),
            c.device_ptr_mut(stream).0 as *mut c_void,
            C::TYPE,
            leading[2],
            compute_type,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
}

/// Operands of f32 are rounded to 11 significant bits where that is asked for, and 16-bit ones are not touched: a product with
/// one shows them.
#[test]
fn tf32_rounds_operands_of_f32() {
    fn of_ones<T: Number>(compute_type: cublasComputeType_t, a: &[T]) -> Vec<f32> {
        let (_alone, stream, blas) = blas(&Settings::default());
        let case = Case { m: a.len(), n: 1, k: 1, transpose_a: false, transpose_b: false, padding: 0 };
        let (device_a, ones) = (stream.clone_htod(a).expect("a"), stream.clone_htod(&[T::of(1.0)]).expect("b"));
        let mut c = stream.clone_htod(&vec![0.0_f32; a.len()]).expect("c");
        let matrices = (&device_a, &ones, &mut c);
        product_in(compute_type, &blas, &stream, case, Factors::Values(1.0, 0.0), matrices).expect("a product");
        stream.clone_dtoh(&c).expect("c")
    }
    let unit = 1.0 / 1024.0;
    let numbers = [1.0, 1.0 + unit, 1.0 + 0.49 * unit, 1.0 + 0.51 * unit, -1.0 - 0.75 * unit, 0.0, 3e-5, f32::INFINITY];
    let rounded = of_ones(cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32, &numbers);
    assert_eq!(rounded[..6], [1.0, 1.0 + unit, 1.0, 1.0 + unit, -1.0 - unit, 0.0]);
    assert!((rounded[6] / 3e-5 - 1.0).abs() <= 0.5 * unit && rounded[7] == f32::INFINITY, "{rounded:?}");
    assert_eq!(of_ones(cublasComputeType_t::CUBLAS_COMPUTE_32F, &numbers), numbers);
    let narrow = [bf16::ONE, bf16::from_f32(1.007_812_5)];
    let wide = narrow.map(bf16::to_f32);
    assert_eq!(of_ones(cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32, &narrow), wide);
}

/// Every element within γ(k + 2) of the terms' sizes, what a sum in f32 in any order keeps, and one rounding.
fn check<T: Number, C: Number>(case: Case, alpha: f32, beta: f32) {
    let (_alone, stream, blas) = blas(&Settings::default());
    let [a_length, b_length, c_length] = case.lengths();
    let (a, b, c) = (numbers::<T>(a_length, 1), numbers::<T>(b_length, 2), numbers::<C>(c_length, 3));
    let (device_a, device_b) = (stream.clone_htod(&a).expect("a"), stream.clone_htod(&b).expect("b"));
    let mut device_c = stream.clone_htod(&c).expect("c");
    let operands = (&device_a, &device_b, &mut device_c);
    product(&blas, &stream, case, Factors::Values(alpha, beta), operands).expect("a product");
    let computed = stream.clone_dtoh(&device_c).expect("c");
    let [la, lb, lc] = case.leading();
    for (at, number) in computed.iter().enumerate() {
        let (row, column) = (at % lc, at / lc);
        if row >= case.m {
            assert_eq!(*number, c[at], "what lies between the columns is not written: {case:?}");
            continue;
        }
        let (mut sum, mut size) = (0.0, 0.0);
        for term in 0..case.k {
            let a = a[if case.transpose_a { row * la + term } else { term * la + row }].wide();
            let b = b[if case.transpose_b { term * lb + column } else { column * lb + term }].wide();
            sum += a * b;
            size += (a * b).abs();
        }
        let before = f64::from(beta) * c[at].wide();
        let (expected, size) = (f64::from(alpha) * sum + before, f64::from(alpha).abs() * size + before.abs());
        let bound = (case.k + 2) as f64 * f32::ROUNDOFF * size * 1.001;
        let bound = bound + (expected.abs() + bound) * C::ROUNDOFF;
        let error = (number.wide() - expected).abs();
        assert!(error <= bound, "{case:?} {row} {column}: {number:?}, {expected} +- {bound} expected");
    }
}

const CASES: [Case; 6] = [
    Case { m: 1, n: 1, k: 1, transpose_a: false, transpose_b: false, padding: 0 },
    Case { m: 5, n: 7, k: 33, transpose_a: true, transpose_b: false, padding: 3 },
    Case { m: 33, n: 4, k: 17, transpose_a: false, transpose_b: false, padding: 1 },
    Case { m: 16, n: 600, k: 9, transpose_a: false, transpose_b: true, padding: 0 },
    Case { m: 600, n: 3, k: 40, transpose_a: true, transpose_b: true, padding: 5 },
    Case { m: 4, n: 4, k: 0, transpose_a: false, transpose_b: true, padding: 0 },
];

#[test]
fn products_are_those_of_f64() {
    for case in CASES.into_iter().filter(|case| case.k > 0) {
        for (alpha, beta) in [(1.0, 0.0), (-0.25, 1.0), (2.0, 0.5)] {
            check::<f32, f32>(case, alpha, beta);
            check::<f16, f16>(case, alpha, beta);
            check::<bf16, bf16>(case, alpha, beta);
            check::<f16, f32>(case, alpha, beta);
            check::<bf16, f32>(case, alpha, beta);
        }
    }
}

#[test]
fn without_terms_only_beta_is_left() {
    check::<f32, f32>(CASES[5], 1.0, 0.5);
}

/// The bits of an element are the same in a product of fewer rows and columns.
#[test]
fn an_element_does_not_depend_on_the_others() {
    let (_alone, stream, blas) = blas(&Settings::default());
    if softcuda::control().is_none() {
        println!("NOT RUN: cuBLAS does not promise this");
        return;
    }
    let whole = Case { m: 700, n: 9, k: 50, transpose_a: true, transpose_b: false, padding: 0 };
    let (a, b) = (numbers::<f32>(700 * 50, 5), numbers::<f32>(9 * 50, 6));
    let compute = |case: Case, a: &[f32], b: &[f32]| {
        let (a, b) = (stream.clone_htod(a).expect("a"), stream.clone_htod(b).expect("b"));
        let mut c = stream.alloc_zeros::<f32>(case.m * case.n).expect("c");
        product(&blas, &stream, case, Factors::Values(1.0, 0.0), (&a, &b, &mut c)).expect("a product");
        stream.clone_dtoh(&c).expect("c")
    };
    let expected = compute(whole, &a, &b);
    for (row, column) in [(0, 0), (511, 3), (512, 8), (699, 1)] {
        let one = Case { m: 1, n: 1, ..whole };
        let alone = compute(one, &a[row * 50..(row + 1) * 50], &b[column * 50..(column + 1) * 50]);
        assert_eq!(alone[0].to_bits(), expected[column * 700 + row].to_bits(), "{row} {column}");
    }
}

const SMALL: Case = Case { m: 2, n: 2, k: 2, transpose_a: false, transpose_b: false, padding: 0 };

/// Nothing runs before something orders it, and then in order: the product sees the copy before it, and the factors
/// that are in memory at that time.
#[test]
fn a_product_waits_for_its_stream() {
    let settings = Settings { delay_streams: true, ..Settings::default() };
    let (_alone, stream, blas) = blas(&settings);
    let mut a = stream.alloc_zeros::<f32>(4).expect("a");
    let mut factors = stream.alloc_zeros::<f32>(2).expect("factors");
    let b = stream.clone_htod(&[1.0_f32, 0.0, 0.0, 1.0]).expect("b");
    let mut c = stream.clone_htod(&[f32::NAN; 4]).expect("c");
    stream.memcpy_htod(&[1.0, 2.0, 3.0, 4.0], &mut a).expect("a");
    stream.memcpy_htod(&[2.0, 0.0], &mut factors).expect("factors");
    if let Some(control) = softcuda::control() {
        control.take_launches();
    }
    product(&blas, &stream, SMALL, Factors::Device(&factors), (&a, &b, &mut c)).expect("a product");
    if let Some(control) = softcuda::control() {
        assert!(control.take_launches().is_empty(), "the product has run, and nothing has asked for it");
    }
    stream.memset_zeros(&mut a).expect("a");
    assert_eq!(stream.clone_dtoh(&c).expect("c"), [2.0, 4.0, 6.0, 8.0]);
}

#[test]
fn a_captured_product_is_replayed() {
    let (_alone, stream, blas) = blas(&Settings::default());
    let mut a = stream.clone_htod(&[1.0_f32, 2.0, 3.0, 4.0]).expect("a");
    let b = stream.clone_htod(&[1.0_f32, 0.0, 0.0, 1.0]).expect("b");
    let mut c = stream.clone_htod(&[10.0_f32; 4]).expect("c");
    stream.synchronize().expect("no fault");
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
    product(&blas, &stream, SMALL, Factors::Values(1.0, 1.0), (&a, &b, &mut c)).expect("a product");
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("the end").expect("a graph");
    assert_eq!(stream.clone_dtoh(&c).expect("c"), [10.0; 4], "a captured product does not run");
    graph.launch().expect("a replay");
    stream.memcpy_htod(&[0.0, 0.0, 0.0, 1.0], &mut a).expect("a");
    graph.launch().expect("a replay");
    assert_eq!(stream.clone_dtoh(&c).expect("c"), [11.0, 12.0, 13.0, 15.0]);
}

#[test]
fn what_is_wrong_with_a_matrix_is_found() {
    let (_alone, stream, blas) = blas(&Settings::default());
    let Some(control) = softcuda::control() else {
        println!("NOT RUN: a real device looks for none of this");
        return;
    };
    let good = stream.clone_htod(&[1.0_f32; 4]).expect("numbers");
    let mut c = stream.alloc_zeros::<f32>(4).expect("c");
    // SAFETY: that nobody has written it is what the test is about.
    let unwritten = unsafe { stream.alloc::<f32>(4) }.expect("memory");
    let short = stream.clone_htod(&[1.0_f32; 3]).expect("numbers");
    let mut short_c = stream.alloc_zeros::<f32>(3).expect("c");
    let values = Factors::Values(1.0, 0.0);
    let fault = || {
        let _ = stream.synchronize();
        let fault = control.take_fault().map(|fault| fault.kind);
        control.clear_fault();
        fault
    };
    let mut try_it = |a, b| {
        let _ = product(&blas, &stream, SMALL, values, (a, b, &mut c));
        fault()
    };
    assert_eq!(try_it(&good, &good), None);
    assert_eq!(try_it(&unwritten, &good), Some(FaultKind::Uninitialized));
    assert_eq!(try_it(&good, &unwritten), Some(FaultKind::Uninitialized));
    assert_eq!(try_it(&good, &short), Some(FaultKind::OutOfBounds));
    let _ = product(&blas, &stream, SMALL, values, (&good, &good, &mut short_c));
    assert_eq!(fault(), Some(FaultKind::OutOfBounds));
    // beta = 0 reads nothing of C, any other beta all of it.
    // SAFETY: as above.
    let mut unwritten_c = unsafe { stream.alloc::<f32>(4) }.expect("memory");
    let _ = product(&blas, &stream, SMALL, Factors::Values(1.0, 1.0), (&good, &good, &mut unwritten_c));
    assert_eq!(fault(), Some(FaultKind::Uninitialized));
    let _ = product(&blas, &stream, SMALL, values, (&good, &good, &mut unwritten_c));
    assert_eq!(fault(), None);
}

#[test]
fn a_product_is_reported_with_its_bytes() {
    let (_alone, stream, blas) = blas(&Settings::default());
    let Some(control) = softcuda::control() else {
        println!("NOT RUN: a real device does not count");
        return;
    };
    let case = Case { m: 3, n: 5, k: 7, transpose_a: false, transpose_b: false, padding: 2 };
    let [a, b, c] = case.lengths();
    let (a, b) =
        (stream.clone_htod(&numbers::<bf16>(a, 1)).expect("a"), stream.clone_htod(&numbers::<bf16>(b, 2)).expect("b"));
    let mut c = stream.alloc_zeros::<f32>(c).expect("c");
    control.take_launches();
    for (beta, read_of_c) in [(0.0, 0), (1.0, 3 * 5 * 4)] {
        product(&blas, &stream, case, Factors::Values(1.0, beta), (&a, &b, &mut c)).expect("a product");
        stream.synchronize().expect("no fault");
        let launches = control.take_launches();
        assert_eq!(launches.len(), 1);
        assert_eq!((launches[0].kernel.as_str(), launches[0].grid), ("cublasGemmEx", [3, 5, 7]));
        let global = launches[0].counters.global;
        assert_eq!((global.bytes_loaded, global.bytes_stored), ((3 * 7 + 7 * 5) * 2 + read_of_c, 3 * 5 * 4));
    }
}

#[test]
fn what_is_not_there_says_so() {
    let (_alone, stream, blas) = blas(&Settings::default());
    if softcuda::control().is_none() {
        println!("NOT RUN: it is there in cuBLAS");
        return;
    }
    let numbers = stream.clone_htod(&[bf16::ONE; 4]).expect("numbers");
    let mut halves = stream.alloc_zeros::<f16>(4).expect("c");
    let mixed = product(&blas, &stream, SMALL, Factors::Values(1.0, 0.0), (&numbers, &numbers, &mut halves));
    assert_eq!(mixed, Err(CublasError(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)));
    let small = Case { m: 2, n: 2, k: 2, transpose_a: false, transpose_b: false, padding: 0 };
    let mut c = stream.alloc_zeros::<bf16>(4).expect("c");
    // A leading dimension below the number of rows.
    let wrong = product(
        &blas,
        &stream,
        Case { padding: usize::MAX, ..small },
        Factors::Values(1.0, 0.0),
        (&numbers, &numbers, &mut c),
    );
    assert_eq!(wrong, Err(CublasError(cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE)));
    // SAFETY: a live handle.
    let tf32 = unsafe { sys::cublasSetMathMode(*blas.handle(), cublasMath_t::CUBLAS_TF32_TENSOR_OP_MATH) };
    assert_eq!(tf32, cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
    // SAFETY: no argument of it is looked at.
    let version = unsafe { sys::cublasGetVersion_v2(*blas.handle(), std::ptr::null_mut()) };
    assert_eq!(version, cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
}
