//! Arguments in the wrong context, one after the other: what a call that is given one does, and leaves as it was.

use cudarc::driver::result::{self, ctx};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, sys};
use exo_kernels::cuda::Cuda;
use exo_kernels::{Error, Result};
use std::cell::RefCell;
use std::sync::Arc;

/// The calling thread's current context; null: none.
pub(crate) fn current() -> sys::CUcontext {
    ctx::get_current().expect("a driver").unwrap_or(std::ptr::null_mut())
}

pub(crate) fn set_current(context: sys::CUcontext) {
    // A context that is made is put on top of the one before it, which comes back when it is taken away.
    while !current().is_null() {
        // SAFETY: takes the current one away.
        unsafe { ctx::set_current(std::ptr::null_mut()) }.expect("a context");
    }
    // SAFETY: none, or a context that the test holds.
    unsafe { ctx::set_current(context) }.expect("a context");
}

/// A buffer, and the bytes that it was given.
struct Placed {
    stream: Arc<CudaStream>,
    address: sys::CUdeviceptr,
    bytes: Vec<u8>,
}

/// One run of a scenario: where its buffers go, and which context is current around its calls.
pub(crate) struct Run<'a> {
    pub(crate) cuda: &'a Cuda,
    /// A stream of another context.
    pub(crate) other: &'a Arc<CudaStream>,
    /// The argument that goes there.
    misplaced: Option<&'static str>,
    current: sys::CUcontext,
    /// Every argument of calls, in the order of its first use.
    names: RefCell<Vec<&'static str>>,
    placed: RefCell<Vec<Placed>>,
}

/// A step before the call that is looked at: never misplaced.
pub(crate) const EARLIER: &str = "";

impl<'a> Run<'a> {
    pub(crate) fn new(
        cuda: &'a Cuda,
        other: &'a Arc<CudaStream>,
        misplaced: Option<&'static str>,
        current: sys::CUcontext,
    ) -> Self {
        Self { cuda, other, misplaced, current, names: RefCell::default(), placed: RefCell::default() }
    }

    /// Where an argument goes.
    pub(crate) fn is_misplaced(&self, name: &'static str) -> bool {
        let mut names = self.names.borrow_mut();
        if name != EARLIER && !names.contains(&name) {
            names.push(name);
        }
        self.misplaced == Some(name)
    }

    /// An argument on the device.
    pub(crate) fn put<T: DeviceRepr + Copy>(&self, name: &'static str, values: &[T]) -> CudaSlice<T> {
        let stream = if self.is_misplaced(name) { self.other } else { self.cuda.stream() };
        let slice = stream.clone_htod(values).expect("upload");
        if name != EARLIER {
            let address = slice.device_ptr(stream).0;
            let mut bytes = vec![0; slice.num_bytes()];
            read(stream, address, &mut bytes);
            self.placed.borrow_mut().push(Placed { stream: stream.clone(), address, bytes });
        }
        slice
    }

    /// Makes a call. Whatever it does, the current context is the same afterwards; if it is refused, nothing was launched
    /// and nothing written.
    pub(crate) fn call<R>(&self, call: impl FnOnce() -> Result<R>) -> Result<R> {
        for stream in [self.cuda.stream(), self.other] {
            stream.synchronize().expect("nothing has failed");
        }
        let control = softcuda::control();
        control.inspect(|control| drop(control.take_launches()));
        set_current(self.current);
        let result = call();
        assert_eq!(current(), self.current, "the current context has changed");
        if result.is_err() {
            for placed in self.placed.borrow().iter() {
                let mut now = vec![0; placed.bytes.len()];
                read(&placed.stream, placed.address, &mut now);
                assert_eq!(now, placed.bytes, "a refused call has written");
            }
            let launches = control.map_or(0, |control| control.take_launches().len());
            assert_eq!(launches, 0, "a refused call has launched");
        }
        result
    }
}

fn read(stream: &CudaStream, address: sys::CUdeviceptr, bytes: &mut [u8]) {
    stream.synchronize().expect("nothing has failed");
    // SAFETY: the buffer is as long as these bytes, and its context is current after a synchronisation.
    unsafe { result::memcpy_dtoh_sync(bytes, address) }.expect("download");
}

/// Runs a scenario with everything in its place, under no current context, the backend's and another; then with each of
/// its arguments in the wrong context. Gives their names.
pub(crate) fn check(
    cuda: &Cuda,
    other: &Arc<CudaStream>,
    scenario: impl Fn(&Run<'_>) -> Result<()>,
) -> Vec<&'static str> {
    let own = cuda.stream().context();
    let mut names = Vec::new();
    for current in [std::ptr::null_mut(), own.cu_ctx(), other.context().cu_ctx()] {
        let run = Run::new(cuda, other, None, current);
        assert_eq!(scenario(&run), Ok(()));
        names = run.names.take();
        for &what in &names {
            let run = Run::new(cuda, other, Some(what), current);
            let (given, expected) = (other.context().ordinal(), own.ordinal());
            assert_eq!(scenario(&run), Err(Error::Device { what, given, expected }));
            // The caller's next calls, on either side.
            for stream in [cuda.stream(), other] {
                assert_eq!(stream.context().check_err(), Ok(()), "{what}: an error was left for the next call");
                stream.alloc_zeros::<f32>(1).expect("memory");
            }
        }
    }
    names
}
