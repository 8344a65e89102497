//! What the driver's tests share: one test at a time with settings of its own, kernels in PTX, and raw calls.

#![allow(dead_code)]

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use softcuda::{Control, Settings};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The software device, for one test at a time.
pub(crate) struct Alone {
    pub(crate) control: Control,
    _guard: MutexGuard<'static, ()>,
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.control.reset();
    }
}

/// Takes the software device, even where there is a real one, with these settings.
pub(crate) fn alone(settings: &Settings) -> Alone {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    softcuda::install_always().expect("the software driver");
    let control = softcuda::control().expect("control of the software driver");
    control.reset();
    control.configure(settings);
    Alone { control, _guard: guard }
}

/// The kernels of this file.
pub(crate) fn kernels(context: &Arc<CudaContext>) -> Arc<CudaModule> {
    context.load_module(Ptx::from_src(KERNELS)).expect("the kernels")
}

/// One of them.
pub(crate) fn kernel(context: &Arc<CudaContext>, name: &str) -> CudaFunction {
    kernels(context).load_function(name).expect("a kernel")
}

/// Asserts on the error of a cudarc call.
#[allow(clippy::needless_pass_by_value)]
#[track_caller]
pub(crate) fn assert_error<T>(result: Result<T, cudarc::driver::DriverError>, expected: CUresult) {
    match result {
        Ok(_) => panic!("the call succeeded; {expected:?} was expected"),
        Err(error) => assert_eq!(error.0, expected),
    }
}

/// `fill`: data[i] = value. `add`: data[i] += value. Both for i < count.
/// `square`: needs blocks of 8 x 8. `narrow`: at most 128 threads. `still`: does nothing. `wide`: 1 KiB of static
/// shared memory.
/// `outside`: writes far outside of everything. `odd`: a misaligned write. `stop`: traps. `spin`: never ends.
pub(crate) const KERNELS: &str = "
.version 8.0
.target sm_80
.address_size 64

.visible .global .align 4 .u32 counter = 7;
.visible .const .align 4 .b8 table[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

.visible .entry fill(.param .u64 fill_data, .param .u32 fill_value, .param .u32 fill_count)
{
    .reg .pred %p<2>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [fill_data];
    ld.param.u32 %r1, [fill_value];
    ld.param.u32 %r2, [fill_count];
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.s32 %r6, %r3, %r4, %r5;
    setp.ge.u32 %p1, %r6, %r2;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r6, 4;
    add.s64 %rd4, %rd2, %rd3;
    st.global.u32 [%rd4], %r1;
DONE:
    ret;
}

.visible .entry add(.param .u64 add_data, .param .u32 add_value, .param .u32 add_count)
{
    .reg .pred %p<2>;
    .reg .b32 %r<10>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [add_data];
    ld.param.u32 %r1, [add_value];
    ld.param.u32 %r2, [add_count];
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.s32 %r6, %r3, %r4, %r5;
    setp.ge.u32 %p1, %r6, %r2;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r6, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.u32 %r7, [%rd4];
    add.s32 %r8, %r7, %r1;
    st.global.u32 [%rd4], %r8;
DONE:
    ret;
}

.visible .entry square() .reqntid 8, 8, 1
{
    ret;
}

.visible .entry narrow() .maxntid 128, 1, 1
{
    ret;
}

.visible .entry still()
{
    ret;
}

.visible .entry wide(.param .u64 wide_data)
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<3>;
    .shared .align 4 .b8 wide_memory[1024];
    mov.u32 %r1, 1;
    st.shared.u32 [wide_memory], %r1;
    ret;
}

.visible .entry outside()
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    mov.u64 %rd1, 64;
    mov.u32 %r1, 1;
    st.global.u32 [%rd1], %r1;
    ret;
}

.visible .entry odd(.param .u64 odd_data)
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [odd_data];
    add.s64 %rd2, %rd1, 2;
    mov.u32 %r1, 1;
    st.global.u32 [%rd2], %r1;
    ret;
}

.visible .entry stop()
{
    trap;
}

.visible .entry spin()
{
AGAIN:
    bra AGAIN;
}
";
