//! For engines that only sum, or only gather: each made of the other.

use crate::error::{Error, Result, check_length};

/// [`Communicator::all_gather`] of the host's words for an engine that can only add up f32 over ranks: each word becomes two numbers
/// from 0 to 65535, which f32 has exactly, and where other ranks' words belong this rank has zeros. So the sum is the gather, bit
/// for bit, whatever the order of its additions. It moves 2·P times the bytes of a gather.
///
/// `sum` is the engine's sum over ranks, in place; `numbers` is kept by the caller from call to call.
///
/// # Errors
/// What `sum` has; [`Error::Length`] for a number of words that is no multiple of P; [`Error::Parameter`] for a rank that is not
/// below P.
pub fn gather_by_sum(
    words: &mut [u32],
    (rank, ranks): (usize, usize),
    numbers: &mut Vec<f32>,
    sum: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<()> {
    let own = own_words(rank, ranks, words.len())?;
    numbers.clear();
    numbers.resize(2 * words.len(), 0.0);
    let halves = |word: u32| [(word >> 16) as f32, (word & 0xffff) as f32];
    for (pair, word) in numbers[2 * own.start..2 * own.end].chunks_exact_mut(2).zip(&words[own]) {
        pair.copy_from_slice(&halves(*word));
    }
    sum(numbers)?;
    for (word, pair) in words.iter_mut().zip(numbers.chunks_exact(2)) {
        *word = (pair[0] as u32) << 16 | pair[1] as u32;
    }
    Ok(())
}

/// Which of `[P, n]` words are a rank's.
fn own_words(rank: usize, ranks: usize, words: usize) -> Result<std::ops::Range<usize>> {
    if rank >= ranks {
        return Err(Error::Parameter { name: "rank", given: rank as f64, expected: "below the number of ranks" });
    }
    let of_rank = words / ranks;
    check_length("words of an exchange", words, of_rank * ranks)?;
    Ok(rank * of_rank..(rank + 1) * of_rank)
}
