//! Bodies: declarations, labels, scopes, instructions.

use super::super::lexer::Token;
use super::super::syntax::{Error, Guard, Instruction, Statement};
use super::super::types::{Space, Type};
use super::cursor::Cursor;
use super::{operands, variables};

/// Scopes in scopes: nvcc nests two or three.
const DEEPEST: u32 = 100;

/// The statements before a token, which is taken.
pub(super) fn until(cursor: &mut Cursor, end: Token, depth: u32) -> Result<Vec<Statement>, Error> {
    if depth > DEEPEST {
        return Err(cursor.error(format!("more than {DEEPEST} scopes within each other")));
    }
    let mut found = Vec::new();
    loop {
        let token = cursor.peek();
        if token == end {
            cursor.next();
            return Ok(found);
        }
        match token {
            Token::Mark('{') => {
                cursor.next();
                found.push(Statement::Scope(until(cursor, Token::Mark('}'), depth + 1)?));
            }
            // An empty statement.
            Token::Mark(';') => {
                cursor.next();
            }
            Token::Word(name) if cursor.ahead(1) == Token::Mark(':') => {
                cursor.next();
                cursor.next();
                found.push(labelled(cursor, name)?);
            }
            Token::Word(_) | Token::Mark('@') => found.push(instruction(cursor)?),
            Token::Directive(_) => directive(cursor, &mut found)?,
            _ if end == Token::End => return Err(cursor.expected("a statement")),
            _ => return Err(cursor.expected("a statement or '}'")),
        }
    }
}

/// What follows `name:`.
fn labelled(cursor: &mut Cursor, name: &str) -> Result<Statement, Error> {
    match cursor.peek() {
        Token::Directive("branchtargets") => {
            cursor.next();
            let mut targets = vec![cursor.word("a label")?.to_owned()];
            while cursor.takes(',') {
                targets.push(cursor.word("a label")?.to_owned());
            }
            cursor.mark(';')?;
            Ok(Statement::BranchTargets { name: name.to_owned(), targets })
        }
        // An indirect call finds its function by its address, whatever these promise.
        Token::Directive("callprototype" | "calltargets") => {
            cursor.skip_statement()?;
            Ok(Statement::CallPrototype)
        }
        _ => Ok(Statement::Label(name.to_owned())),
    }
}

fn instruction(cursor: &mut Cursor) -> Result<Statement, Error> {
    let mut guard = None;
    if cursor.takes('@') {
        let negated = cursor.takes('!');
        let name = cursor.word("a predicate after '@'")?.to_owned();
        guard = Some(Guard { name, negated });
    }
    let line = cursor.line();
    let first = cursor.word("an instruction")?;
    let mut opcode = vec![cursor.interned(first)];
    while let Token::Directive(word) = cursor.peek() {
        cursor.next();
        opcode.push(cursor.interned(word));
    }
    let operands = operands::operands(cursor)?;
    Ok(Statement::Instruction(Instruction { guard, opcode, operands, line }))
}

fn directive(cursor: &mut Cursor, found: &mut Vec<Statement>) -> Result<(), Error> {
    if cursor.skip_annotation()? {
        return Ok(());
    }
    let external = variables::external(cursor);
    match cursor.peek() {
        Token::Directive("reg") => registers(cursor, found),
        Token::Directive(word) if Space::parse(word).is_some() => {
            let declared = variables::variables(cursor, external)?;
            found.extend(declared.into_iter().map(Statement::Variable));
            Ok(())
        }
        _ => Err(cursor.expected("a directive of a function's body")),
    }
}

/// The most registers of `.reg .v2 .b32 %v<n>`, each of which has a declaration of its own.
const MOST_VECTORS: u32 = 1 << 12;

/// `.reg .b32 %a, %b<5>;`
fn registers(cursor: &mut Cursor, found: &mut Vec<Statement>) -> Result<(), Error> {
    cursor.next();
    let lanes = match cursor.peek() {
        Token::Directive("v2") => Some(2),
        Token::Directive("v4") => Some(4),
        _ => None,
    };
    if lanes.is_some() {
        cursor.next();
    }
    let ty = match cursor.peek() {
        Token::Directive(word) => Type::parse(word),
        _ => None,
    };
    let Some(ty) = ty else { return Err(cursor.expected("a register's type")) };
    cursor.next();
    loop {
        let name = cursor.word("a register's name")?.to_owned();
        let mut count = None;
        if cursor.takes('<') {
            count = Some(cursor.number32("the number of registers")?);
            cursor.mark('>')?;
        }
        match (lanes, count) {
            (None, count) => found.push(Statement::Register { ty, name, count }),
            (Some(lanes), None) => found.push(Statement::VectorRegister { ty, name, lanes }),
            (Some(lanes), Some(count)) if count <= MOST_VECTORS => {
                let each = |index| Statement::VectorRegister { ty, name: format!("{name}{index}"), lanes };
                found.extend((0..count).map(each));
            }
            _ => return Err(cursor.error(format!("{name:.60}: more than {MOST_VECTORS} vectors"))),
        }
        if cursor.takes(';') {
            return Ok(());
        }
        if !cursor.takes(',') {
            return Err(cursor.expected("',' or ';'"));
        }
    }
}
