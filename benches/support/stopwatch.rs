//! One benchmark: criterion's statistics and report, and the median kept for the table.

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use rayon::ThreadPool;

/// A group of benchmarks of some milliseconds each: 20 samples in about a second.
pub(crate) fn group<'a>(criterion: &'a mut Criterion, stage: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(stage);
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    group
}

/// Times `routine` in `pool` as `stage/direction/dtype/shape`, which moves `bytes`. Returns the median seconds of a
/// call over criterion's samples; `None` where the command line's filter leaves the benchmark out.
pub(crate) fn time(
    group: &mut BenchmarkGroup<'_, WallTime>,
    pool: &ThreadPool,
    (direction, dtype, shape): (&str, &str, &str),
    bytes: usize,
    mut routine: impl FnMut() + Send,
) -> Option<f64> {
    let mut samples: Vec<(u64, Duration)> = Vec::new();
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(BenchmarkId::new(format!("{direction}/{dtype}"), shape), |bencher| {
        bencher.iter_custom(|calls| {
            let elapsed = pool.install(|| {
                let start = Instant::now();
                for _ in 0..calls {
                    routine();
                }
                start.elapsed()
            });
            samples.push((calls, elapsed));
            elapsed
        });
    });
    // The last 20 are the samples; what comes before them is the warm-up.
    let first = samples.len().saturating_sub(20);
    let mut seconds: Vec<f64> =
        samples[first..].iter().map(|(calls, elapsed)| elapsed.as_secs_f64() / *calls as f64).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}
