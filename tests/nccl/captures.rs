//! Calls over ranks in CUDA graphs.

use crate::{cuda, delayed, on_ranks, rows, shard, slices, turn_with};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use exo_kernels::cuda::{Grown, Matrix, TokenLogProbs};
use exo_kernels::ranks::{Communicator, token_log_probs};
use exo_kernels::{LogitOptions, SoftmaxState};
use softcuda::Settings;
use support::backend::TestBackend;
use support::device::{download, upload};

/// Captured once on every rank, replayed over other logits: the bits of one call over all columns, and the sum of what the graph
/// computes meanwhile and before.
#[test]
fn a_captured_step_is_replayed_over_new_logits() {
    for settings in [Settings::default(), delayed()] {
        let Some(_turn) = turn_with(2, settings, false) else { continue };
        let (vocab, layout) = slices(2);
        let seeds = [1, 2, 3];
        let found = on_ranks(2, |rank, cuda, nccl| {
            let stream = cuda.stream();
            let options = shard(&LogitOptions::default(), &layout, rank, vocab);
            let own = |seed| layout.of_rank(&rows(vocab, seed), rank);
            let columns = own(0).vocab;
            let (mut logits, targets) = (upload(&cuda, &own(0).logits), upload(&cuda, &own(0).targets));
            let mut log_probs = upload(&cuda, &[0.0_f32; 4]);
            let mut states = upload(&cuda, &[SoftmaxState::default(); 4]);
            let mut sums = upload(&cuda, &[0.0_f32; 4]);
            let mut copy = upload(&cuda, &[0.0_f32; 4]);
            let mut parts = Grown::default();
            let mut step = || {
                let outputs = TokenLogProbs {
                    log_probs: log_probs.as_view_mut().into(),
                    states: states.as_view_mut().into(),
                    entropies: None,
                };
                let view = Matrix::new(logits.as_view().into(), columns).expect("rows");
                token_log_probs(&cuda, &nccl, &view, &targets, &options, outputs, &mut parts).expect("forward");
                stream.memcpy_dtod(&log_probs, &mut sums).expect("a copy");
                nccl.sum(&cuda, (&mut sums).into(), &mut || {
                    stream.memcpy_dtod(&log_probs, &mut copy).expect("a copy");
                    Ok(())
                })
                .expect("a sum");
            };
            // The first call makes what a capture cannot.
            step();
            stream.synchronize().expect("done");
            stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
            assert_eq!(nccl.exchange(&[1]), Ok(None), "hosts exchange nothing in a capture");
            step();
            let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = stream.end_capture(flags).expect("the end").expect("a graph");
            assert_eq!(nccl.exchange(&[rank as u32]), Ok(Some(vec![0, 1])), "and go on afterwards");
            seeds.map(|seed| {
                stream.memcpy_htod(&own(seed).logits, &mut logits).expect("logits");
                graph.launch().expect("a replay");
                let found = [download(&cuda, &log_probs), download(&cuda, &sums), download(&cuda, &copy)];
                assert_eq!(nccl.status(), Ok(()));
                found
            })
        });
        for of_rank in &found {
            for (seed, [log_probs, sums, copy]) in seeds.into_iter().zip(of_rank) {
                let direct = cuda(0).forward(&rows(vocab, seed), &LogitOptions::default(), false);
                assert_eq!(*log_probs, direct.log_probs, "seed {seed}");
                assert_eq!(*copy, direct.log_probs);
                assert!(sums.iter().zip(log_probs).all(|(sum, one)| *sum == 2.0 * one), "twice the same");
            }
        }
    }
}
