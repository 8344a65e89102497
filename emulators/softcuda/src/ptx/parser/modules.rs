//! The translation unit: its head, variables and functions.

use super::super::lexer::Token;
use super::super::syntax::{Error, Module};
use super::super::types::Space;
use super::alias::{self, Aliases};
use super::cursor::Cursor;
use super::{functions, variables};

/// Reads to the end of the text.
pub(super) fn module(cursor: &mut Cursor) -> Result<Module, Error> {
    let mut module = Module::default();
    head(cursor, &mut module)?;
    let mut aliases = Aliases::new();
    while cursor.peek() != Token::End {
        if cursor.skip_annotation()? {
            continue;
        }
        let external = variables::external(cursor);
        match cursor.peek() {
            Token::Directive("entry" | "func") => module.functions.push(functions::function(cursor)?),
            Token::Directive("section") => section(cursor)?,
            Token::Directive("alias") => alias::read(cursor, &mut aliases)?,
            Token::Directive("address_size") => address_size(cursor)?,
            Token::Directive(word) if Space::parse(word).is_some() => {
                module.variables.extend(variables::variables(cursor, external)?);
            }
            _ => return Err(cursor.expected("a variable, a function or a directive of a module")),
        }
    }
    alias::resolve(&mut module, &aliases);
    Ok(module)
}

/// `.version` comes first and `.target` second.
fn head(cursor: &mut Cursor, module: &mut Module) -> Result<(), Error> {
    if !cursor.takes_directive("version") {
        return Err(cursor.expected("'.version'"));
    }
    let error = cursor.expected("a version such as 9.0");
    let Token::Number(version) = cursor.next() else { return Err(error) };
    let parts = version.split_once('.').map(|(major, minor)| (major.parse(), minor.parse()));
    let Some((Ok(major), Ok(minor))) = parts else { return Err(error) };
    module.version = (major, minor);
    if !cursor.takes_directive("target") {
        return Err(cursor.expected("'.target'"));
    }
    cursor.word("a target such as sm_90")?.clone_into(&mut module.target);
    while cursor.takes(',') {
        cursor.word("an option of .target")?;
    }
    Ok(())
}

fn address_size(cursor: &mut Cursor) -> Result<(), Error> {
    cursor.next();
    match cursor.number("64")? {
        64 => Ok(()),
        other => Err(cursor.error(format!("expected addresses of 64 bits, found {other}"))),
    }
}

/// `.section .debug_info { ... }`: nothing runs from it.
fn section(cursor: &mut Cursor) -> Result<(), Error> {
    cursor.next();
    if !matches!(cursor.peek(), Token::Directive(_) | Token::Word(_)) {
        return Err(cursor.expected("a section's name"));
    }
    cursor.next();
    cursor.skip_balanced('{', '}')
}
