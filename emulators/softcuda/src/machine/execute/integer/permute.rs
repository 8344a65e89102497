//! `prmt` and `lop3`: bytes and bits by a table.

use super::lanes::map3;
use crate::machine::registers::Registers;
use crate::ptx::decode::integer::{Integer, NonZero, Permute};

pub(super) fn execute(permute: Permute, integer: &Integer, registers: &mut Registers, active: u32) {
    match permute {
        Permute::Selectors => map3(integer, registers, active, |a: u32, b: u32, c: u32| pick(a, b, c)),
        Permute::Lists(lists) => {
            map3(integer, registers, active, |a: u32, b: u32, c: u32| pick(a, b, u32::from(lists[c as usize & 3])));
        }
    }
}

/// One byte of `b:a` for each selector of four bits.
fn pick(a: u32, b: u32, selectors: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let mut result = 0;
    for place in 0..4 {
        let selector = selectors >> (4 * place);
        let byte = (bytes >> (8 * (selector & 7))) as u8;
        let byte = if selector & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 };
        result |= u32::from(byte) << (8 * place);
    }
    result
}

pub(super) fn lookup(table: u8, non_zero: Option<NonZero>, integer: &Integer, registers: &mut Registers, active: u32) {
    // Entry `i` of the table in all bits of a word.
    let entries: [u32; 8] = std::array::from_fn(|entry| 0u32.wrapping_sub(u32::from(table >> entry & 1)));
    let choose = |bits: u32, ones: u32, zeros: u32| zeros ^ bits & (ones ^ zeros);
    let value = move |a: u32, b: u32, c: u32| {
        let by_c = |entry: usize| choose(c, entries[entry + 1], entries[entry]);
        choose(a, choose(b, by_c(6), by_c(4)), choose(b, by_c(2), by_c(0)))
    };
    let Some(NonZero { predicate, and, condition }) = non_zero else {
        return map3(integer, registers, active, value);
    };
    // From the sources, since the destination may be one of them.
    let [a, b, c] = [0, 1, 2].map(|place| registers.word(integer.sources[place]));
    let found = (0..a.len()).fold(0, |bits, lane| bits | u32::from(value(a[lane], b[lane], c[lane]) != 0) << lane);
    let other = registers.predicate(condition.predicate) ^ if condition.negated { u32::MAX } else { 0 };
    map3(integer, registers, active, value);
    registers.set_predicate(predicate, active, if and { found & other } else { found | other });
}
