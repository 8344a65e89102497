//! Rows at every residue in 16 bytes, and gradients at every other one: the bits are those of rows that start at 16 bytes,
//! nothing beside the row is written, and nothing beside it is used. The buffers hold the row and what precedes it, no byte
//! after it, and what precedes it was never written: softcuda reports a read past the end, and a use of such a byte.

use cudarc::driver::{CudaSlice, DeviceRepr};
use exo_kernels::cuda::{Cuda, Matrix, MatrixMut, RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{Backend, Element, LogitOptions, SoftmaxState};
use half::{bf16, f16};
use support::device::{self, download, upload};

/// Shorter than a vector, than two, than a warp's, and around the end of one.
const SHORT: std::ops::RangeInclusive<usize> = 1..=70;
/// Around the ends of a block's vectors, of its iteration and of a slice: for f32, for 2 bytes, for both.
const LONG: [usize; 14] =
    [1023, 1025, 2047, 2048, 2049, 4095, 4103, 8191, 8200, 12_301, 32_767, 32_768, 32_769, 32_768 + 2057];

/// Every residue that an element may have in 16 bytes, in elements.
fn residues<T>() -> std::ops::Range<usize> {
    0..16 / size_of::<T>()
}

/// One row at element `residue` of a buffer that ends with it. What precedes it stays as it was allocated.
fn placed<T: Element + DeviceRepr>(cuda: &Cuda, row: &[T], residue: usize) -> CudaSlice<T> {
    // SAFETY: what is read of it is written first.
    let mut buffer = unsafe { cuda.stream().alloc::<T>(residue + row.len()) }.expect("memory");
    cuda.stream().memcpy_htod(row, &mut buffer.slice_mut(residue..)).expect("upload");
    buffer
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Log-prob, state and, where asked for, entropy.
fn forward<T: Element + DeviceRepr>(
    cuda: &Cuda,
    row: &[T],
    residue: usize,
    options: &LogitOptions,
    with_entropy: bool,
) -> (Vec<u32>, CudaSlice<SoftmaxState>) {
    let logits = placed(cuda, row, residue);
    let targets = upload(cuda, &[row.len() as i64 / 2]);
    let (mut log_probs, mut entropies) = (upload(cuda, &[f32::MAX]), upload(cuda, &[f32::MAX]));
    let mut states = upload(cuda, &[SoftmaxState::default()]);
    let view = Matrix::new(logits.slice(residue..).into(), row.len()).expect("a row");
    let outputs = TokenLogProbs {
        log_probs: log_probs.as_view_mut().into(),
        states: states.as_view_mut().into(),
        entropies: with_entropy.then(|| entropies.as_view_mut().into()),
    };
    cuda.token_log_probs(&view, &targets, options, outputs).expect("forward");
    let mut found = bits(&download(cuda, &log_probs));
    found.extend(download(cuda, &states).iter().flat_map(|state| [state.r.to_bits(), state.s.to_bits()]));
    found.extend(bits(&download(cuda, &entropies)));
    (found, states)
}

/// The gradient of a row at `from`, written at `to`.
fn backward<T: Element + DeviceRepr>(
    cuda: &Cuda,
    row: &[T],
    (from, to): (usize, usize),
    options: &LogitOptions,
    states: &CudaSlice<SoftmaxState>,
) -> Vec<u32> {
    let logits = placed(cuda, row, from);
    let mut gradient = upload(cuda, &vec![T::NAN; to + row.len()]);
    let (targets, upstream) = (upload(cuda, &[row.len() as i64 / 2]), upload(cuda, &[0.7_f32]));
    let view = Matrix::new(logits.slice(from..).into(), row.len()).expect("a row");
    let saved = SavedRows { states: states.as_view().into(), entropies: None };
    let upstream = RowGradients::PerRow { log_probs: upstream.as_view().into(), entropies: None };
    let into = MatrixMut::new(gradient.slice_mut(to..).into(), row.len()).expect("a row");
    cuda.token_log_probs_backward(&view, &targets, options, &saved, &upstream, into).expect("backward");
    let all = download(cuda, &gradient);
    assert!(all[..to].iter().all(|value| value.to_f32().is_nan()), "an element before the row was written");
    all[to..].iter().map(|value| value.to_f32().to_bits()).collect()
}

fn check<T: Element + DeviceRepr>() {
    let cuda = device::cuda();
    let plain = LogitOptions::default().with_temperature(0.8).expect("valid");
    let capped = plain.with_softcap(30.0).expect("valid");
    for vocab in SHORT.chain(LONG) {
        let row: Vec<T> = (0..vocab).map(|i| T::from_f32(((i * 7919) % 1013) as f32 * 0.02 - 9.0)).collect();
        // The kernels with a softcap share all that depends on the residue.
        let few = if vocab % 7 == 1 { vec![plain, capped] } else { vec![plain] };
        for options in few {
            for with_entropy in [false, true] {
                let (expected, _) = forward(&cuda, &row, 0, &options, with_entropy);
                for residue in residues::<T>().skip(1) {
                    let (found, _) = forward(&cuda, &row, residue, &options, with_entropy);
                    assert_eq!(found, expected, "V={vocab}, residue {residue}, {options:?}, {with_entropy}");
                }
            }
            let (_, states) = forward(&cuda, &row, 0, &options, false);
            let expected = backward(&cuda, &row, (0, 0), &options, &states);
            for from in residues::<T>() {
                // Long rows: each distance and each residue of the gradient, not each pair.
                let all = residues::<T>();
                for to in if vocab > 70 { (3 * from + 1) % all.end..(3 * from + 1) % all.end + 1 } else { all } {
                    let found = backward(&cuda, &row, (from, to), &options, &states);
                    assert!(found == expected, "V={vocab}, from residue {from} to {to}, {options:?}");
                }
            }
        }
    }
}

#[test]
fn rows_of_f32() {
    check::<f32>();
}

#[test]
fn rows_of_f16() {
    check::<f16>();
}

#[test]
fn rows_of_bf16() {
    check::<bf16>();
}
