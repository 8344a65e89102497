//! Memory: the device's as the host sees it (`global`) and as a launch does (`launch`), a block's (`shared`), and how
//! an access can go wrong.

mod allocation;
mod bits;
pub mod global;
pub mod launch;
mod mapping;
pub mod shared;

use crate::check::clock::TeamClocks;
use crate::check::scope::MemoryScope;
use crate::report::FaultKind;

/// Why an access was refused, in the terms of a fault report; the caller adds who and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which check.
    pub kind: FaultKind,
    /// What happened, in words.
    pub message: String,
    /// The earlier access of a race, without its source text.
    pub other: Option<Box<Earlier>>,
}

/// The earlier access of a race.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// Whether it wrote.
    pub wrote: bool,
    /// Linear index of its block in the grid.
    pub block: u32,
    /// Linear index of its thread in the block (the first, of several).
    pub thread: u32,
    /// The index of its instruction among those of the program.
    pub instruction: u32,
    /// One of the two is a plain read, the other a write by compare-and-swap.
    pub is_plain_read_of_swapped: bool,
}

impl Refusal {
    /// A refusal that is not a race.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), other: None }
    }

    /// A race on a byte. `wrote`: whether the later access writes; `unchanged`: whether it writes what is there already.
    #[cold]
    fn race(byte: &str, wrote: bool, unchanged: bool, earlier: Earlier) -> Self {
        let verb = |wrote| if wrote { "written" } else { "read" };
        let mut message = format!(
            "{byte} is {} here and {} by thread {} of block {} (linear indices); nothing orders the two",
            verb(wrote),
            verb(earlier.wrote),
            earlier.thread,
            earlier.block
        );
        if wrote && earlier.wrote && unchanged {
            message.push_str("; both store the same bytes there: `Checks::equal_stores` can be switched off");
        }
        if earlier.is_plain_read_of_swapped {
            message.push_str(
                "; it is a plain read of what a compare-and-swap writes: `Checks::compare_and_swap_reads` can be switched off",
            );
        }
        Self { kind: FaultKind::Race, message, other: Some(Box::new(earlier)) }
    }

    #[cold]
    fn misaligned(what: &str, at: u64, width: usize) -> Self {
        Self::new(FaultKind::Misaligned, format!("{what} {at:#x} is not a multiple of the access's {width} bytes"))
    }
}

/// The largest atomic access in bytes.
const WIDEST_ATOMIC: usize = 16;

fn check_atomic_width(bytes: u32) -> Result<(), Refusal> {
    if bytes.is_power_of_two() && bytes as usize <= WIDEST_ATOMIC {
        return Ok(());
    }
    Err(Refusal::new(FaultKind::InvalidOperation, format!("no atomic operation has {bytes} bytes")))
}

/// One lane that accesses memory.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Its index in the team (see [`TeamClocks`]).
    pub thread: usize,
    /// The team's clocks.
    pub clocks: &'a TeamClocks,
    /// The index of the instruction among those of the program; below 2^27.
    pub instruction: u32,
    /// The scope of a volatile, relaxed, acquire or release access: strong ones do not race with each other if their
    /// scopes hold each other's thread. `None`: a weak access; an atomic then has the scope of the device.
    pub scope: Option<MemoryScope>,
    /// `ld.global.nc`.
    pub read_only: bool,
    /// `atom.cas`.
    pub compare_and_swap: bool,
    /// A load that takes bytes that nobody wrote as they are: what becomes of them is followed in the registers.
    pub takes_undefined: bool,
}

impl<'a> Who<'a> {
    /// A lane with an ordinary access.
    pub fn weak(thread: usize, clocks: &'a TeamClocks, instruction: u32) -> Self {
        Self {
            thread,
            clocks,
            instruction,
            scope: None,
            read_only: false,
            compare_and_swap: false,
            takes_undefined: false,
        }
    }
}
