//! `printf` on the device: the format's conversions, one by one, by the host's own `snprintf`.
//!
//! Arguments lie one after the other in a buffer, as C promotes them: `int` and what is shorter in 4 bytes, `long`,
//! pointers and `double` in 8, each at a multiple of its size.

use std::ffi::{CString, c_char};

/// The most characters of one conversion; wider ones stay as they are written.
const WIDEST: i64 = 1 << 16;

/// What the arguments are read with.
pub(super) trait Source {
    /// Why a read was refused.
    type Refusal;

    /// Bytes of the argument buffer.
    ///
    /// # Errors
    /// They cannot be read.
    fn argument(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Self::Refusal>;

    /// The text at an address, without its NUL.
    ///
    /// # Errors
    /// It cannot be read.
    fn text(&mut self, address: u64) -> Result<Vec<u8>, Self::Refusal>;
}

/// The arguments that are left.
struct Arguments<'a, S> {
    source: &'a mut S,
    offset: u64,
    taken: i32,
}

impl<S: Source> Arguments<'_, S> {
    /// The next argument, of 4 or 8 bytes, sign-extended.
    fn next(&mut self, bytes: u64) -> Result<i64, S::Refusal> {
        self.offset = self.offset.next_multiple_of(bytes);
        let mut word = [0; 8];
        self.source.argument(self.offset, &mut word[..bytes as usize])?;
        self.offset += bytes;
        self.taken += 1;
        let value = i64::from_le_bytes(word);
        Ok(if bytes == 4 { i64::from(value as i32) } else { value })
    }
}

/// What stands between `%` and the conversion's letter, read.
struct Conversion<'a> {
    /// `-+ #0`.
    flags: &'a [u8],
    width: Number,
    precision: Number,
    /// `hh`, `h`, `l`, `ll`, ...
    length: &'a [u8],
    letter: u8,
    /// Bytes of all of it.
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Number {
    None,
    Given(i64),
    /// `*`
    Argument,
}

impl<'a> Conversion<'a> {
    /// Reads what follows a `%`; `None` when no letter comes.
    fn read(text: &'a [u8]) -> Option<Self> {
        let mut at = 0;
        let run = |from: usize, accepted: &[u8]| text[from..].iter().take_while(|c| accepted.contains(c)).count();
        let number = |at: &mut usize| {
            if text.get(*at) == Some(&b'*') {
                *at += 1;
                return Number::Argument;
            }
            let digits = run(*at, b"0123456789");
            let value = text[*at..*at + digits].iter();
            *at += digits;
            let value = value.fold(0_i64, |sum, c| sum.saturating_mul(10).saturating_add(i64::from(c - b'0')));
            if digits == 0 { Number::None } else { Number::Given(value) }
        };
        let flags = &text[..run(0, b"-+ #0")];
        at += flags.len();
        let width = number(&mut at);
        let mut precision = Number::None;
        if text.get(at) == Some(&b'.') {
            at += 1;
            precision = match number(&mut at) {
                Number::None => Number::Given(0),
                given => given,
            };
        }
        let length = &text[at..at + run(at, b"hlLqjzt")];
        at += length.len();
        Some(Self { flags, width, precision, length, letter: *text.get(at)?, bytes: at + 1 })
    }
}

/// Formats; also how many arguments it took, which is what the device's `printf` returns.
///
/// # Errors
/// An argument, or a text that one of them points to, cannot be read.
pub(super) fn format<S: Source>(format: &[u8], source: &mut S) -> Result<(Vec<u8>, i32), S::Refusal> {
    let mut arguments = Arguments { source, offset: 0, taken: 0 };
    let mut printed = Vec::new();
    let mut rest = format;
    while let Some(place) = rest.iter().position(|c| *c == b'%') {
        printed.extend_from_slice(&rest[..place]);
        let Some(conversion) = Conversion::read(&rest[place + 1..]) else {
            rest = &rest[place..];
            break;
        };
        let written = &rest[place..=place + conversion.bytes];
        rest = &rest[place + 1 + conversion.bytes..];
        match one(&conversion, &mut arguments)? {
            Some(text) => printed.extend(text),
            // Not a conversion that the device knows: it stays.
            None => printed.extend_from_slice(written),
        }
    }
    printed.extend_from_slice(rest);
    Ok((printed, arguments.taken))
}

/// One conversion's text.
fn one<S: Source>(conversion: &Conversion, arguments: &mut Arguments<S>) -> Result<Option<Vec<u8>>, S::Refusal> {
    if conversion.letter == b'%' {
        return Ok(Some(b"%".to_vec()));
    }
    if !b"diouxXcspfFeEgGaA".contains(&conversion.letter) {
        return Ok(None);
    }
    let mut specification = vec![b'%'];
    specification.extend_from_slice(conversion.flags);
    for (number, before) in [(conversion.width, ""), (conversion.precision, ".")] {
        let value = match number {
            Number::None => continue,
            Number::Given(value) => value,
            Number::Argument => arguments.next(4)?,
        };
        if !(-WIDEST..=WIDEST).contains(&value) {
            return Ok(None);
        }
        // A negative precision is as none; a negative width is the flag `-` and the width.
        if before.is_empty() || value >= 0 {
            specification.extend(format!("{before}{value}").bytes());
        }
    }
    let long = matches!(conversion.length, b"l" | b"ll" | b"q" | b"j" | b"z" | b"t");
    let text = match conversion.letter {
        b's' => {
            let address = arguments.next(8)? as u64;
            let text = if address == 0 { b"(null)".to_vec() } else { arguments.source.text(address)? };
            let text = CString::new(text).unwrap_or_default();
            print(specification, b"s", Value::Text(&text))
        }
        b'p' => print(specification, b"p", Value::Integer(arguments.next(8)?)),
        b'c' => print(specification, b"c", Value::Integer(arguments.next(4)?)),
        letter @ (b'd' | b'i' | b'o' | b'u' | b'x' | b'X') => {
            let value = arguments.next(if long { 8 } else { 4 })?;
            let signed = matches!(letter, b'd' | b'i');
            let value = match (conversion.length, signed) {
                (b"hh", true) => i64::from(value as i8),
                (b"hh", false) => i64::from(value as u8),
                (b"h", true) => i64::from(value as i16),
                (b"h", false) => i64::from(value as u16),
                (_, false) if !long => i64::from(value as u32),
                _ => value,
            };
            print(specification, &[b'l', b'l', letter], Value::Integer(value))
        }
        letter => {
            let value = f64::from_bits(arguments.next(8)? as u64);
            print(specification, &[letter], Value::Float(value))
        }
    };
    Ok(Some(text))
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Integer(i64),
    Float(f64),
    Text(&'a CString),
}

/// The host's `snprintf` with one argument.
fn print(mut specification: Vec<u8>, end: &[u8], value: Value) -> Vec<u8> {
    specification.extend_from_slice(end);
    let specification = CString::new(specification).unwrap_or_default();
    let into = |buffer: &mut [u8]| {
        let (start, room, form) = (buffer.as_mut_ptr().cast::<c_char>(), buffer.len(), specification.as_ptr());
        // SAFETY: the buffer has `room` bytes, the format ends with NUL and has one conversion, made by `one` for a
        // value of this type: `ll` integers and `c` (which takes an `int`, passed alike), `p`, a `double`, a text.
        let length = unsafe {
            match value {
                Value::Integer(value) if end == b"c" => libc::snprintf(start, room, form, value as libc::c_int),
                Value::Integer(value) => libc::snprintf(start, room, form, value),
                Value::Float(value) => libc::snprintf(start, room, form, value),
                Value::Text(text) => libc::snprintf(start, room, form, text.as_ptr()),
            }
        };
        usize::try_from(length).unwrap_or(0)
    };
    let mut buffer = vec![0; 256];
    let length = into(&mut buffer);
    if length >= buffer.len() {
        buffer.resize(length + 1, 0);
        into(&mut buffer);
    }
    buffer.truncate(length);
    buffer
}

#[cfg(test)]
mod tests {
    use super::{Source, format};

    /// Arguments of 8 bytes each, or two of 4; texts by their number.
    struct Words(Vec<u8>, Vec<&'static str>);

    impl Source for Words {
        type Refusal = String;

        fn argument(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
            let place = self.0.get(offset as usize..offset as usize + bytes.len()).ok_or("no more arguments")?;
            bytes.copy_from_slice(place);
            Ok(())
        }

        fn text(&mut self, address: u64) -> Result<Vec<u8>, String> {
            Ok(self.1[address as usize - 1].as_bytes().to_vec())
        }
    }

    fn printed(form: &str, words: &[u64]) -> (String, i32) {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (text, taken) = format(form.as_bytes(), &mut Words(bytes, vec!["one", "two"])).expect("enough arguments");
        (String::from_utf8(text).expect("text"), taken)
    }

    #[test]
    fn conversions() {
        let two = |low: i32, high: i32| u64::from(low as u32) | u64::from(high as u32) << 32;
        for (form, words, text, taken) in [
            ("plain\n", &[][..], "plain\n", 0),
            ("100%% %d", &[7], "100% 7", 1),
            ("%d %u", &[two(-1, -1)], "-1 4294967295", 2),
            ("%5d|%-5d|%05d", &[two(42, 42), 42], "   42|42   |00042", 3),
            ("%*d|%-*d|", &[two(4, 1), two(3, 2)], "   1|2  |", 4),
            ("%.*f", &[2, 1.005_f64.to_bits()], "1.00", 2),
            ("%d %lld %d", &[1, (-5_i64) as u64, 3], "1 -5 3", 3),
            ("%f %e %g %a", &[1.5_f64.to_bits(); 4], "1.500000 1.500000e+00 1.5 0x1.8p+0", 4),
            ("%s and %s.", &[1, 2], "one and two.", 2),
            ("%5s|%-5s|%.2s", &[1, 2, 1], "  one|two  |on", 3),
            ("%s", &[0], "(null)", 1),
            ("%c%c", &[two(72, 105)], "Hi", 2),
            ("%x %X %#o", &[two(255, 255), 8], "ff FF 010", 3),
            ("%hhd %hu", &[two(0x1ff, 0x1_0002)], "-1 2", 2),
            ("%p", &[0x1000], "0x1000", 1),
            ("%zu %ld", &[1 << 40, 2], "1099511627776 2", 2),
            ("%y %", &[], "%y %", 0),
            ("%99999999d", &[1], "%99999999d", 0),
        ] {
            assert_eq!(printed(form, words), (text.to_owned(), taken), "{form}");
        }
    }

    #[test]
    fn long_results_are_complete() {
        let (text, _) = printed("%1000d", &[1]);
        assert_eq!((text.len(), text.trim()), (1000, "1"));
    }

    #[test]
    fn a_missing_argument_is_the_sources_refusal() {
        let refused = format(b"%d", &mut Words(Vec::new(), Vec::new()));
        assert_eq!(refused.err().as_deref(), Some("no more arguments"));
    }
}
