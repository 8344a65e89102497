//! Progress bars of one look, on standard error; where that is no terminal, one line per finished stage instead.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// Whether another process says what this one does too.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Nothing is shown from now on.
pub fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

pub fn bar(stage: &str, length: usize) -> Result<ProgressBar> {
    if SILENT.load(Ordering::Relaxed) {
        return Ok(ProgressBar::hidden());
    }
    let bar = ProgressBar::new(length as u64).with_prefix(stage.to_owned());
    bar.set_style(ProgressStyle::with_template(
        "{prefix:<26} {bar:32} {pos:>4}/{len:<4} {elapsed:>4}, {eta} left  {msg}",
    )?);
    bar.enable_steady_tick(Duration::from_millis(250));
    Ok(bar)
}

/// Leaves the finished bar on the screen with `message` at its end.
pub fn finish(bar: &ProgressBar, message: String) {
    if !stderr().is_terminal() && !SILENT.load(Ordering::Relaxed) {
        let seconds = bar.elapsed().as_secs_f64();
        eprintln!("{:<26} {seconds:>6.1} s  {message}", bar.prefix());
    }
    bar.finish_with_message(message);
}
