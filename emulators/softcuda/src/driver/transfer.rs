//! Copies between host and device, and within either.

use super::entry::{In, Outcome, entry_points};
use super::error::Code;
use super::host_memory::{read_host, write_host};
use super::state::{Handle, Kind, State, state};
use super::work::{Work, check_stream, node, submit, submit_and_wait};
use crate::machine::device::Device;
use crate::machine::memory::Refusal;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Where one side of a copy is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Memory of the caller.
    Host(u64),
    /// An address that kernels use.
    Device(u64),
}

impl Place {
    fn at(self, offset: u64) -> Self {
        match self {
            Self::Host(address) => Self::Host(address.wrapping_add(offset)),
            Self::Device(address) => Self::Device(address.wrapping_add(offset)),
        }
    }
}

/// A copy of `rows` rows of `width` bytes.
#[derive(Clone, Copy, Debug)]
struct Copy {
    destination: Place,
    destination_pitch: u64,
    source: Place,
    source_pitch: u64,
    width: u64,
    rows: u64,
}

/// When the call returns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Return {
    /// After the copy.
    Done,
    /// At once, where the memory allows it.
    Submitted,
}

/// A refused access of a copy, as the error that a device would leave.
fn refused(refusal: &Refusal) -> Code {
    eprintln!("softcuda: a copy or memset failed: {}", refusal.message);
    Code::ILLEGAL_ADDRESS
}

impl Copy {
    fn linear(destination: Place, source: Place, bytes: usize) -> Self {
        let width = bytes as u64;
        Self { destination, destination_pitch: width, source, source_pitch: width, width, rows: 1 }
    }

    /// The bytes from the first to the last of one side; `None` when they do not fit the address space.
    fn extent(pitch: u64, width: u64, rows: u64) -> Option<u64> {
        pitch.checked_mul(rows - 1)?.checked_add(width)
    }

    /// The source's rows one after the other, from memory of the caller.
    fn gather(&self) -> Outcome<Vec<u8>> {
        let Place::Host(address) = self.source else { return Err(Code::INVALID_VALUE) };
        if self.rows == 1 {
            return read_host(address, self.width as usize);
        }
        let mut bytes = Vec::with_capacity((self.width * self.rows) as usize);
        for row in 0..self.rows {
            bytes.extend(read_host(address + row * self.source_pitch, self.width as usize)?);
        }
        Ok(bytes)
    }

    /// Copies; `gathered` stands for the source if it is there.
    fn perform(&self, machine: &RwLock<Device>, gathered: Option<&[u8]>) -> Outcome {
        let machine = machine.read().unwrap_or_else(PoisonError::into_inner);
        let memory = &machine.memory;
        let width = self.width as usize;
        for row in 0..self.rows {
            let destination = self.destination.at(row * self.destination_pitch);
            let source = self.source.at(row * self.source_pitch);
            if let (Place::Device(destination), Place::Device(source)) = (destination, source) {
                memory.copy(destination, source, self.width).map_err(|refusal| refused(&refusal))?;
                continue;
            }
            let buffer;
            let bytes = match (gathered, source) {
                (Some(gathered), _) => &gathered[row as usize * width..][..width],
                (None, Place::Host(source)) => {
                    buffer = read_host(source, width)?;
                    &buffer
                }
                (None, Place::Device(source)) => {
                    let mut read = vec![0; width];
                    memory.read(source, &mut read).map_err(|refusal| refused(&refusal))?;
                    buffer = read;
                    &buffer
                }
            };
            match destination {
                Place::Host(destination) => write_host(destination, bytes)?,
                Place::Device(destination) => memory.write(destination, bytes).map_err(|refusal| refused(&refusal))?,
            }
        }
        Ok(())
    }
}

impl State {
    /// Whether a range of device addresses lies in one allocation.
    pub(super) fn check_device_range(&mut self, address: u64, bytes: u64) -> Outcome {
        let machine = self.machine();
        let machine = machine.read().unwrap_or_else(PoisonError::into_inner);
        let range = machine.memory.containing(address).ok_or(Code::INVALID_VALUE)?;
        let freeing = self.allocations.get(&range.base).is_some_and(|allocation| allocation.freeing);
        if bytes <= range.bytes - (address - range.base) && !freeing { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }

    /// Whether a range of host memory is pinned, so that copies can read and write it while the host goes on.
    fn is_pinned(&self, address: u64, bytes: u64) -> bool {
        self.allocation(address).is_some_and(|(base, allocation)| {
            allocation.kind != Kind::Device && bytes <= allocation.bytes - (address - base)
        })
    }

    /// Looks at one side of a copy; whether it is pageable memory of the host.
    fn check_place(&mut self, place: Place, bytes: u64) -> Outcome<bool> {
        match place {
            Place::Host(0) => Err(Code::INVALID_VALUE),
            Place::Host(address) => {
                address.checked_add(bytes).ok_or(Code::INVALID_VALUE)?;
                // Both ends must be there; what lies between is found out by the copy.
                read_host(address, 1)?;
                read_host(address + (bytes - 1), 1)?;
                Ok(!self.is_pinned(address, bytes))
            }
            Place::Device(address) => self.check_device_range(address, bytes).map(|()| false),
        }
    }

    /// The place of a unified address.
    fn unified(&mut self, address: u64) -> Place {
        let machine = self.machine();
        let machine = machine.read().unwrap_or_else(PoisonError::into_inner);
        if machine.memory.containing(address).is_some() { Place::Device(address) } else { Place::Host(address) }
    }
}

/// Submits a copy.
fn copy(stream: Handle, copy: Copy, when: Return) -> Outcome {
    let (handle, machine, source_pageable, destination_pageable, capturing) = {
        let mut state = state();
        let handle = state.stream(stream)?;
        if when == Return::Done {
            state.current()?;
            state.check_capture_allows()?;
        }
        if copy.width == 0 || copy.rows == 0 {
            return Ok(());
        }
        let extent = |pitch| Copy::extent(pitch, copy.width, copy.rows).ok_or(Code::INVALID_VALUE);
        let destination = state.check_place(copy.destination, extent(copy.destination_pitch)?)?;
        let source = state.check_place(copy.source, extent(copy.source_pitch)?)?;
        let capturing = state.streams.get(&handle).is_some_and(|stream| stream.capture.is_some());
        (handle, state.machine(), source, destination, capturing)
    };
    // Pageable memory is read when the call is made: a driver stages it.
    let gathered = if source_pageable && !capturing { Some(copy.gather()?) } else { None };
    // Trouble with memory of the caller is the call's error; only the device's own trouble sticks to the context.
    let host_trouble = Arc::new(Mutex::new(None));
    let trouble = Arc::clone(&host_trouble);
    let work: Work = Arc::new(move || match copy.perform(&machine, gathered.as_deref()) {
        Err(code @ Code::INVALID_VALUE) => {
            *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(code);
            Ok(())
        }
        outcome => outcome,
    });
    let within_device = matches!((copy.destination, copy.source), (Place::Device(_), Place::Device(_)));
    let wait = (when == Return::Done && !within_device) || (destination_pageable && !capturing);
    if wait {
        submit_and_wait(handle, node::COPY, work)?;
    } else {
        submit(handle, node::COPY, work)?;
    }
    let trouble = *host_trouble.lock().unwrap_or_else(PoisonError::into_inner);
    match trouble {
        Some(code) => Err(code),
        None if wait => check_stream(handle),
        None => Ok(()),
    }
}

fn copy_unified(stream: Handle, destination: u64, source: u64, bytes: usize, when: Return) -> Outcome {
    let (destination, source) = {
        let mut state = state();
        state.stream(stream)?;
        (state.unified(destination), state.unified(source))
    };
    copy(stream, Copy::linear(destination, source, bytes), when)
}

fn copy_between(
    stream: Handle,
    destination: (u64, Handle),
    source: (u64, Handle),
    bytes: usize,
    when: Return,
) -> Outcome {
    {
        let state = state();
        state.context(destination.1)?;
        state.context(source.1)?;
    }
    copy(stream, Copy::linear(Place::Device(destination.0), Place::Device(source.0), bytes), when)
}

/// `CUDA_MEMCPY2D`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Rectangle {
    source: Side,
    destination: Side,
    width: usize,
    height: usize,
}

/// One side of a [`Rectangle`].
#[derive(Clone, Copy)]
#[repr(C)]
struct Side {
    x_bytes: usize,
    y: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: u64,
    pitch: usize,
}

impl Side {
    fn place(&self, width: usize, state: &mut State) -> Outcome<(Place, u64)> {
        let place = match self.kind {
            1 => Place::Host(self.host),
            2 => Place::Device(self.device),
            4 => state.unified(self.device),
            _ => return Err(Code::INVALID_VALUE),
        };
        let end = self.x_bytes.checked_add(width).ok_or(Code::INVALID_VALUE)?;
        let pitch = if self.pitch == 0 { end } else { self.pitch };
        let before =
            self.y.checked_mul(pitch).and_then(|rows| rows.checked_add(self.x_bytes)).ok_or(Code::INVALID_VALUE)?;
        if pitch < end { Err(Code::INVALID_VALUE) } else { Ok((place.at(before as u64), pitch as u64)) }
    }
}

fn copy_rectangle(stream: Handle, rectangle: In<Rectangle>, when: Return) -> Outcome {
    let Rectangle { source, destination, width, height } = rectangle.get()?;
    let (source, destination) = {
        let mut state = state();
        state.stream(stream)?;
        (source.place(width, &mut state)?, destination.place(width, &mut state)?)
    };
    let rows = Copy {
        destination: destination.0,
        destination_pitch: destination.1,
        source: source.0,
        source_pitch: source.1,
        width: width as u64,
        rows: height as u64,
    };
    copy(stream, rows, when)
}

entry_points! {
    fn cuMemcpyHtoD_v2(destination: u64, source: u64, bytes: usize) {
        copy(0, Copy::linear(Place::Device(destination), Place::Host(source), bytes), Return::Done)
    }
    fn cuMemcpyDtoH_v2(destination: u64, source: u64, bytes: usize) {
        copy(0, Copy::linear(Place::Host(destination), Place::Device(source), bytes), Return::Done)
    }
    fn cuMemcpyDtoD_v2(destination: u64, source: u64, bytes: usize) {
        copy(0, Copy::linear(Place::Device(destination), Place::Device(source), bytes), Return::Done)
    }
    fn cuMemcpyHtoDAsync_v2(destination: u64, source: u64, bytes: usize, stream: Handle) {
        copy(stream, Copy::linear(Place::Device(destination), Place::Host(source), bytes), Return::Submitted)
    }
    fn cuMemcpyDtoHAsync_v2(destination: u64, source: u64, bytes: usize, stream: Handle) {
        copy(stream, Copy::linear(Place::Host(destination), Place::Device(source), bytes), Return::Submitted)
    }
    fn cuMemcpyDtoDAsync_v2(destination: u64, source: u64, bytes: usize, stream: Handle) {
        copy(stream, Copy::linear(Place::Device(destination), Place::Device(source), bytes), Return::Submitted)
    }
    fn cuMemcpy(destination: u64, source: u64, bytes: usize) {
        copy_unified(0, destination, source, bytes, Return::Done)
    }
    fn cuMemcpyAsync(destination: u64, source: u64, bytes: usize, stream: Handle) {
        copy_unified(stream, destination, source, bytes, Return::Submitted)
    }
    fn cuMemcpyPeer(destination: u64, destination_context: Handle, source: u64, source_context: Handle, bytes: usize) {
        copy_between(0, (destination, destination_context), (source, source_context), bytes, Return::Done)
    }
    fn cuMemcpyPeerAsync(
        destination: u64, destination_context: Handle,
        source: u64, source_context: Handle,
        bytes: usize, stream: Handle,
    ) {
        copy_between(stream, (destination, destination_context), (source, source_context), bytes, Return::Submitted)
    }
    fn cuMemcpy2D_v2(rectangle: In<Rectangle>) {
        copy_rectangle(0, rectangle, Return::Done)
    }
    fn cuMemcpy2DUnaligned_v2(rectangle: In<Rectangle>) {
        copy_rectangle(0, rectangle, Return::Done)
    }
    fn cuMemcpy2DAsync_v2(rectangle: In<Rectangle>, stream: Handle) {
        copy_rectangle(stream, rectangle, Return::Submitted)
    }
}
