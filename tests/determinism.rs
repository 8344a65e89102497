//! The bits of a row's result depend on that row alone: not on N, on its place, on its address, on the number of
//! threads, on whether the entropy was asked for, or on where the gradient goes.

#[path = "support/rows.rs"]
mod rows;

use exo_kernels::cpu::InstructionSet;
use exo_kernels::{
    Cpu, Element, LogitOptions, Logits, LogitsMut, RowGradients, SavedRows, SoftmaxState, TokenLogProbs,
};
use half::{bf16, f16};
use rows::{Row, adversarial};

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

/// Runs forward and backward over rows of one vocabulary, `stride` elements apart, the first at element `start`.
fn run<T: Element>(
    cpu: Cpu,
    rows: &[Row<T>],
    options: &LogitOptions,
    start: usize,
    padding: usize,
    in_place: bool,
) -> Bits {
    let (vocab, n) = (rows[0].logits.len(), rows.len());
    let stride = vocab + padding;
    let mut data = vec![T::NAN; start + n * stride];
    for (row, place) in rows.iter().zip(data[start..].chunks_mut(stride)) {
        place[..vocab].copy_from_slice(&row.logits);
    }
    let targets: Vec<i64> = rows.iter().map(|row| row.target as i64).collect();
    let (mut log_probs, mut entropies) = (vec![0.0; n], vec![0.0; n]);
    let mut states = vec![SoftmaxState::default(); n];
    let logits = Logits::strided(&data[start..], n, vocab, stride).expect("fits");
    let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: Some(&mut entropies) };
    cpu.token_log_probs(logits, &targets, options, outputs).expect("forward");

    let g: Vec<f32> = (0..n).map(|row| 0.3 - 0.07 * (row % 5) as f32).collect();
    let e = vec![0.02; n];
    let saved = SavedRows { states: &states, entropies: Some(&entropies) };
    let gradients = RowGradients { log_probs: &g, entropies: Some(&e) };
    let gradient: Vec<T> = if in_place {
        let view = LogitsMut::strided(&mut data[start..], n, vocab, stride).expect("fits");
        cpu.token_log_probs_backward_in_place(view, &targets, options, saved, gradients).expect("backward");
        data[start..].to_vec()
    } else {
        let mut gradient = vec![T::NAN; n * stride];
        let view = LogitsMut::strided(&mut gradient, n, vocab, stride).expect("fits");
        cpu.token_log_probs_backward(logits, &targets, options, saved, gradients, view).expect("backward");
        gradient
    };
    for row in gradient.chunks(stride) {
        assert!(row[vocab..].iter().all(|padding| padding.to_f32().is_nan()), "the columns beyond V were written");
    }
    Bits {
        log_probs: bits(&log_probs),
        states: states.iter().map(|state| (state.r.to_bits(), state.s.to_bits())).collect(),
        entropies: bits(&entropies),
        gradient: gradient.chunks(stride).flat_map(|row| &row[..vocab]).map(|value| value.to_f32().to_bits()).collect(),
    }
}

fn one_row<T: Element>(cpu: Cpu, row: &Row<T>, options: &LogitOptions) -> Bits {
    run(cpu, std::slice::from_ref(row), options, 0, 0, false)
}

/// Row `index` of the results of many. Its coefficient must be the one it has alone.
fn assert_rows_alone<T: Element>(cpu: Cpu, rows: &[Row<T>], options: &LogitOptions, together: &Bits) {
    let vocab = rows[0].logits.len();
    for index in (0..rows.len()).step_by(5) {
        let alone = one_row(cpu, &rows[index], options);
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

fn check<T: Element>(cpu: Cpu) {
    // Below and above the slice of 32768 columns in which a row is divided between threads.
    for vocab in [1, 33, 2049, 70_001] {
        let rows = adversarial::<T>(vocab, 11);
        for options in options() {
            let first = run(cpu, &rows, &options, 0, 0, false);
            assert_rows_alone(cpu, &rows, &options, &first);
            // One more row before and after, odd strides and addresses, in place.
            for (start, padding, in_place) in [(0, 0, true), (1, 3, false), (3, 1, true)] {
                assert!(
                    first == run(cpu, &rows, &options, start, padding, in_place),
                    "{start} {padding} {in_place} V={vocab}"
                );
            }
            for threads in [1, 2, 3, 7] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let there = pool.install(|| run(cpu, &rows, &options, 0, 0, threads % 2 == 0));
                assert!(first == there, "{threads} threads, V={vocab}");
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_surroundings() {
    for set in InstructionSet::ALL {
        match Cpu::with_instruction_set(set) {
            Ok(cpu) => {
                check::<f32>(cpu);
                check::<f16>(cpu);
                check::<bf16>(cpu);
            }
            Err(error) => println!("NOT RUN: {error}"),
        }
    }
}

#[test]
fn asking_for_the_entropy_changes_no_other_bit() {
    let cpu = Cpu::default();
    for options in options() {
        for row in adversarial::<f32>(5000, 5) {
            let logits = Logits::new(&row.logits, 5000).expect("one row");
            let targets = [row.target as u32];
            let run = |entropies: Option<&mut [f32]>| {
                let (mut log_prob, mut state) = ([0.0f32], [SoftmaxState::default()]);
                let outputs = TokenLogProbs { log_probs: &mut log_prob, states: &mut state, entropies };
                cpu.token_log_probs(logits, &targets, &options, outputs).expect("forward");
                (log_prob[0].to_bits(), state[0].r.to_bits(), state[0].s.to_bits())
            };
            assert_eq!(run(None), run(Some(&mut [0.0])), "{}", row.name);
        }
    }
}
