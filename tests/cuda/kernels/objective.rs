//! Groups through `kernels/objective.cu` on softcuda.

use exo_kernels::{Divergence, Objective, Target};
use softcuda::report::LaunchReport;

use super::device::Kernel;
use exo_kernels::GroupStatistics;
use exo_kernels::cuda::Status;

/// `ObjectiveArguments` of `kernels/objective.cu`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Arguments {
    log_ratios: u64,
    rewards: u64,
    proposal_offsets: u64,
    group_offsets: u64,
    scored_rows: u64,
    group_losses: u64,
    coefficients: u64,
    sequence_weights: u64,
    statistics: u64,
    status: u64,
    beta_policy: f64,
    beta_reward: f64,
    label_smoothing: f64,
    alpha: f64,
    weight: f64,
    target: i32,
    divergence: i32,
    reward_bytes: i32,
    groups: i32,
    mean: i32,
    padding: i32,
}

/// What the kernel is given, for all groups.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    pub(crate) log_ratios: Vec<f64>,
    pub(crate) rewards: Vec<f64>,
    pub(crate) offsets: Option<Vec<f64>>,
    pub(crate) groups: Vec<i64>,
    pub(crate) scored_rows: Option<Vec<i32>>,
    pub(crate) weight: f64,
    pub(crate) rewards_in_f32: bool,
    pub(crate) shuffle: Option<u64>,
}

impl Inputs {
    pub(crate) fn new() -> Self {
        Inputs {
            log_ratios: vec![],
            rewards: vec![],
            offsets: None,
            groups: vec![0],
            scored_rows: None,
            weight: 1.0,
            rewards_in_f32: false,
            shuffle: None,
        }
    }

    /// One more group.
    pub(crate) fn push(&mut self, log_ratios: &[f64], rewards: &[f64], offsets: Option<&[f64]>) {
        if let Some(offsets) = offsets {
            let before = self.log_ratios.len();
            self.offsets.get_or_insert_with(|| vec![0.0; before]).extend(offsets);
        } else if let Some(all) = &mut self.offsets {
            all.extend(log_ratios.iter().map(|_| 0.0));
        }
        self.log_ratios.extend(log_ratios);
        self.rewards.extend(rewards);
        self.groups.push(self.log_ratios.len() as i64);
    }
}

/// What it wrote.
#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) losses: Vec<f64>,
    pub(crate) coefficients: Vec<f64>,
    pub(crate) weights: Vec<f64>,
    pub(crate) statistics: Vec<GroupStatistics>,
    pub(crate) status: Status,
    pub(crate) report: LaunchReport,
}

impl Outputs {
    pub(crate) fn bits(&self) -> Vec<u64> {
        let numbers = self.losses.iter().chain(&self.coefficients).chain(&self.weights);
        let of_groups = self.statistics.iter().flat_map(|s| {
            [s.effective_sample_size.to_bits(), s.margin.to_bits(), s.agreement.to_bits(), u64::from(s.tied())]
        });
        numbers.map(|number| number.to_bits()).chain(of_groups).collect()
    }
}

pub(crate) fn run(objective: &Objective, inputs: &Inputs) -> Outputs {
    let kernel = Kernel::new("objective", inputs.shuffle);
    let (sequences, groups) = (inputs.log_ratios.len(), inputs.groups.len() - 1);
    let (mut beta_reward, mut label_smoothing, mut alpha) = (0.0, 0.0, 0.0);
    let target = match objective.target() {
        Target::Rewards { beta } => {
            beta_reward = beta;
            0
        }
        Target::Preference { label_smoothing: epsilon } => {
            label_smoothing = epsilon;
            1
        }
        Target::OfficialPreference => 2,
        Target::Distribution => 3,
        _ => panic!("a target without a code"),
    };
    let divergence = match objective.divergence() {
        Divergence::ReverseKl => 0,
        Divergence::ForwardKl => 1,
        Divergence::Alpha(value) => {
            alpha = value;
            2
        }
        Divergence::JensenShannon => 3,
        _ => panic!("a divergence without a code"),
    };
    let rewards_f32: Vec<f32> = inputs.rewards.iter().map(|&reward| reward as f32).collect();
    let status = kernel.input(Some(&[Status::CLEAR]));
    let arguments = Arguments {
        log_ratios: kernel.input(Some(&inputs.log_ratios)),
        rewards: if inputs.rewards_in_f32 {
            kernel.input(Some(&rewards_f32))
        } else {
            kernel.input(Some(&inputs.rewards))
        },
        proposal_offsets: kernel.input(inputs.offsets.as_deref()),
        group_offsets: kernel.input(Some(&inputs.groups)),
        scored_rows: kernel.input(inputs.scored_rows.as_deref()),
        group_losses: kernel.output::<f64>(groups),
        coefficients: kernel.output::<f64>(sequences),
        sequence_weights: kernel.output::<f64>(sequences),
        statistics: kernel.output::<GroupStatistics>(groups),
        status,
        beta_policy: objective.beta_policy(),
        beta_reward,
        label_smoothing,
        alpha,
        weight: inputs.weight,
        target,
        divergence,
        reward_bytes: if inputs.rewards_in_f32 { 4 } else { 8 },
        groups: groups as i32,
        mean: i32::from(inputs.scored_rows.is_some()),
        padding: 0,
    };
    let report = kernel.launch(groups.div_ceil(4), 128, &arguments);
    Outputs {
        losses: kernel.read(arguments.group_losses, groups),
        coefficients: kernel.read(arguments.coefficients, sequences),
        weights: kernel.read(arguments.sequence_weights, sequences),
        statistics: kernel.read(arguments.statistics, groups),
        status: kernel.read(status, 1)[0],
        report,
    }
}
