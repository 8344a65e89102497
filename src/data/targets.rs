//! Target ids: which column of its row a token is, or that the row is not scored.

use crate::data::memory::{Host, Memory};
use crate::element::Number;
use crate::error::{Error, Result, check_length};
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
pub trait TokenId: sealed::Sealed + Number {
    /// The id that marks a row that is not scored.
    const IGNORE: Self;

    /// The id as a number: negative for a masked row.
    fn id(self) -> i64;
}

/// An id in 32 bits, for a backward pass: what masks a row still does, and what is no column of any vocabulary stays none.
pub(crate) fn narrowed(id: i64) -> u32 {
    if id < 0 { u32::MAX } else { id.min(i64::from(i32::MAX)) as u32 }
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

/// Target ids, one per row: which column of its row a token is, or, negative, that the row is not scored.
///
/// Made from a slice, array or `Vec` of `u32` or `i64` on the host, from a view or a reference to a slice on a device.
#[derive(Debug, Clone, Copy)]
pub enum Targets<'a, M: Memory> {
    /// `[N]`; an id with its highest bit set masks its row.
    U32(M::View<'a, u32>),
    /// `[N]`; a negative id masks its row.
    I64(M::View<'a, i64>),
}

impl<M: Memory> Targets<'_, M> {
    /// How many ids there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::U32(ids) => M::length(ids),
            Self::I64(ids) => M::length(ids),
        }
    }
}

impl Targets<'_, Host> {
    /// The id of a row: negative for one that is masked.
    pub(crate) fn id(&self, row: usize) -> i64 {
        match self {
            Self::U32(ids) => ids[row].id(),
            Self::I64(ids) => ids[row].id(),
        }
    }

    /// The column that a row scores; `None` for a masked row.
    pub(crate) fn column(&self, row: usize) -> Option<usize> {
        usize::try_from(self.id(row)).ok()
    }

    /// Whether a row is scored.
    pub(crate) fn is_scored(&self, row: usize) -> bool {
        self.id(row) >= 0
    }

    /// Checks that every id is a column or masks its row, and that there is one per row.
    pub(crate) fn check(&self, rows: usize, vocab: usize) -> Result<()> {
        check_length("targets", self.len(), rows)?;
        match (0..rows).find(|row| self.column(*row).is_some_and(|column| column >= vocab)) {
            None => Ok(()),
            Some(row) => Err(Error::Target { row, target: self.id(row), vocab }),
        }
    }

    /// Rows that are scored.
    pub(crate) fn scored_rows(&self) -> usize {
        (0..self.len()).filter(|row| self.is_scored(*row)).count()
    }
}

macro_rules! targets_from {
    ($($id:ty => $variant:ident),*) => {$(
        impl<'a> From<&'a [$id]> for Targets<'a, Host> {
            fn from(ids: &'a [$id]) -> Self {
                Targets::$variant(ids)
            }
        }

        impl<'a> From<&'a Vec<$id>> for Targets<'a, Host> {
            fn from(ids: &'a Vec<$id>) -> Self {
                Targets::from(ids.as_slice())
            }
        }

        impl<'a, const N: usize> From<&'a [$id; N]> for Targets<'a, Host> {
            fn from(ids: &'a [$id; N]) -> Self {
                Targets::from(ids.as_slice())
            }
        }
    )*};
}

targets_from!(u32 => U32, i64 => I64);

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
