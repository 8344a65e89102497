//! `kernels/log_ratio.cu`, what is its own beside `log_ratio.rs`: all of its outputs, bits that depend on the sequence
//! alone, masked rows that are not there, what is not finite counted.
//!
//! Log-probs here are multiples of 2⁻²⁰ below 8 in size: f32 holds them, and f64 their sums, exactly. So the results
//! must be exact, and any f32 on the way shows.

use super::device::Kernel;
use exo_kernels::cuda::Status;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const STEP: f64 = 1.0 / 1_048_576.0;
const MASKED: i64 = -100;

/// `LogRatio` of `kernels/log_ratio.cu`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Arguments {
    log_probs: u64,
    entropies: u64,
    targets: u64,
    reference_tokens: u64,
    reference_sequences: u64,
    sequence_offsets: u64,
    log_ratios: u64,
    log_prob_sums: u64,
    entropy_sums: u64,
    scored_rows: u64,
    row_sequences: u64,
    row_targets: u64,
    status: u64,
    target_bytes: i32,
    mean: i32,
}

#[derive(Debug, Clone, Default)]
struct Inputs {
    log_probs: Vec<f32>,
    entropies: Option<Vec<f32>>,
    targets: Vec<i64>,
    targets_in_32_bits: bool,
    reference_tokens: Option<Vec<f32>>,
    reference_sequences: Option<Vec<f64>>,
    offsets: Vec<i64>,
    mean: bool,
    shuffle: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
struct Outputs {
    log_ratios: Vec<f64>,
    log_prob_sums: Vec<f64>,
    entropy_sums: Option<Vec<f64>>,
    scored_rows: Vec<i32>,
    row_sequences: Vec<i32>,
    row_targets: Vec<u32>,
    status: Status,
}

/// Log-probs, entropies and per-token references of masked rows are left unwritten: reading one is a fault.
fn rows(kernel: &Kernel, values: Option<&[f32]>, targets: &[i64]) -> u64 {
    let Some(values) = values else { return 0 };
    let address = kernel.output::<f32>(values.len());
    for (row, value) in values.iter().enumerate().filter(|&(row, _)| targets[row] >= 0) {
        kernel.write(address + 4 * row as u64, &[*value]);
    }
    address
}

fn run(inputs: &Inputs) -> Outputs {
    let kernel = Kernel::new("log_ratio", inputs.shuffle);
    let (count, sequences) = (inputs.log_probs.len(), inputs.offsets.len() - 1);
    let ids: Vec<u32> = inputs.targets.iter().map(|&target| target as u32).collect();
    let arguments = Arguments {
        log_probs: rows(&kernel, Some(&inputs.log_probs), &inputs.targets),
        entropies: rows(&kernel, inputs.entropies.as_deref(), &inputs.targets),
        targets: if inputs.targets_in_32_bits { kernel.input(Some(&ids)) } else { kernel.input(Some(&inputs.targets)) },
        reference_tokens: rows(&kernel, inputs.reference_tokens.as_deref(), &inputs.targets),
        reference_sequences: kernel.input(inputs.reference_sequences.as_deref()),
        sequence_offsets: kernel.input(Some(&inputs.offsets)),
        log_ratios: kernel.output::<f64>(sequences),
        log_prob_sums: kernel.output::<f64>(sequences),
        entropy_sums: kernel.output::<f64>(sequences),
        scored_rows: kernel.output::<i32>(sequences),
        row_sequences: kernel.output::<i32>(count),
        row_targets: kernel.output::<u32>(count),
        status: kernel.input(Some(&[Status::CLEAR])),
        target_bytes: if inputs.targets_in_32_bits { 4 } else { 8 },
        mean: i32::from(inputs.mean),
    };
    kernel.launch(sequences, 256, &arguments);
    Outputs {
        log_ratios: kernel.read(arguments.log_ratios, sequences),
        log_prob_sums: kernel.read(arguments.log_prob_sums, sequences),
        entropy_sums: inputs.entropies.as_ref().map(|_| kernel.read(arguments.entropy_sums, sequences)),
        scored_rows: kernel.read(arguments.scored_rows, sequences),
        row_sequences: kernel.read(arguments.row_sequences, count),
        row_targets: kernel.read(arguments.row_targets, count),
        status: kernel.read(arguments.status, 1)[0],
    }
}

fn f32s(steps: &[i64]) -> Vec<f32> {
    steps.iter().map(|&steps| (steps as f64 * STEP) as f32).collect()
}

/// Lengths around a warp, a block, four rows a thread; empty ones; one of masked rows only.
const LENGTHS: [usize; 14] = [4000, 0, 1, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 0, 2500];

struct Sequences {
    log_probs: Vec<i64>,
    references: Vec<i64>,
    entropies: Vec<i64>,
    targets: Vec<i64>,
    offsets: Vec<i64>,
}

fn sequences() -> Sequences {
    let mut random = StdRng::seed_from_u64(17);
    let mut offsets = vec![0i64];
    for length in LENGTHS {
        offsets.push(offsets[offsets.len() - 1] + length as i64);
    }
    let count = offsets[offsets.len() - 1] as usize;
    let mut steps = || -> Vec<i64> { (0..count).map(|_| -random.random_range(0..1 << 23)).collect() };
    let (log_probs, references, entropies) = (steps(), steps(), steps());
    let all_masked = offsets[5] as usize..offsets[6] as usize;
    let targets = (0..count)
        .map(|row| if row % 10 == 3 || all_masked.contains(&row) { MASKED } else { (row % 7) as i64 })
        .collect();
    Sequences { log_probs, references, entropies, targets, offsets }
}

impl Sequences {
    fn inputs(&self) -> Inputs {
        Inputs {
            log_probs: f32s(&self.log_probs),
            targets: self.targets.clone(),
            offsets: self.offsets.clone(),
            ..Inputs::default()
        }
    }

    /// Scored rows and the exact sum of `value` over them, per sequence.
    fn exact(&self, value: impl Fn(usize) -> i64) -> Vec<(usize, f64)> {
        let of = |range: &[i64]| {
            let scored: Vec<usize> =
                (range[0] as usize..range[1] as usize).filter(|&row| self.targets[row] >= 0).collect();
            (scored.len(), scored.iter().map(|&row| value(row)).sum::<i64>() as f64 * STEP)
        };
        self.offsets.windows(2).map(of).collect()
    }
}

/// Ids of 64 bits in 32: the low bits of an id that is no column, or of one that masks its row, may be those of a column.
#[test]
fn targets_are_kept_in_32_bits() {
    let columns = [0, 5, i64::from(i32::MAX) - 1];
    let none = [i64::from(i32::MAX), i64::from(u32::MAX), 1 << 32, (1 << 32) + 5, i64::MAX];
    let masked = [-1, -100, i64::from(i32::MIN), -(1 << 32), 5 - (1 << 33), i64::MIN];
    let targets = [&columns[..], &none, &masked].concat();
    let inputs = Inputs {
        log_probs: vec![-1.0; targets.len()],
        offsets: vec![0, targets.len() as i64],
        targets,
        ..Inputs::default()
    };
    let kept = run(&inputs).row_targets;
    for (row, (kept, id)) in kept.iter().zip(&inputs.targets).enumerate() {
        let expected = if *id < 0 { None } else { Some((*id).min(i64::from(i32::MAX))) };
        assert_eq!((*kept as i32 >= 0).then_some(i64::from(*kept)), expected, "row {row}: {kept:#x} for {id:#x}");
    }
}

#[test]
fn differences_first_then_exact_sums() {
    let sequences = sequences();
    let expected = sequences.exact(|row| sequences.log_probs[row] - sequences.references[row]);
    let log_prob_sums = sequences.exact(|row| sequences.log_probs[row]);
    let entropies = sequences.exact(|row| sequences.entropies[row]);
    for (mean, targets_in_32_bits, shuffle) in
        [(false, false, None), (true, false, Some(1)), (false, true, Some(2)), (true, true, Some(3))]
    {
        let outputs = run(&Inputs {
            reference_tokens: Some(f32s(&sequences.references)),
            entropies: Some(f32s(&sequences.entropies)),
            mean,
            targets_in_32_bits,
            shuffle,
            ..sequences.inputs()
        });
        let rows: Vec<i32> = LENGTHS.iter().enumerate().flat_map(|(i, &length)| vec![i as i32; length]).collect();
        assert_eq!(outputs.row_sequences, rows);
        assert!(outputs.row_targets.iter().zip(&sequences.targets).all(|(kept, id)| match *id {
            ..0 => (*kept as i32) < 0,
            id => i64::from(*kept) == id,
        }));
        assert_eq!(outputs.status, Status::CLEAR);
        for (i, &(scored, sum)) in expected.iter().enumerate() {
            assert_eq!(outputs.log_ratios[i], if mean { sum / scored.max(1) as f64 } else { sum }, "sequence {i}");
            assert_eq!(outputs.scored_rows[i], scored as i32, "sequence {i}");
            assert_eq!(outputs.log_prob_sums[i], log_prob_sums[i].1, "sequence {i}");
            assert_eq!(outputs.entropy_sums.as_ref().map(|sums| sums[i]), Some(entropies[i].1), "sequence {i}");
        }
    }
    assert!(expected[0].1 != 0.0 && expected[1] == (0, 0.0) && expected[5] == (0, 0.0));
}

/// The bits are those that the sequence has alone, with numbers whose sums round.
#[test]
fn bits_depend_on_the_sequence_alone() {
    let mut random = StdRng::seed_from_u64(5);
    let sequences = sequences();
    let mut numbers = || -> Vec<f32> { sequences.targets.iter().map(|_| random.random_range(-20.0..0.0)).collect() };
    let inputs = Inputs {
        log_probs: numbers(),
        reference_tokens: Some(numbers()),
        entropies: Some(numbers()),
        ..sequences.inputs()
    };
    let all = run(&inputs);
    for shuffle in 1..6 {
        assert_eq!(run(&Inputs { shuffle: Some(shuffle), ..inputs.clone() }), all);
    }
    for (i, range) in sequences.offsets.windows(2).enumerate() {
        let range = range[0] as usize..range[1] as usize;
        let of = |values: &[f32]| values[range.clone()].to_vec();
        let alone = run(&Inputs {
            log_probs: of(&inputs.log_probs),
            entropies: inputs.entropies.as_deref().map(of),
            reference_tokens: inputs.reference_tokens.as_deref().map(of),
            targets: inputs.targets[range.clone()].to_vec(),
            offsets: vec![0, range.len() as i64],
            ..inputs.clone()
        });
        assert_eq!(alone.log_ratios[0].to_bits(), all.log_ratios[i].to_bits(), "sequence {i}");
        assert_eq!(alone.log_prob_sums[0].to_bits(), all.log_prob_sums[i].to_bits(), "sequence {i}");
    }
}

/// What a status says of references, with nothing else found.
fn references(status: &Status) -> (usize, Option<usize>) {
    assert_eq!((status.non_finite_rows(), status.bad_targets(), status.minus_infinite_targets()), (0, 0, 0));
    (status.non_finite_references(), status.first_non_finite_reference_sequence())
}

#[test]
fn references_that_are_not_finite_are_counted() {
    let sequences = sequences();
    let mut inputs = Inputs { reference_tokens: Some(f32s(&sequences.references)), ..sequences.inputs() };
    let row = |sequence: usize, row: usize| sequences.offsets[sequence] as usize + row;
    // A NaN row of the policy, two impossible targets, one beside a NaN: the stage before has counted them.
    inputs.log_probs[row(0, 2000)] = f32::NAN;
    inputs.log_probs[row(0, 7)] = f32::NEG_INFINITY;
    inputs.log_probs[row(7, 100)] = f32::NEG_INFINITY;
    let reference = inputs.reference_tokens.as_mut().expect("it was given");
    reference[row(9, 1)] = f32::NAN;
    reference[row(9, 1000)] = f32::NEG_INFINITY;
    reference[row(13, 2)] = f32::INFINITY;
    for shuffle in [None, Some(1), Some(2)] {
        let outputs = run(&Inputs { shuffle, ..inputs.clone() });
        let nan: Vec<usize> = (0..LENGTHS.len()).filter(|&i| outputs.log_ratios[i].is_nan()).collect();
        assert_eq!(nan, [0, 9, 13]);
        assert_eq!(outputs.log_ratios[7], f64::NEG_INFINITY);
        assert_eq!(references(&outputs.status), (3, Some(9)));
    }
    // Per sequence: as on the host, also for a sequence without a scored row.
    let mut sums = vec![-1.0; LENGTHS.len()];
    (sums[1], sums[3]) = (f64::INFINITY, f64::NAN);
    let outputs = run(&Inputs { reference_sequences: Some(sums), ..sequences.inputs() });
    assert_eq!(references(&outputs.status), (2, Some(1)));
    assert!(outputs.log_ratios[1].is_nan() && outputs.log_ratios[3].is_nan() && outputs.log_ratios[2].is_finite());
}
