//! A preference loss over ranks by NCCL: what a step exchanges is what `ranks::Traffic` says, for 1 to 8 ranks, and a captured step is
//! replayed.

use crate::{delayed, on_ranks, turn_with};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use exo_kernels::cuda::{Cuda, Head, LinearGradients, Matrix, MatrixMut, Nccl, Reference};
use exo_kernels::ranks::{Communicator, Ranks, StepShape, Traffic};
use exo_kernels::{Batch, Betas, Objective, PreferenceLoss, Shard};
use softcuda::Settings;
use std::sync::Arc;
use support::device::{download, upload};

/// A note, 360 bytes of each rank.
const NOTE: u64 = 360;

fn objective() -> Objective {
    Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid")
}

fn loss(cuda: &Cuda, line: &str, nccl: Nccl, shard: (usize, usize)) -> PreferenceLoss<Cuda> {
    let own: Arc<dyn Communicator<Cuda>> = Arc::new(nccl);
    let ranks = match line {
        "vocab" => Ranks { vocab: Some(own), ..Ranks::default() },
        "rows" => Ranks { rows: Some(own), ..Ranks::default() },
        _ => Ranks { groups: Some(own), ..Ranks::default() },
    };
    let shard = Shard::new(shard.0, shard.1).expect("a shard");
    PreferenceLoss::new(cuda.clone(), objective()).with_ranks(ranks).with_shard(shard)
}

#[test]
fn a_step_exchanges_what_is_said_of_it() {
    const COLUMNS: usize = 40;
    const SIZE: usize = 4;
    for ranks in 1..=8 {
        // Sequences are exchanged in one way, whatever divides them.
        let lines = if matches!(ranks, 1 | 3 | 8) { &["vocab", "rows", "groups"][..] } else { &["vocab"] };
        for &line in lines {
            let Some(_turn) = turn_with(ranks, Settings::default(), true) else { return };
            let control = softnccl::control().expect("the software NCCL");
            let meet = std::sync::Barrier::new(ranks);
            let is_vocab = line == "vocab";
            let found = on_ranks(ranks, |rank, cuda, nccl| {
                let shard = if is_vocab { (COLUMNS * rank, COLUMNS * ranks) } else { (0, COLUMNS) };
                let mut loss = loss(&cuda, line, nccl, shard);
                let batch = Batch::padded(4, 3, 2).expect("a batch");
                let rows = batch.rows();
                let (hidden, weight) =
                    (upload(&cuda, &vec![0.25_f32; rows * SIZE]), upload(&cuda, &[0.5_f32; COLUMNS * SIZE]));
                let hidden = Matrix::new((&hidden).into(), SIZE).expect("rows");
                let head = Head::new(Matrix::new((&weight).into(), SIZE).expect("rows")).expect("a vocabulary");
                let (targets, rewards) = (upload(&cuda, &vec![1_i64; rows]), [1.0_f64, 0.0, 0.5, 0.25]);
                let mut gradient = upload(&cuda, &vec![0.0_f32; rows * SIZE]);
                let mut step = || {
                    let step = loss
                        .forward_linear(&hidden, &head, &targets, &batch, &Reference::None, &rewards)
                        .expect("all fit");
                    let to = MatrixMut::new((&mut gradient).into(), SIZE).expect("rows");
                    let gradients = LinearGradients::<f32, f32>::new(Some(to), None);
                    loss.backward_linear(&step, &hidden, &head, gradients).expect("all fit");
                };
                // The first step exchanges the sizes of groups too.
                step();
                meet.wait();
                let first = if rank == 0 { control.take_counts() } else { softnccl::Counts::default() };
                meet.wait();
                step();
                meet.wait();
                let counts = if rank == 0 { control.take_counts() } else { softnccl::Counts::default() };
                meet.wait();
                let shape = StepShape {
                    rows,
                    most_columns: if is_vocab { COLUMNS } else { 0 },
                    hidden_numbers: if is_vocab { rows * SIZE } else { 0 },
                    sequences: 4,
                    most_sequences: 4,
                    ranks_of_rows: if line == "rows" { ranks } else { 0 },
                    groups: line == "groups",
                };
                let report = format!("{:?}", loss.report().expect("a report"));
                (first, counts, Traffic::of_step::<Cuda>(&shape), report)
            });
            let (_, counts, said, report) = &found[0];
            assert!(found.iter().all(|of_rank| of_rank.3 == *report), "{line}, {ranks}: every rank reports the same");
            let notes = if is_vocab { 2 } else { 1 };
            let all = ranks as u64;
            let gathered = (said.partial_rows + said.of_rows + said.of_groups) as u64;
            assert_eq!(counts.all_gather.calls, all * (notes + 1), "{line}, {ranks}");
            assert_eq!(counts.all_gather.bytes, all * (notes * NOTE + gathered), "{line}, {ranks}");
            assert_eq!(counts.all_reduce.bytes, all * said.hidden_sum as u64, "{line}, {ranks}");
            assert_eq!(counts.all_reduce.calls, if is_vocab { all } else { 0 }, "{line}, {ranks}");
        }
    }
}

/// Forward and backward in one graph, columns on two ranks: replayed over other logits, with what one device finds.
#[test]
fn a_captured_step_of_a_loss_is_replayed() {
    const VOCAB: usize = 70;
    const ROWS: usize = 8;
    let value = |seed: usize, i: usize| ((i * 7919 + seed * 31) % 1013) as f32 * 0.004;
    let batch = Batch::padded(4, 2, 2).expect("a batch");
    for settings in [Settings::default(), delayed()] {
        let Some(_turn) = turn_with(2, settings, false) else { continue };
        let columns = [0..30, 30..VOCAB];
        let logits = |seed: usize, columns: &std::ops::Range<usize>| -> Vec<f32> {
            (0..ROWS).flat_map(|row| columns.clone().map(move |column| value(seed, row * VOCAB + column))).collect()
        };
        let found = on_ranks(2, |rank, cuda, nccl| {
            let own = &columns[rank];
            let stream = cuda.stream();
            let mut placed = upload(&cuda, &logits(0, own));
            let mut gradient = upload(&cuda, &logits(0, own));
            let (targets, rewards) =
                (upload(&cuda, &[3_i64, 40, 7, 69, 0, 30, 29, 8]), upload(&cuda, &[1.0_f64, 0.0, 0.5, 0.25]));
            let mut loss = loss(&cuda, "vocab", nccl, (own.start, VOCAB));
            let step = |loss: &mut PreferenceLoss<Cuda>, placed: &_, gradient: &mut _| {
                let view = Matrix::<f32>::new(cudarc_view(placed), own.len()).expect("rows");
                let step = loss.forward(&view, &targets, &batch, &Reference::None, &rewards).expect("all fit");
                let to = MatrixMut::<f32>::new(cudarc_view_mut(gradient), own.len()).expect("rows");
                loss.backward(&step, &view, to).expect("all fit");
            };
            step(&mut loss, &placed, &mut gradient);
            stream.synchronize().expect("done");
            stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
            step(&mut loss, &placed, &mut gradient);
            let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = stream.end_capture(flags).expect("the end").expect("a graph");
            stream.memcpy_htod(&logits(5, own), &mut placed).expect("logits");
            graph.launch().expect("a replay");
            loss.discard_report();
            let of_graph = (format!("{:?}", loss.report().expect("a report")), download(&cuda, &gradient));
            // The same without a graph.
            step(&mut loss, &placed, &mut gradient);
            let direct = (format!("{:?}", loss.report().expect("a report")), download(&cuda, &gradient));
            assert_eq!(of_graph, direct);
            of_graph.0
        });
        assert_eq!(found[0], found[1]);
    }
}

fn cudarc_view(slice: &cudarc::driver::CudaSlice<f32>) -> exo_kernels::cuda::View<'_, f32> {
    slice.into()
}

fn cudarc_view_mut(slice: &mut cudarc::driver::CudaSlice<f32>) -> exo_kernels::cuda::ViewMut<'_, f32> {
    slice.into()
}
