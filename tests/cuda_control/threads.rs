//! Threads that share a backend: none waits for another's wait for the device, and each gets its own results.

use exo_kernels::cuda::{Cuda, Head, Matrix, Status, TokenLogProbs};
use exo_kernels::{Backend, LogitOptions, SoftmaxState};
use limits::watchdog;
use softcuda::Settings;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use support::backend::TestBackend;
use support::backend::{Placed, cuda};
use support::device::upload;
use support::host_rows::Rows;
use support::linear::{self, ALL};
use support::turn;

/// Enough columns that several blocks share a row, and scratch memory with it.
const VOCAB: usize = 70_000;

/// What a host function in the stream waits for, and whether it came.
struct Gate {
    reached: Sender<()>,
    opened: Mutex<Receiver<()>>,
    in_time: AtomicBool,
}

extern "C" fn wait_at(gate: *mut c_void) {
    // SAFETY: the test gives a gate that outlives the stream's work.
    let gate = unsafe { &*gate.cast::<Gate>() };
    let _ = gate.reached.send(());
    let opened = gate.opened.lock().unwrap_or_else(PoisonError::into_inner);
    gate.in_time.store(opened.recv_timeout(Duration::from_secs(30)).is_ok(), Ordering::SeqCst);
}

/// One thread reads the status word, for which it waits for the stream; the stream waits, in a function of the host, for
/// another thread; and that one makes calls of the same backend.
#[test]
fn calls_go_on_while_another_thread_waits_for_the_status() {
    let _turn = turn::take();
    let cuda = cuda();
    let stream = cuda.stream().clone();
    let logits: Vec<f32> = (0..2 * VOCAB).map(|i| ((i * 7919) % 1013) as f32 * 0.01).collect();
    let (logits, targets) = (upload(&cuda, &logits), upload(&cuda, &[7u32, 69_999]));
    let (hidden, weight) = (upload(&cuda, &[0.5f32, 1.0]), upload(&cuda, &vec![0.25f32; VOCAB]));
    let mut log_probs = upload(&cuda, &[f32::MAX; 2]);
    let mut states = upload(&cuda, &[SoftmaxState { r: f32::MAX, s: f32::MAX }; 2]);
    cuda.clear_status().expect("a status word");
    stream.synchronize().expect("nothing has failed");
    if let Some(control) = softcuda::control() {
        // As on a real device: what is launched runs when somebody waits for it.
        control.configure(&Settings { delay_streams: true, ..Settings::default() });
    }

    let ((reached, is_reached), (open, opened)) = (channel(), channel());
    let gate = Gate { reached, opened: Mutex::new(opened), in_time: AtomicBool::new(false) };
    let place = std::ptr::from_ref(&gate).cast_mut().cast();
    // SAFETY: a live stream; the gate outlives its work, for which the thread below waits.
    let launched = unsafe { cudarc::driver::sys::cuLaunchHostFunc(stream.cu_stream(), Some(wait_at), place) };
    launched.result().expect("a host function");
    let status = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cuda.status().expect("a status"));
        is_reached.recv().expect("the stream comes to the function");
        let outputs = TokenLogProbs {
            log_probs: log_probs.as_view_mut().into(),
            states: states.as_view_mut().into(),
            entropies: None,
        };
        let view = Matrix::new(logits.as_view().into(), VOCAB).expect("rows");
        let options = LogitOptions::default();
        cuda.clear_status().expect("a launch");
        cuda.token_log_probs(&view, &targets, &options, outputs).expect("a launch");
        let hidden = Matrix::new(hidden.as_view().into(), 1).expect("rows");
        let head = Head::new(Matrix::new(weight.as_view().into(), 1).expect("rows")).expect("a head");
        let outputs = TokenLogProbs {
            log_probs: log_probs.as_view_mut().into(),
            states: states.as_view_mut().into(),
            entropies: None,
        };
        cuda.linear_token_log_probs(&hidden, &head, &targets, &options, outputs).expect("launches");
        open.send(()).expect("the function waits");
        waiting.join().expect("no panic")
    });
    assert!(gate.in_time.load(Ordering::SeqCst), "the calls waited for the thread that waits for the device");
    assert_eq!(status, Status::CLEAR);
    stream.synchronize().expect("all of it runs");
    if let Some(control) = softcuda::control() {
        control.configure(&Settings::default());
    }
}

/// Scratch memory is one call's at a time: results are those of one thread, bit for bit.
#[test]
fn threads_that_share_a_backend_get_their_own_results() {
    let _turn = turn::take();
    watchdog::within(Duration::from_secs(300), || {
        let cuda = cuda();
        let options = LogitOptions::default();
        let cases: Vec<_> = (0..4usize)
            .map(|seed| {
                let logits: Vec<f32> = (0..VOCAB).map(|i| ((i * (7919 + seed)) % 1013) as f32 * 0.01).collect();
                let rows = Rows::one(&logits, 100 * seed);
                let linear = Placed::new(&cuda, &linear::Case::<f32, f32>::random(5 + seed, 3, 700, true, seed as u64));
                (rows, linear)
            })
            .collect();
        let of = |(rows, linear): &(Rows<f32>, Placed<Cuda, f32, f32>)| {
            let forward = linear.forward(&options, false);
            let upstream = vec![1.0; forward.log_probs.len()];
            let gradients = linear.backward::<f32>(&options, &forward, (&upstream, None), ALL);
            (cuda.forward(rows, &options, true), forward.log_probs, gradients)
        };
        let expected: Vec<_> = cases.iter().map(of).collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().expect("a pool");
        pool.scope(|scope| {
            for (case, expected) in cases.iter().zip(&expected) {
                scope.spawn(move |_| (0..5).for_each(|_| assert!(&of(case) == expected)));
            }
        });
        assert_eq!(cuda.status().expect("a status"), Status::CLEAR);
    });
}
