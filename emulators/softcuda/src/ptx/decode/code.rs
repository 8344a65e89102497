//! The decoded form of a whole function: instructions whose branches are indices.

use super::super::syntax::{Error, Instruction, Operand, Statement, Variable};
use super::super::target::Platform;
use super::super::types::{Space, Type};
use super::asynchronous::{self, Asynchronous};
use super::atomic::{self, Atomic};
use super::barrier::{self, Barrier};
use super::fragment::{self, Fragment};
use super::matrix::{self, Matrix};
use super::memory::{self, Memory};
use super::modifiers::Modifiers;
use super::operands::{Operands, Slot};
use super::scope::{Binding, Condition, Scope};
use super::warp::{self, Collective};
use super::wmma::{self, Wmma};
use super::{Arithmetic, arithmetic};
use crate::count::Class;
use crate::machine::registers::Reg;
use std::collections::HashMap;

/// One decoded instruction.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// What it does.
    pub operation: Operation,
    /// Lanes for which the condition does not hold skip it.
    pub guard: Option<Condition>,
    /// How it is counted.
    pub class: Class,
    /// The line of the PTX text.
    pub line: u32,
    /// Its registers.
    pub operands: Box<Operands>,
}

/// What an instruction does, by class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// Registers only.
    Arithmetic(Arithmetic),
    /// Loads, stores, addresses.
    Memory(Memory),
    /// `atom`, `red`.
    Atomic(Atomic),
    /// Lanes of a warp together.
    Warp(Collective),
    /// Barriers and fences.
    Barrier(Barrier),
    /// Asynchronous copies and `mbarrier`.
    Asynchronous(Asynchronous),
    /// Matrix products.
    Matrix(Matrix),
    /// Matrix products with fragments of their own: the number of the instruction, which is large.
    Wmma(u32),
    /// Matrix fragments to and from shared memory.
    Fragment(Fragment),
    /// Where to go next.
    Control(Control),
}

/// Control flow, and the few things that fit nowhere else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Control {
    /// `bra`.
    Branch(u32),
    /// `brx.idx`: the lanes' indices and the number of the table.
    BranchTable(Reg, u32),
    /// `call`: the number of the call site.
    Call(u32),
    /// `ret`.
    Return,
    /// `exit`.
    Exit,
    /// `trap`, and a failed `assert`.
    Trap,
    /// `nanosleep`: other warps go first.
    Yield,
    /// `activemask`.
    ActiveMask(Reg),
    /// `%clock`, `%clock64`, `%globaltimer`: instructions executed so far.
    Clock {
        /// The result.
        destination: Reg,
        /// Its upper 32 bits (`%clock_hi`, `%globaltimer_hi`).
        high: bool,
    },
    /// Instructions without an effect here: `pmevent`, `griddepcontrol`, `setmaxnreg`, ...
    Nothing,
}

/// A call: whom, and which bytes of the frames are copied.
#[derive(Clone, Debug)]
pub struct CallSite {
    /// A function of the module, or a register with its address.
    pub target: Target,
    /// Offset and size in the caller's frame of each argument.
    pub arguments: Vec<(u64, u64)>,
    /// Offset and size in the caller's frame of each result.
    pub results: Vec<(u64, u64)>,
}

/// The target of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// A function, by its index in the module.
    Function(u32),
    /// A register with a function's address.
    Register(Reg),
}

/// What the functions of a module share while they are decoded.
#[derive(Default)]
pub struct Code {
    /// All functions, one after the other.
    pub instructions: Vec<Decoded>,
    /// `brx.idx` tables.
    pub tables: Vec<Vec<u32>>,
    /// Call sites.
    pub calls: Vec<CallSite>,
    /// `wmma` instructions.
    pub wmma: Vec<Wmma>,
    /// What the module may use.
    pub platform: Platform,
    /// Before the first instruction of the function that is read: parameters in registers are loaded from the frame.
    pub prologue: Vec<Operation>,
    /// Before each of its `ret`: results in registers are stored to the frame.
    pub epilogue: Vec<Operation>,
    /// Around the call that is read: arguments and results in registers.
    pub(super) around_call: (Vec<Operation>, Vec<Operation>),
}

/// Opcodes without an effect here. `setmaxnreg` moves registers between warps; `griddepcontrol` orders kernels that run
/// in order anyway.
const NOTHING: &[&str] = &["pmevent", "griddepcontrol", "setmaxnreg", "brkpt"];

/// Opcodes of `matrix`.
const MATRIX: &[&str] = &["mma", "wgmma", "tcgen05"];

/// Labels of each scope of one function, and the branches to resolve.
#[derive(Default)]
struct Labels {
    scopes: Vec<HashMap<String, u32>>,
    /// Instruction, name, scopes from the outermost.
    branches: Vec<(u32, String, Vec<usize>)>,
    /// Table, names, scopes.
    tables: Vec<(u32, Vec<String>, Vec<usize>)>,
    /// `.branchtargets` by name.
    named_tables: HashMap<String, Vec<String>>,
}

impl Labels {
    fn find(&self, name: &str, scopes: &[usize]) -> Option<u32> {
        scopes.iter().rev().find_map(|scope| self.scopes[*scope].get(name).copied())
    }
}

/// The most local memory of a thread in bytes: the variables of all functions in progress.
pub const MOST_LOCAL_BYTES: u64 = 512 << 10;

/// Places a variable in the thread's frame; its offset.
///
/// # Errors
/// More local memory than a thread can have.
pub fn place_in_frame(variable: &Variable, scope: &mut Scope) -> Result<u64, Error> {
    let align = u64::from(variable.align.max(1));
    let offset = scope.frame.local_bytes.next_multiple_of(align);
    let end = offset.saturating_add(variable.bytes());
    if end > MOST_LOCAL_BYTES {
        let message = format!("{}: more than the {MOST_LOCAL_BYTES} bytes of local memory of a thread", variable.name);
        return Err(Error::new(variable.line, message));
    }
    scope.frame.local_bytes = end;
    scope.bind(
        &variable.name,
        Binding::Variable { space: variable.space, address: offset, of_kernel: false, size: variable.bytes() },
    );
    Ok(offset)
}

impl Code {
    /// Nothing yet, of a module for this platform.
    pub fn new(platform: Platform) -> Self {
        Self { platform, ..Self::default() }
    }

    /// Decodes a body and appends it; `shared` places the `.shared` variables that it declares. A `ret` is added at its
    /// end.
    ///
    /// # Errors
    /// What the decoders say; a label that does not exist.
    pub fn append(
        &mut self,
        body: &[Statement],
        scope: &mut Scope,
        shared: &mut dyn FnMut(&Variable) -> Result<u64, Error>,
        last_line: u32,
    ) -> Result<(), Error> {
        let mut labels = Labels::default();
        let frame = |operation| frame_access(operation, None, last_line);
        self.instructions.extend(std::mem::take(&mut self.prologue).into_iter().map(frame));
        self.statements(body, scope, shared, &mut labels, &mut Vec::new())?;
        let control = |control| Decoded {
            operation: Operation::Control(control),
            guard: None,
            class: Class::Control,
            line: last_line,
            operands: Box::default(),
        };
        self.instructions.extend(std::mem::take(&mut self.epilogue).into_iter().map(frame));
        self.instructions.push(control(Control::Return));
        for (place, name, scopes) in &labels.branches {
            let Some(target) = labels.find(name, scopes) else {
                let line = self.instructions[*place as usize].line;
                return Err(Error::new(line, format!("label {name} does not exist")));
            };
            self.instructions[*place as usize].operation = Operation::Control(Control::Branch(target));
        }
        for (table, names, scopes) in &labels.tables {
            for name in names {
                let target =
                    labels.find(name, scopes).ok_or_else(|| Error::new(0, format!("label {name} does not exist")))?;
                self.tables[*table as usize].push(target);
            }
        }
        Ok(())
    }

    fn statements(
        &mut self,
        statements: &[Statement],
        scope: &mut Scope,
        shared: &mut dyn FnMut(&Variable) -> Result<u64, Error>,
        labels: &mut Labels,
        scopes: &mut Vec<usize>,
    ) -> Result<(), Error> {
        scopes.push(labels.scopes.len());
        labels.scopes.push(HashMap::new());
        scope.open();
        for statement in statements {
            match statement {
                Statement::Label(name) => {
                    let here = self.instructions.len() as u32;
                    if let Some(scope) = scopes.last() {
                        labels.scopes[*scope].insert(name.clone(), here);
                    }
                }
                Statement::Register { ty, name, count } => scope.declare(*ty, name, *count)?,
                Statement::VectorRegister { ty, name, lanes } => scope.declare_vector(*ty, name, *lanes)?,
                Statement::Variable(variable) => match variable.space {
                    Space::Local | Space::Param => {
                        place_in_frame(variable, scope)?;
                    }
                    Space::Shared => {
                        let address = shared(variable)?;
                        let size = variable.bytes();
                        scope.bind(
                            &variable.name,
                            Binding::Variable { space: Space::Shared, address, of_kernel: true, size },
                        );
                    }
                    _ => {
                        return Err(Error::new(
                            variable.line,
                            "global variables inside of a function are not supported",
                        ));
                    }
                },
                Statement::Instruction(instruction) => {
                    scope.line = instruction.line;
                    let guard = match &instruction.guard {
                        None => None,
                        Some(guard) => {
                            let condition = scope.condition(&Operand::Name(guard.name.clone()))?;
                            Some(Condition { predicate: condition.predicate, negated: guard.negated })
                        }
                    };
                    // The guard is known apart.
                    scope.take_operands();
                    let expanded = scope.expand(instruction);
                    let instruction = expanded.as_ref().unwrap_or(instruction);
                    let (operation, class) = self.operation(instruction, scope, labels, scopes)?;
                    let operands = Box::new(scope.take_operands());
                    // After the decoder, so that what is not supported at all is refused as that.
                    self.platform.check(instruction, scope)?;
                    let line = instruction.line;
                    let (mut before, after) = std::mem::take(&mut self.around_call);
                    if operation == Operation::Control(Control::Return) {
                        before.clone_from(&self.epilogue);
                    }
                    self.instructions.extend(before.iter().map(|access| frame_access(*access, guard, line)));
                    self.instructions.push(Decoded { operation, guard, class, line, operands });
                    self.instructions.extend(after.iter().map(|access| frame_access(*access, guard, line)));
                }
                Statement::Scope(inner) => self.statements(inner, scope, shared, labels, scopes)?,
                Statement::BranchTargets { name, targets } => {
                    labels.named_tables.insert(name.clone(), targets.clone());
                }
                Statement::CallPrototype => {}
            }
        }
        scope.close();
        scopes.pop();
        Ok(())
    }

    fn operation(
        &mut self,
        instruction: &Instruction,
        scope: &mut Scope,
        labels: &mut Labels,
        scopes: &[usize],
    ) -> Result<(Operation, Class), Error> {
        let name = instruction.opcode.first().map_or("", AsRef::as_ref);
        if let Some(moved) = frame_move(instruction, scope)? {
            return Ok((moved, Class::Move));
        }
        if let Some(decoded) = arithmetic(instruction, scope)? {
            return Ok((Operation::Arithmetic(decoded), decoded.class()));
        }
        let mut modifiers = Modifiers::new(instruction);
        let words = &mut modifiers;
        let (operation, class) = if memory::OPCODES.contains(&name) && !asynchronous::is_asynchronous(instruction) {
            let memory = memory::decode(instruction, words, scope)?;
            (Operation::Memory(memory), memory.class())
        } else if atomic::OPCODES.contains(&name) && !asynchronous::is_asynchronous(instruction) {
            (Operation::Atomic(atomic::decode(instruction, words, scope)?), Class::Atomic)
        } else if warp::OPCODES.contains(&name) {
            (Operation::Warp(warp::decode(instruction, words, scope)?), Class::Warp)
        } else if barrier::OPCODES.contains(&name) {
            match barrier::decode(instruction, words, scope)? {
                Barrier::Warp(collective) => (Operation::Warp(collective), Class::Barrier),
                fence @ Barrier::Fence(_) => (Operation::Barrier(fence), Class::Fence),
                barrier => (Operation::Barrier(barrier), Class::Barrier),
            }
        } else if asynchronous::is_asynchronous(instruction) {
            let asynchronous = asynchronous::decode(instruction, words, scope)?;
            (Operation::Asynchronous(asynchronous), asynchronous.class())
        } else if fragment::OPCODES.contains(&name) {
            (Operation::Fragment(fragment::decode(instruction, words, scope)?), Class::Matrix)
        } else if name == "wmma" {
            self.wmma.push(wmma::decode(instruction, words, scope)?);
            (Operation::Wmma(self.wmma.len() as u32 - 1), Class::Matrix)
        } else if MATRIX.contains(&name) {
            (Operation::Matrix(matrix::decode(instruction, words, scope)?), Class::Matrix)
        } else {
            (Operation::Control(self.control(instruction, words, scope, labels, scopes)?), Class::Control)
        };
        modifiers.finish()?;
        Ok((operation, class))
    }

    fn control(
        &mut self,
        instruction: &Instruction,
        modifiers: &mut Modifiers,
        scope: &mut Scope,
        labels: &mut Labels,
        scopes: &[usize],
    ) -> Result<Control, Error> {
        let name = instruction.opcode.first().map_or("", AsRef::as_ref);
        modifiers.take("uni");
        match name {
            "bra" => {
                let Operand::Name(label) = scope.operand(instruction, 0)? else {
                    return Err(modifiers.error("needs a label"));
                };
                labels.branches.push((self.instructions.len() as u32, label.clone(), scopes.to_vec()));
                Ok(Control::Branch(u32::MAX))
            }
            "brx" => {
                modifiers.take("idx");
                let index = scope.source(scope.operand(instruction, 0)?, Type::U32)?;
                let Operand::Name(table) = scope.operand(instruction, 1)? else {
                    return Err(modifiers.error("needs a table"));
                };
                let Some(targets) = labels.named_tables.get(table).cloned() else {
                    return Err(modifiers.error("the table must be declared before"));
                };
                let number = self.tables.len() as u32;
                self.tables.push(Vec::new());
                labels.tables.push((number, targets, scopes.to_vec()));
                Ok(Control::BranchTable(index, number))
            }
            "call" => self.call(instruction, scope),
            "ret" => Ok(Control::Return),
            "exit" => Ok(Control::Exit),
            "trap" => Ok(Control::Trap),
            "nanosleep" => {
                modifiers.take("u32");
                Ok(Control::Yield)
            }
            "activemask" => {
                modifiers.take("b32");
                Ok(Control::ActiveMask(scope.destination(scope.operand(instruction, 0)?, Type::B32)?))
            }
            name if NOTHING.contains(&name) => {
                while modifiers.take_with(|_| Some(())).is_some() {}
                Ok(Control::Nothing)
            }
            name => Err(scope.error(format!("instruction {name} ({}) is not supported", instruction.opcode.join(".")))),
        }
    }
}

/// An access of the thread's frame that the program does not spell out.
fn frame_access(operation: Operation, guard: Option<Condition>, line: u32) -> Decoded {
    let mut operands = Operands::default();
    match &operation {
        Operation::Memory(Memory::Load(access)) => operands.destinations.push(Slot::Register(access.registers[0].row)),
        Operation::Memory(Memory::Store(access)) => operands.sources.push(Slot::Register(access.registers[0].row)),
        _ => {}
    }
    Decoded { operation, guard, class: Class::Local, line, operands: Box::new(operands) }
}

/// `mov` of what is not a constant: addresses in the frame, functions, clocks.
fn frame_move(instruction: &Instruction, scope: &mut Scope) -> Result<Option<Operation>, Error> {
    if instruction.opcode.first().map(AsRef::as_ref) != Some("mov") || instruction.operands.len() != 2 {
        return Ok(None);
    }
    let (name, offset) = match &instruction.operands[1] {
        Operand::Name(name) => (name.as_str(), 0),
        Operand::Offset(name, offset) => (name.as_str(), *offset),
        _ => return Ok(None),
    };
    let Some(ty) = instruction.opcode.get(1).and_then(|word| Type::parse(word)) else { return Ok(None) };
    if matches!(name, "%clock" | "%clock_hi" | "%clock64" | "%globaltimer" | "%globaltimer_lo" | "%globaltimer_hi") {
        let destination = scope.destination(&instruction.operands[0], ty)?;
        return Ok(Some(Operation::Control(Control::Clock { destination, high: name.ends_with("_hi") })));
    }
    match scope.find(name) {
        Some(Binding::Variable { space: Space::Local | Space::Param, address, of_kernel: false, .. }) => {
            let destination = scope.destination(&instruction.operands[0], ty)?;
            let offset = address.wrapping_add(offset as u64);
            Ok(Some(Operation::Memory(Memory::FrameAddress { destination, offset })))
        }
        _ => Ok(None),
    }
}
