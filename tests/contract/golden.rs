//! The golden fixtures, on every backend and instruction set, within the bounds of `exo_kernels::reference::bounds`.

mod cuda_linear;

use std::path::PathBuf;

use exo_kernels::cpu::InstructionSet;
use exo_kernels::reference::ReferenceBackend;
use exo_kernels::{Batch, Cpu, Divergence, LossOptions, Matrix, Objective, PreferenceLoss, Reference};
use golden::{Computes, OutputError, Specification, Stages, compare};
use golden::{Fixture, StoredLogits, golden_folder};
use support::backend::{self, TestBackend};

fn fixtures() -> Vec<PathBuf> {
    let folder = golden_folder();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("tests/golden").map(|entry| entry.expect("entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    assert!(files.len() >= 79, "{} fixtures found", files.len());
    files
}

fn stages<B: TestBackend>(backend: B) -> Stages<B> {
    Stages::new(backend, B::ARITHMETIC)
}

fn assert_within(backend: &impl Computes) {
    assert_within_up_to(backend, usize::MAX);
}

/// Over the fixtures of at most this vocabulary; how many these were.
fn assert_within_up_to(backend: &impl Computes, vocab: usize) -> usize {
    let (mut over, mut count) = (Vec::new(), 0);
    for file in fixtures() {
        let fixture = Fixture::read(&file).expect("a readable fixture");
        if fixture.vocab > vocab {
            continue;
        }
        count += 1;
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        for OutputError { output, largest, share } in compare(&fixture, backend).expect("inputs that fit") {
            if share > 1.0 {
                over.push(format!("{name}: {output}: error {largest:e}, {share} of its bound"));
            }
        }
    }
    assert!(over.is_empty(), "over their bounds:\n{}", over.join("\n"));
    count
}

#[test]
fn reference_is_within_bounds() {
    assert_within(&Specification);
}

#[test]
fn cpu_is_within_bounds_on_every_instruction_set() {
    for set in InstructionSet::ALL {
        match Cpu::with_instruction_set(set) {
            Ok(cpu) => assert_within(&stages(cpu)),
            Err(error) => println!("NOT RUN: {error}"),
        }
    }
}

/// All but the four that are of a tokenizer's size, whose identity would take gigabytes.
#[test]
fn the_linear_stage_is_within_bounds() {
    let count = assert_within_up_to(&stages(Cpu::default()).from_hidden(), 2000);
    assert!(count >= 75, "{count} fixtures");
}

/// The specification as a backend: its numbers rounded to f32, through the same verbs.
#[test]
fn the_reference_backend_is_within_bounds() {
    assert_within(&stages(ReferenceBackend));
    let count = assert_within_up_to(&stages(ReferenceBackend).from_hidden(), 100);
    assert!(count >= 60, "{count} fixtures");
}

#[test]
fn cuda_is_within_bounds() {
    assert_within(&stages(backend::cuda()));
}

/// What a loss refuses is refused with the same words, whoever computes: the reference's numbers would be those of
/// another question.
#[test]
fn what_a_loss_refuses_is_refused_by_every_backend() {
    let file = golden_folder().join("matrix-exo-rw-f32.safetensors");
    let right = Fixture::read(&file).expect("a readable fixture");
    let row = right.targets.iter().position(|&target| target >= 0).expect("a scored row");
    let with = |objective| LossOptions::from(objective).with_logits(right.options.logits());
    let spoilers: Vec<Change<'_>> = vec![
        (
            "official preferences of more than a pair",
            Box::new(|fixture| {
                let sequences = fixture.batch.sequences();
                fixture.batch = Batch::new(fixture.batch.sequence_offsets(), &[0, sequences]).expect("one group");
                fixture.options = with(Objective::exo_pref_official(0.5).expect("valid"));
            }),
        ),
        ("a reward of NaN", Box::new(|fixture| fixture.rewards[1] = f32::NAN)),
        ("an infinite reward", Box::new(|fixture| fixture.rewards[1] = f32::INFINITY)),
        (
            "log q of -inf under a reverse KL",
            Box::new(|fixture| {
                fixture.options = with(Objective::distribution(Divergence::ReverseKl, 0.5).expect("valid"));
                fixture.rewards[1] = f32::NEG_INFINITY;
            }),
        ),
        ("a reference of -inf", Box::new(|fixture| fixture.reference[row] = f32::NEG_INFINITY)),
        ("a target beyond the vocabulary", Box::new(|fixture| fixture.targets[row] = fixture.vocab as i64)),
        ("no column", Box::new(|fixture| fixture.vocab = 0)),
    ];
    for (what, spoil) in spoilers {
        let mut wrong = right.clone();
        spoil(&mut wrong);
        let StoredLogits::F32(values) = &wrong.logits else { panic!("the file's type") };
        let forward = || {
            let logits = Matrix::new(values, wrong.vocab)?;
            let mut loss = PreferenceLoss::new(Cpu::default(), wrong.options);
            let reference = Reference::PerToken(&wrong.reference);
            loss.forward(&logits, &wrong.targets, &wrong.batch, &reference, &wrong.rewards).map(|_| ())
        };
        let expected = forward().expect_err(what).to_string();
        let found = [
            compare(&wrong, &stages(Cpu::default())),
            compare(&wrong, &Specification),
            compare(&wrong, &stages(backend::cuda())),
            compare(&wrong, &stages(ReferenceBackend)),
        ];
        for found in found {
            assert_eq!(found.expect_err(what).to_string(), expected, "{what}");
        }
    }
}

/// An output, and what makes its expected value wrong.
type Change<'a> = (&'static str, Box<dyn Fn(&mut Fixture) + 'a>);

/// The comparison itself: an expected value that is off by a little more than its bound must be seen, in every output.
#[test]
fn a_wrong_value_is_over_its_bound() {
    let file = golden_folder().join("matrix-exo-rw-f32.safetensors");
    let right = Fixture::read(&file).expect("a readable fixture");
    let row = right.targets.iter().position(|&target| target >= 0).expect("a scored row");
    let off = |value: &mut f64| *value += 1e-4 * value.abs().max(1.0);
    let changes: Vec<Change<'_>> = vec![
        ("token log-prob", Box::new(|fixture| off(&mut fixture.log_probs[row]))),
        ("log-sum-exp", Box::new(|fixture| off(&mut fixture.log_sum_exps[row]))),
        ("entropy", Box::new(|fixture| off(&mut fixture.entropies[row]))),
        ("log-ratio", Box::new(|fixture| off(&mut fixture.log_ratios[0]))),
        ("group loss", Box::new(|fixture| off(&mut fixture.group_losses[0]))),
        ("loss", Box::new(|fixture| off(&mut fixture.loss))),
        ("sequence gradient", Box::new(|fixture| off(&mut fixture.coefficients[0]))),
        ("logit gradient", Box::new(|fixture| fixture.gradient.values[0] += 1e-5)),
    ];
    for (output, change) in changes {
        let mut wrong = right.clone();
        change(&mut wrong);
        let compare = |fixture: &_| compare(fixture, &stages(Cpu::default())).expect("inputs that fit");
        let errors = compare(&wrong);
        let error = errors.iter().find(|error| error.output == output).expect("the output");
        assert!(!error.is_within(), "{output}: {error:?}");
        assert!(compare(&right).iter().all(OutputError::is_within));
    }
}
