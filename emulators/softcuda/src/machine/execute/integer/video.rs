//! Video instructions. Numbers are taken apart into i64, where nothing overflows.

use super::lanes::map3;
use crate::machine::registers::Registers;
use crate::ptx::decode::integer::Integer;
use crate::ptx::decode::integer::video::{Primary, Secondary, Video};

pub(super) fn execute(video: Video, integer: &Integer, registers: &mut Registers, active: u32) {
    map3(integer, registers, active, |a: u32, b: u32, c: u32| one(video, a, b, c));
}

fn one(video: Video, a: u32, b: u32, c: u32) -> u32 {
    let Video { primary, parts, signed: [signed, a_signed, b_signed], saturate, secondary } = video;
    let bits = 32 / parts;
    let part = |word: u32, place: u32, signed: bool| -> i64 {
        let up = u64::from(word) << (64 - bits * (place + 1));
        if signed { up as i64 >> (64 - bits) } else { (up >> (64 - bits)) as i64 }
    };
    let results = (0..parts).map(|place| {
        let (a, b) = (part(a, place, a_signed), part(b, place, b_signed));
        let result = match primary {
            Primary::Add => a + b,
            Primary::Subtract => a - b,
            Primary::AbsoluteDifference => (a - b).abs(),
            Primary::Minimum => a.min(b),
            Primary::Maximum => a.max(b),
            Primary::Average => (a + b + 1) >> 1,
        };
        let range = if signed { (-1 << (bits - 1), (1 << (bits - 1)) - 1) } else { (0, (1_i64 << bits) - 1) };
        if saturate { result.clamp(range.0, range.1) } else { result }
    });
    let third = if signed { i64::from(c as i32) } else { i64::from(c) };
    match secondary {
        Some(Secondary::Add) => results.fold(third, |sum, result| sum + result) as u32,
        Some(Secondary::Minimum) => results.fold(third, i64::min) as u32,
        Some(Secondary::Maximum) => results.fold(third, i64::max) as u32,
        None => {
            let kept = u32::MAX >> (32 - bits);
            results
                .zip(0..)
                .fold(0, |word, (result, place): (i64, u32)| word | (result as u32 & kept) << (bits * place))
        }
    }
}
