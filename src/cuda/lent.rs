//! Scratch memory that is lent to one call at a time.
//!
//! The rule of this crate: no lock is held over rayon, a callback, a user's closure or a wait for the device. A call of the
//! driver or of cuBLAS may be such a wait: a launch waits for room in its queue, a kernel's first use loads its code, and
//! what the stream does meanwhile may wait for another thread (`cuLaunchHostFunc`) that wants the same lock. So locks
//! guard tables only: what is needed is taken out, the lock is released, the driver is called, and the result is put in.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is not lent at the moment. There are as many as calls were ever running at once: one, unless threads share a
/// stream.
#[derive(Debug)]
pub(super) struct Lender<T>(Mutex<Vec<T>>);

impl<T> Default for Lender<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Lender<T> {
    /// Runs `call` with the one that came back last, or a new one. Nothing is locked meanwhile.
    pub(super) fn with<R>(&self, new: impl FnOnce() -> T, call: impl FnOnce(&mut T) -> R) -> R {
        let kept = self.kept().pop();
        let mut lent = kept.unwrap_or_else(new);
        let result = call(&mut lent);
        self.kept().push(lent);
        result
    }

    /// The sum of what `count` says of those that are not lent.
    pub(super) fn sum(&self, count: impl Fn(&T) -> usize) -> usize {
        self.kept().iter().map(count).sum()
    }

    fn kept(&self) -> MutexGuard<'_, Vec<T>> {
        // Pushing and popping leave nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_comes_back_is_lent_again_and_none_twice() {
        let lender = Lender::default();
        let both = lender.with(|| 1, |first| lender.with(|| 2, |second| (std::mem::replace(first, 3), *second)));
        assert_eq!(both, (1, 2));
        assert_eq!(lender.with(|| 4, |last| *last), 3);
        assert_eq!(lender.with(|| 4, |last| lender.with(|| 5, |other| (*last, *other))), (3, 2));
    }
}
