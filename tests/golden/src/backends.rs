//! Who computes fixtures: any backend, over logits or from hidden states, and the specification.

use exo_kernels::backend::{
    Head, LinearGradients, LogRatioOutputs, Matrix, MatrixMut, Number, ObjectiveOutputs, Reference, RowGradients,
    RowLogProbs, SavedRows, Targets, TokenLogProbs,
};
use exo_kernels::reference::bounds::Arithmetic;
use exo_kernels::reference::preference_loss::Step;
use exo_kernels::{Backend, Element, GroupStatistics, LogRatio, Reduction, SoftmaxState};

use crate::comparison::{Computed, Computes, Groups, exact_groups};
use crate::fixture::{Fixture, StoredLogits};

/// The stages of a backend, one after the other. Inputs and options are the fixture's.
#[derive(Debug, Clone)]
pub struct Stages<B> {
    backend: B,
    arithmetic: Arithmetic,
    from_hidden: bool,
}

/// What the token log-prob stage gave for each row.
pub struct TokenStage {
    /// 0 on masked rows.
    pub log_probs: Vec<f32>,
    /// For the backward pass.
    pub states: Vec<SoftmaxState>,
    /// In nats; 0 on masked rows.
    pub entropies: Vec<f32>,
}

impl<B: Backend> Stages<B> {
    /// Over logits; bounds are derived from this arithmetic.
    pub fn new(backend: B, arithmetic: Arithmetic) -> Self {
        Self { backend, arithmetic, from_hidden: false }
    }

    /// From hidden states: the linear stage, with twice the identity for a head.
    ///
    /// Products are exact then: half of each logit, times two. Half of −inf is the lowest f32, which twice is −inf again, so
    /// that no 0 · −inf comes into being. The gradient of half a logit is twice that of the logit.
    #[must_use]
    pub fn from_hidden(self) -> Self {
        Self { from_hidden: true, ..self }
    }

    fn upload<T: Number>(&self, numbers: &[T]) -> B::Buffer<T> {
        let mut buffer = B::Buffer::default();
        self.backend.upload(numbers, &mut buffer).expect("upload");
        buffer
    }

    fn download<T: Number>(&self, buffer: &B::Buffer<T>, length: usize) -> Vec<T> {
        self.backend.read(&self.backend.view(buffer, length)).expect("download").into_owned()
    }

    /// The token log-prob stage.
    ///
    /// # Panics
    /// If the entropies, asked for or not, change another bit, or the stage refuses the fixture.
    pub fn forward(&self, fixture: &Fixture) -> TokenStage {
        let [with, without] = [true, false].map(|entropy| match (&fixture.logits, self.from_hidden) {
            (_, true) => self.forward_of(fixture, &halves(fixture), entropy),
            (StoredLogits::F32(logits), false) => self.forward_of(fixture, logits, entropy),
            (StoredLogits::F16(logits), false) => self.forward_of(fixture, logits, entropy),
            (StoredLogits::Bf16(logits), false) => self.forward_of(fixture, logits, entropy),
        });
        let bits = |stage: &TokenStage| -> Vec<u32> {
            let states = stage.states.iter().flat_map(|state| [state.r.to_bits(), state.s.to_bits()]);
            stage.log_probs.iter().map(|value| value.to_bits()).chain(states).collect()
        };
        assert!(bits(&with) == bits(&without), "the entropy changes no other bit");
        with
    }

    /// Of logits, or of hidden states of twice the identity.
    fn forward_of<T: Element>(&self, fixture: &Fixture, values: &[T], entropy: bool) -> TokenStage {
        let (backend, rows, vocab) = (&self.backend, fixture.targets.len(), fixture.vocab);
        let options = fixture.options.logits();
        let (values, ids) = (self.upload(values), self.upload(&fixture.targets));
        let view = Matrix::new(backend.view(&values, rows * vocab), vocab).expect("rows");
        let targets = Targets::I64(backend.view(&ids, rows));
        let (mut log_probs, mut entropies) = (self.upload(&vec![f32::MAX; rows]), self.upload(&vec![f32::MAX; rows]));
        let mut states = self.upload(&vec![SoftmaxState::default(); rows]);
        let outputs = TokenLogProbs {
            log_probs: backend.view_mut(&mut log_probs, rows),
            states: backend.view_mut(&mut states, rows),
            entropies: entropy.then(|| backend.view_mut(&mut entropies, rows)),
        };
        if self.from_hidden {
            let weight = self.upload(&twice_the_identity::<T>(vocab));
            let weight = Matrix::new(backend.view(&weight, vocab * vocab), vocab).expect("rows");
            let head = Head::new(weight).expect("a head");
            backend.linear_token_log_probs(&view, &head, targets, &options, outputs)
        } else {
            backend.token_log_probs(&view, targets, &options, outputs)
        }
        .expect("token log-probs");
        TokenStage {
            log_probs: self.download(&log_probs, rows),
            states: self.download(&states, rows),
            entropies: self.download(&entropies, rows),
        }
    }

    /// d loss / d logits, `[N, V]`, of these gradients of the log-probs.
    fn backward(&self, fixture: &Fixture, states: &[SoftmaxState], gradients: &[f32]) -> Vec<f64> {
        match (&fixture.logits, self.from_hidden) {
            (_, true) => {
                self.backward_of(fixture, &halves(fixture), states, gradients).iter().map(|g| g * 0.5).collect()
            }
            (StoredLogits::F32(logits), false) => self.backward_of(fixture, logits, states, gradients),
            (StoredLogits::F16(logits), false) => self.backward_of(fixture, logits, states, gradients),
            (StoredLogits::Bf16(logits), false) => self.backward_of(fixture, logits, states, gradients),
        }
    }

    fn backward_of<T: Element>(
        &self,
        fixture: &Fixture,
        values: &[T],
        states: &[SoftmaxState],
        gradients: &[f32],
    ) -> Vec<f64> {
        let (backend, rows, vocab) = (&self.backend, fixture.targets.len(), fixture.vocab);
        let options = fixture.options.logits();
        let (values, ids) = (self.upload(values), self.upload(&fixture.targets));
        let (states, gradients) = (self.upload(states), self.upload(gradients));
        let view = Matrix::new(backend.view(&values, rows * vocab), vocab).expect("rows");
        let targets = Targets::I64(backend.view(&ids, rows));
        let saved = SavedRows { states: backend.view(&states, rows), entropies: None };
        let upstream = RowGradients::PerRow { log_probs: backend.view(&gradients, rows), entropies: None };
        let mut written = self.upload(&vec![T::NAN; rows * vocab]);
        let out = MatrixMut::new(backend.view_mut(&mut written, rows * vocab), vocab).expect("rows");
        if self.from_hidden {
            let weight = self.upload(&twice_the_identity::<T>(vocab));
            let weight = Matrix::new(backend.view(&weight, vocab * vocab), vocab).expect("rows");
            let head = Head::new(weight).expect("a head");
            let out = LinearGradients::<T, T, _>::new(Some(out), None);
            backend.linear_token_log_probs_backward(&view, &head, targets, &options, &saved, &upstream, out)
        } else {
            backend.token_log_probs_backward(&view, targets, &options, &saved, &upstream, out)
        }
        .expect("token log-probs, backward");
        self.download(&written, rows * vocab).iter().map(|value| f64::from(value.to_f32())).collect()
    }

    /// The log-ratio of each sequence.
    fn log_ratios(&self, fixture: &Fixture, log_probs: &[f32]) -> Vec<f64> {
        let (backend, rows, sequences) = (&self.backend, fixture.targets.len(), fixture.batch.sequences());
        let (log_probs, ids) = (self.upload(log_probs), self.upload(&fixture.targets));
        let reference = self.upload(&fixture.reference);
        let (mut ratios, mut sums) = (self.upload(&vec![f64::MAX; sequences]), self.upload(&vec![0.0; sequences]));
        let (mut scored_rows, mut row_sequences) = (self.upload(&vec![-1; sequences]), self.upload(&vec![-1; rows]));
        let mut row_targets = self.upload(&vec![0_u32; rows]);
        let inputs = RowLogProbs {
            log_probs: backend.view(&log_probs, rows),
            entropies: None,
            targets: Targets::I64(backend.view(&ids, rows)),
        };
        let outputs = LogRatioOutputs {
            log_ratios: backend.view_mut(&mut ratios, sequences),
            log_prob_sums: backend.view_mut(&mut sums, sequences),
            entropy_sums: None,
            scored_rows: backend.view_mut(&mut scored_rows, sequences),
            row_sequences: backend.view_mut(&mut row_sequences, rows),
            row_targets: backend.view_mut(&mut row_targets, rows),
        };
        let placed = backend.upload_batch(&fixture.batch).expect("offsets");
        let reference = Reference::PerToken(backend.view(&reference, rows));
        backend.log_ratios(&inputs, &reference, &placed, LogRatio::Sum, outputs).expect("log-ratios");
        self.download(&ratios, sequences)
    }

    /// The objective stage: group losses, and d loss / d log-ratio of each sequence under a mean over groups.
    fn groups(&self, fixture: &Fixture, log_ratios: &[f64]) -> Groups {
        let (backend, batch) = (&self.backend, &fixture.batch);
        let (groups, sequences) = (batch.groups(), batch.sequences());
        let log_ratios = self.upload(log_ratios);
        let (mut losses, mut coefficients) = (self.upload(&vec![f64::MAX; groups]), self.upload(&vec![0.0; sequences]));
        let mut statistics = self.upload(&vec![GroupStatistics::default(); groups]);
        let outputs = ObjectiveOutputs {
            group_losses: backend.view_mut(&mut losses, groups),
            coefficients: backend.view_mut(&mut coefficients, sequences),
            statistics: backend.view_mut(&mut statistics, groups),
            row_weights: None,
        };
        let placed = backend.upload_batch(batch).expect("offsets");
        let rewards = exo_kernels::Rewards::from(fixture.rewards.as_slice()).into();
        let mut buffers = B::RewardBuffers::default();
        let rewards = backend.bring_rewards(&rewards, &mut buffers).expect("rewards");
        let (objective, view) = (fixture.options.objective(), backend.view(&log_ratios, sequences));
        backend.objective(&objective, &view, &placed, &rewards, Reduction::Mean, outputs).expect("objective");
        let losses = self.download(&losses, groups);
        let loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        Groups { losses, loss, coefficients: self.download(&coefficients, sequences) }
    }

    /// Every output.
    ///
    /// # Panics
    /// If a stage refuses the fixture.
    pub fn computed(&self, fixture: &Fixture) -> Computed {
        let TokenStage { log_probs, states, entropies } = self.forward(fixture);
        let log_ratios = self.log_ratios(fixture, &log_probs);
        let groups = self.groups(fixture, &log_ratios);

        let rows = fixture.targets.len();
        let mut row_gradients = vec![0.0; rows];
        for (sequence, range) in fixture.batch.sequence_offsets().windows(2).enumerate() {
            row_gradients[range[0]..range[1]].fill(groups.coefficients[sequence] as f32);
        }
        let gradient = self.backward(fixture, &states, &row_gradients);

        let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect();
        let of_row = |row: &usize| gradient[row * fixture.vocab..(row + 1) * fixture.vocab].iter().copied();
        Computed {
            log_probs: wide(&log_probs),
            log_sum_exps: (0..rows)
                .map(|row| if fixture.targets[row] < 0 { 0.0 } else { states[row].log_sum_exp() })
                .collect(),
            entropies: wide(&entropies),
            log_ratios,
            groups,
            gradient: fixture.gradient.rows.iter().flat_map(of_row).collect(),
        }
    }
}

fn halves(fixture: &Fixture) -> Vec<f32> {
    fn of<T: Element>(values: &[T]) -> Vec<f32> {
        let half = |x: f32| if x == f32::NEG_INFINITY { f32::MIN } else { x * 0.5 };
        values.iter().map(|x| half(x.to_f32())).collect()
    }
    match &fixture.logits {
        StoredLogits::F32(logits) => of(logits),
        StoredLogits::F16(logits) => of(logits),
        StoredLogits::Bf16(logits) => of(logits),
    }
}

fn twice_the_identity<T: Element>(vocab: usize) -> Vec<T> {
    (0..vocab * vocab).map(|i| T::from_f32(if i / vocab == i % vocab { 2.0 } else { 0.0 })).collect()
}

impl<B: Backend> Computes for Stages<B> {
    fn arithmetic(&self, _: usize) -> Arithmetic {
        self.arithmetic
    }

    fn rounds_gradients(&self) -> bool {
        true
    }

    fn computed(&self, fixture: &Fixture, _: &Step) -> Computed {
        Stages::computed(self, fixture)
    }

    fn objective(&self, fixture: &Fixture, log_ratios: &[f64]) -> Groups {
        self.groups(fixture, log_ratios)
    }
}

/// `exo_kernels::reference`: plain loops in f64.
#[derive(Debug, Clone, Copy)]
pub struct Specification;

impl Specification {
    fn gradient<T: Element>(fixture: &Fixture, values: &[T], step: &Step) -> Vec<f64> {
        let logits = Matrix::new(values, fixture.vocab).expect("rows");
        let options = fixture.options.with_entropy(true);
        let rows = fixture.gradient.rows.iter();
        rows.flat_map(|&row| step.grad_logits(&options, &logits, &fixture.targets, row)).collect()
    }
}

impl Computes for Specification {
    fn arithmetic(&self, vocab: usize) -> Arithmetic {
        Arithmetic::reference(vocab)
    }

    fn rounds_gradients(&self) -> bool {
        false
    }

    fn computed(&self, fixture: &Fixture, step: &Step) -> Computed {
        Computed {
            log_probs: step.rows.iter().map(|row| row.log_prob).collect(),
            log_sum_exps: step.rows.iter().map(|row| row.log_sum_exp).collect(),
            entropies: step.rows.iter().map(|row| row.entropy).collect(),
            log_ratios: step.log_ratios.clone(),
            groups: Groups {
                losses: step.groups.iter().map(|group| group.loss).collect(),
                loss: step.loss,
                coefficients: step.coefficients.clone(),
            },
            gradient: match &fixture.logits {
                StoredLogits::F32(logits) => Self::gradient(fixture, logits, step),
                StoredLogits::F16(logits) => Self::gradient(fixture, logits, step),
                StoredLogits::Bf16(logits) => Self::gradient(fixture, logits, step),
            },
        }
    }

    fn objective(&self, fixture: &Fixture, log_ratios: &[f64]) -> Groups {
        let weight = 1.0 / fixture.batch.groups().max(1) as f64;
        let groups = exact_groups(fixture, log_ratios);
        let losses: Vec<f64> = groups.iter().map(|group| group.loss).collect();
        let beta = fixture.options.objective().beta_policy();
        Groups {
            loss: losses.iter().sum::<f64>() * weight,
            losses,
            coefficients: groups.iter().flat_map(|group| &group.gradient).map(|g| g * beta * weight).collect(),
        }
    }
}
