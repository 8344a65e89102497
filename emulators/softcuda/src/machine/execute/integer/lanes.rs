//! Loops over the lanes: the operation is chosen outside of them, so that a simple one becomes vector instructions.

use crate::machine::registers::{LANES, Reg, Registers};
use crate::ptx::decode::integer::Integer;

/// A number in a lane of a register.
pub(in crate::machine::execute) trait Lane: Copy + Default {
    /// All lanes.
    fn read(registers: &Registers, reg: Reg) -> [Self; LANES];
    /// The lanes of `active`.
    fn write(registers: &mut Registers, reg: Reg, active: u32, values: &[Self; LANES]);
}

macro_rules! lane {
    ($lane:ty, $bits:ty, $storage:ty, $read:ident, $write:ident) => {
        impl Lane for $lane {
            #[inline(always)]
            fn read(registers: &Registers, reg: Reg) -> [Self; LANES] {
                let stored: [$storage; LANES] = registers.$read(reg);
                let mut values = [0; LANES];
                for lane in 0..LANES {
                    values[lane] = stored[lane] as $lane;
                }
                values
            }

            #[inline(always)]
            fn write(registers: &mut Registers, reg: Reg, active: u32, values: &[Self; LANES]) {
                let mut stored = [0; LANES];
                for lane in 0..LANES {
                    // Through the unsigned type of its width: the bits above it are zero.
                    stored[lane] = values[lane] as $bits as $storage;
                }
                registers.$write(reg, active, &stored);
            }
        }
    };
}

lane!(u16, u16, u32, word, set_word);
lane!(i16, u16, u32, word, set_word);
lane!(u32, u32, u32, word, set_word);
lane!(i32, u32, u32, word, set_word);
lane!(u64, u64, u64, long, set_long);
lane!(i64, u64, u64, long, set_long);

/// `d = f(a)`
#[inline(never)]
pub(super) fn map1<A: Lane, D: Lane>(
    integer: &Integer,
    registers: &mut Registers,
    active: u32,
    operation: impl Fn(A) -> D,
) {
    let a = A::read(registers, integer.sources[0]);
    let mut result = [D::default(); LANES];
    for lane in 0..LANES {
        result[lane] = operation(a[lane]);
    }
    D::write(registers, integer.destination, active, &result);
}

/// `d = f(a, b)`
#[inline(never)]
pub(super) fn map2<A: Lane, B: Lane, D: Lane>(
    integer: &Integer,
    registers: &mut Registers,
    active: u32,
    operation: impl Fn(A, B) -> D,
) {
    let a = A::read(registers, integer.sources[0]);
    let b = B::read(registers, integer.sources[1]);
    let mut result = [D::default(); LANES];
    for lane in 0..LANES {
        result[lane] = operation(a[lane], b[lane]);
    }
    D::write(registers, integer.destination, active, &result);
}

/// `d = f(a, b, c)`
#[inline(never)]
pub(super) fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(
    integer: &Integer,
    registers: &mut Registers,
    active: u32,
    operation: impl Fn(A, B, C) -> D,
) {
    let a = A::read(registers, integer.sources[0]);
    let b = B::read(registers, integer.sources[1]);
    let c = C::read(registers, integer.sources[2]);
    let mut result = [D::default(); LANES];
    for lane in 0..LANES {
        result[lane] = operation(a[lane], b[lane], c[lane]);
    }
    D::write(registers, integer.destination, active, &result);
}

/// Runs the expression with `$t` the host's type of the number format and `$wide` the one of twice its width.
macro_rules! by_number {
    ($number:expr, $t:ident, $wide:ident => $body:expr) => {{
        use $crate::ptx::decode::integer::Number;
        macro_rules! with {
            ($host:ty, $twice:ty) => {{
                #[allow(dead_code, reason = "not every expression needs both")]
                type $t = $host;
                #[allow(dead_code, reason = "not every expression needs both")]
                type $wide = $twice;
                $body
            }};
        }
        match $number {
            Number::U16 => with!(u16, u32),
            Number::S16 => with!(i16, i32),
            Number::U32 => with!(u32, u64),
            Number::S32 => with!(i32, i64),
            Number::U64 => with!(u64, u128),
            Number::S64 => with!(i64, i128),
        }
    }};
}

pub(in crate::machine::execute) use by_number;
