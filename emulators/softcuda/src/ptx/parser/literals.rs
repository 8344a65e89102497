//! Numbers (PTX ISA, "Constants").

use super::super::types::Type;

/// A number as its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Literal {
    /// An integer, two's complement.
    Integer(u64),
    /// `0f` and eight digits.
    Single(u32),
    /// `0d` and sixteen digits, or a decimal.
    Double(u64),
}

impl Literal {
    /// With the other sign.
    pub(super) fn negated(self) -> Self {
        match self {
            Self::Integer(bits) => Self::Integer(bits.wrapping_neg()),
            Self::Single(bits) => Self::Single(bits ^ (1 << 31)),
            Self::Double(bits) => Self::Double(bits ^ (1 << 63)),
        }
    }

    /// The bits that a variable of this type gets; `None` if the type cannot hold such a number.
    pub(super) fn bits_as(self, ty: Type) -> Option<u64> {
        let single = |value: f64| u64::from((value as f32).to_bits());
        Some(match (self, ty) {
            (Self::Integer(bits), Type::F32) => single(bits as i64 as f64),
            (Self::Integer(bits), Type::F64) => (bits as i64 as f64).to_bits(),
            (Self::Integer(bits), _) => bits,
            (Self::Single(bits), Type::F64) => f64::from(f32::from_bits(bits)).to_bits(),
            (Self::Single(bits), _) if ty.bits() == 32 => u64::from(bits),
            (Self::Double(bits), Type::F32) => single(f64::from_bits(bits)),
            (Self::Double(bits), _) if ty.bits() == 64 => bits,
            _ => return None,
        })
    }
}

/// A prefix, its radix, and how many digits there must be (0: any number).
const PREFIXES: &[(&str, u32, usize)] = &[
    ("0x", 16, 0),
    ("0X", 16, 0),
    ("0b", 2, 0),
    ("0B", 2, 0),
    ("0f", 16, 8),
    ("0F", 16, 8),
    ("0d", 16, 16),
    ("0D", 16, 16),
];

/// Reads a number.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn literal(text: &str) -> Result<Literal, String> {
    let wrong = || format!("expected a number, found '{text:.60}'");
    if let Some((prefix, radix, digits)) = PREFIXES.iter().find(|row| text.starts_with(row.0)) {
        let rest = &text[prefix.len()..];
        if *digits == 0 {
            return number(without_suffix(rest), *radix).map(Literal::Integer).ok_or_else(wrong);
        }
        if rest.len() != *digits {
            return Err(format!("expected {digits} digits after {prefix}, found '{rest:.60}'"));
        }
        let bits = number(rest, *radix).ok_or_else(wrong)?;
        return Ok(if *digits == 8 { Literal::Single(bits as u32) } else { Literal::Double(bits) });
    }
    let integer = without_suffix(text);
    if integer.bytes().all(|byte| byte.is_ascii_digit()) {
        let radix = if integer.len() > 1 && integer.starts_with('0') { 8 } else { 10 };
        let wrong = || format!("expected an integer of at most 64 bits, found '{text:.60}'");
        return number(integer, radix).map(Literal::Integer).ok_or_else(wrong);
    }
    text.parse::<f64>().map(|value| Literal::Double(value.to_bits())).map_err(|_| wrong())
}

/// `42U` is `42`.
fn without_suffix(text: &str) -> &str {
    text.strip_suffix(['U', 'u']).unwrap_or(text)
}

fn number(digits: &str, radix: u32) -> Option<u64> {
    u64::from_str_radix(digits, radix).ok()
}
