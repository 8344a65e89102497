//! Initial values of variables.

use super::super::lexer::Token;
use super::super::syntax::{Error, Initial};
use super::super::types::Type;
use super::cursor::Cursor;

/// Reads initial values: `5`, `{1, 2}`, `{{1, 2}, {3}}`, `{generic(name)+8}`.
pub(super) struct Initialiser<'extents> {
    ty: Type,
    extents: &'extents [Option<u64>],
    values: Vec<Initial>,
    /// Zeros put in for what inner braces left out.
    padding: u64,
}

impl<'extents> Initialiser<'extents> {
    /// For a variable of this type and these extents, outermost first.
    pub(super) fn new(ty: Type, extents: &'extents [Option<u64>]) -> Self {
        Self { ty, extents, values: Vec::new(), padding: 0 }
    }

    /// Reads what stands after `=`.
    pub(super) fn read(mut self, cursor: &mut Cursor) -> Result<Vec<Initial>, Error> {
        self.read_at(cursor, 0)?;
        Ok(self.values)
    }

    /// Reads a value or braces at this depth, which the extents limit.
    fn read_at(&mut self, cursor: &mut Cursor, depth: usize) -> Result<(), Error> {
        if !cursor.takes('{') {
            let value = self.value(cursor)?;
            self.values.push(value);
            return Ok(());
        }
        if depth >= self.extents.len().max(1) {
            return Err(cursor.error("the initial values have more braces within each other than the array extents"));
        }
        let start = self.values.len() as u64;
        if !cursor.takes('}') {
            loop {
                self.read_at(cursor, depth + 1)?;
                if cursor.takes('}') {
                    break;
                }
                if !cursor.takes(',') {
                    return Err(cursor.expected("',' or '}'"));
                }
            }
        }
        if depth > 0 { self.pad(cursor, start, depth) } else { Ok(()) }
    }

    /// Fills up what inner braces stand for with zeros.
    fn pad(&mut self, cursor: &Cursor, start: u64, depth: usize) -> Result<(), Error> {
        // Large enough for any table that somebody writes, and little memory.
        const MOST: u64 = 1 << 20;
        let extents = self.extents[depth..].iter();
        let whole = extents.fold(1_u64, |size, extent| size.saturating_mul(extent.unwrap_or(1)));
        let written = self.values.len() as u64 - start;
        let Some(missing) = whole.checked_sub(written) else {
            return Err(cursor.error(format!("{written} initial values between braces, expected at most {whole}")));
        };
        self.padding = self.padding.saturating_add(missing);
        if self.padding > MOST {
            return Err(cursor.error(format!("more than {MOST} initial values are left out between inner braces")));
        }
        self.values.extend((0..missing).map(|_| Initial::Bits(0)));
        Ok(())
    }

    fn value(&self, cursor: &mut Cursor) -> Result<Initial, Error> {
        match cursor.peek() {
            Token::Word("generic") if cursor.ahead(1) == Token::Mark('(') => {
                cursor.next();
                cursor.next();
                let name = cursor.word("a variable's name")?.to_owned();
                let inside = cursor.offset()?;
                cursor.mark(')')?;
                Ok(Initial::Address { name, offset: inside.wrapping_add(cursor.offset()?) })
            }
            Token::Word(name) => {
                cursor.next();
                Ok(Initial::Address { name: name.to_owned(), offset: cursor.offset()? })
            }
            Token::Number(_) | Token::Mark('-') => {
                let written = if cursor.peek() == Token::Mark('-') { cursor.ahead(1) } else { cursor.peek() };
                let literal = cursor.literal("a number")?;
                if cursor.peek() == Token::Mark('(') {
                    return Err(cursor.error("mask(name): parts of addresses as initial values are not supported"));
                }
                let bits = literal.bits_as(self.ty);
                bits.map(Initial::Bits).ok_or_else(|| {
                    cursor.error(format!("expected initial values of type .{}, found {written}", self.ty.name()))
                })
            }
            _ => Err(cursor.expected("an initial value")),
        }
    }
}
