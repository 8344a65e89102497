//! The linear stage waits for nothing, can be captured in a graph, and has the same bits in whatever order blocks, warps
//! and streams run. A binary of its own: the settings of softcuda are the process's.

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use exo_kernels::cuda::{
    Cuda, Head, LinearGradients, Matrix, MatrixMut, RowGradients, RowLosses, SavedRows, TokenLogProbs,
};
use exo_kernels::{Backend, Element, LogitOptions, RowLoss, SoftmaxState};
use half::f16;
use softcuda::Settings;
use support::backend::{self, Placed};
use support::device::{download, upload};
use support::linear::Case;
use support::linear::{ALL, Gradients, set_chunks};
use support::turn;

const ROWS: usize = 13;
const SIZE: usize = 10;
const VOCAB: usize = 1300;

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

fn case(seed: u64) -> Case<f16, f16> {
    Case::random(ROWS, SIZE, VOCAB, true, seed)
}

fn options() -> LogitOptions {
    LogitOptions::default().with_temperature(0.8).and_then(|options| options.with_softcap(6.0)).expect("valid")
}

fn upstream() -> (Vec<f32>, Vec<f32>) {
    let at = |row: usize, shift: usize| ((row * 7 + shift) % 11) as f32 * 0.2 - 0.9;
    ((0..ROWS).map(|row| at(row, 0)).collect(), (0..ROWS).map(|row| at(row, 5)).collect())
}

/// All that the stage makes, both ways.
fn everything(cuda: &Cuda, case: &Case<f16, f16>) -> Vec<u32> {
    set_chunks(cuda, 512, 3 * 4 * VOCAB);
    let on_device = Placed::new(cuda, case);
    let (g, e) = upstream();
    let forward = on_device.forward(&options(), true);
    let gradients: Gradients<f16, f16> = on_device.backward(&options(), &forward, (&g, Some(&e)), ALL);
    let loss = RowLoss::Weighted { weights: g.as_slice() };
    let (log_probs, losses, of_loss): (_, _, Gradients<f16, f16>) = on_device.row_loss(&options(), loss, ALL);
    let mut all = bits(&forward.log_probs);
    all.extend(forward.states.iter().flat_map(|state| [state.r.to_bits(), state.s.to_bits()]));
    all.extend(bits(&forward.entropies).into_iter().chain(bits(&log_probs)).chain(bits(&losses)));
    for gradients in [gradients, of_loss] {
        all.extend(bits(&gradients.hidden).into_iter().chain(bits(&gradients.weight)).chain(bits(&gradients.bias)));
    }
    all
}

#[test]
fn shuffled_blocks_and_warps_give_the_same_bits() {
    let _turn = turn::take();
    let expected = everything(&backend::cuda(), &case(1));
    let Some(control) = softcuda::control() else {
        assert!(everything(&backend::cuda(), &case(1)) == expected, "two runs differ");
        println!("NOT RUN with shuffled schedules: this is a real device");
        return;
    };
    for seed in 0..5 {
        let settings = Settings { shuffle: Some(seed), host_threads: 1 + seed as usize % 3, ..Settings::default() };
        control.configure(&settings);
        assert!(everything(&backend::cuda(), &case(1)) == expected, "seed {seed} gives other bits");
    }
    control.configure(&Settings::default());
}

/// Buffers of a step, kept from call to call.
struct Step {
    cuda: Cuda,
    hidden: cudarc::driver::CudaSlice<f16>,
    weight: cudarc::driver::CudaSlice<f16>,
    bias: cudarc::driver::CudaSlice<f16>,
    targets: cudarc::driver::CudaSlice<i64>,
    upstream: cudarc::driver::CudaSlice<f32>,
    entropy_upstream: cudarc::driver::CudaSlice<f32>,
    log_probs: cudarc::driver::CudaSlice<f32>,
    losses: cudarc::driver::CudaSlice<f32>,
    entropies: cudarc::driver::CudaSlice<f32>,
    states: cudarc::driver::CudaSlice<SoftmaxState>,
    hidden_gradient: cudarc::driver::CudaSlice<f16>,
    weight_gradient: cudarc::driver::CudaSlice<f16>,
    bias_gradient: cudarc::driver::CudaSlice<f16>,
}

impl Step {
    fn new(cuda: &Cuda, case: &Case<f16, f16>) -> Self {
        let (g, e) = upstream();
        Self {
            cuda: cuda.clone(),
            hidden: upload(cuda, &case.hidden),
            weight: upload(cuda, &case.weight),
            bias: upload(cuda, case.bias.as_ref().expect("a bias")),
            targets: upload(cuda, &case.targets),
            upstream: upload(cuda, &g),
            entropy_upstream: upload(cuda, &e),
            log_probs: upload(cuda, &[f32::MAX; ROWS]),
            losses: upload(cuda, &[f32::MAX; ROWS]),
            entropies: upload(cuda, &[f32::MAX; ROWS]),
            states: upload(cuda, &[SoftmaxState::default(); ROWS]),
            hidden_gradient: upload(cuda, &vec![f16::NAN; ROWS * SIZE]),
            weight_gradient: upload(cuda, &vec![f16::NAN; VOCAB * SIZE]),
            bias_gradient: upload(cuda, &vec![f16::NAN; VOCAB]),
        }
    }

    /// Forward and backward, or a row loss.
    fn run(&mut self, row_loss: bool) {
        let hidden = Matrix::new(self.hidden.as_view().into(), SIZE).expect("rows");
        let weight = Matrix::new(self.weight.as_view().into(), SIZE).expect("rows");
        let head = Head::new(weight).and_then(|head| head.with_bias(self.bias.as_view().into())).expect("a head");
        let gradients = LinearGradients::new(
            Some(MatrixMut::new(self.hidden_gradient.as_view_mut().into(), SIZE).expect("rows")),
            Some(MatrixMut::new(self.weight_gradient.as_view_mut().into(), SIZE).expect("rows")),
        )
        .with_bias(self.bias_gradient.as_view_mut().into());
        let targets = self.targets.as_view();
        if row_loss {
            let loss = RowLoss::Weighted { weights: self.upstream.as_view().into() };
            let outputs =
                RowLosses { log_probs: self.log_probs.as_view_mut().into(), losses: self.losses.as_view_mut().into() };
            let call = self.cuda.linear_row_loss(&hidden, &head, &targets, &options(), &loss, outputs, gradients);
            return call.expect("a pass");
        }
        let outputs = TokenLogProbs {
            log_probs: self.log_probs.as_view_mut().into(),
            states: self.states.as_view_mut().into(),
            entropies: Some(self.entropies.as_view_mut().into()),
        };
        self.cuda.linear_token_log_probs(&hidden, &head, &targets, &options(), outputs).expect("forward");
        let saved =
            SavedRows { states: self.states.as_view().into(), entropies: Some(self.entropies.as_view().into()) };
        let upstream = RowGradients::PerRow {
            log_probs: self.upstream.as_view().into(),
            entropies: Some(self.entropy_upstream.as_view().into()),
        };
        self.cuda
            .linear_token_log_probs_backward(&hidden, &head, &targets, &options(), &saved, &upstream, gradients)
            .expect("backward");
    }

    fn results(&self) -> [Vec<u32>; 4] {
        [
            bits(&download(&self.cuda, &self.log_probs)),
            bits(&download(&self.cuda, &self.hidden_gradient)),
            bits(&download(&self.cuda, &self.weight_gradient)),
            bits(&download(&self.cuda, &self.bias_gradient)),
        ]
    }
}

/// Nothing runs until something asks for it: so the calls have waited for nothing. What runs then is in the stream's
/// order.
#[test]
fn a_step_does_not_wait_for_the_device() {
    let _turn = turn::take();
    let cuda = backend::cuda();
    set_chunks(&cuda, 512, 3 * 4 * VOCAB);
    let Some(control) = softcuda::control() else {
        println!("NOT RUN: on a real device work cannot be held back");
        return;
    };
    for row_loss in [false, true] {
        let mut expected = Step::new(&cuda, &case(2));
        expected.run(row_loss);
        let expected = expected.results();
        let mut step = Step::new(&cuda, &case(2));
        cuda.stream().synchronize().expect("nothing has failed");
        control.configure(&Settings { delay_streams: true, ..Settings::default() });
        control.take_launches();
        step.run(row_loss);
        step.run(row_loss);
        assert_eq!(control.take_launches().len(), 0, "something has waited for the stream");
        assert!(step.results() == expected, "other bits when delayed");
        assert!(control.take_launches().len() > 20, "the results wait for all of it");
        control.configure(&Settings::default());
    }
}

#[test]
fn a_captured_step_is_replayed_over_other_hidden_states() {
    let _turn = turn::take();
    let cuda = backend::cuda();
    // SAFETY: everything of this test is on one stream.
    unsafe { cuda.stream().context().disable_event_tracking() };
    set_chunks(&cuda, 512, 3 * 4 * VOCAB);
    for row_loss in [false, true] {
        let mut step = Step::new(&cuda, &case(3));
        // The first call loads the kernels, makes the handle and the scratch memory.
        step.run(row_loss);
        cuda.stream().begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("capture");
        step.run(row_loss);
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = cuda.stream().end_capture(flags).expect("end of capture").expect("a graph");
        for seed in 4..6 {
            // Other masks, too: which rows are scored is found out in the graph.
            let mut other = case(seed);
            other.targets.rotate_left(seed as usize);
            other.hidden.rotate_left(seed as usize * SIZE);
            cuda.stream().memcpy_htod(&other.hidden, &mut step.hidden).expect("upload");
            cuda.stream().memcpy_htod(&other.weight, &mut step.weight).expect("upload");
            cuda.stream().memcpy_htod(other.bias.as_ref().expect("a bias"), &mut step.bias).expect("upload");
            cuda.stream().memcpy_htod(&other.targets, &mut step.targets).expect("upload");
            graph.launch().expect("replay");
            let replayed = step.results();
            let mut direct = Step::new(&cuda, &other);
            direct.run(row_loss);
            assert!(replayed == direct.results(), "seed {seed}: other bits in the graph");
        }
    }
}
