//! Launches for what ranks exchange of their sequences.

use crate::cuda::Cuda;
use crate::cuda::kernels::{KernelId, kernel};
use crate::cuda::raw::{launch, passed_by_value};
use crate::error::{Error, Result};

/// `kernels/sequence_parts.cu`, all kernels but `add_ranks`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct SequenceParts {
    pub(crate) parts: u64,
    pub(crate) log_ratios: u64,
    pub(crate) log_prob_sums: u64,
    pub(crate) entropy_sums: u64,
    pub(crate) scored_rows: u64,
    pub(crate) rewards: u64,
    pub(crate) proposal_offsets: u64,
    pub(crate) references: u64,
    pub(crate) status: u64,
    pub(crate) count: i64,
    pub(crate) sequences: i64,
    pub(crate) first: i64,
    pub(crate) ranks: i32,
    pub(crate) reward_bytes: i32,
    pub(crate) mean: i32,
    pub(crate) reserved: i32,
}

/// `kernels/sequence_parts.cu`, `add_ranks`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct AddRanks {
    pub(crate) numbers: u64,
    pub(crate) sums: u64,
    pub(crate) count: i64,
    pub(crate) ranks: i32,
    pub(crate) reserved: i32,
}

passed_by_value!(SequenceParts, AddRanks);

pub(in crate::cuda) const WRITE: KernelId = kernel!("sequence_parts", "write_sequence_parts");
pub(in crate::cuda) const COUNT: KernelId = kernel!("sequence_parts", "write_count_part");
pub(in crate::cuda) const ADD: KernelId = kernel!("sequence_parts", "add_sequences");
pub(in crate::cuda) const PLACE: KernelId = kernel!("sequence_parts", "place_sequences");
const ADD_RANKS: KernelId = kernel!("sequence_parts", "add_ranks");

/// Threads of a block of these.
const THREADS: usize = 256;

/// Launches one of [`WRITE`], [`COUNT`], [`ADD`] and [`PLACE`] with so many threads.
///
/// # Safety
/// The addresses are what the kernel takes them for, and as long as it says.
pub(in crate::cuda) unsafe fn sequence_parts(
    cuda: &Cuda,
    kernel: KernelId,
    threads: usize,
    mut arguments: SequenceParts,
) -> Result<()> {
    if threads == 0 {
        return Ok(());
    }
    arguments.status = cuda.status.address(&cuda.stream)?;
    // SAFETY: the caller's promise.
    unsafe { launch(cuda, kernel, (blocks(threads)?, 1), &arguments) }
}

/// Adds up numbers of ranks.
///
/// # Safety
/// As [`sequence_parts`].
pub(in crate::cuda) unsafe fn add_ranks(cuda: &Cuda, arguments: &AddRanks) -> Result<()> {
    if arguments.count == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe { launch(cuda, ADD_RANKS, (blocks(arguments.count as usize)?, 1), arguments) }
}

fn blocks(threads: usize) -> Result<u32> {
    let blocks = threads.div_ceil(THREADS);
    match i32::try_from(blocks) {
        Ok(blocks) => Ok(blocks as u32),
        Err(_) => Err(Error::Memory { elements: threads }),
    }
}
