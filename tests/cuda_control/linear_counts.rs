//! What the linear stage costs on CUDA, counted by softcuda: the launches, bytes and device memory that the docs of
//! `src/cuda/linear/log_prob.rs` plan. On a real device nothing counts: then this says so and stops. One test at a time has
//! the counters.

use cudarc::driver::DeviceRepr;
use exo_kernels::cuda::LinearChunks;
use exo_kernels::{Dtype, Element, LinearKept, LogitOptions, RowLoss};
use half::{bf16, f16};
use softcuda::report::LaunchReport;
use support::backend::{self, Placed};
use support::linear::Case;
use support::linear::{ALL, Wanted, set_chunks};
use support::turn::{self, Turn};

/// The counters of softcuda; `None` on a real device.
pub(crate) fn counters() -> Option<(Turn, softcuda::Control)> {
    let turn = turn::take();
    drop(backend::cuda());
    let control = softcuda::control();
    if control.is_none() {
        println!("NOT RUN: this device does not count");
    }
    control.map(|control| (turn, control))
}

/// N, H, V, columns of a chunk: two full chunks and a rest. M: every fourth row is masked.
const SHAPE: (usize, usize, usize, usize) = (24, 64, 2 * 1024 + 300, 1024);
const M: usize = 18;

/// A launch as the plan has it: its kernel, and the bytes that it loads and stores.
type Planned = (String, u64, u64);

fn planned(name: &str, loaded: usize, stored: usize) -> Planned {
    (name.to_owned(), loaded as u64, stored as u64)
}

fn name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
    }
}

/// Columns of the chunks.
fn chunks() -> Vec<usize> {
    let (_, _, vocab, columns) = SHAPE;
    (0..vocab).step_by(columns).map(|begin| columns.min(vocab - begin)).collect()
}

/// The launch that comes first: which rows are scored.
fn scan() -> Planned {
    planned("linear_scored_rows", 8 * SHAPE.0, 4 * (SHAPE.0 + M))
}

/// The same and their hidden states.
fn of_rows<T: Element>() -> Vec<Planned> {
    let h = SHAPE.1;
    let b = size_of::<T>();
    let bits = 8 * b;
    vec![scan(), planned(&format!("linear_gather_{bits}"), b * M * h, b * M * h)]
}

/// That the launches are those of the plan: products exactly, kernels but for what is per row and not per column (ids,
/// states, sums), which `small` bounds.
fn check_plan(launches: &[LaunchReport], plan: &[Planned], small: u64) {
    let names: Vec<&str> = launches.iter().map(|launch| launch.kernel.as_str()).collect();
    let expected: Vec<&str> = plan.iter().map(|launch| launch.0.as_str()).collect();
    assert_eq!(names, expected, "the launches, in order");
    for (launch, (name, loaded, stored)) in launches.iter().zip(plan) {
        let global = launch.counters.global;
        let room = if name == "cublasGemmEx" { 0 } else { small };
        let context = format!("{name}: {global:?}, {loaded} and {stored} planned");
        assert!(global.bytes_loaded >= *loaded && global.bytes_loaded - loaded <= room, "loads of {context}");
        assert!(global.bytes_stored >= *stored && global.bytes_stored - stored <= room, "stores of {context}");
        assert_eq!(launch.counters.shared.bank_conflicts, 0, "{name}");
        // Whole sectors: a chunk's rows begin at multiples of 16 bytes, a ragged end costs one sector a row or less.
        if *loaded >= 1 << 16 && room > 0 {
            let sectors = global.sectors_loaded as f64 * 32.0 / global.bytes_loaded as f64;
            assert!(sectors <= 1.2, "{sectors} sectors a byte / 32: {context}");
        }
    }
}

#[test]
fn launches_and_bytes_are_those_of_the_plan() {
    fn check<T: Element + DeviceRepr>() {
        let Some((_turn, control)) = counters() else { return };
        let (n, h, v, columns) = SHAPE;
        let b = size_of::<T>();
        let cuda = backend::cuda();
        set_chunks(&cuda, columns, 1 << 30);
        let case = Case::<T, T>::random(n, h, v, false, 1);
        assert_eq!(case.targets.iter().filter(|target| **target >= 0).count(), M);
        let mut on_device = Placed::new(&cuda, &case);
        on_device.scored_rows = Some(M);
        let options = LogitOptions::default();
        control.take_launches();
        let forward = on_device.forward(&options, false);
        let mut plan = of_rows::<T>();
        for c in chunks() {
            plan.push(planned("cublasGemmEx", b * (c * h + M * h), 4 * M * c));
            plan.push(planned("linear_log_prob", 4 * M * c, 0));
        }
        // A row's id, target, sums of 48 bytes, results.
        check_plan(&control.take_launches(), &plan, 128 * 32 * n as u64);

        let g = vec![-0.5_f32; n];
        let wanted = Wanted { bias: false, ..ALL };
        on_device.backward::<f32>(&options, &forward, (&g, None), wanted);
        let mut plan = of_rows::<T>();
        if T::DTYPE == Dtype::F16 {
            plan.push(planned("linear_gradient_scale", 0, 0));
        }
        for (index, c) in chunks().into_iter().enumerate() {
            plan.push(planned("cublasGemmEx", b * (c * h + M * h), 4 * M * c));
            plan.push(planned(&format!("linear_log_prob_backward_{}", name(T::DTYPE)), 4 * M * c, b * M * c));
            let before = if index == 0 { 0 } else { 4 * M * h };
            plan.push(planned("cublasGemmEx", b * (c * h + M * c) + before, 4 * M * h));
            plan.push(planned("cublasGemmEx", b * (M * h + M * c), 4 * c * h));
        }
        plan.push(planned(&format!("linear_scatter_{}", name(T::DTYPE)), 4 * M * h, b * n * h));
        check_plan(&control.take_launches(), &plan, 128 * 64 * n as u64);

        // One launch more where gradients are added to, which writes nothing where every row has a softmax.
        on_device.backward::<f32>(&options, &forward, (&g, None), Wanted { accumulate: Some(0.5), ..wanted });
        let launches = control.take_launches();
        assert_eq!(launches.len(), plan.len() + 1);
        let withhold = &launches[2];
        assert_eq!((withhold.kernel.as_str(), withhold.counters.global.bytes_stored), ("linear_withhold_rows", 0));

        // Frozen hidden states: neither product nor scatter of theirs.
        on_device.backward::<f32>(&options, &forward, (&g, None), Wanted { hidden: false, ..wanted });
        let left = control.take_launches().len();
        assert_eq!(left, plan.len() - chunks().len() - 1);
        on_device.backward::<f32>(&options, &forward, (&g, None), Wanted { weight: false, ..wanted });
        assert_eq!(control.take_launches().len(), plan.len() - chunks().len());
    }
    check::<bf16>();
    check::<f16>();
    check::<f32>();
}

/// How many matrix products a call makes.
fn products(launches: &[LaunchReport]) -> usize {
    launches.iter().filter(|launch| launch.kernel == "cublasGemmEx").count()
}

/// What is kept, and the products of the forward pass and of the backward pass under a frozen and a trained head: the table of
/// [`LinearKept`]. A row loss makes two under a frozen head, three under a trained one.
#[test]
fn products_are_those_of_the_table() {
    const TABLE: [(LinearKept, [usize; 3]); 3] = [
        (LinearKept::Nothing, [1, 2, 3]),
        (LinearKept::UnitGradients, [2, 0, 2]),
        (LinearKept::LogitGradients, [2, 0, 1]),
    ];
    fn check<T: Element + DeviceRepr>() {
        let Some((_turn, control)) = counters() else { return };
        let (n, h, v, _) = SHAPE;
        let cuda = backend::cuda();
        cuda.set_linear_chunks(LinearChunks::default());
        let case = Case::<T, T>::random(n, h, v, true, 1);
        let options = LogitOptions::default();
        let mut placed = Placed::new(&cuda, &case);
        let g = vec![-0.5_f32; n];
        let frozen = Wanted { weight: false, bias: false, ..ALL };
        for (kept, expected) in TABLE {
            placed.kept = kept;
            control.take_launches();
            let forward = placed.forward(&options, false);
            let of_forward = products(&control.take_launches());
            let of_backward = [frozen, ALL].map(|wanted| {
                placed.backward::<T>(&options, &forward, (&g, None), wanted);
                products(&control.take_launches())
            });
            assert_eq!([of_forward, of_backward[0], of_backward[1]], expected, "{kept:?}, {:?}", T::DTYPE);
        }
        let loss = RowLoss::Weighted { weights: g.as_slice() };
        for (wanted, expected) in [(frozen, 2), (ALL, 3)] {
            placed.row_loss::<T>(&options, loss, wanted);
            assert_eq!(products(&control.take_launches()), expected, "row loss, {wanted:?}");
        }
    }
    check::<bf16>();
    check::<f16>();
    check::<f32>();
}

/// The launches of what is kept, and of the backward passes that use it. Rows are taken whole.
#[test]
fn launches_of_what_is_kept_are_those_of_the_plan() {
    fn check<T: Element + DeviceRepr>() {
        let Some((_turn, control)) = counters() else { return };
        let (n, h, v, _) = SHAPE;
        let (b, name) = (size_of::<T>(), name(T::DTYPE));
        let cuda = backend::cuda();
        cuda.set_linear_chunks(LinearChunks::default());
        let case = Case::<T, T>::random(n, h, v, false, 1);
        let mut placed = Placed::new(&cuda, &case);
        placed.scored_rows = Some(M);
        let (options, g) = (LogitOptions::default(), vec![-0.5_f32; n]);
        let small = 128 * 64 * n as u64;
        for kept in [LinearKept::UnitGradients, LinearKept::LogitGradients] {
            placed.kept = kept;
            control.take_launches();
            let forward = placed.forward(&options, false);
            let mut plan = of_rows::<T>();
            plan.extend([
                planned("cublasGemmEx", b * (v * h + M * h), 4 * M * v),
                planned("linear_log_prob", 4 * M * v, 0),
                planned(&format!("linear_exponentials_{name}"), 4 * M * v, b * M * v),
                planned("cublasGemmEx", b * (v * h + M * v), 4 * M * h),
                planned(&format!("linear_unit_gradient_{name}"), (4 + b) * M * h, 4 * M * h),
            ]);
            check_plan(&control.take_launches(), &plan, small);

            let frozen = Wanted { weight: false, bias: false, ..ALL };
            placed.backward::<f32>(&options, &forward, (&g, None), frozen);
            let last = planned(&format!("linear_hidden_gradient_{name}"), 4 * M * h, b * n * h);
            check_plan(&control.take_launches(), &[scan(), last.clone()], small);

            placed.backward::<f32>(&options, &forward, (&g, None), Wanted { bias: false, ..ALL });
            let launches = control.take_launches();
            if kept == LinearKept::UnitGradients {
                assert_eq!(products(&launches), 2);
                continue;
            }
            let plan = [
                scan(),
                planned("linear_row_coefficients", 0, 4 * M),
                planned(&format!("linear_scaled_rows_{name}"), b * M * h, b * M * h),
                planned("cublasGemmEx", b * (M * h + M * v), 4 * v * h),
                last,
            ];
            check_plan(&launches, &plan, small);
        }
    }
    check::<bf16>();
    check::<f16>();
    check::<f32>();
}

/// Instructions of the two kernels per logit, of the PTX: `scripts/kernel-report` counts the machine code, which has no
/// moves between registers. A thread has 32 logits of a chunk: beside them what it does before and after its loop shows.
#[test]
fn instructions_per_logit() {
    let Some((_turn, control)) = counters() else { return };
    let (rows, vocab) = (8, 64 * 1024);
    let cuda = backend::cuda();
    let case = Case::<bf16, bf16> {
        rows,
        hidden_size: 1,
        vocab,
        hidden: vec![bf16::ONE; rows],
        weight: (0..vocab).map(|i| bf16::from_f32((i % 100) as f32 * 0.1)).collect(),
        bias: None,
        targets: vec![5; rows],
    };
    let mut on_device = Placed::new(&cuda, &case);
    let options = LogitOptions::default();
    control.take_launches();
    let forward = on_device.forward(&options, false);
    on_device.backward::<f32>(&options, &forward, (&vec![1.0; rows], None), Wanted { bias: false, ..ALL });
    let mut launches = control.take_launches();
    on_device.kept = LinearKept::UnitGradients;
    on_device.forward(&options, false);
    launches.extend(control.take_launches().into_iter().filter(|launch| launch.kernel.contains("exponentials")));
    let kernels = [("linear_log_prob", 9.5), ("linear_log_prob_backward_bf16", 9.0), ("linear_exponentials_bf16", 9.5)];
    for (kernel, most) in kernels {
        let launches = launches.iter().filter(|launch| launch.kernel == kernel);
        let instructions: u64 = launches.map(|launch| launch.counters.instructions.thread).sum();
        let per_logit = instructions as f64 / (rows * vocab) as f64;
        println!("{kernel}: {per_logit:.2} instructions per logit");
        assert!(per_logit > 0.0 && per_logit <= most, "{kernel}: {per_logit} instructions per logit");
    }
}

/// Device memory beside the operands and results is what the docs say, and does not grow from call to call.
#[test]
fn memory_is_what_the_formula_says() {
    fn check<T: Element + DeviceRepr>(bias: bool) {
        let Some((_turn, control)) = counters() else { return };
        let (n, h, v, columns) = SHAPE;
        let b = size_of::<T>();
        let case = Case::<T, T>::random(n, h, v, bias, 1);
        let cuda = backend::cuda();
        set_chunks(&cuda, columns, 1 << 30);
        let mut on_device = Placed::new(&cuda, &case);
        on_device.scored_rows = Some(M);
        let options = LogitOptions::default();
        // A program's variables and the status word are there from the start.
        let scored = Placed::new(&cuda, &case);
        drop(scored);
        let before = control.memory_in_use();
        let forward = on_device.forward(&options, true);
        let of_blas = 32 << 20;
        let wide_bias = if bias { 4 * v } else { 0 };
        let rows = 4 * (n + M) + b * M * h + wide_bias;
        let of_forward = of_blas + rows + 4 * M * columns + 48 * M;
        let used = (control.memory_in_use() - before) as usize;
        assert!(used <= of_forward + STATUS && used + STATUS >= of_forward, "{used}, {of_forward} planned");

        let g = vec![-0.5_f32; n];
        on_device.backward::<f32>(&options, &forward, (&g, None), Wanted { bias: false, ..ALL });
        let of_gradients = if b == 4 { 0 } else { b * M * columns };
        let factors = if T::DTYPE == Dtype::F16 { 16 } else { 0 };
        let of_backward = of_forward + of_gradients + 4 * M * h + factors;
        let used = (control.memory_in_use() - before) as usize;
        assert!(used <= of_backward + STATUS && used + STATUS >= of_backward, "{used}, {of_backward} planned");
        for _ in 0..2 {
            let in_use = control.memory_in_use();
            let again = on_device.forward(&options, true);
            on_device.backward::<f32>(&options, &again, (&g, None), Wanted { bias: false, ..ALL });
            assert_eq!(control.memory_in_use(), in_use, "memory grows from call to call");
        }

        // Chunks of seven rows, with all of their columns.
        set_chunks(&cuda, columns, 7 * 4 * v);
        let weights = vec![1.0_f32; n];
        let loss = RowLoss::Weighted { weights: weights.as_slice() };
        on_device.row_loss::<T>(&options, loss, Wanted { bias: false, ..ALL });
        let at_once = 7;
        let stride = v.next_multiple_of(8);
        // In f32 the exponentials lie next to the logits, which are read again.
        let (of_logits, of_factors) = (4 * at_once * v, b * at_once * stride);
        let of_rows = of_logits.max(4 * M * columns) + of_factors.max(of_gradients) + 12 * at_once;
        let beside = if b == 4 { 0 } else { 4 * v * h };
        let most = of_backward - 4 * M * columns - of_gradients + of_rows;
        let most = most + beside + (8 + 4) * n;
        let used = (control.memory_in_use() - before) as usize;
        assert!(used <= most + STATUS, "{used}, {most} planned");
    }
    check::<bf16>(false);
    check::<f16>(true);
    check::<f32>(true);
}

/// The status word.
const STATUS: usize = 64;
