//! Runs kernels that are given as PTX text, without a driver around them, and reads the marks in the text.

#![allow(dead_code, reason = "every test binary uses its own part of it")]

use softcuda::Settings;
use softcuda::machine::device::{Device, Launch};
use softcuda::report::{FaultKind, LaunchReport};

/// One argument of a kernel.
#[derive(Clone, Debug)]
pub(crate) enum Argument {
    /// A new buffer with these bytes; the kernel gets its address.
    Bytes(Vec<u8>),
    /// A new buffer of this many bytes that nobody has written.
    Fresh(u64),
    /// A buffer that was freed before the launch.
    Freed(u64),
    /// A 32-bit number.
    Word(u32),
}

/// A kernel with its launch.
pub(crate) struct Planted<'a> {
    /// The module; `HEADER` comes before it.
    pub(crate) text: &'a str,
    /// Blocks.
    pub(crate) grid: u32,
    /// Threads of a block.
    pub(crate) block: u32,
    /// Blocks of a cluster.
    pub(crate) cluster: u32,
    /// Dynamic shared memory in bytes.
    pub(crate) shared: u32,
    /// Its arguments.
    pub(crate) arguments: Vec<Argument>,
}

/// What stands before every module: three lines.
pub(crate) const HEADER: &str = ".version 9.0\n.target sm_90\n.address_size 64\n";

impl<'a> Planted<'a> {
    /// One block of 32 threads.
    pub(crate) fn new(text: &'a str, arguments: Vec<Argument>) -> Self {
        Self { text, grid: 1, block: 32, cluster: 1, shared: 0, arguments }
    }

    /// Runs it; the report, and the addresses of the buffers.
    pub(crate) fn run(&self, settings: &Settings) -> (LaunchReport, Vec<u64>, Device) {
        let device = Device::new(settings);
        let text = format!("{HEADER}{}", self.text);
        let program = device.load(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let info = program.kernels()[0].clone();
        let mut parameters = vec![0; info.parameter_bytes as usize];
        let mut addresses = Vec::new();
        for (argument, (offset, size)) in self.arguments.iter().zip(&info.parameters) {
            let value = match argument {
                Argument::Bytes(bytes) => {
                    let address = device.memory.allocate(bytes.len() as u64).expect("memory");
                    device.memory.write(address, bytes).expect("write");
                    addresses.push(address);
                    address
                }
                Argument::Fresh(bytes) => {
                    let address = device.memory.allocate(*bytes).expect("memory");
                    addresses.push(address);
                    address
                }
                Argument::Freed(bytes) => {
                    let address = device.memory.allocate(*bytes).expect("memory");
                    device.memory.free(address).expect("free");
                    addresses.push(address);
                    address
                }
                Argument::Word(word) => u64::from(*word),
            };
            let place = *offset as usize;
            parameters[place..place + *size as usize].copy_from_slice(&value.to_le_bytes()[..*size as usize]);
        }
        assert_eq!(self.arguments.len(), info.parameters.len(), "arguments of {}", info.name);
        let launch = Launch {
            grid: [self.grid, 1, 1],
            block: [self.block, 1, 1],
            cluster: (self.cluster > 1).then_some([self.cluster, 1, 1]),
            dynamic_shared_bytes: self.shared,
            cooperative: false,
            parameters,
        };
        (device.launch(&program, 0, &launch), addresses, device)
    }

    /// Runs it in order and with several shuffles: there must be no fault.
    #[track_caller]
    pub(crate) fn is_clean(&self) -> LaunchReport {
        let mut last = None;
        for shuffle in [None, Some(1), Some(2), Some(3)] {
            let (report, _, _) = self.run(&Settings { shuffle, ..Settings::default() });
            if let Some(fault) = report.fault {
                panic!("shuffle {shuffle:?}: {fault}\n{}", self.text);
            }
            last = Some(report);
        }
        last.expect("four runs")
    }

    /// Runs it in order and with several shuffles: there must be this fault at the line marked `// FAULT`, every time
    /// (for races: at that line or at the one marked `// OTHER`, whichever thread came second).
    #[track_caller]
    pub(crate) fn has(&self, kind: FaultKind) -> softcuda::report::Fault {
        let mut first = None;
        for shuffle in [None, Some(1), Some(2), Some(3)] {
            let (report, _, _) = self.run(&Settings { shuffle, ..Settings::default() });
            let Some(fault) = report.fault else { panic!("shuffle {shuffle:?}: no fault was found in\n{}", self.text) };
            assert_eq!(fault.kind, kind, "{fault}");
            let (line, other) = (line_of(self.text, "// FAULT"), line_of(self.text, "// OTHER"));
            if kind == FaultKind::Race {
                let found = fault.other.as_ref().map(|other| other.line);
                let either = other.or(line);
                let both = [(line, either), (either, line)];
                assert!(both.contains(&(Some(fault.line), found)), "lines {line:?} and {other:?} are marked: {fault}");
            } else {
                assert_eq!(Some(fault.line), line, "{fault}");
            }
            first.get_or_insert(fault);
        }
        first.expect("four runs")
    }
}

/// The line that carries a mark, counted from 1 with the header.
pub(crate) fn line_of(text: &str, mark: &str) -> Option<u32> {
    let header = HEADER.lines().count();
    text.lines().position(|line| line.contains(mark)).map(|line| (line + 1 + header) as u32)
}
