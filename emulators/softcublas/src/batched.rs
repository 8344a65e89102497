//! Products in batches, which candle asks for: each is one of [`cublasGemmEx`].

use crate::api::{NOT_SUPPORTED, SUCCESS, Status, cublasGemmEx};
use softload::product::{BF16, F16, F32};
use std::ffi::{c_int, c_longlong};

/// Bytes of an element.
const SIZES: [(u64, c_longlong); 3] = [(F32, 4), (F16, 2), (BF16, 2)];

/// An operand of every product: where the first one's lies, and how far apart, in elements.
#[derive(Clone, Copy)]
struct Batched {
    address: u64,
    data_type: c_int,
    stride: c_longlong,
}

impl Batched {
    fn at(self, index: c_int) -> Option<u64> {
        let (_, size) = SIZES.into_iter().find(|(data_type, _)| *data_type == self.data_type as u64)?;
        Some(self.address.wrapping_add_signed(self.stride * size * c_longlong::from(index)))
    }
}

/// # Safety
/// As [`cublasGemmEx`].
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasGemmStridedBatchedEx(
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
    a_stride: c_longlong,
    b: u64,
    b_type: c_int,
    b_leading: c_int,
    b_stride: c_longlong,
    beta: *const f32,
    c: u64,
    c_type: c_int,
    c_leading: c_int,
    c_stride: c_longlong,
    batch: c_int,
    compute_type: c_int,
    algorithm: c_int,
) -> Status {
    let operand = |address, data_type, stride| Batched { address, data_type, stride };
    let operands = [operand(a, a_type, a_stride), operand(b, b_type, b_stride), operand(c, c_type, c_stride)];
    for index in 0..batch {
        let [Some(a), Some(b), Some(c)] = operands.map(|operand| operand.at(index)) else { return NOT_SUPPORTED };
        // SAFETY: the caller's promise.
        let status = unsafe {
            cublasGemmEx(
                handle,
                operation_a,
                operation_b,
                m,
                n,
                k,
                alpha,
                a,
                a_type,
                a_leading,
                b,
                b_type,
                b_leading,
                beta,
                c,
                c_type,
                c_leading,
                compute_type,
                algorithm,
            )
        };
        if status != SUCCESS {
            return status;
        }
    }
    SUCCESS
}
