//! Results as shares of what the machine's memory can do.

use std::hint::black_box;

use criterion::Criterion;
use rayon::ThreadPool;

use super::{memory, stopwatch};

/// Medians of the plain passes over one buffer, in seconds; `None` where the command line's filter left one out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    /// Every byte read.
    pub(crate) read: Option<f64>,
    /// Every byte read, and written elsewhere.
    pub(crate) copy: Option<f64>,
    /// Every byte read, and written back.
    pub(crate) change: Option<f64>,
}

impl Limit {
    /// Measures the three passes as `memory/read`, `/copy` and `/change`, each with `suffix`. Leaves anything in
    /// `other`.
    pub(crate) fn measure(
        criterion: &mut Criterion,
        pool: &ThreadPool,
        suffix: &str,
        (dtype, shape): (&str, &str),
        buffer: &[u64],
        other: &mut [u64],
    ) -> Self {
        let mut group = stopwatch::group(criterion, "memory");
        let bytes = size_of_val(buffer);
        let id = |pass: &str| format!("{pass}{suffix}");
        let read = stopwatch::time(&mut group, pool, (&id("read"), dtype, shape), bytes, || {
            black_box(memory::read(buffer));
        });
        let copy = stopwatch::time(&mut group, pool, (&id("copy"), dtype, shape), 2 * bytes, || {
            memory::copy(buffer, other, black_box(1));
        });
        let change = stopwatch::time(&mut group, pool, (&id("change"), dtype, shape), 2 * bytes, || {
            memory::change(other, black_box(1));
        });
        group.finish();
        Limit { read, copy, change }
    }
}

/// A line of the table: what was timed, its bytes and median seconds, and the plain pass over the same bytes.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) bytes: usize,
    pub(crate) seconds: Option<f64>,
    pub(crate) limit: Option<f64>,
    pub(crate) limit_name: &'a str,
}

/// Prints the table of one group.
pub(crate) fn print(title: &str, lines: &[Line<'_>]) {
    if lines.iter().all(|line| line.seconds.is_none()) {
        return;
    }
    println!("\n{title}");
    for line in lines {
        let Some(seconds) = line.seconds else { continue };
        let speed = line.bytes as f64 / seconds / 1e9;
        let share = match line.limit {
            Some(limit) => format!("{:4.0} % of a plain {}", 100.0 * limit / seconds, line.limit_name),
            None => String::new(),
        };
        println!("  {:<28} {:>9.3} ms {:>7.1} GB/s  {share}", line.name, seconds * 1e3, speed);
    }
    println!();
}
