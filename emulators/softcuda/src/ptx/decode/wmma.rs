//! `wmma`: products of matrices whose fragments programs load, keep and store without knowing where an element lies.

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::{Space, Type};
use super::address::{self, Address, Base};
use super::memory::{Access, MOST_ELEMENTS, Order};
use super::modifiers::Modifiers;
use super::scope::Scope;
use crate::machine::registers::{Reg, Width};

/// Which matrix of `D = A * B + C`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Role {
    A,
    B,
    /// C or D.
    Sum,
}

/// Rows and columns of D, and columns of A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// The fragment of one matrix: element e, counted along the rows, lies in lane e % 32 as its element e / 32. A lane with
/// room for more has them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Rows and columns of the matrix.
    pub rows: usize,
    /// See `rows`.
    pub columns: usize,
    /// Of an element.
    pub ty: Type,
    /// The lane's registers; packed elements from the low bits up.
    pub registers: [Reg; MOST_ELEMENTS],
    /// How many.
    pub count: usize,
}

impl Fragment {
    /// Elements of a register.
    pub fn per_register(&self) -> usize {
        if self.ty == Type::Tf32 || self.ty.bits() >= 32 { 1 } else { 32 / self.ty.bits() as usize }
    }

    /// Elements of a lane that are not repetitions.
    pub fn per_lane(&self) -> usize {
        self.rows * self.columns / 32
    }
}

/// A matrix in memory and the fragment of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    /// The fragment.
    pub fragment: Fragment,
    /// `.row`: the elements of a row follow each other in memory.
    pub by_rows: bool,
    /// The first element.
    pub address: Address,
    /// Elements from one row (or column) to the next; `None`: they follow each other.
    pub stride: Option<Reg>,
    /// One element of each lane: its address lies in a register of its own.
    pub element: Access,
}

/// A `wmma` instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wmma {
    /// `wmma.load`.
    Load(Transfer),
    /// `wmma.store`.
    Store(Transfer),
    /// `wmma.mma`.
    Multiply {
        /// The matrices' sizes.
        shape: Shape,
        /// `.satfinite` of integers.
        saturate: bool,
        /// D, A, B, C.
        fragments: [Fragment; 4],
    },
}

/// Shapes and the types of their factors.
const SHAPES: &[(&str, Shape, &[Type])] = &[
    ("m16n16k16", Shape { m: 16, n: 16, k: 16 }, &[Type::F16, Type::Bf16, Type::S8, Type::U8]),
    ("m8n32k16", Shape { m: 8, n: 32, k: 16 }, &[Type::F16, Type::Bf16, Type::S8, Type::U8]),
    ("m32n8k16", Shape { m: 32, n: 8, k: 16 }, &[Type::F16, Type::Bf16, Type::S8, Type::U8]),
    ("m16n16k8", Shape { m: 16, n: 16, k: 8 }, &[Type::Tf32]),
    ("m8n8k4", Shape { m: 8, n: 8, k: 4 }, &[Type::F64]),
];

/// The types of sums that go with factors.
fn goes_with(factor: Type, sum: Type) -> bool {
    match factor {
        Type::F16 => matches!(sum, Type::F16 | Type::F32),
        Type::S8 | Type::U8 => sum == Type::S32,
        Type::F64 => sum == Type::F64,
        _ => sum == Type::F32,
    }
}

/// Decodes.
///
/// # Errors
/// A shape or type that does not exist or is not supported (`.s4`, `.u4`, `.b1`), wrong operands.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Wmma, Error> {
    let what = modifiers.take_with(|word| ["load", "store", "mma"].into_iter().find(|known| *known == word));
    if !modifiers.take("sync") || !modifiers.take("aligned") {
        return Err(modifiers.error("needs .sync.aligned"));
    }
    if let Some(word) = modifiers.take_with(|word| matches!(word, "s4" | "u4" | "b1").then(|| word.to_owned())) {
        return Err(modifiers.error(&format!("factors of type .{word} are not supported")));
    }
    let shape = modifiers.take_with(|word| SHAPES.iter().find(|row| row.0 == word));
    let Some(&(name, shape, factors)) = shape else { return Err(modifiers.error("names no shape that is known")) };
    let order = |word: &str| ["row", "col"].into_iter().position(|known| known == word).map(|place| place == 0);
    match what {
        Some("mma") => multiply(instruction, modifiers, scope, shape, factors),
        Some(what) => {
            let role = modifiers.take_with(|word| match word {
                "a" => Some(Role::A),
                "b" => Some(Role::B),
                "c" | "d" => Some(Role::Sum),
                _ => None,
            });
            let (Some(role), Some(by_rows)) = (role, modifiers.take_with(order)) else {
                return Err(modifiers.error("names no matrix, or neither .row nor .col"));
            };
            let ty = modifiers.take_with(Type::parse);
            let fits = |ty: &Type| match role {
                Role::Sum => factors.iter().any(|factor| goes_with(*factor, *ty)),
                _ => factors.contains(ty),
            };
            let Some(ty) = ty.filter(fits) else {
                return Err(modifiers.error(&format!("shape .{name} does not go with this type")));
            };
            transfer(instruction, modifiers, scope, what == "load", (shape, role, ty, by_rows))
        }
        None => Err(modifiers.error("is neither .load nor .store nor .mma")),
    }
}

/// `wmma.mma`: the layouts of A and B say how they were loaded, and are no concern of the product.
fn multiply(
    instruction: &Instruction,
    modifiers: &mut Modifiers,
    scope: &mut Scope,
    shape: Shape,
    factors: &[Type],
) -> Result<Wmma, Error> {
    for _ in 0..2 {
        if !modifiers.take("row") && !modifiers.take("col") {
            return Err(modifiers.error("needs the layouts of A and B"));
        }
    }
    let saturate = modifiers.take("satfinite");
    // The only rounding of f64.
    modifiers.take("rn");
    let types: Vec<Type> = std::iter::from_fn(|| modifiers.take_with(Type::parse)).collect();
    // With f16 factors only D and C are named.
    let (d, a, b, c) = match *types.as_slice() {
        [d, c] if factors.contains(&Type::F16) => (d, Type::F16, Type::F16, c),
        [d, a, b, c] if a == b && factors.contains(&a) && d == c && a != Type::F16 => (d, a, b, c),
        _ => return Err(modifiers.error("the types of D, A, B and C do not go together")),
    };
    if !goes_with(a, d) || !goes_with(a, c) || saturate && d != Type::S32 {
        return Err(modifiers.error("the types of D, A, B and C do not go together"));
    }
    scope.expect_operands(instruction, 4..=4)?;
    let mut place = 0;
    let mut next = |role: Role, ty: Type| {
        let operand = scope.operand(instruction, place)?;
        place += 1;
        fragment(operand, (shape, role, ty), place == 1, scope)
    };
    let fragments = [next(Role::Sum, d)?, next(Role::A, a)?, next(Role::B, b)?, next(Role::Sum, c)?];
    Ok(Wmma::Multiply { shape, saturate, fragments })
}

fn transfer(
    instruction: &Instruction,
    modifiers: &mut Modifiers,
    scope: &mut Scope,
    load: bool,
    (shape, role, ty, by_rows): (Shape, Role, Type, bool),
) -> Result<Wmma, Error> {
    let space = modifiers.take_space();
    if !matches!(space, Space::Generic | Space::Global | Space::Shared | Space::SharedCluster) {
        return Err(modifiers.error("is for global and shared memory"));
    }
    scope.expect_operands(instruction, 2..=3)?;
    let (address_place, value_place) = if load { (1, 0) } else { (0, 1) };
    let address = address::decode(scope.operand(instruction, address_place)?, space, scope)?;
    let fragment = fragment(scope.operand(instruction, value_place)?, (shape, role, ty), load, scope)?;
    let stride = instruction.operands.get(2).map(|operand| scope.source(operand, Type::U32)).transpose()?;
    let place = scope.scratch(Type::B64);
    let value = scope.scratch(if ty.bits() == 64 { Type::B64 } else { Type::B32 });
    let mut registers = [Reg { row: 0, width: Width::Word }; MOST_ELEMENTS];
    registers[0] = value;
    let element = Access {
        address: Address { base: Base::Register(place), offset: 0, space: address.space },
        element_bits: ty.bits(),
        count: 1,
        registers,
        extend_to: 0,
        order: Order::Weak,
        scope: None,
        read_only: false,
    };
    let transfer = Transfer { fragment, by_rows, address, stride, element };
    Ok(if load { Wmma::Load(transfer) } else { Wmma::Store(transfer) })
}

/// The registers of a fragment. f16 factors take eight registers whatever the shape, and have elements twice or more.
fn fragment(
    operand: &Operand,
    (shape, role, ty): (Shape, Role, Type),
    is_destination: bool,
    scope: &mut Scope,
) -> Result<Fragment, Error> {
    let (rows, columns) = match role {
        Role::A => (shape.m, shape.k),
        Role::B => (shape.k, shape.n),
        Role::Sum => (shape.m, shape.n),
    };
    let register = match ty {
        Type::F32 | Type::F64 | Type::S32 => ty,
        _ => Type::B32,
    };
    let fragment =
        Fragment { rows, columns, ty, registers: [Reg { row: 0, width: Width::Word }; MOST_ELEMENTS], count: 0 };
    let wanted = match (role, ty) {
        (Role::A | Role::B, Type::F16) => 8,
        _ => fragment.per_lane().div_ceil(fragment.per_register()),
    };
    let parts = match operand {
        Operand::Vector(parts) => parts.as_slice(),
        single => std::slice::from_ref(single),
    };
    if parts.len() != wanted {
        let found = parts.len();
        return Err(scope.error(format!("{found} registers for a fragment of .{}, which has {wanted}", ty.name())));
    }
    let mut fragment = Fragment { count: wanted, ..fragment };
    for (reg, part) in fragment.registers.iter_mut().zip(parts) {
        *reg = if is_destination { scope.destination(part, register)? } else { scope.source(part, register)? };
    }
    Ok(fragment)
}
