//! `atom` and `red`: lane after lane, in ascending order.

use crate::check::scope::MemoryScope;
use crate::count::traffic;
use crate::machine::memory::Refusal;
use crate::machine::memory::Who;
use crate::machine::registers::{LANES, Reg, Width};
use crate::machine::step::{LaneFault, Step, lanes};
use crate::ptx::decode::atomic::{Atomic, Combine};
use crate::ptx::types::{Space, Type};
use crate::report::FaultKind;
use half::{bf16, f16};

/// Executes an atomic for the lanes of `active`.
///
/// # Errors
/// The first lane whose access is refused.
pub fn execute(operation: &Atomic, step: &mut Step, active: u32) -> Result<(), LaneFault> {
    let bytes = operation.ty.bytes();
    step.tally.atomics += u64::from(active.count_ones()) * u64::from(operation.count);
    for (space, members, addresses) in step.by_space(&operation.address, active) {
        let whole = u64::from(bytes * operation.count);
        if let Some(lane) = lanes(members).find(|lane| !addresses[*lane].is_multiple_of(whole)) {
            let refusal = Refusal::new(FaultKind::Misaligned, format!("the address is not a multiple of {whole}"));
            return Err(LaneFault::at(lane, addresses[lane], refusal));
        }
        match space {
            Space::Global => step.tally.global.bytes_atomic += whole * u64::from(members.count_ones()),
            Space::SharedCluster => {
                let (needed, fewest) = traffic::wavefronts(&addresses, members, whole);
                step.tally.shared.wavefronts += needed;
                step.tally.shared.bank_conflicts += needed - fewest;
            }
            _ => {}
        }
        for element in 0..operation.count as usize {
            one_element(operation, element, step, (space, members, &addresses))?;
        }
    }
    Ok(())
}

fn values(step: &Step, reg: Reg) -> [u128; LANES] {
    match reg.width {
        Width::Wide => step.warp.registers.wide(reg),
        _ => step.warp.registers.extended(reg).map(u128::from),
    }
}

fn one_element(
    operation: &Atomic,
    element: usize,
    step: &mut Step,
    (space, members, addresses): (Space, u32, &[u64; LANES]),
) -> Result<(), LaneFault> {
    let bytes = operation.ty.bytes();
    let operands = values(step, operation.operands[element]);
    let swaps = operation.swap.map_or([0; LANES], |reg| values(step, reg));
    let mut old = [0_u128; LANES];
    let scope = operation.scope.unwrap_or(MemoryScope::Device);
    let compare_and_swap = operation.combine == Combine::CompareAndSwap;
    for lane in lanes(members) {
        let address = addresses[lane] + u64::from(bytes) * element as u64;
        let thread = step.thread(lane);
        let published = step.clocks.publish(thread, scope, operation.order.releases());
        let reader = step.clocks.reader(thread, scope);
        // PTX: atom.add.f32 flushes subnormals in global memory, and does not in shared memory.
        let flush = space == Space::Global;
        let mut update = |old: u128| combine(operation, old, operands[lane], swaps[lane], flush);
        let refused = |refusal| LaneFault::at(lane, address, refusal);
        let found = match space {
            Space::Shared | Space::SharedCluster => {
                let (block, offset) = step.shared_place(lane, address)?;
                let shared = &mut step.blocks[block].shared;
                let found = shared.message_at(offset, reader);
                if let Some(message) = published {
                    shared.publish_at(offset, &message);
                }
                let who = Who::weak(thread, step.clocks, step.place);
                let who = Who { scope: Some(scope), compare_and_swap, ..who };
                old[lane] = shared.atomic(&who, offset, bytes, &mut update).map_err(refused)?;
                found
            }
            Space::Global => {
                let memory = &step.launched.memory;
                if let Some(message) = published {
                    memory.publish_at(address, &message);
                }
                let who = Who::weak(thread, step.clocks, step.place);
                let who = Who { scope: Some(scope), compare_and_swap, ..who };
                old[lane] = memory.atomic(&who, address, bytes, &mut update).map_err(refused)?;
                // After the update: what was published before the value that was read is in the table by now.
                memory.message_at(address, reader)
            }
            _ => {
                let message = "atomics reach global and shared memory only";
                return Err(refused(Refusal::new(FaultKind::InvalidOperation, message)));
            }
        };
        // `red` reads nothing that the thread could learn from.
        if operation.destinations.is_some()
            && let Some(found) = found
        {
            step.clocks.read_flag(thread, &found, operation.order.acquires());
        }
    }
    if let Some(destinations) = &operation.destinations {
        let reg = destinations[element];
        match reg.width {
            Width::Wide => step.warp.registers.set_wide(reg, members, &old),
            _ => step.warp.registers.set_extended(reg, members, &old.map(|value| value as u64)),
        }
    }
    Ok(())
}

fn flushed(value: f32, flush: bool) -> f32 {
    if flush && value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

/// The two halves of a packed word, each by itself.
fn packed(old: u128, operand: u128, each: impl Fn(u16, u16) -> u16) -> u128 {
    let half = |shift: u32| u128::from(each((old >> shift) as u16, (operand >> shift) as u16)) << shift;
    half(0) | half(16)
}

/// A sum is rounded to f32 first, which a second rounding to p bits cannot tell from rounding once if 24 >= 2p + 2
/// (Figueroa): f16 has 11, bf16 8.
fn half_arithmetic(combine: Combine, a: u16, b: u16) -> u16 {
    let (a, b) = (f16::from_bits(a), f16::from_bits(b));
    let result = match combine {
        Combine::Add => f16::from_f32(a.to_f32() + b.to_f32()),
        Combine::Min => minimum(a, b, f16::is_nan, |a, b| a.total_cmp(b).is_le()),
        _ => minimum(a, b, f16::is_nan, |a, b| a.total_cmp(b).is_ge()),
    };
    if result.is_nan() { 0x7fff } else { result.to_bits() }
}

fn bfloat_arithmetic(combine: Combine, a: u16, b: u16) -> u16 {
    let (a, b) = (bf16::from_bits(a), bf16::from_bits(b));
    let result = match combine {
        Combine::Add => bf16::from_f32(a.to_f32() + b.to_f32()),
        Combine::Min => minimum(a, b, bf16::is_nan, |a, b| a.total_cmp(b).is_le()),
        _ => minimum(a, b, bf16::is_nan, |a, b| a.total_cmp(b).is_ge()),
    };
    if result.is_nan() { 0x7fff } else { result.to_bits() }
}

/// The preferred of two numbers; a NaN loses against a number.
fn minimum<T: Copy>(a: T, b: T, is_nan: impl Fn(T) -> bool, prefer: impl Fn(&T, &T) -> bool) -> T {
    match (is_nan(a), is_nan(b)) {
        (true, _) => b,
        (_, true) => a,
        _ if prefer(&a, &b) => a,
        _ => b,
    }
}

/// The new value; `None` when the location keeps its own.
fn combine(operation: &Atomic, old: u128, operand: u128, swap: u128, flush: bool) -> Option<u128> {
    let bits = operation.ty.bits();
    let cut = if bits == 128 { u128::MAX } else { (1 << bits) - 1 };
    let signed = |value: u128| (value << (128 - bits)) as i128 >> (128 - bits);
    let new = match operation.combine {
        Combine::And => old & operand,
        Combine::Or => old | operand,
        Combine::Xor => old ^ operand,
        Combine::Exchange => operand,
        Combine::CompareAndSwap => return (old == operand & cut).then_some(swap & cut),
        Combine::Increment if old >= operand => 0,
        Combine::Increment => old + 1,
        Combine::Decrement if old == 0 || old > operand => operand,
        Combine::Decrement => old - 1,
        Combine::Add => match operation.ty {
            Type::F32 => {
                let (a, b) =
                    (flushed(f32::from_bits(old as u32), flush), flushed(f32::from_bits(operand as u32), flush));
                let sum = flushed(a + b, flush);
                u128::from(if sum.is_nan() { 0x7fff_ffff } else { sum.to_bits() })
            }
            Type::F64 => u128::from((f64::from_bits(old as u64) + f64::from_bits(operand as u64)).to_bits()),
            Type::F16 => u128::from(half_arithmetic(Combine::Add, old as u16, operand as u16)),
            Type::Bf16 => u128::from(bfloat_arithmetic(Combine::Add, old as u16, operand as u16)),
            Type::F16x2 => packed(old, operand, |a, b| half_arithmetic(Combine::Add, a, b)),
            Type::Bf16x2 => packed(old, operand, |a, b| bfloat_arithmetic(Combine::Add, a, b)),
            _ => old.wrapping_add(operand),
        },
        Combine::Min | Combine::Max => {
            let min = operation.combine == Combine::Min;
            match operation.ty {
                Type::F16 => u128::from(half_arithmetic(operation.combine, old as u16, operand as u16)),
                Type::Bf16 => u128::from(bfloat_arithmetic(operation.combine, old as u16, operand as u16)),
                Type::F16x2 => packed(old, operand, |a, b| half_arithmetic(operation.combine, a, b)),
                Type::Bf16x2 => packed(old, operand, |a, b| bfloat_arithmetic(operation.combine, a, b)),
                ty if ty.is_signed() && min => signed(old).min(signed(operand)) as u128,
                ty if ty.is_signed() => signed(old).max(signed(operand)) as u128,
                _ if min => old.min(operand),
                _ => old.max(operand),
            }
        }
    };
    Some(new & cut)
}
