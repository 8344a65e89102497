//! Token log-probs from hidden states: forward and backward.

use super::choices::Choices;
use super::guarded::{Guarded, Sentinel};
use super::linear_case::{Case, Gradients, Kept, SIZE, Upstream, most_scored};
use super::rows::{self, VOCAB, are_columns};
use super::settings::{self, HostBackend};
use super::token_log_prob::{self, Outputs};
use exo_kernels::{Element, Error, Hidden, LinearOutputs, LogitOptions, Matrix, SavedLinear, SavedRows, SoftmaxState};
use half::{bf16, f16};

pub(crate) fn walk<B: HostBackend>(choices: &mut Choices<'_>) {
    match choices.choose(4) {
        0 => walk_of::<B, f32, f32, f32>(choices),
        1 => walk_of::<B, bf16, bf16, f32>(choices),
        2 => walk_of::<B, f16, f16, f16>(choices),
        _ => walk_of::<B, f32, bf16, bf16>(choices),
    }
}

fn walk_of<B, T, W, G>(choices: &mut Choices<'_>)
where
    B: HostBackend,
    T: Element + Sentinel,
    W: Element + Sentinel,
    G: Element + Sentinel,
{
    choices.calls_of(B::VERBS, &["check_linear", "linear_token_log_probs", "linear_token_log_probs_backward"]);
    choices.calls(&["data/head::Hidden::new", "data/head::Hidden::with_scored_rows"]);
    let count = choices.of(4, &[0, 1]);
    let case = Case::<T, W>::choose(choices, count);
    let options = settings::logit_options(choices);
    let backend = B::choose(choices);
    let kinds = case.kinds(&options);
    let head = case.head();

    let mut outputs = Outputs::choose(choices, count);
    let short = usize::from(count > 0 && choices.yes());
    let targets = &case.targets[..count - short];
    // Hidden states of another size than the head's.
    let wide = choices.yes();
    let other = vec![T::from_f32(1.0); count * (SIZE + 1)];
    let states = if wide { Matrix::new(&other, SIZE + 1).expect("rows") } else { case.hidden() };
    let (hidden, beyond) = scored(choices, &states, targets);
    let of_inputs = wide || beyond || short > 0 || !are_columns(targets, VOCAB);
    assert_eq!(backend.check_linear(&hidden, &head, &targets.into()).is_err(), of_inputs);
    let mut products = Kept::choose(choices, most_scored(&hidden), W::DTYPE);
    let refused = of_inputs || !outputs.fit(count) || !products.fit(most_scored(&hidden), W::DTYPE, true);
    let narrow = choices.yes();
    let views = LinearOutputs {
        rows: outputs.views(),
        unit_gradients: products.units.as_deref_mut(),
        logit_gradients: products.words.as_deref_mut(),
    };
    let result = if narrow {
        backend.linear_token_log_probs(hidden, &head, &rows::narrow(targets), &options, views)
    } else {
        backend.linear_token_log_probs(hidden, &head, targets, &options, views)
    };
    if result.is_err() {
        assert!(products.units.iter().flatten().all(|number| *number == f32::MAX), "written");
        assert!(products.words.iter().flatten().all(|word| *word == u32::MAX), "written");
    }
    if !outputs.check(result, refused, &kinds, VOCAB) {
        return;
    }

    let upstream = token_log_prob::Upstream::choose(choices, count);
    let mut states = outputs.states.get().to_vec();
    states.resize(choices.length(count), SoftmaxState::default());
    let kept = outputs.entropies.as_ref().map(Guarded::get).filter(|_| !choices.yes());
    let mut gradients = Gradients::<T, G>::choose(choices, count);
    let refused = states.len() != count
        || !upstream.fit(count)
        || !gradients.fit(count)
        || (upstream.entropies.is_some() && kept.is_none());
    let saved = SavedLinear {
        rows: SavedRows { states: &states, entropies: kept },
        unit_gradients: products.units.as_deref(),
        logit_gradients: products.words.as_deref(),
    };
    let matrix = case.hidden();
    let (hidden, beyond) = scored(choices, &matrix, &case.targets);
    let refused = refused || beyond || !products.fit(most_scored(&hidden), W::DTYPE, false);
    let result = backend.linear_token_log_probs_backward(
        hidden,
        &head,
        &case.targets,
        &options,
        saved,
        &upstream.views(),
        gradients.views(),
    );
    match result {
        Err(error) => {
            assert!(refused, "refused: {error:?}");
            assert!(!matches!(error, Error::EntropiesNotKept) || kept.is_none());
            gradients.untouched();
        }
        Ok(()) => {
            assert!(!refused, "accepted");
            let of_rows: Vec<Upstream> = (0..count).map(|row| of_row(&upstream, row, &options)).collect();
            gradients.check(&case, &kinds, &of_rows);
        }
    }
}

/// Hidden states, and whether more of their rows are scored than is said.
pub(crate) fn scored<'m, 'd, T: Element>(
    choices: &mut Choices<'_>,
    states: &'m Matrix<'d, T>,
    targets: &[i64],
) -> (Hidden<'m, 'd, T>, bool) {
    let scored = targets.iter().filter(|target| **target >= 0).count();
    match choices.of(None, &[Some(scored), Some(scored.wrapping_sub(1)), Some(usize::MAX), Some(0), Some(scored + 1)]) {
        None => (Hidden::new(states), false),
        Some(said) => (Hidden::new(states).with_scored_rows(said), said < scored),
    }
}

pub(crate) fn of_row(upstream: &token_log_prob::Upstream, row: usize, options: &LogitOptions) -> Upstream {
    let of_entropy = upstream.entropies.as_ref().map_or(0.0, |entropies| entropies[row]);
    if !upstream.log_probs[row].is_finite() || !of_entropy.is_finite() {
        return Upstream::NotFinite;
    }
    match upstream.largest(row, VOCAB, options) {
        // What overflows on the way is not promised, but that it stays with its row.
        size if size > 1e37 => Upstream::Any,
        size => Upstream::UpTo(size),
    }
}
