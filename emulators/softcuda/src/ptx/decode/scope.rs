//! Names to registers: what an instruction's decoder asks about its operands.

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::{Space, Type};
use super::operands::{Operands, Slot};
use super::special::{Special, special};
use crate::machine::registers::{Pred, Reg, Width};
use crate::machine::window;
use std::cell::RefCell;
use std::collections::HashMap;

/// The names of a vector's registers, as places and as colours.
const VECTOR_PLACES: [(char, char); 4] = [('x', 'r'), ('y', 'g'), ('z', 'b'), ('w', 'a')];

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Binding {
    /// A register.
    Register(Reg, Type),
    /// A predicate register.
    Predicate(Pred),
    /// A variable and where it lies: an address in its window (`Global` and `Const`: the generic address itself), for
    /// `Local` and `Param` of a device function the offset in the frame, for `Param` of a kernel the offset in the
    /// parameter block.
    Variable {
        /// Where it lives.
        space: Space,
        /// Its place, see above.
        address: u64,
        /// Kernel parameters and the frame's own are both `.param`.
        of_kernel: bool,
        /// Bytes.
        size: u64,
    },
    /// A function, by its index in the module.
    Function(u32),
    /// A vector of so many registers, whose names are this one with `.x`, `.y`, `.z`, `.w`.
    Vector(u32),
}

/// The registers of a function, as they are counted while it is decoded.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Rows of 32 lanes.
    pub rows: u32,
    /// Predicate registers.
    pub predicates: u32,
    /// Registers that hold an immediate in every lane.
    pub constants: Vec<(Reg, u64)>,
    /// Registers that hold a special register.
    pub specials: Vec<(Reg, Special)>,
    /// Bytes of local memory and device-function parameters per thread.
    pub local_bytes: u64,
}

/// A predicate operand, maybe negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The predicate register.
    pub predicate: Pred,
    /// `!p`.
    pub negated: bool,
}

/// The names that a body can see, and its frame.
#[derive(Default)]
pub struct Scope {
    /// Innermost last; the first is the module's.
    names: Vec<HashMap<String, Binding>>,
    /// `name<count>` declarations: stem, count, first row or predicate, type. Innermost last.
    families: Vec<(usize, String, u32, u32, Type)>,
    constants: HashMap<(u64, Width), Reg>,
    specials: HashMap<Special, Reg>,
    has_vectors: bool,
    /// The registers so far.
    pub frame: Frame,
    /// The line of the instruction being decoded.
    pub line: u32,
    /// The registers of the instruction being decoded.
    touched: RefCell<Operands>,
}

impl Scope {
    /// A scope over the module's names.
    pub fn new(module: HashMap<String, Binding>) -> Self {
        Self { names: vec![module], ..Self::default() }
    }

    /// Opens an inner scope.
    pub fn open(&mut self) {
        self.names.push(HashMap::new());
    }

    /// Closes the innermost scope.
    pub fn close(&mut self) {
        self.names.pop();
        let depth = self.names.len();
        self.families.retain(|family| family.0 <= depth);
    }

    /// The registers that were asked for since this was last called: those of one instruction.
    pub fn take_operands(&self) -> Operands {
        self.touched.take()
    }

    /// Notes a register that an address goes by.
    pub fn note_address(&self, reg: Reg) {
        self.touched.borrow_mut().addresses.push(Slot::Register(reg.row));
    }

    /// An error about the current line.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::new(self.line, message)
    }

    /// Binds a name in the innermost scope.
    pub fn bind(&mut self, name: &str, binding: Binding) {
        if let Some(names) = self.names.last_mut() {
            names.insert(name.to_owned(), binding);
        }
    }

    /// Declares `.reg .ty name` or `.reg .ty name<count>`.
    ///
    /// # Errors
    /// More rows than a register file can address.
    pub fn declare(&mut self, ty: Type, name: &str, count: Option<u32>) -> Result<(), Error> {
        const MOST: u32 = 1 << 17;
        let number = count.unwrap_or(1);
        let rows = number.saturating_mul(Width::of_bits(ty.bits()).rows());
        if self.frame.rows.max(self.frame.predicates).saturating_add(rows) > MOST {
            return Err(self.error(format!("more registers than {MOST} rows of 32 lanes")));
        }
        let first = if ty == Type::Pred { self.frame.predicates } else { self.frame.rows };
        if ty == Type::Pred {
            self.frame.predicates += number;
        } else {
            self.frame.rows += rows;
        }
        match count {
            None => self.bind(name, register(ty, first, 0)),
            Some(count) => self.families.push((self.names.len(), name.to_owned(), count, first, ty)),
        }
        Ok(())
    }

    /// Declares `.reg .v2 .ty name`: registers by the names of their places, and the vector.
    ///
    /// # Errors
    /// As [`Scope::declare`]; a vector of predicates.
    pub fn declare_vector(&mut self, ty: Type, name: &str, lanes: u32) -> Result<(), Error> {
        if ty == Type::Pred {
            return Err(self.error(format!("{name}: there are no vectors of predicates")));
        }
        for (place, color) in VECTOR_PLACES.iter().take(lanes as usize) {
            self.declare(ty, &format!("{name}.{place}"), None)?;
            if let Some(binding) = self.find(&format!("{name}.{place}")) {
                self.bind(&format!("{name}.{color}"), binding);
            }
        }
        self.bind(name, Binding::Vector(lanes));
        self.has_vectors = true;
        Ok(())
    }

    /// The instruction with its vector registers written out, `{v.x, v.y}`; `None` if there are none.
    pub fn expand(&self, instruction: &Instruction) -> Option<Instruction> {
        if !self.has_vectors {
            return None;
        }
        let mut expanded = instruction.clone();
        for operand in &mut expanded.operands {
            if let Operand::Name(name) = operand
                && let Some(Binding::Vector(lanes)) = self.find(name)
            {
                let places = VECTOR_PLACES.iter().take(lanes as usize);
                *operand = Operand::Vector(places.map(|(place, _)| Operand::Name(format!("{name}.{place}"))).collect());
            }
        }
        Some(expanded)
    }

    /// A new register of this type that no name reaches.
    pub fn scratch(&mut self, ty: Type) -> Reg {
        let reg = Reg { row: self.frame.rows, width: Width::of_bits(ty.bits()) };
        self.frame.rows += reg.width.rows();
        reg
    }

    /// A new predicate that no name reaches.
    pub fn scratch_predicate(&mut self) -> Pred {
        self.frame.predicates += 1;
        Pred(self.frame.predicates - 1)
    }

    /// What a name stands for.
    pub fn find(&self, name: &str) -> Option<Binding> {
        for (index, names) in self.names.iter().enumerate().rev() {
            if let Some(binding) = names.get(name) {
                return Some(binding.clone());
            }
            let depth = index + 1;
            for (family_depth, stem, count, first, ty) in self.families.iter().rev() {
                if *family_depth == depth
                    && let Some(number) = name.strip_prefix(stem.as_str()).and_then(|rest| rest.parse::<u32>().ok())
                    && number < *count
                {
                    return Some(register(*ty, *first, number));
                }
            }
        }
        None
    }

    /// The register that holds these bits in every lane.
    pub fn constant(&mut self, bits: u64, width: Width) -> Reg {
        if let Some(reg) = self.constants.get(&(bits, width)) {
            return *reg;
        }
        let reg = Reg { row: self.frame.rows, width };
        self.frame.rows += width.rows();
        self.frame.constants.push((reg, bits));
        self.constants.insert((bits, width), reg);
        reg
    }

    fn special(&mut self, special: Special) -> Reg {
        if let Some(reg) = self.specials.get(&special) {
            return *reg;
        }
        let long = matches!(special, Special::Grid | Special::GraphExecution);
        let width = if long { Width::Long } else { Width::Word };
        let reg = Reg { row: self.frame.rows, width };
        self.frame.rows += width.rows();
        self.frame.specials.push((reg, special));
        self.specials.insert(special, reg);
        reg
    }

    /// The operand at a place.
    ///
    /// # Errors
    /// There are fewer operands.
    pub fn operand<'a>(&self, instruction: &'a Instruction, place: usize) -> Result<&'a Operand, Error> {
        instruction.operands.get(place).ok_or_else(|| {
            let found = instruction.operands.len();
            self.error(format!("{} has {found} operands, and one more is needed", instruction.opcode.join(".")))
        })
    }

    /// The number of operands must lie in this range.
    ///
    /// # Errors
    /// It does not.
    pub fn expect_operands(
        &self,
        instruction: &Instruction,
        allowed: std::ops::RangeInclusive<usize>,
    ) -> Result<(), Error> {
        let found = instruction.operands.len();
        if allowed.contains(&found) {
            return Ok(());
        }
        let name = instruction.opcode.join(".");
        Err(self.error(format!("{name} takes {} to {} operands, and has {found}", allowed.start(), allowed.end())))
    }

    /// A source operand of this type: a register of the type's width, an immediate (a constant register is made), a
    /// special register, or the address of a variable. Registers narrower or wider than the type are refused; see
    /// [`Scope::any_source`].
    ///
    /// # Errors
    /// An unknown name, or a width that does not fit.
    pub fn source(&mut self, operand: &Operand, ty: Type) -> Result<Reg, Error> {
        let reg = self.any_source(operand, ty)?;
        if reg.width == Width::of_bits(ty.bits()) {
            return Ok(reg);
        }
        // `%laneid` and its kin are 32 bits wide, but mov.u64 reads some of them; `%gridid` the other way round.
        Err(self.error(format!("operand {operand:?} does not have the width of .{}", ty.name())))
    }

    /// As [`Scope::source`], for `cvt`, `ld`, `st` and the like, which take registers wider than the type.
    ///
    /// # Errors
    /// An unknown name.
    pub fn any_source(&mut self, operand: &Operand, ty: Type) -> Result<Reg, Error> {
        let width = Width::of_bits(ty.bits());
        let cut = |bits: u64| if ty.bits() >= 64 { bits } else { bits & ((1 << ty.bits()) - 1) };
        match operand {
            Operand::Name(name) => self.named_source(name, 0, width),
            Operand::Offset(name, offset) => self.named_source(name, *offset, width),
            Operand::Integer(value) if !ty.is_float() => Ok(self.constant(cut(*value as u64), width)),
            // An integer literal where a float is wanted is its value.
            Operand::Integer(value) if ty == Type::F64 => Ok(self.constant((*value as f64).to_bits(), width)),
            Operand::Integer(value) if ty == Type::F32 => {
                Ok(self.constant(u64::from((*value as f32).to_bits()), width))
            }
            // Packed and half types take bits.
            Operand::Integer(value) => Ok(self.constant(cut(*value as u64), width)),
            Operand::Single(bits) if ty.bits() == 32 => Ok(self.constant(u64::from(*bits), width)),
            Operand::Single(bits) if ty == Type::F64 => {
                Ok(self.constant(f64::from(f32::from_bits(*bits)).to_bits(), width))
            }
            Operand::Double(bits) if ty.bits() == 64 => Ok(self.constant(*bits, width)),
            Operand::Double(bits) if ty.bits() == 32 => {
                Ok(self.constant(u64::from((f64::from_bits(*bits) as f32).to_bits()), width))
            }
            _ => Err(self.error(format!("{operand:?} cannot be a source of type .{}", ty.name()))),
        }
    }

    fn named_source(&mut self, name: &str, offset: i64, width: Width) -> Result<Reg, Error> {
        match self.find(name) {
            Some(Binding::Register(reg, _)) if offset == 0 => {
                self.touched.borrow_mut().sources.push(Slot::Register(reg.row));
                return Ok(reg);
            }
            Some(Binding::Variable { space, address, of_kernel, .. }) => {
                if matches!(space, Space::Local) || (space == Space::Param && !of_kernel) {
                    return Err(self.error(format!("the address of {name} depends on the frame: only mov takes it")));
                }
                return Ok(self.constant(address.wrapping_add(offset as u64), width));
            }
            Some(Binding::Function(index)) => return Ok(self.constant(window::function_address(index), width)),
            Some(_) => return Err(self.error(format!("{name} cannot be a source here"))),
            None => {}
        }
        if name == "WARP_SZ" {
            return Ok(self.constant(32, width));
        }
        match special(name) {
            Some(special) => Ok(self.special(special)),
            None => Err(self.error(format!("{name} is not declared"))),
        }
    }

    /// A destination register of this type; `_` gives one that nothing reads.
    ///
    /// # Errors
    /// An unknown name, not a register, or a width that does not fit.
    pub fn destination(&mut self, operand: &Operand, ty: Type) -> Result<Reg, Error> {
        let reg = self.any_destination(operand, ty)?;
        if reg.width == Width::of_bits(ty.bits()) {
            return Ok(reg);
        }
        Err(self.error(format!("destination {operand:?} does not have the width of .{}", ty.name())))
    }

    /// As [`Scope::destination`], where a wider register may take the value (`ld`, `cvt`).
    ///
    /// # Errors
    /// An unknown name, or not a register.
    pub fn any_destination(&mut self, operand: &Operand, ty: Type) -> Result<Reg, Error> {
        match operand {
            Operand::Sink => Ok(self.scratch(ty)),
            Operand::Name(name) => match self.find(name) {
                Some(Binding::Register(reg, _)) => {
                    self.touched.borrow_mut().destinations.push(Slot::Register(reg.row));
                    Ok(reg)
                }
                _ => Err(self.error(format!("{name} is not a register"))),
            },
            _ => Err(self.error(format!("{operand:?} cannot be a destination"))),
        }
    }

    /// The declared type of the register that an operand names.
    pub fn register_type(&self, operand: &Operand) -> Option<Type> {
        match operand {
            Operand::Name(name) => match self.find(name)? {
                Binding::Register(_, ty) => Some(ty),
                Binding::Predicate(_) => Some(Type::Pred),
                _ => None,
            },
            _ => None,
        }
    }

    /// A predicate source: `p` or `!p`.
    ///
    /// # Errors
    /// Not a predicate register.
    pub fn condition(&mut self, operand: &Operand) -> Result<Condition, Error> {
        let condition = self.predicate(operand)?;
        self.touched.borrow_mut().sources.push(Slot::Predicate(condition.predicate.0));
        Ok(condition)
    }

    fn predicate(&self, operand: &Operand) -> Result<Condition, Error> {
        let (name, negated) = match operand {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            _ => return Err(self.error(format!("{operand:?} is not a predicate"))),
        };
        match self.find(name) {
            Some(Binding::Predicate(predicate)) => Ok(Condition { predicate, negated }),
            _ => Err(self.error(format!("{name} is not a predicate"))),
        }
    }

    /// A predicate destination; `_` gives one that nothing reads.
    ///
    /// # Errors
    /// Not a predicate register.
    pub fn predicate_destination(&mut self, operand: &Operand) -> Result<Pred, Error> {
        if matches!(operand, Operand::Sink) {
            return Ok(self.scratch_predicate());
        }
        let predicate = self.predicate(operand)?.predicate;
        self.touched.borrow_mut().destinations.push(Slot::Predicate(predicate.0));
        Ok(predicate)
    }
}

fn register(ty: Type, first: u32, number: u32) -> Binding {
    if ty == Type::Pred {
        return Binding::Predicate(Pred(first + number));
    }
    let width = Width::of_bits(ty.bits());
    Binding::Register(Reg { row: first + number * width.rows(), width }, ty)
}
