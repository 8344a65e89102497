//! What a trainer logs of a group, by its definitions.

use crate::stage::objective::GroupStatistics;

/// From the implicit rewards f, the target's logits s and p of one group.
pub fn of_group(f: &[f64], s: &[f64], p: &[f64]) -> GroupStatistics {
    let largest = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let favourites: Vec<usize> = (0..s.len()).filter(|&i| s[i] == largest(s)).collect();
    let leaders: Vec<usize> = (0..f.len()).filter(|&i| f[i] == largest(f)).collect();
    let squares: f64 = p.iter().map(|p| p * p).sum();
    let effective_sample_size = if squares == 0.0 { 0.0 } else { 1.0 / squares };

    // Of each favourite f_i − (Σ f − f_i)/(K − 1), and the mean of that over the W favourites: with their sum F and the sum R
    // of the rest, (F·(K − W)/W − R)/(K − 1). Divided at the end, so that the order of the samples makes no difference where
    // the sums are exact.
    let sum = |favourite: bool| (0..f.len()).filter(|i| favourites.contains(i) == favourite).map(|i| f[i]).sum::<f64>();
    let (k, w) = (f.len() as f64, favourites.len() as f64);
    let margin = (sum(true) * (k - w) / w - sum(false)) / (k - 1.0).max(1.0);
    let all_tie = favourites.len() == f.len();
    let margin = match squares {
        squares if squares.is_nan() && f.len() > 1 => f64::NAN,
        _ if all_tie => 0.0,
        _ => margin,
    };
    let right = leaders.iter().filter(|leader| favourites.contains(leader)).count();
    let agreement = if squares.is_nan() { 0.0 } else { right as f64 / leaders.len() as f64 };
    GroupStatistics::new(effective_sample_size, margin, agreement, favourites.len() > 1)
}
