//! The words after an opcode, taken one by one: what is left over at the end is not known, and is refused by name.

use super::super::syntax::{Error, Instruction};
use super::super::types::{Rounding, Space, Type};
use std::sync::Arc;

/// The modifiers of one instruction that no decoder has taken yet, in order.
pub struct Modifiers {
    words: Vec<Arc<str>>,
    spelling: String,
    line: u32,
}

impl Modifiers {
    /// All the words after the first.
    pub fn new(instruction: &Instruction) -> Self {
        Self {
            words: instruction.opcode.iter().skip(1).cloned().collect(),
            spelling: instruction.opcode.join("."),
            line: instruction.line,
        }
    }

    /// The words that are left.
    pub fn rest(&self) -> impl Iterator<Item = &str> {
        self.words.iter().map(AsRef::as_ref)
    }

    /// Takes this word, wherever it stands; whether it was there.
    pub fn take(&mut self, word: &str) -> bool {
        let place = self.words.iter().position(|other| &**other == word);
        if let Some(place) = place {
            self.words.remove(place);
        }
        place.is_some()
    }

    /// Takes the first word that the function knows, wherever it stands.
    pub fn take_with<T>(&mut self, known: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (place, value) = self.words.iter().enumerate().find_map(|(place, word)| Some((place, known(word)?)))?;
        self.words.remove(place);
        Some(value)
    }

    /// Takes the first type.
    ///
    /// # Errors
    /// There is none left.
    pub fn take_type(&mut self) -> Result<Type, Error> {
        self.take_with(Type::parse).ok_or_else(|| self.error("needs a type"))
    }

    /// Takes the first rounding modifier.
    pub fn take_rounding(&mut self) -> Option<Rounding> {
        self.take_with(Rounding::parse)
    }

    /// Takes the first state space; `Generic` if there is none.
    pub fn take_space(&mut self) -> Space {
        self.take_with(Space::parse).unwrap_or(Space::Generic)
    }

    /// The last type among the words that are left, which is the one that says what kind of arithmetic it is.
    pub fn last_type(&self) -> Option<Type> {
        self.words.iter().rev().find_map(|word| Type::parse(word))
    }

    /// Ends the decoding.
    ///
    /// # Errors
    /// A word is left over: an unknown instruction is never half executed.
    pub fn finish(&self) -> Result<(), Error> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(self.error(&format!("modifier .{word} is not supported"))),
        }
    }

    /// An error that names the instruction.
    pub fn error(&self, message: &str) -> Error {
        Error::new(self.line, format!("{}: {message}", self.spelling))
    }
}
