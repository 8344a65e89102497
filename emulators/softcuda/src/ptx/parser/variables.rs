//! Variables: at module scope, in bodies and as parameters.

use super::super::lexer::Token;
use super::super::syntax::{Error, Variable};
use super::super::types::{Space, Type};
use super::cursor::Cursor;
use super::initial::Initialiser;

/// Takes `.visible`, `.weak`, `.extern`, `.common`, if they are there, and says whether one of them was `.extern`.
pub(super) fn external(cursor: &mut Cursor) -> bool {
    let mut external = false;
    while let Token::Directive(word @ ("visible" | "weak" | "extern" | "common")) = cursor.peek() {
        external |= word == "extern";
        cursor.next();
    }
    external
}

/// What a declaration says before its names.
#[derive(Clone, Copy)]
struct Prefix {
    space: Space,
    ty: Type,
    /// Elements of a `.v2`, `.v4` or `.v8`, otherwise 1.
    lanes: u32,
    /// Bytes.
    align: u32,
}

/// `.space .align n .type a, b[3] = {..};`: one variable for each name.
pub(super) fn variables(cursor: &mut Cursor, external: bool) -> Result<Vec<Variable>, Error> {
    let prefix = prefix(cursor)?;
    let mut found = Vec::new();
    loop {
        found.push(declarator(cursor, prefix, external)?);
        if cursor.takes(';') {
            return Ok(found);
        }
        if !cursor.takes(',') {
            return Err(cursor.expected("',' or ';'"));
        }
    }
}

/// `(.param ..., .param ...)`.
pub(super) fn parameters(cursor: &mut Cursor) -> Result<Vec<Variable>, Error> {
    cursor.mark('(')?;
    let mut found = Vec::new();
    if cursor.takes(')') {
        return Ok(found);
    }
    loop {
        match cursor.peek() {
            Token::Directive("reg") => {}
            Token::Directive(word) if Space::parse(word) == Some(Space::Param) => {}
            _ => return Err(cursor.expected("'.param'")),
        }
        let in_register = cursor.peek() == Token::Directive("reg");
        let prefix = prefix(cursor)?;
        let variable = declarator(cursor, prefix, false)?;
        if in_register && variable.elements != Some(1) {
            return Err(cursor.error(format!("{:.60}: arrays and vectors in .reg are not passed", variable.name)));
        }
        found.push(Variable { in_register, ..variable });
        if cursor.takes(')') {
            return Ok(found);
        }
        if !cursor.takes(',') {
            return Err(cursor.expected("',' or ')'"));
        }
    }
}

/// The space, and then in any order the alignment, the attributes, the vector and the type.
fn prefix(cursor: &mut Cursor) -> Result<Prefix, Error> {
    let space = match cursor.peek() {
        // Only parameters, which are passed in the frame.
        Token::Directive("reg") => Some(Space::Param),
        Token::Directive(word) => Space::parse(word),
        _ => None,
    };
    let Some(space) = space else { return Err(cursor.expected("a state space")) };
    cursor.next();
    if cursor.peek() == Token::Mark('[') {
        return Err(cursor.error("banks of .const are not supported"));
    }
    let (mut ty, mut align, mut lanes) = (None, None, 1);
    while let Token::Directive(word) = cursor.peek() {
        if let Some(parsed) = Type::parse(word).filter(|parsed| *parsed != Type::Pred) {
            ty = Some(parsed);
            cursor.next();
            continue;
        }
        match word {
            "align" => align = Some(alignment(cursor)?),
            "attribute" => {
                cursor.next();
                cursor.skip_balanced('(', ')')?;
            }
            "v2" | "v4" | "v8" => {
                cursor.next();
                lanes = word[1..].parse().unwrap_or(1);
            }
            // What a pointer parameter points to: `.ptr .global .align 16`. The alignment is not the parameter's.
            "ptr" => {
                cursor.next();
                if matches!(cursor.peek(), Token::Directive(word) if Space::parse(word).is_some()) {
                    cursor.next();
                }
                if cursor.peek() == Token::Directive("align") {
                    alignment(cursor)?;
                }
            }
            "texref" | "samplerref" | "surfref" => {
                return Err(cursor.error(format!(".{word}: textures and surfaces are not supported")));
            }
            _ => return Err(cursor.expected("a type")),
        }
    }
    let Some(ty) = ty else { return Err(cursor.expected("a type")) };
    Ok(Prefix { space, ty, lanes, align: align.unwrap_or(ty.bytes() * lanes) })
}

/// `.align n`, a power of two.
fn alignment(cursor: &mut Cursor) -> Result<u32, Error> {
    cursor.next();
    let bytes = cursor.number32("an alignment")?;
    if bytes.is_power_of_two() {
        return Ok(bytes);
    }
    Err(cursor.error(format!("expected an alignment that is a power of two, found {bytes}")))
}

/// A name, its extents and its initial values.
fn declarator(cursor: &mut Cursor, prefix: Prefix, external: bool) -> Result<Variable, Error> {
    let line = cursor.line();
    let name = cursor.word("a variable's name")?.to_owned();
    if cursor.peek() == Token::Mark('<') {
        return Err(cursor.error("name<count> declares registers, not variables"));
    }
    let extents = extents(cursor, prefix.lanes)?;
    let inner = product(cursor, &name, extents.iter().skip(1).map(|extent| extent.unwrap_or(1)))?;
    let mut elements = match extents.first() {
        None => Some(1),
        Some(Some(outer)) => Some(product(cursor, &name, [*outer, inner].into_iter())?),
        Some(None) => None,
    };
    let mut initial = Vec::new();
    if cursor.takes('=') {
        initial = Initialiser::new(prefix.ty, &extents).read(cursor)?;
        let written = initial.len() as u64;
        let room = *elements.get_or_insert(written.next_multiple_of(inner.max(1)));
        if room < written {
            return Err(cursor.error(format!("{name:.60} has {room} elements and {written} initial values")));
        }
    }
    let Prefix { space, ty, align, .. } = prefix;
    Ok(Variable { name, space, in_register: false, ty, align, elements, external, initial, line })
}

/// The extents of an array, outermost first; a vector is one more.
fn extents(cursor: &mut Cursor, lanes: u32) -> Result<Vec<Option<u64>>, Error> {
    // Far more than anybody writes; the time for initial values grows with it.
    const MOST: usize = 16;
    let mut extents = Vec::new();
    while cursor.takes('[') {
        if extents.len() == MOST {
            return Err(cursor.error(format!("more than {MOST} extents")));
        }
        if extents.is_empty() && cursor.takes(']') {
            extents.push(None);
        } else {
            extents.push(Some(cursor.number("an extent")?));
            cursor.mark(']')?;
        }
    }
    if lanes > 1 {
        extents.push(Some(u64::from(lanes)));
    }
    Ok(extents)
}

/// The product of extents; the bound keeps sizes in bytes far from overflow.
fn product(cursor: &Cursor, name: &str, mut extents: impl Iterator<Item = u64>) -> Result<u64, Error> {
    const MOST: u64 = 1 << 40;
    extents
        .try_fold(1_u64, |so_far, extent| so_far.checked_mul(extent).filter(|product| *product <= MOST))
        .ok_or_else(|| cursor.error(format!("{name:.60} has more than {MOST} elements")))
}
