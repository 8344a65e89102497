//! Devices: how many, and what they can do.

use super::entry::{Out, Outcome, Text, entry_points, same_as};
use super::error::Code;
use super::limits::Limits;
use super::state::{State, state};

impl State {
    /// The limits of the devices; they are all alike.
    pub(super) fn limits(&self) -> Limits {
        Limits::of(self.settings.compute_capability)
    }
}

/// Writes a text and its NUL into a buffer of `room` bytes, cut to fit.
fn put_text(text: &str, buffer: Out<u8>, room: i32) -> Outcome {
    buffer.check()?;
    let room = usize::try_from(room).ok().filter(|&room| room > 0).ok_or(Code::INVALID_VALUE)?;
    let bytes = &text.as_bytes()[..text.len().min(room - 1)];
    for (index, &byte) in bytes.iter().enumerate() {
        buffer.put_at(index, byte)?;
    }
    buffer.put_at(bytes.len(), 0)
}

fn bus_address(ordinal: u32) -> String {
    format!("0000:{:02X}:00.0", ordinal + 1)
}

/// Sixteen bytes that tell devices apart and are the same in every process.
fn identity(ordinal: u32) -> [u8; 16] {
    let mut bytes = *b"softcuda-device\0";
    bytes[15] = ordinal as u8;
    bytes
}

entry_points! {
    fn cuDeviceGetCount(count: Out<i32>) {
        let state = state();
        state.check_initialised()?;
        count.put(state.settings.devices as i32)
    }
    fn cuDeviceGet(device: Out<i32>, ordinal: i32) {
        device.check()?;
        let ordinal = state().ordinal(ordinal)?;
        device.put(ordinal as i32)
    }
    fn cuDeviceGetName(name: Out<u8>, room: i32, device: i32) {
        let state = state();
        state.ordinal(device)?;
        let (major, minor) = state.settings.compute_capability;
        put_text(&format!("softcuda sm_{major}{minor}"), name, room)
    }
    fn cuDeviceGetUuid(id: Out<[u8; 16]>, device: i32) {
        let ordinal = state().ordinal(device)?;
        id.put(identity(ordinal))
    }
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) {
        let state = state();
        state.ordinal(device)?;
        bytes.put(state.settings.memory_bytes as usize)
    }
    fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: i32) {
        value.check()?;
        let state = state();
        let ordinal = state.ordinal(device)?;
        let found = state.limits().attribute(attribute).ok_or(Code::INVALID_VALUE)?;
        // The PCI bus tells devices apart.
        value.put(if attribute == 33 { found + ordinal as i32 } else { found })
    }
    fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: i32) {
        let state = state();
        state.ordinal(device)?;
        major.put(state.settings.compute_capability.0 as i32)?;
        minor.put(state.settings.compute_capability.1 as i32)
    }
    fn cuDeviceGetPCIBusId(address: Out<u8>, room: i32, device: i32) {
        let ordinal = state().ordinal(device)?;
        put_text(&bus_address(ordinal), address, room)
    }
    fn cuDeviceGetByPCIBusId(device: Out<i32>, address: Text) {
        let state = state();
        state.check_initialised()?;
        let address = address.get()?.to_uppercase();
        let found = (0..state.settings.devices).find(|&ordinal| bus_address(ordinal) == address);
        device.put(found.ok_or(Code::INVALID_DEVICE)? as i32)
    }
    fn cuDeviceCanAccessPeer(able: Out<i32>, device: i32, other: i32) {
        let state = state();
        let (device, other) = (state.ordinal(device)?, state.ordinal(other)?);
        able.put(i32::from(device != other))
    }
    fn cuDeviceGetP2PAttribute(value: Out<i32>, attribute: u32, device: i32, other: i32) {
        let state = state();
        let (device, other) = (state.ordinal(device)?, state.ordinal(other)?);
        if device == other || !(1..=4).contains(&attribute) {
            return Err(Code::INVALID_VALUE);
        }
        value.put(i32::from(attribute == 2))
    }
    fn cuDeviceGetExecAffinitySupport(able: Out<i32>, kind: u32, device: i32) {
        state().ordinal(device)?;
        let _ = kind;
        able.put(0)
    }
}

same_as! {
    cuDeviceGetUuid_v2 = cuDeviceGetUuid(id: Out<[u8; 16]>, device: i32);
}
