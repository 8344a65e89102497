//! `set` and `setp`.

use super::{connect, truth};
use crate::machine::execute::integer::lanes::{Lane, by_number};
use crate::machine::registers::{LANES, Reg, Registers};
use crate::ptx::decode::select::{Compare, Comparison, Format, Outcome};

pub(super) fn execute(compare: &Compare, registers: &mut Registers, active: u32) {
    let [low, high] = outcomes(compare, registers);
    let combine = |found: u32| match compare.combined {
        None => found,
        Some((connective, other)) => connect(connective, found, truth(other, registers)),
    };
    let packed = compare.format.is_packed();
    let first = combine(low);
    match compare.outcome {
        Outcome::Predicates(destination, None) => registers.set_predicate(destination, active, first),
        Outcome::Predicates(destination, Some(other)) => {
            let second = combine(if packed { high } else { !low });
            registers.set_predicate(destination, active, first);
            registers.set_predicate(other, active, second);
        }
        Outcome::Word(destination, when_true) => {
            // For one number both halves of the word follow it.
            let second = if packed { combine(high) } else { first };
            let (lower, upper) = (when_true & 0xffff, when_true & 0xffff_0000);
            let mut result = [0; LANES];
            for lane in 0..LANES {
                let halves = [(first, lower), (second, upper)];
                result[lane] =
                    halves.iter().fold(0, |word, (bits, half)| word | (half & 0u32.wrapping_sub(bits >> lane & 1)));
            }
            registers.set_word(destination, active, &result);
        }
    }
}

/// One bit per lane where the comparison holds: of the numbers, or of those in the low and in the high halves.
fn outcomes(compare: &Compare, registers: &Registers) -> [u32; 2] {
    let Compare { comparison, format, sources, .. } = *compare;
    let same = |bits: u32| [bits, bits];
    match format {
        Format::Integer(number) => same(by_number!(number, T, Wide => integers::<T>(comparison, sources, registers))),
        Format::F32 { flush } => {
            let number = |bits: u32| {
                // Subnormal: nothing but the sign is kept.
                let zero = flush && bits & 0x7f80_0000 == 0;
                f32::from_bits(if zero { bits & 0x8000_0000 } else { bits })
            };
            same(singles(comparison, sources, registers, number))
        }
        Format::F64 => {
            let [a, b] = sources.map(|source| registers.long(source).map(f64::from_bits));
            same(floats(comparison, &a, &b))
        }
        Format::F16 { flush } => same(singles(comparison, sources, registers, |bits| order_f16(bits, flush))),
        Format::Bf16 => same(singles(comparison, sources, registers, |bits| f32::from_bits(bits << 16))),
        Format::F16x2 { flush } => [
            singles(comparison, sources, registers, |bits| order_f16(bits & 0xffff, flush)),
            singles(comparison, sources, registers, |bits| order_f16(bits >> 16, flush)),
        ],
        Format::Bf16x2 => [
            singles(comparison, sources, registers, |bits| f32::from_bits(bits << 16)),
            singles(comparison, sources, registers, |bits| f32::from_bits(bits & 0xffff_0000)),
        ],
    }
}

/// An f32 that compares as the f16 with these bits does: its magnitude's bits as a number, for those are in order.
fn order_f16(bits: u32, flush: bool) -> f32 {
    let magnitude = bits & 0x7fff;
    let number = if flush && magnitude < 0x0400 { 0.0 } else { magnitude as f32 };
    let number = if bits & 0x8000 == 0 { number } else { -number };
    if magnitude > 0x7c00 { f32::NAN } else { number }
}

/// One bit per lane where the relation holds.
#[inline(never)]
fn relate<T: Copy>(a: &[T; LANES], b: &[T; LANES], relation: impl Fn(T, T) -> bool) -> u32 {
    let mut bits = 0;
    for lane in 0..LANES {
        bits |= u32::from(relation(a[lane], b[lane])) << lane;
    }
    bits
}

fn integers<T: Lane + Ord>(comparison: Comparison, sources: [Reg; 2], registers: &Registers) -> u32 {
    let [a, b] = sources.map(|source| T::read(registers, source));
    match comparison {
        Comparison::Equal => relate(&a, &b, |a, b| a == b),
        Comparison::NotEqual => relate(&a, &b, |a, b| a != b),
        Comparison::Less => relate(&a, &b, |a, b| a < b),
        Comparison::LessEqual => relate(&a, &b, |a, b| a <= b),
        Comparison::Greater => relate(&a, &b, |a, b| a > b),
        Comparison::GreaterEqual => relate(&a, &b, |a, b| a >= b),
        // Those with NaN are refused when decoded.
        _ => 0,
    }
}

fn singles(comparison: Comparison, sources: [Reg; 2], registers: &Registers, number: impl Fn(u32) -> f32) -> u32 {
    let mut numbers = [[0.0; LANES]; 2];
    for (row, source) in numbers.iter_mut().zip(sources) {
        let words = registers.word(source);
        for lane in 0..LANES {
            row[lane] = number(words[lane]);
        }
    }
    floats(comparison, &numbers[0], &numbers[1])
}

fn floats<T: Copy + PartialOrd>(comparison: Comparison, a: &[T; LANES], b: &[T; LANES]) -> u32 {
    // Nothing but NaN is not equal to itself.
    let nan = || relate(a, b, |a, b| is_nan(&a) || is_nan(&b));
    match comparison {
        Comparison::Equal => relate(a, b, |a, b| a == b),
        Comparison::NotEqual => relate(a, b, |a, b| a != b) & !nan(),
        Comparison::Less => relate(a, b, |a, b| a < b),
        Comparison::LessEqual => relate(a, b, |a, b| a <= b),
        Comparison::Greater => relate(a, b, |a, b| a > b),
        Comparison::GreaterEqual => relate(a, b, |a, b| a >= b),
        Comparison::EqualOrNan => relate(a, b, |a, b| a == b) | nan(),
        Comparison::NotEqualOrNan => relate(a, b, |a, b| a != b),
        Comparison::LessOrNan => relate(a, b, |a, b| a < b) | nan(),
        Comparison::LessEqualOrNan => relate(a, b, |a, b| a <= b) | nan(),
        Comparison::GreaterOrNan => relate(a, b, |a, b| a > b) | nan(),
        Comparison::GreaterEqualOrNan => relate(a, b, |a, b| a >= b) | nan(),
        Comparison::Numbers => !nan(),
        Comparison::Nan => nan(),
    }
}

#[allow(clippy::eq_op, reason = "that is what NaN is")]
fn is_nan<T: PartialOrd>(value: &T) -> bool {
    value != value
}
