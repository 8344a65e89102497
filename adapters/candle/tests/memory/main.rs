//! The candle adapter copies no logits and no hidden states whose rows can be read where they lie: a narrowed `[B, T, V]`
//! costs what a narrowed `[N, V]` costs, forward and backward.
//!
//! Every thread's allocations are counted, so there is one test in this file.

use exo_kernels::{Batch, Betas, LogitOptions, Objective, Reference};
use exo_kernels_candle::candle_core::{self, Device, Result, Tensor, Var};
use exo_kernels_candle::{linear_preference_loss, linear_token_log_probs, preference_loss, token_log_probs};
use limits::peak_memory;

#[global_allocator]
static ALLOCATOR: peak_memory::Counting = peak_memory::Counting;

const BATCH: usize = 4;
const LENGTH: usize = 6;
const WIDTH: usize = 5000;
/// Columns that nothing reads.
const PADDING: usize = 24;
const HEAD: usize = 40;
/// What rayon, and tensors of one number per row, may cost more or less from run to run.
const SMALL: usize = 32 << 10;

/// A padded variable of these leading dimensions, and its first columns.
fn padded(leading: &[usize]) -> (Var, Tensor) {
    let shape = [leading, &[WIDTH + PADDING]].concat();
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7919) % 512) as f32 / 64.0 - 4.0).collect();
    let variable =
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")).expect("a variable");
    let narrowed = variable.narrow(leading.len(), 0, WIDTH).expect("narrow");
    (variable, narrowed)
}

/// What is computed: rows and targets to a number.
type Operation = fn(&Tensor, &Tensor) -> Result<Tensor>;

fn log_probs(rows: &Tensor, targets: &Tensor) -> Result<Tensor> {
    token_log_probs(rows, targets, &LogitOptions::default())
}

fn head() -> Tensor {
    Tensor::ones((HEAD, WIDTH), candle_core::DType::F32, &Device::Cpu).expect("a tensor")
}

fn linear_log_probs(rows: &Tensor, targets: &Tensor) -> Result<Tensor> {
    linear_token_log_probs(rows, &head(), None, targets, &LogitOptions::default())
}

fn objective() -> (Objective, Batch, [f32; BATCH]) {
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid");
    (objective, Batch::padded(BATCH, LENGTH, 2).expect("valid"), [0.5, -0.5, 1.0, 0.0])
}

fn loss(rows: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (objective, batch, rewards) = objective();
    Ok(preference_loss(rows, targets, &batch, Reference::None, &rewards, objective)?.0)
}

fn linear_loss(rows: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (objective, batch, rewards) = objective();
    Ok(linear_preference_loss(rows, &head(), None, targets, &batch, Reference::None, &rewards, objective)?.0)
}

#[test]
fn rows_at_one_stride_are_not_copied() {
    let logits_bytes = BATCH * LENGTH * WIDTH * size_of::<f32>();
    assert!(SMALL * 8 < logits_bytes, "a copy would be seen");
    let operations: [(&str, Operation); 4] = [
        ("token_log_probs", log_probs),
        ("preference_loss", loss),
        ("linear_token_log_probs", linear_log_probs),
        ("linear_preference_loss", linear_loss),
    ];
    // Within one thread, so that the peaks are those of one run.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    for (name, operation) in operations {
        let peaks = [&[BATCH * LENGTH][..], &[BATCH, LENGTH], &[BATCH, 1, LENGTH]].map(|leading| {
            let (variable, rows) = padded(leading);
            let ids: Vec<u32> = (0..BATCH * LENGTH).map(|row| (row % HEAD) as u32).collect();
            let targets = Tensor::from_vec(ids, leading, &Device::Cpu).expect("targets");
            pool.install(|| {
                operation(&rows, &targets).expect("a first time, for what is made once");
                let (value, forward) = peak_memory::peak(|| operation(&rows, &targets).expect("forward"));
                let (gradients, backward) = peak_memory::peak(|| value.backward().expect("backward"));
                let gradient = gradients.get(&variable).expect("a gradient");
                assert_eq!(gradient.dims(), variable.dims());
                let values = gradient.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
                (forward, backward, values)
            })
        });
        let [(forward, backward, expected), others @ ..] = &peaks;
        if !name.starts_with("linear") {
            assert!(*forward < SMALL, "{name}: {forward} bytes of O(N) results");
        }
        assert!(expected.iter().any(|value| *value != 0.0), "{name}: no gradient");
        for (other_forward, other_backward, gradient) in others {
            assert!(*other_forward <= forward + SMALL, "{name}: {other_forward} bytes, of two dimensions {forward}");
            assert!(
                *other_backward <= backward + SMALL,
                "{name}: {other_backward} bytes, of two dimensions {backward}"
            );
            assert!(gradient == expected, "{name}: the gradient depends on the shape");
        }
    }
}
