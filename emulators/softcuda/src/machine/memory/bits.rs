//! Bitmaps with one bit per byte of memory.

/// The words of 64 bits that `start..start + count` touches: index and mask.
#[inline]
pub(super) fn spans(start: usize, count: usize) -> impl Iterator<Item = (usize, u64)> {
    let (mut at, end) = (start, start + count);
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let (word, first) = (at / 64, at % 64);
            let count = (64 - first).min(end - at);
            at += count;
            (word, (u64::MAX >> (64 - count)) << first)
        })
    })
}

/// The first bit of the range that is clear.
#[inline]
pub(super) fn first_clear(words: &[u64], start: usize, count: usize) -> Option<usize> {
    spans(start, count).find_map(|(word, mask)| {
        let clear = mask & !words[word];
        (clear != 0).then(|| word * 64 + clear.trailing_zeros() as usize)
    })
}

/// Sets the range.
#[inline]
pub(super) fn set(words: &mut [u64], start: usize, count: usize) {
    spans(start, count).for_each(|(word, mask)| words[word] |= mask);
}

/// Copies `count` bits to another place.
pub(super) fn copy(to: &mut [u64], start: usize, from: &[u64], from_start: usize, count: usize) {
    for index in 0..count {
        let (source, target) = (from_start + index, start + index);
        let bit = from[source / 64] >> (source % 64) & 1;
        let word = &mut to[target / 64];
        *word = *word & !(1 << (target % 64)) | bit << (target % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_across_words() {
        let mut words = [0_u64; 4];
        set(&mut words, 60, 70);
        for bit in 0..256 {
            assert_eq!(words[bit / 64] >> (bit % 64) & 1 == 1, (60..130).contains(&bit), "{bit}");
        }
        assert_eq!(first_clear(&words, 60, 70), None);
        assert_eq!(first_clear(&words, 59, 2), Some(59));
        assert_eq!(first_clear(&words, 100, 31), Some(130));
        assert_eq!(spans(5, 0).count(), 0);
        let mut copied = [u64::MAX; 4];
        copy(&mut copied, 3, &words, 58, 10);
        assert_eq!(copied[0], !(0b11 << 3));
    }
}
