//! Loads, stores, and addresses.

use super::local::LocalRefusal;
use crate::count::traffic;
use crate::machine::memory::Refusal;
use crate::machine::memory::Who;
use crate::machine::registers::{LANES, Width};
use crate::machine::step::{LaneFault, Step, lanes};
use crate::machine::undefined;
use crate::machine::window;
use crate::ptx::decode::memory::{Access, MOST_ELEMENTS, Memory};
use crate::ptx::decode::operands::Slot;
use crate::ptx::types::Space;
use crate::report::FaultKind;

/// The most 64-bit pieces of a lane's access: 32 bytes.
const PIECES: usize = 8;

/// The values of the elements: `[piece][lane]`; a 128-bit element takes two pieces, every other one.
type Values = [[u64; LANES]; PIECES];

/// Executes an operation on memory or addresses for the lanes of `active`.
///
/// # Errors
/// The first lane whose access is refused.
pub fn execute(operation: &Memory, step: &mut Step, active: u32) -> Result<(), LaneFault> {
    match operation {
        Memory::Load(access) => load(access, step, active),
        Memory::Store(access) => store(access, step, active),
        Memory::ConvertAddress { destination, source, space, from_generic } => {
            let window = window::of(*space).unwrap_or(0);
            let values = step.warp.registers.extended(*source).map(|address| {
                if *from_generic {
                    address.wrapping_sub(window)
                } else if window == 0 {
                    address
                } else {
                    (address & 0xffff_ffff) + window
                }
            });
            step.warp.registers.set_extended(*destination, active, &values);
            Ok(())
        }
        Memory::IsSpace { destination, source, space } => {
            let addresses = step.warp.registers.extended(*source);
            let mut bits = 0;
            for (lane, address) in addresses.iter().enumerate() {
                let (found, within) = window::resolve(*address);
                let own = || match window::shared_place(within as u32).0 {
                    None => true,
                    Some(rank) => rank as usize == step.warp.block,
                };
                let is = match space {
                    Space::Shared => found == Space::SharedCluster && own(),
                    // Constant variables lie in global memory here.
                    Space::Const => false,
                    space => found == *space,
                };
                bits |= u32::from(is) << lane;
            }
            step.warp.registers.set_predicate(*destination, active, bits);
            Ok(())
        }
        Memory::MapAddress { destination, source, rank, generic } => {
            map_address(step, active, (*destination, *source, *rank, *generic))
        }
        Memory::Rank { destination, source, generic } => {
            let own = step.warp.block as u32;
            let ranks = step.warp.registers.extended(*source).map(|address| {
                let within = if *generic { window::resolve(address).1 } else { address };
                u64::from(window::shared_place(within as u32).0.unwrap_or(own))
            });
            step.warp.registers.set_extended(*destination, active, &ranks);
            Ok(())
        }
        Memory::FrameAddress { destination, offset } => {
            let address = [step.local_frame.wrapping_add(*offset); LANES];
            step.warp.registers.set_extended(*destination, active, &address);
            Ok(())
        }
        Memory::Nothing => Ok(()),
    }
}

fn map_address(
    step: &mut Step,
    active: u32,
    (destination, source, rank, generic): (
        crate::machine::registers::Reg,
        crate::machine::registers::Reg,
        crate::machine::registers::Reg,
        bool,
    ),
) -> Result<(), LaneFault> {
    let ranks = step.warp.registers.word(rank);
    let mut addresses = step.warp.registers.extended(source);
    for lane in lanes(active) {
        if ranks[lane] as usize >= step.blocks.len() {
            let message = format!("mapa to rank {} in a cluster of {} blocks", ranks[lane], step.blocks.len());
            return Err(LaneFault::new(lane, FaultKind::InvalidOperation, message));
        }
        let within = if generic { window::resolve(addresses[lane]).1 } else { addresses[lane] };
        let mapped = u64::from(window::shared_address(ranks[lane], window::shared_place(within as u32).1));
        addresses[lane] = if generic { window::SHARED + mapped } else { mapped };
    }
    step.warp.registers.set_extended(destination, active, &addresses);
    Ok(())
}

fn refuse_local(lane: usize, address: u64, refusal: LocalRefusal) -> LaneFault {
    let refusal = match refusal {
        LocalRefusal::OutOfBounds => Refusal::new(FaultKind::OutOfBounds, "outside of the thread's local memory"),
        LocalRefusal::Uninitialized(byte) => {
            Refusal::new(FaultKind::Uninitialized, format!("byte {byte:#x} of local memory was never written"))
        }
    };
    LaneFault::at(lane, address, refusal)
}

fn misaligned(lane: usize, address: u64, bytes: u64) -> LaneFault {
    LaneFault::at(
        lane,
        address,
        Refusal::new(FaultKind::Misaligned, format!("the address is not a multiple of {bytes}")),
    )
}

/// Counts a warp's access and looks at its alignment.
pub(super) fn account(
    step: &mut Step,
    space: Space,
    addresses: &[u64; LANES],
    active: u32,
    bytes: u64,
    is_load: bool,
) -> Result<(), LaneFault> {
    if let Some(lane) = lanes(active).find(|lane| !addresses[*lane].is_multiple_of(bytes)) {
        return Err(misaligned(lane, addresses[lane], bytes));
    }
    let total = u64::from(active.count_ones()) * bytes;
    match space {
        Space::Global => {
            let sectors = traffic::sectors(addresses, active, bytes);
            let distinct = traffic::distinct_bytes(addresses, active, bytes);
            let global = &mut step.tally.global;
            if is_load {
                global.bytes_loaded += total;
                global.warp_bytes_loaded += distinct;
                global.sectors_loaded += sectors;
            } else {
                global.bytes_stored += total;
                global.warp_bytes_stored += distinct;
                global.sectors_stored += sectors;
            }
        }
        Space::Shared | Space::SharedCluster => {
            // Banks are each block's own; lanes that go to different blocks are rare enough to be counted together.
            let (needed, fewest) = traffic::wavefronts(addresses, active, bytes);
            let shared = &mut step.tally.shared;
            *(if is_load { &mut shared.bytes_loaded } else { &mut shared.bytes_stored }) += total;
            shared.wavefronts += needed;
            shared.bank_conflicts += needed - fewest;
        }
        _ => {}
    }
    Ok(())
}

fn load(access: &Access, step: &mut Step, active: u32) -> Result<(), LaneFault> {
    let bytes = access.element_bits / 8 * access.count;
    let mut values: Values = [[0; LANES]; PIECES];
    let mut undefined: Option<(String, [u32; MOST_ELEMENTS])> = None;
    for (space, members, addresses) in step.by_space(&access.address, active) {
        if space != Space::Param {
            account(step, space, &addresses, members, u64::from(bytes), true)?;
        }
        for lane in lanes(members) {
            let mut buffer = [0_u8; 32];
            let bytes = &mut buffer[..bytes as usize];
            if let Err(fault) = load_lane(access, step, space, lane, addresses[lane], bytes, false) {
                if fault.refusal.kind != FaultKind::Uninitialized || step.launched.checks.uninitialized_loads {
                    return Err(fault);
                }
                load_lane(access, step, space, lane, addresses[lane], bytes, true)?;
                let (_, elements) = undefined.get_or_insert((fault.refusal.message, [0; MOST_ELEMENTS]));
                note_undefined(access, step, space, lane, addresses[lane], elements);
            }
            spread(access, &buffer, lane, &mut values);
        }
    }
    write_elements(access, step, active, &values);
    if let Some((message, elements)) = undefined {
        for (reg, lanes) in access.registers.iter().zip(elements).take(access.count as usize) {
            step.warp.registers.set_loaded(reg.row, active, lanes, step.place, &message);
        }
    }
    Ok(())
}

/// Adds a lane to those for which nobody has written all bytes of an element, element by element.
#[cold]
fn note_undefined(
    access: &Access,
    step: &Step,
    space: Space,
    lane: usize,
    address: u64,
    elements: &mut [u32; MOST_ELEMENTS],
) {
    let width = access.element_bits as usize / 8;
    for (element, place) in elements.iter_mut().zip(access.places(address)) {
        let is_written = match space {
            Space::Param => true,
            Space::Local => step.warp.local.is_written(lane, place, width),
            Space::Shared | Space::SharedCluster => step
                .shared_place(lane, place)
                .is_ok_and(|(block, offset)| step.blocks[block].shared.is_initialized(offset, width)),
            _ => step.launched.memory.is_initialized(place, width),
        };
        *element |= u32::from(!is_written) << lane;
    }
}

/// Reads the bytes of one lane from any space.
fn load_lane(
    access: &Access,
    step: &mut Step,
    space: Space,
    lane: usize,
    address: u64,
    bytes: &mut [u8],
    takes_undefined: bool,
) -> Result<(), LaneFault> {
    let thread = step.thread(lane);
    match space {
        Space::Param => {
            let block = &step.launched.launch.parameters;
            let place =
                usize::try_from(address).ok().and_then(|start| block.get(start..start.checked_add(bytes.len())?));
            let Some(place) = place else {
                let message = format!("outside of the {} bytes of parameters", block.len());
                return Err(LaneFault::at(lane, address, Refusal::new(FaultKind::OutOfBounds, message)));
            };
            bytes.copy_from_slice(place);
            Ok(())
        }
        Space::Local => {
            let check = step.launched.checks.uninitialized && !takes_undefined;
            step.warp.local.load(lane, address, bytes, check).map_err(|refusal| refuse_local(lane, address, refusal))
        }
        Space::Shared | Space::SharedCluster => {
            let (block, offset) = step.shared_place(lane, address)?;
            let who = Who { scope: access.scope, takes_undefined, ..Who::weak(thread, step.clocks, step.place) };
            let shared = &mut step.blocks[block].shared;
            shared.load(&who, offset, bytes).map_err(|refusal| LaneFault::at(lane, address, refusal))?;
            if let Some(scope) = access.scope {
                let reader = step.clocks.reader(thread, scope);
                for place in access.places(u64::from(offset)) {
                    if let Some(found) = shared.message_at(place as u32, reader) {
                        step.clocks.read_flag(thread, &found, access.order.acquires());
                    }
                }
            }
            Ok(())
        }
        _ => {
            let (scope, read_only) = (access.scope, access.read_only);
            let who = Who { scope, read_only, takes_undefined, ..Who::weak(thread, step.clocks, step.place) };
            let memory = &step.launched.memory;
            memory.load(&who, address, bytes).map_err(|refusal| LaneFault::at(lane, address, refusal))?;
            if let Some(scope) = scope {
                let reader = step.clocks.reader(thread, scope);
                for place in access.places(address) {
                    if let Some(found) = memory.message_at(place, reader) {
                        step.clocks.read_flag(thread, &found, access.order.acquires());
                    }
                }
            }
            Ok(())
        }
    }
}

/// Takes a lane's bytes apart into elements.
#[inline(always)]
fn spread(access: &Access, buffer: &[u8; 32], lane: usize, values: &mut Values) {
    let word = |at: usize, n: usize| {
        let mut bytes = [0; 8];
        bytes[..n].copy_from_slice(&buffer[at..at + n]);
        u64::from_le_bytes(bytes)
    };
    for element in 0..access.count as usize {
        match access.element_bits {
            8 => values[element][lane] = u64::from(buffer[element]),
            16 => values[element][lane] = word(2 * element, 2),
            32 => values[element][lane] = word(4 * element, 4),
            64 => values[element][lane] = word(8 * element, 8),
            _ => {
                values[2 * element][lane] = word(16 * element, 8);
                values[2 * element + 1][lane] = word(16 * element + 8, 8);
            }
        }
    }
}

fn write_elements(access: &Access, step: &mut Step, active: u32, values: &Values) {
    for element in 0..access.count as usize {
        let reg = access.registers[element];
        if access.element_bits == 128 {
            let wide = std::array::from_fn(|lane| {
                u128::from(values[2 * element][lane]) | u128::from(values[2 * element + 1][lane]) << 64
            });
            step.warp.registers.set_wide(reg, active, &wide);
        } else if access.extend_to > 0 {
            let from = 64 - access.element_bits;
            let extended = values[element].map(|value| (value << from) as i64 >> from);
            if reg.width == Width::Wide {
                step.warp.registers.set_wide(reg, active, &extended.map(|value| i128::from(value) as u128));
            } else {
                let to = 64 - access.extend_to;
                step.warp.registers.set_extended(reg, active, &extended.map(|value| (value as u64) << to >> to));
            }
        } else {
            step.warp.registers.set_extended(reg, active, &values[element]);
        }
    }
}

fn store(access: &Access, step: &mut Step, active: u32) -> Result<(), LaneFault> {
    let width = access.element_bits as usize / 8;
    let bytes = width * access.count as usize;
    let mut buffers = [[0_u8; 32]; LANES];
    for element in 0..access.count as usize {
        let reg = access.registers[element];
        if reg.width == Width::Wide {
            let values = step.warp.registers.wide(reg);
            for lane in lanes(active) {
                buffers[lane][element * width..][..width].copy_from_slice(&values[lane].to_le_bytes()[..width]);
            }
        } else {
            let values = step.warp.registers.extended(reg);
            for lane in lanes(active) {
                buffers[lane][element * width..][..width].copy_from_slice(&values[lane].to_le_bytes()[..width]);
            }
        }
    }
    for (space, members, addresses) in step.by_space(&access.address, active) {
        account(step, space, &addresses, members, bytes as u64, false)?;
        let follows = step.warp.registers.has_undefined();
        if follows && space != Space::Local {
            let slots: Vec<Slot> =
                access.registers[..access.count as usize].iter().map(|reg| Slot::Register(reg.row)).collect();
            if let Some(fault) = undefined::used(step, members, &slots, "what is stored") {
                return Err(fault);
            }
        }
        for lane in lanes(members) {
            store_lane(access, step, space, lane, addresses[lane], &buffers[lane][..bytes])?;
            if follows && space == Space::Local {
                for (reg, place) in access.registers.iter().zip(access.places(addresses[lane])) {
                    if undefined::lanes_of(&step.warp.registers, reg.row) >> lane & 1 == 1 {
                        step.warp.local.forget(lane, place, width as u64);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Writes the bytes of one lane to any space.
fn store_lane(
    access: &Access,
    step: &mut Step,
    space: Space,
    lane: usize,
    address: u64,
    bytes: &[u8],
) -> Result<(), LaneFault> {
    let thread = step.thread(lane);
    let published = access.scope.and_then(|scope| step.clocks.publish(thread, scope, access.order.releases()));
    match space {
        Space::Param => Err(LaneFault::at(
            lane,
            address,
            Refusal::new(FaultKind::ReadOnlyWrite, "kernel parameters cannot be written"),
        )),
        Space::Local => {
            step.warp.local.store(lane, address, bytes).map_err(|refusal| refuse_local(lane, address, refusal))
        }
        Space::Shared | Space::SharedCluster => {
            let (block, offset) = step.shared_place(lane, address)?;
            let who = Who { scope: access.scope, ..Who::weak(thread, step.clocks, step.place) };
            let shared = &mut step.blocks[block].shared;
            if let Some(message) = published {
                access.places(u64::from(offset)).for_each(|place| shared.publish_at(place as u32, &message));
            }
            shared.store(&who, offset, bytes).map_err(|refusal| LaneFault::at(lane, address, refusal))
        }
        _ => {
            let who = Who { scope: access.scope, ..Who::weak(thread, step.clocks, step.place) };
            let memory = &step.launched.memory;
            if let Some(message) = published {
                access.places(address).for_each(|place| memory.publish_at(place, &message));
            }
            memory.store(&who, address, bytes).map_err(|refusal| LaneFault::at(lane, address, refusal))
        }
    }
}
