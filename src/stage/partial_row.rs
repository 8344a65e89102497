//! The contract of partial rows: what ranks that hold parts of a vocabulary exchange.

use crate::data::shard::SLICE;
use crate::error::{Error, Result, check_length};

/// Partial rows of a rank that holds so many columns, for each row: one for each slice of [`SLICE`] columns, the last one
/// maybe shorter.
pub fn partial_rows_of(columns: usize) -> usize {
    columns.div_ceil(SLICE)
}

/// Partial rows for each row, of a buffer of `[N, per row]`, and that they are enough for so many columns.
pub(crate) fn per_row(given: usize, rows: usize, columns: usize) -> Result<usize> {
    let least = partial_rows_of(columns);
    let per_row = given.checked_div(rows).unwrap_or(least).max(least);
    check_length("partial rows", given, rows.saturating_mul(per_row))?;
    Ok(per_row)
}

/// Partial rows for each row, of a buffer of `[P, N, per row]`.
pub(crate) fn per_row_of_ranks(given: usize, rows: usize, ranks: usize) -> Result<usize> {
    if ranks == 0 {
        return Err(Error::Parameter { name: "ranks", given: 0.0, expected: "at least 1" });
    }
    let per_row = given.checked_div(rows.saturating_mul(ranks)).unwrap_or(1).max(1);
    check_length("partial rows", given, rows.saturating_mul(ranks).saturating_mul(per_row))?;
    Ok(per_row)
}
