//! What the parser makes of PTX text: names are still names, opcodes still words.

use super::types::{Space, Type};
use std::sync::Arc;

/// A parsed translation unit.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// `.version`, major and minor.
    pub version: (u32, u32),
    /// The first word of `.target`, such as `sm_90a`.
    pub target: String,
    /// Variables at module scope.
    pub variables: Vec<Variable>,
    /// Kernels and device functions, declarations included.
    pub functions: Vec<Function>,
}

/// A variable: at module scope, in a function, or a formal parameter.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub space: Space,
    /// A formal parameter in `.reg`; its space is `.param` all the same.
    pub in_register: bool,
    /// The type of an element.
    pub ty: Type,
    /// Alignment in bytes.
    pub align: u32,
    /// Elements; `None` for `[]` (dynamic shared memory, or an extern array).
    pub elements: Option<u64>,
    /// `.extern`: its place and size are given elsewhere.
    pub external: bool,
    /// Initial values in order; missing ones are zero, and so is an empty list.
    pub initial: Vec<Initial>,
    /// The line of its declaration.
    pub line: u32,
}

impl Variable {
    /// Size in bytes; 0 for `[]`.
    pub fn bytes(&self) -> u64 {
        self.elements.unwrap_or(0).saturating_mul(u64::from(self.ty.bytes()))
    }
}

/// One value of an initialiser.
#[derive(Clone, Debug)]
pub enum Initial {
    /// The bits of a number, to be cut to the element's width.
    Bits(u64),
    /// The address of a variable or function plus an offset, generic or not.
    Address {
        /// The symbol.
        name: String,
        /// Bytes to add.
        offset: i64,
    },
}

/// A kernel or a device function.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// `.entry`, not `.func`.
    pub is_entry: bool,
    /// Return parameters of a `.func`.
    pub returns: Vec<Variable>,
    /// Formal parameters in order.
    pub parameters: Vec<Variable>,
    /// `.maxntid`: the most threads along x, y, z; `None` if not given.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`: the cluster's shape, fixed at compile time.
    pub required_cluster: Option<[u32; 3]>,
    /// The directives between the parameters and the body, with their lines.
    pub directives: Vec<(String, u32)>,
    /// `None` for a declaration.
    pub body: Option<Vec<Statement>>,
    /// The line of its name.
    pub line: u32,
}

/// One statement of a body.
#[derive(Clone, Debug)]
pub enum Statement {
    /// `name:`
    Label(String),
    /// `.reg .ty name<count>;` or `.reg .ty name;`
    Register {
        /// The type.
        ty: Type,
        /// The name, or its stem.
        name: String,
        /// `Some(n)`: the registers `name0` .. `name{n-1}`.
        count: Option<u32>,
    },
    /// `.reg .v2 .ty name;`: the registers `name.x` and so on, which `name` means together.
    VectorRegister {
        /// The type of each.
        ty: Type,
        /// The name.
        name: String,
        /// 2 or 4.
        lanes: u32,
    },
    /// A variable in `.shared`, `.local`, `.param`, `.global` or `.const`.
    Variable(Variable),
    /// An instruction.
    Instruction(Instruction),
    /// `{ ... }`: a scope of names.
    Scope(Vec<Statement>),
    /// `name: .branchtargets a, b;`
    BranchTargets {
        /// The label of the table.
        name: String,
        /// Its labels.
        targets: Vec<String>,
    },
    /// `name: .callprototype ...;`: read, not needed.
    CallPrototype,
}

/// `@p` or `@!p`.
#[derive(Clone, Debug)]
pub struct Guard {
    /// The predicate register.
    pub name: String,
    /// `@!p`.
    pub negated: bool,
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Its guard.
    pub guard: Option<Guard>,
    /// The words between the dots: `ld.global.nc.v4.f32` is `["ld", "global", "nc", "v4", "f32"]`; a `::` stays inside
    /// its word.
    pub opcode: Vec<Arc<str>>,
    /// The operands in order.
    pub operands: Vec<Operand>,
    /// The line of the PTX text, from 1.
    pub line: u32,
}

/// An operand as written.
#[derive(Clone, Debug)]
pub enum Operand {
    /// A register, special register (`%tid.x`), variable, label or function.
    Name(String),
    /// `!p`.
    Not(String),
    /// An integer literal, two's complement.
    Integer(i64),
    /// `0f` and eight digits.
    Single(u32),
    /// `0d` and sixteen digits, or a decimal floating-point literal.
    Double(u64),
    /// `_`: the result is not wanted.
    Sink,
    /// `{a, b, c, d}`.
    Vector(Vec<Operand>),
    /// `[base+offset]`, and `[base, ...]` of bulk copies has `Vec` after it.
    Address {
        /// A register or a variable; `None` for a plain number.
        base: Option<String>,
        /// Bytes to add.
        offset: i64,
    },
    /// `name+offset` outside brackets: the address of a variable plus bytes.
    Offset(String, i64),
    /// `p|q`: two destinations.
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)`: the arguments or results of a call.
    List(Vec<Operand>),
}

/// What is wrong with a PTX text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The line, from 1; 0 when it is not about one line.
    pub line: u32,
    /// In words.
    pub message: String,
}

impl Error {
    /// An error about a line.
    pub fn new(line: u32, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "PTX line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for Error {}
