//! Launch shapes. Threads of a block are in the kernels' `__launch_bounds__`; none of what is here changes a bit of the
//! results.

/// Columns of a slice: the unit in which a row is reduced, whoever reduces it. As in `kernels/include/logits.cuh`.
pub(super) const SLICE: usize = 32_768;

/// Blocks of the plain forward pass that a multiprocessor holds at once, as in `kernels/token_log_prob.cu`.
const FORWARD_BLOCKS: usize = 6;

/// Slices of a row that one block walks: all of them where the rows alone fill the device, else one, so that few rows
/// use all of it.
pub(super) fn slices_per_block(rows: usize, slices: usize, multiprocessors: usize) -> usize {
    if rows >= multiprocessors * FORWARD_BLOCKS { slices } else { 1 }
}
