//! Functions of the system, which PTX declares and calls but does not define: `vprintf`, `malloc`, `free`,
//! `__assertfail`.

use super::memory::{Refusal, Who};
use super::print::{self, Source};
use super::step::{LaneFault, Step, lanes};
use super::window;
use crate::ptx::decode::code::CallSite;
use crate::ptx::types::Space;
use crate::report::FaultKind;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// A function of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// A failed `assert`.
    AssertFail,
    /// `printf` with its arguments in a buffer.
    Print,
    /// `malloc`.
    Allocate,
    /// `free`.
    Free,
}

/// Name, meaning, bytes of each parameter and of each result.
type Row = (&'static str, System, &'static [u64], &'static [u64]);

const FUNCTIONS: &[Row] = &[
    ("__assertfail", System::AssertFail, &[8, 8, 4, 8, 8], &[]),
    ("vprintf", System::Print, &[8, 8], &[4]),
    ("malloc", System::Allocate, &[8], &[8]),
    ("free", System::Free, &[8], &[]),
];

impl System {
    /// The function of this name, if its parameters and results have these sizes in bytes.
    pub fn named(name: &str, parameters: &[(u64, u64)], results: &[(u64, u64)]) -> Option<Self> {
        let same = |declared: &[(u64, u64)], own: &[u64]| declared.iter().map(|place| place.1).eq(own.iter().copied());
        FUNCTIONS.iter().find(|row| row.0 == name && same(parameters, row.2) && same(results, row.3)).map(|row| row.1)
    }
}

/// The most bytes that a launch prints; the rest is dropped, and the text says so.
const MOST_PRINTED: usize = 64 << 20;

/// What the blocks of a launch have printed.
#[derive(Default)]
pub struct Printed(Mutex<Texts>);

/// Texts with the linear indices of the blocks that printed them.
#[derive(Default)]
struct Texts {
    texts: Vec<(u32, Vec<u8>)>,
    /// Bytes printed, with those that were dropped.
    bytes: usize,
}

impl Printed {
    fn add(&self, block: u32, text: Vec<u8>) {
        let mut printed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        printed.bytes += text.len();
        if printed.bytes <= MOST_PRINTED {
            printed.texts.push((block, text));
        }
    }

    /// All of it: block after block, each in the order in which its threads printed, whatever host thread ran it.
    pub fn finish(self) -> String {
        let Texts { mut texts, bytes } = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        texts.sort_by_key(|text| text.0);
        let all: Vec<u8> = texts.into_iter().flat_map(|text| text.1).collect();
        let mut all = String::from_utf8_lossy(&all).into_owned();
        if bytes > MOST_PRINTED {
            all.push_str("\nsoftcuda: this launch printed more, which is dropped\n");
        }
        all
    }
}

/// The heap of a program's `malloc`. Its blocks outlive the launch.
#[derive(Debug)]
pub struct Heap {
    base: u64,
    state: Mutex<HeapState>,
}

#[derive(Debug, Default)]
struct HeapState {
    /// Bytes given out so far. What is freed is not given out again in this program: the next owner's accesses would
    /// look like races with those of the one before.
    used: u64,
    /// First addresses of the blocks that are not freed.
    blocks: HashSet<u64>,
}

impl Heap {
    /// Address space of a heap. Host memory is used only as it is written.
    pub const BYTES: u64 = 1 << 30;

    /// A heap over [`Heap::BYTES`] bytes of device memory from `base` on.
    pub fn new(base: u64) -> Self {
        Self { base, state: Mutex::default() }
    }

    /// Its first address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// A block; 0 when there is no room.
    fn allocate(&self, bytes: u64) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(size) = bytes.max(1).checked_next_multiple_of(16) else { return 0 };
        if size > Self::BYTES - state.used {
            return 0;
        }
        let address = self.base + state.used;
        state.used += size;
        state.blocks.insert(address);
        address
    }

    /// Frees a block; whether there was one.
    fn free(&self, address: u64) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).blocks.remove(&address)
    }
}

/// The longest text that is read.
const LONGEST_TEXT: usize = 1 << 20;

/// One lane that calls.
struct Caller<'s, 'a, 'b> {
    step: &'s mut Step<'a, 'b>,
    lane: usize,
    /// The buffer of `printf`'s arguments.
    buffer: u64,
}

impl Caller<'_, '_, '_> {
    /// Reads bytes at a generic address, checked as a load.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), LaneFault> {
        let lane = self.lane;
        let fault = |refusal| LaneFault::at(lane, address, refusal);
        let (space, within) = window::resolve(address);
        match space {
            Space::Local => self.step.warp.local.load(lane, within, bytes, true).map_err(|_| {
                let message = "the arguments of printf were not written, or lie outside of local memory";
                fault(Refusal::new(FaultKind::Uninitialized, message))
            }),
            Space::Global => {
                let thread = self.step.thread(lane);
                let (clocks, instruction) = (&mut *self.step.clocks, self.step.place);
                let who = Who {
                    thread,
                    clocks,
                    instruction,
                    scope: None,
                    read_only: false,
                    compare_and_swap: false,
                    takes_undefined: false,
                };
                self.step.launched.memory.load_bulk(&who, address, bytes).map_err(fault)
            }
            Space::SharedCluster => {
                let (block, offset) = self.step.shared_place(lane, within)?;
                let thread = self.step.thread(lane);
                let (clocks, instruction) = (&mut *self.step.clocks, self.step.place);
                let who = Who {
                    thread,
                    clocks,
                    instruction,
                    scope: None,
                    read_only: false,
                    compare_and_swap: false,
                    takes_undefined: false,
                };
                self.step.blocks[block].shared.load_bulk(&who, offset, bytes).map_err(fault)
            }
            _ => Err(fault(Refusal::new(FaultKind::OutOfBounds, "printf cannot read from there"))),
        }
    }
}

impl Source for Caller<'_, '_, '_> {
    type Refusal = LaneFault;

    fn argument(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), LaneFault> {
        if self.buffer == 0 {
            let message = "printf has no arguments for its format";
            return Err(LaneFault::new(self.lane, FaultKind::InvalidOperation, message));
        }
        self.read(self.buffer + offset, bytes)
    }

    fn text(&mut self, address: u64) -> Result<Vec<u8>, LaneFault> {
        let mut text = Vec::new();
        loop {
            let mut byte = [0];
            self.read(address + text.len() as u64, &mut byte)?;
            if byte[0] == 0 || text.len() == LONGEST_TEXT {
                return Ok(text);
            }
            text.push(byte[0]);
        }
    }
}

/// Executes a call for the lanes of `active`, one after the other.
///
/// # Errors
/// A failed assertion, an argument that cannot be read, a `free` of what `malloc` did not give.
pub fn call(system: System, site: &CallSite, step: &mut Step, active: u32) -> Result<(), LaneFault> {
    let frame = step.local_frame;
    for lane in lanes(active) {
        let mut arguments = [0_u64; 2];
        for (argument, (offset, bytes)) in arguments.iter_mut().zip(&site.arguments) {
            let mut word = [0; 8];
            let place = &mut word[..(*bytes).min(8) as usize];
            step.warp.local.load(lane, frame + offset, place, true).map_err(|_| {
                LaneFault::new(lane, FaultKind::Uninitialized, "an argument of the call was not written")
            })?;
            *argument = u64::from_le_bytes(word);
        }
        let result = match system {
            System::AssertFail => return Err(LaneFault::new(lane, FaultKind::Trap, "an assertion failed")),
            System::Print => print(step, lane, arguments)?,
            System::Allocate => step.launched.program.heap.as_ref().map_or(0, |heap| heap.allocate(arguments[0])),
            System::Free => {
                let known = step.launched.program.heap.as_ref().is_some_and(|heap| heap.free(arguments[0]));
                if !known && arguments[0] != 0 {
                    let refusal = Refusal::new(FaultKind::InvalidOperation, "free of what malloc did not give");
                    return Err(LaneFault::at(lane, arguments[0], refusal));
                }
                0
            }
        };
        if let Some((offset, bytes)) = site.results.first() {
            let stored = step.warp.local.store(lane, frame + offset, &result.to_le_bytes()[..(*bytes).min(8) as usize]);
            stored
                .map_err(|_| LaneFault::new(lane, FaultKind::OutOfBounds, "a result lies outside of local memory"))?;
        }
    }
    Ok(())
}

/// `vprintf(format, arguments)`.
fn print(step: &mut Step, lane: usize, [format, buffer]: [u64; 2]) -> Result<u64, LaneFault> {
    if format == 0 {
        return Ok(u64::from(-1_i32 as u32));
    }
    let mut caller = Caller { step, lane, buffer };
    let format = caller.text(format)?;
    let (text, taken) = print::format(&format, &mut caller)?;
    let block = step.blocks[step.warp.block].linear;
    step.launched.printed.add(block, text);
    Ok(taken as u64)
}
