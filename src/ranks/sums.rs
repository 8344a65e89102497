//! For engines that only sum, or only gather: each made of the other.

use crate::backend::{Backend, ViewMut};
use crate::data::memory::Memory;
use crate::error::{Result, check_length};
use crate::ranks::Communicator;
use crate::ranks::gather::check_rank;

/// [`Communicator::all_gather`](crate::ranks::Communicator::all_gather) of the host's words for an engine that can only add up f32 over ranks: each word becomes two numbers
/// from 0 to 65535, which f32 has exactly, and where other ranks' words belong this rank has zeros. So the sum is the gather, bit
/// for bit, whatever the order of its additions. It moves 2·P times the bytes of a gather.
///
/// `sum` is the engine's sum over ranks, in place; `numbers` is kept by the caller from call to call.
///
/// # Errors
/// What `sum` has; [`Error::Length`](crate::Error::Length) for a number of words that is no multiple of P; [`Error::Parameter`](crate::Error::Parameter) for a rank that is not
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
    check_rank(rank, ranks)?;
    let of_rank = words / ranks;
    check_length("words of an exchange", words, of_rank * ranks)?;
    Ok(rank * of_rank..(rank + 1) * of_rank)
}

/// Numbers that all ranks together gather at once.
const GATHERED: usize = 1 << 22;

/// [`Communicator::sum`] for an engine that only gathers: all ranks' numbers, a part of them at a time, added up in the order of the
/// ranks in f64. It takes 16 MiB of the backend's memory for each call, and moves P times the bytes of a sum.
///
/// # Errors
/// What the gather, the backend and `meanwhile` have.
pub fn sum_by_gather<B: Backend>(
    communicator: &(impl Communicator<B> + ?Sized),
    backend: &B,
    mut numbers: ViewMut<'_, B, f32>,
    meanwhile: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let (rank, ranks, count) = (communicator.rank(), communicator.ranks(), B::Memory::length_mut(&numbers));
    let most = (GATHERED / ranks.max(1)).clamp(1, count.max(1));
    let mut gathered = B::Buffer::<f32>::default();
    backend.reserve(&mut gathered, ranks * most)?;
    for first in (0..count).step_by(most) {
        let length = most.min(count - first);
        let Some(part) = B::Memory::part_mut(&mut numbers, first..first + length) else { break };
        let mut all = backend.view_mut(&mut gathered, ranks * length);
        if let Some(own) = B::Memory::part_mut(&mut all, rank * length..(rank + 1) * length) {
            backend.put(&B::Memory::as_view(&part), own)?;
        }
        communicator.all_gather(backend, B::Memory::words_mut(&mut all))?;
        drop(all);
        backend.add_ranks(&backend.view(&gathered, ranks * length), part)?;
    }
    meanwhile()
}

/// Sets the words of other ranks, of `[P, n]`, to zero: then a sum over ranks of 32-bit integers is the gather.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) for a number of words that is no multiple of P; [`Error::Parameter`](crate::Error::Parameter) for a rank that is not below P;
/// [`Error::Cuda`](crate::Error::Cuda).
pub fn clear_others<B: Backend>(
    backend: &B,
    (rank, ranks): (usize, usize),
    words: &mut ViewMut<'_, B, u32>,
) -> Result<()> {
    let count = B::Memory::length_mut(words);
    let own = own_words(rank, ranks, count)?;
    for others in [0..own.start, own.end..count] {
        if let Some(others) = B::Memory::part_mut(words, others) {
            backend.clear_words(others)?;
        }
    }
    Ok(())
}
