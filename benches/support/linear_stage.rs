//! The linear stage with buffers made once: what is timed, here and in `examples/time_linear_log_prob.rs`.

use exo_kernels::backend::kept_logit_words;
use exo_kernels::{
    Backend, Cpu, Element, Head, LinearGradients, LinearKept, LinearOutputs, LogitOptions, Matrix, MatrixMut,
    RowGradients, RowLoss, RowLosses, SavedLinear, SavedRows, SoftmaxState, TokenLogProbs,
};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

/// N hidden states of H, a head of V rows; gradients in the type of what they are gradients of.
pub(crate) struct LinearStage<T> {
    cpu: Cpu,
    rows: usize,
    hidden_size: usize,
    vocab: usize,
    /// `[N, H]`
    hidden: Vec<T>,
    /// `[V, H]`
    weight: Vec<T>,
    targets: Vec<i64>,
    /// The gradient that comes in, N.
    upstream: Vec<f32>,
    pub(crate) log_probs: Vec<f32>,
    losses: Vec<f32>,
    states: Vec<SoftmaxState>,
    /// What is kept between the passes; made when it is first asked for.
    units: Vec<f32>,
    words: Vec<u32>,
    pub(crate) grad_hidden: Vec<T>,
    pub(crate) grad_weight: Vec<T>,
}

/// Numbers that look random, uniform in ±`size`, the same in every run.
pub(crate) fn numbers<T: Element>(count: usize, size: f32, seed: u64) -> Vec<T> {
    let number = |index: usize| {
        let mut z = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^= z >> 31;
        T::from_f32(((z >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * size)
    };
    (0..count).into_par_iter().map(number).collect()
}

impl<T: Element> LinearStage<T> {
    pub(crate) fn new(
        cpu: Cpu,
        (hidden, weight): (Vec<T>, Vec<T>),
        hidden_size: usize,
        targets: Vec<i64>,
        upstream: Vec<f32>,
    ) -> Self {
        let (rows, vocab) = (targets.len(), weight.len() / hidden_size);
        Self {
            cpu,
            rows,
            hidden_size,
            vocab,
            grad_hidden: vec![T::from_f32(0.0); hidden.len()],
            grad_weight: vec![T::from_f32(0.0); weight.len()],
            hidden,
            weight,
            targets,
            upstream,
            log_probs: vec![0.0; rows],
            losses: vec![0.0; rows],
            states: vec![SoftmaxState::default(); rows],
            units: Vec::new(),
            words: Vec::new(),
        }
    }

    /// N, H, V.
    pub(crate) fn shape(&self) -> (usize, usize, usize) {
        (self.rows, self.hidden_size, self.vocab)
    }

    /// Logits with a standard deviation of about 2.
    pub(crate) fn random(cpu: Cpu, rows: usize, hidden_size: usize, vocab: usize) -> Self {
        let hidden = numbers(rows * hidden_size, 1.0, 1);
        let weight = numbers(vocab * hidden_size, 6.0 / (hidden_size as f32).sqrt(), 2);
        let targets = (0..rows).map(|row| (row * 7919 % vocab) as i64).collect();
        Self::new(cpu, (hidden, weight), hidden_size, targets, vec![1.0; rows])
    }

    pub(crate) fn forward(&mut self) {
        self.forward_keeping(LinearKept::Nothing);
    }

    pub(crate) fn forward_keeping(&mut self, kept: LinearKept) {
        if kept > LinearKept::Nothing {
            self.units.resize(self.rows * self.hidden_size, 0.0);
        }
        if kept == LinearKept::LogitGradients {
            self.words.resize(kept_logit_words(T::DTYPE, self.rows, self.vocab), 0);
        }
        let head = Head::new(Matrix::new(&self.weight, self.hidden_size).expect("rows")).expect("a head");
        let outputs = LinearOutputs {
            rows: TokenLogProbs { log_probs: &mut self.log_probs, states: &mut self.states, entropies: None },
            unit_gradients: (kept > LinearKept::Nothing).then_some(&mut self.units),
            logit_gradients: (kept == LinearKept::LogitGradients).then_some(&mut self.words),
        };
        let hidden = Matrix::new(&self.hidden, self.hidden_size).expect("rows");
        self.cpu
            .linear_token_log_probs(&hidden, &head, &self.targets, &LogitOptions::default(), outputs)
            .expect("buffers of N");
    }

    pub(crate) fn backward(&mut self) {
        self.backward_from(LinearKept::Nothing, true);
    }

    /// The gradients of the hidden states and, if it is trained, of the head, from what was kept.
    pub(crate) fn backward_from(&mut self, kept: LinearKept, is_trained: bool) {
        let head = Head::new(Matrix::new(&self.weight, self.hidden_size).expect("rows")).expect("a head");
        let hidden = Matrix::new(&self.hidden, self.hidden_size).expect("rows");
        let saved = SavedLinear {
            rows: SavedRows { states: &self.states, entropies: None },
            unit_gradients: (kept > LinearKept::Nothing).then_some(&self.units),
            logit_gradients: (kept == LinearKept::LogitGradients).then_some(&self.words),
        };
        let upstream = RowGradients::PerRow { log_probs: &self.upstream, entropies: None };
        let gradients = gradients(&mut self.grad_hidden, &mut self.grad_weight, self.hidden_size, is_trained);
        let options = LogitOptions::default();
        self.cpu
            .linear_token_log_probs_backward(&hidden, &head, &self.targets, &options, saved, &upstream, gradients)
            .expect("buffers that fit");
    }

    /// Forward and backward in one call.
    pub(crate) fn row_loss(&mut self, is_trained: bool) {
        let head = Head::new(Matrix::new(&self.weight, self.hidden_size).expect("rows")).expect("a head");
        let hidden = Matrix::new(&self.hidden, self.hidden_size).expect("rows");
        let loss = RowLoss::Weighted { weights: self.upstream.as_slice() };
        let outputs = RowLosses { log_probs: &mut self.log_probs, losses: &mut self.losses };
        let gradients = gradients(&mut self.grad_hidden, &mut self.grad_weight, self.hidden_size, is_trained);
        self.cpu
            .linear_row_loss(&hidden, &head, &self.targets, &LogitOptions::default(), &loss, outputs, gradients)
            .expect("buffers that fit");
    }
}

fn gradients<'a, T: Element>(
    hidden: &'a mut [T],
    weight: &'a mut [T],
    size: usize,
    is_trained: bool,
) -> LinearGradients<'a, T, T> {
    let hidden = MatrixMut::new(hidden, size).expect("rows");
    LinearGradients::new(Some(hidden), is_trained.then(|| MatrixMut::new(weight, size).expect("rows")))
}

/// The machine's limit: the product hidden·weightᵀ, `[N, V]`, all at once, on rayon's current threads, by the library
/// that the stage uses.
pub(crate) struct Product {
    shape: (usize, usize, usize),
    hidden: Vec<f32>,
    weight: Vec<f32>,
    out: Vec<f32>,
}

impl Product {
    pub(crate) fn new(rows: usize, hidden_size: usize, vocab: usize) -> Self {
        Self {
            shape: (rows, hidden_size, vocab),
            hidden: numbers(rows * hidden_size, 1.0, 1),
            weight: numbers(vocab * hidden_size, 1.0, 2),
            out: vec![0.0; rows * vocab],
        }
    }

    pub(crate) fn run(&mut self) {
        let (rows, depth, columns) = self.shape;
        // SAFETY: the buffers have the sizes of the shape, and `out` is not shared.
        unsafe {
            gemm(
                rows,
                columns,
                depth,
                self.out.as_mut_ptr(),
                1,
                columns as isize,
                false,
                self.hidden.as_ptr(),
                1,
                depth as isize,
                self.weight.as_ptr(),
                depth as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::Rayon(0),
            );
        }
    }
}
