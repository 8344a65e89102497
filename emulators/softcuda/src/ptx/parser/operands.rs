//! Operands of instructions.

use super::super::lexer::Token;
use super::super::syntax::{Error, Operand};
use super::cursor::Cursor;
use super::literals::Literal;

/// The operands up to the `;`, which is taken.
pub(super) fn operands(cursor: &mut Cursor) -> Result<Vec<Operand>, Error> {
    let mut found = Vec::new();
    if cursor.takes(';') {
        return Ok(found);
    }
    loop {
        operand(cursor, &mut found)?;
        if cursor.takes(';') {
            return Ok(found);
        }
        if !cursor.takes(',') {
            return Err(unexpected(cursor, "',' or ';'"));
        }
    }
}

/// The error that something else has to come here; constant expressions have a message of their own.
fn unexpected(cursor: &Cursor, wanted: &str) -> Error {
    match cursor.peek() {
        Token::Mark('+' | '-' | '*' | '/' | '%' | '&' | '^' | '<' | '>' | '?' | '~' | '=') => {
            cursor.error(format!("expected {wanted}, found {}: constant expressions are not supported", cursor.peek()))
        }
        _ => cursor.expected(wanted),
    }
}

/// Reads one operand. `[base, {a, b}]` of tensor copies gives several: the address, then what follows it in the
/// brackets.
fn operand(cursor: &mut Cursor, found: &mut Vec<Operand>) -> Result<(), Error> {
    let read = match cursor.peek() {
        Token::Mark('[') => return address(cursor, found),
        Token::Mark('{') => Operand::Vector(enclosed(cursor, '{', '}')?),
        Token::Mark('(') => Operand::List(enclosed(cursor, '(', ')')?),
        _ => simple(cursor)?,
    };
    found.push(if cursor.takes('|') { Operand::Pair(Box::new(read), Box::new(simple(cursor)?)) } else { read });
    Ok(())
}

/// A name, a number or `_`: what vectors and lists have inside.
fn simple(cursor: &mut Cursor) -> Result<Operand, Error> {
    match cursor.peek() {
        Token::Mark('!') => {
            cursor.next();
            Ok(Operand::Not(cursor.word("a predicate after '!'")?.to_owned()))
        }
        Token::Mark('-') | Token::Number(_) => Ok(match cursor.literal("a number after '-'")? {
            Literal::Integer(bits) => Operand::Integer(bits as i64),
            Literal::Single(bits) => Operand::Single(bits),
            Literal::Double(bits) => Operand::Double(bits),
        }),
        Token::Word("_") => {
            cursor.next();
            Ok(Operand::Sink)
        }
        Token::Word(_) => named(cursor),
        _ => Err(unexpected(cursor, "an operand")),
    }
}

/// `name`, `%tid.x`, `name+8`.
fn named(cursor: &mut Cursor) -> Result<Operand, Error> {
    let mut name = cursor.word("a name")?.to_owned();
    match cursor.peek() {
        Token::Directive(component) => {
            cursor.next();
            name.push('.');
            name.push_str(component);
        }
        Token::Mark('+' | '-') => {
            let offset = cursor.offset()?;
            return Ok(Operand::Offset(name, offset));
        }
        Token::Mark('[') => return Err(cursor.error(format!("{name:.60}[...]: indexed variables are not supported"))),
        _ => {}
    }
    Ok(Operand::Name(name))
}

fn enclosed(cursor: &mut Cursor, open: char, close: char) -> Result<Vec<Operand>, Error> {
    cursor.mark(open)?;
    let mut elements = Vec::new();
    if cursor.takes(close) {
        return Ok(elements);
    }
    loop {
        elements.push(simple(cursor)?);
        if cursor.takes(close) {
            return Ok(elements);
        }
        if !cursor.takes(',') {
            return Err(unexpected(cursor, &format!("',' or '{close}'")));
        }
    }
}

/// `[base+offset]`, `[number]`, and `[base, a, {b, c}]`, whose further parts become operands after the address.
fn address(cursor: &mut Cursor, found: &mut Vec<Operand>) -> Result<(), Error> {
    cursor.mark('[')?;
    let (base, start) = match cursor.peek() {
        Token::Word(name) => {
            cursor.next();
            (Some(name.to_owned()), 0)
        }
        Token::Number(_) | Token::Mark('-') => match cursor.literal("an address")? {
            Literal::Integer(bits) => (None, bits as i64),
            _ => return Err(cursor.error("expected an address, found a floating-point number")),
        },
        _ => return Err(cursor.expected("a register, variable or number in '[ ]'")),
    };
    let offset = start.wrapping_add(cursor.offset()?);
    found.push(Operand::Address { base, offset });
    while cursor.takes(',') {
        found.push(match cursor.peek() {
            Token::Mark('{') => Operand::Vector(enclosed(cursor, '{', '}')?),
            _ => simple(cursor)?,
        });
    }
    if !cursor.takes(']') {
        return Err(unexpected(cursor, "']'"));
    }
    // `[a].unified` only promises something about the address.
    cursor.takes_directive("unified");
    Ok(())
}
