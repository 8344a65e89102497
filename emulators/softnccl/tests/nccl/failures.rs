//! What goes wrong on one rank is an error on all, and nobody waits for what will not come.

use crate::{alone, stream};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use cudarc::nccl::sys::{self, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t};
use limits::watchdog::within;
use softcuda::Settings;
use std::ffi::{CStr, c_void};
use std::sync::{Arc, Barrier};
use std::time::Duration;

/// A rank as NCCL's interface has it.
pub(crate) struct Raw {
    pub(crate) comm: ncclComm_t,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) buffer: CudaSlice<f32>,
}

impl Raw {
    pub(crate) fn new(id: sys::ncclUniqueId, ranks: i32, rank: i32) -> Result<Self, ncclResult_t> {
        let stream = stream(0);
        let buffer = stream.clone_htod(&[1.0_f32; 64]).expect("numbers");
        let mut comm = std::ptr::null_mut();
        // SAFETY: a place for the communicator.
        match unsafe { sys::ncclCommInitRank(&raw mut comm, ranks, id, rank) } {
            ncclResult_t::ncclSuccess => Ok(Self { comm, stream, buffer }),
            other => Err(other),
        }
    }

    fn address(&self) -> *mut c_void {
        self.buffer.device_ptr(&self.stream).0 as *mut c_void
    }

    pub(crate) fn all_reduce(&self, count: usize, data_type: ncclDataType_t, operation: ncclRedOp_t) -> ncclResult_t {
        let (buffer, stream) = (self.address(), self.stream.cu_stream().cast());
        // SAFETY: the buffer has as many elements.
        unsafe { sys::ncclAllReduce(buffer, buffer, count, data_type, operation, self.comm, stream) }
    }

    pub(crate) fn sum(&self, count: usize) -> ncclResult_t {
        self.all_reduce(count, ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclSum)
    }

    fn broadcast(&self, root: i32) -> ncclResult_t {
        let (buffer, stream) = (self.address(), self.stream.cu_stream().cast());
        // SAFETY: the buffer has as many elements.
        unsafe { sys::ncclBroadcast(buffer, buffer, 8, ncclDataType_t::ncclFloat32, root, self.comm, stream) }
    }

    /// The communicator's error once all is done, and its text.
    pub(crate) fn error(&self) -> (ncclResult_t, String) {
        self.stream.synchronize().expect("the device is well");
        let mut error = ncclResult_t::ncclSuccess;
        // SAFETY: a communicator, a place for its error; and the text lives until this thread's next call.
        unsafe {
            assert_eq!(sys::ncclCommGetAsyncError(self.comm, &raw mut error), ncclResult_t::ncclSuccess);
            (error, CStr::from_ptr(sys::ncclGetLastError(self.comm)).to_string_lossy().into_owned())
        }
    }
}

pub(crate) fn id() -> sys::ncclUniqueId {
    cudarc::nccl::result::get_uniqueid().expect("an id")
}

/// What each of two ranks does, on a thread of its own, and the error that it finds afterwards.
fn errors_of(run: impl Fn(usize, &Raw) + Sync) -> [(ncclResult_t, String); 2] {
    let (id, run) = (id(), &run);
    within(Duration::from_secs(30), || {
        std::thread::scope(|scope| {
            let rank = |number: usize| {
                scope.spawn(move || {
                    let raw = Raw::new(id, 2, number as i32).expect("a communicator");
                    run(number, &raw);
                    raw.error()
                })
            };
            [rank(0), rank(1)].map(|thread| thread.join().expect("no panic"))
        })
    })
}

/// What a rank calls.
type Calls = fn(usize, &Raw);

/// How a rank ends.
type Ends = fn(&Raw);

/// Both ranks are told what both have called.
#[test]
fn calls_that_differ_fail_on_all_ranks() {
    let Some(_alone) = alone(&Settings::default()) else { return };
    let cases: [(Calls, &[&str]); 6] = [
        (|rank, raw| _ = raw.sum(8 + rank), &["ncclAllReduce of 8 float32, sum", "ncclAllReduce of 9 float32, sum"]),
        (
            |rank, raw| _ = if rank == 0 { raw.sum(8) } else { raw.broadcast(0) },
            &["ncclAllReduce of 8 float32, sum", "ncclBroadcast of 8 float32, root 0"],
        ),
        (|rank, raw| _ = raw.broadcast(rank as i32), &["root 0", "root 1"]),
        (
            |rank, raw| {
                let data_type = [ncclDataType_t::ncclFloat32, ncclDataType_t::ncclUint32][rank];
                raw.all_reduce(8, data_type, ncclRedOp_t::ncclSum);
            },
            &["8 float32", "8 uint32"],
        ),
        (
            |rank, raw| {
                let operation = [ncclRedOp_t::ncclSum, ncclRedOp_t::ncclMax][rank];
                raw.all_reduce(8, ncclDataType_t::ncclFloat32, operation);
            },
            &["sum", "maximum"],
        ),
        // In another order.
        (
            |rank, raw| {
                raw.sum(8);
                if rank == 0 {
                    raw.sum(16);
                    raw.broadcast(0);
                } else {
                    raw.broadcast(0);
                    raw.sum(16);
                }
            },
            &["call 1 of rank 0 is ncclAllReduce of 16", "call 1 of rank 1 is ncclBroadcast"],
        ),
    ];
    for (calls, expected) in cases {
        for (code, text) in errors_of(calls) {
            assert_eq!(code, ncclResult_t::ncclInvalidUsage, "{text}");
            assert!(expected.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}

/// Whether a rank aborts, leaves, or never comes.
#[test]
fn a_rank_that_does_not_come_is_an_error_of_the_other() {
    for settings in [Settings::default(), Settings { delay_streams: true, ..Settings::default() }] {
        let Some(_alone) = alone(&settings) else { return };
        let control = softnccl::control().expect("the software NCCL");
        let cases: [(Ends, &str); 3] = [
            (
                // SAFETY: a communicator that is not used afterwards.
                |raw| assert_eq!(unsafe { sys::ncclCommAbort(raw.comm) }, ncclResult_t::ncclSuccess),
                "rank 1 has aborted",
            ),
            (
                // SAFETY: as above.
                |raw| assert_eq!(unsafe { sys::ncclCommDestroy(raw.comm) }, ncclResult_t::ncclSuccess),
                "rank 1 has left",
            ),
            (|_| (), "rank 1 has not come within"),
        ];
        for (ends, expected) in cases {
            let (id, meet) = (id(), &Barrier::new(2));
            within(Duration::from_secs(30), || {
                std::thread::scope(|scope| {
                    scope.spawn(move || {
                        let raw = Raw::new(id, 2, 1).expect("a communicator");
                        raw.sum(8);
                        raw.stream.synchronize().expect("the device is well");
                        meet.wait();
                        ends(&raw);
                    });
                    let raw = Raw::new(id, 2, 0).expect("a communicator");
                    raw.sum(8);
                    assert_eq!(raw.error().0, ncclResult_t::ncclSuccess);
                    meet.wait();
                    control.be_patient(Duration::from_millis(300));
                    raw.sum(8);
                    let (code, text) = raw.error();
                    assert_eq!(code, ncclResult_t::ncclRemoteError, "{text}");
                    assert!(text.contains(expected), "{text}");
                    // Later calls are refused, and the buffer is as it was.
                    assert_eq!(raw.sum(8), ncclResult_t::ncclRemoteError);
                    assert_eq!(raw.stream.clone_dtoh(&raw.buffer).expect("read")[..8], [2.0; 8]);
                    control.be_patient(Duration::from_secs(60));
                });
            });
        }
    }
}

#[test]
fn what_is_wrong_with_an_argument_is_said() {
    let Some(_alone) = alone(&Settings::default()) else { return };
    let invalid = ncclResult_t::ncclInvalidArgument;
    assert_eq!(Raw::new(id(), 1, 1).err(), Some(invalid), "no such rank");
    assert_eq!(Raw::new(id(), 0, 0).err(), Some(invalid), "no ranks");
    assert_eq!(Raw::new(sys::ncclUniqueId { internal: [1; 128] }, 1, 0).err(), Some(invalid), "no id of NCCL's");
    let same = id();
    let raw = Raw::new(same, 1, 0).expect("a communicator");
    assert_eq!(raw.broadcast(1), invalid, "no such root");
    assert_eq!(raw.broadcast(-1), invalid, "no such root");
    // SAFETY: no such handle, which is found out.
    assert_eq!(unsafe { sys::ncclCommDestroy(std::ptr::without_provenance_mut(12_345)) }, invalid);
    // SAFETY: a communicator and a place.
    unsafe {
        let mut number = -1;
        assert_eq!(sys::ncclCommCount(raw.comm, &raw mut number), ncclResult_t::ncclSuccess);
        assert_eq!(number, 1);
        assert_eq!(sys::ncclCommUserRank(raw.comm, &raw mut number), ncclResult_t::ncclSuccess);
        assert_eq!(number, 0);
        assert_eq!(sys::ncclCommCuDevice(raw.comm, &raw mut number), ncclResult_t::ncclSuccess);
        assert_eq!(number, 0);
        assert_eq!(sys::ncclMemFree(std::ptr::null_mut()), ncclResult_t::ncclInvalidUsage, "not supported");
        assert_eq!(sys::ncclCommDestroy(raw.comm), ncclResult_t::ncclSuccess);
        assert_eq!(sys::ncclCommDestroy(raw.comm), invalid, "it is gone");
    }
}
