//! How much memory the linear stage takes at its peak: what its modules say, and nothing that grows with N·V.
//!
//! A counting allocator follows what is allocated. There is one test in this file, so nothing else allocates beside it.

use exo_kernels::cpu::InstructionSet;
use exo_kernels::{
    Backend, Cpu, Head, LinearGradients, LinearOutputs, LogitOptions, Matrix, MatrixMut, RowGradients, RowLoss,
    RowLosses, SavedRows, SoftmaxState, TokenLogProbs,
};
use half::bf16;
use limits::peak_memory::{self, peak};

#[global_allocator]
static ALLOCATOR: peak_memory::Counting = peak_memory::Counting;

const TILE: usize = 256 * 512 * 4;

/// What is packed of a tile's operands: by this crate's kernels 256 words of either, of all of the left one and of 48 columns
/// of the right one. `gemm` packs at most both, 512 deep, of copies in f32, and has a product of its own where one is filled
/// up.
fn packed(left: usize) -> usize {
    let kernels = [InstructionSet::Avx512Bf16, InstructionSet::Avx512].contains(&Cpu::default().instruction_set());
    if kernels { (left + 48) * 256 * 4 } else { 2 * (512 + 512) * 512 * 4 + 512 * 64 * 4 + 64 * 1024 }
}

fn gradients<'a>(hidden: &'a mut [bf16], weight: &'a mut [bf16], size: usize) -> LinearGradients<'a, bf16, bf16> {
    LinearGradients::new(
        Some(MatrixMut::new(hidden, size).expect("rows")),
        Some(MatrixMut::new(weight, size).expect("rows")),
    )
}

#[test]
fn the_peak_is_what_the_modules_say() {
    let (rows, size, threads) = (700, 48, 2);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let mut measured = Vec::new();
    for vocab in [20_000, 80_000] {
        let hidden = vec![bf16::from_f32(0.5); rows * size];
        let weight: Vec<bf16> = (0..vocab * size).map(|i| bf16::from_f32((i % 11) as f32 * 0.01)).collect();
        let (hidden, weight) = (Matrix::new(&hidden, size).expect("rows"), Matrix::new(&weight, size).expect("rows"));
        let head = Head::new(weight).expect("a head");
        let targets: Vec<u32> = (0..rows as u32).map(|row| row * 20).collect();
        let options = LogitOptions::default();
        let cpu = Cpu::default();
        let (mut log_probs, mut states) = (vec![0.0; rows], vec![SoftmaxState::default(); rows]);
        let (mut grad_hidden, mut grad_weight) = (vec![bf16::ZERO; rows * size], vec![bf16::ZERO; vocab * size]);
        let g = vec![0.1f32; rows];
        let mut losses = vec![0.0f32; rows];

        let ((), forward) = peak(|| {
            let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None };
            let run = || cpu.linear_token_log_probs(&hidden, &head, &targets, &options, outputs);
            pool.install(run).expect("forward");
        });
        let mut units = vec![0.0; rows * size];
        let ((), keeping) = peak(|| {
            let outputs = LinearOutputs {
                rows: TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None },
                unit_gradients: Some(&mut units),
                logit_gradients: None,
            };
            let run = || cpu.linear_token_log_probs(&hidden, &head, &targets, &options, outputs);
            pool.install(run).expect("forward");
        });
        let ((), backward) = peak(|| {
            let saved = SavedRows { states: &states, entropies: None };
            let upstream = RowGradients::PerRow { log_probs: &g, entropies: None };
            let run = || {
                let gradients = gradients(&mut grad_hidden, &mut grad_weight, size);
                cpu.linear_token_log_probs_backward(&hidden, &head, &targets, &options, saved, &upstream, gradients)
            };
            pool.install(run).expect("backward");
        });
        let ((), one_pass) = peak(|| {
            let outputs = RowLosses { log_probs: &mut log_probs, losses: &mut losses };
            let loss = RowLoss::Weighted { weights: g.as_slice() };
            let run = || {
                let gradients = gradients(&mut grad_hidden, &mut grad_weight, size);
                cpu.linear_row_loss(&hidden, &head, &targets, &options, &loss, outputs, gradients)
            };
            pool.install(run).expect("one pass");
        });

        // 700 rows are three tiles of 256.
        let tiled = 768;
        let hidden_bytes = size_of::<bf16>() * rows * size;
        let forward_allowed = hidden_bytes + 32 * 40 * rows + threads * (TILE + packed(256)) + 64 * 1024;
        assert!(forward <= forward_allowed, "forward, V={vocab}: {forward} bytes, {forward_allowed} allowed");
        let tiles = 2 * 8;
        let weight_piece = 128 * 4 * size;
        let backward_allowed = hidden_bytes
            + 4 * tiled * size
            + tiles * TILE
            + 128 * rows
            + threads * (packed(512) + weight_piece)
            + 64 * 1024;
        assert!(backward <= backward_allowed, "backward, V={vocab}: {backward} bytes, {backward_allowed} allowed");
        // The same sums, tiles of e instead of D, and what is known of each row.
        let keeping_allowed = backward_allowed - threads * weight_piece + tiles * 256 * 64 + 256 * rows;
        assert!(keeping <= keeping_allowed, "keeping, V={vocab}: {keeping} bytes, {keeping_allowed} allowed");
        // The two passes, and the unit gradients between them.
        let one_pass_allowed = keeping_allowed.max(backward_allowed) + 4 * rows * size + 12 * rows;
        assert!(one_pass <= one_pass_allowed, "one pass, V={vocab}: {one_pass} bytes, {one_pass_allowed} allowed");
        measured.push(([forward, keeping, backward, one_pass], 4 * rows * vocab));
    }
    println!("forward, forward that keeps, backward, row loss, f32 logits: {measured:?} bytes");
    let [(of_one, _), (of_four, logits)] = measured[..] else { unreachable!("two vocabularies") };
    // Four times the vocabulary, the same memory but for what threads pack at the same moment.
    for (of_one, of_four) in of_one.into_iter().zip(of_four) {
        assert!(of_four <= of_one + threads * packed(512), "{measured:?}");
        assert!(of_four * 10 < logits, "{measured:?}");
    }
}
