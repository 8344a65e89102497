//! Kernels and device functions.

use super::super::lexer::Token;
use super::super::syntax::{Error, Function};
use super::cursor::Cursor;
use super::{statements, variables};

/// `.entry name (...) {...}` or `.func (...) name (...) {...}`, from the directive on.
pub(super) fn function(cursor: &mut Cursor) -> Result<Function, Error> {
    let is_entry = cursor.next() == Token::Directive("entry");
    while cursor.takes_directive("attribute") {
        cursor.skip_balanced('(', ')')?;
    }
    let mut returns = Vec::new();
    if !is_entry && cursor.peek() == Token::Mark('(') {
        returns = variables::parameters(cursor)?;
    }
    let line = cursor.line();
    let name = cursor.word("a function's name")?.to_owned();
    let mut parameters = Vec::new();
    if cursor.peek() == Token::Mark('(') {
        parameters = variables::parameters(cursor)?;
    }
    let mut function = Function {
        name,
        is_entry,
        returns,
        parameters,
        max_threads: None,
        required_threads: None,
        required_cluster: None,
        directives: Vec::new(),
        body: None,
        line,
    };
    while let Token::Directive(word) = cursor.peek() {
        if !cursor.skip_annotation()? {
            performance_directive(cursor, word, &mut function)?;
        }
    }
    if cursor.takes(';') {
        return Ok(function);
    }
    if !cursor.takes('{') {
        return Err(cursor.expected("'{' or ';' after a function's head"));
    }
    function.body = Some(statements::until(cursor, Token::Mark('}'), 0)?);
    Ok(function)
}

/// The directives between the parameters and the body.
fn performance_directive(cursor: &mut Cursor, word: &str, function: &mut Function) -> Result<(), Error> {
    function.directives.push((word.to_owned(), cursor.line()));
    let slot = match word {
        "maxntid" => &mut function.max_threads,
        "reqntid" => &mut function.required_threads,
        "reqnctapercluster" => &mut function.required_cluster,
        // These bound what the compiler may do, not what the program means.
        "minnctapersm" | "maxnctapersm" | "maxnreg" | "maxclusterrank" | "abi_preserve" | "abi_preserve_control" => {
            cursor.next();
            cursor.number(&format!("a number after .{word}"))?;
            return Ok(());
        }
        "noreturn" | "explicitcluster" | "blocksareclusters" => {
            cursor.next();
            return Ok(());
        }
        _ => return Err(cursor.expected("a directive of a function, '{' or ';'")),
    };
    cursor.next();
    *slot = Some(extents(cursor)?);
    Ok(())
}

/// `x`, `x, y` or `x, y, z`; what is not there is 1.
fn extents(cursor: &mut Cursor) -> Result<[u32; 3], Error> {
    let mut found = [1; 3];
    for (axis, extent) in found.iter_mut().enumerate() {
        if axis > 0 && !cursor.takes(',') {
            break;
        }
        *extent = cursor.number32("an extent")?;
    }
    Ok(found)
}
