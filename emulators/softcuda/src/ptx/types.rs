//! The words of PTX that both the parser and the decoded form use: types, state spaces, rounding modes.

/// A PTX fundamental or packed type (PTX ISA, "Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    U16x2,
    S16x2,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F32x2,
    F64,
    E4m3,
    E5m2,
    E4m3x2,
    E5m2x2,
}

/// How the bits of a [`Type`] are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A predicate.
    Predicate,
    /// Bits without a meaning.
    Bits,
    /// An unsigned integer.
    Unsigned,
    /// A two's-complement integer.
    Signed,
    /// A floating-point number, or a pack of them.
    Float,
}

/// Spelling, width in bits, kind.
const TYPES: &[(Type, &str, u32, Kind)] = &[
    (Type::Pred, "pred", 1, Kind::Predicate),
    (Type::B8, "b8", 8, Kind::Bits),
    (Type::B16, "b16", 16, Kind::Bits),
    (Type::B32, "b32", 32, Kind::Bits),
    (Type::B64, "b64", 64, Kind::Bits),
    (Type::B128, "b128", 128, Kind::Bits),
    (Type::U8, "u8", 8, Kind::Unsigned),
    (Type::U16, "u16", 16, Kind::Unsigned),
    (Type::U32, "u32", 32, Kind::Unsigned),
    (Type::U64, "u64", 64, Kind::Unsigned),
    (Type::S8, "s8", 8, Kind::Signed),
    (Type::S16, "s16", 16, Kind::Signed),
    (Type::S32, "s32", 32, Kind::Signed),
    (Type::S64, "s64", 64, Kind::Signed),
    (Type::U16x2, "u16x2", 32, Kind::Unsigned),
    (Type::S16x2, "s16x2", 32, Kind::Signed),
    (Type::F16, "f16", 16, Kind::Float),
    (Type::F16x2, "f16x2", 32, Kind::Float),
    (Type::Bf16, "bf16", 16, Kind::Float),
    (Type::Bf16x2, "bf16x2", 32, Kind::Float),
    (Type::Tf32, "tf32", 32, Kind::Float),
    (Type::F32, "f32", 32, Kind::Float),
    (Type::F32x2, "f32x2", 64, Kind::Float),
    (Type::F64, "f64", 64, Kind::Float),
    (Type::E4m3, "e4m3", 8, Kind::Float),
    (Type::E5m2, "e5m2", 8, Kind::Float),
    (Type::E4m3x2, "e4m3x2", 16, Kind::Float),
    (Type::E5m2x2, "e5m2x2", 16, Kind::Float),
];

impl Type {
    /// The type with this spelling (without the dot).
    pub fn parse(word: &str) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == word).map(|row| row.0)
    }

    fn row(self) -> &'static (Self, &'static str, u32, Kind) {
        // Every variant has a row: the test below counts them.
        TYPES.iter().find(|row| row.0 == self).unwrap_or(&TYPES[0])
    }

    /// The spelling, without the dot.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The width in bits; 1 for a predicate.
    pub fn bits(self) -> u32 {
        self.row().2
    }

    /// The width in bytes of a value in memory.
    pub fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    /// How the bits are read.
    pub fn kind(self) -> Kind {
        self.row().3
    }

    /// Whether the value is a floating-point number or a pack of them.
    pub fn is_float(self) -> bool {
        self.kind() == Kind::Float
    }

    /// Whether the value is a two's-complement integer.
    pub fn is_signed(self) -> bool {
        self.kind() == Kind::Signed
    }
}

/// A state space (PTX ISA, "State Spaces"). `Generic` is an address without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Space {
    Generic,
    Global,
    /// `.shared` or `.shared::cta`.
    Shared,
    /// `.shared::cluster`.
    SharedCluster,
    Local,
    Const,
    /// `.param`: of the kernel, or of a device function.
    Param,
}

impl Space {
    /// The space with this spelling (without the dot).
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "global" => Self::Global,
            "shared" | "shared::cta" => Self::Shared,
            "shared::cluster" => Self::SharedCluster,
            "local" => Self::Local,
            "const" => Self::Const,
            "param" | "param::entry" | "param::func" => Self::Param,
            _ => return None,
        })
    }
}

/// A rounding modifier: `.rn`, `.rz`, `.rm`, `.rp`, `.rna`, and `.rni` ... of a conversion to an integral value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// To nearest, ties to even.
    NearestEven,
    /// To nearest, ties away from zero.
    NearestAway,
    /// Towards zero.
    Zero,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
}

impl Rounding {
    /// A floating-point rounding modifier.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "rn" => Self::NearestEven,
            "rna" => Self::NearestAway,
            "rz" => Self::Zero,
            "rm" => Self::Down,
            "rp" => Self::Up,
            _ => return None,
        })
    }

    /// An integer rounding modifier of `cvt`.
    pub fn parse_integral(word: &str) -> Option<Self> {
        Some(match word {
            "rni" => Self::NearestEven,
            "rzi" => Self::Zero,
            "rmi" => Self::Down,
            "rpi" => Self::Up,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_read_back() {
        for (ty, name, bits, kind) in TYPES {
            assert_eq!(Type::parse(name), Some(*ty));
            assert_eq!((ty.name(), ty.bits(), ty.kind()), (*name, *bits, *kind));
        }
    }
}
