//! Rows whose columns lie on two ranks, on the device.

use super::stages::{OnDevice, check_status};
use super::{cuda, upload};
use crate::hostile::Choices;
use crate::hostile::partial_row::Ranks;
use crate::hostile::rows::{Kind, Rows, VOCAB};
use crate::hostile::settings;
use crate::hostile::token_log_prob::Outputs;
use exo_kernels::cuda::{Matrix, PartialRow};
use exo_kernels::{Backend, Shard};
use support::device::download;

pub(super) fn walk(choices: &mut Choices<'_>) {
    choices.calls_of("cuda/backend::Cuda", &["partial_rows", "merge_rows"]);
    let cuda = cuda();
    let count = choices.of(4, &[0, 1]);
    let rows = Rows::<f32>::choose(choices, count);
    let options = settings::logit_options(choices);
    let kinds: Vec<Kind> = (0..count).map(|row| rows.kind(row, &options)).collect();
    let ranks = Ranks::choose(choices, count);
    let (data, ids) = (upload(&cuda, &rows.data), upload(&cuda, &rows.targets));
    cuda.clear_status().expect("no fault");
    let mut all = Vec::new();
    for columns in ranks.columns() {
        let start = columns.start.min(rows.data.len());
        let view = data.slice(start..rows.data.len()).into();
        let logits = Matrix::strided(view, count, columns.len(), rows.stride).expect("room for the rows");
        let options = options.with_shard(Shard::new(columns.start, VOCAB).expect("a shard"));
        let before = vec![PartialRow { r: 0.5, s: -7.0, weighted: 3.0, target: 1e30 }; ranks.given];
        let mut parts = upload(&cuda, &before);
        let out = parts.slice_mut(..ranks.given).into();
        let result = cuda.partial_rows(&logits, ids.slice(..count), &options, ranks.entropy, out);
        let parts = download(&cuda, &parts.slice(..ranks.given));
        if let Err(error) = result {
            assert!(ranks.parts_are_refused(count), "refused: {error:?}");
            assert_eq!(parts, before, "a refused call wrote");
            return;
        }
        assert!(!ranks.parts_are_refused(count), "accepted");
        assert!(parts.iter().zip(&before).all(|(part, before)| part != before), "a part was not written");
        all.extend(parts);
    }
    let bad_targets = kinds.iter().filter(|kind| **kind == Kind::NoColumn).count();
    let status = cuda.status().expect("no fault");
    assert_eq!(status.bad_targets(), bad_targets * ranks.columns().len(), "{status:?}");
    all.resize(ranks.merged, PartialRow::default());
    let outputs = Outputs::choose(choices, count);
    let wants_entropies = outputs.entropies.is_some() && !ranks.entropy;
    let refused = ranks.merging_is_refused(count) || !outputs.fit(count);
    let parts = upload(&cuda, &all);
    cuda.clear_status().expect("no fault");
    let mut placed = OnDevice::new(&cuda, outputs);
    let view = parts.slice(..ranks.merged).into();
    let result = cuda.merge_rows(&view, ranks.count, ids.slice(..count), &options, placed.views());
    let found = placed.fetch(&cuda);
    if result.is_ok() && (!ranks.are_all(count) || wants_entropies) {
        // Other parts than there are: nothing is promised but that nothing breaks.
        assert!(!refused, "accepted");
        return;
    }
    // What is no column is a row of NaN when it comes to the merging.
    if found.check(result, refused, &kinds, VOCAB) && bad_targets == 0 {
        check_status(&cuda, &kinds);
    }
}
