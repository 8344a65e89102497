//! The products that `LinearChunks::batch_invariant` asks cuBLAS for: of one shape each, whatever the number of rows. cuBLAS
//! chooses its algorithm by shape, types and strides, so these are what a row's bits can depend on. On a real device nothing
//! reports them: `tests/cuda/batch_invariant.rs` compares the bits there.

use crate::linear_counts::counters;
use exo_kernels::cuda::LinearChunks;
use exo_kernels::{LinearKept, LogitOptions, RowLoss};
use half::bf16;
use softcuda::report::LaunchReport;
use std::collections::BTreeSet;
use support::backend::{self, Placed};
use support::linear::{ALL, Case, Wanted};

const H: usize = 16;
const V: usize = 520;
/// Rows of every product.
const FILLED: usize = 256;

/// m, n, k of the products, in order.
fn shapes(launches: &[LaunchReport]) -> Vec<[u32; 3]> {
    launches.iter().filter(|launch| launch.kernel == "cublasGemmEx").map(|launch| launch.grid).collect()
}

fn operations(shapes: &[[u32; 3]]) -> u64 {
    shapes.iter().map(|shape| 2 * shape.iter().map(|&side| u64::from(side)).product::<u64>()).sum()
}

#[test]
fn products_have_one_shape_whatever_the_number_of_rows() {
    let Some((_turn, control)) = counters() else { return };
    // Column-major: our rows are cuBLAS's columns.
    let logits = [V, FILLED, H].map(|side| side as u32);
    let hidden = [H, FILLED, V].map(|side| side as u32);
    let cuda = backend::cuda();
    let options = LogitOptions::default();
    let frozen = Wanted { weight: false, bias: false, ..ALL };
    for count in [1_usize, 2, 17, 255, 256, 257, 513] {
        let chunks = count.div_ceil(FILLED);
        let case = Case::<bf16, bf16>::random(count, H, V, false, 1);
        let g = vec![0.5; count];
        for kept in [LinearKept::Nothing, LinearKept::UnitGradients] {
            cuda.set_linear_chunks(LinearChunks::default().batch_invariant());
            let mut placed = Placed::new(&cuda, &case);
            placed.kept = kept;
            control.take_launches();
            let forward = placed.forward(&options, false);
            placed.backward::<bf16>(&options, &forward, (&g, None), frozen);
            let found = shapes(&control.take_launches());
            assert_eq!(
                found.iter().copied().collect::<BTreeSet<_>>(),
                BTreeSet::from([logits, hidden]),
                "N={count}, {kept:?}"
            );
            let of_logits = if kept == LinearKept::Nothing { 2 } else { 1 };
            assert_eq!(
                found.iter().filter(|shape| **shape == logits).count(),
                of_logits * chunks,
                "N={count}, {kept:?}"
            );
            assert_eq!(found.iter().filter(|shape| **shape == hidden).count(), chunks, "N={count}, {kept:?}");
            if count == 1 {
                cuda.set_linear_chunks(LinearChunks::default());
                let forward = placed.forward(&options, false);
                placed.backward::<bf16>(&options, &forward, (&g, None), frozen);
                let usual = operations(&shapes(&control.take_launches()));
                let filled = operations(&found);
                println!("N=1, {kept:?}: {filled} operations of products instead of {usual}");
                assert_eq!(filled, FILLED as u64 * usual);
            }
        }
        let mut placed = Placed::new(&cuda, &case);
        placed.kept = LinearKept::Nothing;
        cuda.set_linear_chunks(LinearChunks::default().batch_invariant());
        control.take_launches();
        placed.row_loss::<bf16>(&options, RowLoss::Weighted { weights: g.as_slice() }, frozen);
        let found: BTreeSet<_> = shapes(&control.take_launches()).into_iter().collect();
        assert_eq!(found, BTreeSet::from([logits, hidden]), "row loss, N={count}");
    }
}
