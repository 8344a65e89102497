//! The machine's limit: the same bytes read, copied, and changed in place, on rayon's current threads, with no
//! arithmetic to speak of. What a kernel reaches of it is the part of the memory's speed that it uses.

use rayon::prelude::*;

/// 64-bit words per portion, 1 MiB: large beside a cache, small beside what is measured.
const PORTION: usize = 1 << 17;
/// Words side by side: two 512-bit registers, eight 128-bit ones.
const LANES: usize = 16;

/// Reads every word. The sum is there so that the reads cannot be left out.
pub(crate) fn read(words: &[u64]) -> u64 {
    words
        .par_chunks(PORTION)
        .map(|portion| {
            let (groups, rest) = portion.as_chunks::<LANES>();
            let mut sums = [0u64; LANES];
            for group in groups {
                for lane in 0..LANES {
                    sums[lane] = sums[lane].wrapping_add(group[lane]);
                }
            }
            sums.iter().chain(rest).fold(0u64, |sum, &word| sum.wrapping_add(word))
        })
        .reduce(|| 0, u64::wrapping_add)
}

/// Reads `from`, writes `to`, every word changed: a loop of ordinary stores, as a kernel's. Not `memcpy`, which was
/// slower than a kernel that does the same and computes besides: no limit.
pub(crate) fn copy(from: &[u64], to: &mut [u64], mask: u64) {
    to.par_chunks_mut(PORTION).zip(from.par_chunks(PORTION)).for_each(|(to, from)| {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from ^ mask;
        }
    });
}

/// Reads every word and writes it back changed; the second of two calls with one `mask` undoes the first.
pub(crate) fn change(words: &mut [u64], mask: u64) {
    words.par_chunks_mut(PORTION).for_each(|portion| {
        for word in portion {
            *word ^= mask;
        }
    });
}
