//! Launches: what a driver checks of them, and what it hands to the machine.

use super::entry::{In, Outcome, entry_points};
use super::error::Code;
use super::host_memory::read_host;
use super::limits::{BLOCK_SHAPE, BLOCK_THREADS, GRID_SHAPE, Limits};
use super::occupancy::{cluster_limit, resident_blocks};
use super::state::{Function, Handle, State, state};
use super::work::{Work, node, submit};
use crate::machine::device::{Device, KernelInfo, Launch, Program};
use crate::report::LaunchReport;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

/// `CUlaunchConfig`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Configuration {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    stream: Handle,
    attributes: In<Attribute>,
    count: u32,
}

/// `CUlaunchAttribute`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Attribute {
    id: u32,
    pad: u32,
    value: [u32; 16],
}

/// What a launch asks for, whichever call made it.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) dynamic_shared: u32,
    pub(super) stream: Handle,
    pub(super) cluster: Option<[u32; 3]>,
    pub(super) cooperative: bool,
}

/// `CUlaunchAttributeID`.
const COOPERATIVE: u32 = 2;
const CLUSTER: u32 = 4;
const PROGRAMMATIC_EVENT: u32 = 7;
const COMPLETION_EVENT: u32 = 12;
const UPDATABLE_NODE: u32 = 13;
const LAST_ATTRIBUTE: u32 = 18;

impl Shape {
    /// A launch configuration with its attributes. Those that change nothing here are accepted: scheduling preferences,
    /// priorities, programmatic serialisation (each launch begins after the one before has ended, which is allowed).
    pub(super) fn read(configuration: Configuration) -> Outcome<Self> {
        let Configuration { grid, block, dynamic_shared, stream, attributes, count } = configuration;
        let mut shape = Self { grid, block, dynamic_shared, stream, cluster: None, cooperative: false };
        for attribute in attributes.list(count as usize)? {
            match attribute.id {
                COOPERATIVE => shape.cooperative = attribute.value[0] != 0,
                CLUSTER => shape.cluster = Some([attribute.value[0], attribute.value[1], attribute.value[2]]),
                PROGRAMMATIC_EVENT | COMPLETION_EVENT | UPDATABLE_NODE => {
                    eprintln!("softcuda: launch attribute {} is not supported", attribute.id);
                    return Err(Code::NOT_SUPPORTED);
                }
                0..=LAST_ATTRIBUTE => {}
                _ => return Err(Code::INVALID_VALUE),
            }
        }
        Ok(shape)
    }

    /// Checks a launch against the kernel and the device; the cluster, if there is one.
    fn check(&self, function: &Function, limits: &Limits) -> Outcome<Option<[u32; 3]>> {
        let info = function.info();
        let within = |shape: &[u32; 3], most: &[u32; 3]| {
            shape.iter().zip(most).all(|(&extent, most)| (1..=*most).contains(&extent))
        };
        if !within(&self.grid, &GRID_SHAPE) || !within(&self.block, &BLOCK_SHAPE) {
            return Err(Code::INVALID_VALUE);
        }
        // At most 2^26: no overflow.
        let threads: u32 = self.block.iter().product();
        let wrong_threads = info.required_threads.is_some_and(|required| required != self.block);
        if threads > info.max_threads.min(BLOCK_THREADS)
            || wrong_threads
            || self.dynamic_shared > function.dynamic_limit()
        {
            return Err(Code::INVALID_VALUE);
        }
        if info.static_shared_bytes.saturating_add(self.dynamic_shared) > limits.shared_opt_in {
            return Err(Code::INVALID_VALUE);
        }
        let cluster = self.check_cluster(function, limits)?;
        if self.cooperative {
            let resident =
                resident_blocks(limits, info, threads, u64::from(self.dynamic_shared)) * limits.multiprocessors;
            let blocks: u128 = self.grid.iter().map(|&extent| u128::from(extent)).product();
            if blocks > u128::from(resident) {
                return Err(Code::COOPERATIVE_LAUNCH_TOO_LARGE);
            }
        }
        Ok(cluster)
    }

    fn check_cluster(&self, function: &Function, limits: &Limits) -> Outcome<Option<[u32; 3]>> {
        let required = function.info().required_cluster;
        let Some(cluster) = self.cluster.or(required) else { return Ok(None) };
        if !limits.has_clusters() {
            return Err(Code::INVALID_VALUE);
        }
        let size = cluster.iter().map(|&extent| u128::from(extent)).product::<u128>();
        let divides = cluster.iter().zip(&self.grid).all(|(&extent, grid)| extent > 0 && grid % extent == 0);
        let agrees = required.is_none_or(|required| required == cluster);
        let fits = divides && agrees && size <= u128::from(cluster_limit(function));
        if fits { Ok(Some(cluster)) } else { Err(Code::INVALID_CLUSTER_SIZE) }
    }
}

/// `CU_LAUNCH_PARAM_*`: what the next element of `extra` is.
const EXTRA_END: u64 = 0;
const EXTRA_BUFFER: u64 = 1;
const EXTRA_BYTES: u64 = 2;

/// The parameter block, from pointers to each argument or from a buffer.
fn parameters(info: &KernelInfo, pointers: In<u64>, extra: In<u64>) -> Outcome<Vec<u8>> {
    let mut block = vec![0; info.parameter_bytes as usize];
    if !extra.is_null() {
        if !pointers.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let (mut buffer, mut bytes) = (0, None);
        let mut index = 0;
        loop {
            match extra.at(index)? {
                EXTRA_END => break,
                EXTRA_BUFFER => buffer = extra.at(index + 1)?,
                EXTRA_BYTES => bytes = Some(In::<usize>::at_place(extra.at(index + 1)?).get()?),
                _ => return Err(Code::INVALID_VALUE),
            }
            index += 2;
        }
        let bytes = bytes.filter(|&bytes| bytes == block.len()).ok_or(Code::INVALID_VALUE)?;
        return if bytes == 0 { Ok(block) } else { read_host(buffer, bytes) };
    }
    for (index, &(offset, size)) in info.parameters.iter().enumerate() {
        let pointer = pointers.at(index)?;
        if pointer == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let argument = read_host(pointer, size as usize)?;
        let place = block.get_mut(offset as usize..(offset + size) as usize).ok_or(Code::INVALID_VALUE)?;
        place.copy_from_slice(&argument);
    }
    Ok(block)
}

/// Runs a kernel and tells everyone who wants to know; a fault becomes the launch's error.
fn run(machine: &RwLock<Device>, program: &Arc<Program>, kernel: usize, launch: &Launch) -> Outcome {
    reported(&machine.read().unwrap_or_else(PoisonError::into_inner).launch(program, kernel, launch))
}

/// Tells everyone who wants to know of a launch; its fault becomes the error.
pub(super) fn reported(report: &LaunchReport) -> Outcome {
    if !report.printed.is_empty() {
        // A closed standard output is the program's own wish.
        let mut output = std::io::stdout().lock();
        let _ = output.write_all(report.printed.as_bytes()).and_then(|()| output.flush());
    }
    if let Some(fault) = &report.fault {
        eprintln!("softcuda: {fault}");
    }
    let file = {
        let mut state = state();
        state.keep_report(report);
        state.settings.report_file.clone()
    };
    if let Some(file) = file {
        append(&file, report);
    }
    report.fault.as_ref().map_or(Ok(()), |fault| Err(Code::of(fault)))
}

/// Appends a report to a file, as one line.
fn append(file: &Path, report: &LaunchReport) {
    let written = serde_json::to_string(report).map_err(std::io::Error::from).and_then(|line| {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
        file.write_all(format!("{line}\n").as_bytes())
    });
    if let Err(error) = written {
        eprintln!("softcuda: the launch report was not written to {}: {error}", file.display());
    }
}

/// Checks a launch, and copies its arguments: what is left to do. The shape's stream is not looked at.
pub(super) fn prepare(
    state: &mut State,
    function: Handle,
    shape: &Shape,
    pointers: In<u64>,
    extra: In<u64>,
) -> Outcome<Work> {
    let entry = state.function(function)?;
    let cluster = shape.check(entry, &state.limits())?;
    let launch = Launch {
        grid: shape.grid,
        block: shape.block,
        cluster,
        dynamic_shared_bytes: shape.dynamic_shared,
        cooperative: shape.cooperative,
        parameters: parameters(entry.info(), pointers, extra)?,
    };
    let (program, kernel) = (Arc::clone(&entry.program), entry.kernel);
    let machine = state.machine();
    Ok(Arc::new(move || run(&machine, &program, kernel, &launch)))
}

fn launch(function: Handle, shape: &Shape, pointers: In<u64>, extra: In<u64>) -> Outcome {
    let (stream, work) = {
        let mut state = state();
        let stream = state.stream(shape.stream)?;
        if state.streams[&stream].context != state.function(function)?.context {
            return Err(Code::INVALID_HANDLE);
        }
        (stream, prepare(&mut state, function, shape, pointers, extra)?)
    };
    submit(stream, node::KERNEL, work).map(drop)
}

entry_points! {
    fn cuLaunchKernel(
        function: Handle,
        grid_x: u32, grid_y: u32, grid_z: u32,
        block_x: u32, block_y: u32, block_z: u32,
        dynamic_shared: u32, stream: Handle, parameters: In<u64>, extra: In<u64>,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let shape = Shape { grid, block, dynamic_shared, stream, cluster: None, cooperative: false };
        launch(function, &shape, parameters, extra)
    }
    fn cuLaunchCooperativeKernel(
        function: Handle,
        grid_x: u32, grid_y: u32, grid_z: u32,
        block_x: u32, block_y: u32, block_z: u32,
        dynamic_shared: u32, stream: Handle, parameters: In<u64>,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let shape = Shape { grid, block, dynamic_shared, stream, cluster: None, cooperative: true };
        launch(function, &shape, parameters, In::null())
    }
    fn cuLaunchKernelEx(configuration: In<Configuration>, function: Handle, parameters: In<u64>, extra: In<u64>) {
        launch(function, &Shape::read(configuration.get()?)?, parameters, extra)
    }
}
