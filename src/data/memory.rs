//! Where operands lie: the memory of the host, or that of a device.

use crate::element::Number;
use crate::error::{Result, check_length};
use std::fmt::Debug;
use std::ops::Range;

/// A kind of memory, told by how slices of it are borrowed. Types that take a `Memory` are views of numbers that lie there.
pub trait Memory: Debug + Copy + Default + PartialEq + Send + Sync + 'static {
    /// Numbers to read.
    type View<'a, T: Number>: Clone + Debug;
    /// Numbers to write.
    type ViewMut<'a, T: Number>: Debug;

    /// How many numbers a view has.
    fn length<T: Number>(view: &Self::View<'_, T>) -> usize;

    /// How many numbers a view has.
    fn length_mut<T: Number>(view: &Self::ViewMut<'_, T>) -> usize;

    /// Part of a view; `None` if it has no such numbers.
    fn part<'a, T: Number>(view: &Self::View<'a, T>, range: Range<usize>) -> Option<Self::View<'a, T>>;

    /// Part of a view; `None` if it has no such numbers.
    fn part_mut<'a, T: Number>(view: &'a mut Self::ViewMut<'_, T>, range: Range<usize>)
    -> Option<Self::ViewMut<'a, T>>;

    /// The same numbers as words, to write: of numbers whose size and alignment are multiples of a word's; of others none.
    fn words_mut<'a, T: Number>(view: &'a mut Self::ViewMut<'_, T>) -> Self::ViewMut<'a, u32>;

    /// The same numbers, to read.
    fn as_view<'a, T: Number>(view: &'a Self::ViewMut<'_, T>) -> Self::View<'a, T>;

    /// The address of the first number.
    fn address<T: Number>(view: &Self::View<'_, T>) -> u64;
}

/// The memory of the host: slices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Host;

impl Memory for Host {
    type View<'a, T: Number> = &'a [T];
    type ViewMut<'a, T: Number> = &'a mut [T];

    fn length<T: Number>(view: &&[T]) -> usize {
        view.len()
    }

    fn length_mut<T: Number>(view: &&mut [T]) -> usize {
        view.len()
    }

    fn part<'a, T: Number>(view: &Self::View<'a, T>, range: Range<usize>) -> Option<Self::View<'a, T>> {
        view.get(range)
    }

    fn part_mut<'a, T: Number>(view: &'a mut Self::ViewMut<'_, T>, range: Range<usize>) -> Option<&'a mut [T]> {
        view.get_mut(range)
    }

    #[allow(clippy::mut_mut)]
    fn words_mut<'a, T: Number>(view: &'a mut &mut [T]) -> &'a mut [u32] {
        bytemuck::try_cast_slice_mut(view).unwrap_or_default()
    }

    fn as_view<'a, T: Number>(view: &'a &mut [T]) -> &'a [T] {
        view
    }

    fn address<T: Number>(view: &&[T]) -> u64 {
        view.as_ptr().addr() as u64
    }
}

/// Where the operands of a backend must lie.
pub trait Place {
    /// The kind of memory.
    type Memory: Memory;

    /// Checks that a view can be used. The address of another device would be read through the wrong page tables.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    fn check_place<T: Number>(&self, what: &'static str, view: &View<'_, Self, T>) -> Result<()>;

    /// The same of a view to write.
    ///
    /// # Errors
    /// As [`Place::check_place`].
    fn check_place_mut<T: Number>(&self, what: &'static str, view: &ViewMut<'_, Self, T>) -> Result<()>;
}

/// Numbers of `P`'s memory, to read.
pub type View<'a, P, T> = <<P as Place>::Memory as Memory>::View<'a, T>;

/// Numbers of `P`'s memory, to write.
pub type ViewMut<'a, P, T> = <<P as Place>::Memory as Memory>::ViewMut<'a, T>;

/// Checks the length of a view, and that it can be used.
pub(crate) fn check_view<P: Place, T: Number>(
    place: &P,
    what: &'static str,
    view: &View<'_, P, T>,
    expected: usize,
) -> Result<()> {
    check_length(what, P::Memory::length(view), expected)?;
    place.check_place(what, view)
}

/// The same of a view to write.
pub(crate) fn check_view_mut<P: Place, T: Number>(
    place: &P,
    what: &'static str,
    view: &ViewMut<'_, P, T>,
    expected: usize,
) -> Result<()> {
    check_length(what, P::Memory::length_mut(view), expected)?;
    place.check_place_mut(what, view)
}
