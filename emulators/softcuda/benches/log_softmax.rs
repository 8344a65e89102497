//! How fast kernels are interpreted: `cargo bench -p softcuda`.
//!
//! 64 rows of 128256 bf16 logits through the kernels of `tests/kernels/log_softmax.cu`: `log_sum_exp` reads them once,
//! `log_softmax` reads them twice and writes f32. With every check on, as tests run, and with none; on all cores.
//! Throughput is in thread instructions of PTX. Needs nvcc (`scripts/install-nvcc`). Nothing is asserted of times; the
//! design asks for less than 10 s on two cores.

#[allow(dead_code)]
#[path = "../tests/support/compile.rs"]
mod compile;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use softcuda::machine::device::{Device, Launch, Program};
use softcuda::report::LaunchReport;
use softcuda::{Checks, Settings};
use std::sync::Arc;

const ROWS: u32 = 64;
const VOCABULARY: u32 = 128_256;
const THREADS: u32 = 512;

/// The kernel with its buffers.
struct Prepared {
    device: Device,
    program: Arc<Program>,
    kernel: usize,
    launch: Launch,
}

impl Prepared {
    fn new(kernel: &str, checks: Checks) -> Self {
        let device = Device::new(&Settings { checks, ..Settings::default() });
        let program = device.load(&compile::compile("log_softmax", &[])).expect("the kernel loads");
        let elements = u64::from(ROWS) * u64::from(VOCABULARY);
        let logits: Vec<u8> =
            (0..elements).flat_map(|i| half::bf16::from_f32((i * 7919 % 1009) as f32 * 0.01).to_le_bytes()).collect();
        let on_device = device.memory.allocate(2 * elements).expect("memory");
        device.memory.write(on_device, &logits).expect("the logits fit");
        let out = device.memory.allocate(4 * elements).expect("memory");
        let mut parameters = [on_device.to_le_bytes(), out.to_le_bytes()].concat();
        parameters.extend(VOCABULARY.to_le_bytes());
        let kernel = program.kernel(kernel).expect("the kernel is there");
        let launch = Launch { grid: [ROWS, 1, 1], block: [THREADS, 1, 1], parameters, ..Launch::default() };
        Self { device, program, kernel, launch }
    }

    fn run(&self) -> LaunchReport {
        let report = self.device.launch(&self.program, self.kernel, &self.launch);
        assert_eq!(report.fault, None);
        report
    }
}

fn interpret(criterion: &mut Criterion) {
    let none = Checks {
        uninitialized: false,
        races: false,
        divergent_barriers: false,
        read_only_loads: false,
        ..Checks::default()
    };
    for kernel in ["log_sum_exp_bf16", "log_softmax_bf16"] {
        let mut group = criterion.benchmark_group(format!("{kernel}/{ROWS}x{VOCABULARY}"));
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        for (name, checks) in [("every_check", Checks::default()), ("no_check", none)] {
            let prepared = Prepared::new(kernel, checks);
            group.throughput(Throughput::Elements(prepared.run().counters.instructions.thread));
            group.bench_function(name, |bencher| bencher.iter(|| prepared.run()));
        }
        group.finish();
    }
}

criterion_group!(benches, interpret);
criterion_main!(benches);
