//! A head whose rows lie on two ranks: each rank's part of each row, the whole of them, each rank's share in the unit gradients, and
//! the gradients of what it holds.

use super::choices::Choices;
use super::guarded::Sentinel;
use super::linear::scored;
use super::linear_case::{Case, SIZE, most_scored};
use super::partial_row::Ranks;
use super::rows::{Kind, VOCAB, are_columns};
use super::settings::{self, HostBackend};
use super::token_log_prob::Outputs;
use exo_kernels::{
    Element, GatheredRows, Head, LinearGradients, LinearParts, Matrix, MatrixMut, RowGradients, SavedLinear, SavedRows,
    Shard, SoftmaxState, UnitSums,
};
use half::bf16;
use std::ops::Range;

/// What is given besides the operands, of lengths that need not be right.
pub(crate) struct Given {
    pub(crate) keeps: bool,
    pub(crate) sums: usize,
    pub(crate) rests: usize,
    /// Of all ranks' rows.
    pub(crate) states: usize,
    /// In place of the rank's own number.
    pub(crate) rank: Option<usize>,
}

impl Given {
    pub(crate) fn choose(choices: &mut Choices<'_>, most: usize, rows: usize) -> Self {
        Self {
            keeps: !choices.yes(),
            sums: choices.length(most * SIZE),
            rests: choices.length(most),
            states: choices.length(rows),
            rank: choices.of(None, &[Some(2), Some(usize::MAX)]),
        }
    }

    /// Whether there is no room for what is kept of so many rows.
    pub(crate) fn are_refused(&self, most: usize) -> bool {
        self.keeps && (self.sums != most * SIZE || self.rests != most)
    }

    /// The same of the shares of a rank.
    pub(crate) fn shares_are_refused(&self, rows: usize, ranks: &Ranks) -> bool {
        self.states != rows || ranks.merging_is_refused(rows) || self.rank.is_some_and(|rank| rank >= ranks.count)
    }
}

/// That the unit gradients of rows are numbers, or NaN of those without a softmax. `shares`: of each rank.
pub(crate) fn check_units(shares: &[Vec<f32>], kinds: &[Kind], largest_weight: f64) {
    let positions = (0..kinds.len()).filter(|row| kinds[*row] != Kind::Masked);
    for (position, row) in positions.enumerate() {
        let numbers = |share: &Vec<f32>| share[position * SIZE..(position + 1) * SIZE].to_vec();
        let of_row: Vec<f32> = shares.iter().flat_map(numbers).collect();
        let right = match kinds[row] {
            Kind::NoSoftmax => of_row.iter().all(|number| number.is_nan()),
            // What overflows in a product is not promised.
            Kind::Scored | Kind::Impossible if largest_weight < 1e30 => of_row.iter().all(|number| number.is_finite()),
            _ => true,
        };
        assert!(right, "row {row} is {:?}: {of_row:?}", kinds[row]);
    }
}

pub(crate) fn walk<B: HostBackend>(choices: &mut Choices<'_>) {
    if choices.yes() { walk_of::<B, bf16>(choices) } else { walk_of::<B, f32>(choices) }
}

/// A rank's rows of a head.
fn part<T: Element + Sentinel>(case: &Case<T, T>, columns: Range<usize>) -> Head<'_, T> {
    let data = &case.weight[columns.start * case.weight_stride..];
    let weight = Matrix::strided(data, columns.len(), SIZE, case.weight_stride).expect("room for the rows");
    let head = Head::new(weight).expect("a vocabulary");
    case.bias.as_ref().map_or(head, |bias| head.with_bias(&bias[columns]).expect("as long"))
}

fn walk_of<B: HostBackend, T: Element + Sentinel>(choices: &mut Choices<'_>) {
    choices.calls_of(B::VERBS, &["check_linear_shard", "linear_partial_rows", "linear_unit_gradients"]);
    let count = choices.of(4, &[0, 1]);
    let case = Case::<T, T>::choose(choices, count);
    let options = settings::logit_options(choices);
    let backend = B::choose(choices);
    let kinds = case.kinds(&options);
    let ranks = Ranks::choose(choices, count);
    let short = usize::from(count > 0 && choices.yes());
    let targets = &case.targets[..count - short];
    let states = case.hidden();
    let (hidden, beyond) = scored(choices, &states, targets);
    let most = most_scored(&hidden);
    let given = Given::choose(choices, most, count);
    let of_inputs = beyond || short > 0 || !are_columns(targets, VOCAB);
    let refused = of_inputs || ranks.parts_are_refused(count) || given.are_refused(most);
    let (mut all, mut kept) = (Vec::new(), Vec::new());
    for columns in ranks.columns() {
        let head = part(&case, columns.clone());
        let options = options.with_shard(Shard::new(columns.start, VOCAB).expect("a shard"));
        assert_eq!(backend.check_linear_shard(&hidden, &head, &targets.into(), &options).is_err(), of_inputs);
        let poisoned = |length: usize| {
            let mut parts = vec![B::PartialRow::default(); length];
            bytemuck::cast_slice_mut::<_, u8>(&mut parts).fill(0xa5);
            parts
        };
        let (mut parts, mut sums, mut rests) =
            (poisoned(ranks.given), vec![f32::MAX; given.sums], poisoned(given.rests));
        let unit_sums = given.keeps.then_some(UnitSums { sums: &mut sums, rests: &mut rests });
        let outputs = LinearParts { partial_rows: &mut parts, unit_sums };
        match backend.linear_partial_rows(hidden, &head, targets, &options, ranks.entropy, outputs) {
            Err(error) => {
                assert!(refused, "refused: {error:?}");
                assert!(parts == poisoned(ranks.given) && rests == poisoned(given.rests), "a refused call wrote");
                assert!(sums.iter().all(|number| *number == f32::MAX), "a refused call wrote");
                return;
            }
            Ok(()) => assert!(!refused, "accepted"),
        }
        all.extend(parts);
        kept.push((sums, rests));
    }
    all.resize(ranks.merged, B::PartialRow::default());
    let mut outputs = Outputs::new(count);
    let result = backend.merge_rows(&all.as_slice(), ranks.count, targets, &options, outputs.views());
    if !ranks.are_all(count) || !ranks.entropy {
        // Other parts than there are: nothing is promised but that nothing breaks.
        assert_eq!(result.is_err(), ranks.merging_is_refused(count));
    } else if !outputs.check(result, ranks.merging_is_refused(count), &kinds, VOCAB) {
        return;
    }
    let mut states = outputs.states.get().to_vec();
    states.resize(given.states, SoftmaxState::default());
    let mut shares = Vec::new();
    for (rank, (columns, (mut sums, mut rests))) in ranks.columns().into_iter().zip(kept).enumerate() {
        if !given.keeps {
            break;
        }
        let head = part(&case, columns.clone());
        let options = options.with_shard(Shard::new(columns.start, VOCAB).expect("a shard"));
        let rank = given.rank.unwrap_or(rank);
        let gathered = GatheredRows { partial_rows: all.as_slice(), ranks: ranks.count, rank, states: &states };
        let before: Vec<u32> = sums.iter().map(|number| number.to_bits()).collect();
        let unit_sums = UnitSums { sums: &mut sums, rests: &mut rests };
        let refused = given.shares_are_refused(count, &ranks);
        match backend.linear_unit_gradients(hidden, &head, targets, &options, &gathered, unit_sums) {
            Err(error) => {
                assert!(refused, "refused: {error:?}");
                assert!(sums.iter().map(|number| number.to_bits()).eq(before), "a refused call wrote");
                return;
            }
            Ok(()) => assert!(!refused, "accepted"),
        }
        shares.push(sums);
    }
    if given.states != count || !ranks.are_all(count) {
        return;
    }
    if given.keeps {
        check_units(&shares, &kinds, case.largest_weight());
    }
    // A rank's gradients, of another number of rows than it holds.
    let upstream = RowGradients::PerRow { log_probs: &vec![0.5; count], entropies: None };
    for columns in ranks.columns() {
        let (head, held) = (part(&case, columns.clone()), choices.length(columns.len()));
        let options = options.with_shard(Shard::new(columns.start, VOCAB).expect("a shard"));
        let mut weight = vec![f32::MAX; held * SIZE];
        let saved = SavedLinear::from(SavedRows { states: &states, entropies: None });
        let gradients = LinearGradients::new(None, Some(MatrixMut::new(&mut weight, SIZE).expect("rows")));
        let result =
            backend.linear_token_log_probs_backward(hidden, &head, targets, &options, saved, &upstream, gradients);
        assert_eq!(result.is_err(), held != columns.len(), "{result:?}");
        assert!(result.is_ok() || weight.iter().all(|number| *number == f32::MAX), "a refused call wrote");
    }
}
