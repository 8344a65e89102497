//! A head whose rows lie on two ranks, on the device.

use super::linear::{Brought, scored};
use super::stages::{OnDevice, check_status};
use super::{cuda, upload};
use crate::hostile::Choices;
use crate::hostile::linear_case::{Case, SIZE};
use crate::hostile::linear_shards::{Given, check_units};
use crate::hostile::partial_row::Ranks;
use crate::hostile::rows::{Kind, VOCAB};
use crate::hostile::settings;
use crate::hostile::token_log_prob::Outputs;
use exo_kernels::cuda::{GatheredRows, Head, LinearParts, Matrix, PartialRow, UnitSums};
use exo_kernels::{Backend, Shard, SoftmaxState};
use std::ops::Range;
use support::device::download;

/// No part, and no rest.
const POISON: PartialRow = PartialRow { r: 0.5, s: -7.0, weighted: 3.0, target: 1e30 };

/// A rank's rows of a head.
fn part<'a>(brought: &'a Brought<'_, f32>, columns: &Range<usize>) -> Head<'a, f32> {
    let case = brought.case;
    let data = brought.weight.slice(columns.start * case.weight_stride..case.weight.len());
    let weight = Matrix::strided(data.into(), columns.len(), SIZE, case.weight_stride).expect("room for the rows");
    let head = Head::new(weight).expect("a vocabulary");
    match &brought.bias {
        Some(bias) => head.with_bias(bias.slice(columns.clone()).into()).expect("as long"),
        None => head,
    }
}

pub(super) fn walk(choices: &mut Choices<'_>) {
    choices.calls_of("cuda/backend::Cuda", &["check_linear_shard", "linear_partial_rows", "linear_unit_gradients"]);
    let cuda = cuda();
    let count = choices.of(4, &[0, 1]);
    let case = Case::<f32, f32>::choose(choices, count);
    let options = settings::logit_options(choices);
    let kinds = case.kinds(&options);
    let ranks = Ranks::choose(choices, count);
    let brought = Brought::new(&cuda, &case);
    let short = usize::from(count > 0 && choices.yes());
    let states = brought.hidden();
    let (hidden, beyond) = scored(choices, &states, &kinds);
    let most = hidden.scored_rows().map_or(count, |rows| rows.min(count));
    let given = Given::choose(choices, most, count);
    let refused = short > 0 || ranks.parts_are_refused(count) || given.are_refused(most);
    let (mut all, mut kept) = (Vec::new(), Vec::new());
    cuda.clear_status().expect("no fault");
    for columns in ranks.columns() {
        let head = part(&brought, &columns);
        let options = options.with_shard(Shard::new(columns.start, VOCAB).expect("a shard"));
        let targets = brought.targets(count - short);
        assert_eq!(cuda.check_linear_shard(&hidden, &head, &targets, &options).is_err(), short > 0);
        let before = (vec![POISON; ranks.given], vec![f32::MAX; given.sums], vec![POISON; given.rests]);
        let (mut parts, mut sums, mut rests) =
            (upload(&cuda, &before.0), upload(&cuda, &before.1), upload(&cuda, &before.2));
        let unit_sums = given.keeps.then(|| UnitSums {
            sums: sums.slice_mut(..given.sums).into(),
            rests: rests.slice_mut(..given.rests).into(),
        });
        let outputs = LinearParts { partial_rows: parts.slice_mut(..ranks.given).into(), unit_sums };
        let result = cuda.linear_partial_rows(hidden, &head, targets, &options, ranks.entropy, outputs);
        let parts = download(&cuda, &parts.slice(..ranks.given));
        if let Err(error) = result {
            assert!(refused, "refused: {error:?}");
            let written =
                (parts, download(&cuda, &sums.slice(..given.sums)), download(&cuda, &rests.slice(..given.rests)));
            assert_eq!(written, before, "a refused call wrote");
            return;
        }
        assert!(!refused, "accepted");
        assert!(parts.iter().all(|part| *part != POISON), "a part was not written");
        all.extend(parts);
        kept.push((sums, rests));
    }
    let bad_targets = kinds.iter().filter(|kind| **kind == Kind::NoColumn).count();
    let status = cuda.status().expect("no fault");
    assert!(beyond || status.bad_targets() == bad_targets * ranks.columns().len(), "{status:?}");
    assert!(!beyond || status.unplaced_rows() > 0, "{status:?}");
    all.resize(ranks.merged, PartialRow::default());
    let parts = upload(&cuda, &all);
    let view = || parts.slice(..ranks.merged).into();
    cuda.clear_status().expect("no fault");
    let mut placed = OnDevice::new(&cuda, Outputs::new(count));
    let result = cuda.merge_rows(&view(), ranks.count, brought.targets(count), &options, placed.views());
    let found = placed.fetch(&cuda);
    let are_all = ranks.are_all(count) && ranks.entropy && !beyond;
    if !are_all {
        // Other parts than there are: nothing is promised but that nothing breaks.
        assert_eq!(result.is_err(), ranks.merging_is_refused(count));
    } else if !found.check(result, ranks.merging_is_refused(count), &kinds, VOCAB) {
        return;
    } else if bad_targets == 0 {
        check_status(&cuda, &kinds);
    }
    let mut states = found.states.get().to_vec();
    states.resize(given.states, SoftmaxState::default());
    let states = upload(&cuda, &states);
    let mut shares = Vec::new();
    for (rank, (columns, (mut sums, mut rests))) in ranks.columns().into_iter().zip(kept).enumerate() {
        if !given.keeps {
            return;
        }
        let head = part(&brought, &columns);
        let options = options.with_shard(Shard::new(columns.start, VOCAB).expect("a shard"));
        let gathered = GatheredRows {
            partial_rows: view(),
            ranks: ranks.count,
            rank: given.rank.unwrap_or(rank),
            states: states.slice(..given.states).into(),
        };
        let before = download(&cuda, &sums.slice(..given.sums));
        let unit_sums =
            UnitSums { sums: sums.slice_mut(..given.sums).into(), rests: rests.slice_mut(..given.rests).into() };
        let targets = brought.targets(count);
        let result = cuda.linear_unit_gradients(hidden, &head, targets, &options, &gathered, unit_sums);
        let sums = download(&cuda, &sums.slice(..given.sums));
        let refused = given.shares_are_refused(count, &ranks);
        if let Err(error) = result {
            assert!(refused, "refused: {error:?}");
            let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&sums), bits(&before), "a refused call wrote");
            return;
        }
        assert!(!refused, "accepted");
        shares.push(sums);
    }
    if are_all && bad_targets == 0 {
        check_units(&shares, &kinds, case.largest_weight());
    }
}
