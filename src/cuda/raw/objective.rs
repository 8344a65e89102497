//! The objective over device addresses.

use crate::cuda::Cuda;
use crate::cuda::context::CurrentContext;
use crate::cuda::kernels::{KernelId, kernel};
use crate::cuda::memory::Address;
use crate::cuda::raw::{launch, passed_by_value};
use crate::error::{Error, Result};
use crate::objective::{Divergence, Objective, Target};

/// Rewards, or log q, on the device: which of the two types, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewards {
    /// `[S]` f32.
    F32(Address),
    /// `[S]` f64.
    F64(Address),
}

impl Rewards {
    pub(in crate::cuda) fn parts(self) -> (Address, i32) {
        match self {
            Self::F32(address) => (address, 4),
            Self::F64(address) => (address, 8),
        }
    }
}

/// What the objective stage reads; 0 where allowed.
#[derive(Clone, Copy, Debug)]
pub struct ObjectiveInputs {
    /// `[S]` f64.
    pub log_ratios: Address,
    /// `[S]`: rewards, or log q.
    pub rewards: Rewards,
    /// `[S]` f64, or 0.
    pub proposal_offsets: Address,
    /// `[G + 1]` i64, strictly ascending from 0 to S.
    pub group_offsets: Address,
    /// `[S]` i32, or 0 unless `mean`.
    pub scored_rows: Address,
    /// G.
    pub groups: usize,
    /// The log-ratios are means over rows: a row gets its share of the coefficient.
    pub mean: bool,
    /// What the reduction multiplies each group's loss with.
    pub weight: f64,
}

/// What the objective stage writes.
#[derive(Clone, Copy, Debug)]
pub struct ObjectiveOutputs {
    /// `[G]` f64, before the reduction.
    pub group_losses: Address,
    /// `[S]` f64: d loss / d log-ratio.
    pub coefficients: Address,
    /// `[S]` f64: d loss / d log-prob of each row of the sequence; or 0.
    pub sequence_weights: Address,
    /// `[G]` [`GroupStatistics`](crate::GroupStatistics), or 0.
    pub statistics: Address,
}

const OBJECTIVE: KernelId = kernel!("objective", "objective");

/// Codes of the target distribution, as in `kernels/include/objective_arguments.cuh`.
const TARGET_REWARDS: i32 = 0;
const TARGET_PREFERENCE: i32 = 1;
const TARGET_OFFICIAL_PREFERENCE: i32 = 2;
const TARGET_DISTRIBUTION: i32 = 3;
/// Codes of the divergence.
const REVERSE_KL: i32 = 0;
const FORWARD_KL: i32 = 1;
const ALPHA: i32 = 2;
const JENSEN_SHANNON: i32 = 3;

/// The target's code, `beta_reward` and `label_smoothing`.
fn target_code(target: Target) -> (i32, f64, f64) {
    match target {
        Target::Rewards { beta } => (TARGET_REWARDS, beta, 0.0),
        Target::Preference { label_smoothing } => (TARGET_PREFERENCE, 1.0, label_smoothing),
        Target::OfficialPreference => (TARGET_OFFICIAL_PREFERENCE, 1.0, 0.0),
        Target::Distribution => (TARGET_DISTRIBUTION, 1.0, 0.0),
    }
}

/// The divergence's code, and `alpha`.
fn divergence_code(divergence: Divergence) -> (i32, f64) {
    match divergence {
        Divergence::ReverseKl => (REVERSE_KL, 0.0),
        Divergence::ForwardKl => (FORWARD_KL, 0.0),
        Divergence::Alpha(alpha) => (ALPHA, alpha),
        Divergence::JensenShannon => (JENSEN_SHANNON, 0.0),
    }
}

/// Log-ratios and rewards to group losses, coefficients and statistics.
///
/// # Errors
/// [`Error::OffsetRange`] for more than 2^31 − 1 groups; [`Error::Parameter`] for a weight that is negative or not
/// finite; [`Error::Cuda`]. A reward that is not what the objective takes
/// (finite) makes its group NaN, and the first one is in [`Cuda::status`].
///
/// # Safety
/// As 2. to 4. of [`token_log_probs`](super::token_log_probs); the offsets are those of non-empty groups from 0 to S, of pairs for
/// [`Target::OfficialPreference`].
pub unsafe fn objective(
    cuda: &Cuda,
    objective: &Objective,
    inputs: ObjectiveInputs,
    outputs: ObjectiveOutputs,
) -> Result<()> {
    let _current = CurrentContext::enter(cuda.stream.context())?;
    if inputs.groups == 0 {
        return Ok(());
    }
    if !(inputs.weight >= 0.0 && inputs.weight.is_finite()) {
        return Err(Error::Parameter {
            name: "weight",
            given: inputs.weight,
            expected: "a finite number, not below 0",
        });
    }
    let Ok(groups) = i32::try_from(inputs.groups) else {
        return Err(Error::OffsetRange { what: "group offsets", index: inputs.groups });
    };
    let (target, beta_reward, label_smoothing) = target_code(objective.target());
    let (divergence, alpha) = divergence_code(objective.divergence());
    let (rewards, reward_bytes) = inputs.rewards.parts();
    let arguments = ObjectiveArguments {
        log_ratios: inputs.log_ratios,
        rewards,
        proposal_offsets: inputs.proposal_offsets,
        group_offsets: inputs.group_offsets,
        scored_rows: inputs.scored_rows,
        group_losses: outputs.group_losses,
        coefficients: outputs.coefficients,
        sequence_weights: outputs.sequence_weights,
        statistics: outputs.statistics,
        status: cuda.status.address(&cuda.stream)?,
        beta_policy: objective.beta_policy(),
        beta_reward,
        label_smoothing,
        alpha,
        weight: inputs.weight,
        target,
        divergence,
        reward_bytes,
        groups,
        mean: i32::from(inputs.mean),
        padding: 0,
    };
    // A warp per group.
    let groups_per_block = cuda.kernels.kernel(OBJECTIVE)?.threads as usize / 32;
    let blocks = inputs.groups.div_ceil(groups_per_block) as u32;
    // SAFETY: the caller's promise.
    unsafe { launch(cuda, OBJECTIVE, (blocks, 1), &arguments) }
}

/// `kernels/objective.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct ObjectiveArguments {
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

passed_by_value!(ObjectiveArguments);
