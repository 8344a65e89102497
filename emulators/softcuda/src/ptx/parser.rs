//! Tokens to syntax: recursive descent, one file per part of the grammar (PTX ISA 9.0, "Syntax", "Directives").

mod alias;
mod cursor;
mod functions;
mod initial;
mod literals;
mod modules;
mod operands;
mod statements;
mod variables;

use super::lexer;
use super::syntax::{Error, Module, Statement};
use cursor::Cursor;

/// Parses a translation unit.
///
/// # Errors
/// The first thing that is not PTX, or that this parser refuses by name, with its line.
pub fn parse(text: &str) -> Result<Module, Error> {
    let tokens = lexer::tokens(text)?;
    modules::module(&mut Cursor::new(&tokens))
}

/// Parses the statements of a body, without the braces around them.
///
/// # Errors
/// As [`parse`].
pub fn parse_statements(text: &str) -> Result<Vec<Statement>, Error> {
    let tokens = lexer::tokens(text)?;
    let mut cursor = Cursor::new(&tokens);
    statements::until(&mut cursor, lexer::Token::End, 0)
}
