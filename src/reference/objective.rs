//! The K-sample objectives, one group at a time, as their definitions.
//!
//! f_i = β_π S_i + c_i are the policy's logits and s_i the target's, with the proposal's offsets c_i on both; p =
//! softmax(f), q = softmax(s). A proposal μ in place of π_ref multiplies both importance weights by π_ref/μ. Everything
//! here is a direct transcription; where one sample has nearly all the weight its absolute errors are those of f64 and
//! its relative ones are not. [`crate::Cpu`] has the form that keeps both.

use crate::objective::{Divergence, Objective, Target};

/// Loss and gradient of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupLoss {
    /// Before the reduction.
    pub loss: f64,
    /// d loss / d f_i.
    pub gradient: Vec<f64>,
    /// p.
    pub policy: Vec<f64>,
    /// q.
    pub target: Vec<f64>,
}

/// The target's logits s of one group: log q, up to a constant except for the official target, which is not normalised.
pub fn target_logits(target: Target, rewards: &[f64], offsets: &[f64]) -> Vec<f64> {
    let k = rewards.len();
    let best = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let winners = rewards.iter().filter(|&&r| r == best).count() as f64;
    // With W tied winners each is drawn as the winner once in W draws (EXO Eq. 16 for W = 1, K = 2).
    let preference = |winner: f64, loser: f64, others: f64, reward: f64| {
        let shared = (winner + (winners - 1.0) * (loser / others)) / winners;
        // The loser's quotient may be below every f64.
        if reward == best { shared.ln() } else { loser.ln() - others.ln() }
    };
    let mut s = Vec::with_capacity(k);
    for i in 0..k {
        let log_q = match target {
            Target::Rewards { beta } => rewards[i] / beta,
            Target::Distribution => rewards[i],
            _ if k == 1 => 0.0,
            Target::Preference { label_smoothing: e } => preference(1.0 - e, e, k as f64 - 1.0, rewards[i]),
            Target::OfficialPreference => preference(1.0, (-10f64).exp(), 1.0, rewards[i]),
        };
        s.push(log_q + offsets[i]);
    }
    s
}

/// One group. `log_ratios`, `rewards` and the proposal's `offsets` (zeros without one) have K entries.
pub fn group_loss(objective: &Objective, log_ratios: &[f64], rewards: &[f64], offsets: &[f64]) -> GroupLoss {
    let k = log_ratios.len();
    let f: Vec<f64> = (0..k).map(|i| objective.beta_policy() * log_ratios[i] + offsets[i]).collect();
    let s = target_logits(objective.target(), rewards, offsets);
    let (log_p, log_q) = (log_softmax(&f), log_softmax(&s));
    let p: Vec<f64> = log_p.iter().map(|log_p| log_p.exp()).collect();
    let q: Vec<f64> = log_q.iter().map(|log_q| log_q.exp()).collect();

    let nothing = |loss: f64, gradient: f64| GroupLoss {
        loss,
        gradient: vec![gradient; k],
        policy: p.clone(),
        target: q.clone(),
    };
    if f.iter().any(|f| f.is_nan() || *f == f64::INFINITY) {
        return nothing(f64::NAN, f64::NAN);
    }
    if k == 1 {
        // p = q = 1, whatever f is: that of −∞, too, is the only one there is.
        return GroupLoss { policy: vec![1.0], target: vec![1.0], ..nothing(0.0, 0.0) };
    }
    if f.iter().all(|&f| f == f64::NEG_INFINITY) {
        // The policy can produce none of the samples: there is no p.
        return GroupLoss { policy: vec![0.0; k], ..nothing(f64::INFINITY, 0.0) };
    }

    let (loss, gradient) = match objective.divergence() {
        Divergence::ReverseKl => reverse_kl(&f, &s, &p, &q, &log_p, &log_q),
        Divergence::ForwardKl => forward_kl(&p, &q, &log_p),
        Divergence::Alpha(alpha) => alpha_divergence(alpha, &f, &s, &p, &q, &log_p, &log_q),
        Divergence::JensenShannon => jensen_shannon(&p, &q),
    };
    // The official loser's e⁻¹⁰ is not normalised: every log q is larger by log(1 + e⁻¹⁰) than the normalised one.
    let official = objective.target() == Target::OfficialPreference && objective.divergence() == Divergence::ReverseKl;
    let loss = if official { loss - (-10f64).exp().ln_1p() } else { loss };
    GroupLoss { loss, gradient, policy: p, target: q }
}

/// EXO (Eq. 13): KL(p‖q) = Σ p (log p − log q). Gradient p_i (d_i − Σ p d), d = f − s, in which both log-normalisers
/// have cancelled.
///
/// Written as Σ {p (log p − log q) − p + q}: the sum is the same, since Σ p = Σ q, and its terms are never negative.
fn reverse_kl(f: &[f64], s: &[f64], p: &[f64], q: &[f64], log_p: &[f64], log_q: &[f64]) -> (f64, Vec<f64>) {
    let (mut loss, mut mean) = (0.0, 0.0);
    for i in 0..p.len() {
        let a = log_p[i] - log_q[i];
        loss += match a {
            _ if p[i] == 0.0 => q[i],
            a if a > -1.0 => p[i] * (a + (-a).exp_m1()),
            a => p[i] * (a - 1.0) + q[i],
        };
        mean += times(p[i], f[i] - s[i]);
    }
    (loss, (0..p.len()).map(|i| times(p[i], f[i] - s[i] - mean)).collect())
}

/// DPO over K samples: −Σ q log p, the entropy of q not subtracted, as in the official code. Gradient p − q.
fn forward_kl(p: &[f64], q: &[f64], log_p: &[f64]) -> (f64, Vec<f64>) {
    let loss = (0..p.len()).map(|i| times(q[i], -log_p[i])).sum();
    (loss, (0..p.len()).map(|i| p[i] - q[i]).collect())
}

/// f-PO: L = (1 − W)/(α(1 − α)), W = Σ p^(1−α) q^α. Gradient (p W − p^(1−α) q^α)/α, the derivative of W through p.
///
/// With x = (p − p^(1−α) q^α)/α both are sums over samples that stay right as α goes to 0, where x goes to p (log p −
/// log q): L = Σ x/(1 − α), gradient x_i − p_i Σ x. From α = ½ on the loss is that of the order 1 − α from q to p.
fn alpha_divergence(
    alpha: f64,
    f: &[f64],
    s: &[f64],
    p: &[f64],
    q: &[f64],
    log_p: &[f64],
    log_q: &[f64],
) -> (f64, Vec<f64>) {
    if alpha == 0.0 {
        return reverse_kl(f, s, p, q, log_p, log_q);
    }
    if alpha == 1.0 {
        let loss = (0..p.len()).map(|i| times(q[i], log_q[i] - log_p[i])).sum();
        return (loss, forward_kl(p, q, log_p).1);
    }
    let x = excess(alpha, p, log_p, log_q);
    let total: f64 = x.iter().sum();
    let gradient = (0..p.len()).map(|i| x[i] - p[i] * total).collect();
    let loss = if alpha <= 0.5 {
        total / (1.0 - alpha)
    } else {
        excess(1.0 - alpha, q, log_q, log_p).iter().sum::<f64>() / alpha
    };
    (loss, gradient)
}

/// (p − p^(1−α) q^α)/α of each sample.
fn excess(alpha: f64, p: &[f64], log_p: &[f64], log_q: &[f64]) -> Vec<f64> {
    let one = |i: usize| {
        let a = log_p[i] - log_q[i];
        if (alpha * a).abs() < f64::EPSILON / 4.0 {
            // An α next to 0, in which α·a has no digits left.
            times(p[i], a)
        } else if (alpha * a).abs() < 1.0 {
            -p[i] * (-alpha * a).exp_m1() / alpha
        } else {
            (p[i] - (times(1.0 - alpha, log_p[i]) + times(alpha, log_q[i])).exp()) / alpha
        }
    };
    (0..p.len()).map(one).collect()
}

/// ½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2. Gradient p_i (φ'_i − Σ p φ'), φ' = ½ log(p/m): the general form
/// for Σ q φ(p/q).
fn jensen_shannon(p: &[f64], q: &[f64]) -> (f64, Vec<f64>) {
    let (mut loss, mut mean) = (0.0, 0.0);
    let slope = |i: usize| 0.5 * (2.0 * p[i] / (p[i] + q[i])).ln();
    for i in 0..p.len() {
        let m = 0.5 * (p[i] + q[i]);
        loss += 0.5 * times(p[i], (p[i] / m).ln()) + 0.5 * times(q[i], (q[i] / m).ln());
        mean += times(p[i], slope(i));
    }
    (loss, (0..p.len()).map(|i| times(p[i], slope(i) - mean)).collect())
}

/// x_i − log Σ exp x, −inf where x is.
fn log_softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - largest).exp()).sum();
    x.iter().map(|x| x - largest - sum.ln()).collect()
}

/// The limit of weight·value as the weight goes to 0: 0, also where the value is infinite or undefined.
fn times(weight: f64, value: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * value }
}
