//! What a trainer logs of a group, by its definitions.

use crate::stage::objective::GroupStatistics;

/// From the implicit rewards f, the target's logits s and p of one group.
pub fn of_group(f: &[f64], s: &[f64], p: &[f64]) -> GroupStatistics {
    let largest = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let favourites: Vec<usize> = (0..s.len()).filter(|&i| s[i] == largest(s)).collect();
    let leaders: Vec<usize> = (0..f.len()).filter(|&i| f[i] == largest(f)).collect();
    let squares: f64 = p.iter().map(|p| p * p).sum();
    let effective_sample_size = if squares == 0.0 { 0.0 } else { 1.0 / squares };

    // Of each favourite: its f less the mean of the others'; the mean of that over the favourites. Divided once, at the end,
    // so that the order of the samples makes no difference where their sums are exact.
    let others = (f.len() - 1).max(1) as f64;
    let mut margin = 0.0;
    for &favourite in &favourites {
        let rest: f64 = (0..f.len()).filter(|&i| i != favourite).map(|i| f[i]).sum();
        margin += others * f[favourite] - rest;
    }
    let margin = margin / (others * favourites.len() as f64);
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
