//! Turns with softcuda's settings and counters, which belong to the process, while tests run in its threads.

use softcuda::Settings;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A test's turn: nobody else changes settings or launches anything. When it ends, the settings are the usual ones again.
#[must_use = "the turn ends when this is dropped"]
pub struct Turn(#[allow(dead_code, reason = "held")] MutexGuard<'static, ()>);

/// Waits for the calling test's turn. Every test of a binary that sets or counts anything takes one, first of all, and
/// keeps it to its end.
pub fn take() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that has failed spoils nothing for the others.
    Turn(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(control) = softcuda::control() {
            control.configure(&Settings::default());
        }
    }
}
