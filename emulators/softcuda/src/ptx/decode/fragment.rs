//! `ldmatrix`, `stmatrix`, `movmatrix`: 8 x 8 matrices of 16-bit elements between shared memory and the registers of a
//! warp.

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::{Space, Type};
use super::address::{self, Address};
use super::modifiers::Modifiers;
use super::scope::Scope;
use crate::machine::registers::{Reg, Width};

/// Matrix fragments of a whole warp: lane l holds the elements (l / 4, 2 (l mod 4)) and (l / 4, 2 (l mod 4) + 1) of
/// each matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fragment {
    /// `ldmatrix`.
    Load(Rows),
    /// `stmatrix`.
    Store(Rows),
    /// `movmatrix.trans`.
    Transpose {
        /// The result.
        destination: Reg,
        /// The matrix.
        source: Reg,
    },
}

/// Up to four matrices in shared memory; lane 8 i + r has the address of row r of matrix i.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rows {
    /// The rows' addresses.
    pub address: Address,
    /// Matrices: 1, 2 or 4.
    pub count: u32,
    /// The register of each.
    pub registers: [Reg; 4],
    /// `.trans`: rows in memory are columns in the registers.
    pub transposed: bool,
}

/// Opcodes of this file.
pub const OPCODES: &[&str] = &["ldmatrix", "stmatrix", "movmatrix"];

/// Decodes a fragment instruction.
///
/// # Errors
/// An operand or modifier that it does not take; shapes other than `.m8n8` with `.b16`.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Fragment, Error> {
    let name = instruction.opcode[0].as_ref();
    if !modifiers.take("sync") || !modifiers.take("aligned") || !modifiers.take("m8n8") || !modifiers.take("b16") {
        return Err(modifiers.error("only .sync.aligned.m8n8 with .b16 is supported"));
    }
    let transposed = modifiers.take("trans");
    scope.expect_operands(instruction, 2..=2)?;
    if name == "movmatrix" {
        let destination = scope.destination(scope.operand(instruction, 0)?, Type::B32)?;
        return Ok(Fragment::Transpose {
            destination,
            source: scope.source(scope.operand(instruction, 1)?, Type::B32)?,
        });
    }
    let count = modifiers
        .take_with(|word| ["x1", "x2", "x4"].iter().position(|x| *x == word))
        .map_or(1, |power| 1_u32 << power);
    let space = match modifiers.take_space() {
        // Without a space the address is generic, and must be one of shared memory.
        Space::Generic => Space::Generic,
        _ => Space::Shared,
    };
    let load = name == "ldmatrix";
    let (value_place, address_place) = if load { (0, 1) } else { (1, 0) };
    let address = address::decode(scope.operand(instruction, address_place)?, space, scope)?;
    let elements = match scope.operand(instruction, value_place)? {
        Operand::Vector(elements) => elements.as_slice(),
        single => std::slice::from_ref(single),
    };
    if elements.len() != count as usize {
        return Err(modifiers.error(&format!("{} registers for {count} matrices", elements.len())));
    }
    let mut registers = [Reg { row: 0, width: Width::Word }; 4];
    for (register, element) in registers.iter_mut().zip(elements) {
        *register = if load { scope.destination(element, Type::B32)? } else { scope.source(element, Type::B32)? };
    }
    let rows = Rows { address, count, registers, transposed };
    Ok(if load { Fragment::Load(rows) } else { Fragment::Store(rows) })
}
