//! The linear stage under a rank's rows of a head, on the CPU: its part of each row, what unit gradients are made of, and its share in
//! them.
//!
//! Besides the outputs this takes what the passes over a whole head take (`log_prob.rs`, `unit_gradient.rs`).

use crate::cpu::Cpu;
use crate::cpu::linear::log_prob::Division;
use crate::cpu::linear::log_prob::all_sums;
use crate::cpu::linear::product::Products;
use crate::cpu::linear::tiles::{ELSEWHERE, ScoredRows};
use crate::cpu::linear::unit_gradient::{UnitGradient, rescaled, unit_sums_of_rows};
use crate::cpu::partial_row::{PartialRow, merged};
use crate::cpu::softmax::{PartialSums, Scale};
use crate::cpu::token_log_prob::RowForward;
use crate::element::Element;
use crate::error::Result;
use crate::host::{GatheredRows, Head, Hidden, LinearParts, Targets, UnitSums};
use crate::options::LogitOptions;
use crate::stage::linear::check_inputs;
use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

/// [`Backend::linear_partial_rows`](crate::Backend::linear_partial_rows).
pub(in crate::cpu) fn partial_rows<T: Element, W: Element>(
    cpu: Cpu,
    hidden: Hidden<'_, '_, T>,
    head: &Head<'_, W>,
    targets: Targets<'_>,
    options: &LogitOptions,
    entropy: bool,
    outputs: LinearParts<'_, PartialRow>,
) -> Result<()> {
    let shard = options.shard_of(head.vocab());
    check_inputs(&cpu, &hidden, head, targets, shard.vocab())?;
    let per_row = outputs.check(&cpu, &hidden, head)?;
    let head = &head.without_padding(shard);
    let scale = Scale::new(options);
    let forward = RowForward { instructions: cpu.instructions, scale: &scale, entropy };
    let scored = ScoredRows::new(hidden.states, targets, shard, head.vocab());
    let division = Division::new(head.vocab(), shard.vocab());
    let products = Products::new(cpu.instruction_set(), T::DTYPE, W::DTYPE);
    let slices = match outputs.unit_sums {
        Some(UnitSums { sums, rests }) => {
            let (slices, rests_of_rows, products) =
                unit_sums_of_rows(&forward, products, &scored, head, division, None);
            for (row, (sums, rest)) in
                sums.chunks_exact_mut(head.weight().columns()).zip(rests).enumerate().take(scored.rows.len())
            {
                products.write(row, sums);
                let of_rest = PartialSums { r: rests_of_rows[row].r, sum: rests_of_rows[row].sum, weighted: 0.0 };
                // The target's logit is in one of the slices, and 0 in the others.
                let target = slices.iter().map(|slice| slice[row].part().target).sum();
                *rest = PartialRow::new(of_rest, target);
            }
            slices
        }
        None => all_sums(&forward, products, &scored, head, division),
    };
    outputs.partial_rows.fill(PartialRow::EMPTY);
    for (index, (row, _)) in scored.rows.iter().enumerate() {
        for (part, slice) in outputs.partial_rows[row * per_row..].iter_mut().zip(&slices) {
            *part = slice[index].part();
        }
    }
    Ok(())
}

/// [`Backend::linear_unit_gradients`](crate::Backend::linear_unit_gradients).
pub(in crate::cpu) fn unit_gradients<T: Element, W: Element>(
    cpu: Cpu,
    hidden: Hidden<'_, '_, T>,
    head: &Head<'_, W>,
    targets: Targets<'_>,
    options: &LogitOptions,
    gathered: &GatheredRows<'_, PartialRow>,
    unit_sums: UnitSums<'_, PartialRow>,
) -> Result<()> {
    let shard = options.shard_of(head.vocab());
    check_inputs(&cpu, &hidden, head, targets, shard.vocab())?;
    let per_row = gathered.check(&cpu, &hidden, head, &unit_sums)?;
    let columns = shard.columns(head.vocab());
    let scale = Scale::new(options);
    let rows: Vec<(usize, usize)> = (0..targets.len())
        .filter_map(|row| {
            targets.column(row).map(|target| (row, shard.column_of(target, columns).unwrap_or(ELSEWHERE)))
        })
        .collect();
    let UnitSums { sums, rests } = unit_sums;
    let sums = sums.par_chunks_exact_mut(head.weight().columns());
    sums.zip(rows.par_iter().zip(&*rests)).for_each(|(sums, ((row, target), rest))| {
        let state = gathered.states[*row];
        if state.s.is_nan() {
            return sums.fill(f32::NAN);
        }
        // The other ranks have not the target: all of their columns are others.
        let others = (0..gathered.ranks).filter(|rank| *rank != gathered.rank);
        let parts = |rank: usize| &gathered.partial_rows[(rank * targets.len() + row) * per_row..][..per_row];
        let others = merged(others.flat_map(parts)).0;
        let all = others.merge(rest.sums());
        let has_target = *target != ELSEWHERE;
        let gradient = UnitGradient {
            coefficient: if has_target { all.sum * scale.exact_slope(rest.target) } else { 0.0 },
            to_common: rescaled(rest.r, all.r),
            factor: rescaled(all.r, state.r) / f64::from(state.s),
        };
        gradient.write(sums, has_target.then(|| head.weight().row(*target)));
    });
    Ok(())
}
