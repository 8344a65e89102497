//! Runs a kernel that must succeed, under several schedules, and hands back its buffers.

#![allow(dead_code, reason = "every test binary uses its own part of it")]

use softcuda::Settings;
use softcuda::machine::device::{Device, Launch};
use softcuda::report::LaunchReport;

/// What stands before every module: the target that has most instructions.
pub(crate) const HEADER: &str = ".version 9.0\n.target sm_100a\n.address_size 64\n";

/// The registers that every body has, and which of them [`per_thread`] fills and stores.
const REGISTERS: &str = "    .reg .pred %p<12>;
    .reg .b16 %h<12>;
    .reg .b32 %r<24>;
    .reg .b64 %rd<24>;
    .reg .f32 %f<12>;
    .reg .f64 %fd<12>;
    .reg .b128 %q<12>;
    .reg .b32 %i<16>;
    .reg .b32 %o<32>;
";

/// One parameter of a kernel.
#[derive(Clone, Debug)]
pub(crate) enum Argument {
    /// A buffer with these bytes: the kernel gets its address.
    Bytes(Vec<u8>),
    /// A buffer of so many bytes that nobody has written.
    Fresh(usize),
    /// The bytes of the parameter itself.
    Value(Vec<u8>),
}

/// A kernel with its launch.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// The module without its header.
    pub(crate) text: String,
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) block: [u32; 3],
    /// Blocks of a cluster.
    pub(crate) cluster: Option<[u32; 3]>,
    /// Dynamic shared memory in bytes.
    pub(crate) shared: u32,
    /// In the order of the parameters.
    pub(crate) arguments: Vec<Argument>,
}

/// What a launch left behind.
pub(crate) struct Ended {
    /// The buffers, in the order of the arguments that are buffers.
    pub(crate) buffers: Vec<Vec<u8>>,
    /// Their addresses.
    pub(crate) addresses: Vec<u64>,
    /// The report.
    pub(crate) report: LaunchReport,
}

impl Kernel {
    /// One block of 32 threads.
    pub(crate) fn new(text: impl Into<String>, arguments: Vec<Argument>) -> Self {
        Self { text: text.into(), grid: [1; 3], block: [32, 1, 1], cluster: None, shared: 0, arguments }
    }

    /// A kernel `k` with this body, and these declarations of the module and of parameters.
    pub(crate) fn with_body(module: &str, parameters: &str, body: &str, arguments: Vec<Argument>) -> Self {
        Self::new(
            format!("{module}\n.visible .entry k({parameters})\n{{\n{REGISTERS}{body}\n    ret;\n}}\n"),
            arguments,
        )
    }

    /// Runs it; there must be no fault.
    #[track_caller]
    pub(crate) fn run_with(&self, settings: &Settings) -> Ended {
        let ended = self.launch(settings);
        if let Some(fault) = &ended.report.fault {
            panic!("shuffle {:?}: {fault}\n{}", settings.shuffle, self.text);
        }
        ended
    }

    /// Runs it.
    #[track_caller]
    pub(crate) fn launch(&self, settings: &Settings) -> Ended {
        let device = Device::new(settings);
        let program =
            device.load(&format!("{HEADER}{}", self.text)).unwrap_or_else(|error| panic!("{error}\n{}", self.text));
        let info = program.kernels()[0].clone();
        assert_eq!(self.arguments.len(), info.parameters.len(), "arguments of {}", info.name);
        let mut parameters = vec![0; info.parameter_bytes as usize];
        let mut placed = Vec::new();
        for (argument, (offset, size)) in self.arguments.iter().zip(&info.parameters) {
            let mut buffer = |bytes: usize| {
                let address = device.memory.allocate(bytes as u64).expect("memory");
                placed.push((address, bytes));
                address
            };
            let value = match argument {
                Argument::Bytes(bytes) => {
                    let address = buffer(bytes.len());
                    device.memory.write(address, bytes).expect("write");
                    address.to_le_bytes().to_vec()
                }
                Argument::Fresh(bytes) => buffer(*bytes).to_le_bytes().to_vec(),
                Argument::Value(bytes) => bytes.clone(),
            };
            assert_eq!(value.len(), *size as usize, "bytes of a parameter");
            parameters[*offset as usize..][..value.len()].copy_from_slice(&value);
        }
        let Self { grid, block, cluster, shared, .. } = *self;
        let launch = Launch { grid, block, cluster, dynamic_shared_bytes: shared, cooperative: false, parameters };
        let report = device.launch(&program, 0, &launch);
        let buffers = placed.iter().map(|(address, bytes)| {
            let mut buffer = vec![0; *bytes];
            device.memory.read(*address, &mut buffer).expect("read");
            buffer
        });
        Ended { buffers: buffers.collect(), addresses: placed.iter().map(|place| place.0).collect(), report }
    }

    /// Runs it in order and shuffled, on one, two and three host threads: no fault, the same results and the same
    /// counters each time.
    #[track_caller]
    pub(crate) fn run(&self) -> Ended {
        let first = self.run_with(&Settings { host_threads: 1, ..Settings::default() });
        for (shuffle, host_threads) in [(None, 3), (Some(1), 1), (Some(2), 2), (Some(3), 3)] {
            let again = self.run_with(&Settings { shuffle, host_threads, ..Settings::default() });
            assert_eq!(again.buffers, first.buffers, "shuffle {shuffle:?}, {host_threads} host threads\n{}", self.text);
        }
        first
    }
}

/// Runs a body for a block of `threads` threads. Thread t finds `inputs[k][t]` in `%ik`; `%o0` and so on are its
/// `outputs` results: `[result][thread]`.
#[track_caller]
pub(crate) fn per_thread(body: &str, inputs: &[Vec<u32>], outputs: usize, threads: u32) -> Vec<Vec<u32>> {
    per_thread_in("", body, inputs, outputs, threads)
}

/// The same with declarations in the module.
#[track_caller]
pub(crate) fn per_thread_in(
    module: &str,
    body: &str,
    inputs: &[Vec<u32>],
    outputs: usize,
    threads: u32,
) -> Vec<Vec<u32>> {
    use std::fmt::Write;
    let mut text =
        String::from("    ld.param.u64 %rd20, [in];\n    ld.param.u64 %rd21, [out];\n    mov.u32 %r20, %tid.x;\n");
    let _ = writeln!(text, "    mad.wide.u32 %rd20, %r20, {}, %rd20;", 4 * inputs.len());
    let _ = writeln!(text, "    mad.wide.u32 %rd21, %r20, {}, %rd21;", 4 * outputs);
    for index in 0..inputs.len() {
        let _ = writeln!(text, "    ld.global.u32 %i{index}, [%rd20+{}];", 4 * index);
    }
    text.push_str(body);
    text.push('\n');
    for index in 0..outputs {
        let _ = writeln!(text, "    st.global.u32 [%rd21+{}], %o{index};", 4 * index);
    }
    let mut bytes = Vec::new();
    for thread in 0..threads as usize {
        bytes.extend(inputs.iter().flat_map(|input| input[thread].to_le_bytes()));
    }
    // An allocation has at least one byte.
    bytes.push(0);
    let arguments = vec![Argument::Bytes(bytes), Argument::Fresh(4 * outputs * threads as usize)];
    let mut kernel = Kernel::with_body(module, ".param .u64 in, .param .u64 out", &text, arguments);
    kernel.block = [threads, 1, 1];
    let words = words(&kernel.run().buffers[1]);
    (0..outputs).map(|output| words.iter().skip(output).step_by(outputs).copied().collect()).collect()
}

/// Bytes as little-endian words.
pub(crate) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}

/// Bytes as little-endian double words.
pub(crate) fn longs(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect()
}

/// Words as little-endian bytes.
pub(crate) fn bytes(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// A reproducible sequence of 32-bit numbers (xorshift), for inputs without a pattern.
pub(crate) fn noise(seed: u32) -> impl Iterator<Item = u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    std::iter::from_fn(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        Some(state)
    })
}
