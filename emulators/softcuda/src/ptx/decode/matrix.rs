//! `mma.sync`: a product of small matrices whose elements lie spread over the registers of a warp.

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::Type;
use super::modifiers::Modifiers;
use super::scope::Scope;
use crate::machine::registers::{Reg, Width};

/// `D = A * B + C`: A has `rows` x `depth` elements, B `depth` x `columns`, C and D `rows` x `columns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of A and D: 8 or 16.
    pub rows: u8,
    /// Columns of B and D: always 8.
    pub columns: u8,
    /// Columns of A, rows of B.
    pub depth: u8,
}

/// The registers of one fragment in a lane, by their first rows; the elements' type says how wide each is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<const MOST: usize> {
    first_rows: [u32; MOST],
    width: Width,
    count: u8,
}

impl<const MOST: usize> Fragment<MOST> {
    /// How many registers there are.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// The register at a place below [`Fragment::count`].
    pub fn register(&self, place: usize) -> Reg {
        Reg { row: self.first_rows[place], width: self.width }
    }
}

/// A matrix instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// How large the matrices are.
    pub shape: Shape,
    /// Elements of A.
    pub a_type: Type,
    /// Elements of B.
    pub b_type: Type,
    /// Elements of C and D.
    pub accumulator: Type,
    /// `.satfinite`: integer sums are limited to s32, not cut.
    pub saturate: bool,
    /// D.
    pub d: Fragment<4>,
    /// A.
    pub a: Fragment<4>,
    /// B.
    pub b: Fragment<2>,
    /// C.
    pub c: Fragment<4>,
}

/// What is multiplied, which sums there are, which shapes.
struct Form {
    /// The word of A's and B's type may be any of these; mixed ones if `mixed`.
    factors: &'static [&'static str],
    mixed: bool,
    accumulators: &'static [Type],
    shapes: &'static [(&'static str, Shape)],
    saturates: bool,
}

const fn shape(rows: u8, depth: u8) -> Shape {
    Shape { rows, columns: 8, depth }
}

const M16N8K4: (&str, Shape) = ("m16n8k4", shape(16, 4));
const M16N8K8: (&str, Shape) = ("m16n8k8", shape(16, 8));
const M16N8K16: (&str, Shape) = ("m16n8k16", shape(16, 16));
const M16N8K32: (&str, Shape) = ("m16n8k32", shape(16, 32));

const FORMS: &[Form] = &[
    Form {
        factors: &["f16"],
        mixed: false,
        accumulators: &[Type::F32, Type::F16],
        shapes: &[M16N8K8, M16N8K16],
        saturates: false,
    },
    Form {
        factors: &["bf16"],
        mixed: false,
        accumulators: &[Type::F32],
        shapes: &[M16N8K8, M16N8K16],
        saturates: false,
    },
    Form {
        factors: &["tf32"],
        mixed: false,
        accumulators: &[Type::F32],
        shapes: &[M16N8K4, M16N8K8],
        saturates: false,
    },
    Form {
        factors: &["e4m3", "e5m2"],
        mixed: true,
        accumulators: &[Type::F32, Type::F16],
        shapes: &[M16N8K16, M16N8K32],
        saturates: false,
    },
    Form {
        factors: &["f64"],
        mixed: false,
        accumulators: &[Type::F64],
        shapes: &[("m8n8k4", shape(8, 4)), M16N8K4, M16N8K8],
        saturates: false,
    },
    Form {
        factors: &["s8", "u8"],
        mixed: true,
        accumulators: &[Type::S32],
        shapes: &[("m8n8k16", shape(8, 16)), M16N8K16, M16N8K32],
        saturates: true,
    },
];

/// Decodes `mma.sync.aligned`.
///
/// # Errors
/// Another matrix instruction (`wgmma`, `tcgen05`, sparse `mma`), a shape or type that does not exist or is not
/// supported, wrong operands.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Matrix, Error> {
    let name = instruction.opcode.first().map_or("", AsRef::as_ref);
    if name != "mma" {
        return Err(modifiers.error(&format!("{name} is not supported, only mma.sync.aligned")));
    }
    if modifiers.take_with(|word| word.starts_with("sp").then_some(())).is_some() {
        return Err(modifiers.error("sparse matrices are not supported"));
    }
    for word in ["sync", "aligned", "row", "col"] {
        if !modifiers.take(word) {
            return Err(modifiers.error(&format!("needs the modifier .{word}")));
        }
    }
    let saturate = modifiers.take("satfinite");
    let Some(spelled) = modifiers.take_with(|word| is_shape(word).then(|| word.to_owned())) else {
        return Err(modifiers.error("needs a shape"));
    };
    let words: Vec<String> = modifiers.rest().map(str::to_owned).collect();
    let [d_word, a_word, b_word, c_word] = words.as_slice() else {
        return Err(modifiers.error("needs the types of D, A, B and C, and takes nothing else"));
    };
    let Some(form) = FORMS.iter().find(|form| form.factors.contains(&a_word.as_str())) else {
        return Err(modifiers.error(&format!("factors of type .{a_word} are not supported")));
    };
    if !form.factors.contains(&b_word.as_str()) || !form.mixed && a_word != b_word {
        return Err(modifiers.error(&format!("A of type .{a_word} does not go with B of type .{b_word}")));
    }
    let accumulator = form.accumulators.iter().copied().find(|ty| ty.name() == d_word);
    let Some(accumulator) = accumulator.filter(|_| c_word == d_word) else {
        return Err(modifiers.error(&format!(".{a_word} does not go with C of .{c_word} and D of .{d_word}")));
    };
    let Some((_, shape)) = form.shapes.iter().find(|(name, _)| *name == spelled) else {
        return Err(modifiers.error(&format!("shape .{spelled} of type .{a_word} is not supported")));
    };
    if saturate && !form.saturates {
        return Err(modifiers.error("modifier .satfinite is not possible with these types"));
    }
    while modifiers.take_with(|_| Some(())).is_some() {}
    scope.expect_operands(instruction, 4..=4)?;
    let (a_type, b_type) = (Type::parse(a_word), Type::parse(b_word));
    let (Some(a_type), Some(b_type)) = (a_type, b_type) else {
        return Err(modifiers.error("needs the types of D, A, B and C"));
    };
    let (rows, depth) = (u32::from(shape.rows), u32::from(shape.depth));
    let d = fragment(scope.operand(instruction, 0)?, accumulator, rows * 8, true, scope)?;
    let a = fragment(scope.operand(instruction, 1)?, a_type, rows * depth, false, scope)?;
    let b = fragment(scope.operand(instruction, 2)?, b_type, depth * 8, false, scope)?;
    let c = fragment(scope.operand(instruction, 3)?, accumulator, rows * 8, false, scope)?;
    Ok(Matrix { shape: *shape, a_type, b_type, accumulator, saturate, d, a, b, c })
}

/// `m16n8k8` and the like.
fn is_shape(word: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    word.strip_prefix('m')
        .and_then(|rest| rest.split_once('n'))
        .and_then(|(m, rest)| rest.split_once('k').map(|(n, k)| [m, n, k]))
        .is_some_and(|sizes| sizes.into_iter().all(is_number))
}

/// The registers of a fragment of a matrix with so many elements.
fn fragment<const MOST: usize>(
    operand: &Operand,
    ty: Type,
    elements: u32,
    is_destination: bool,
    scope: &mut Scope,
) -> Result<Fragment<MOST>, Error> {
    // Packed elements, and tf32, lie in .b32 registers.
    let register = match ty {
        Type::F32 | Type::F64 | Type::S32 => ty,
        _ => Type::B32,
    };
    let wanted = (elements / 32 * ty.bits()).div_ceil(register.bits()) as usize;
    let parts = match operand {
        Operand::Vector(parts) => parts.as_slice(),
        single => std::slice::from_ref(single),
    };
    if parts.len() != wanted || wanted > MOST {
        let found = parts.len();
        return Err(scope.error(format!("{found} registers for a fragment of .{}, which has {wanted}", ty.name())));
    }
    let mut first_rows = [0; MOST];
    for (row, part) in first_rows.iter_mut().zip(parts) {
        let reg = if is_destination { scope.destination(part, register)? } else { scope.source(part, register)? };
        *row = reg.row;
    }
    Ok(Fragment { first_rows, width: Width::of_bits(register.bits()), count: wanted as u8 })
}
