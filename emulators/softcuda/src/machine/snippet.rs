//! Straight-line arithmetic on one warp, without a kernel around it: how instructions are tested against the manual, 32
//! inputs at a time.

use super::execute;
use super::registers::{LANES, Reg, Registers};
use crate::ptx::decode::scope::{Binding, Scope};
use crate::ptx::decode::{self, Arithmetic};
use crate::ptx::syntax::{Error, Operand, Statement};
use crate::ptx::types::Type;
use std::collections::HashMap;

/// Decoded instructions without branches or memory.
pub struct Snippet {
    scope: Scope,
    code: Vec<(Option<(u32, bool)>, Arithmetic)>,
    registers: Registers,
}

impl Snippet {
    /// Parses and decodes statements, declarations included: `.reg .f32 %f<3>; add.f32 %f2, %f0, %f1;`.
    ///
    /// # Errors
    /// What the parser or decoder says; an instruction that is not arithmetic.
    pub fn new(text: &str) -> Result<Self, Error> {
        let statements = crate::ptx::parser::parse_statements(text)?;
        let mut scope = Scope::new(HashMap::new());
        let mut code = Vec::new();
        for statement in &statements {
            match statement {
                Statement::Register { ty, name, count } => scope.declare(*ty, name, *count)?,
                Statement::Instruction(instruction) => {
                    scope.line = instruction.line;
                    let guard = match &instruction.guard {
                        None => None,
                        Some(guard) => {
                            let condition = scope.condition(&Operand::Name(guard.name.clone()))?;
                            Some((condition.predicate.0, guard.negated))
                        }
                    };
                    let Some(operation) = decode::arithmetic(instruction, &mut scope)? else {
                        return Err(scope.error(format!("{} is not arithmetic", instruction.opcode.join("."))));
                    };
                    code.push((guard, operation));
                }
                _ => return Err(Error::new(0, "a snippet has declarations and instructions only")),
            }
        }
        let mut registers = Registers::default();
        registers.enter((0, 0), scope.frame.rows as usize, scope.frame.predicates as usize);
        for (reg, bits) in &scope.frame.constants {
            registers.set_extended(*reg, u32::MAX, &[*bits; LANES]);
        }
        Ok(Self { scope, code, registers })
    }

    fn register(&self, name: &str) -> Reg {
        match self.scope.find(name) {
            Some(Binding::Register(reg, _)) => reg,
            other => panic!("{name} is not a register: {other:?}"),
        }
    }

    /// Sets the lanes of a register (zero-extended bits) or predicate (bit 0).
    ///
    /// # Panics
    /// There is no such register: this is for tests.
    pub fn set(&mut self, name: &str, lanes: &[u64; LANES]) {
        if let Some(Binding::Predicate(predicate)) = self.scope.find(name) {
            let bits = lanes.iter().enumerate().fold(0, |bits, (lane, value)| bits | ((*value & 1) as u32) << lane);
            self.registers.set_predicate(predicate, u32::MAX, bits);
        } else {
            self.registers.set_extended(self.register(name), u32::MAX, lanes);
        }
    }

    /// Runs the instructions for every lane.
    pub fn run(&mut self) {
        for (guard, operation) in &self.code {
            let active = match guard {
                None => u32::MAX,
                Some((predicate, negated)) => {
                    let bits = self.registers.predicate(super::registers::Pred(*predicate));
                    if *negated { !bits } else { bits }
                }
            };
            execute::arithmetic(operation, &mut self.registers, active);
        }
    }

    /// The lanes of a register (zero-extended) or predicate (0 or 1).
    ///
    /// # Panics
    /// There is no such register: this is for tests.
    pub fn get(&self, name: &str) -> [u64; LANES] {
        match self.scope.find(name) {
            Some(Binding::Predicate(predicate)) => {
                let bits = self.registers.predicate(predicate);
                std::array::from_fn(|lane| u64::from(bits >> lane & 1))
            }
            _ => self.registers.extended(self.register(name)),
        }
    }

    /// The lanes of a 128-bit register.
    ///
    /// # Panics
    /// There is no such register: this is for tests.
    pub fn get_wide(&self, name: &str) -> [u128; LANES] {
        self.registers.wide(self.register(name))
    }

    /// The declared type of a register.
    pub fn register_type(&self, name: &str) -> Option<Type> {
        self.scope.register_type(&Operand::Name(name.to_owned()))
    }
}
