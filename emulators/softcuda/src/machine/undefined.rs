//! Values that nobody wrote, from the load that brought them into a register to where they are used.
//!
//! A load of bytes that nobody has written is no fault yet: kernels load more than they use (a merge reads one key beyond
//! its run), and nvcc loads words for a byte. The lanes of a register that hold such a value are *undefined*, and so are
//! results that are computed of it, unless the undefined operand does not matter (`selp`, `and` and `or` of predicates).
//! A fault is where an undefined value decides something or leaves the thread: a guard or branch, an address, a store
//! to global or shared memory, an atomic, a barrier, a matrix product. In local memory it stays what it is.
//!
//! Limits: a register is undefined as a whole, and integer arithmetic makes no exception for operands that cancel the
//! undefined bits (`and` with a mask).

use super::memory::{Earlier, Refusal};
use super::registers::Registers;
use super::step::{LaneFault, Step};
use crate::ptx::decode::Arithmetic;
use crate::ptx::decode::code::{Decoded, Operation};
use crate::ptx::decode::memory::Memory;
use crate::ptx::decode::operands::Slot;
use crate::ptx::decode::scope::Condition;
use crate::ptx::decode::select::{Connective, Select, Truth};
use crate::report::FaultKind;

/// The undefined lanes of a warp's registers: (lanes, the load that the value comes from, an index into `origins`) of
/// each row and each predicate of the register file, as far as there were any.
#[derive(Debug, Default)]
pub struct Undefined {
    rows: Vec<(u32, u32)>,
    predicates: Vec<(u32, u32)>,
    /// Rows and predicates with undefined lanes.
    count: usize,
    origins: Vec<Origin>,
}

/// A load of what nobody wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    instruction: u32,
    message: String,
}

impl Undefined {
    fn get(&self, slot: Slot) -> (u32, u32) {
        let (table, index) = match slot {
            Slot::Register(row) => (&self.rows, row),
            Slot::Predicate(predicate) => (&self.predicates, predicate),
        };
        table.get(index as usize).copied().unwrap_or_default()
    }

    fn set(&mut self, slot: Slot, lanes: u32, origin: u32) {
        let (table, index) = match slot {
            Slot::Register(row) => (&mut self.rows, row as usize),
            Slot::Predicate(predicate) => (&mut self.predicates, predicate as usize),
        };
        if table.len() <= index {
            table.resize(index + 1, (0, 0));
        }
        let old = std::mem::replace(&mut table[index], (lanes, origin));
        self.count = self.count + usize::from(lanes != 0) - usize::from(old.0 != 0);
    }
}

impl Registers {
    fn undefined_lanes(&self, slot: Slot) -> u32 {
        self.undefined.as_ref().map_or(0, |undefined| undefined.get(self.absolute(slot)).0)
    }

    fn absolute(&self, slot: Slot) -> Slot {
        let (rows, predicates) = self.frame();
        match slot {
            Slot::Register(row) => Slot::Register(row + rows as u32),
            Slot::Predicate(predicate) => Slot::Predicate(predicate + predicates as u32),
        }
    }

    /// The lanes of `active` take the value of a load: those of `undefined` one that nobody wrote.
    pub fn set_loaded(&mut self, row: u32, active: u32, undefined: u32, instruction: u32, message: &str) {
        let slot = self.absolute(Slot::Register(row));
        let all = self.undefined.get_or_insert_default();
        let known = all.origins.iter().position(|known| known.instruction == instruction);
        let origin = known.unwrap_or_else(|| {
            all.origins.push(Origin { instruction, message: message.to_owned() });
            all.origins.len() - 1
        });
        let old = all.get(slot).0 & !active;
        all.set(slot, old | undefined & active, origin as u32);
    }

    /// Writes the undefined lanes of a slot, with the origin of one of the sources.
    fn spread(&mut self, slot: Slot, active: u32, undefined: u32, mut sources: impl Iterator<Item = Slot>) {
        let slot = self.absolute(slot);
        let Some(all) = &self.undefined else { return };
        let (old, mut origin) = all.get(slot);
        let new = old & !active | undefined & active;
        if new == old {
            return;
        }
        if undefined & active != 0
            && let Some(found) =
                sources.find_map(|source| Some(all.get(self.absolute(source))).filter(|found| found.0 != 0))
        {
            origin = found.1;
        }
        let Some(all) = &mut self.undefined else { return };
        all.set(slot, new, origin);
        if all.count == 0 {
            self.undefined = None;
        }
    }

    /// New registers of a frame: what lay there before is gone.
    pub fn forget_undefined(&mut self, rows: u32, predicates: u32, active: u32) {
        let slots = (0..rows).map(Slot::Register).chain((0..predicates).map(Slot::Predicate));
        slots.for_each(|slot| self.spread(slot, active, 0, std::iter::empty()));
    }
}

/// The undefined lanes of any of the slots.
fn any(registers: &Registers, slots: &[Slot]) -> u32 {
    slots.iter().fold(0, |lanes, slot| lanes | registers.undefined_lanes(*slot))
}

fn guard_slot(condition: Condition) -> Slot {
    Slot::Predicate(condition.predicate.0)
}

/// The fault of using an undefined value; `None` if no lane of `active` does.
pub fn used(step: &Step, active: u32, slots: &[Slot], what: &str) -> Option<LaneFault> {
    let registers = &step.warp.registers;
    let (slot, lanes) =
        slots.iter().map(|slot| (*slot, registers.undefined_lanes(*slot) & active)).find(|(_, lanes)| *lanes != 0)?;
    let all = registers.undefined.as_ref()?;
    let origin = &all.origins[all.get(registers.absolute(slot)).1 as usize];
    let lane = lanes.trailing_zeros() as usize;
    let message = format!("{what} is a value that nobody wrote: {} when it was loaded", origin.message);
    let mut refusal = Refusal::new(FaultKind::Uninitialized, message);
    refusal.other = Some(Box::new(Earlier {
        wrote: false,
        block: step.blocks[step.warp.block].linear,
        thread: step.warp.first_in_block + lane as u32,
        instruction: origin.instruction,
        is_plain_read_of_swapped: false,
    }));
    Some(LaneFault { elsewhere: None, lane, address: None, refusal: Box::new(refusal) })
}

/// Before an instruction is executed for `active` of the lanes of `mask`: finds uses of undefined values, and says which
/// of its results will be undefined. Stores and warp instructions are seen to where they are executed.
///
/// # Errors
/// The first use.
pub fn before(step: &mut Step, instruction: &Decoded, mask: u32, active: u32) -> Result<(), LaneFault> {
    let operands = &instruction.operands;
    let guard = instruction.guard.map(guard_slot);
    if let Operation::Arithmetic(arithmetic) = &instruction.operation {
        let registers = &mut step.warp.registers;
        let undefined = of_result(arithmetic, registers, &operands.sources);
        let unsure = any(registers, guard.as_slice()) & mask;
        for destination in &operands.destinations {
            let sources = operands.sources.iter().copied().chain(guard);
            registers.spread(*destination, active | unsure, undefined | unsure, sources);
        }
        return Ok(());
    }
    let report = |fault: Option<LaneFault>| fault.map_or(Ok(()), Err);
    report(used(step, mask, guard.as_slice(), "the guard"))?;
    if active == 0 {
        return Ok(());
    }
    report(used(step, active, &operands.addresses, "the address"))?;
    let undefined = match &instruction.operation {
        Operation::Warp(_) | Operation::Memory(Memory::Store(_)) => return Ok(()),
        Operation::Memory(_) => any(&step.warp.registers, &operands.sources),
        _ => {
            report(used(step, active, &operands.sources, "an operand"))?;
            0
        }
    };
    for destination in &operands.destinations {
        step.warp.registers.spread(*destination, active, undefined, operands.sources.iter().copied());
    }
    Ok(())
}

/// Lanes in which the result of arithmetic is undefined.
fn of_result(arithmetic: &Arithmetic, registers: &Registers, sources: &[Slot]) -> u32 {
    let of_truth = |truth: Truth| match truth {
        Truth::Constant(value) => (0, if value { u32::MAX } else { 0 }),
        Truth::Register(condition) => {
            let bits = registers.predicate(condition.predicate);
            (registers.undefined_lanes(guard_slot(condition)), if condition.negated { !bits } else { bits })
        }
    };
    // (undefined, value) of both sides: one that decides alone makes the other one irrelevant.
    let connected = |connective: Connective, first: (u32, u32), second: (u32, u32)| {
        let decides = |side: (u32, u32)| match connective {
            Connective::And => !side.0 & !side.1,
            Connective::Or => !side.0 & side.1,
            Connective::Xor => 0,
        };
        (first.0 | second.0) & !decides(first) & !decides(second)
    };
    let register = |row: u32| registers.undefined_lanes(Slot::Register(row));
    match arithmetic {
        Arithmetic::Select(Select::Choose { sources: [first, second], truth, .. }) => {
            let (undefined, chooses) = of_truth(*truth);
            undefined | register(first.row) & chooses | register(second.row) & !chooses
        }
        Arithmetic::Select(Select::Logic { connective, sources: [first, second], .. }) => {
            connected(*connective, of_truth(*first), of_truth(*second))
        }
        Arithmetic::Select(Select::Compare(compare)) => {
            let compared = register(compare.sources[0].row) | register(compare.sources[1].row);
            match compare.combined {
                None => compared,
                // What is compared decides nothing here where it is defined: it has not been compared yet.
                Some((connective, other)) => {
                    let (undefined, value) = of_truth(other);
                    let decided = match connective {
                        Connective::And => !undefined & !value,
                        Connective::Or => !undefined & value,
                        Connective::Xor => 0,
                    };
                    (compared | undefined) & !decided
                }
            }
        }
        _ => any(registers, sources),
    }
}

/// Before a warp instruction is executed for `members`: each lane's result is undefined if the lane that it reads from
/// has an undefined value (`from`, of shuffles), otherwise if any lane has.
pub fn collective(step: &mut Step, members: u32, from: Option<&[usize; 32]>) {
    let program = step.launched.program;
    let operands = &program.instructions[step.place as usize].operands;
    let registers = &mut step.warp.registers;
    let given = any(registers, &operands.sources) & members;
    let undefined = match from {
        Some(from) => (0..32).fold(0, |lanes, lane| lanes | (given >> from[lane] & 1) << lane),
        None if given == 0 => 0,
        None => u32::MAX,
    };
    for destination in &operands.destinations {
        registers.spread(*destination, members, undefined, operands.sources.iter().copied());
    }
}

/// The undefined lanes of the register that begins at a row.
pub fn lanes_of(registers: &Registers, row: u32) -> u32 {
    registers.undefined_lanes(Slot::Register(row))
}
