//! Random calls: arguments, handles and order may be anything; the process lives, and at the end all memory is given
//! back.

// Every call is unsafe for one reason: softcuda looks handles and device addresses up and follows none; places are
// there.
#![allow(clippy::undocumented_unsafe_blocks)]

mod driver_support;

use cudarc::driver::sys::{self, CUresult};
use driver_support::{KERNELS, alone};
use proptest::prelude::*;
use softcuda::Settings;
use std::ffi::{CString, c_void};
use std::ptr::{null_mut, without_provenance_mut};

/// What a handle or address is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Nothing,
    Memory,
    Host,
    Stream,
    Event,
    Module,
    Function,
    Graph,
    Executable,
    Context,
}

/// Handles that the calls gave, and some that none gave.
struct Pool {
    handles: Vec<(Of, u64)>,
    host: Vec<u8>,
    module: CString,
}

impl Pool {
    /// Mostly one of the right kind, now and then any; freed ones too.
    fn choose(&self, of: Of, choice: u64) -> u64 {
        let right: Vec<_> = self.handles.iter().filter(|handle| handle.0 == of).collect();
        if choice.is_multiple_of(5) || right.is_empty() {
            return self.handles[choice as usize % self.handles.len()].1;
        }
        right[choice as usize % right.len()].1
    }

    fn pick<T>(&self, of: Of, choice: u64) -> *mut T {
        without_provenance_mut(self.choose(of, choice) as usize)
    }

    /// An address in or near an allocation.
    fn address(&self, choice: u64) -> u64 {
        let of = if choice.is_multiple_of(3) { Of::Host } else { Of::Memory };
        self.choose(of, choice / 3).wrapping_add(if choice.is_multiple_of(4) { choice % 64 } else { 0 })
    }

    /// Device memory, freed or not: a unified copy to host memory that was freed would be the test's own fault.
    fn unified(&self, choice: u64) -> u64 {
        let mut memory = self.handles.iter().filter(|handle| handle.0 == Of::Memory);
        let count = memory.clone().count().max(1);
        memory.nth(choice as usize % count).map_or(0x10, |handle| handle.1 + choice % 2)
    }

    /// The test's own memory, or none.
    fn registrable(&mut self, choice: u64) -> *mut c_void {
        if choice.is_multiple_of(4) { without_provenance_mut(0x1000) } else { self.host.as_mut_ptr().cast() }
    }

    fn keep(&mut self, result: CUresult, of: Of, handle: u64) -> CUresult {
        if result == CUresult::CUDA_SUCCESS {
            self.handles.push((of, handle));
        }
        result
    }

    /// A call by its number, with arguments from two numbers.
    fn call(&mut self, call: u8, first: u64, second: u64) -> CUresult {
        let size = (second % 5000) as usize;
        let (mut handle, mut word): (*mut c_void, u64) = (null_mut(), 0);
        let place = &raw mut handle;
        unsafe {
            match call {
                0 => {
                    let result = sys::cuMemAlloc_v2(&raw mut word, size);
                    self.keep(result, Of::Memory, word)
                }
                1 => sys::cuMemFree_v2(self.choose(Of::Memory, first)),
                2 => {
                    let result = sys::cuMemAllocAsync(&raw mut word, size, self.pick(Of::Stream, first));
                    self.keep(result, Of::Memory, word)
                }
                3 => sys::cuMemFreeAsync(self.choose(Of::Memory, first), self.pick(Of::Stream, second)),
                4 => {
                    let result = sys::cuStreamCreate(place.cast(), (first % 3) as u32);
                    self.keep(result, Of::Stream, handle as u64)
                }
                5 => sys::cuStreamDestroy_v2(self.pick(Of::Stream, first)),
                6 => sys::cuStreamSynchronize(self.pick(Of::Stream, first)),
                7 => {
                    let result = sys::cuEventCreate(place.cast(), (first % 8) as u32);
                    self.keep(result, Of::Event, handle as u64)
                }
                8 => sys::cuEventRecord(self.pick(Of::Event, first), self.pick(Of::Stream, second)),
                9 => sys::cuStreamWaitEvent(self.pick(Of::Stream, first), self.pick(Of::Event, second), 0),
                10 => sys::cuEventQuery(self.pick(Of::Event, first)),
                11 => sys::cuEventDestroy_v2(self.pick(Of::Event, first)),
                12 => sys::cuMemcpyHtoDAsync_v2(
                    self.address(first),
                    self.host.as_ptr().cast(),
                    size,
                    self.pick(Of::Stream, second),
                ),
                13 => sys::cuMemcpyDtoHAsync_v2(
                    self.host.as_mut_ptr().cast(),
                    self.address(first),
                    size,
                    self.pick(Of::Stream, second),
                ),
                14 => sys::cuMemcpyDtoDAsync_v2(
                    self.address(first),
                    self.address(second),
                    size,
                    self.pick(Of::Stream, first ^ second),
                ),
                15 => sys::cuMemsetD8Async(self.address(first), second as u8, size, self.pick(Of::Stream, second)),
                16 => sys::cuMemsetD32_v2(self.address(first), 1, size / 4),
                17 => {
                    let result = sys::cuModuleLoadData(place.cast(), self.module.as_ptr().cast());
                    self.keep(result, Of::Module, handle as u64)
                }
                18 => sys::cuModuleUnload(self.pick(Of::Module, first)),
                19 => {
                    let result =
                        sys::cuModuleGetFunction(place.cast(), self.pick(Of::Module, first), c"still".as_ptr());
                    self.keep(result, Of::Function, handle as u64)
                }
                20 => {
                    let (x, threads) = ((second % 4) as u32, (second % 1100) as u32);
                    let stream = self.pick(Of::Stream, second);
                    sys::cuLaunchKernel(
                        self.pick(Of::Function, first),
                        x,
                        1,
                        1,
                        threads,
                        1,
                        1,
                        size as u32,
                        stream,
                        null_mut(),
                        null_mut(),
                    )
                }
                21 => sys::cuStreamBeginCapture_v2(
                    self.pick(Of::Stream, first),
                    [
                        sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL,
                        sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                        sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
                    ][second as usize % 3],
                ),
                22 => {
                    let result = sys::cuStreamEndCapture(self.pick(Of::Stream, first), place.cast());
                    self.keep(result, Of::Graph, handle as u64)
                }
                23 => {
                    let result =
                        sys::cuGraphInstantiateWithFlags(place.cast(), self.pick(Of::Graph, first), second % 3);
                    self.keep(result, Of::Executable, handle as u64)
                }
                24 => sys::cuGraphLaunch(self.pick(Of::Executable, first), self.pick(Of::Stream, second)),
                25 => sys::cuGraphDestroy(self.pick(Of::Graph, first)),
                26 => sys::cuGraphExecDestroy(self.pick(Of::Executable, first)),
                27 => {
                    let result =
                        sys::cuCtxCreate_v4(place.cast(), null_mut(), (first % 16) as u32, (second % 3) as i32);
                    self.keep(result, Of::Context, handle as u64)
                }
                28 => sys::cuCtxDestroy_v2(self.pick(Of::Context, first)),
                29 => sys::cuCtxSetCurrent(self.pick(Of::Context, first)),
                30 => {
                    let result = sys::cuDevicePrimaryCtxRetain(place.cast(), (first % 3) as i32);
                    self.keep(result, Of::Context, handle as u64)
                }
                31 => sys::cuDevicePrimaryCtxRelease_v2((first % 3) as i32),
                32 => sys::cuCtxSynchronize(),
                33 => {
                    let result = sys::cuMemHostAlloc(place, size, (first % 10) as u32);
                    self.keep(result, Of::Host, handle as u64)
                }
                34 => sys::cuMemFreeHost(self.pick(Of::Host, first)),
                35 => sys::cuMemcpy(self.unified(first), self.unified(second), size),
                36 => {
                    let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE;
                    sys::cuPointerGetAttribute((&raw mut word).cast(), attribute, self.address(first))
                }
                37 => sys::cuMemcpyHtoD_v2(self.address(first), self.pick(Of::Host, second), size),
                38 => sys::cuMemHostRegister_v2(self.registrable(second), size, (second % 4) as u32),
                39 => sys::cuDevicePrimaryCtxReset_v2((first % 3) as i32),
                40 => sys::cuMemPrefetchAsync_v2(
                    self.address(first),
                    size,
                    sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: 0 },
                    0,
                    self.pick(Of::Stream, second),
                ),
                41 => {
                    let result = sys::cuMemAllocManaged(&raw mut word, size, (first % 4) as u32);
                    self.keep(result, Of::Host, word)
                }
                _ => sys::cuMemHostUnregister(self.registrable(second)),
            }
        }
    }
}

/// Gives back all that a run left.
fn clean(pool: &Pool) {
    unsafe {
        for &(_, handle) in &pool.handles {
            let _ = sys::cuStreamEndCapture(without_provenance_mut(handle as usize), &mut null_mut());
            let _ = sys::cuGraphDestroy(without_provenance_mut(handle as usize));
            let _ = sys::cuGraphExecDestroy(without_provenance_mut(handle as usize));
        }
        for device in 0..2 {
            while sys::cuDevicePrimaryCtxRelease_v2(device) == CUresult::CUDA_SUCCESS {}
        }
        for &(_, handle) in &pool.handles {
            let _ = sys::cuCtxDestroy_v2(without_provenance_mut(handle as usize));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_calls_crashes(
        delay_streams: bool,
        calls in prop::collection::vec((0u8..43, 0u64..1000, any::<u64>()), 1..250),
    ) {
        let alone = alone(&Settings { devices: 2, memory_bytes: 1 << 16, delay_streams, ..Settings::default() });
        unsafe { sys::cuInit(0).result().unwrap() };
        // The last is an address that nothing has.
        let handles = vec![(Of::Stream, 0), (Of::Stream, 1), (Of::Stream, 2), (Of::Nothing, 0x10)];
        let mut pool = Pool { handles, host: vec![0; 8192], module: CString::new(KERNELS).unwrap() };
        let mut context = null_mut();
        unsafe {
            sys::cuDevicePrimaryCtxRetain(&raw mut context, 0).result().unwrap();
            sys::cuCtxSetCurrent(context).result().unwrap();
        }
        pool.handles.push((Of::Context, context as u64));
        for (call, first, second) in calls {
            let result = pool.call(call, first, second);
            prop_assert_ne!(result, CUresult::CUDA_ERROR_UNKNOWN);
        }
        clean(&pool);
        prop_assert_eq!(alone.control.memory_in_use(), 0);
    }
}
