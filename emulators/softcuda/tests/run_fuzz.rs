//! Kernels with random mistakes, launched with random arguments and shapes: the device answers with a report, and still
//! works afterwards.

#[path = "support/mutation.rs"]
mod mutation;

use mutation::{Change, LINES, change, changes, lines_kernel};
use proptest::prelude::*;
use proptest::sample::Index;
use softcuda::machine::device::{Device, KernelInfo, Launch};
use softcuda::{Checks, Settings};
use std::sync::mpsc;
use std::time::Duration;

/// Kernels with structure, to be spoilt.
const KERNELS: &[&str] = &[
    include_str!("kernels/fuzz_calls.ptx"),
    include_str!("kernels/fuzz_lanes.ptx"),
    include_str!("kernels/fuzz_copies.ptx"),
    include_str!("kernels/fuzz_barriers.ptx"),
    include_str!("kernels/fuzz_loops.ptx"),
    include_str!("kernels/fuzz_variables.ptx"),
];

/// What shows that the device still works: each thread writes its number.
const WITNESS: &str = r".version 9.0
.target sm_50
.address_size 64
.visible .entry witness(.param .u64 out)
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r1;
    ret;
}
";

/// The most that a block may ask for on sm_90, in bytes.
const SHARED_LIMIT: u32 = 227 << 10;
/// Longer than any case takes on a busy machine: beyond it, it hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// A launch, before it is known what the kernel takes.
#[derive(Clone, Debug)]
struct Shape {
    clusters: [u32; 3],
    cluster: [u32; 3],
    block: [u32; 3],
    shared: u32,
    cooperative: bool,
    arguments: Vec<Argument>,
}

#[derive(Clone, Debug)]
enum Argument {
    /// So many bytes into a buffer.
    Buffer(Index, u64),
    Number(u64),
}

fn argument() -> impl Strategy<Value = Argument> {
    prop_oneof![
        6 => any::<Index>().prop_map(|index| Argument::Buffer(index, 0)),
        1 => (any::<Index>(), 0..5000_u64).prop_map(|(index, offset)| Argument::Buffer(index, offset)),
        1 => any::<u64>().prop_map(Argument::Number),
        2 => (0..100_u64).prop_map(Argument::Number),
        1 => (0..64_u32, 0..3_u64).prop_map(|(bit, less)| Argument::Number((1_u64 << bit).wrapping_sub(less))),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let extents = |most: u32| [1..=most, 1..=most, 1..=most];
    let block = prop_oneof![
        3 => Just([32, 1, 1]),
        2 => (1..=96_u32).prop_map(|threads| [threads, 1, 1]),
        2 => extents(7),
        1 => Just([1, 1, 64]),
        1 => Just([1024, 1, 1]),
    ];
    let cluster = prop_oneof![4 => Just([1, 1, 1]), 2 => Just([2, 1, 1]), 1 => extents(2)];
    let clusters = prop_oneof![
        6 => extents(2),
        1 => Just([0x4000_0000 - 1, 1, 1]),
        1 => Just([1, 20_000, 20_000]),
        1 => Just([0x2000_0000, 0x7fff, 0x7fff]),
    ];
    let shared = prop_oneof![3 => Just(0), 2 => 0..2048_u32, 1 => 0..SHARED_LIMIT];
    (clusters, cluster, block, shared, prop::bool::weighted(0.1), prop::collection::vec(argument(), 1..8)).prop_map(
        |(clusters, cluster, block, shared, cooperative, arguments)| Shape {
            clusters,
            cluster,
            block,
            shared,
            // All blocks of a cooperative grid are resident: a driver refuses more than a few hundred.
            cooperative: cooperative && clusters.iter().all(|extent| *extent <= 2),
            arguments,
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    let budget = prop_oneof![8 => Just(1 << 16), 1 => 0..200_u64];
    let memory = prop_oneof![8 => Just(1 << 26), 1 => 0..20_000_u64];
    let checks = any::<[bool; 7]>().prop_map(|on| Checks {
        uninitialized: on[0],
        races: on[1],
        divergent_barriers: on[2],
        read_only_loads: on[3],
        equal_stores: on[4],
        compare_and_swap_reads: on[5],
        uninitialized_loads: on[6],
    });
    let checks = prop_oneof![Just(Checks::default()), checks, Just(no_checks())];
    (any::<(u32, u32)>(), memory, prop::option::of(any::<u64>()), budget, 0..4_usize, checks, any::<bool>()).prop_map(
        |(compute_capability, memory_bytes, shuffle, instruction_budget, host_threads, checks, delay_streams)| {
            Settings {
                compute_capability,
                memory_bytes,
                shuffle,
                instruction_budget,
                host_threads,
                checks,
                delay_streams,
                ..Settings::default()
            }
        },
    )
}

fn no_checks() -> Checks {
    Checks {
        uninitialized: false,
        races: false,
        divergent_barriers: false,
        read_only_loads: false,
        ..Checks::default()
    }
}

/// The launch that the driver would accept and that is nearest to the wish; `None`: there is none.
fn launch(info: &KernelInfo, shape: &Shape, buffers: &[u64]) -> Option<Launch> {
    let block = info.required_threads.unwrap_or(shape.block);
    let threads: u64 = block.iter().map(|extent| u64::from(*extent)).product();
    if threads == 0 || threads > u64::from(info.max_threads) || info.static_shared_bytes > SHARED_LIMIT {
        return None;
    }
    let cluster = info.required_cluster.unwrap_or(shape.cluster);
    let size: u64 = cluster.iter().map(|extent| u64::from(*extent)).product();
    if size == 0 || size > 16 {
        return None;
    }
    let most = [0x7fff_ffff, 0xffff, 0xffff];
    let grid = std::array::from_fn(|axis| {
        let clusters = shape.clusters[axis].min(most[axis] / cluster[axis]).max(1);
        clusters * cluster[axis]
    });
    let mut parameters = vec![0; info.parameter_bytes as usize];
    for (index, (offset, size)) in info.parameters.iter().enumerate() {
        let value = match &shape.arguments[index % shape.arguments.len()] {
            Argument::Buffer(..) if buffers.is_empty() => 0,
            Argument::Buffer(index, offset) => index.get(buffers) + offset,
            Argument::Number(number) => *number,
        };
        let bytes = value.to_le_bytes();
        for (to, from) in parameters[*offset as usize..][..*size as usize].iter_mut().zip(bytes.iter().cycle()) {
            *to = *from;
        }
    }
    let dynamic_shared_bytes = shape.shared.min(SHARED_LIMIT - info.static_shared_bytes);
    let is_clustered = info.required_cluster.is_none() && size > 1;
    Some(Launch {
        grid,
        block,
        cluster: is_clustered.then_some(cluster),
        dynamic_shared_bytes,
        cooperative: shape.cooperative,
        parameters,
    })
}

/// Loads and runs a text; whether it could be loaded.
fn answers(text: &str, shape: &Shape, settings: &Settings) -> bool {
    let device = Device::new(settings);
    let mut buffers = Vec::new();
    for (number, bytes) in [4096_u64, 64, 1 << 16].into_iter().enumerate() {
        if let Some(address) = device.memory.allocate(bytes) {
            let data: Vec<u8> = (0..bytes).map(|index| (index * 37 + number as u64) as u8).collect();
            device.memory.write(address, &data).expect("an allocation");
            buffers.push(address);
        }
    }
    let loaded = device.load(text);
    let is_loaded = loaded.is_ok();
    if let Ok(program) = loaded {
        for (kernel, info) in program.kernels().iter().enumerate() {
            if let Some(launch) = launch(info, shape, &buffers) {
                let report = device.launch(&program, kernel, &launch);
                if let Some(fault) = &report.fault {
                    assert!(fault.line > 0 && !fault.message.is_empty(), "{fault}");
                    assert!(!fault.to_string().is_empty());
                }
            }
        }
        device.unload(&program);
    }
    still_works(device, settings);
    is_loaded
}

/// A kernel that must succeed, whatever happened to the device before.
fn still_works(mut device: Device, settings: &Settings) {
    device.configure(&Settings { instruction_budget: 1 << 20, ..settings.clone() });
    let Some(out) = device.memory.allocate(256) else { return };
    let program = device.load(WITNESS).expect("a valid kernel");
    let launch =
        Launch { grid: [1; 3], block: [64, 1, 1], parameters: out.to_le_bytes().to_vec(), ..Launch::default() };
    let report = device.launch(&program, 0, &launch);
    assert_eq!(report.fault, None);
    let mut bytes = [0; 256];
    device.memory.read(out, &mut bytes).expect("read");
    assert!(bytes.chunks(4).enumerate().all(|(thread, word)| *word == (thread as u32).to_le_bytes()));
}

/// The same on a thread of its own, so that neither a panic on any thread nor a hang goes unnoticed.
fn survives(text: &str, shape: &Shape, settings: &Settings) -> Result<bool, TestCaseError> {
    let (sender, receiver) = mpsc::channel();
    let (owned, shape, settings) = (text.to_owned(), shape.clone(), settings.clone());
    let thread = std::thread::spawn(move || {
        let is_loaded = answers(&owned, &shape, &settings);
        let _ = sender.send(());
        is_loaded
    });
    if receiver.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
        return Err(TestCaseError::fail(format!("it hangs\n{text}")));
    }
    thread.join().map_err(|_| TestCaseError::fail(format!("it panics\n{text}")))
}

fn cases(number: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(number);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() }
}

#[test]
fn unspoilt_kernels_load_and_finish() {
    let shape = Shape {
        clusters: [1; 3],
        cluster: [2, 1, 1],
        block: [64, 1, 1],
        shared: 1024,
        cooperative: false,
        arguments: (0..3).map(|_| Argument::Number(0)).collect(),
    };
    for text in KERNELS {
        let device = Device::new(&Settings::default());
        let buffers: Vec<u64> = (0..2).map(|_| device.memory.allocate(1 << 16).expect("memory")).collect();
        for buffer in &buffers {
            device.memory.fill(*buffer, &[1], 1 << 16).expect("fill");
        }
        let program = device.load(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        for (kernel, info) in program.kernels().iter().enumerate() {
            let mut launch = launch(info, &shape, &buffers).expect("a launch");
            for ((offset, size), buffer) in info.parameters.iter().zip(buffers.iter().cycle()) {
                if *size == 8 {
                    launch.parameters[*offset as usize..][..8].copy_from_slice(&buffer.to_le_bytes());
                }
            }
            let report = device.launch(&program, kernel, &launch);
            assert_eq!(report.fault, None, "{}", report.fault.as_ref().map_or(String::new(), ToString::to_string));
        }
    }
}

#[test]
fn every_single_line_is_accepted() {
    // Otherwise most random programs would never run.
    for line in LINES {
        let text = lines_kernel(&[(line, "")]);
        let device = Device::new(&Settings::default());
        assert!(device.load(&text).is_ok(), "{line}: {}", device.load(&text).err().expect("an error"));
    }
}

proptest! {
    #![proptest_config(cases(300))]

    /// Kernels with a few words, numbers or lines changed.
    #[test]
    fn spoilt_kernels_are_answered(
        text in prop::sample::select(KERNELS),
        changes in changes(1..5),
        shape in shape(),
        settings in settings(),
    ) {
        survives(&change(text, &changes), &shape, &settings)?;
    }

    /// Random instructions one after the other, guarded at random, with branches among them.
    #[test]
    fn random_instructions_are_answered(
        lines in prop::collection::vec((prop::sample::select(LINES), prop::sample::select(mutation::GUARDS)), 1..40),
        changes in changes(0..3),
        shape in shape(),
        settings in settings(),
    ) {
        survives(&change(&lines_kernel(&lines), &changes), &shape, &settings)?;
    }
}

proptest! {
    #![proptest_config(cases(200))]

    /// One spoilt instruction alone, all checks off: nothing stops it before it is executed.
    #[test]
    fn single_spoilt_instructions_are_answered(
        line in prop::sample::select(LINES),
        changes in prop::collection::vec(any::<Change>(), 1..4),
        shape in shape(),
    ) {
        let mut line = line.to_owned();
        for one in &changes {
            line = change(&line, std::slice::from_ref(one)).replace('\n', " ");
        }
        let settings = Settings { checks: no_checks(), instruction_budget: 1 << 16, memory_bytes: 1 << 26, ..Settings::default() };
        survives(&lines_kernel(&[(&line, "")]), &shape, &settings)?;
    }
}
