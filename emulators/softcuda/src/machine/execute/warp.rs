//! Shuffles, votes, matches and reductions among lanes that have met.

use crate::machine::registers::{LANES, Registers, Width};
use crate::ptx::decode::scope::Condition;
use crate::ptx::decode::warp::{Reduction, ShuffleMode, VoteMode, Warp};
use crate::ptx::types::Type;

fn truth(registers: &Registers, condition: Condition) -> u32 {
    let bits = registers.predicate(condition.predicate);
    if condition.negated { !bits } else { bits }
}

/// Executes for the lanes of `members`, which are all there and all active. Lanes outside of it that a shuffle reads
/// are `outside` its mask: the first lane that reads one is returned, as its value would be undefined.
pub fn execute(operation: &Warp, registers: &mut Registers, members: u32) -> Option<usize> {
    match operation {
        Warp::Shuffle { .. } => return shuffle(operation, registers, members),
        Warp::Vote { mode, destination, source } => {
            let yes = truth(registers, *source) & members;
            let answer = match mode {
                VoteMode::All => yes == members,
                VoteMode::Any | VoteMode::Ballot => yes != 0,
                VoteMode::Uniform => yes == members || yes == 0,
            };
            registers.set_predicate(*destination, members, if answer { u32::MAX } else { 0 });
        }
        Warp::Ballot { destination, source } => {
            let yes = truth(registers, *source) & members;
            registers.set_word(*destination, members, &[yes; LANES]);
        }
        Warp::Match { all, destination, agrees, source } => {
            let values = registers.extended(*source);
            let alike: [u32; LANES] = std::array::from_fn(|lane| {
                (0..LANES)
                    .filter(|other| members >> other & 1 == 1 && values[*other] == values[lane])
                    .fold(0, |mask, other| mask | 1 << other)
            });
            if *all {
                let one = alike[members.trailing_zeros() as usize % LANES] == members;
                registers.set_word(*destination, members, &[if one { members } else { 0 }; LANES]);
                if let Some(predicate) = agrees {
                    registers.set_predicate(*predicate, members, if one { u32::MAX } else { 0 });
                }
            } else {
                registers.set_word(*destination, members, &alike);
            }
        }
        Warp::Reduce { reduction, ty, absolute, nan, destination, source } => {
            let values = registers.word(*source);
            let chosen = (0..LANES).filter(|lane| members >> lane & 1 == 1).map(|lane| values[lane]);
            let result = if *ty == Type::F32 {
                reduce_float(*reduction, *absolute, *nan, chosen)
            } else {
                chosen.reduce(|a, b| reduce(*reduction, ty.is_signed(), a, b)).unwrap_or(0)
            };
            registers.set_word(*destination, members, &[result; LANES]);
        }
        Warp::Elect { destination, elected } => {
            let leader = members.trailing_zeros();
            registers.set_word(*destination, members, &[leader; LANES]);
            registers.set_predicate(*elected, members, 1_u32.checked_shl(leader).unwrap_or(0));
        }
        Warp::Synchronize => {}
    }
    None
}

fn reduce(reduction: Reduction, signed: bool, a: u32, b: u32) -> u32 {
    match reduction {
        Reduction::Add => a.wrapping_add(b),
        Reduction::Min if signed => (a as i32).min(b as i32) as u32,
        Reduction::Max if signed => (a as i32).max(b as i32) as u32,
        Reduction::Min => a.min(b),
        Reduction::Max => a.max(b),
        Reduction::And => a & b,
        Reduction::Or => a | b,
        Reduction::Xor => a ^ b,
    }
}

/// `redux.sync.{min,max}.f32`: a NaN is passed over, unless `.NaN` asks for it; the result of nothing but NaN is the
/// canonical NaN.
fn reduce_float(reduction: Reduction, absolute: bool, nan: bool, values: impl Iterator<Item = u32>) -> u32 {
    let mut best: Option<f32> = None;
    for bits in values {
        let value = f32::from_bits(if absolute { bits & 0x7fff_ffff } else { bits });
        if value.is_nan() {
            if nan {
                return 0x7fff_ffff;
            }
            continue;
        }
        let better = |old: f32| {
            let order = value.total_cmp(&old);
            if reduction == Reduction::Min { order.is_lt() } else { order.is_gt() }
        };
        if best.is_none_or(better) {
            best = Some(value);
        }
    }
    best.map_or(0x7fff_ffff, f32::to_bits)
}

/// The lane that each lane of a shuffle reads.
pub fn sources(operation: &Warp, registers: &Registers) -> Option<[usize; LANES]> {
    let Warp::Shuffle { mode, lane, clamp, .. } = operation else { return None };
    Some(shuffle_sources(*mode, &registers.word(*lane), &registers.word(*clamp)).0)
}

/// PTX ISA, `shfl.sync`: the pseudo-code of the manual, for every lane at once.
fn shuffle(operation: &Warp, registers: &mut Registers, members: u32) -> Option<usize> {
    let Warp::Shuffle { mode, destination, in_range, source, lane: distance, clamp } = operation else { return None };
    let (from, ranged) = shuffle_sources(*mode, &registers.word(*distance), &registers.word(*clamp));
    let outside = (0..LANES).find(|&lane| members >> lane & 1 == 1 && members >> from[lane] & 1 == 0);
    if destination.width == Width::Word {
        let values = registers.word(*source);
        registers.set_word(*destination, members, &from.map(|lane| values[lane]));
    } else {
        let values = registers.extended(*source);
        registers.set_extended(*destination, members, &from.map(|lane| values[lane]));
    }
    if let Some(predicate) = in_range {
        registers.set_predicate(*predicate, members, ranged);
    }
    outside
}

/// The lane that each lane reads, and for which lanes it is in range.
fn shuffle_sources(mode: ShuffleMode, distances: &[u32; LANES], clamps: &[u32; LANES]) -> ([usize; LANES], u32) {
    let mut from = [0_usize; LANES];
    let mut ranged = 0_u32;
    for lane in 0..LANES {
        let (b, c) = (distances[lane] & 31, clamps[lane]);
        let (limit, segment) = (c & 31, c >> 8 & 31);
        let own = lane as u32;
        let most = own & segment | limit & !segment;
        let least = own & segment;
        let (wanted, valid) = match mode {
            ShuffleMode::Up => (own.wrapping_sub(b), own as i32 - b as i32 >= most as i32),
            ShuffleMode::Down => (own + b, own + b <= most),
            ShuffleMode::Butterfly => (own ^ b, own ^ b <= most),
            ShuffleMode::Index => (least | b & !segment, (least | b & !segment) <= most),
        };
        let wanted = if valid { wanted } else { own };
        from[lane] = wanted as usize % LANES;
        ranged |= u32::from(valid) << lane;
    }
    (from, ranged)
}
