//! The preference loss from hidden states on CUDA: bit for bit its stages, one after the other; and what is refused.

use cudarc::driver::CudaSlice;
use exo_kernels::cuda::{
    Cuda, DeviceGroupStatistics, Head, Hidden, LinearGradients, LogRatios, Matrix, MatrixMut, ObjectiveOutputs,
    Reference,
};
use exo_kernels::{Batch, Betas, Element, Error, LogRatio, Objective, PreferenceLoss, Reduction};
use half::bf16;
use support::device::{download, upload};
use support::linear::Case;
use support::linear_device::{self, ALL, Gradients, OnDevice, Wanted, set_chunks};

const ROWS: usize = 20;
const SIZE: usize = 6;
const VOCAB: usize = 700;
const REWARDS: [f64; 5] = [0.3, -0.2, 0.9, 0.0, 0.4];
const TEMPERATURE: f64 = 0.8;

/// Two groups, of three and of two completions.
fn batch() -> Batch {
    Batch::new(&[0u32, 4, 7, 11, 14, 20], &[0u32, 3, 5]).expect("a batch")
}

fn objective() -> Objective {
    Objective::exo(Betas { policy: 0.5, reward: 0.7 }).expect("valid")
}

fn loss(cuda: &Cuda) -> PreferenceLoss<Cuda> {
    PreferenceLoss::new(cuda.clone(), objective()).with_temperature(TEMPERATURE).expect("valid")
}

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

/// A case's operands on the device.
struct Operands {
    hidden: CudaSlice<bf16>,
    weight: CudaSlice<bf16>,
    targets: CudaSlice<i64>,
}

impl Operands {
    fn new(cuda: &Cuda, case: &Case<bf16, bf16>) -> Self {
        let (hidden, weight) = (upload(cuda, &case.hidden), upload(cuda, &case.weight));
        Self { hidden, weight, targets: upload(cuda, &case.targets) }
    }

    fn hidden(&self) -> Matrix<'_, bf16> {
        Matrix::new(self.hidden.as_view(), SIZE).expect("rows")
    }

    fn head(&self) -> Head<'_, bf16> {
        Head::new(Matrix::new(self.weight.as_view(), SIZE).expect("rows")).expect("a head")
    }
}

/// Loss per group and coefficients per sequence, from log-probs, by the stages.
fn stages(cuda: &Cuda, case: &Case<bf16, bf16>, log_probs: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let on_device = cuda.upload_batch(&batch()).expect("offsets");
    let (log_probs, targets) = (upload(cuda, log_probs), upload(cuda, &case.targets));
    let (mut log_ratios, mut sums) = (upload(cuda, &[0.0_f64; 5]), upload(cuda, &[0.0_f64; 5]));
    let (mut scored, mut row_sequences) = (upload(cuda, &[0_i32; 5]), upload(cuda, &[0_i32; ROWS]));
    let mut outputs = LogRatios {
        log_ratios: log_ratios.as_view_mut(),
        log_prob_sums: sums.as_view_mut(),
        scored_rows: scored.as_view_mut(),
        row_sequences: row_sequences.as_view_mut(),
    };
    let (view, ids) = (log_probs.as_view(), targets.as_view());
    cuda.log_ratios(&view, &ids, &Reference::None, &on_device, LogRatio::Sum, &mut outputs).expect("log-ratios");
    let (mut losses, mut coefficients) = (upload(cuda, &[0.0_f64; 2]), upload(cuda, &[0.0_f64; 5]));
    let mut statistics = upload(cuda, &[DeviceGroupStatistics::default(); 2]);
    let mut outputs = ObjectiveOutputs {
        group_losses: losses.as_view_mut(),
        coefficients: coefficients.as_view_mut(),
        statistics: statistics.as_view_mut(),
    };
    let log_ratios = log_ratios.as_view();
    cuda.objective(&objective(), &log_ratios, &on_device, REWARDS.as_slice(), Reduction::Mean, &mut outputs)
        .expect("objective");
    (download(cuda, &losses), download(cuda, &coefficients))
}

#[test]
fn it_is_its_stages() {
    let cuda = linear_device::cuda();
    set_chunks(&cuda, 512, 1 << 30);
    let case = Case::<bf16, bf16>::random(ROWS, SIZE, VOCAB, false, 11);
    let operands = Operands::new(&cuda, &case);
    let (hidden, head) = (operands.hidden(), operands.head());
    let scored = case.targets.iter().filter(|target| **target >= 0).count();
    let mut hidden_gradient = upload(&cuda, &vec![bf16::NAN; ROWS * SIZE]);
    let mut weight_gradient = upload(&cuda, &vec![f32::NAN; VOCAB * SIZE]);
    let mut loss = loss(&cuda);
    let of_hidden = || Hidden::new(&hidden).with_scored_rows(scored);
    let step = loss
        .forward_linear(of_hidden(), &head, &operands.targets.as_view(), &batch(), &Reference::None, &REWARDS)
        .expect("forward");
    loss.set_loss_scale(0.5);
    let gradients = LinearGradients::new(
        Some(MatrixMut::new(hidden_gradient.as_view_mut(), SIZE).expect("rows")),
        Some(MatrixMut::new(weight_gradient.as_view_mut(), SIZE).expect("rows")),
    );
    loss.backward_linear(&step, of_hidden(), &head, gradients).expect("backward");

    let options = exo_kernels::LogitOptions::default().with_temperature(TEMPERATURE).expect("valid");
    let mut by_stages = OnDevice::new(&cuda, &case);
    by_stages.scored_rows = Some(scored);
    let forward = by_stages.forward(&options, false);
    let (losses, coefficients) = stages(&cuda, &case, &forward.log_probs);
    assert_eq!(loss.report().expect("a report").group_losses, losses);
    let batch = batch();
    let sequence = |row: usize| batch.sequence_offsets().iter().filter(|offset| **offset <= row).count() - 1;
    let g: Vec<f32> = (0..ROWS).map(|row| (coefficients[sequence(row)] * 0.5) as f32).collect();
    let expected: Gradients<bf16, f32> =
        by_stages.backward(&options, &forward, (&g, None), Wanted { bias: false, ..ALL });
    assert!(bits(&download(&cuda, &hidden_gradient)) == bits(&expected.hidden));
    assert!(bits(&download(&cuda, &weight_gradient)) == bits(&expected.weight));
    assert!(expected.weight.iter().any(|value| *value != 0.0));
}

#[test]
fn what_is_refused_leaves_the_loss_as_it_was() {
    let cuda = linear_device::cuda();
    let case = Case::<bf16, bf16>::random(ROWS, SIZE, VOCAB, false, 12);
    let operands = Operands::new(&cuda, &case);
    let (hidden, head, targets) = (operands.hidden(), operands.head(), operands.targets.as_view());
    let mut loss = loss(&cuda);
    let mut gradient = upload(&cuda, &vec![bf16::ONE; ROWS * SIZE]);
    let step = loss.forward_linear(&hidden, &head, &targets, &batch(), &Reference::None, &REWARDS).expect("forward");
    let mut backward = |loss: &mut PreferenceLoss<Cuda>, hidden: &Matrix<'_, bf16>| {
        let of_hidden = MatrixMut::new(gradient.as_view_mut(), SIZE).expect("rows");
        let refused = loss.backward_linear(&step, hidden, &head, LinearGradients::<_, f32>::new(Some(of_hidden), None));
        (refused, download(&cuda, &gradient))
    };
    let report = loss.report().expect("a report").clone();

    let narrow = Matrix::new(operands.hidden.as_view(), 5).expect("rows");
    let refused = loss.forward_linear(&narrow, &head, &targets, &batch(), &Reference::None, &REWARDS);
    assert!(matches!(refused, Err(Error::Length { what: "hidden size", given: 5, expected: 6 })));
    let short = Matrix::new(operands.hidden.slice(..19 * SIZE), SIZE).expect("rows");
    let (refused, unchanged) = backward(&mut loss, &short);
    assert!(matches!(refused, Err(Error::Length { given: 19, expected: 20, .. })));
    assert!(unchanged.iter().all(|number| *number == bf16::ONE));
    let same_shape = Operands::new(&cuda, &Case::<bf16, bf16>::random(ROWS, SIZE, VOCAB, false, 14));
    let (refused, unchanged) = backward(&mut loss, &same_shape.hidden());
    assert!(matches!(refused, Err(Error::OtherInputs { .. })), "{refused:?}");
    assert!(unchanged.iter().all(|number| *number == bf16::ONE));
    assert_eq!(loss.report().expect("a report"), &report);
    let (done, gradient) = backward(&mut loss, &hidden);
    done.expect("backward");
    assert!(gradient.iter().any(|number| *number != bf16::ONE));
}

/// More scored rows than were said: an error when the report is read.
#[test]
fn too_few_scored_rows_said_is_an_error_of_the_report() {
    let cuda = linear_device::cuda();
    let case = Case::<bf16, bf16>::random(ROWS, SIZE, VOCAB, false, 13);
    let operands = Operands::new(&cuda, &case);
    let (hidden, head, targets) = (operands.hidden(), operands.head(), operands.targets.as_view());
    let scored = case.targets.iter().filter(|target| **target >= 0).count();
    let mut loss = loss(&cuda);
    let mut report_of = |said: usize| {
        let hidden = Hidden::new(&hidden).with_scored_rows(said);
        loss.forward_linear(hidden, &head, &targets, &batch(), &Reference::None, &REWARDS).expect("forward");
        loss.report().cloned()
    };
    assert_eq!(report_of(scored - 2), Err(Error::ScoredRows { beyond: 2 }));
    assert!(report_of(scored).is_ok());
}
