//! What bad input gets: each row of the table of docs/bad_input.md, on the whole loss and on the stages.

mod accepted;
mod refused;

use exo_kernels::{Batch, Betas, Error, LogitOptions, LossOptions, Objective, Reference, Report, Rewards};
use support::backend::{HostLoss, Rows, TestBackend};

const VOCAB: usize = 5;

/// Two prompts, two completions each, two rows per completion.
struct Step {
    rows: Rows<f32>,
    batch: Batch,
    reference: Vec<f32>,
    rewards: Vec<f32>,
}

impl Step {
    fn new() -> Self {
        let logits = (0..8 * VOCAB).map(|i| ((i * 37) % 11) as f32 * 0.3 - 1.0).collect();
        Step {
            rows: Rows::new(logits, vec![0, 1, 2, 3, 4, 0, 1, 2], VOCAB),
            batch: Batch::new(&[0, 2, 4, 6, 8], &[0, 2, 4]).expect("valid"),
            reference: vec![-1.5; 8],
            rewards: vec![1.0, 0.0, 0.2, 0.9],
        }
    }

    fn forward(&self, loss: &mut HostLoss<impl TestBackend>) -> Result<exo_kernels::Step, Error> {
        let reference = Reference::PerToken(&self.reference);
        loss.forward(&self.rows, &self.batch, reference, Rewards::from(&self.rewards))
    }

    fn run(&self, loss: &mut HostLoss<impl TestBackend>) -> Result<Vec<f32>, Error> {
        let forward = self.forward(loss)?;
        loss.backward(&forward, &self.rows)
    }

    /// What is wrong with it: said at once, or by the report where only the device can see it.
    fn refused(&self, loss: &mut HostLoss<impl TestBackend>) -> Error {
        match self.run(loss) {
            Err(error) => error,
            Ok(_) => loss.report().expect_err("not refused"),
        }
    }
}

fn exo() -> Objective {
    Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid")
}

fn dpo() -> Objective {
    Objective::dpo_rw(Betas { policy: 0.5, reward: 0.5 }).expect("valid")
}

fn with_softcap(softcap: f64) -> LossOptions {
    LossOptions::from(exo()).with_logits(LogitOptions::default().with_softcap(softcap).expect("valid"))
}

fn run(backend: &impl TestBackend, step: &Step, objective: Objective) -> (Vec<f32>, Report) {
    let mut loss = backend.loss(objective);
    let grad = step.run(&mut loss).expect("not refused");
    (grad, loss.unchecked_report().expect("a report"))
}

fn rows_of(grad: &[f32], rows: std::ops::Range<usize>) -> &[f32] {
    &grad[rows.start * VOCAB..rows.end * VOCAB]
}
