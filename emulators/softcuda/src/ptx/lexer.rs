//! PTX text to tokens. The text is borrowed, so a token costs no memory of its own.

use super::syntax::Error;

/// A token without its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'text> {
    /// A name or the first word of an opcode: letters, digits, `_`, `$`, and `%` in front.
    Word(&'text str),
    /// `.name` without its dot; a `::` stays inside.
    Directive(&'text str),
    /// A number as written: it begins with a digit.
    Number(&'text str),
    /// What stands between double quotes.
    Text(&'text str),
    /// Any other character of PTX.
    Mark(char),
    /// The text is over.
    End,
}

impl std::fmt::Display for Token<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(text) | Self::Number(text) => write!(formatter, "'{text:.60}'"),
            Self::Directive(text) => write!(formatter, "'.{text:.60}'"),
            Self::Text(text) => write!(formatter, "the text \"{text:.60}\""),
            Self::Mark(mark) => write!(formatter, "'{mark}'"),
            Self::End => formatter.write_str("the end of the text"),
        }
    }
}

/// A token and the line where it begins, from 1.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'text> {
    /// What it is.
    pub token: Token<'text>,
    /// The line, from 1.
    pub line: u32,
}

/// The marks that PTX has outside of words and numbers.
const MARKS: &[u8] = b",;:()[]{}<>@!|=+-*/&^~?";

/// Splits a text into tokens; comments are dropped, and the last token is [`Token::End`].
///
/// # Errors
/// A character that PTX does not have, or a comment or quoted text without an end.
pub fn tokens(text: &str) -> Result<Vec<Placed<'_>>, Error> {
    // nvcc's PTX has about one token for six bytes.
    let mut found = Vec::with_capacity(text.len() / 6 + 1);
    let mut lexer = Lexer { text, place: 0, line: 1 };
    loop {
        lexer.skip_blank()?;
        let line = lexer.line;
        let token = lexer.next()?;
        found.push(Placed { token, line });
        if token == Token::End {
            return Ok(found);
        }
    }
}

struct Lexer<'text> {
    text: &'text str,
    /// The next byte; always a character's first byte.
    place: usize,
    line: u32,
}

fn continues_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

impl<'text> Lexer<'text> {
    fn byte(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.place + ahead).copied().unwrap_or(0)
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::new(self.line, message)
    }

    /// Goes over what can stand in a word; gives the new place.
    fn skip_word(&mut self) -> usize {
        let rest = &self.text.as_bytes()[self.place..];
        self.place += rest.iter().position(|byte| !continues_word(*byte)).unwrap_or(rest.len());
        self.place
    }

    fn skip_blank(&mut self) -> Result<(), Error> {
        loop {
            match (self.byte(0), self.byte(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.place += 1;
                }
                (b' ' | b'\t' | b'\r' | 0x0b | 0x0c, _) => self.place += 1,
                (b'/', b'/') => {
                    let rest = &self.text[self.place..];
                    self.place += rest.find('\n').unwrap_or(rest.len());
                }
                (b'/', b'*') => {
                    let rest = &self.text[self.place + 2..];
                    let Some(end) = rest.find("*/") else {
                        return Err(self.error("expected '*/' after '/*', found the end of the text"));
                    };
                    self.line += rest[..end].bytes().filter(|byte| *byte == b'\n').count() as u32;
                    self.place += end + 4;
                }
                _ => return Ok(()),
            }
        }
    }

    fn next(&mut self) -> Result<Token<'text>, Error> {
        let start = self.place;
        let Some(first) = self.text[start..].chars().next() else { return Ok(Token::End) };
        match first {
            'a'..='z' | 'A'..='Z' | '_' | '$' | '%' => {
                self.place += 1;
                let end = self.skip_word();
                // Alone it is the remainder of constant expressions.
                Ok(if first == '%' && end == start + 1 {
                    Token::Mark('%')
                } else {
                    Token::Word(&self.text[start..end])
                })
            }
            '0'..='9' => Ok(self.number()),
            '.' => self.directive(),
            '"' => self.quoted(),
            mark if u8::try_from(mark).is_ok_and(|byte| MARKS.contains(&byte)) => {
                self.place += 1;
                Ok(Token::Mark(mark))
            }
            other => Err(self.error(format!("expected PTX, found the character {other:?}"))),
        }
    }

    fn directive(&mut self) -> Result<Token<'text>, Error> {
        self.place += 1;
        let start = self.place;
        let mut end = self.skip_word();
        if end == start {
            return Err(self.error("expected a word after '.'"));
        }
        while self.byte(0) == b':' && self.byte(1) == b':' && continues_word(self.byte(2)) {
            self.place += 2;
            end = self.skip_word();
        }
        Ok(Token::Directive(&self.text[start..end]))
    }

    /// A number with all letters and digits that touch it; whether they make sense is the parser's question.
    fn number(&mut self) -> Token<'text> {
        let start = self.place;
        self.skip_word();
        let decimal = self.text[start..self.place].bytes().all(|byte| byte.is_ascii_digit());
        if decimal && self.byte(0) == b'.' && self.byte(1).is_ascii_digit() {
            self.place += 1;
            self.skip_word();
        }
        // An exponent's sign: `1e+5`; `0x1e+5` is a sum.
        let number = &self.text.as_bytes()[start..self.place];
        let prefixed = number.len() > 1 && number[0] == b'0' && number[1].is_ascii_alphabetic();
        if !prefixed
            && matches!(number.last(), Some(b'e' | b'E'))
            && matches!(self.byte(0), b'+' | b'-')
            && self.byte(1).is_ascii_digit()
        {
            self.place += 1;
            self.skip_word();
        }
        Token::Number(&self.text[start..self.place])
    }

    fn quoted(&mut self) -> Result<Token<'text>, Error> {
        self.place += 1;
        let start = self.place;
        let mut escaped = false;
        for (offset, byte) in self.text.as_bytes()[start..].iter().enumerate() {
            match byte {
                b'\n' => break,
                b'"' if !escaped => {
                    self.place = start + offset + 1;
                    return Ok(Token::Text(&self.text[start..start + offset]));
                }
                _ => escaped = *byte == b'\\' && !escaped,
            }
        }
        Err(self.error("expected '\"' at the end of a text, found the end of the line"))
    }
}
