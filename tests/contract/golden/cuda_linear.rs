//! The golden fixtures through the linear stage on CUDA. The hidden states are an identity and the head's weight is the
//! logits, transposed: so products give the logits exactly, the gradient of the weight is that of the logits, and the
//! bounds are those of the stage over logits. Also held against that stage itself, to the sum of both bounds.

use cudarc::driver::DeviceRepr;
use exo_kernels::Element;
use exo_kernels::cuda::Cuda;
use exo_kernels::reference::bounds::{self, Arithmetic};
use exo_kernels::reference::token_log_prob;
use golden::{Fixture, StoredLogits, golden_folder};
use support::backend::{self, Placed, TestBackend};
use support::host_rows::Rows;
use support::linear::Case;
use support::linear::{ALL, Gradients, Wanted, set_chunks};

#[track_caller]
fn hold(what: &str, computed: f64, expected: f64, bound: f64, context: &str) {
    let good = computed == expected || computed.is_nan() && expected.is_nan() || (computed - expected).abs() <= bound;
    assert!(good, "{what} {computed:e}, {expected:e} +- {bound:e} expected: {context}");
}

/// These rows of a fixture, as a case. Masked rows have NaN for their hidden state, as nobody reads it.
fn case<T: Element>(fixture: &Fixture, logits: &[T], rows: &[usize]) -> Case<T, T> {
    let (count, vocab) = (rows.len(), fixture.vocab);
    let number = |value: f32| T::from_f32(value);
    let scored = |row: usize| fixture.targets[row] >= 0;
    let mut hidden = vec![number(0.0); count * count];
    let mut weight = vec![number(0.0); vocab * count];
    for (at, row) in rows.iter().copied().enumerate() {
        if !scored(row) {
            hidden[at * count..(at + 1) * count].fill(T::NAN);
            continue;
        }
        hidden[at * count + at] = number(1.0);
        for column in 0..vocab {
            weight[column * count + at] = logits[row * vocab + column];
        }
    }
    let targets = rows.iter().map(|row| fixture.targets[*row]).collect();
    Case { rows: count, hidden_size: count, vocab, hidden, weight, bias: None, targets }
}

fn check<T: Element + DeviceRepr>(cuda: &Cuda, fixture: &Fixture, logits: &[T], name: &str) {
    let (count, vocab, options) = (fixture.targets.len(), fixture.vocab, fixture.options.logits());
    let sequence =
        |row: usize| fixture.batch.sequence_offsets().iter().take_while(|offset| **offset <= row).count() - 1;
    let of_stage_one = cuda.forward(&Rows::new(logits.to_vec(), fixture.targets.clone(), vocab), &options, true);
    // 0 times an infinity is no 0: rows with one are alone.
    let is_finite = |row: usize| logits[row * vocab..(row + 1) * vocab].iter().all(|logit| logit.to_f32().is_finite());
    let (together, alone): (Vec<usize>, Vec<usize>) =
        (0..count).partition(|row| fixture.targets[*row] < 0 || is_finite(*row));
    for rows in alone.iter().map(std::slice::from_ref).chain([together.as_slice()]).filter(|rows| !rows.is_empty()) {
        let on_device = Placed::new(cuda, &case(fixture, logits, rows));
        let forward = on_device.forward(&options, true);
        let g: Vec<f32> = rows.iter().map(|row| fixture.coefficients[sequence(*row)] as f32).collect();
        let wanted = Wanted { hidden: false, bias: false, ..ALL };
        let gradients: Gradients<T, f32> = on_device.backward(&options, &forward, (&g, None), wanted);
        for (at, row) in rows.iter().copied().enumerate() {
            let context = format!("row {row} of {name}");
            let (log_prob, entropy) = (f64::from(forward.log_probs[at]), f64::from(forward.entropies[at]));
            let Ok(target) = usize::try_from(fixture.targets[row]) else {
                assert_eq!((log_prob, forward.states[at].s, entropy), (0.0, 0.0, 0.0), "{context}");
                continue;
            };
            let of_row = &logits[row * vocab..(row + 1) * vocab];
            let exact = token_log_prob::forward(of_row, target, &options);
            let bound = bounds::row(Arithmetic { additions: 10.0, ..Arithmetic::CUDA }, &exact, &options);
            let other = bounds::row(Arithmetic::CUDA, &exact, &options);
            hold("log-prob", log_prob, fixture.log_probs[row], bound.log_prob, &context);
            hold("entropy", entropy, fixture.entropies[row], bound.entropy, &context);
            let log_sum_exp = forward.states[at].log_sum_exp();
            hold("log-sum-exp", log_sum_exp, fixture.log_sum_exps[row], bound.log_sum_exp, &context);
            let stage_one = f64::from(of_stage_one.log_probs[row]);
            hold("log-prob of both stages", log_prob, stage_one, bound.log_prob + other.log_prob, &context);

            let Some(kept) = fixture.gradient.rows.iter().position(|kept| *kept == row) else { continue };
            let scaled = token_log_prob::scaled_logits(of_row, &options);
            for column in 0..vocab {
                let expected = fixture.gradient.values[kept * vocab + column];
                let g = fixture.coefficients[sequence(row)];
                let logit = f64::from(of_row[column].to_f32());
                let log_p = scaled[column] - exact.log_sum_exp;
                let unrounded = bound.grad_logit(expected, logit, log_p, g, 0.0);
                let bound = unrounded + bounds::rounding(expected.abs() + unrounded, T::UNIT_ROUNDOFF, T::SMALLEST);
                // Values of some fixtures were rounded to f32.
                let bound = bound + if fixture.gradient.rounded { expected.abs() * f32::UNIT_ROUNDOFF } else { 0.0 };
                let computed = f64::from(gradients.weight[column * rows.len() + at]);
                hold("gradient", computed, expected, bound, &format!("column {column}, {context}"));
            }
        }
    }
}

#[test]
fn golden_fixtures_are_within_their_bounds() {
    let cuda = backend::cuda();
    set_chunks(&cuda, 512, 1 << 30);
    let mut count = 0;
    for entry in std::fs::read_dir(golden_folder()).expect("tests/golden") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let fixture = Fixture::read(&path).expect("a readable fixture");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        match &fixture.logits {
            StoredLogits::F32(logits) => check(&cuda, &fixture, logits, &name),
            StoredLogits::F16(logits) => check(&cuda, &fixture, logits, &name),
            StoredLogits::Bf16(logits) => check(&cuda, &fixture, logits, &name),
        }
        count += 1;
    }
    assert!(count >= 79, "{count} fixtures found");
}
