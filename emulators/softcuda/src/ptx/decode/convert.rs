//! `cvt` and `cvt.pack`: which types become which, and how results are rounded and limited.

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::{Kind, Rounding, Type};
use super::modifiers::Modifiers;
use super::scope::Scope;
use crate::count::Class;
use crate::machine::registers::{Reg, Width};

/// How a floating-point result is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saturation {
    /// Not at all: what is too large becomes infinite, or the largest finite number, as the rounding says.
    Unlimited,
    /// `.sat`: to \[0, 1\]; NaN becomes +0.
    Unit,
    /// `.satfinite`: to the finite numbers; infinities become the largest one, NaN stays NaN.
    Finite,
}

/// How a floating-point result is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Where a result goes that the type does not have. Without a meaning where every value is exact.
    pub rounding: Rounding,
    /// How it is limited.
    pub saturation: Saturation,
    /// `.relu`: negative results become +0.
    pub relu: bool,
    /// `.ftz`: f32 inputs and results that are subnormal become zeros of the same sign.
    pub flush: bool,
}

/// A destination of an integer: a register that may be wider than the type, to which the result is then extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The register.
    pub reg: Reg,
    /// Its declared width in bits: 8, 16, 32 or 64.
    pub bits: u32,
}

/// One conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convert {
    /// An integer to an integer.
    Integer {
        /// Type of the source.
        from: Type,
        /// Type of the result.
        to: Type,
        /// `.sat`: limited to the result's range; otherwise cut.
        saturate: bool,
        /// The result.
        destination: Destination,
        /// The source.
        source: Reg,
    },
    /// An integer to a floating-point number.
    FromInteger {
        /// Type of the source.
        from: Type,
        /// Type of the result.
        to: Type,
        /// Rounding and limits.
        rules: Rules,
        /// The result.
        destination: Reg,
        /// The source.
        source: Reg,
    },
    /// A floating-point number to an integer, always limited to the result's range.
    ToInteger {
        /// Type of the source.
        from: Type,
        /// Type of the result.
        to: Type,
        /// To which integer.
        rounding: Rounding,
        /// `.ftz`.
        flush: bool,
        /// The result.
        destination: Destination,
        /// The source.
        source: Reg,
    },
    /// A floating-point number to an integral value of the same type.
    Integral {
        /// The type.
        ty: Type,
        /// To which integral value, and limits.
        rules: Rules,
        /// The result.
        destination: Reg,
        /// The source.
        source: Reg,
    },
    /// A floating-point number to another type, or to the same one with limits.
    Float {
        /// Type of the source.
        from: Type,
        /// Type of the result.
        to: Type,
        /// Rounding and limits.
        rules: Rules,
        /// The result.
        destination: Reg,
        /// The source.
        source: Reg,
    },
    /// Two f32 to a packed pair.
    Pack {
        /// Type of the pair.
        to: Type,
        /// Rounding and limits.
        rules: Rules,
        /// The pair.
        destination: Reg,
        /// What goes into the upper half: the first source.
        upper: Reg,
        /// What goes into the lower half: the second source.
        lower: Reg,
    },
    /// A packed pair to a packed pair, half by half.
    Repack {
        /// Type of the source.
        from: Type,
        /// Type of the result.
        to: Type,
        /// Rounding and limits.
        rules: Rules,
        /// The result.
        destination: Reg,
        /// The source.
        source: Reg,
    },
    /// `cvt.pack.sat`: two s32, limited to few bits, below the low bits of a third word.
    PackIntegers {
        /// Bits of one limited integer.
        bits: u32,
        /// Whether they are two's complement.
        signed: bool,
        /// The word.
        destination: Reg,
        /// The upper one of the two: the first source.
        upper: Reg,
        /// The lower one: the second source.
        lower: Reg,
        /// What is shifted in above them; nothing for 16 bits.
        above: Option<Reg>,
    },
}

impl Convert {
    /// The class it is counted in.
    pub fn class(&self) -> Class {
        Class::Convert
    }
}

/// Words of the manual that are refused here, so that the error names them and not the types beside them: stochastic
/// rounding and the formats of 4 and 6 bits and of exponents alone, which begin with sm_100.
const REFUSED: &[&str] =
    &["rs", "e2m1x2", "e2m3x2", "e3m2x2", "e2m1x4", "e2m3x4", "e3m2x4", "e4m3x4", "e5m2x4", "ue8m0x2", "s2f6x2"];

/// What `cvt.pack.sat` limits to: spelling, bits, signed.
const PACKED_INTEGERS: &[(&str, u32, bool)] = &[
    ("u2", 2, false),
    ("s2", 2, true),
    ("u4", 4, false),
    ("s4", 4, true),
    ("u8", 8, false),
    ("s8", 8, true),
    ("u16", 16, false),
    ("s16", 16, true),
];

fn is_integer(ty: Type) -> bool {
    matches!(ty.kind(), Kind::Unsigned | Kind::Signed) && !matches!(ty, Type::U16x2 | Type::S16x2)
}

fn is_scalar_float(ty: Type) -> bool {
    matches!(ty, Type::F16 | Type::Bf16 | Type::F32 | Type::F64)
}

fn is_pair_of_bytes(ty: Type) -> bool {
    matches!(ty, Type::E4m3x2 | Type::E5m2x2)
}

/// Whether every value of `from` is one of `to`.
fn contains(to: Type, from: Type) -> bool {
    if is_integer(to) {
        let headroom = |ty: Type| ty.bits() - u32::from(ty.is_signed());
        return headroom(to) >= headroom(from) && (to.is_signed() || !from.is_signed());
    }
    to == from || to == Type::F64 || to == Type::F32 && from != Type::F64
}

/// The modifiers of a `cvt` that say what becomes of the result.
const FLAGS: &[&str] = &["ftz", "sat", "satfinite", "relu"];

/// The modifiers of a `cvt`, before it is known which of them its types allow.
struct Words {
    rounding: Option<Rounding>,
    integral: Option<Rounding>,
    /// Those of [`FLAGS`] that are there.
    flags: Vec<&'static str>,
}

impl Words {
    fn take(modifiers: &mut Modifiers) -> Self {
        Self {
            rounding: modifiers.take_rounding(),
            integral: modifiers.take_with(Rounding::parse_integral),
            flags: FLAGS.iter().copied().filter(|flag| modifiers.take(flag)).collect(),
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// The rounding that the types need, one of `allowed`.
    fn need(&self, modifiers: &Modifiers, allowed: &[Rounding]) -> Result<Rounding, Error> {
        match self.rounding {
            Some(rounding) if allowed.contains(&rounding) && self.integral.is_none() => Ok(rounding),
            Some(_) => Err(modifiers.error("these types do not take this rounding")),
            None => Err(modifiers.error("these types need a rounding modifier")),
        }
    }

    /// Refuses what is there and not allowed.
    fn only(&self, modifiers: &Modifiers, allowed: &[&str]) -> Result<(), Error> {
        if self.rounding.is_some() && !allowed.contains(&"rounding") {
            return Err(modifiers.error("these types do not take a rounding modifier"));
        }
        if self.integral.is_some() && !allowed.contains(&"integral") {
            return Err(modifiers.error("these types do not take a rounding modifier to an integral value"));
        }
        match self.flags.iter().find(|flag| !allowed.contains(flag)) {
            None => Ok(()),
            Some(flag) => Err(modifiers.error(&format!("modifier .{flag} is not possible with these types"))),
        }
    }

    fn rules(&self, rounding: Rounding) -> Rules {
        let saturation = if self.has("sat") {
            Saturation::Unit
        } else if self.has("satfinite") {
            Saturation::Finite
        } else {
            Saturation::Unlimited
        };
        Rules { rounding, saturation, relu: self.has("relu"), flush: self.has("ftz") }
    }
}

const DIRECTED: &[Rounding] = &[Rounding::NearestEven, Rounding::Zero, Rounding::Down, Rounding::Up];
const NEAREST_OR_ZERO: &[Rounding] = &[Rounding::NearestEven, Rounding::Zero];
const NEAREST: &[Rounding] = &[Rounding::NearestEven];
const TENSOR: &[Rounding] = &[Rounding::NearestEven, Rounding::Zero, Rounding::NearestAway];

/// Decodes `cvt` and `cvt.pack`.
///
/// # Errors
/// An operand, type or modifier that the instruction does not take.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Convert, Error> {
    if let Some(word) = modifiers.rest().find(|word| REFUSED.contains(word)) {
        return Err(modifiers.error(&format!(".{word} is not supported")));
    }
    if modifiers.take("pack") {
        return pack_integers(instruction, modifiers, scope);
    }
    let words = Words::take(modifiers);
    let to = modifiers.take_type()?;
    let from = modifiers.take_type()?;
    if is_pair_of_bytes(to) || matches!(to, Type::F16x2 | Type::Bf16x2) {
        return pair(instruction, modifiers, scope, &words, to, from);
    }
    scope.expect_operands(instruction, 2..=2)?;
    let into = scope.operand(instruction, 0)?;
    let given = scope.operand(instruction, 1)?;
    if is_integer(to) && is_integer(from) {
        words.only(modifiers, if contains(to, from) { &[] } else { &["sat"] })?;
        let destination = integer_destination(into, to, scope)?;
        let source = source(given, from, scope)?;
        return Ok(Convert::Integer { from, to, saturate: words.has("sat"), destination, source });
    }
    if is_integer(to) && is_scalar_float(from) {
        // `.sat` says what happens anyway.
        let allowed: &[&str] = match from {
            Type::F32 => &["integral", "sat", "ftz"],
            Type::Bf16 => &["integral"],
            _ => &["integral", "sat"],
        };
        words.only(modifiers, allowed)?;
        let Some(rounding) = words.integral else {
            return Err(modifiers.error("these types need a rounding modifier to an integral value"));
        };
        let destination = integer_destination(into, to, scope)?;
        let source = source(given, from, scope)?;
        return Ok(Convert::ToInteger { from, to, rounding, flush: words.has("ftz"), destination, source });
    }
    if is_scalar_float(to) && is_integer(from) {
        let allowed: &[&str] = match to {
            Type::F32 => &["rounding", "sat", "ftz"],
            Type::Bf16 => &["rounding"],
            _ => &["rounding", "sat"],
        };
        words.only(modifiers, allowed)?;
        let rules = words.rules(words.need(modifiers, DIRECTED)?);
        let destination = destination(into, to, scope)?;
        let source = source(given, from, scope)?;
        return Ok(Convert::FromInteger { from, to, rules, destination, source });
    }
    if to == Type::Tf32 && from == Type::F32 {
        words.only(modifiers, &["rounding", "satfinite", "relu"])?;
        let rules = words.rules(words.need(modifiers, TENSOR)?);
        if rules.relu && rules.rounding == Rounding::NearestAway {
            return Err(modifiers.error("modifier .relu is not possible with .rna"));
        }
        let destination = destination(into, to, scope)?;
        let source = source(given, from, scope)?;
        return Ok(Convert::Float { from, to, rules, destination, source });
    }
    if !is_scalar_float(to) || !is_scalar_float(from) {
        return Err(modifiers.error(&format!("converts nothing from .{} to .{}", from.name(), to.name())));
    }
    let rules = float_rules(modifiers, &words, to, from)?;
    let destination = destination(into, to, scope)?;
    let source = source(given, from, scope)?;
    if words.integral.is_some() {
        return Ok(Convert::Integral { ty: to, rules, destination, source });
    }
    Ok(Convert::Float { from, to, rules, destination, source })
}

/// What scalar floating-point types allow each other.
fn float_rules(modifiers: &Modifiers, words: &Words, to: Type, from: Type) -> Result<Rules, Error> {
    let mut allowed = Vec::new();
    if to == from {
        allowed.push("integral");
    }
    if to == Type::F32 || from == Type::F32 {
        allowed.push("ftz");
    }
    if to != Type::Bf16 && from != Type::Bf16 {
        allowed.push("sat");
    }
    // Nothing is rounded from bf16 to wider types, and yet the modifier is allowed.
    if !contains(to, from) || from == Type::Bf16 && to != from {
        allowed.push("rounding");
    }
    let narrow = from == Type::F32 && matches!(to, Type::F16 | Type::Bf16);
    let nearest_or_zero = words.rounding.is_some_and(|rounding| NEAREST_OR_ZERO.contains(&rounding));
    if narrow && nearest_or_zero && !words.has("ftz") && !words.has("sat") {
        allowed.extend(["satfinite", "relu"]);
    }
    words.only(modifiers, &allowed)?;
    let rounding = match (words.integral, words.rounding) {
        (Some(rounding), _) => rounding,
        (None, None) if contains(to, from) => Rounding::NearestEven,
        // Between the two 16-bit types, of which neither contains the other, the modifier may be left out.
        (None, None) if to.bits() == 16 && from.bits() == 16 => Rounding::NearestEven,
        _ => words.need(modifiers, DIRECTED)?,
    };
    Ok(words.rules(rounding))
}

/// Conversions whose result is a packed pair.
fn pair(
    instruction: &Instruction,
    modifiers: &Modifiers,
    scope: &mut Scope,
    words: &Words,
    to: Type,
    from: Type,
) -> Result<Convert, Error> {
    let to_bytes = is_pair_of_bytes(to);
    match (to_bytes, from) {
        (_, Type::F32) | (true, Type::F16x2) => words.only(modifiers, &["rounding", "satfinite", "relu"])?,
        (false, Type::E4m3x2 | Type::E5m2x2) if to == Type::F16x2 => words.only(modifiers, &["rounding", "relu"])?,
        _ => return Err(modifiers.error(&format!("converts nothing from .{} to .{}", from.name(), to.name()))),
    }
    if to_bytes && !words.has("satfinite") {
        return Err(modifiers.error("needs the modifier .satfinite"));
    }
    let wide = from == Type::F32 && !to_bytes;
    let rules = words.rules(words.need(modifiers, if wide { NEAREST_OR_ZERO } else { NEAREST })?);
    scope.expect_operands(instruction, if from == Type::F32 { 3..=3 } else { 2..=2 })?;
    let destination = destination(scope.operand(instruction, 0)?, to, scope)?;
    let first = source(scope.operand(instruction, 1)?, from, scope)?;
    if from != Type::F32 {
        return Ok(Convert::Repack { from, to, rules, destination, source: first });
    }
    let lower = source(scope.operand(instruction, 2)?, from, scope)?;
    Ok(Convert::Pack { to, rules, destination, upper: first, lower })
}

/// `cvt.pack.sat.u8.s32.b32 d, a, b, c` and its kin.
fn pack_integers(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Convert, Error> {
    if !modifiers.take("sat") {
        return Err(modifiers.error("needs the modifier .sat"));
    }
    let limits = |word: &str| PACKED_INTEGERS.iter().find(|row| row.0 == word).copied();
    let Some((_, bits, signed)) = modifiers.take_with(limits) else {
        return Err(modifiers.error("needs a type to limit to"));
    };
    if !modifiers.take("s32") {
        return Err(modifiers.error("takes sources of type .s32"));
    }
    let has_third = bits < 16;
    if has_third && !modifiers.take("b32") {
        return Err(modifiers.error("needs a third source of type .b32"));
    }
    scope.expect_operands(instruction, if has_third { 4..=4 } else { 3..=3 })?;
    let destination = destination(scope.operand(instruction, 0)?, Type::B32, scope)?;
    let upper = scope.source(scope.operand(instruction, 1)?, Type::S32)?;
    let lower = scope.source(scope.operand(instruction, 2)?, Type::S32)?;
    let above = if has_third { Some(scope.source(scope.operand(instruction, 3)?, Type::B32)?) } else { None };
    Ok(Convert::PackIntegers { bits, signed, destination, upper, lower, above })
}

/// Refuses a register whose declared type cannot hold the instruction's.
fn check(operand: &Operand, ty: Type, scope: &Scope) -> Result<(), Error> {
    let Some(declared) = scope.register_type(operand) else { return Ok(()) };
    let wrong = if declared.is_float() {
        // Only bit registers may be wider than a floating-point type, and tf32 lives in them alone.
        !ty.is_float() || declared.bits() != ty.bits() || ty == Type::Tf32
    } else {
        declared.bits() < ty.bits() || ty.is_float() && declared.kind() != Kind::Bits
    };
    if wrong {
        let (found, wanted) = (declared.name(), ty.name());
        return Err(scope.error(format!("{operand:?} is declared .{found} and cannot hold .{wanted}")));
    }
    Ok(())
}

fn source(operand: &Operand, ty: Type, scope: &mut Scope) -> Result<Reg, Error> {
    check(operand, ty, scope)?;
    let reg = scope.any_source(operand, ty)?;
    if reg.width == Width::Word && ty.bits() > 32 {
        return Err(scope.error(format!("{operand:?} is narrower than .{}", ty.name())));
    }
    Ok(reg)
}

fn destination(operand: &Operand, ty: Type, scope: &mut Scope) -> Result<Reg, Error> {
    check(operand, ty, scope)?;
    scope.any_destination(operand, ty)
}

fn integer_destination(operand: &Operand, ty: Type, scope: &mut Scope) -> Result<Destination, Error> {
    let reg = destination(operand, ty, scope)?;
    let bits = scope.register_type(operand).unwrap_or(ty).bits();
    if bits > 64 {
        return Err(scope.error(format!("{operand:?} is wider than any integer of cvt")));
    }
    Ok(Destination { reg, bits })
}
