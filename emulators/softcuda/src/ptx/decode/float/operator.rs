//! Which operators exist for which types, with which modifiers: the tables' rows, for the wide formats and the half
//! ones.

use crate::ptx::decode::modifiers::Modifiers;
use crate::ptx::syntax::Error;
use crate::ptx::types::{Rounding, Type};

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `a + b`.
    Add,
    /// `a - b`.
    Subtract,
    /// `a * b`.
    Multiply,
    /// `a * b + c`, rounded once: `fma`, and `mad` of floating-point types.
    Fused,
    /// `a / b`.
    Divide,
    /// `1 / a`.
    Reciprocal,
    /// The square root of `a`.
    SquareRoot,
    /// The lesser of `a` and `b`; NaN loses.
    Minimum,
    /// The greater of `a` and `b`; NaN loses.
    Maximum,
    /// The sign bit of `a` cleared.
    Absolute,
    /// The sign bit of `a` flipped.
    Negate,
    /// The sign of `a`, the rest of `b`.
    CopySign,
}

impl Operator {
    /// The number of source operands.
    pub fn operands(self) -> usize {
        match self {
            Self::Reciprocal | Self::SquareRoot | Self::Absolute | Self::Negate => 1,
            Self::Fused => 3,
            _ => 2,
        }
    }
}

/// The rounding modifiers that a form takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundingRule {
    /// None: the result is exact.
    Exact,
    /// One of four, `.rn` if there is none.
    Any,
    /// One of four, which must be there.
    Needed,
    /// `.rn` or nothing.
    AnyNearest,
    /// `.rn`, which must be there.
    NeededNearest,
}

/// The modifiers of one operator for some types.
pub struct Form {
    name: &'static str,
    /// What is computed.
    pub operator: Operator,
    types: &'static [Type],
    rounding: RoundingRule,
    words: &'static [&'static str],
}

impl Form {
    /// A row of a table.
    pub const fn new(
        name: &'static str,
        operator: Operator,
        types: &'static [Type],
        rounding: RoundingRule,
        words: &'static [&'static str],
    ) -> Self {
        Self { name, operator, types, rounding, words }
    }

    /// The first row of an opcode for a type.
    ///
    /// # Errors
    /// There is none.
    pub fn find<'a>(forms: &'a [Self], name: &str, ty: Type, modifiers: &Modifiers) -> Result<&'a Self, Error> {
        forms
            .iter()
            .find(|form| form.name == name && form.types.contains(&ty))
            .ok_or_else(|| modifiers.error(&format!("is not supported for .{} with these modifiers", ty.name())))
    }

    /// Takes a word if the form has it: one that it does not have is left, and refused at the end.
    pub fn takes(&self, word: &str, modifiers: &mut Modifiers) -> bool {
        self.words.contains(&word) && modifiers.take(word)
    }

    /// Takes the rounding modifier.
    ///
    /// # Errors
    /// It is missing and must be there.
    pub fn rounding(&self, modifiers: &mut Modifiers) -> Result<Rounding, Error> {
        let allowed: &[&str] = match self.rounding {
            RoundingRule::Exact => &[],
            RoundingRule::Any | RoundingRule::Needed => &["rn", "rz", "rm", "rp"],
            RoundingRule::AnyNearest | RoundingRule::NeededNearest => &["rn"],
        };
        let taken = modifiers.take_with(|word| allowed.contains(&word).then(|| Rounding::parse(word)).flatten());
        match taken {
            Some(rounding) => Ok(rounding),
            None if matches!(self.rounding, RoundingRule::Needed | RoundingRule::NeededNearest) => {
                Err(modifiers.error(&format!("needs a rounding modifier: one of .{}", allowed.join(", ."))))
            }
            None => Ok(Rounding::NearestEven),
        }
    }
}
