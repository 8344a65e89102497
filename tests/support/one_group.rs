//! One group through the objective stage of the CPU.

use exo_kernels::{Batch, Cpu, GroupStatistics, Objective, ObjectiveInputs, ObjectiveOutputs, Reduction, Rewards};

/// Loss and d loss / d log-ratio of one group of K sequences, not reduced; `offsets` are the proposal's.
pub(crate) fn on_the_cpu(
    objective: &Objective,
    log_ratios: &[f64],
    rewards: &[f64],
    offsets: Option<&[f64]>,
) -> (f64, Vec<f64>) {
    let k = log_ratios.len();
    let batch = Batch::padded(k, 1, k).expect("a group of at least one");
    let (mut loss, mut coefficients) = ([0.0], vec![0.0; k]);
    let rewards = Rewards::from(rewards);
    let rewards = offsets.map_or(rewards, |offsets| rewards.with_proposal(offsets));
    Cpu::default()
        .objective(
            objective,
            ObjectiveInputs { log_ratios, batch: &batch, rewards },
            Reduction::Sum,
            ObjectiveOutputs {
                group_losses: &mut loss,
                coefficients: &mut coefficients,
                statistics: &mut [GroupStatistics::default()],
            },
        )
        .expect("inputs that the objective takes");
    (loss[0], coefficients)
}
