//! The backends that need no device: the CPU, over logits and from hidden states, and the specification.

use exo_kernels::reference::bounds::Arithmetic;
use exo_kernels::reference::preference_loss::Step;
use exo_kernels::{
    Cpu, Element, GroupStatistics, Head, LinearGradients, LogRatio, Logits, LogitsMut, Matrix, MatrixMut,
    ObjectiveInputs, ObjectiveOutputs, Reduction, Reference, RowGradients, SavedRows, SoftmaxState, TokenLogProbs,
};

use crate::comparison::{Computed, Computes, Groups, Stages, TokenStage, exact_groups};
use crate::fixture::{Fixture, StoredLogits};

/// The outputs of a forward pass.
fn forward(rows: usize, pass: impl FnOnce(TokenLogProbs<'_>) -> exo_kernels::Result<()>) -> TokenStage {
    let (mut log_probs, mut entropies) = (vec![0.0; rows], vec![0.0; rows]);
    let mut states = vec![SoftmaxState::default(); rows];
    let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: Some(&mut entropies) };
    pass(outputs).expect("token log-probs");
    TokenStage { log_probs, states, entropies }
}

impl Stages for Cpu {
    const ARITHMETIC: Arithmetic = Arithmetic::BACKEND;

    fn forward(&self, fixture: &Fixture) -> TokenStage {
        fn of<T: Element>(cpu: Cpu, fixture: &Fixture, values: &[T]) -> TokenStage {
            let logits = Logits::new(values, fixture.vocab).expect("rows");
            let options = fixture.options.logits();
            forward(fixture.targets.len(), |outputs| cpu.token_log_probs(logits, &fixture.targets, &options, outputs))
        }
        match &fixture.logits {
            StoredLogits::F32(logits) => of(*self, fixture, logits),
            StoredLogits::F16(logits) => of(*self, fixture, logits),
            StoredLogits::Bf16(logits) => of(*self, fixture, logits),
        }
    }

    fn backward(&self, fixture: &Fixture, states: &[SoftmaxState], gradients: &[f32]) -> Vec<f64> {
        fn of<T: Element>(
            cpu: Cpu,
            fixture: &Fixture,
            values: &[T],
            saved: SavedRows<'_>,
            upstream: RowGradients<'_>,
        ) -> Vec<f64> {
            let (targets, options) = (&fixture.targets, fixture.options.logits());
            let logits = Logits::new(values, fixture.vocab).expect("rows");
            let mut gradient = vec![T::from_f32(f32::NAN); targets.len() * fixture.vocab];
            let out = LogitsMut::new(&mut gradient, fixture.vocab).expect("rows");
            cpu.token_log_probs_backward(logits, targets, &options, saved, upstream, out)
                .expect("token log-probs, backward");
            gradient.iter().map(|value| f64::from(value.to_f32())).collect()
        }
        let saved = SavedRows { states, entropies: None };
        let upstream = RowGradients { log_probs: gradients, entropies: None };
        match &fixture.logits {
            StoredLogits::F32(logits) => of(*self, fixture, logits, saved, upstream),
            StoredLogits::F16(logits) => of(*self, fixture, logits, saved, upstream),
            StoredLogits::Bf16(logits) => of(*self, fixture, logits, saved, upstream),
        }
    }

    fn log_ratios(&self, fixture: &Fixture, log_probs: &[f32]) -> Vec<f64> {
        let mut log_ratios = vec![0.0; fixture.batch.sequences()];
        let reference = Reference::PerToken(&fixture.reference);
        Cpu::log_ratios(self, log_probs, &fixture.targets, reference, &fixture.batch, LogRatio::Sum, &mut log_ratios)
            .expect("log-ratios");
        log_ratios
    }

    fn objective(&self, fixture: &Fixture, log_ratios: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let batch = &fixture.batch;
        let (mut losses, mut coefficients) = (vec![0.0; batch.groups()], vec![0.0; batch.sequences()]);
        let mut statistics = vec![GroupStatistics::default(); batch.groups()];
        let outputs = ObjectiveOutputs {
            group_losses: &mut losses,
            coefficients: &mut coefficients,
            statistics: &mut statistics,
        };
        let inputs = ObjectiveInputs { log_ratios, batch, rewards: fixture.rewards.as_slice().into() };
        Cpu::objective(self, &fixture.options.objective(), inputs, Reduction::Mean, outputs).expect("objective");
        (losses, coefficients)
    }
}

/// The CPU from hidden states: the linear stage, with twice the identity for a head.
///
/// Products are exact then: half of each logit, times two. Half of −inf is the lowest f32, which twice is −inf again, so
/// that no 0 · −inf comes into being. The gradient of half a logit is twice that of the logit.
#[derive(Debug, Clone, Copy)]
pub struct FromHidden(pub Cpu);

impl FromHidden {
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

    fn weight(vocab: usize) -> Vec<f32> {
        (0..vocab * vocab).map(|i| if i / vocab == i % vocab { 2.0 } else { 0.0 }).collect()
    }
}

impl Stages for FromHidden {
    const ARITHMETIC: Arithmetic = Arithmetic::BACKEND;

    fn forward(&self, fixture: &Fixture) -> TokenStage {
        let (vocab, options) = (fixture.vocab, fixture.options.logits());
        let (hidden, weight) = (Self::halves(fixture), Self::weight(vocab));
        let hidden = Matrix::new(&hidden, vocab).expect("rows");
        let head = Head::new(Matrix::new(&weight, vocab).expect("rows")).expect("a head");
        forward(fixture.targets.len(), |outputs| {
            self.0.linear_token_log_probs(hidden, &head, &fixture.targets, &options, outputs)
        })
    }

    fn backward(&self, fixture: &Fixture, states: &[SoftmaxState], gradients: &[f32]) -> Vec<f64> {
        let (vocab, targets, options) = (fixture.vocab, &fixture.targets, fixture.options.logits());
        let (hidden, weight) = (Self::halves(fixture), Self::weight(vocab));
        let hidden = Matrix::new(&hidden, vocab).expect("rows");
        let head = Head::new(Matrix::new(&weight, vocab).expect("rows")).expect("a head");
        let saved = SavedRows { states, entropies: None };
        let upstream = RowGradients { log_probs: gradients, entropies: None };
        let mut gradient = vec![f32::NAN; targets.len() * vocab];
        let out = MatrixMut::new(&mut gradient, vocab).expect("rows");
        let out = LinearGradients::<f32, f32>::new(Some(out), None);
        self.0
            .linear_token_log_probs_backward(hidden, &head, targets, &options, saved, upstream, out)
            .expect("token log-probs, backward");
        gradient.iter().map(|value| f64::from(*value) * 0.5).collect()
    }

    fn log_ratios(&self, fixture: &Fixture, log_probs: &[f32]) -> Vec<f64> {
        Stages::log_ratios(&self.0, fixture, log_probs)
    }

    fn objective(&self, fixture: &Fixture, log_ratios: &[f64]) -> (Vec<f64>, Vec<f64>) {
        Stages::objective(&self.0, fixture, log_ratios)
    }
}

/// `exo_kernels::reference`: plain loops in f64.
#[derive(Debug, Clone, Copy)]
pub struct Specification;

impl Specification {
    fn gradient<T: Element>(fixture: &Fixture, values: &[T], step: &Step) -> Vec<f64> {
        let logits = Logits::new(values, fixture.vocab).expect("rows");
        let options = fixture.options.with_entropy(true);
        let rows = fixture.gradient.rows.iter();
        rows.flat_map(|&row| step.grad_logits(&options, logits, &fixture.targets, row)).collect()
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
