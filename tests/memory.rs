//! What is allocated: the forward pass O(N), the backward pass in place nothing, neither anything of the size of the
//! logits.
//!
//! A counting allocator counts every thread's allocations. There is one test in this file, so nothing else allocates
//! beside it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use exo_kernels::{Batch, Betas, Cpu, Matrix, MatrixMut, Objective, PreferenceLoss, Reference};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and bytes allocated by `run`.
fn count(run: impl FnOnce()) -> (usize, usize) {
    let before = (ALLOCATIONS.load(Ordering::SeqCst), BYTES.load(Ordering::SeqCst));
    run();
    (ALLOCATIONS.load(Ordering::SeqCst) - before.0, BYTES.load(Ordering::SeqCst) - before.1)
}

#[test]
fn forward_allocates_per_row_and_backward_in_place_nothing() {
    // Rows and columns enough that rows are divided between threads, and each row too.
    let (rows, vocab, k) = (12, 70_001, 3);
    let mut logits: Vec<f32> = (0..rows * vocab).map(|i| (i * 7919 % 1000) as f32 * 0.01).collect();
    let logit_bytes = logits.len() * size_of::<f32>();
    let targets: Vec<u32> = (0..rows as u32).map(|row| row * 1000).collect();
    let reference = vec![-9.0f32; rows];
    let batch = Batch::padded(rows / 2, 2, k).expect("a batch");
    let rewards = vec![0.1f32, 0.7, -0.4, 0.0, 0.0, 1.0];
    let mut grad = vec![0.0f32; rows * vocab];
    let mut loss =
        PreferenceLoss::new(Cpu::default(), Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid"))
            .with_entropy(true);

    // Within a pool: handing work to one from outside goes through a queue that allocates now and then. And of one
    // thread: a thread that takes work from another for the first time makes itself known to the memory reclamation of
    // rayon's queues.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    pool.install(|| {
        let mut forward = |logits: &[f32]| {
            let logits = Matrix::new(logits, vocab).expect("rows");
            let reference = Reference::PerToken(&reference);
            loss.forward(&logits, &targets, &batch, &reference, &rewards).expect("forward")
        };
        let (_, first) = count(|| _ = forward(&logits));
        // Per row: target, log-prob, state, entropy, two coefficients. Per sequence and group: about as much. And one
        // group's work.
        let per_row = 8 + 4 + 8 + 4 + 4 + 8;
        let allowed = rows * per_row + batch.sequences() * 64 + batch.groups() * 128 + k * 8 * 16 + 4096;
        assert!(first <= allowed, "first forward pass: {first} bytes, {allowed} allowed");
        assert!(allowed * 100 < logit_bytes, "the allowance is nothing beside the logits");
        let mut step = None;
        let (allocations, bytes) = count(|| step = Some(forward(&logits)));
        let step = step.expect("a step");
        assert_eq!((allocations, bytes), (0, 0), "second forward pass");

        let (allocations, _) = count(|| {
            let (logits, grad) = (Matrix::new(&logits, vocab), MatrixMut::new(&mut grad, vocab));
            loss.backward(&step, &logits.expect("rows"), grad.expect("rows")).expect("backward");
        });
        assert_eq!(allocations, 0, "backward");
        let (allocations, _) = count(|| {
            loss.backward_in_place(step, MatrixMut::new(&mut logits, vocab).expect("rows")).expect("backward");
        });
        assert_eq!(allocations, 0, "backward in place");
    });
    assert!(logits == grad, "in place and out of place give the same gradient");

    // On several threads nothing but what rayon keeps per thread.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool");
    let (_, bytes) = pool.install(|| {
        count(|| {
            let view = Matrix::new(&grad, vocab).expect("rows");
            let reference = Reference::PerToken(&reference);
            let step = loss.forward(&view, &targets, &batch, &reference, &rewards).expect("forward");
            // The gradient of before has the logits' shape, and is all that they need to be.
            let logits = MatrixMut::new(&mut logits, vocab).expect("rows");
            loss.backward_in_place(step.with_moved_inputs(), logits).expect("backward");
        })
    });
    assert!(bytes * 100 < logit_bytes, "{bytes} bytes on three threads");

    // That the counter counts at all.
    assert_eq!(count(|| drop(std::hint::black_box(vec![0u8; 100]))), (1, 100));
}
