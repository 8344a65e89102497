//! Moves, selections, and the logic of predicates.

mod compare;

use super::integer::lanes::Lane;
use crate::machine::registers::{LANES, Reg, Registers, Width};
use crate::ptx::decode::select::{Connective, Select, Truth};

/// Executes for the lanes of `active`.
pub fn execute(operation: &Select, registers: &mut Registers, active: u32) {
    match *operation {
        Select::Move { destination, source } => move_register(destination, source, registers, active),
        Select::Truncate { destination, source, bits } => {
            let kept = registers.extended(source).map(|value| value & ((1 << bits) - 1));
            registers.set_extended(destination, active, &kept);
        }
        Select::Pack { destination, elements, count, bits } => {
            pack(destination, &elements[..count as usize], bits, registers, active);
        }
        Select::Unpack { elements, source, bits } => unpack(&elements, source, bits, registers, active),
        Select::MovePredicate { destination, source, negated } => {
            let bits = truth(source, registers);
            registers.set_predicate(destination, active, if negated { !bits } else { bits });
        }
        Select::WordToPredicate { destination, source } => {
            let word = registers.extended(source);
            let bits = (0..LANES).fold(0, |bits, lane| bits | u32::from(word[lane] != 0) << lane);
            registers.set_predicate(destination, active, bits);
        }
        Select::Logic { connective, destination, sources } => {
            let [first, second] = sources.map(|source| truth(source, registers));
            registers.set_predicate(destination, active, connect(connective, first, second));
        }
        Select::Compare(ref compare) => compare::execute(compare, registers, active),
        Select::Choose { destination, sources, truth: condition } => {
            let first = truth(condition, registers);
            choose(destination, sources, first, registers, active);
        }
        Select::ChooseBySign { destination, sources, selector, float } => {
            let selector = registers.word(selector);
            let first = match float {
                None => lanes_where(&selector, |value| value as i32 >= 0),
                // A subnormal number flushed to zero is zero or more whatever its sign; NaN is not.
                Some(flush) => {
                    lanes_where(&selector, |value| f32::from_bits(value) >= 0.0 || flush && value & 0x7f80_0000 == 0)
                }
            };
            choose(destination, sources, first, registers, active);
        }
    }
}

/// One bit for each lane whose word has the property.
#[inline(always)]
fn lanes_where(words: &[u32; LANES], property: impl Fn(u32) -> bool) -> u32 {
    let mut bits = 0;
    for lane in 0..LANES {
        bits |= u32::from(property(words[lane])) << lane;
    }
    bits
}

/// One bit per lane.
fn truth(truth: Truth, registers: &Registers) -> u32 {
    match truth {
        Truth::Constant(value) => 0u32.wrapping_sub(u32::from(value)),
        Truth::Register(condition) => {
            let bits = registers.predicate(condition.predicate);
            if condition.negated { !bits } else { bits }
        }
    }
}

fn connect(connective: Connective, first: u32, second: u32) -> u32 {
    match connective {
        Connective::And => first & second,
        Connective::Or => first | second,
        Connective::Xor => first ^ second,
    }
}

fn move_register(destination: Reg, source: Reg, registers: &mut Registers, active: u32) {
    match destination.width {
        Width::Word => registers.set_word(destination, active, &registers.word(source)),
        Width::Long => registers.set_long(destination, active, &registers.long(source)),
        Width::Wide => registers.set_wide(destination, active, &registers.wide(source)),
    }
}

/// The first source in the lanes of `first`, the second in the others.
fn choose(destination: Reg, sources: [Reg; 2], first: u32, registers: &mut Registers, active: u32) {
    match destination.width {
        Width::Word => choose_lanes::<u32>(destination, sources, first, registers, active),
        Width::Long => choose_lanes::<u64>(destination, sources, first, registers, active),
        // No type of `selp` and `slct` is this wide.
        Width::Wide => {}
    }
}

#[inline(never)]
fn choose_lanes<T: Lane>(destination: Reg, sources: [Reg; 2], first: u32, registers: &mut Registers, active: u32) {
    let [a, b] = sources.map(|source| T::read(registers, source));
    let mut result = [T::default(); LANES];
    for lane in 0..LANES {
        result[lane] = if first >> lane & 1 == 1 { a[lane] } else { b[lane] };
    }
    T::write(registers, destination, active, &result);
}

fn pack(destination: Reg, elements: &[Reg], bits: u32, registers: &mut Registers, active: u32) {
    if destination.width == Width::Wide {
        let mut result = [0u128; LANES];
        for (place, element) in elements.iter().enumerate() {
            let values = registers.extended(*element);
            for lane in 0..LANES {
                result[lane] |= u128::from(values[lane]) << (bits * place as u32);
            }
        }
        return registers.set_wide(destination, active, &result);
    }
    let mut result = [0u64; LANES];
    for (place, element) in elements.iter().enumerate() {
        let values = registers.word(*element);
        for lane in 0..LANES {
            result[lane] |= u64::from(values[lane]) << (bits * place as u32);
        }
    }
    registers.set_extended(destination, active, &result);
}

fn unpack(elements: &[Option<Reg>; 4], source: Reg, bits: u32, registers: &mut Registers, active: u32) {
    // The halves of 64 bits: of a narrower register the second is zero, and no element lies there.
    let halves: [[u64; LANES]; 2] = match source.width {
        Width::Wide => {
            let wide = registers.wide(source);
            [wide.map(|value| value as u64), wide.map(|value| (value >> 64) as u64)]
        }
        _ => [registers.extended(source), [0; LANES]],
    };
    for (place, element) in elements.iter().enumerate() {
        let Some(element) = *element else { continue };
        let first = bits * place as u32;
        let mut values = halves[first as usize / 64 % 2];
        for value in &mut values {
            *value = *value >> (first % 64) & (u64::MAX >> (64 - bits));
        }
        registers.set_extended(element, active, &values);
    }
}
