//! The token log-prob stage with buffers made once: what is timed, here and in `examples/time_token_log_prob.rs`.

use exo_kernels::{
    Backend, Cpu, Element, LogitOptions, Matrix, MatrixMut, RowGradients, SavedRows, SoftmaxState, TokenLogProbs,
};

/// Buffers of N rows of V columns, N numbers where not said otherwise.
pub(crate) struct Stage<T> {
    cpu: Cpu,
    vocab: usize,
    /// Temperature 1 and no softcap at first.
    pub(crate) options: LogitOptions,
    /// `[N, V]`
    pub(crate) logits: Vec<T>,
    /// `[N, V]`
    pub(crate) grad: Vec<T>,
    targets: Vec<i64>,
    pub(crate) log_probs: Vec<f32>,
    states: Vec<SoftmaxState>,
    entropies: Vec<f32>,
    /// The gradient that comes in, of log-probs and of entropies.
    upstream: Vec<f32>,
}

impl<T: Element> Stage<T> {
    pub(crate) fn new(cpu: Cpu, logits: Vec<T>, vocab: usize, targets: Vec<i64>, upstream: Vec<f32>) -> Self {
        let rows = targets.len();
        Stage {
            cpu,
            vocab,
            options: LogitOptions::default(),
            grad: vec![T::from_f32(0.0); logits.len()],
            logits,
            targets,
            log_probs: vec![0.0; rows],
            states: vec![SoftmaxState::default(); rows],
            entropies: vec![0.0; rows],
            upstream,
        }
    }

    pub(crate) fn forward(&mut self, entropy: bool) {
        let logits = Matrix::new(&self.logits, self.vocab).expect("whole rows");
        let outputs = TokenLogProbs {
            log_probs: &mut self.log_probs,
            states: &mut self.states,
            entropies: entropy.then_some(&mut self.entropies),
        };
        self.cpu.token_log_probs(&logits, &self.targets, &self.options, outputs).expect("buffers of N");
    }

    pub(crate) fn backward(&mut self, entropy: bool) {
        let logits = Matrix::new(&self.logits, self.vocab).expect("whole rows");
        let grad = MatrixMut::new(&mut self.grad, self.vocab).expect("whole rows");
        let saved = SavedRows { states: &self.states, entropies: entropy.then_some(&self.entropies) };
        let upstream = RowGradients::PerRow { log_probs: &self.upstream, entropies: entropy.then_some(&self.upstream) };
        self.cpu
            .token_log_probs_backward(&logits, &self.targets, &self.options, &saved, &upstream, grad)
            .expect("buffers of N");
    }

    /// Afterwards the logits are their gradient. The time of a pass does not depend on the values.
    pub(crate) fn backward_in_place(&mut self) {
        let logits = MatrixMut::new(&mut self.logits, self.vocab).expect("whole rows");
        let saved = SavedRows { states: &self.states, entropies: None };
        let upstream = RowGradients::PerRow { log_probs: &self.upstream, entropies: None };
        self.cpu
            .token_log_probs_backward_in_place(logits, &self.targets, &self.options, &saved, &upstream)
            .expect("buffers of N");
    }
}
