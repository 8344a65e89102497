//! Target ids: which column of its row a token is, or that the row is not scored.

use crate::error::{Error, Result};
use std::ops::Range;

/// The id that marks a row that is not scored, as PyTorch's `ignore_index`. Any other negative id does the same.
pub const IGNORE_INDEX: i64 = -100;

mod sealed {
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for i64 {}
}

/// A type that target ids can have. Implemented by `u32` and `i64`, and by nothing else.
///
/// A masked row is one whose id is negative. A `u32` id is negative when it is so as an `i32` (its highest bit is set):
/// `-100i32 as u32` masks a row.
pub trait TokenId: sealed::Sealed + Copy + Send + Sync + std::fmt::Debug {
    /// The id that marks a row that is not scored.
    const IGNORE: Self;

    /// The id as a number: negative for a masked row.
    fn id(self) -> i64;
}

impl TokenId for u32 {
    const IGNORE: Self = IGNORE_INDEX as i32 as u32;

    #[inline]
    fn id(self) -> i64 {
        i64::from(self as i32)
    }
}

impl TokenId for i64 {
    const IGNORE: Self = IGNORE_INDEX;

    #[inline]
    fn id(self) -> i64 {
        self
    }
}

/// The column that a row scores; `None` for a masked row.
#[inline]
pub(crate) fn column<I: TokenId>(target: I) -> Option<usize> {
    usize::try_from(target.id()).ok()
}

/// Checks that every id is a column or masks its row, and that there is one per row.
///
/// # Errors
/// [`Error::Length`] and [`Error::Target`].
pub fn check<I: TokenId>(targets: &[I], rows: usize, vocab: usize) -> Result<()> {
    if targets.len() != rows {
        return Err(Error::Length { what: "targets", given: targets.len(), expected: rows });
    }
    match targets.iter().position(|target| target.id() >= vocab as i64) {
        None => Ok(()),
        Some(row) => Err(Error::Target { row, target: targets[row].id(), vocab }),
    }
}

/// Targets `[B·T]` for a `[B, T]` batch of token ids: the shift by one and the masks.
///
/// A model's logits at position t are its prediction of token t + 1. So row `b·T + t` gets token t + 1 of sequence b
/// where that token lies in `scored[b]`, and [`IGNORE_INDEX`] elsewhere: on the prompt, on padding (left or right), and
/// on the last position, which predicts nothing. For a prompt of P tokens and a completion of C tokens, end-of-sequence
/// included, behind it, `scored[b]` is `P..P + C`.
///
/// # Errors
/// [`Error::Length`] if `token_ids` is not B·T long; [`Error::TokenRange`] if a range ends before it begins, leaves its
/// sequence, or holds the first token, which no position predicts. An empty range scores nothing.
///
/// ```
/// // Two sequences of four tokens: a prompt of two, and a prompt of one with a padded end.
/// let targets = exo_kernels::shifted_targets(&[5, 6, 7, 8, 5, 9, 0, 0], 4, &[2..4, 1..2])?;
/// assert_eq!(targets, [-100, 7, 8, -100, 9, -100, -100, -100]);
/// # Ok::<(), exo_kernels::Error>(())
/// ```
pub fn shifted_targets(token_ids: &[u32], length: usize, scored: &[Range<usize>]) -> Result<Vec<i64>> {
    let expected = scored.len().saturating_mul(length);
    if token_ids.len() != expected {
        return Err(Error::Length { what: "token ids", given: token_ids.len(), expected });
    }
    let mut targets = vec![IGNORE_INDEX; token_ids.len()];
    for (sequence, range) in scored.iter().enumerate() {
        let (start, end) = (range.start, range.end);
        let holds_first = start == 0 && end > 0;
        if start > end || end > length || holds_first {
            return Err(Error::TokenRange { sequence, start, end, length });
        }
        for token in start..end {
            targets[sequence * length + token - 1] = i64::from(token_ids[sequence * length + token]);
        }
    }
    Ok(targets)
}
