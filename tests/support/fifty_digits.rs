//! The objectives as the textbook writes them, in arithmetic so long that rounding and cancellation do not matter.
//!
//! The inputs are the exact values of the f64 numbers; nothing is centred, shifted or rearranged. At least sixty digits
//! are left after every cancellation that can occur: the significand grows with the spread of the logits, because 1 − p
//! and p − q of a group in which one sample dominates lose as many digits as that spread has.

use dashu_float::FBig;
use dashu_float::round::mode::HalfEven;
use exo_kernels::{Divergence, Objective, Target};

/// A number of many binary digits.
pub type Real = FBig<HalfEven, 2>;

/// 320 bits are 96 decimal digits. The two largest cancellations are 1 − W, of the order α·d², for α = 1e-12 and d =
/// 1e-8 (28 digits), and those that come with the spread, which has digits of its own.
const BITS: usize = 320;

/// e^(−2000) is 1e-868; the largest factor of such a probability is below 1e520.
const FARTHEST: f64 = 2000.0;

/// The exact results of one group.
#[derive(Debug)]
pub struct Exact {
    /// Before the reduction.
    pub loss: Real,
    /// d loss / d f, before β_π and the reduction.
    pub gradient: Vec<Real>,
}

/// Numbers of one length.
#[derive(Debug, Clone, Copy)]
pub struct Digits {
    bits: usize,
}

impl Digits {
    /// Enough for logits that are together up to `spread` apart: e^(−spread) beside 1 costs spread/ln 2 bits. And for the
    /// order α: 1 − W costs −log2 α.
    ///
    /// Logits that are farther apart than `FARTHEST` have a probability that no f64 comes near, whatever it is
    /// multiplied with: it is 0 here. What such logits, of up to 2^1700, cost is their own digits.
    pub fn for_spread(spread: f64, divergence: Divergence) -> Self {
        let of_spread = if spread < FARTHEST { 1.5 * spread } else { 1.5 * FARTHEST + 2000.0 };
        let of_order = match divergence {
            Divergence::Alpha(alpha) if alpha > 0.0 && alpha < 1e-12 => -2.0 * alpha.log2(),
            _ => 0.0,
        };
        Digits { bits: BITS + (of_spread + of_order) as usize }
    }

    /// The exact value of a finite f64.
    pub fn number(self, value: f64) -> Real {
        assert!(value.is_finite(), "{value} is not a number of these");
        self.long(Real::try_from(value).unwrap_or(Real::ZERO))
    }

    fn long(self, value: Real) -> Real {
        value.with_precision(self.bits).value()
    }

    pub fn exp(self, value: &Real) -> Real {
        if value.to_f64().value() < -FARTHEST {
            return self.number(0.0);
        }
        self.long(self.long(value.clone()).exp())
    }

    pub fn ln(self, value: &Real) -> Real {
        self.long(self.long(value.clone()).ln())
    }

    fn sum(self, values: impl Iterator<Item = Real>) -> Real {
        values.fold(self.number(0.0), |sum, value| sum + value)
    }

    /// Less the largest first, without which e^x of large logits would be none of these numbers.
    fn log_sum_exp(self, x: &[Option<Real>]) -> Real {
        let largest = x.iter().flatten().max().expect("one that is not -inf").clone();
        let sum = self.sum(x.iter().flatten().map(|x| self.exp(&(x - &largest))));
        largest + self.ln(&sum)
    }

    /// x − log Σ exp x; `None` is −∞.
    fn log_softmax(self, x: &[Option<Real>]) -> Vec<Option<Real>> {
        let total = self.log_sum_exp(x);
        x.iter().map(|x| x.as_ref().map(|x| x - &total)).collect()
    }

    fn exps(self, logs: &[Option<Real>]) -> Vec<Real> {
        logs.iter().map(|log| log.as_ref().map_or(self.number(0.0), |log| self.exp(log))).collect()
    }

    /// The target's logits before the proposal's offset.
    fn target(self, target: Target, rewards: &[f64]) -> Vec<Option<Real>> {
        let k = rewards.len();
        let best = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let tied = rewards.iter().filter(|&&reward| reward == best).count();
        let one = self.number(1.0);
        // Every tied winner is the winner in one of `tied` draws and a loser in the others.
        let preference = |winner: Real, loser: Real| {
            let shared = (winner + &loser * self.number(tied as f64 - 1.0)) / self.number(tied as f64);
            let (shared, loser) = (self.ln(&shared), self.ln(&loser));
            rewards.iter().map(|&reward| Some(if reward == best { shared.clone() } else { loser.clone() })).collect()
        };
        match target {
            Target::Rewards { beta } => {
                rewards.iter().map(|&reward| Some(self.number(reward) / self.number(beta))).collect()
            }
            Target::Distribution => {
                rewards.iter().map(|&log_q| (log_q != f64::NEG_INFINITY).then(|| self.number(log_q))).collect()
            }
            Target::Preference { .. } | Target::OfficialPreference if k == 1 => vec![Some(self.number(0.0))],
            Target::Preference { label_smoothing } => {
                let epsilon = self.number(label_smoothing);
                let loser = &epsilon / self.number(k as f64 - 1.0);
                if label_smoothing == 0.0 {
                    let share = -self.ln(&self.number(tied as f64));
                    return rewards.iter().map(|&reward| (reward == best).then(|| share.clone())).collect();
                }
                preference(one - epsilon, loser)
            }
            Target::OfficialPreference => preference(one, self.exp(&self.number(-10.0))),
            _ => panic!("a target that the oracle does not know"),
        }
    }
}

/// The two distributions of one group of K.
#[derive(Debug)]
pub struct Group {
    digits: Digits,
    /// log Σ of the target before its normalisation and without the proposal's offsets: log(1 + e^(−10)) for the
    /// official one.
    log_total: Real,
    /// log p; `None` for p = 0.
    pub log_p: Vec<Option<Real>>,
    /// log q of the normalised target; `None` for q = 0.
    pub log_q: Vec<Option<Real>>,
    p: Vec<Real>,
    q: Vec<Real>,
}

impl Group {
    /// For log-ratios that are finite or −∞, not all −∞. The divergence of `objective` is of no account but for the
    /// digits that an order below 1e-12 needs.
    pub fn new(objective: &Objective, log_ratios: &[f64], rewards: &[f64], offsets: &[f64]) -> Self {
        let beta = objective.beta_policy();
        let spread = |values: &[f64], scale: f64| {
            let finite = || values.iter().filter(|value| value.is_finite()).map(|value| value * scale);
            let spread = finite().fold(f64::NEG_INFINITY, f64::max) - finite().fold(f64::INFINITY, f64::min);
            // Infinity less infinity.
            if spread.is_nan() { f64::INFINITY } else { spread }
        };
        let target_spread = match objective.target() {
            Target::Rewards { beta } => spread(rewards, 1.0 / beta),
            Target::Preference { label_smoothing } if label_smoothing > 0.0 => -label_smoothing.ln(),
            Target::Distribution => spread(rewards, 1.0),
            _ => 10.0,
        };
        let spread = spread(log_ratios, beta) + target_spread + 2.0 * spread(offsets, 1.0);
        // What log-softmax takes away again costs digits too.
        let reward_scale = if let Target::Rewards { beta } = objective.target() { 1.0 / beta } else { 1.0 };
        let is_large = [(log_ratios, beta), (rewards, reward_scale), (offsets, 1.0)]
            .iter()
            .any(|(values, scale)| values.iter().any(|x| x.is_finite() && (x * scale).abs() > 1e20));
        let digits = Digits::for_spread(if is_large { FARTHEST } else { spread }, objective.divergence());
        let f: Vec<_> = (0..log_ratios.len())
            .map(|i| {
                let finite = log_ratios[i] != f64::NEG_INFINITY;
                finite.then(|| digits.number(beta) * digits.number(log_ratios[i]) + digits.number(offsets[i]))
            })
            .collect();
        let target = digits.target(objective.target(), rewards);
        let log_total = digits.log_sum_exp(&target);
        let s: Vec<_> = target.into_iter().zip(offsets).map(|(s, &c)| s.map(|s| s + digits.number(c))).collect();
        let (log_p, log_q) = (digits.log_softmax(&f), digits.log_softmax(&s));
        let (p, q) = (digits.exps(&log_p), digits.exps(&log_q));
        Group { digits, log_total, log_p, log_q, p, q }
    }

    /// Loss and gradient. `objective` has the target that the group was made for.
    pub fn exact(&self, objective: &Objective) -> Exact {
        let (loss, gradient) = match (objective.target(), objective.divergence()) {
            // The official log-targets 0 and −10 are taken as they are, not normalised.
            (Target::OfficialPreference, Divergence::ReverseKl) => {
                let log_q: Vec<_> =
                    self.log_q.iter().map(|log| log.as_ref().map(|log| log + &self.log_total)).collect();
                self.reverse_kl(&log_q)
            }
            (_, Divergence::ReverseKl) => self.reverse_kl(&self.log_q),
            (_, Divergence::ForwardKl) => self.cross_entropy(),
            (_, Divergence::Alpha(alpha)) => self.alpha_divergence(alpha),
            (_, Divergence::JensenShannon) => self.jensen_shannon(),
            _ => panic!("a divergence that the oracle does not know"),
        };
        Exact { loss, gradient }
    }

    /// What the oracle's own rounding can amount to: 80 of the bits are for cancellation and for the division by α.
    pub fn error(&self) -> f64 {
        0.5f64.powi(self.digits.bits as i32 - 80)
    }

    fn zero(&self) -> Real {
        self.digits.number(0.0)
    }

    /// Σ weight (log weight − log other), where a weight of 0 has no term.
    fn divergence(&self, weight: &[Real], log: &[Option<Real>], log_other: &[Option<Real>]) -> Real {
        self.digits.sum((0..weight.len()).map(|i| &weight[i] * self.difference(log[i].as_ref(), log_other[i].as_ref())))
    }

    fn difference(&self, log: Option<&Real>, log_other: Option<&Real>) -> Real {
        match (log, log_other) {
            (Some(log), Some(other)) => log - other,
            // It is multiplied by 0.
            (None, _) => self.zero(),
            (Some(_), None) => panic!("this divergence is infinite"),
        }
    }

    /// Σ p (log p − log q); g_i = p_i (log p_i − log q_i − L).
    fn reverse_kl(&self, log_q: &[Option<Real>]) -> (Real, Vec<Real>) {
        let loss = self.divergence(&self.p, &self.log_p, log_q);
        let gradient = (0..self.p.len())
            .map(|i| &self.p[i] * (self.difference(self.log_p[i].as_ref(), log_q[i].as_ref()) - &loss))
            .collect();
        (loss, gradient)
    }

    /// −Σ q log p; g = p − q.
    fn cross_entropy(&self) -> (Real, Vec<Real>) {
        let term = |i: usize| match (&self.log_p[i], &self.log_q[i]) {
            (_, None) => self.zero(),
            (Some(log_p), Some(_)) => -(&self.q[i] * log_p),
            (None, Some(_)) => panic!("this divergence is infinite"),
        };
        (self.digits.sum((0..self.p.len()).map(term)), self.p.iter().zip(&self.q).map(|(p, q)| p - q).collect())
    }

    /// (1 − W)/(α(1 − α)), W = Σ p^(1−α) q^α; g_i = (p_i W − p_i^(1−α) q_i^α)/α. KL(p‖q) at α = 0, KL(q‖p) at α = 1.
    fn alpha_divergence(&self, alpha: f64) -> (Real, Vec<Real>) {
        if alpha == 0.0 {
            return self.reverse_kl(&self.log_q);
        }
        if alpha == 1.0 {
            let gradient = self.p.iter().zip(&self.q).map(|(p, q)| p - q).collect();
            return (self.divergence(&self.q, &self.log_q, &self.log_p), gradient);
        }
        let (one, alpha) = (self.digits.number(1.0), self.digits.number(alpha));
        let mixed: Vec<Real> = self
            .log_p
            .iter()
            .zip(&self.log_q)
            .map(|logs| match logs {
                (Some(log_p), Some(log_q)) => self.digits.exp(&((&one - &alpha) * log_p + &alpha * log_q)),
                _ => self.zero(),
            })
            .collect();
        let total = self.digits.sum(mixed.iter().cloned());
        let gradient = self.p.iter().zip(&mixed).map(|(p, mixed)| (p * &total - mixed) / &alpha).collect();
        ((&one - total) / (&alpha * (&one - &alpha)), gradient)
    }

    /// ½ Σ p log(p/m) + ½ Σ q log(q/m), m = (p + q)/2; g_i = p_i (φ_i − Σ p φ), φ = ½ log(p/m).
    fn jensen_shannon(&self) -> (Real, Vec<Real>) {
        let (p, q, half) = (&self.p, &self.q, self.digits.number(0.5));
        let log_m: Vec<Real> = p
            .iter()
            .zip(q)
            .map(|(p, q)| {
                let m = &half * (p + q);
                // It is multiplied by 0.
                if m == Real::ZERO { self.zero() } else { self.digits.ln(&m) }
            })
            .collect();
        // φ and its like for q; where the weight is 0 it is not needed.
        let slope =
            |logs: &[Option<Real>], i: usize| logs[i].as_ref().map_or(self.zero(), |log| &half * (log - &log_m[i]));
        let mean = self.digits.sum((0..p.len()).map(|i| &p[i] * slope(&self.log_p, i)));
        let other = self.digits.sum((0..q.len()).map(|i| &q[i] * slope(&self.log_q, i)));
        let gradient = (0..p.len()).map(|i| &p[i] * (slope(&self.log_p, i) - &mean)).collect();
        (mean + other, gradient)
    }
}
