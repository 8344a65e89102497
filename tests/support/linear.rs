//! Hidden states and heads for the tests of the linear stage.

use exo_kernels::cuda::{Cuda, LinearChunks};
use exo_kernels::{Element, Head, LinearKept, Matrix};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Hidden states `[N, H]`, a head `[V, H]` with or without bias, targets with masked rows among them.
#[derive(Debug, Clone)]
pub struct Case<T, W> {
    pub rows: usize,
    pub hidden_size: usize,
    pub vocab: usize,
    pub hidden: Vec<T>,
    pub weight: Vec<W>,
    pub bias: Option<Vec<W>>,
    pub targets: Vec<i64>,
}

impl<T: Element, W: Element> Case<T, W> {
    /// Logits of about unit size; every fourth row or so is masked, with NaN for its hidden state.
    pub fn random(rows: usize, hidden_size: usize, vocab: usize, bias: bool, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let size = 2.0 / (hidden_size as f32).sqrt();
        let targets: Vec<i64> =
            (0..rows).map(|row| if row % 4 == 3 { -100 } else { random.random_range(0..vocab as i64) }).collect();
        let mut hidden: Vec<T> = (0..rows * hidden_size).map(|_| T::from_f32(random.random_range(-1.0..1.0))).collect();
        for (row, hidden) in hidden.chunks_exact_mut(hidden_size).enumerate() {
            if targets[row] < 0 {
                hidden.fill(T::NAN);
            }
        }
        let mut numbers = |count: usize, size: f32| -> Vec<W> {
            (0..count).map(|_| W::from_f32(random.random_range(-size..size))).collect()
        };
        let weight = numbers(vocab * hidden_size, size);
        let bias = bias.then(|| numbers(vocab, 1.0));
        Self { rows, hidden_size, vocab, hidden, weight, bias, targets }
    }

    pub fn hidden(&self) -> Matrix<'_, T> {
        Matrix::new(&self.hidden, self.hidden_size).expect("rows")
    }

    pub fn head(&self) -> Head<'_, W> {
        let head = Head::new(Matrix::new(&self.weight, self.hidden_size).expect("rows")).expect("a vocabulary");
        match &self.bias {
            Some(bias) => head.with_bias(bias).expect("a bias"),
            None => head,
        }
    }
}

/// All that a forward pass may keep.
pub const KEPT: [LinearKept; 3] = [LinearKept::Nothing, LinearKept::UnitGradients, LinearKept::LogitGradients];

/// What is wanted of the gradients.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub hidden: bool,
    pub weight: bool,
    pub bias: bool,
    /// Adds to a head's gradient that is all this number.
    pub accumulate: Option<f32>,
}

pub const ALL: Wanted = Wanted { hidden: true, weight: true, bias: true, accumulate: None };

/// Gradients, on the host; what was not wanted is as it was: NaN.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients<T, G> {
    pub hidden: Vec<T>,
    pub weight: Vec<G>,
    pub bias: Vec<G>,
}

/// So many columns at once on a CUDA device, and as many bytes of logits.
pub fn set_chunks(cuda: &Cuda, columns: usize, bytes: usize) {
    let chunks = LinearChunks::default().with_columns(columns).expect("units");
    cuda.set_linear_chunks(chunks.with_logits(bytes / 4).with_row_bytes(bytes));
}
