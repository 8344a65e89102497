//! `PreferenceLoss` on CUDA, what is its own beside the contracts that all backends share: its stages are those that
//! `golden.rs` holds to their bounds, put together without a bit of difference; rewards on the device; what only the
//! device can see.

use cudarc::driver::CudaSlice;
use cudarc::driver::DeviceRepr;
use exo_kernels::Element;
use exo_kernels::cuda::{Cuda, DeviceRewards, Matrix, MatrixMut, Reference, Rewards};
use exo_kernels::{Batch, Betas, Error, LossOptions, Objective, PreferenceLoss};
use golden::{Fixture, StoredLogits, golden_folder};
use support::backend::TestBackend;
use support::device::{self, download, upload};

fn compare_composition<T: Element + DeviceRepr + PartialEq>(name: &str, fixture: &Fixture, values: &[T], cuda: &Cuda) {
    let stages = golden::Stages::new(cuda.clone(), Cuda::ARITHMETIC).computed(fixture);
    let mut loss = PreferenceLoss::new(cuda.clone(), fixture.options);
    let logits = upload(cuda, values);
    let (targets, reference) = (upload(cuda, &fixture.targets), upload(cuda, &fixture.reference));
    let count = fixture.targets.len();
    let mut gradients = upload(cuda, values);
    let mut forward = None;
    // Twice: the workspace of the first step is the second's.
    for _ in 0..2 {
        let view = Matrix::new(logits.slice(..values.len()).into(), fixture.vocab).expect("rows");
        let reference = Reference::PerToken(reference.slice(..count).into());
        let step = loss
            .forward(&view, targets.slice(..count), &fixture.batch, &reference, fixture.rewards.as_slice())
            .expect("forward");
        let out = MatrixMut::new(gradients.slice_mut(..values.len()).into(), fixture.vocab).expect("rows");
        loss.backward(&step, &view, out).expect("backward");
        forward = Some(step);
        let report = loss.unchecked_report().expect("report");
        assert_eq!(report.group_losses, stages.groups.losses, "{name}: group losses");
        let beta = fixture.options.objective().beta_policy();
        let implicit: Vec<f64> = stages.log_ratios.iter().map(|log_ratio| beta * log_ratio).collect();
        assert_eq!(report.implicit_rewards, implicit, "{name}: implicit rewards");
        assert_eq!(report.scored_rows, fixture.targets.iter().filter(|target| **target >= 0).count(), "{name}");
    }
    let computed = download(cuda, &gradients);
    let of_rows =
        fixture.gradient.rows.iter().flat_map(|row| &computed[row * fixture.vocab..(row + 1) * fixture.vocab]);
    let of_rows: Vec<u64> = of_rows.map(|value| f64::from(value.to_f32()).to_bits()).collect();
    let expected: Vec<u64> = stages.gradient.iter().map(|value| value.to_bits()).collect();
    assert_eq!(of_rows, expected, "{name}: gradient");

    let mut in_place = upload(cuda, values);
    let view = MatrixMut::new(in_place.slice_mut(..values.len()).into(), fixture.vocab).expect("rows");
    let step = forward.expect("a forward pass").with_moved_inputs();
    loss.backward_in_place(step, view).expect("backward in place");
    let bits = |values: Vec<T>| values.iter().map(|value| value.to_f32().to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(download(cuda, &in_place)), bits(computed), "{name}: in place");
}

#[test]
fn the_loss_is_its_stages() {
    let cuda = device::cuda();
    let mut files: Vec<_> =
        std::fs::read_dir(golden_folder()).expect("tests/golden").map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "safetensors")) {
        let name = file.file_stem().expect("a name").to_string_lossy();
        let fixture = Fixture::read(file).expect("a readable fixture");
        match &fixture.logits {
            StoredLogits::F32(logits) => compare_composition(&name, &fixture, logits, &cuda),
            StoredLogits::F16(logits) => compare_composition(&name, &fixture, logits, &cuda),
            StoredLogits::Bf16(logits) => compare_composition(&name, &fixture, logits, &cuda),
        }
    }
}

const VOCAB: usize = 40;

/// Two groups of two sequences of four scored rows.
struct Small {
    cuda: Cuda,
    logits: CudaSlice<f32>,
    targets: CudaSlice<u32>,
    batch: Batch,
    rewards: [f64; 4],
}

impl Small {
    fn new() -> Self {
        let cuda = device::cuda();
        let logits: Vec<f32> = (0..16 * VOCAB).map(|i| ((i * 37) % 101) as f32 * 0.05).collect();
        let targets: Vec<u32> = (0..16).map(|row| (row * 7) % VOCAB as u32).collect();
        Self {
            logits: upload(&cuda, &logits),
            targets: upload(&cuda, &targets),
            cuda,
            batch: Batch::new(&[0u32, 4, 8, 12, 16], &[0u32, 2, 4]).expect("offsets"),
            rewards: [1.0, -0.5, 0.25, 2.0],
        }
    }
}

fn exo(beta_policy: f64) -> LossOptions {
    Objective::exo(Betas { policy: beta_policy, reward: 0.5 }).expect("betas").into()
}

#[test]
fn what_only_the_device_can_see_comes_out_of_the_report() {
    let small = Small::new();
    let mut loss = PreferenceLoss::new(small.cuda.clone(), exo(0.5));
    let view = Matrix::new(small.logits.as_view().into(), VOCAB).expect("rows");
    let none = Reference::None;

    let mut ids: Vec<u32> = vec![1; 16];
    (ids[6], ids[9]) = (VOCAB as u32, 1000);
    let ids = upload(&small.cuda, &ids);
    loss.forward(&view, &ids, &small.batch, &none, &small.rewards).expect("forward");
    let found = loss.report().expect_err("targets beyond the vocabulary");
    assert_eq!(found, Error::DeviceTarget { row: 6, count: 2, vocab: VOCAB });

    let mut values = vec![-1.0_f32; 16];
    values[13] = f32::INFINITY;
    let values = upload(&small.cuda, &values);
    let reference = Reference::PerToken(values.as_view().into());
    loss.forward(&view, &small.targets, &small.batch, &reference, &small.rewards).expect("forward");
    let found = loss.report().expect_err("an infinite reference");
    assert!(matches!(found, Error::NotFinite { what: "reference log-prob", sequence: 3, .. }), "{found}");
}

/// Rewards that a reward model has left on the device give the bits of the host's.
#[test]
fn rewards_on_the_device_are_those_of_the_host() {
    let small = Small::new();
    let view = Matrix::new(small.logits.as_view().into(), VOCAB).expect("rows");
    let offsets = [0.5, -0.25, 1.5, 0.0];
    let in_f32 = small.rewards.map(|reward| reward as f32);
    let (f64s, f32s) = (upload(&small.cuda, &small.rewards), upload(&small.cuda, &in_f32));
    let proposal = upload(&small.cuda, &offsets);
    let mut loss = PreferenceLoss::new(small.cuda.clone(), exo(0.5));
    let mut report = |rewards: Rewards<'_>| {
        loss.forward(&view, &small.targets, &small.batch, &Reference::None, rewards).expect("forward");
        loss.report().expect("report").clone()
    };
    let expected = report(Rewards::from(&small.rewards));
    assert_eq!(report(Rewards::from(&f64s)), expected, "f64");
    assert_eq!(report(Rewards::from(f32s.as_view())), expected, "f32");
    let corrected = report(exo_kernels::Rewards::from(&small.rewards).with_proposal(&offsets).into());
    assert_ne!(corrected.loss, expected.loss);
    let on_device = DeviceRewards::from(f32s.as_view()).with_proposal(proposal.as_view().into());
    assert_eq!(report(on_device.into()), corrected, "with a proposal");
}

/// What is wrong with them comes out of the report; what the host can see of them is refused at once.
#[test]
fn bad_rewards_on_the_device_come_out_of_the_report() {
    let small = Small::new();
    let view = Matrix::new(small.logits.as_view().into(), VOCAB).expect("rows");
    let (targets, none) = (small.targets.as_view(), Reference::None);
    let mut loss = PreferenceLoss::new(small.cuda.clone(), exo(0.5));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let rewards = upload(&small.cuda, &[0.0, 1.0, 2.0, bad]);
        loss.forward(&view, &targets, &small.batch, &none, &rewards).expect("forward");
        let found = loss.report().expect_err("a bad reward");
        assert!(matches!(found, Error::NotFinite { what: "reward", sequence: 3, .. }), "{found}");
    }
    let rewards = upload(&small.cuda, &small.rewards);
    loss.forward(&view, &targets, &small.batch, &none, &rewards).expect("forward");
    loss.report().expect("the next step is clean");

    let refused = loss.forward(&view, &targets, &small.batch, &none, rewards.slice(..3)).expect_err("three rewards");
    assert_eq!(refused, Error::Length { what: "rewards", given: 3, expected: 4 });
    let short = DeviceRewards::from(rewards.as_view()).with_proposal(rewards.slice(1..).into());
    let refused = loss.forward(&view, &targets, &small.batch, &none, short).expect_err("three offsets");
    assert_eq!(refused, Error::Length { what: "proposal offsets", given: 3, expected: 4 });
    let official = Objective::exo_pref_official(0.5).expect("beta");
    let threes = Batch::new(&[0u32, 4, 8, 16], &[0u32, 3]).expect("offsets");
    let mut loss = PreferenceLoss::new(small.cuda.clone(), official);
    let refused = loss.forward(&view, &targets, &threes, &none, rewards.slice(..3)).expect_err("a group of three");
    assert_eq!(refused, Error::PairsOnly { group: 0, size: 3 });
}
