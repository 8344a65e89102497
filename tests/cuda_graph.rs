//! The token log-prob stage in a CUDA graph: captured once, replayed over other logits, with the bits of direct calls.

#![cfg(feature = "cuda")]

#[path = "support/device.rs"]
mod device;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use device::{Rows, download, upload};
use exo_kernels::cuda::{LogitsMut, RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{LogitOptions, SoftmaxState};

/// Two rows, shared by several blocks: their tickets must be back at zero for the next replay.
fn rows(seed: usize) -> Rows<f32> {
    let vocab = 40_000;
    let logits = (0..2 * vocab).map(|i| ((i * 7919 + seed * 31) % 1013) as f32 * 0.02).collect();
    Rows::new(logits, vec![39_999, 7], vocab)
}

#[test]
fn a_captured_step_is_replayed_over_new_logits() {
    let cuda = device::cuda();
    let stream = cuda.stream().clone();
    // cudarc's events of earlier uses lie outside of a capture, which may not wait for them.
    // SAFETY: everything here is on one stream.
    unsafe { stream.context().disable_event_tracking() };
    let (options, vocab) = (LogitOptions::default(), 40_000);
    let mut logits = upload(&cuda, &rows(0).logits);
    let targets = upload(&cuda, &rows(0).targets);
    let mut log_probs = upload(&cuda, &[0.0_f32; 2]);
    let mut states = upload(&cuda, &[SoftmaxState::default(); 2]);
    let upstream = upload(&cuda, &[1.0_f32, -0.5]);
    let mut step = || {
        let mut outputs =
            TokenLogProbs { log_probs: log_probs.as_view_mut(), states: states.as_view_mut(), entropies: None };
        let view = exo_kernels::cuda::Logits::new(logits.as_view(), vocab).expect("rows");
        cuda.token_log_probs(&view, &targets.as_view(), &options, &mut outputs).expect("forward");
        let saved = SavedRows { states: states.as_view(), entropies: None };
        let gradients = RowGradients { log_probs: upstream.as_view(), entropies: None };
        let mut view = LogitsMut::new(logits.as_view_mut(), vocab).expect("rows");
        cuda.token_log_probs_backward_in_place(&mut view, &targets.as_view(), &options, &saved, &gradients)
            .expect("backward");
    };
    // The first call loads the kernels and makes the scratch memory, which a capture cannot.
    step();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("capture");
    step();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("end of capture").expect("a graph");

    for seed in 1..4 {
        let packed = rows(seed);
        stream.memcpy_htod(&packed.logits, &mut logits).expect("upload");
        graph.launch().expect("replay");
        let direct = packed.forward(&cuda, &options, false);
        assert_eq!(download(&cuda, &log_probs), direct.log_probs, "seed {seed}");
        assert_eq!(download(&cuda, &states), direct.states, "seed {seed}");
        let gradient = packed.backward(&cuda, &options, &direct, (&[1.0, -0.5], None), true);
        assert_eq!(download(&cuda, &logits), gradient, "seed {seed}");
    }
}
