//! The table of integer instructions: name, words that must be there, types, operation, sizes of the operands.

use super::Range::{Clamp, Wrap};
use super::{Arithmetic, Bits, Carry, Operation, Permute, Sum};
use crate::ptx::types::Type::{self, B16, B32, B64, S16, S16x2, S32, S64, U16, U16x2, U32, U64};

/// The size of an operand in terms of the instruction's type.
#[derive(Clone, Copy)]
pub(super) enum Size {
    /// The instruction's type.
    Same,
    /// 32 bits.
    Word,
    /// The same kind of number in twice the width.
    Twice,
}

/// One row.
pub(super) struct Form {
    pub(super) name: &'static str,
    /// All of them are there.
    pub(super) words: &'static [&'static str],
    pub(super) types: &'static [Type],
    pub(super) operation: Operation,
    pub(super) destination: Size,
    pub(super) sources: &'static [Size],
}

/// Sizes: the destination, then the sources.
type Sizes = (Size, &'static [Size]);
const ONE: Sizes = (Size::Same, &[Size::Same]);
const TWO: Sizes = (Size::Same, &[Size::Same, Size::Same]);
const THREE: Sizes = (Size::Same, &[Size::Same, Size::Same, Size::Same]);
const COUNT: Sizes = (Size::Word, &[Size::Same]);
const PRODUCT: Sizes = (Size::Twice, &[Size::Same, Size::Same]);
const PRODUCT_SUM: Sizes = (Size::Twice, &[Size::Same, Size::Same, Size::Twice]);
const SHIFT: Sizes = (Size::Same, &[Size::Same, Size::Word]);
const EXTRACT: Sizes = (Size::Same, &[Size::Same, Size::Word, Size::Word]);
const INSERT: Sizes = (Size::Same, &[Size::Same, Size::Same, Size::Word, Size::Word]);

const ALL: &[Type] = &[U16, U32, U64, S16, S32, S64];
const SIGNED: &[Type] = &[S16, S32, S64];
const PACKED: &[Type] = &[U16x2, S16x2];
const NARROW: &[Type] = &[U16, U32, S16, S32];
const CARRYING: &[Type] = &[U32, S32, U64, S64];
const LOGIC: &[Type] = &[B16, B32, B64];
const RIGHT: &[Type] = &[B16, B32, B64, U16, U32, U64, S16, S32, S64];
const WORD: &[Type] = &[U32, S32];
const BITS: &[Type] = &[B32, B64];
const B: &[Type] = &[B32];
const S: &[Type] = &[S32];

const fn row(
    name: &'static str,
    words: &'static [&'static str],
    types: &'static [Type],
    operation: Operation,
    sizes: Sizes,
) -> Form {
    Form { name, words, types, operation, destination: sizes.0, sources: sizes.1 }
}

const fn arithmetic(
    name: &'static str,
    words: &'static [&'static str],
    types: &'static [Type],
    operation: Arithmetic,
    sizes: Sizes,
) -> Form {
    row(name, words, types, Operation::Arithmetic(operation), sizes)
}

const fn carry(
    name: &'static str,
    words: &'static [&'static str],
    sum: Sum,
    (reads, writes): (bool, bool),
    sizes: Sizes,
) -> Form {
    row(name, words, CARRYING, Operation::Carry(Carry { sum, reads, writes }), sizes)
}

const fn bits(
    name: &'static str,
    words: &'static [&'static str],
    types: &'static [Type],
    operation: Bits,
    sizes: Sizes,
) -> Form {
    row(name, words, types, Operation::Bits(operation), sizes)
}

const fn permute(words: &'static [&'static str], lists: [u16; 4]) -> Form {
    row("prmt", words, B, Operation::Permute(Permute::Lists(lists)), THREE)
}

/// Rows with more words stand before those of the same name with fewer.
pub(super) const FORMS: &[Form] = &[
    carry("add", &["cc"], Sum::Add, (false, true), TWO),
    arithmetic("add", &["sat"], S, Arithmetic::AddSaturating, TWO),
    arithmetic("add", &[], ALL, Arithmetic::Add, TWO),
    arithmetic("add", &[], PACKED, Arithmetic::PackedAdd, TWO),
    carry("addc", &["cc"], Sum::Add, (true, true), TWO),
    carry("addc", &[], Sum::Add, (true, false), TWO),
    carry("sub", &["cc"], Sum::Subtract, (false, true), TWO),
    arithmetic("sub", &["sat"], S, Arithmetic::SubtractSaturating, TWO),
    arithmetic("sub", &[], ALL, Arithmetic::Subtract, TWO),
    carry("subc", &["cc"], Sum::Subtract, (true, true), TWO),
    carry("subc", &[], Sum::Subtract, (true, false), TWO),
    arithmetic("mul", &["lo"], ALL, Arithmetic::MultiplyLow, TWO),
    arithmetic("mul", &["hi"], ALL, Arithmetic::MultiplyHigh, TWO),
    arithmetic("mul", &["wide"], NARROW, Arithmetic::MultiplyWide, PRODUCT),
    arithmetic("mad", &["hi", "sat"], S, Arithmetic::MultiplyAddHighSaturating, THREE),
    carry("mad", &["lo", "cc"], Sum::ProductLow, (false, true), THREE),
    carry("mad", &["hi", "cc"], Sum::ProductHigh, (false, true), THREE),
    arithmetic("mad", &["lo"], ALL, Arithmetic::MultiplyAddLow, THREE),
    arithmetic("mad", &["hi"], ALL, Arithmetic::MultiplyAddHigh, THREE),
    arithmetic("mad", &["wide"], NARROW, Arithmetic::MultiplyAddWide, PRODUCT_SUM),
    carry("madc", &["lo", "cc"], Sum::ProductLow, (true, true), THREE),
    carry("madc", &["hi", "cc"], Sum::ProductHigh, (true, true), THREE),
    carry("madc", &["lo"], Sum::ProductLow, (true, false), THREE),
    carry("madc", &["hi"], Sum::ProductHigh, (true, false), THREE),
    arithmetic("mul24", &["lo"], WORD, Arithmetic::Multiply24Low, TWO),
    arithmetic("mul24", &["hi"], WORD, Arithmetic::Multiply24High, TWO),
    arithmetic("mad24", &["hi", "sat"], S, Arithmetic::MultiplyAdd24HighSaturating, THREE),
    arithmetic("mad24", &["lo"], WORD, Arithmetic::MultiplyAdd24Low, THREE),
    arithmetic("mad24", &["hi"], WORD, Arithmetic::MultiplyAdd24High, THREE),
    arithmetic("sad", &[], ALL, Arithmetic::SumOfAbsoluteDifference, THREE),
    arithmetic("div", &[], ALL, Arithmetic::Divide, TWO),
    arithmetic("rem", &[], ALL, Arithmetic::Remainder, TWO),
    arithmetic("abs", &[], SIGNED, Arithmetic::Absolute, ONE),
    arithmetic("neg", &[], SIGNED, Arithmetic::Negate, ONE),
    arithmetic("min", &["relu"], S, Arithmetic::MinimumRelu, TWO),
    arithmetic("min", &["relu"], &[S16x2], Arithmetic::PackedMinimumRelu, TWO),
    arithmetic("min", &[], ALL, Arithmetic::Minimum, TWO),
    arithmetic("min", &[], PACKED, Arithmetic::PackedMinimum, TWO),
    arithmetic("max", &["relu"], S, Arithmetic::MaximumRelu, TWO),
    arithmetic("max", &["relu"], &[S16x2], Arithmetic::PackedMaximumRelu, TWO),
    arithmetic("max", &[], ALL, Arithmetic::Maximum, TWO),
    arithmetic("max", &[], PACKED, Arithmetic::PackedMaximum, TWO),
    bits("and", &[], LOGIC, Bits::And, TWO),
    bits("or", &[], LOGIC, Bits::Or, TWO),
    bits("xor", &[], LOGIC, Bits::Xor, TWO),
    bits("not", &[], LOGIC, Bits::Not, ONE),
    bits("cnot", &[], LOGIC, Bits::LogicalNot, ONE),
    bits("shl", &[], LOGIC, Bits::ShiftLeft, SHIFT),
    bits("shr", &[], RIGHT, Bits::ShiftRight, SHIFT),
    bits("popc", &[], BITS, Bits::Population, COUNT),
    bits("clz", &[], BITS, Bits::LeadingZeros, COUNT),
    bits("bfind", &["shiftamt"], CARRYING, Bits::FindLeadingShift, COUNT),
    bits("bfind", &[], CARRYING, Bits::FindLeading, COUNT),
    bits("fns", &[], B, Bits::FindNth, EXTRACT),
    bits("brev", &[], BITS, Bits::Reverse, ONE),
    bits("bfe", &[], CARRYING, Bits::Extract, EXTRACT),
    bits("bfi", &[], BITS, Bits::Insert, INSERT),
    bits("szext", &["clamp"], WORD, Bits::Extend(Clamp), SHIFT),
    bits("szext", &["wrap"], WORD, Bits::Extend(Wrap), SHIFT),
    bits("bmsk", &["clamp"], B, Bits::Mask(Clamp), TWO),
    bits("bmsk", &["wrap"], B, Bits::Mask(Wrap), TWO),
    bits("shf", &["l", "clamp"], B, Bits::FunnelLeft(Clamp), THREE),
    bits("shf", &["l", "wrap"], B, Bits::FunnelLeft(Wrap), THREE),
    bits("shf", &["r", "clamp"], B, Bits::FunnelRight(Clamp), THREE),
    bits("shf", &["r", "wrap"], B, Bits::FunnelRight(Wrap), THREE),
    // Four selectors a list, the lowest byte's last, as the manual's tables have them.
    permute(&["f4e"], [0x3210, 0x4321, 0x5432, 0x6543]),
    permute(&["b4e"], [0x5670, 0x6701, 0x7012, 0x0123]),
    permute(&["rc8"], [0x0000, 0x1111, 0x2222, 0x3333]),
    permute(&["ecl"], [0x3210, 0x3211, 0x3222, 0x3333]),
    permute(&["ecr"], [0x0000, 0x1110, 0x2210, 0x3210]),
    permute(&["rc16"], [0x1010, 0x3232, 0x1010, 0x3232]),
    row("prmt", &[], B, Operation::Permute(Permute::Selectors), THREE),
];
