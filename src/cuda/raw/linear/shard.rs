//! The linear stage under a rank's rows of a head, over device addresses: its part of each row, what unit gradients are made of, and
//! its share in them. Launches of linear/shard.cu between those of the other files.

use crate::cuda::Cuda;
use crate::cuda::context::CurrentContext;
use crate::cuda::kernels::{KernelId, kernel};
use crate::cuda::linear::workspace::LinearScratch;
use crate::cuda::memory::{Address, address};
use crate::cuda::raw::linear::LinearInputs;
use crate::cuda::raw::linear::fold::Folded;
use crate::cuda::raw::linear::pass::{Pass, RowResults};
use crate::cuda::raw::partial_row::PartialRowsAt;
use crate::cuda::raw::{MatrixAt, index, launch, passed_by_value};
use crate::cuda::tuning;
use crate::error::{Error, Result};
use crate::options::LogitOptions;
use crate::ranks::gather::check_rank;

/// `kernels/linear/shard.cu`: parts before there are any.
#[derive(Clone, Copy)]
#[repr(C)]
struct EmptyParts {
    parts: u64,
    positions: u64,
    count: i64,
    parts_per_row: i64,
}

passed_by_value!(EmptyParts);

/// `kernels/linear/shard.cu`: what unit gradients are made of.
#[derive(Clone, Copy)]
#[repr(C)]
struct KeepUnitSums {
    products: u64,
    unit_sums: u64,
    rests: u64,
    rows: u64,
    states: u64,
    sums: u64,
    targets_of_rows: u64,
    product_stride: i64,
    columns: i32,
    blocks: i32,
    excluded_slope: f32,
    reserved: i32,
}

passed_by_value!(KeepUnitSums);

/// `kernels/linear/shard.cu`: a rank's share in unit gradients.
#[derive(Clone, Copy)]
#[repr(C)]
struct UnitShare {
    unit_sums: u64,
    rests: u64,
    parts: u64,
    weight: u64,
    targets: u64,
    rows: u64,
    states: u64,
    count: i64,
    parts_per_row: i64,
    weight_stride: i64,
    ranks: i32,
    rank: i32,
    columns: i32,
    first_column: i32,
    vocab: i32,
    target_bytes: i32,
}

passed_by_value!(UnitShare);

const FILE: &str = "linear/shard";

const EMPTY_PARTS: KernelId = kernel!(FILE, "linear_empty_parts");

const UNIT_SUMS: KernelId = kernel!(FILE, "linear_unit_sums");

/// By the head's type.
const UNIT_SHARE: [KernelId; 3] = [
    kernel!(FILE, "linear_unit_share_f32"),
    kernel!(FILE, "linear_unit_share_f16"),
    kernel!(FILE, "linear_unit_share_bf16"),
];

/// Where what unit gradients are made of is: both 0 for none.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnitSumsAt {
    /// M·H f32: [`UnitSums::sums`](crate::backend::UnitSums::sums).
    pub sums: Address,
    /// M [`PartialRow`](crate::cuda::PartialRow), aligned to 16 bytes: [`UnitSums::rests`](crate::backend::UnitSums::rests).
    pub rests: Address,
}

/// All ranks' partial rows, and the states that they make.
#[derive(Clone, Copy, Debug)]
pub struct GatheredRowsAt {
    /// `[ranks, N, per_row]`.
    pub partial_rows: PartialRowsAt,
    /// How many ranks there are.
    pub ranks: usize,
    /// Which of them this one is.
    pub rank: usize,
    /// `[N]` [`SoftmaxState`](crate::SoftmaxState).
    pub states: Address,
}

/// Hidden states under a rank's rows of a head to its parts of the rows, and what unit gradients are made of.
///
/// # Errors
/// As [`linear_token_log_probs`](super::log_prob::linear_token_log_probs), but for any shard;
/// [`Error::Length`] for fewer parts than slices, or more than 65535 of a row.
///
/// # Safety
/// As there, with the parts and what unit gradients are made of as outputs.
pub unsafe fn linear_partial_rows(
    cuda: &Cuda,
    inputs: &LinearInputs,
    options: &LogitOptions,
    entropy: bool,
    parts: PartialRowsAt,
    unit_sums: UnitSumsAt,
) -> Result<()> {
    let _current = CurrentContext::enter(cuda.stream.context())?;
    inputs.check()?;
    let inputs = &inputs.without_padding(options);
    let slices = inputs.weight.rows.div_ceil(tuning::SLICE);
    if parts.per_row < slices || parts.per_row > 65_535 {
        return Err(Error::Length { what: "partial rows", given: parts.per_row, expected: slices });
    }
    // SAFETY: the caller's promise.
    cuda.with_linear_scratch(|work| unsafe {
        parts_with_scratch(cuda, work, inputs, options, entropy, parts, unit_sums)
    })
}

/// [`linear_partial_rows`] with scratch memory, of arguments that have been checked.
///
/// # Safety
/// As [`linear_partial_rows`].
unsafe fn parts_with_scratch(
    cuda: &Cuda,
    work: &mut LinearScratch,
    inputs: &LinearInputs,
    options: &LogitOptions,
    entropy: bool,
    parts: PartialRowsAt,
    unit_sums: UnitSumsAt,
) -> Result<()> {
    let keeps = unit_sums.sums != 0;
    let (rows, count, vocab) = (inputs.hidden.rows, inputs.gathered_rows(), inputs.weight.rows);
    let chunk = if keeps { work.chunks.of_rows(count, vocab) } else { work.chunks.of_columns(count, vocab) };
    // Of the rank's columns alone: what the exponentials are relative to.
    let mut results = RowResults::default();
    if keeps {
        results.log_probs = address(&mut work.log_probs, &cuda.stream, rows)?;
        results.states = address(&mut work.states, &cuda.stream, rows)?;
    }
    // SAFETY: the caller's promise.
    let mut pass = unsafe { Pass::begin(cuda, work, inputs, options, RowResults::default(), chunk)? };
    let folded = Folded { results, parts: Some(parts), entropy };
    // SAFETY: the caller's promise.
    unsafe { pass.empty_parts(parts)? };
    for taken in pass.row_chunks() {
        // SAFETY: the caller's promise; where something is kept these are all columns.
        unsafe {
            pass.gather(taken)?;
            for columns in pass.column_chunks() {
                let logits = pass.logits(columns.clone())?;
                pass.fold(&logits, columns.start, folded)?;
                if keeps {
                    let products = pass.products_of_exponentials(&logits, &results)?;
                    pass.unit_sums(&products, &unit_sums, &results)?;
                }
            }
        }
    }
    Ok(())
}

/// What unit gradients are made of to the rank's share in them.
///
/// # Errors
/// As [`linear_partial_rows`] and [`merge_rows`](crate::cuda::raw::merge_rows); [`Error::Parameter`] for a rank that is none.
///
/// # Safety
/// As [`linear_partial_rows`], with the gathered rows as inputs. No hidden state and no bias is read.
pub unsafe fn linear_unit_gradients(
    cuda: &Cuda,
    inputs: &LinearInputs,
    options: &LogitOptions,
    gathered: &GatheredRowsAt,
    unit_sums: UnitSumsAt,
) -> Result<()> {
    let _current = CurrentContext::enter(cuda.stream.context())?;
    inputs.check()?;
    check_rank(gathered.rank, gathered.ranks)?;
    let (Ok(ranks), Ok(rank)) = (i32::try_from(gathered.ranks), i32::try_from(gathered.rank)) else {
        let given = gathered.ranks as f64;
        return Err(Error::Parameter { name: "ranks", given, expected: "1 to 2^31 - 1" });
    };
    // No bias is widened for it.
    let inputs = &LinearInputs { bias: 0, ..inputs.without_padding(options) };
    cuda.with_linear_scratch(|work| {
        let chunk = work.chunks.of_rows(inputs.gathered_rows(), inputs.weight.rows);
        // SAFETY: the caller's promise.
        unsafe {
            let pass = Pass::begin(cuda, work, inputs, options, RowResults::default(), chunk)?;
            pass.unit_share(gathered, (ranks, rank), &unit_sums)
        }
    })
}

impl Pass<'_> {
    /// Parts that count for nothing, of all rows.
    ///
    /// # Safety
    /// As [`Pass::begin`]; there is room for the parts.
    unsafe fn empty_parts(&self, parts: PartialRowsAt) -> Result<()> {
        let count = self.inputs.hidden.rows * parts.per_row;
        if count == 0 {
            return Ok(());
        }
        let arguments = EmptyParts {
            parts: parts.address,
            positions: self.positions,
            count: count as i64,
            parts_per_row: parts.per_row as i64,
        };
        let threads = self.cuda.kernels.kernel(EMPTY_PARTS)?.threads as usize;
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, EMPTY_PARTS, (count.div_ceil(threads) as u32, 1), &arguments) }
    }

    /// Keeps what the unit gradients of the chunk's rows are made of.
    ///
    /// # Safety
    /// After [`Pass::products_of_exponentials`] with these results; there is room for M rows.
    unsafe fn unit_sums(&mut self, products: &MatrixAt, unit_sums: &UnitSumsAt, results: &RowResults) -> Result<()> {
        let blocks = self.vocab().div_ceil(tuning::LINEAR_BLOCK_COLUMNS);
        let (first, columns) = (self.taken.start, products.columns);
        let stream = &self.cuda.stream;
        let arguments = KeepUnitSums {
            products: products.address,
            unit_sums: unit_sums.sums + (4 * first * columns) as Address,
            rests: unit_sums.rests + (16 * first) as Address,
            rows: self.row_list(),
            states: results.states,
            sums: address(&mut self.work.exponential_sums, stream, self.taken.len() * blocks)?,
            targets_of_rows: address(&mut self.work.targets_of_rows, stream, 2 * self.taken.len())?,
            product_stride: products.row_stride as i64,
            columns: columns as i32,
            blocks: blocks as i32,
            excluded_slope: if self.options.softcap() == 0.0 { 1.0 } else { 0.0 },
            reserved: 0,
        };
        // SAFETY: the caller's promise; rows that fill a chunk up are left out.
        unsafe { launch(self.cuda, UNIT_SUMS, (self.taken_rows() as u32, 1), &arguments) }
    }

    /// # Safety
    /// As [`linear_unit_gradients`].
    unsafe fn unit_share(
        &self,
        gathered: &GatheredRowsAt,
        (ranks, rank): (i32, i32),
        unit_sums: &UnitSumsAt,
    ) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let (targets, target_bytes) = self.inputs.targets.parts();
        let weight = self.inputs.weight;
        let arguments = UnitShare {
            unit_sums: unit_sums.sums,
            rests: unit_sums.rests,
            parts: gathered.partial_rows.address,
            weight: weight.address,
            targets,
            rows: self.rows,
            states: gathered.states,
            count: self.inputs.hidden.rows as i64,
            parts_per_row: gathered.partial_rows.per_row as i64,
            weight_stride: weight.row_stride as i64,
            ranks,
            rank,
            columns: weight.columns as i32,
            first_column: self.shard.start() as i32,
            vocab: self.vocab() as i32,
            target_bytes,
        };
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, UNIT_SHARE[index(weight.dtype)], (self.count as u32, 1), &arguments) }
    }
}
