//! `dp4a` and `dp2a`: scalar products of the small integers in a word.

use super::lanes::map3;
use crate::machine::registers::Registers;
use crate::ptx::decode::integer::{Dot, Integer};

pub(super) fn execute(dot: Dot, integer: &Integer, registers: &mut Registers, active: u32) {
    let Dot { first_byte, a_signed, b_signed } = dot;
    match first_byte {
        None => map3(integer, registers, active, |a: u32, b: u32, c: u32| {
            (0..4).fold(c, |sum, place| {
                sum.wrapping_add(byte(a, place, a_signed).wrapping_mul(byte(b, place, b_signed)) as u32)
            })
        }),
        Some(first) => map3(integer, registers, active, |a: u32, b: u32, c: u32| {
            (0..2).fold(c, |sum, place| {
                let half = a >> (16 * place);
                let half = if a_signed { i32::from(half as i16) } else { i32::from(half as u16) };
                sum.wrapping_add(half.wrapping_mul(byte(b, u32::from(first) + place, b_signed)) as u32)
            })
        }),
    }
}

fn byte(word: u32, place: u32, signed: bool) -> i32 {
    let byte = word >> (8 * place);
    if signed { i32::from(byte as i8) } else { i32::from(byte as u8) }
}
