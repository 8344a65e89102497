//! Products of one shape (`LinearChunks::batch_invariant`): a row's log-prob and the gradient of its hidden state have the
//! same bits however many rows there are, and wherever among them it is. On a GPU, where cuBLAS chooses an algorithm by the
//! shape, that is a question; on softcuda an element's bits are its own, and `tests/cuda_control/batch_invariant.rs` says
//! which shapes cuBLAS is asked for.

use exo_kernels::cuda::LinearChunks;
use exo_kernels::{Element, LinearKept, LogitOptions};
use half::{bf16, f16};
use std::ops::Range;
use support::backend::{self, Placed};
use support::linear::{ALL, Case, Wanted};

/// H, V, and how many rows there are. The last number is all of them.
type Sizes = (usize, usize, &'static [usize]);
const OF_A_MODEL: Sizes = (1024, 32_000, &[1, 2, 3, 17, 255, 256, 257, 1000, 4096]);
/// What an interpreter has time for.
const SMALL: Sizes = (12, 600, &[1, 2, 3, 17, 255, 257]);

/// Some rows of a case.
fn part<T: Element>(case: &Case<T, T>, rows: Range<usize>) -> Case<T, T> {
    Case {
        rows: rows.len(),
        hidden: case.hidden[rows.start * case.hidden_size..rows.end * case.hidden_size].to_vec(),
        targets: case.targets[rows].to_vec(),
        ..case.clone()
    }
}

/// The bits of log-prob, softmax state and gradient of the hidden state, of each row.
fn bits<T: Element>(case: &Case<T, T>, kept: LinearKept, g: &[f32]) -> Vec<Vec<u32>> {
    let cuda = backend::cuda();
    cuda.set_linear_chunks(LinearChunks::default().batch_invariant());
    let mut placed = Placed::new(&cuda, case);
    placed.kept = kept;
    let options = LogitOptions::default();
    let forward = placed.forward(&options, false);
    let wanted = Wanted { weight: false, bias: false, ..ALL };
    let gradients = placed.backward::<T>(&options, &forward, (g, None), wanted);
    (0..case.rows)
        .map(|row| {
            let state = forward.states[row];
            let hidden = &gradients.hidden[row * case.hidden_size..(row + 1) * case.hidden_size];
            let of_row = [forward.log_probs[row].to_bits(), state.r.to_bits(), state.s.to_bits()];
            of_row.into_iter().chain(hidden.iter().map(|number| number.to_f32().to_bits())).collect()
        })
        .collect()
}

fn check<T: Element>(kept: LinearKept, (size, vocab, counts): Sizes) {
    let all = counts[counts.len() - 1];
    let case = Case::<T, T>::random(all, size, vocab, true, 7);
    let g: Vec<f32> = (0..all).map(|row| 0.25 + (row % 7) as f32 * 0.1).collect();
    let expected = bits(&case, kept, &g);
    assert!(case.targets[0] >= 0 && f32::from_bits(expected[0][0]) < 0.0, "something was computed");
    for &count in &counts[..counts.len() - 1] {
        // The first ones, and others at another place among their own.
        for first in [0, (all - count).min(3 * count + 1)] {
            let rows = first..first + count;
            let found = bits(&part(&case, rows.clone()), kept, &g[rows.clone()]);
            for (row, (found, expected)) in rows.zip(found.iter().zip(&expected[first..])) {
                assert!(found == expected, "{:?}, {kept:?}: row {row} of {all} is another among {count}", T::DTYPE);
            }
        }
    }
    let (one, filled) = (2 * size * vocab, 2 * 256 * size * vocab);
    println!(
        "{:?}, H={size} V={vocab}, {kept:?}: the same bits among {counts:?} rows; a product for one row: {filled} operations \
         instead of {one}",
        T::DTYPE
    );
}

#[test]
fn a_row_s_bits_do_not_depend_on_how_many_rows_there_are() {
    drop(backend::cuda());
    let is_software = softcuda::control().is_some();
    let sizes = if is_software { SMALL } else { OF_A_MODEL };
    for kept in [LinearKept::Nothing, LinearKept::UnitGradients] {
        check::<bf16>(kept, sizes);
        if !is_software {
            check::<f16>(kept, sizes);
            check::<f32>(kept, sizes);
        }
    }
}
