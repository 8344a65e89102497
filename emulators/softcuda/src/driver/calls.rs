//! How often each of the driver's functions was called. Apart from `State`: counting must not wait for its lock.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Calls by the function's name.
type Calls = BTreeMap<&'static str, u64>;

fn calls() -> MutexGuard<'static, Calls> {
    static CALLS: Mutex<Calls> = Mutex::new(BTreeMap::new());
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a call.
pub(super) fn count(name: &'static str) {
    *calls().entry(name).or_default() += 1;
}

/// The counts, which begin anew.
pub(super) fn take() -> Calls {
    std::mem::take(&mut *calls())
}
