//! The order in which blocks and warps run changes no bit, and row offsets are 64 bits wide. A binary of its own: the
//! settings of softcuda are the process's. On a real device the order is what it is; there the first test runs twice.

use exo_kernels::cuda::{Matrix, MatrixMut, Reference, RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{Backend, Batch, Betas, LogitOptions, Objective, PreferenceLoss, SoftmaxState};
use half::bf16;
use softcuda::Settings;
use support::backend::TestBackend;
use support::device::{self, download, upload};
use support::host_rows::Rows;
use support::turn;

/// Loss, report and gradient of a step whose rows are shared by several blocks.
fn step() -> (Vec<u64>, Vec<u16>) {
    let cuda = device::cuda();
    let vocab = 70_001;
    let logits: Vec<bf16> = (0..6 * vocab).map(|i| bf16::from_f32(((i * 7919) % 1013) as f32 * 0.02)).collect();
    let logits = upload(&cuda, &logits);
    let targets = upload(&cuda, &[5_i64, 70_000, -100, 77, 0, 9]);
    let mut gradients = upload(&cuda, &vec![bf16::NAN; 6 * vocab]);
    let batch = Batch::new(&[0u32, 2, 3, 4, 6], &[0u32, 2, 4]).expect("offsets");
    let objective = Objective::jensen_shannon(Betas { policy: 0.5, reward: 0.5 }).expect("betas");
    let mut loss = PreferenceLoss::new(cuda.clone(), objective).with_entropy(true);
    let view = Matrix::new(logits.as_view().into(), vocab).expect("rows");
    let step = loss.forward(&view, &targets, &batch, &Reference::None, &[1.0, 0.0, -1.0, 0.5]).expect("forward");
    loss.backward(&step, &view, MatrixMut::new(gradients.as_view_mut().into(), vocab).expect("rows"))
        .expect("backward");
    let report = loss.report().expect("report");
    let numbers =
        report.group_losses.iter().chain(&report.implicit_rewards).chain(&report.margins).chain(&report.entropy);
    let numbers = numbers.map(|number| number.to_bits()).collect();
    (numbers, download(&cuda, &gradients).iter().map(|gradient| gradient.to_bits()).collect())
}

#[test]
fn shuffled_blocks_and_warps_give_the_same_bits() {
    let _turn = turn::take();
    let expected = step();
    let Some(control) = softcuda::control() else {
        assert!(step() == expected, "two runs differ");
        println!("NOT RUN with shuffled schedules: this is a real device");
        return;
    };
    for seed in 0..6 {
        let settings = Settings { shuffle: Some(seed), host_threads: 1 + seed as usize % 3, ..Settings::default() };
        control.configure(&settings);
        assert!(step() == expected, "seed {seed} gives other bits");
    }
    control.configure(&Settings::default());
}

/// Two rows more than 2^32 elements apart. softcuda's memory is backed where it is touched; a real device that has less
/// says so.
#[test]
fn rows_may_be_further_apart_than_32_bits_count() {
    let _turn = turn::take();
    let cuda = device::cuda();
    let (vocab, row_stride) = (1000, (1_usize << 32) + 3);
    let values: Vec<bf16> = (0..2 * vocab).map(|i| bf16::from_f32(((i * 31) % 97) as f32 * 0.1)).collect();
    let packed = Rows::new(values.clone(), vec![7, 999], vocab);
    let options = LogitOptions::default();
    let expected = cuda.forward(&packed, &options, false);
    let expected_gradient = cuda.backward(&packed, &options, &expected, (&[1.0, -2.0], None), false);

    // SAFETY: what is read of it is written first.
    let allocated = unsafe { cuda.stream().alloc::<bf16>(row_stride + vocab) };
    let Ok(mut logits) = allocated else {
        assert!(softcuda::control().is_none(), "softcuda has the memory");
        println!("NOT RUN: this device does not have 8.6 GB left");
        return;
    };
    cuda.stream().memcpy_htod(&values[..vocab], &mut logits.slice_mut(..vocab)).expect("upload");
    cuda.stream().memcpy_htod(&values[vocab..], &mut logits.slice_mut(row_stride..)).expect("upload");
    let targets = upload(&cuda, &packed.targets);
    let mut log_probs = upload(&cuda, &[0.0_f32; 2]);
    let mut states = upload(&cuda, &[SoftmaxState::default(); 2]);
    let view = Matrix::strided(logits.as_view().into(), 2, vocab, row_stride).expect("rows");
    let outputs = TokenLogProbs {
        log_probs: log_probs.as_view_mut().into(),
        states: states.as_view_mut().into(),
        entropies: None,
    };
    cuda.token_log_probs(&view, &targets, &options, outputs).expect("forward");
    assert_eq!(download(&cuda, &log_probs), expected.log_probs);
    assert_eq!(download(&cuda, &states), expected.states);

    let upstream = upload(&cuda, &[1.0_f32, -2.0]);
    let saved = SavedRows { states: states.as_view().into(), entropies: None };
    let upstream = RowGradients::PerRow { log_probs: upstream.as_view().into(), entropies: None };
    let view = MatrixMut::strided(logits.as_view_mut().into(), 2, vocab, row_stride).expect("rows");
    cuda.token_log_probs_backward_in_place(view, &targets, &options, &saved, &upstream).expect("backward");
    let bits = |values: &[bf16]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&download(&cuda, &logits.slice(..vocab))), bits(&expected_gradient[..vocab]));
    assert_eq!(bits(&download(&cuda, &logits.slice(row_stride..))), bits(&expected_gradient[vocab..]));
}
