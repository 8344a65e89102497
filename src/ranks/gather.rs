//! One exchange of what each rank writes: the buffer of all ranks, this rank's part of it, and the gather.

use crate::backend::{Backend, Number, View, ViewMut};
use crate::data::memory::Memory;
use crate::error::{Error, Result};
use crate::ranks::Communicator;

/// Checks that a rank is one of so many.
pub(crate) fn check_rank(rank: usize, ranks: usize) -> Result<()> {
    if rank < ranks {
        Ok(())
    } else {
        Err(Error::Parameter { name: "rank", given: rank as f64, expected: "below the number of ranks" })
    }
}

/// What all ranks write, `[P, of_rank]`, in a buffer that is kept from step to step. `write` is this rank's part.
pub(crate) fn gather<'b, B: Backend, T: Number>(
    backend: &B,
    line: &(impl Communicator<B> + ?Sized),
    buffer: &'b mut B::Buffer<T>,
    of_rank: usize,
    write: impl FnOnce(ViewMut<'_, B, T>) -> Result<()>,
) -> Result<View<'b, B, T>> {
    let (rank, count) = (line.rank(), line.ranks() * of_rank);
    check_rank(rank, line.ranks())?;
    backend.reserve(buffer, count)?;
    let mut all = backend.view_mut(buffer, count);
    write(part::<B, T>(&mut all, rank * of_rank, of_rank)?)?;
    line.all_gather(backend, B::Memory::words_mut(&mut all))?;
    drop(all);
    Ok(backend.view(buffer, count))
}

/// So many numbers of a view, from the first on.
pub(crate) fn part<'a, B: Backend, T: Number>(
    view: &'a mut ViewMut<'_, B, T>,
    first: usize,
    count: usize,
) -> Result<ViewMut<'a, B, T>> {
    // There are so many, or the backend has made a buffer too short.
    B::Memory::part_mut(view, first..first + count).ok_or(Error::Memory { elements: count })
}

/// All of a view, borrowed for less long.
pub(crate) fn whole<'a, B: Backend, T: Number>(view: &'a mut ViewMut<'_, B, T>) -> Result<ViewMut<'a, B, T>> {
    let count = B::Memory::length_mut(view);
    part::<B, T>(view, 0, count)
}
