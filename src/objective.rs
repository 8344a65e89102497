//! What is minimised: a target distribution × a divergence × two temperatures, as data.
//!
//! With S the log-ratios of the K completions of a prompt, an objective pulls p = softmax(β_π·S) to a target q. Which q
//! and how is all that EXO, DPO and their relatives differ in:
//!
//! | constructor | q | loss per group | minimum |
//! |---|---|---|---|
//! | [`exo`](Objective::exo) | softmax(r/β_r) | Σ p (log p − log q) | 0 |
//! | [`exo_pref`](Objective::exo_pref) | 1−ε on the winner | Σ p (log p − log q) | 0 |
//! | [`exo_pref_official`](Objective::exo_pref_official) | log targets (0, −10), not normalised | Σ p (log p − log q) | −log(1 + e⁻¹⁰) |
//! | [`dpo_rw`](Objective::dpo_rw) | softmax(r/β_r) | −Σ q log p | entropy of q |
//! | [`dpo_pref`](Objective::dpo_pref) | 1−ε on the winner | −Σ q log p | entropy of q |
//! | [`alpha`](Objective::alpha) | softmax(r/β_r) | (1 − Σ p^(1−α) q^α) / (α(1−α)) | 0 |
//! | [`jensen_shannon`](Objective::jensen_shannon) | softmax(r/β_r) | ½ Σ p log(p/m) + ½ Σ q log(q/m), m = (p+q)/2 | 0 |
//! | [`distribution`](Objective::distribution) | given by the caller | any of these | |

use crate::error::{Error, Result};

/// The two temperatures of EXO. The effective KL coefficient of the optimum is their product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Betas {
    /// β_π: multiplies the log-ratio; the implicit reward is f = β_π·S.
    pub policy: f64,
    /// β_r: divides the reward; q = softmax(r/β_r).
    pub reward: f64,
}

/// What the policy distribution is pulled to, within each group.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// q = softmax(r/β) over the group.
    Rewards {
        /// β_r.
        beta: f64,
    },
    /// The highest reward wins and gets 1 − ε; each of the K − 1 others gets ε/(K − 1). Tied winners share: each gets
    /// the mean of what it would get if one of the tied were drawn as the winner. A group of one has q = 1.
    Preference {
        /// ε.
        label_smoothing: f64,
    },
    /// The official code's preference target: log targets 0 for the winner and −10 for the loser, not normalised, pairs
    /// only. The gradient is that of ε = e⁻¹⁰/(1 + e⁻¹⁰); the reverse KL is lower by log(1 + e⁻¹⁰) = 4.54e-5,
    /// with or without a proposal.
    OfficialPreference,
    /// The caller's: what is given as rewards is log q, normalised here within each group. −inf is allowed where the
    /// divergence is finite at q = 0.
    Distribution,
}

/// How the policy distribution is pulled to the target.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Divergence {
    /// KL(p‖q) = Σ p (log p − log q): mode-seeking, the direction of RLHF. EXO.
    ReverseKl,
    /// −Σ q log p = KL(q‖p) + entropy of q: mean-seeking. DPO.
    ForwardKl,
    /// (1 − Σ p^(1−α) q^α) / (α(1−α)), α from 0 (KL(p‖q)) over ½ (4 × squared Hellinger) to 1 (KL(q‖p)).
    Alpha(f64),
    /// ½ KL(p‖m) + ½ KL(q‖m) with m = (p + q)/2; at most log 2.
    JensenShannon,
}

/// What to minimise. Validated when made; see the [module](self) for the table of constructors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    target: Target,
    divergence: Divergence,
    beta_policy: f64,
}

impl Objective {
    /// Any combination of target and divergence.
    ///
    /// # Errors
    /// [`Error::Parameter`] if a β is not within 1e-200 to 1e200, α is outside `[0, 1]`, or ε is outside `[0, 1/2)`;
    /// for the reverse KL, which is infinite where q = 0, ε must not be 0 either.
    pub fn new(target: Target, divergence: Divergence, beta_policy: f64) -> Result<Self> {
        check_beta("beta_pi", beta_policy)?;
        if let Divergence::Alpha(alpha) = divergence
            && !(0.0..=1.0).contains(&alpha)
        {
            return Err(Error::Parameter { name: "alpha", given: alpha, expected: "a number from 0 to 1" });
        }
        let objective = Objective { target, divergence, beta_policy };
        match target {
            Target::Rewards { beta } => check_beta("beta_r", beta)?,
            Target::Preference { label_smoothing: epsilon } => {
                let (ok, expected) = if objective.is_infinite_at_zero_target() {
                    (epsilon > 0.0 && epsilon < 0.5, "a number above 0 and below 0.5")
                } else {
                    ((0.0..0.5).contains(&epsilon), "a number from 0 to below 0.5")
                };
                if !ok {
                    return Err(Error::Parameter { name: "label_smoothing", given: epsilon, expected });
                }
            }
            Target::OfficialPreference | Target::Distribution => {}
        }
        Ok(objective)
    }

    /// EXO with rewards: KL(p‖q), q = softmax(r/β_r) (the paper's Eq. 13).
    ///
    /// # Errors
    /// [`Error::Parameter`] if a β is not within 1e-200 to 1e200.
    pub fn exo(betas: Betas) -> Result<Self> {
        Objective::new(Target::Rewards { beta: betas.reward }, Divergence::ReverseKl, betas.policy)
    }

    /// EXO with preferences: KL(p‖q), 1 − ε on the winner (the paper's Eq. 16; its author recommends ε = 1e-3).
    ///
    /// # Errors
    /// [`Error::Parameter`] if β_π is not within 1e-200 to 1e200, or ε is not in (0, 1/2).
    pub fn exo_pref(beta_policy: f64, label_smoothing: f64) -> Result<Self> {
        Objective::new(Target::Preference { label_smoothing }, Divergence::ReverseKl, beta_policy)
    }

    /// EXO with preferences as the official code has it: log targets (0, −10), pairs only.
    ///
    /// # Errors
    /// [`Error::Parameter`] if β_π is not within 1e-200 to 1e200.
    pub fn exo_pref_official(beta_policy: f64) -> Result<Self> {
        Objective::new(Target::OfficialPreference, Divergence::ReverseKl, beta_policy)
    }

    /// DPO generalised to rewards and K completions: −Σ q log p, q = softmax(r/β_r).
    ///
    /// # Errors
    /// [`Error::Parameter`] if a β is not within 1e-200 to 1e200.
    pub fn dpo_rw(betas: Betas) -> Result<Self> {
        Objective::new(Target::Rewards { beta: betas.reward }, Divergence::ForwardKl, betas.policy)
    }

    /// DPO: −Σ q log p, 1 − ε on the winner; ε = 0 is plain DPO, −log σ(f_w − f_l).
    ///
    /// # Errors
    /// [`Error::Parameter`] if β_π is not within 1e-200 to 1e200, or ε is not in [0, 1/2).
    pub fn dpo_pref(beta_policy: f64, label_smoothing: f64) -> Result<Self> {
        Objective::new(Target::Preference { label_smoothing }, Divergence::ForwardKl, beta_policy)
    }

    /// The α family with rewards: α = 0 is EXO, ½ Hellinger, 1 DPO's gradient (f-PO, arXiv 2410.21662).
    ///
    /// # Errors
    /// [`Error::Parameter`] if a β is not within 1e-200 to 1e200, or α is not in [0, 1].
    pub fn alpha(alpha: f64, betas: Betas) -> Result<Self> {
        Objective::new(Target::Rewards { beta: betas.reward }, Divergence::Alpha(alpha), betas.policy)
    }

    /// Jensen–Shannon with rewards.
    ///
    /// # Errors
    /// [`Error::Parameter`] if a β is not within 1e-200 to 1e200.
    pub fn jensen_shannon(betas: Betas) -> Result<Self> {
        Objective::new(Target::Rewards { beta: betas.reward }, Divergence::JensenShannon, betas.policy)
    }

    /// A target distribution of the caller's: what is passed as rewards is log q.
    ///
    /// # Errors
    /// [`Error::Parameter`] if β_π is not within 1e-200 to 1e200, or an α is not in [0, 1].
    pub fn distribution(divergence: Divergence, beta_policy: f64) -> Result<Self> {
        Objective::new(Target::Distribution, divergence, beta_policy)
    }

    /// What the policy distribution is pulled to.
    pub fn target(&self) -> Target {
        self.target
    }

    /// How it is pulled.
    pub fn divergence(&self) -> Divergence {
        self.divergence
    }

    /// β_π.
    pub fn beta_policy(&self) -> f64 {
        self.beta_policy
    }

    /// All that it is, in numbers: target, its β_r or ε, divergence, its α, β_π.
    pub(crate) fn numbers(&self) -> [f64; 5] {
        let (target, of_target) = match self.target {
            Target::Rewards { beta } => (0.0, beta),
            Target::Preference { label_smoothing } => (1.0, label_smoothing),
            Target::OfficialPreference => (2.0, 0.0),
            Target::Distribution => (3.0, 0.0),
        };
        let (divergence, alpha) = match self.divergence {
            Divergence::ReverseKl => (0.0, 0.0),
            Divergence::ForwardKl => (1.0, 0.0),
            Divergence::Alpha(alpha) => (2.0, alpha),
            Divergence::JensenShannon => (3.0, 0.0),
        };
        [target, of_target, divergence, alpha, self.beta_policy]
    }

    /// Whether the loss is infinite where q = 0 and p > 0.
    pub(crate) fn is_infinite_at_zero_target(&self) -> bool {
        match self.divergence {
            Divergence::ReverseKl => true,
            Divergence::Alpha(alpha) => alpha == 0.0,
            Divergence::ForwardKl | Divergence::JensenShannon => false,
        }
    }
}

/// Between these, losses and gradients are right wherever they are f64: logits β_π·S beyond that are counted in a larger
/// unit. A reward over β_r beyond it is refused with the rewards.
fn check_beta(name: &'static str, beta: f64) -> Result<()> {
    if (1e-200..=1e200).contains(&beta) {
        Ok(())
    } else {
        Err(Error::Parameter { name, given: beta, expected: "a finite number above 0 (1e-200 to 1e200)" })
    }
}
