//! A place in the tokens, and the questions that every part of the grammar asks there.

use super::super::lexer::{Placed, Token};
use super::super::syntax::Error;
use super::literals::{self, Literal};
use std::collections::HashMap;
use std::sync::Arc;

/// A place in the tokens of a text.
pub(super) struct Cursor<'tokens, 'text> {
    tokens: &'tokens [Placed<'text>],
    place: usize,
    /// The words of opcodes: a few hundred, written many thousand times.
    words: HashMap<&'text str, Arc<str>>,
}

impl<'tokens, 'text> Cursor<'tokens, 'text> {
    pub(super) fn new(tokens: &'tokens [Placed<'text>]) -> Self {
        Self { tokens, place: 0, words: HashMap::new() }
    }

    /// The token some places ahead; the end repeats itself.
    pub(super) fn ahead(&self, distance: usize) -> Token<'text> {
        self.tokens.get(self.place + distance).map_or(Token::End, |placed| placed.token)
    }

    /// The next token, left where it is.
    pub(super) fn peek(&self) -> Token<'text> {
        self.ahead(0)
    }

    /// The next token, taken.
    pub(super) fn next(&mut self) -> Token<'text> {
        let token = self.peek();
        self.place += 1;
        token
    }

    /// The line of the next token.
    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.place).or(self.tokens.last()).map_or(0, |placed| placed.line)
    }

    /// An error about the next token's line.
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::new(self.line(), message)
    }

    /// The error that the next token is not what has to come here.
    pub(super) fn expected(&self, what: &str) -> Error {
        self.error(format!("expected {what}, found {}", self.peek()))
    }

    /// Takes the token if it comes next.
    fn takes_token(&mut self, token: Token) -> bool {
        let found = self.peek() == token;
        self.place += usize::from(found);
        found
    }

    /// Takes the mark if it comes next.
    pub(super) fn takes(&mut self, mark: char) -> bool {
        self.takes_token(Token::Mark(mark))
    }

    /// Takes the directive if it comes next.
    pub(super) fn takes_directive(&mut self, name: &str) -> bool {
        self.takes_token(Token::Directive(name))
    }

    pub(super) fn mark(&mut self, mark: char) -> Result<(), Error> {
        if self.takes(mark) { Ok(()) } else { Err(self.expected(&format!("'{mark}'"))) }
    }

    /// A name; `what` says of what.
    pub(super) fn word(&mut self, what: &str) -> Result<&'text str, Error> {
        let Token::Word(word) = self.peek() else { return Err(self.expected(what)) };
        self.place += 1;
        Ok(word)
    }

    /// What stands between quotes.
    fn text(&mut self, what: &str) -> Result<&'text str, Error> {
        let Token::Text(text) = self.peek() else { return Err(self.expected(what)) };
        self.place += 1;
        Ok(text)
    }

    /// An unsigned integer literal.
    pub(super) fn number(&mut self, what: &str) -> Result<u64, Error> {
        if let Token::Number(text) = self.peek()
            && let Ok(Literal::Integer(bits)) = literals::literal(text)
        {
            self.place += 1;
            return Ok(bits);
        }
        Err(self.expected(what))
    }

    /// An unsigned integer literal of at most 32 bits.
    pub(super) fn number32(&mut self, what: &str) -> Result<u32, Error> {
        let place = self.place;
        u32::try_from(self.number(what)?).map_err(|_| {
            self.place = place;
            self.expected(&format!("{what} of at most 32 bits"))
        })
    }

    /// Any literal, with its sign.
    pub(super) fn literal(&mut self, what: &str) -> Result<Literal, Error> {
        let negative = self.takes('-');
        let Token::Number(text) = self.peek() else { return Err(self.expected(what)) };
        let literal = literals::literal(text).map_err(|why| self.error(why))?;
        self.place += 1;
        Ok(if negative { literal.negated() } else { literal })
    }

    /// `+n`, `-n` or `+-n`, any number of them; 0 if there is none.
    pub(super) fn offset(&mut self) -> Result<i64, Error> {
        let mut sum = 0_i64;
        loop {
            let negative = match self.peek() {
                Token::Mark('+') => false,
                Token::Mark('-') => true,
                _ => return Ok(sum),
            };
            self.place += 1;
            let Literal::Integer(bits) = self.literal("an integer")? else {
                return Err(self.error("expected an integer, found a floating-point number"));
            };
            let step = bits as i64;
            sum = if negative { sum.wrapping_sub(step) } else { sum.wrapping_add(step) };
        }
    }

    /// Skips to after the mark that closes the next one, which has to be its opening partner.
    pub(super) fn skip_balanced(&mut self, open: char, close: char) -> Result<(), Error> {
        self.mark(open)?;
        let mut depth = 1_usize;
        while depth > 0 {
            match self.peek() {
                Token::End => return Err(self.expected(&format!("'{close}'"))),
                Token::Mark(mark) if mark == open => depth += 1,
                Token::Mark(mark) if mark == close => depth -= 1,
                _ => {}
            }
            self.place += 1;
        }
        Ok(())
    }

    /// Skips to after the next `;`.
    pub(super) fn skip_statement(&mut self) -> Result<(), Error> {
        while !self.takes(';') {
            if matches!(self.peek(), Token::Mark('{' | '}') | Token::End) {
                return Err(self.expected("';'"));
            }
            self.place += 1;
        }
        Ok(())
    }

    /// Skips `.loc` and `.file`, which have no `;`, and `.pragma`, which has one. Says whether there was one.
    pub(super) fn skip_annotation(&mut self) -> Result<bool, Error> {
        match self.peek() {
            Token::Directive("loc") => self.skip_location()?,
            Token::Directive("file") => {
                self.place += 1;
                self.number("a file's number")?;
                self.text("a file's name")?;
                while self.takes(',') {
                    self.number("a time or a size")?;
                }
            }
            Token::Directive("pragma") => {
                self.place += 1;
                self.text("a pragma's text")?;
                while self.takes(',') {
                    self.text("a pragma's text")?;
                }
                self.mark(';')?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `.loc 1 2 3, function_name $L__info_string0, inlined_at 1 2 3`.
    fn skip_location(&mut self) -> Result<(), Error> {
        const PLACE: [&str; 3] = ["a file's number", "a line", "a column"];
        self.place += 1;
        for what in PLACE {
            self.number(what)?;
        }
        while self.takes(',') {
            match self.peek() {
                Token::Word("function_name") => {
                    self.place += 1;
                    if matches!(self.peek(), Token::Directive(_) | Token::Word(_)) {
                        self.place += 1;
                    } else {
                        return Err(self.expected("a label"));
                    }
                    self.offset()?;
                }
                Token::Word("inlined_at") => {
                    self.place += 1;
                    for what in PLACE {
                        self.number(what)?;
                    }
                }
                _ => return Err(self.expected("'function_name' or 'inlined_at'")),
            }
        }
        Ok(())
    }

    /// A word of an opcode.
    pub(super) fn interned(&mut self, word: &'text str) -> Arc<str> {
        Arc::clone(self.words.entry(word).or_insert_with(|| Arc::from(word)))
    }
}
