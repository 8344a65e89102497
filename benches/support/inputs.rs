//! Inputs that are the same in every run.

use exo_kernels::{Dtype, Element};
use rayon::prelude::*;

/// Logits `[N, V]`, bell-shaped with a standard deviation of 2.
pub(crate) fn logits<T: Element>(rows: usize, vocab: usize) -> Vec<T> {
    let mut logits = vec![T::from_f32(0.0); rows * vocab];
    logits.par_chunks_mut(vocab).enumerate().for_each(|(row, logits)| {
        let mut state = row as u64;
        for logit in logits {
            // SplitMix64; four 16-bit uniforms add up to something bell-shaped.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            let sum: u64 = (0..4).map(|part| (z >> (16 * part)) & 0xffff).sum();
            *logit = T::from_f32((sum as f32 / 65_536.0 - 2.0) * 3.464);
        }
    });
    logits
}

/// Targets `[N]`: scattered over the vocabulary, none masked.
pub(crate) fn targets(rows: usize, vocab: usize) -> Vec<i64> {
    (0..rows).map(|row| (row * 7919 % vocab) as i64).collect()
}

/// The name of a logits' type in an id.
pub(crate) fn dtype<T: Element>() -> &'static str {
    match T::DTYPE {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
    }
}
