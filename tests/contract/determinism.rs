//! The bits of a row's result depend on that row alone: not on N, on its place, on its address, on the number of
//! threads, on whether the entropy was asked for, or on where the gradient goes.

use exo_kernels::{Cpu, Element, LogitOptions};
use half::{bf16, f16};
use support::adversarial::{Row, adversarial};
use support::backend::{Rows, TestBackend, on_every_backend};

on_every_backend!(
    rows_of_f32_do_not_depend_on_their_surroundings,
    rows_of_f16_do_not_depend_on_their_surroundings,
    rows_of_bf16_do_not_depend_on_their_surroundings,
    asking_for_the_entropy_changes_no_other_bit,
);

/// Below and above the slice of 32768 columns in which a row is divided between threads or blocks.
const VOCABULARIES: ([usize; 4], [usize; 4]) = ([1, 33, 2049, 70_001], [1, 33, 2049, 33_001]);

/// Elements before the first row, elements between rows, whether the gradient goes over the logits: every alignment that
/// an element of 2 or 4 bytes can have in 16.
const PLACES: [(usize, usize, bool); 9] = [
    (0, 0, true),
    (1, 3, false),
    (3, 1, true),
    (2, 3, false),
    (4, 4, true),
    (5, 0, false),
    (6, 2, true),
    (7, 9, false),
    (8, 7, true),
];
/// Of which so many are tried with the largest vocabulary.
const PLACES_OF_LARGE: usize = 3;

/// Everything that the stage computes, as bits.
#[derive(Debug, Clone, PartialEq)]
struct Bits {
    log_probs: Vec<u32>,
    states: Vec<(u32, u32)>,
    entropies: Vec<u32>,
    gradient: Vec<u32>,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Runs forward and backward over rows of one vocabulary, `padding` elements between them, the first at element `start`.
fn run<T: Element>(
    backend: &impl TestBackend,
    rows: &[Row<T>],
    options: &LogitOptions,
    (start, padding, in_place): (usize, usize, bool),
) -> Bits {
    let (vocab, n) = (rows[0].logits.len(), rows.len());
    let logits = rows.iter().flat_map(|row| row.logits.iter().copied()).collect();
    let packed = Rows::new(logits, rows.iter().map(|row| row.target as i64).collect(), vocab);
    let placed = packed.moved(start, padding, T::NAN);
    let forward = backend.forward(&placed, options, true);
    let g: Vec<f32> = (0..n).map(|row| 0.3 - 0.07 * (row % 5) as f32).collect();
    let e = vec![0.02; n];
    let gradient = backend.backward(&placed, options, &forward, (&g, Some(&e)), in_place);
    for (index, value) in gradient.iter().enumerate() {
        let column = index.checked_sub(start).map(|index| index % (vocab + padding));
        if column.is_none_or(|column| column >= vocab) {
            assert!(value.to_f32().is_nan(), "an element beside the rows was written");
        }
    }
    Bits {
        log_probs: bits(&forward.log_probs),
        states: forward.states.iter().map(|state| (state.r.to_bits(), state.s.to_bits())).collect(),
        entropies: bits(&forward.entropies),
        gradient: (0..n).flat_map(|row| placed.row(&gradient, row)).map(|value| value.to_f32().to_bits()).collect(),
    }
}

const PACKED: (usize, usize, bool) = (0, 0, false);

/// Row `index` of the results of many. Its coefficient must be the one it has alone.
fn assert_rows_alone<T: Element>(backend: &impl TestBackend, rows: &[Row<T>], options: &LogitOptions, together: &Bits) {
    let vocab = rows[0].logits.len();
    for index in (0..rows.len()).step_by(5) {
        let alone = run(backend, &rows[index..=index], options, PACKED);
        let name = rows[index].name;
        assert_eq!(alone.log_probs[0], together.log_probs[index], "{name}");
        assert_eq!(alone.states[0], together.states[index], "{name}");
        assert_eq!(alone.entropies[0], together.entropies[index], "{name}");
        assert!(alone.gradient == together.gradient[index * vocab..(index + 1) * vocab], "{name}: gradient");
    }
}

fn options() -> [LogitOptions; 2] {
    let plain = LogitOptions::default().with_temperature(0.8).expect("valid");
    [plain, plain.with_softcap(30.0).expect("valid")]
}

fn check<B: TestBackend, T: Element>(backend: &B) {
    for backend in backend.variants() {
        for vocab in B::pick(VOCABULARIES.0, VOCABULARIES.1) {
            let rows = adversarial::<T>(vocab, 11);
            let places = if vocab > 32_768 { PLACES_OF_LARGE } else { PLACES.len() };
            for options in options() {
                let first = run(&backend, &rows, &options, PACKED);
                assert_rows_alone(&backend, &rows, &options, &first);
                for place in &PLACES[..places] {
                    assert!(first == run(&backend, &rows, &options, *place), "{place:?} V={vocab} {}", backend.name());
                }
            }
        }
    }
}

fn rows_of_f32_do_not_depend_on_their_surroundings(backend: &impl TestBackend) {
    check::<_, f32>(backend);
}

fn rows_of_f16_do_not_depend_on_their_surroundings(backend: &impl TestBackend) {
    check::<_, f16>(backend);
}

fn rows_of_bf16_do_not_depend_on_their_surroundings(backend: &impl TestBackend) {
    check::<_, bf16>(backend);
}

fn asking_for_the_entropy_changes_no_other_bit(backend: &impl TestBackend) {
    let rows = adversarial::<f32>(5000, 5);
    let logits = rows.iter().flat_map(|row| row.logits.iter().copied()).collect();
    let packed = Rows::new(logits, rows.iter().map(|row| row.target as i64).collect(), 5000);
    for options in options() {
        let run = |entropies| {
            let forward = backend.forward(&packed, &options, entropies);
            let states: Vec<_> = forward.states.iter().map(|state| [state.r.to_bits(), state.s.to_bits()]).collect();
            (bits(&forward.log_probs), states)
        };
        assert!(run(false) == run(true), "{options:?}");
    }
}

/// The processor's own: in pools of any size.
#[test]
fn the_number_of_threads_changes_no_bit() {
    fn check<T: Element>(cpu: Cpu) {
        for vocab in VOCABULARIES.0 {
            let rows = adversarial::<T>(vocab, 11);
            for options in options() {
                let first = run(&cpu, &rows, &options, PACKED);
                for threads in [1, 2, 3, 7] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                    let there = pool.install(|| run(&cpu, &rows, &options, (0, 0, threads % 2 == 0)));
                    assert!(first == there, "{threads} threads, V={vocab}, {}", cpu.name());
                }
            }
        }
    }
    for cpu in Cpu::default().variants() {
        check::<f32>(cpu);
        check::<f16>(cpu);
        check::<bf16>(cpu);
    }
}
