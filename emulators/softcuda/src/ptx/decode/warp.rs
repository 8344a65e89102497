//! What the lanes of a warp do together: shuffles, votes, matches, reductions.

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::Type;
use super::modifiers::Modifiers;
use super::scope::{Condition, Scope};
use crate::machine::registers::{Pred, Reg};

/// Where a shuffle reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What `redux` computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Reduction {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// Spelling and meaning.
const SHUFFLES: &[(&str, ShuffleMode)] = &[
    ("up", ShuffleMode::Up),
    ("down", ShuffleMode::Down),
    ("bfly", ShuffleMode::Butterfly),
    ("idx", ShuffleMode::Index),
];
const VOTES: &[(&str, VoteMode)] =
    &[("all", VoteMode::All), ("any", VoteMode::Any), ("uni", VoteMode::Uniform), ("ballot", VoteMode::Ballot)];
const REDUCTIONS: &[(&str, Reduction)] = &[
    ("add", Reduction::Add),
    ("min", Reduction::Min),
    ("max", Reduction::Max),
    ("and", Reduction::And),
    ("or", Reduction::Or),
    ("xor", Reduction::Xor),
];

fn named<T: Copy>(table: &[(&str, T)], word: &str) -> Option<T> {
    table.iter().find(|row| row.0 == word).map(|row| row.1)
}

/// An instruction that the lanes of a mask execute together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warp {
    /// `shfl.sync`.
    Shuffle {
        /// Where from.
        mode: ShuffleMode,
        /// The value read.
        destination: Reg,
        /// Whether the source lane was in range.
        in_range: Option<Pred>,
        /// The value given.
        source: Reg,
        /// Lane or distance.
        lane: Reg,
        /// Clamp in bits 0 to 4, segment mask in bits 8 to 12.
        clamp: Reg,
    },
    /// `vote.sync` with a predicate result.
    Vote {
        /// What is asked.
        mode: VoteMode,
        /// The answer.
        destination: Pred,
        /// Each lane's word.
        source: Condition,
    },
    /// `vote.sync.ballot`.
    Ballot {
        /// The mask.
        destination: Reg,
        /// Each lane's word.
        source: Condition,
    },
    /// `match.sync`.
    Match {
        /// `.all`, not `.any`.
        all: bool,
        /// The lanes with the same value.
        destination: Reg,
        /// `.all`: whether they are all.
        agrees: Option<Pred>,
        /// The value.
        source: Reg,
    },
    /// `redux.sync`.
    Reduce {
        /// What.
        reduction: Reduction,
        /// Of what.
        ty: Type,
        /// `.abs` of f32.
        absolute: bool,
        /// `.NaN` of f32.
        nan: bool,
        /// The result.
        destination: Reg,
        /// Each lane's value.
        source: Reg,
    },
    /// `elect.sync`: the lowest lane.
    Elect {
        /// Its number.
        destination: Reg,
        /// Whether it is this one.
        elected: Pred,
    },
    /// `bar.warp.sync`.
    Synchronize,
}

/// A warp instruction with its member mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collective {
    /// What they do.
    pub operation: Warp,
    /// The lanes that must take part.
    pub members: Reg,
}

/// Opcodes of this file (`bar.warp.sync` comes by way of `barrier`).
pub const OPCODES: &[&str] = &["shfl", "vote", "match", "redux", "elect"];

/// Decodes a warp instruction.
///
/// # Errors
/// An operand or modifier that it does not take, or a form without `.sync`, which sm_70 dropped.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Collective, Error> {
    if !modifiers.take("sync") {
        return Err(modifiers.error("forms without .sync do not exist since sm_70"));
    }
    let name = instruction.opcode[0].as_ref();
    let first = scope.operand(instruction, 0)?;
    let (main, second) = match first {
        Operand::Pair(main, second) => (&**main, Some(&**second)),
        single => (single, None),
    };
    let mut mask_place = instruction.operands.len().saturating_sub(1);
    let operation = match name {
        "shfl" => {
            let Some(mode) = modifiers.take_with(|word| named(SHUFFLES, word)) else {
                return Err(modifiers.error("names no mode"));
            };
            let ty = modifiers.take_type()?;
            scope.expect_operands(instruction, 5..=5)?;
            let in_range = second.map(|operand| scope.predicate_destination(operand)).transpose()?;
            Warp::Shuffle {
                mode,
                destination: scope.destination(main, ty)?,
                in_range,
                source: scope.source(scope.operand(instruction, 1)?, ty)?,
                lane: scope.source(scope.operand(instruction, 2)?, Type::U32)?,
                clamp: scope.source(scope.operand(instruction, 3)?, Type::U32)?,
            }
        }
        "vote" => {
            let Some(mode) = modifiers.take_with(|word| named(VOTES, word)) else {
                return Err(modifiers.error("names no mode"));
            };
            let ty = modifiers.take_type()?;
            scope.expect_operands(instruction, 3..=3)?;
            let source = scope.condition(scope.operand(instruction, 1)?)?;
            match mode {
                VoteMode::Ballot => Warp::Ballot { destination: scope.destination(main, ty)?, source },
                mode => Warp::Vote { mode, destination: scope.predicate_destination(main)?, source },
            }
        }
        "match" => {
            let all = modifiers.take("all");
            if !all && !modifiers.take("any") {
                return Err(modifiers.error("names no mode"));
            }
            let ty = modifiers.take_type()?;
            scope.expect_operands(instruction, 3..=3)?;
            let agrees = second.map(|operand| scope.predicate_destination(operand)).transpose()?;
            let destination = scope.destination(main, Type::B32)?;
            Warp::Match { all, destination, agrees, source: scope.source(scope.operand(instruction, 1)?, ty)? }
        }
        "redux" => {
            let Some(reduction) = modifiers.take_with(|word| named(REDUCTIONS, word)) else {
                return Err(modifiers.error("names no operation"));
            };
            let absolute = modifiers.take("abs");
            let nan = modifiers.take("NaN");
            let ty = modifiers.take_type()?;
            if !matches!(ty, Type::U32 | Type::S32 | Type::B32 | Type::F32) {
                return Err(modifiers.error("does not take this type"));
            }
            scope.expect_operands(instruction, 3..=3)?;
            let destination = scope.destination(main, ty)?;
            Warp::Reduce {
                reduction,
                ty,
                absolute,
                nan,
                destination,
                source: scope.source(scope.operand(instruction, 1)?, ty)?,
            }
        }
        _ => {
            scope.expect_operands(instruction, 2..=2)?;
            mask_place = 1;
            let Some(elected) = second else { return Err(modifiers.error("needs a predicate: d|p")) };
            Warp::Elect {
                destination: scope.destination(main, Type::B32)?,
                elected: scope.predicate_destination(elected)?,
            }
        }
    };
    let members = scope.source(scope.operand(instruction, mask_place)?, Type::B32)?;
    Ok(Collective { operation, members })
}
