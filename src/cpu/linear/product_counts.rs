//! How many products each pass makes: the table of [`LinearKept`], counted in multiplications.

use crate::cpu::Cpu;
use crate::cpu::linear::product::MULTIPLICATIONS;
use crate::host::{
    Head, LinearGradients, LinearOutputs, Matrix, MatrixMut, RowGradients, RowLosses, SavedLinear, SavedRows,
    TokenLogProbs,
};
use crate::stage::linear::kept_logit_words;
use crate::{Backend, Dtype, LinearKept, LogitOptions, RowLoss, SoftmaxState};

const ROWS: usize = 300;
const SIZE: usize = 20;
const VOCAB: usize = 1500;

/// What a call multiplies, in products of all rows with the whole weight. On one thread, whose count it is.
fn products(call: impl FnOnce() + Send) -> usize {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    let count = pool.install(|| {
        let before = MULTIPLICATIONS.get();
        call();
        MULTIPLICATIONS.get() - before
    });
    assert!(count.is_multiple_of(ROWS * SIZE * VOCAB), "{count}: no whole number of products");
    count / (ROWS * SIZE * VOCAB)
}

#[test]
fn products_are_those_of_the_table() {
    const TABLE: [(LinearKept, [usize; 3]); 3] = [
        (LinearKept::Nothing, [1, 2, 3]),
        (LinearKept::UnitGradients, [2, 0, 2]),
        (LinearKept::LogitGradients, [2, 0, 1]),
    ];
    let number = |i: usize| ((i * 37) % 101) as f32 * 0.01 - 0.5;
    let hidden: Vec<f32> = (0..ROWS * SIZE).map(number).collect();
    let weight: Vec<f32> = (0..VOCAB * SIZE).map(number).collect();
    let states = Matrix::new(&hidden, SIZE).expect("rows");
    let head = Head::new(Matrix::new(&weight, SIZE).expect("rows")).expect("a head");
    let targets: Vec<u32> = (0..ROWS as u32).collect();
    let (cpu, options, g) = (Cpu::default(), LogitOptions::default(), vec![0.1_f32; ROWS]);
    for (kept, expected) in TABLE {
        let (mut log_probs, mut of_rows) = (vec![0.0; ROWS], vec![SoftmaxState::default(); ROWS]);
        let mut units = vec![0.0; ROWS * SIZE];
        let mut words = vec![0; kept_logit_words(Dtype::F32, ROWS, VOCAB)];
        let forward = products(|| {
            let outputs = LinearOutputs {
                rows: TokenLogProbs { log_probs: &mut log_probs, states: &mut of_rows, entropies: None },
                unit_gradients: (kept > LinearKept::Nothing).then_some(&mut units),
                logit_gradients: (kept == LinearKept::LogitGradients).then_some(&mut words),
            };
            cpu.linear_token_log_probs(&states, &head, &targets, &options, outputs).expect("forward");
        });
        let backward = [false, true].map(|is_trained| {
            let (mut of_hidden, mut of_weight) = (vec![0.0; ROWS * SIZE], vec![0.0_f32; VOCAB * SIZE]);
            let saved = SavedLinear {
                rows: SavedRows { states: &of_rows, entropies: None },
                unit_gradients: (kept > LinearKept::Nothing).then_some(&units),
                logit_gradients: (kept == LinearKept::LogitGradients).then_some(&words),
            };
            products(|| {
                let upstream = RowGradients::PerRow { log_probs: &g, entropies: None };
                let gradients = LinearGradients::new(
                    Some(MatrixMut::new(&mut of_hidden, SIZE).expect("rows")),
                    is_trained.then(|| MatrixMut::new(&mut of_weight, SIZE).expect("rows")),
                );
                cpu.linear_token_log_probs_backward(&states, &head, &targets, &options, saved, &upstream, gradients)
                    .expect("backward");
            })
        });
        assert_eq!([forward, backward[0], backward[1]], expected, "{kept:?}");
    }
    for (is_trained, expected) in [(false, 2), (true, 4)] {
        let (mut log_probs, mut losses) = (vec![0.0; ROWS], vec![0.0; ROWS]);
        let (mut of_hidden, mut of_weight) = (vec![0.0; ROWS * SIZE], vec![0.0_f32; VOCAB * SIZE]);
        let of_row_loss = products(|| {
            let gradients = LinearGradients::new(
                Some(MatrixMut::new(&mut of_hidden, SIZE).expect("rows")),
                is_trained.then(|| MatrixMut::new(&mut of_weight, SIZE).expect("rows")),
            );
            let outputs = RowLosses { log_probs: &mut log_probs, losses: &mut losses };
            let loss = RowLoss::Weighted { weights: g.as_slice() };
            cpu.linear_row_loss(&states, &head, &targets, &options, &loss, outputs, gradients).expect("a pass");
        });
        assert_eq!(of_row_loss, expected, "row loss, trained: {is_trained}");
    }
}
