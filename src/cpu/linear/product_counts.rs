//! How many products each pass makes: the table of [`LinearKept`], counted in multiplications.

use crate::cpu::linear::product::MULTIPLICATIONS;
use crate::cpu::{Cpu, PartialRow};
use crate::host::{
    GatheredRows, Head, LinearGradients, LinearOutputs, LinearParts, Matrix, MatrixMut, RowGradients, RowLosses,
    SavedLinear, SavedRows, TokenLogProbs, UnitSums,
};
use crate::stage::linear::kept_logit_words;
use crate::{Backend, Dtype, LinearKept, LogitOptions, RowLoss, Shard, SoftmaxState};

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

/// A rank's rows of a head: two products where unit sums are kept, else one; backward 2 for the hidden states without unit gradients
/// and for the trained head with them, 3 for both; nothing for its share in the unit gradients, nor for padding.
#[test]
fn products_of_a_shard_are_those_of_its_columns() {
    const HELD: usize = VOCAB + 40;
    let number = |i: usize| ((i * 37) % 101) as f32 * 0.01 - 0.5;
    let hidden: Vec<f32> = (0..ROWS * SIZE).map(number).collect();
    let weight: Vec<f32> = (0..HELD * SIZE).map(number).collect();
    let states = Matrix::new(&hidden, SIZE).expect("rows");
    let head = Head::new(Matrix::new(&weight, SIZE).expect("rows")).expect("a head");
    let targets: Vec<u32> = (0..ROWS as u32).map(|row| 17 * row % 5000).collect();
    let (cpu, g) = (Cpu::default(), vec![0.1_f32; ROWS]);
    let whole = 3500 + VOCAB;
    let options = LogitOptions::default().with_shard(Shard::new(3500, whole).expect("a shard"));
    let (mut sums, mut rests) = (vec![0.0; ROWS * SIZE], vec![PartialRow::default(); ROWS]);
    let mut parts = vec![PartialRow::default(); ROWS];
    for (keeps, expected) in [(false, 1), (true, 2)] {
        let forward = products(|| {
            let unit_sums = keeps.then_some(UnitSums { sums: &mut sums, rests: &mut rests });
            let outputs = LinearParts { partial_rows: &mut parts, unit_sums };
            cpu.linear_partial_rows(&states, &head, &targets, &options, true, outputs).expect("forward");
        });
        assert_eq!(forward, expected, "unit sums: {keeps}");
    }
    let of_rows = vec![SoftmaxState { r: 1.0, s: 1.0 }; ROWS];
    let share = products(|| {
        let gathered = GatheredRows { partial_rows: parts.as_slice(), ranks: 1, rank: 0, states: &of_rows };
        let unit_sums = UnitSums { sums: &mut sums, rests: &mut rests };
        cpu.linear_unit_gradients(&states, &head, &targets, &options, &gathered, unit_sums).expect("shares");
    });
    assert_eq!(share, 0);
    for (units, is_trained, expected) in [(true, false, 0), (true, true, 2), (false, false, 2), (false, true, 3)] {
        let (mut of_hidden, mut of_weight) = (vec![0.0; ROWS * SIZE], vec![0.0_f32; HELD * SIZE]);
        let saved = SavedLinear {
            rows: SavedRows { states: &of_rows, entropies: None },
            unit_gradients: units.then_some(&sums),
            logit_gradients: None,
        };
        let backward = products(|| {
            let upstream = RowGradients::PerRow { log_probs: &g, entropies: None };
            let gradients = LinearGradients::new(
                Some(MatrixMut::new(&mut of_hidden, SIZE).expect("rows")),
                is_trained.then(|| MatrixMut::new(&mut of_weight, SIZE).expect("rows")),
            );
            cpu.linear_token_log_probs_backward(&states, &head, &targets, &options, saved, &upstream, gradients)
                .expect("backward");
        });
        assert_eq!(backward, expected, "unit gradients: {units}, trained: {is_trained}");
    }
}
