//! What every entry point does: no unwinding into C, checked pointers, and errors as codes.

use super::error::Code;
use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The result of an entry point before it becomes a `CUresult`.
pub(super) type Outcome<T = ()> = Result<T, Code>;

thread_local! {
    /// Whether this thread is inside of a host function of a stream, from which no driver call may be made.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// Runs a host function of a stream: driver calls made by it are refused.
pub(super) fn host_function(function: impl FnOnce()) {
    let before = IN_HOST_FUNCTION.replace(true);
    function();
    IN_HOST_FUNCTION.set(before);
}

/// Counts the call of an entry point, runs its body and turns its outcome into a `CUresult`.
pub(super) fn run(name: &'static str, body: impl FnOnce() -> Outcome) -> i32 {
    super::calls::count(name);
    if IN_HOST_FUNCTION.get() {
        return Code::NOT_PERMITTED.0;
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Code::SUCCESS.0,
        Ok(Err(code)) => code.0,
        Err(_) => {
            eprintln!("softcuda: {name} panicked; this is a fault of softcuda");
            Code::UNKNOWN.0
        }
    }
}

/// Declares entry points: functions of the C interface whose bodies give an [`Outcome`].
macro_rules! entry_points {
    ($( $(#[$attribute:meta])* fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block )*) => {$(
        $(#[$attribute])*
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $kind),*) -> i32 {
            $crate::driver::entry::run(stringify!($name), move || -> $crate::driver::entry::Outcome { $body })
        }
    )*};
}
pub(super) use entry_points;

/// Entry points that do the same as another under a later or an earlier name.
macro_rules! same_as {
    ($( $name:ident = $original:ident($($argument:ident: $kind:ty),* $(,)?); )*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $kind),*) -> i32 {
            $original($($argument),*)
        }
    )*};
}
pub(super) use same_as;

/// A place that the caller gives for a result.
#[repr(transparent)]
pub(super) struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// Whether the caller wants no result.
    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The same place for a value of another type, which the caller's data decides.
    pub(super) fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }

    /// Refuses a null pointer.
    pub(super) fn check(self) -> Outcome {
        if self.0.is_null() { Err(Code::INVALID_VALUE) } else { Ok(()) }
    }

    /// Writes the result; a null pointer is an invalid value.
    pub(super) fn put(self, value: T) -> Outcome {
        self.check()?;
        // SAFETY: the C interface asks the caller for a pointer to a writable `T`; only null can be told from one.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes the result if the caller wants it.
    pub(super) fn put_if_wanted(self, value: T) {
        if !self.0.is_null() {
            let _ = self.put(value);
        }
    }

    /// Writes the element at an index.
    pub(super) fn put_at(self, index: usize, value: T) -> Outcome {
        self.check()?;
        // SAFETY: the C interface asks the caller for an array with room for the element at this index.
        unsafe { self.0.add(index).write_unaligned(value) };
        Ok(())
    }

    /// Reads what the caller left there.
    pub(super) fn get(self) -> Outcome<T>
    where
        T: Copy,
    {
        In(self.0.cast_const()).get()
    }
}

/// A value or an array that the caller gives.
#[repr(transparent)]
pub(super) struct In<T>(*const T);

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for In<T> {}

impl<T: Copy> In<T> {
    /// What begins at an address that the caller gave in another structure.
    pub(super) fn at_place(address: u64) -> Self {
        Self(address as *const T)
    }

    /// Whether the caller gives nothing.
    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The value; a null pointer is an invalid value.
    pub(super) fn get(self) -> Outcome<T> {
        self.at(0)
    }

    /// The element at an index.
    pub(super) fn at(self, index: usize) -> Outcome<T> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the C interface asks the caller for an array that has an element at this index.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// The first elements.
    pub(super) fn list(self, count: usize) -> Outcome<Vec<T>> {
        (0..count).map(|index| self.at(index)).collect()
    }
}

impl In<u8> {
    /// The address.
    pub(super) fn address(self) -> *const u8 {
        self.0
    }

    /// The driver's own bytes, which must outlive the use of this.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(bytes.as_ptr())
    }
}

impl In<u64> {
    /// Nothing.
    pub(super) fn null() -> Self {
        Self(std::ptr::null())
    }

    /// Writes back a value that the caller passed in its own array (`CUjit_option` values are passed and returned in
    /// place).
    pub(super) fn put_at(self, index: usize, value: u64) {
        let _ = Out(self.0.cast_mut()).put_at(index, value);
    }
}

/// A NUL-terminated text that the caller gives.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Text(*const c_char);

impl Text {
    /// The text; a null pointer or text that is not UTF-8 is an invalid value.
    pub(super) fn get(self) -> Outcome<String> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the C interface asks the caller for a NUL-terminated text.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(str::to_owned).map_err(|_| Code::INVALID_VALUE)
    }
}
