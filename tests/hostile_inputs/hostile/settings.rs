//! Options and objectives, made from hostile numbers: what must be refused, what must be accepted.
//!
//! Between a parameter's useful range, where it must be accepted, and what is no such parameter at all, where it must be
//! refused, a constructor may draw its line where the results stay right.

use super::choices::Choices;
use exo_kernels::backend::{Backend, Host};
use exo_kernels::cpu::InstructionSet;
use exo_kernels::reference::ReferenceBackend;
use exo_kernels::{
    Betas, Cpu, Divergence, Error, LinearKept, LogRatio, LogitOptions, LossOptions, Objective, Reduction, Result,
    Target,
};

/// What a number is as a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    Useful,
    /// Either.
    Extreme,
    Wrong,
}

impl Fit {
    /// β, T, c, normalisers.
    pub(crate) fn of_scale(value: f64) -> Self {
        match value {
            _ if (1e-3..=1e3).contains(&value) => Fit::Useful,
            _ if value.is_finite() && value > 0.0 => Fit::Extreme,
            _ => Fit::Wrong,
        }
    }

    fn of_alpha(alpha: f64) -> Self {
        match alpha {
            _ if alpha == 0.0 || alpha == 1.0 || (1e-3..=0.999).contains(&alpha) => Fit::Useful,
            _ if (0.0..=1.0).contains(&alpha) => Fit::Extreme,
            _ => Fit::Wrong,
        }
    }

    fn of_smoothing(epsilon: f64, zero_is_allowed: bool) -> Self {
        match epsilon {
            _ if (1e-6..=0.499).contains(&epsilon) || (epsilon == 0.0 && zero_is_allowed) => Fit::Useful,
            _ if epsilon > 0.0 && epsilon < 0.5 => Fit::Extreme,
            _ => Fit::Wrong,
        }
    }

    /// Of two parameters.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Fit::Wrong, _) | (_, Fit::Wrong) => Fit::Wrong,
            (Fit::Extreme, _) | (_, Fit::Extreme) => Fit::Extreme,
            _ => Fit::Useful,
        }
    }

    /// Asserts that a constructor decided so, and names what it refuses.
    pub(crate) fn check<T>(self, what: &str, made: Result<T>) -> Option<T> {
        match made {
            Ok(made) => {
                assert_ne!(self, Fit::Wrong, "{what} was accepted");
                Some(made)
            }
            Err(error) => {
                assert_ne!(self, Fit::Useful, "{what} was refused: {error}");
                assert!(matches!(error, Error::Parameter { .. }), "{what}: {error:?}");
                assert!(!error.to_string().is_empty());
                None
            }
        }
    }
}

/// Temperature and softcap.
pub(crate) fn logit_options(choices: &mut Choices<'_>) -> LogitOptions {
    choices.calls(&[
        "options::LogitOptions::with_temperature",
        "options::LogitOptions::with_softcap",
        "options::LogitOptions::temperature",
        "options::LogitOptions::softcap",
    ]);
    let mut options = LogitOptions::default();
    let temperature = choices.f64(0.8);
    let made = options.with_temperature(temperature);
    if let Some(made) = Fit::of_scale(temperature).check("temperature", made) {
        assert_eq!(made.temperature(), temperature);
        options = made;
    }
    let softcap = choices.f64(0.0);
    let fit = if softcap == 0.0 { Fit::Useful } else { Fit::of_scale(softcap) };
    if let Some(made) = fit.check("softcap", options.with_softcap(softcap)) {
        // One that caps nothing that a softmax sees is none.
        let caps_nothing = softcap > 1e15 * made.temperature() && made.softcap() == 0.0;
        assert!(made.softcap() == softcap || caps_nothing, "{made:?}");
        options = made;
    }
    options
}

/// Any objective that can be made, by every constructor.
pub(crate) fn objective(choices: &mut Choices<'_>) -> Objective {
    choices.calls(&[
        "objective::Objective::new",
        "objective::Objective::exo",
        "objective::Objective::exo_pref",
        "objective::Objective::exo_pref_official",
        "objective::Objective::dpo_rw",
        "objective::Objective::dpo_pref",
        "objective::Objective::alpha",
        "objective::Objective::jensen_shannon",
        "objective::Objective::distribution",
        "objective::Objective::target",
        "objective::Objective::divergence",
        "objective::Objective::beta_policy",
    ]);
    let which = choices.choose(10);
    let policy = choices.f64(0.5);
    let betas = Betas { policy, reward: choices.f64(0.5) };
    let (alpha, epsilon) = (choices.f64(0.5), choices.f64(1e-3));
    let of_betas = Fit::of_scale(policy).and(Fit::of_scale(betas.reward));
    let of_policy = Fit::of_scale(policy);
    let divergence = [
        Divergence::ReverseKl,
        Divergence::ForwardKl,
        Divergence::JensenShannon,
        Divergence::Alpha(alpha),
        Divergence::Alpha(0.0),
    ][if (7..=8).contains(&which) { choices.choose(5) } else { 0 }];
    let of_divergence = match divergence {
        Divergence::Alpha(alpha) => Fit::of_alpha(alpha),
        _ => Fit::Useful,
    };
    let (made, fit) = match which {
        0 => (Objective::exo(betas), of_betas),
        1 => (Objective::exo_pref(policy, epsilon), of_policy.and(Fit::of_smoothing(epsilon, false))),
        2 => (Objective::exo_pref_official(policy), of_policy),
        3 => (Objective::dpo_rw(betas), of_betas),
        4 => (Objective::dpo_pref(policy, epsilon), of_policy.and(Fit::of_smoothing(epsilon, true))),
        5 => (Objective::alpha(alpha, betas), of_betas.and(Fit::of_alpha(alpha))),
        6 => (Objective::jensen_shannon(betas), of_betas),
        7 => (Objective::distribution(divergence, policy), of_policy.and(of_divergence)),
        8 => {
            let zero_is_allowed = !infinite_at_zero_target(divergence);
            let made = Objective::new(Target::Preference { label_smoothing: epsilon }, divergence, policy);
            (made, of_policy.and(of_divergence).and(Fit::of_smoothing(epsilon, zero_is_allowed)))
        }
        _ => (Objective::dpo_pref(policy, 0.0), of_policy),
    };
    let usual = || Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("usual betas");
    let objective = fit.check("objective", made).unwrap_or_else(usual);
    assert!(objective.beta_policy() > 0.0 && objective.target() == objective.target());
    objective
}

/// Whether the loss is infinite where q = 0 and p > 0.
pub(crate) fn infinite_at_zero_target(divergence: Divergence) -> bool {
    matches!(divergence, Divergence::ReverseKl) || matches!(divergence, Divergence::Alpha(alpha) if alpha == 0.0)
}

/// How group losses become one: any number as a normaliser, and what it is as one.
pub(crate) fn any_reduction(choices: &mut Choices<'_>) -> (Reduction, Fit) {
    let reduction = match choices.choose(3) {
        0 => Reduction::Mean,
        1 => Reduction::Sum,
        _ => Reduction::Normalizer(choices.f64(16.0)),
    };
    let fit = match reduction {
        Reduction::Normalizer(normalizer) => Fit::of_scale(normalizer),
        _ => Fit::Useful,
    };
    (reduction, fit)
}

/// The same, but only what [`LossOptions`] would take.
pub(crate) fn reduction(choices: &mut Choices<'_>, objective: Objective) -> Reduction {
    choices.calls(&["options::LossOptions::with_reduction"]);
    let (reduction, fit) = any_reduction(choices);
    let made = LossOptions::from(objective).with_reduction(reduction);
    if fit.check("normalizer", made).is_some() { reduction } else { Reduction::Mean }
}

/// What that reduction multiplies a group's loss with.
pub(crate) fn weight(reduction: Reduction, groups: usize) -> f64 {
    match reduction {
        Reduction::Sum => 1.0,
        Reduction::Normalizer(normalizer) => 1.0 / normalizer,
        Reduction::Mean => 1.0 / groups.max(1) as f64,
    }
}

pub(crate) fn linear_kept(choices: &mut Choices<'_>) -> LinearKept {
    choices.of(LinearKept::UnitGradients, &[LinearKept::Nothing, LinearKept::LogitGradients])
}

pub(crate) fn log_ratio(choices: &mut Choices<'_>) -> LogRatio {
    if choices.yes() { LogRatio::Mean } else { LogRatio::Sum }
}

/// A backend whose memory is the host's.
pub(crate) trait HostBackend: Backend<Memory = Host> {
    /// Where its verbs are, as `tests/hostile_inputs/inventory.rs` names it.
    const VERBS: &'static str;

    /// Whether it has the limits of what leaves f64 on the way: the specification's textbook form has not.
    const HAS_ENDS_OF_F64: bool = true;

    fn choose(choices: &mut Choices<'_>) -> Self;
}

impl HostBackend for Cpu {
    const VERBS: &'static str = "cpu/backend::Cpu";

    fn choose(choices: &mut Choices<'_>) -> Self {
        cpu(choices)
    }
}

impl HostBackend for ReferenceBackend {
    const VERBS: &'static str = "reference/backend::ReferenceBackend";
    const HAS_ENDS_OF_F64: bool = false;

    fn choose(_: &mut Choices<'_>) -> Self {
        ReferenceBackend
    }
}

/// The CPU with the instructions that it has.
fn cpu(choices: &mut Choices<'_>) -> Cpu {
    choices.calls(&[
        "cpu/mod::Cpu::with_instruction_set",
        "cpu/mod::Cpu::instruction_set",
        "cpu/dispatch::InstructionSet::is_available",
        "cpu/dispatch::InstructionSet::name",
    ]);
    let Some(set) = choices.of(None, &InstructionSet::ALL.map(Some)) else { return Cpu::default() };
    match Cpu::with_instruction_set(set) {
        Ok(cpu) => {
            assert!(set.is_available() && cpu.instruction_set() == set);
            cpu
        }
        Err(error) => {
            assert!(!set.is_available(), "{error}");
            assert_eq!(error, Error::InstructionSet { name: set.name() });
            Cpu::default()
        }
    }
}
