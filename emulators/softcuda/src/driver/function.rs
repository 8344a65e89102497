//! Functions: attributes, names, parameters.

use super::entry::{Out, Outcome, entry_points};
use super::error::Code;
use super::limits::{Limits, REGISTERS, SHARED_DEFAULT};
use super::state::{Function, Handle, State, state};
use crate::machine::device::KernelInfo;
use std::ffi::c_char;

/// The size of a kernel's whole static and dynamic memory is limited to this unless it asks for more, in bytes.
pub(super) fn default_dynamic_limit(info: &KernelInfo) -> u32 {
    SHARED_DEFAULT.saturating_sub(info.static_shared_bytes)
}

/// Registers of a thread, as a compiler would leave them: no more than lets the largest block run.
pub(super) fn registers(info: &KernelInfo) -> u32 {
    let most = (REGISTERS / info.max_threads.clamp(1, 1024)) & !7;
    info.registers.clamp(16, 255).min(most.max(16))
}

impl Function {
    pub(super) fn info(&self) -> &KernelInfo {
        &self.program.kernels()[self.kernel]
    }

    /// The most dynamic shared memory of a launch in bytes.
    pub(super) fn dynamic_limit(&self) -> u32 {
        self.max_dynamic_shared.unwrap_or_else(|| default_dynamic_limit(self.info()))
    }

    fn attribute(&self, attribute: u32, limits: &Limits) -> Outcome<i32> {
        let info = self.info();
        let cluster = info.required_cluster.unwrap_or([0; 3]);
        Ok(match attribute {
            0 => info.max_threads as i32,
            1 => info.static_shared_bytes as i32,
            2 => info.constant_bytes as i32,
            3 => info.local_bytes as i32,
            4 => registers(info) as i32,
            5 => info.ptx_version as i32,
            6 => (limits.capability.0 * 10 + limits.capability.1) as i32,
            8 => self.dynamic_limit() as i32,
            9 => self.carveout,
            10 => i32::from(info.required_cluster.is_some()),
            11..=13 => cluster[attribute as usize - 11] as i32,
            14 => i32::from(self.non_portable_cluster),
            7 | 15 => 0,
            _ => return Err(Code::INVALID_VALUE),
        })
    }

    fn set_attribute(&mut self, attribute: u32, value: i32, limits: &Limits) -> Outcome {
        match attribute {
            8 => {
                let asked = u32::try_from(value).map_err(|_| Code::INVALID_VALUE)?;
                if asked.saturating_add(self.info().static_shared_bytes) > limits.shared_opt_in {
                    return Err(Code::INVALID_VALUE);
                }
                self.max_dynamic_shared = Some(asked);
            }
            9 if (-1..=100).contains(&value) => self.carveout = value,
            14 if limits.has_clusters() => self.non_portable_cluster = value != 0,
            15 if (0..=2).contains(&value) => {}
            _ => return Err(Code::INVALID_VALUE),
        }
        Ok(())
    }
}

impl State {
    pub(super) fn function(&self, function: Handle) -> Outcome<&Function> {
        self.check_initialised()?;
        let entry = self.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        self.check_fault(entry.context)?;
        Ok(entry)
    }

    fn set_function_attribute(&mut self, function: Handle, attribute: u32, value: i32) -> Outcome {
        self.function(function)?;
        let limits = self.limits();
        let entry = self.functions.get_mut(&function).ok_or(Code::INVALID_HANDLE)?;
        entry.set_attribute(attribute, value, &limits)
    }
}

/// Offset and size of a parameter in bytes.
fn parameter(function: Handle, index: usize, offset: Out<usize>, size: Out<usize>) -> Outcome {
    let state = state();
    let (start, bytes) = *state.function(function)?.info().parameters.get(index).ok_or(Code::INVALID_VALUE)?;
    offset.put(start as usize)?;
    size.put_if_wanted(bytes as usize);
    Ok(())
}

entry_points! {
    fn cuFuncGetAttribute(value: Out<i32>, attribute: u32, function: Handle) {
        value.check()?;
        let state = state();
        value.put(state.function(function)?.attribute(attribute, &state.limits())?)
    }
    fn cuFuncSetAttribute(function: Handle, attribute: u32, value: i32) {
        state().set_function_attribute(function, attribute, value)
    }
    fn cuFuncSetCacheConfig(function: Handle, config: u32) {
        state().function(function)?;
        if config > 3 { Err(Code::INVALID_VALUE) } else { Ok(()) }
    }
    fn cuFuncSetSharedMemConfig(function: Handle, config: u32) {
        state().function(function)?;
        if config > 2 { Err(Code::INVALID_VALUE) } else { Ok(()) }
    }
    fn cuFuncGetModule(module: Out<Handle>, function: Handle) {
        module.put(state().function(function)?.module)
    }
    fn cuFuncGetName(name: Out<*const c_char>, function: Handle) {
        // The text lives as long as the module.
        name.put(state().function(function)?.name.as_ptr())
    }
    fn cuFuncGetParamInfo(function: Handle, index: usize, offset: Out<usize>, size: Out<usize>) {
        parameter(function, index, offset, size)
    }
    fn cuFuncGetParamCount(function: Handle, count: Out<usize>) {
        count.put(state().function(function)?.info().parameters.len())
    }
    fn cuFuncIsLoaded(loaded: Out<u32>, function: Handle) {
        state().function(function)?;
        loaded.put(1)
    }
    fn cuFuncLoad(function: Handle) {
        state().function(function).map(drop)
    }
    fn cuKernelGetAttribute(value: Out<i32>, attribute: u32, kernel: Handle, device: i32) {
        value.check()?;
        let state = state();
        state.ordinal(device)?;
        value.put(state.function(kernel)?.attribute(attribute, &state.limits())?)
    }
    fn cuKernelSetAttribute(attribute: u32, value: i32, kernel: Handle, device: i32) {
        let mut state = state();
        state.ordinal(device)?;
        state.set_function_attribute(kernel, attribute, value)
    }
    fn cuKernelSetCacheConfig(kernel: Handle, config: u32, device: i32) {
        let state = state();
        state.ordinal(device)?;
        state.function(kernel)?;
        if config > 3 { Err(Code::INVALID_VALUE) } else { Ok(()) }
    }
    fn cuKernelGetName(name: Out<*const c_char>, kernel: Handle) {
        name.put(state().function(kernel)?.name.as_ptr())
    }
    fn cuKernelGetParamInfo(kernel: Handle, index: usize, offset: Out<usize>, size: Out<usize>) {
        parameter(kernel, index, offset, size)
    }
    fn cuKernelGetParamCount(kernel: Handle, count: Out<usize>) {
        count.put(state().function(kernel)?.info().parameters.len())
    }
}
