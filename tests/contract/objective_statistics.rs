//! What a trainer logs of a group: whose favourite is whose, and by how much, whatever the order of its sequences.

use exo_kernels::{Batch, Betas, GroupStatistics, Objective, Reduction, Reference, Rewards};
use support::backend::{Rows, TestBackend, on_every_backend};

on_every_backend!(
    ties_count_as_a_coin_would,
    order_does_not_matter,
    a_policy_equal_to_its_reference_is_right_in_half_of_the_pairs,
    a_group_without_a_policy_agrees_with_nothing,
    a_group_of_one_agrees_with_itself,
    an_impossible_favourite_among_tied_ones,
);

fn exo() -> Objective {
    Objective::exo(Betas { policy: 0.5, reward: 1.0 }).expect("valid")
}

fn statistics(backend: &impl TestBackend, log_ratios: &[f64], rewards: &[f64]) -> GroupStatistics {
    let k = log_ratios.len();
    let batch = Batch::padded(k, 1, k).expect("a group of at least one");
    backend.host_objective(&exo(), log_ratios, &batch, Rewards::from(rewards), Reduction::Sum).statistics[0]
}

fn a_group_of_one_agrees_with_itself(backend: &impl TestBackend) {
    for log_ratio in [0.5, f64::NEG_INFINITY] {
        let expected = GroupStatistics::new(1.0, 0.0, 1.0, false);
        assert_eq!(statistics(backend, &[log_ratio], &[1.0]), expected, "{log_ratio}");
    }
}

/// The mean of the favourites is −∞, and so is the margin.
fn an_impossible_favourite_among_tied_ones(backend: &impl TestBackend) {
    let found = statistics(backend, &[1.0, 2.0, f64::NEG_INFINITY], &[2.0, 1.0, 2.0]);
    assert_eq!((found.margin, found.tied()), (f64::NEG_INFINITY, true));
}

/// All orders of up to five sequences.
fn orders(k: usize) -> Vec<Vec<usize>> {
    let mut orders = vec![vec![]];
    for i in 0..k {
        orders = orders
            .iter()
            .flat_map(|order| {
                (0..=order.len()).map(move |at| {
                    let mut longer: Vec<usize> = order.clone();
                    longer.insert(at, i);
                    longer
                })
            })
            .collect();
    }
    orders
}

/// Log-ratios, rewards, agreement, margin (β_π = ½), whether the target ties.
type Known = (&'static [f64], &'static [f64], f64, f64, bool);

/// Worked out by hand. The numbers are such that no sum rounds.
const KNOWN: [Known; 10] = [
    (&[2.0, 1.0], &[1.0, 0.0], 1.0, 0.5, false),
    (&[1.0, 2.0], &[1.0, 0.0], 0.0, -0.5, false),
    // The policy has no favourite: right for one of two, one of three, two of three, two of four.
    (&[0.0, 0.0], &[1.0, 0.0], 0.5, 0.0, false),
    (&[4.0, 4.0, 4.0], &[1.0, 0.0, 0.5], 1.0 / 3.0, 0.0, false),
    (&[4.0, 4.0, 4.0], &[1.0, 1.0, 0.5], 2.0 / 3.0, 0.0, true),
    (&[4.0, 4.0, 4.0, 4.0], &[1.0, 0.0, 1.0, 0.0], 0.5, 0.0, true),
    // Two lead, one of them is the target's.
    (&[6.0, 6.0, 0.0], &[1.0, 0.0, 0.0], 0.5, 1.5, false),
    // The target ties: 3 − (1 + 0)/2 and 1 − (3 + 0)/2, in the mean 1.
    (&[6.0, 2.0, 0.0], &[1.0, 1.0, 0.0], 1.0, 1.0, true),
    // Neither has one.
    (&[2.0, 2.0], &[1.0, 1.0], 1.0, 0.0, true),
    (&[6.0, 2.0], &[1.0, 1.0], 1.0, 0.0, true),
];

fn ties_count_as_a_coin_would(backend: &impl TestBackend) {
    for (log_ratios, rewards, agreement, margin, tied) in KNOWN {
        for order in orders(log_ratios.len()) {
            let pick = |values: &[f64]| order.iter().map(|&i| values[i]).collect::<Vec<f64>>();
            let found = statistics(backend, &pick(log_ratios), &pick(rewards));
            assert_eq!(
                (found.agreement, found.margin, found.tied()),
                (agreement, margin, tied),
                "{log_ratios:?} {rewards:?}"
            );
        }
    }
}

/// More sequences than a warp has lanes, on a grid on which sums do not round.
fn order_does_not_matter(backend: &impl TestBackend) {
    for k in [2usize, 5, 31, 33, 70] {
        let of = |multiplier: usize, distinct: usize| (0..k).map(move |i| (i * multiplier % 97 % distinct) as f64);
        let (log_ratios, rewards): (Vec<f64>, Vec<f64>) = (of(41, 7).collect(), of(29, 4).collect());
        let one = statistics(backend, &log_ratios, &rewards);
        for turn in [1, k / 2, k - 1] {
            let turned = |values: &[f64]| (0..k).rev().map(|i| values[(i + turn) % k]).collect::<Vec<f64>>();
            let other = statistics(backend, &turned(&log_ratios), &turned(&rewards));
            assert_eq!(
                (one.agreement, one.margin, one.tied()),
                (other.agreement, other.margin, other.tied()),
                "K = {k}"
            );
        }
    }
}

/// The first step of every training.
fn a_policy_equal_to_its_reference_is_right_in_half_of_the_pairs(backend: &impl TestBackend) {
    let rows = Rows::new(vec![0.0f32; 4 * 3], vec![0, 1, 2, 0], 3);
    let log_prob = -(3f32.ln());
    let batch = Batch::new(&[0, 1, 2, 3, 4], &[0, 2, 4]).expect("valid");
    for rewards in [[1.0f32, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]] {
        let mut loss = backend.loss(exo());
        loss.forward(&rows, &batch, Reference::PerToken(&[log_prob; 4]), Rewards::from(&rewards)).expect("valid");
        let report = loss.report().expect("finite");
        assert_eq!((report.accuracy, &report.margins[..]), (0.5, &[0.0, 0.0][..]), "{rewards:?}");
    }
}

fn a_group_without_a_policy_agrees_with_nothing(backend: &impl TestBackend) {
    for poison in [f64::NAN, f64::INFINITY] {
        for log_ratios in [[poison, 1.0], [1.0, poison], [poison, poison]] {
            let found = statistics(backend, &log_ratios, &[1.0, 0.0]);
            assert_eq!(found.agreement, 0.0);
            assert!(found.margin.is_nan() && found.effective_sample_size.is_nan(), "{found:?}");
        }
    }
}
