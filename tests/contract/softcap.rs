//! Softcaps: tanh has another form beyond the cap than up to it, and which of the two a logit takes must follow from the
//! logit alone.

use crate::token_log_prob_precision::{Shares, check_rows};
use exo_kernels::{Element, LogitOptions};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::adversarial::Row;
use support::backend::{Rows, TestBackend, on_every_training_backend};

on_every_training_backend!(
    f32_around_the_cap_is_within_bounds,
    f16_around_the_cap_is_within_bounds,
    bf16_around_the_cap_is_within_bounds,
    gradients_of_f32_do_not_depend_on_other_columns,
    gradients_of_f16_do_not_depend_on_other_columns,
    gradients_of_bf16_do_not_depend_on_other_columns,
    a_sum_does_not_depend_on_columns_that_add_nothing,
    nan_and_infinity_leave_no_softmax,
);

/// Lanes and warps with a rest, and more than one step of a block of threads in every type.
const VOCABULARIES: (&[usize], &[usize]) = (&[1, 33, 9001], &[33, 9001]);

/// Temperature and softcap, to the ends of both.
const SETTINGS: &[(f64, f64)] = &[(1.0, 30.0), (0.7, 2.5), (3e-3, 0.5), (200.0, 50.0), (1e-30, 1e-30), (2e29, 1e30)];

/// Rows are checked with the logits that the options are made for, so f16 takes the caps that it has numbers around.
const SETTINGS_OF_F16: &[(f64, f64)] = &[(1.0, 30.0), (0.7, 2.5), (3e-3, 0.5), (200.0, 50.0)];

fn options(temperature: f64, softcap: f64) -> LogitOptions {
    LogitOptions::default().with_temperature(temperature).and_then(|o| o.with_softcap(softcap)).expect("in range")
}

/// The neighbours of a number in a type: the next one up, and the next one down, of positive normal numbers.
fn neighbours<T: Element>(value: f32) -> [f32; 2] {
    let step = T::UNIT_ROUNDOFF as f32;
    [value * (1.0 + 2.0 * step), value * (1.0 - 2.0 * step)].map(|value| T::from_f32(value).to_f32())
}

/// What is near the cap, at zero and at the ends of the type, each with both signs.
fn special<T: Element>(softcap: f32) -> Vec<f32> {
    let cap = T::from_f32(softcap).to_f32();
    let mut sizes = vec![cap, 0.0, T::SMALLEST as f32, 100.0 * T::SMALLEST as f32, 1e-3 * cap, 0.6 * cap, 9.0 * cap];
    sizes.extend(neighbours::<T>(cap));
    sizes.extend(neighbours::<T>(0.999 * cap));
    sizes.extend([40.0 * cap, f32::MAX].into_iter().filter(|&size| T::from_f32(size).to_f32().is_finite()));
    sizes.into_iter().flat_map(|size| [size, -size]).collect()
}

fn rows<T: Element>(vocab: usize, softcap: f32) -> Vec<Row<T>> {
    let mut random = StdRng::seed_from_u64(vocab as u64);
    let mut within =
        |share: f32| -> Vec<f32> { (0..vocab).map(|_| random.random_range(-1.0f32..1.0) * share * softcap).collect() };
    let special = special::<T>(softcap);
    let cycle: Vec<f32> = special.iter().copied().cycle().take(vocab).collect();
    let mut excluded = cycle.clone();
    excluded.iter_mut().skip(1).step_by(7).for_each(|x| *x = f32::NEG_INFINITY);
    let mut sparse = within(1.0);
    for (index, &value) in special.iter().enumerate() {
        sparse[(index * 613 + 7) % vocab] = value;
    }
    let mut lonely = within(0.99);
    lonely[vocab / 2] = 1.5 * softcap;
    let beyond = within(1.0).into_iter().map(|x| x + x.signum() * softcap).collect();
    [("within", within(1.0)), ("cycle", cycle), ("excluded", excluded), ("sparse", sparse), ("lonely", lonely)]
        .into_iter()
        .chain([("beyond", beyond)])
        .map(|(name, values)| {
            let logits = values.iter().map(|&x| T::from_f32(x)).collect();
            Row { name, logits, target: vocab / 2 }
        })
        .collect()
}

fn within_bounds<B: TestBackend, T: Element>(backend: &B, settings: &[(f64, f64)]) {
    for backend in backend.variants() {
        let mut shares = Shares::default();
        for &vocab in B::pick(VOCABULARIES.0, VOCABULARIES.1) {
            for &(temperature, softcap) in settings {
                let rows = rows::<T>(vocab, softcap as f32);
                check_rows(&backend, &rows, &options(temperature, softcap), &mut shares);
            }
        }
        println!("{} {:?} {shares:.3?}", backend.name(), T::DTYPE);
    }
}

fn f32_around_the_cap_is_within_bounds(backend: &impl TestBackend) {
    within_bounds::<_, f32>(backend, SETTINGS);
}

fn f16_around_the_cap_is_within_bounds(backend: &impl TestBackend) {
    within_bounds::<_, f16>(backend, SETTINGS_OF_F16);
}

fn bf16_around_the_cap_is_within_bounds(backend: &impl TestBackend) {
    within_bounds::<_, bf16>(backend, SETTINGS);
}

/// The gradient of a column follows from its logit and the saved state: with the same state, other logits elsewhere change
/// none of its bits. They are in the same vectors, lanes and warps, and some are beyond the cap.
fn gradients_do_not_depend_on_other_columns<B: TestBackend, T: Element>(backend: &B) {
    let (vocab, softcap) = (9001, 30.0f32);
    let options = options(1.0, softcap.into());
    let base = &rows::<T>(vocab, softcap)[0];
    let others = [31.0, -300.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 29.0].map(T::from_f32);
    for backend in backend.variants() {
        let packed = Rows::one(&base.logits, base.target);
        let forward = backend.forward(&packed, &options, true);
        for entropy in [None, Some(0.1)] {
            let of_entropies = entropy.map(|e| vec![e]);
            let run = |logits: &[T]| {
                let upstream = (&[0.7f32][..], of_entropies.as_deref());
                let gradient = backend.backward(&Rows::one(logits, base.target), &options, &forward, upstream, false);
                gradient.iter().map(|value| value.to_f32().to_bits()).collect::<Vec<_>>()
            };
            let expected = run(&base.logits);
            for other in others {
                // One in all, one in every warp's share, one in nearly every vector.
                for (first, step) in [(5000, vocab), (3, 257), (1, 9)] {
                    let replaced = |column: usize| column >= first && (column - first).is_multiple_of(step);
                    let mut logits = base.logits.clone();
                    (0..vocab).filter(|&column| replaced(column)).for_each(|column| logits[column] = other);
                    let found = run(&logits);
                    for column in (0..vocab).filter(|&column| !replaced(column)) {
                        let name = backend.name();
                        assert_eq!(
                            found[column], expected[column],
                            "{column} with {other:?}, {step}, {entropy:?} {name}"
                        );
                    }
                }
            }
        }
    }
}

fn gradients_of_f32_do_not_depend_on_other_columns(backend: &impl TestBackend) {
    gradients_do_not_depend_on_other_columns::<_, f32>(backend);
}

fn gradients_of_f16_do_not_depend_on_other_columns(backend: &impl TestBackend) {
    gradients_do_not_depend_on_other_columns::<_, f16>(backend);
}

fn gradients_of_bf16_do_not_depend_on_other_columns(backend: &impl TestBackend) {
    gradients_do_not_depend_on_other_columns::<_, bf16>(backend);
}

/// At c/T = 300 a logit of −0.8 c has the probability 0, and so have −2 c and −inf: whichever of them is there, the other
/// columns' sum is the same to the last bit.
fn a_sum_does_not_depend_on_columns_that_add_nothing(backend: &impl TestBackend) {
    let (vocab, softcap) = (9001, 30.0f32);
    let options = options(0.1, softcap.into());
    let mut logits: Vec<f32> = (0..vocab).map(|j| 0.7 * softcap + 1e-3 * ((j * 7919) % 1013) as f32).collect();
    let nothing: Vec<usize> = (11..vocab).step_by(300).collect();
    for backend in backend.variants() {
        let mut run = |value: f32| {
            for &column in &nothing {
                logits[column] = value;
            }
            let forward = backend.forward(&Rows::one(&logits, 4), &options, true);
            let state = forward.states[0];
            [forward.log_probs[0], state.r, state.s, forward.entropies[0]].map(f32::to_bits)
        };
        let expected = run(-0.8 * softcap);
        assert!(f32::from_bits(expected[0]) < -5.0, "something was computed");
        for value in [-2.0 * softcap, -softcap, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(run(value), expected, "{value} {}", backend.name());
        }
    }
}

/// Beside logits of every size, in any place.
fn nan_and_infinity_leave_no_softmax(backend: &impl TestBackend) {
    let vocab = 9001;
    let mut all: Vec<bf16> = Vec::new();
    let places = [0, 5, 31, 4500, vocab - 1];
    for row in &rows::<bf16>(vocab, 30.0)[..2] {
        for bad in [f32::NAN, f32::INFINITY] {
            for place in places {
                let start = all.len();
                all.extend(&row.logits);
                all[start + place] = bf16::from_f32(bad);
            }
        }
    }
    let count = all.len() / vocab;
    let packed = Rows::new(all, vec![17; count], vocab);
    for backend in backend.variants() {
        let forward = backend.forward(&packed, &options(1.0, 30.0), true);
        for row in 0..count {
            assert!(forward.log_probs[row].is_nan(), "row {row} {}", backend.name());
            assert!(forward.states[row].s.is_nan(), "row {row} {}", backend.name());
        }
        // Counted on a device, which is what a caller is to see.
        let _ = backend.found();
    }
}
