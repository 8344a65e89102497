//! Whatever is given to a backend lies in its context, or the call is refused and names it; and the calling thread's
//! current context is its own business. A binary of its own: the settings of softcuda are the process's.

mod run;

use self::run::{EARLIER, Run, check, current, set_current};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr};
use exo_kernels::cuda::{
    Cuda, DeviceRewards, Head, Hidden, LinearGradients, LogRatioOutputs, Matrix, MatrixMut, ObjectiveOutputs,
    Reference, RowGradients, RowLogProbs, RowLosses, RowWeights, SavedRows, TokenLogProbs, raw,
};
use exo_kernels::{
    Backend, Batch, Betas, Dtype, Error, GroupStatistics, LogRatio, LogitOptions, Objective, PreferenceLoss, Reduction,
    Result, RowLoss, SoftmaxState,
};
use softcuda::Settings;
use std::ptr::null_mut;
use std::sync::Arc;
use support::device;
use support::turn;

const ROWS: usize = 4;
const SIZE: usize = 8;
const VOCAB: usize = 40;
/// What outputs hold before.
const POISON: f32 = f32::MAX;

/// A backend on device 0, and streams elsewhere: of another context of that device and, if there is one (softcuda has
/// it), of another device.
fn places() -> (Cuda, Vec<Arc<CudaStream>>) {
    softcuda::install().expect("softcuda can be loaded where there is no driver");
    softcublas::install().expect("softcublas can be loaded where softcuda is");
    if let Some(control) = softcuda::control() {
        control.configure(&Settings { devices: 2, ..Settings::default() });
    }
    let cuda = device::cuda();
    let mut contexts = vec![CudaContext::new_non_primary(0, 0).expect("another context of device 0")];
    if CudaContext::device_count().expect("devices") > 1 {
        contexts.push(CudaContext::new(1).expect("device 1"));
    }
    let streams = contexts.iter().map(|context| context.new_stream().expect("a stream")).collect();
    (cuda, streams)
}

fn check_everywhere(scenario: impl Fn(&Run<'_>) -> Result<()>, expected: &[&str]) {
    let _turn = turn::take();
    let (cuda, others) = places();
    for other in &others {
        assert_eq!(check(&cuda, other, &scenario), expected, "every argument");
    }
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 1013) as f32 * 0.004 - 2.0).collect()
}

const TARGETS: [u32; ROWS] = [5, 39, 7, 0];

fn batch() -> Batch {
    Batch::new(&[0, 1, 3, 4], &[0, 2, 3]).expect("offsets")
}

fn objective() -> Objective {
    Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("betas")
}

#[test]
fn token_log_probs() {
    let scenario = |run: &Run<'_>| {
        let (logits, targets) = (run.put("logits", &numbers(ROWS * VOCAB)), run.put("targets", &TARGETS));
        let mut log_probs = run.put("log-probs", &[POISON; ROWS]);
        let mut states = run.put("softmax states", &[SoftmaxState::default(); ROWS]);
        let mut entropies = run.put("entropies", &[POISON; ROWS]);
        let outputs = TokenLogProbs {
            log_probs: log_probs.as_view_mut().into(),
            states: states.as_view_mut().into(),
            entropies: Some(entropies.as_view_mut().into()),
        };
        let view = Matrix::new(logits.as_view().into(), VOCAB)?;
        run.call(|| run.cuda.token_log_probs(&view, &targets, &LogitOptions::default(), outputs))
    };
    check_everywhere(scenario, &["logits", "targets", "log-probs", "softmax states", "entropies"]);
}

/// What a backward pass over rows takes.
const OF_ROWS: [&str; 4] = ["softmax states", "entropies", "log-prob gradients", "entropy gradients"];

/// Calls with what the forward pass has kept and the gradients that come back.
fn with_rows<R>(run: &Run<'_>, call: impl FnOnce(&SavedRows<'_>, &RowGradients<'_>) -> R) -> R {
    let states = run.put(OF_ROWS[0], &[SoftmaxState { r: 0.0, s: 40.0 }; ROWS]);
    let entropies = run.put(OF_ROWS[1], &[3.0_f32; ROWS]);
    let log_probs = run.put(OF_ROWS[2], &[1.0_f32; ROWS]);
    let of_entropies = run.put(OF_ROWS[3], &[0.5_f32; ROWS]);
    call(
        &SavedRows { states: states.as_view().into(), entropies: Some(entropies.as_view().into()) },
        &RowGradients::PerRow { log_probs: log_probs.as_view().into(), entropies: Some(of_entropies.as_view().into()) },
    )
}

#[test]
fn token_log_probs_backward() {
    let scenario = |run: &Run<'_>| {
        let (logits, targets) = (run.put("logits", &numbers(ROWS * VOCAB)), run.put("targets", &TARGETS));
        let mut gradient = run.put("gradient", &[POISON; ROWS * VOCAB]);
        let view = Matrix::new(logits.as_view().into(), VOCAB)?;
        let out = MatrixMut::new(gradient.as_view_mut().into(), VOCAB)?;
        let (ids, options) = (targets.as_view(), LogitOptions::default());
        with_rows(run, |saved, upstream| {
            run.call(|| run.cuda.token_log_probs_backward(&view, &ids, &options, saved, upstream, out))
        })
    };
    check_everywhere(scenario, &[&["logits", "targets", "gradient"][..], &OF_ROWS].concat());
    let scenario = |run: &Run<'_>| {
        let (mut logits, targets) = (run.put("logits", &numbers(ROWS * VOCAB)), run.put("targets", &TARGETS));
        let both = MatrixMut::new(logits.as_view_mut().into(), VOCAB)?;
        let (ids, options) = (targets.as_view(), LogitOptions::default());
        with_rows(run, |saved, upstream| {
            run.call(|| run.cuda.token_log_probs_backward_in_place(both, &ids, &options, saved, upstream))
        })
    };
    check_everywhere(scenario, &[&["logits", "targets"][..], &OF_ROWS].concat());
}

/// A batch on the device, or on the other.
fn placed_batch(run: &Run<'_>) -> exo_kernels::cuda::DeviceBatch {
    let elsewhere = run.is_misplaced("batch").then(|| Cuda::new(run.other).expect("the kernels load"));
    elsewhere.as_ref().unwrap_or(run.cuda).upload_batch(&batch()).expect("offsets")
}

#[test]
fn log_ratios() {
    for per_token in [true, false] {
        let scenario = |run: &Run<'_>| {
            let batch = placed_batch(run);
            let (log_probs, targets) = (run.put("log-probs", &[-1.0_f32; ROWS]), run.put("targets", &TARGETS));
            let (tokens, sequences);
            let reference = if per_token {
                tokens = run.put("reference log-probs per token", &[-1.5_f32; ROWS]);
                Reference::PerToken(tokens.as_view().into())
            } else {
                sequences = run.put("reference log-probs per sequence", &[-1.5_f64; 3]);
                Reference::PerSequence(sequences.as_view().into())
            };
            let mut log_ratios = run.put("log-ratios", &[f64::MAX; 3]);
            let mut log_prob_sums = run.put("log-prob sums", &[f64::MAX; 3]);
            let mut scored_rows = run.put("scored rows", &[-1; 3]);
            let mut row_sequences = run.put("row sequences", &[-1; ROWS]);
            let mut row_targets = run.put("row targets", &[0_u32; ROWS]);
            let entropies = run.put("entropies", &[2.0_f32; ROWS]);
            let mut entropy_sums = run.put("entropy sums", &[f64::MAX; 3]);
            let outputs = LogRatioOutputs {
                log_ratios: log_ratios.as_view_mut().into(),
                log_prob_sums: log_prob_sums.as_view_mut().into(),
                entropy_sums: Some(entropy_sums.as_view_mut().into()),
                scored_rows: scored_rows.as_view_mut().into(),
                row_sequences: row_sequences.as_view_mut().into(),
                row_targets: row_targets.as_view_mut().into(),
            };
            let rows = RowLogProbs {
                log_probs: log_probs.as_view().into(),
                entropies: Some(entropies.as_view().into()),
                targets: targets.as_view().into(),
            };
            run.call(|| run.cuda.log_ratios(&rows, &reference, &batch, LogRatio::Sum, outputs))
        };
        let reference = if per_token { "reference log-probs per token" } else { "reference log-probs per sequence" };
        let inputs = ["batch", "log-probs", "targets", reference];
        let outputs = ["log-ratios", "log-prob sums", "scored rows", "row sequences", "row targets"];
        let entropies = ["entropies", "entropy sums"];
        check_everywhere(scenario, &[&inputs[..], &outputs, &entropies].concat());
    }
}

#[test]
fn objectives() {
    let scenario = |run: &Run<'_>| {
        let batch = placed_batch(run);
        let log_ratios = run.put("log-ratios", &[0.5_f64, -0.25, 1.0]);
        let rewards = run.put("rewards", &[1.0_f32, 0.0, 0.5]);
        let offsets = run.put("proposal offsets", &[0.1_f64, 0.0, 0.2]);
        let mut group_losses = run.put("group losses", &[f64::MAX; 2]);
        let mut coefficients = run.put("coefficients", &[f64::MAX; 3]);
        let mut statistics = run.put("group statistics", &[GroupStatistics::default(); 2]);
        let scored_rows = run.put("scored rows", &[1_i32, 2, 1]);
        let mut weights = run.put("sequence weights", &[f64::MAX; 3]);
        let outputs = ObjectiveOutputs {
            group_losses: group_losses.as_view_mut().into(),
            coefficients: coefficients.as_view_mut().into(),
            statistics: statistics.as_view_mut().into(),
            row_weights: Some(RowWeights {
                log_ratio: LogRatio::Mean,
                scored_rows: scored_rows.as_view().into(),
                weights: weights.as_view_mut().into(),
            }),
        };
        let rewards = DeviceRewards::from(rewards.as_view()).with_proposal(offsets.as_view().into());
        let (log_ratios, objective) = (log_ratios.as_view().into(), objective());
        run.call(|| run.cuda.objective(&objective, &log_ratios, &batch, &rewards, Reduction::Mean, outputs))
    };
    let inputs = ["batch", "log-ratios", "rewards", "proposal offsets"];
    let outputs = ["group losses", "coefficients", "group statistics"];
    check_everywhere(scenario, &[&inputs[..], &outputs, &["scored rows", "sequence weights"]].concat());
}

const OPERANDS: [&str; 4] = ["hidden states", "weight", "bias", "targets"];

/// Calls with hidden states, a head and targets.
fn with_head<R>(
    run: &Run<'_>,
    names: [&'static str; 4],
    call: impl FnOnce(Hidden<'_, '_, f32>, &Head<'_, f32>, &cudarc::driver::CudaView<'_, u32>) -> R,
) -> R {
    let hidden = run.put(names[0], &numbers(ROWS * SIZE));
    let (weight, bias) = (run.put(names[1], &numbers(VOCAB * SIZE)), run.put(names[2], &numbers(VOCAB)));
    let targets = run.put(names[3], &TARGETS);
    let hidden = Matrix::new(hidden.as_view().into(), SIZE).expect("rows");
    let head = Head::new(Matrix::new(weight.as_view().into(), SIZE).expect("rows")).expect("a vocabulary");
    let head = head.with_bias(bias.as_view().into()).expect("a bias");
    call(Hidden::new(&hidden), &head, &targets.as_view())
}

const GRADIENTS: [&str; 3] = ["hidden gradient", "weight gradient", "bias gradient"];

/// Calls with buffers for the gradients of the linear stage.
fn with_gradients<R>(run: &Run<'_>, call: impl FnOnce(LinearGradients<'_, f32, f32>) -> R) -> R {
    let mut hidden = run.put(GRADIENTS[0], &[POISON; ROWS * SIZE]);
    let mut weight = run.put(GRADIENTS[1], &[POISON; VOCAB * SIZE]);
    let mut bias = run.put(GRADIENTS[2], &[POISON; VOCAB]);
    let hidden = MatrixMut::new(hidden.as_view_mut().into(), SIZE).expect("rows");
    let weight = MatrixMut::new(weight.as_view_mut().into(), SIZE).expect("rows");
    call(LinearGradients::new(Some(hidden), Some(weight)).with_bias(bias.as_view_mut().into()))
}

#[test]
fn linear_token_log_probs() {
    let options = LogitOptions::default();
    let scenario = |run: &Run<'_>| {
        let mut log_probs = run.put("log-probs", &[POISON; ROWS]);
        let mut states = run.put("softmax states", &[SoftmaxState::default(); ROWS]);
        let mut entropies = run.put("entropies", &[POISON; ROWS]);
        let outputs = TokenLogProbs {
            log_probs: log_probs.as_view_mut().into(),
            states: states.as_view_mut().into(),
            entropies: Some(entropies.as_view_mut().into()),
        };
        with_head(run, OPERANDS, |hidden, head, targets| {
            run.call(|| run.cuda.linear_token_log_probs(hidden, head, targets, &options, outputs))
        })
    };
    check_everywhere(scenario, &[&["log-probs", "softmax states", "entropies"][..], &OPERANDS].concat());
    let scenario = |run: &Run<'_>| {
        with_head(run, OPERANDS, |hidden, head, targets| {
            with_gradients(run, |gradients| {
                with_rows(run, |saved, upstream| {
                    run.call(|| {
                        run.cuda.linear_token_log_probs_backward(
                            hidden, head, targets, &options, saved, upstream, gradients,
                        )
                    })
                })
            })
        })
    };
    check_everywhere(scenario, &[&OPERANDS[..], &GRADIENTS, &OF_ROWS].concat());
}

#[test]
fn linear_row_losses() {
    let scenario = |run: &Run<'_>| {
        let weights = run.put("row weights", &[0.25_f32; ROWS]);
        let advantages = run.put("advantages", &[1.0_f32, -1.0, 0.5, 2.0]);
        let old_log_probs = run.put("old log-probs", &[-3.0_f32; ROWS]);
        let mut losses = run.put("row losses", &[POISON; ROWS]);
        let mut log_probs = run.put("log-probs", &[POISON; ROWS]);
        let outputs = RowLosses { losses: losses.as_view_mut().into(), log_probs: log_probs.as_view_mut().into() };
        let loss = RowLoss::ClippedRatio {
            weights: weights.as_view().into(),
            advantages: advantages.as_view().into(),
            old_log_probs: old_log_probs.as_view().into(),
            low: 0.2,
            high: 0.2,
            log_ratio_limit: 20.0,
        };
        let options = LogitOptions::default();
        with_head(run, OPERANDS, |hidden, head, targets| {
            with_gradients(run, |gradients| {
                run.call(|| run.cuda.linear_row_loss(hidden, head, targets, &options, &loss, outputs, gradients))
            })
        })
    };
    let of_loss = ["row weights", "advantages", "old log-probs", "row losses", "log-probs"];
    check_everywhere(scenario, &[&of_loss[..], &OPERANDS, &GRADIENTS].concat());
}

#[test]
fn the_preference_loss() {
    for per_token in [true, false] {
        let reference_name =
            if per_token { "reference log-probs per token" } else { "reference log-probs per sequence" };
        let scenario = |run: &Run<'_>| {
            let (logits, targets) = (run.put("logits", &numbers(ROWS * VOCAB)), run.put("targets", &TARGETS));
            let (tokens, sequences);
            let reference = if per_token {
                tokens = run.put(reference_name, &[-1.5_f32; ROWS]);
                Reference::PerToken(tokens.as_view().into())
            } else {
                sequences = run.put(reference_name, &[-1.5_f64; 3]);
                Reference::PerSequence(sequences.as_view().into())
            };
            let rewards = run.put("rewards", &[1.0_f64, 0.0, 0.5]);
            let offsets = run.put("proposal offsets", &[0.1_f64, 0.0, 0.2]);
            let mut loss = PreferenceLoss::new(run.cuda.clone(), objective());
            let view = Matrix::new(logits.as_view().into(), VOCAB)?;
            let rewards = DeviceRewards::from(rewards.as_view()).with_proposal(offsets.as_view().into());
            let step = run.call(|| loss.forward(&view, &targets, &batch(), &reference, rewards));
            if step.is_err() {
                assert_eq!(loss.report(), Err(Error::NoForward));
            }
            step?;
            run.call(|| loss.report().map(drop))
        };
        check_everywhere(scenario, &["logits", "targets", reference_name, "rewards", "proposal offsets"]);
    }
    for in_place in [false, true] {
        let scenario = |run: &Run<'_>| {
            let (before, targets) = (run.put(EARLIER, &numbers(ROWS * VOCAB)), run.put(EARLIER, &TARGETS));
            let mut loss = PreferenceLoss::new(run.cuda.clone(), objective());
            let view = Matrix::new(before.as_view().into(), VOCAB)?;
            let rewards = [1.0, 0.0, 0.5];
            let step = loss.forward(&view, &targets, &batch(), &Reference::None, &rewards)?;
            let step = step.with_moved_inputs();
            let mut logits = run.put("logits", &numbers(ROWS * VOCAB));
            if in_place {
                let both = MatrixMut::new(logits.as_view_mut().into(), VOCAB)?;
                return run.call(|| loss.backward_in_place(step, both));
            }
            let mut gradient = run.put("gradient", &[POISON; ROWS * VOCAB]);
            let view = Matrix::new(logits.as_view().into(), VOCAB)?;
            let out = MatrixMut::new(gradient.as_view_mut().into(), VOCAB)?;
            run.call(|| loss.backward(&step, &view, out))
        };
        check_everywhere(scenario, if in_place { &["logits"] } else { &["logits", "gradient"] });
    }
}

#[test]
fn the_linear_preference_loss() {
    let scenario = |run: &Run<'_>| {
        let rewards = run.put("rewards", &[1.0_f32, 0.0, 0.5]);
        let mut loss = PreferenceLoss::new(run.cuda.clone(), objective());
        with_head(run, OPERANDS, |hidden, head, targets| {
            run.call(|| loss.forward_linear(hidden, head, targets, &batch(), &Reference::None, &rewards).map(drop))
        })
    };
    check_everywhere(scenario, &[&["rewards"][..], &OPERANDS].concat());
    let scenario = |run: &Run<'_>| {
        let mut loss = PreferenceLoss::new(run.cuda.clone(), objective());
        let rewards = [1.0, 0.0, 0.5];
        let step = with_head(run, [EARLIER; 4], |hidden, head, targets| {
            loss.forward_linear(hidden, head, targets, &batch(), &Reference::None, &rewards)
        })?;
        let step = step.with_moved_inputs();
        let [hidden, weight, bias, _] = OPERANDS;
        with_head(run, [hidden, weight, bias, EARLIER], |hidden, head, _| {
            with_gradients(run, |gradients| run.call(|| loss.backward_linear(&step, hidden, head, gradients)))
        })
    };
    check_everywhere(scenario, &[&OPERANDS[..3], &GRADIENTS].concat());
}

/// The layer over addresses cannot know where they lie; the current context it leaves as it was too.
#[test]
fn addresses() {
    let _turn = turn::take();
    let (cuda, others) = places();
    let run = Run::new(&cuda, &others[0], None, others[0].context().cu_ctx());
    let (logits, targets) = (run.put(EARLIER, &numbers(ROWS * VOCAB)), run.put(EARLIER, &TARGETS));
    let log_probs = run.put(EARLIER, &[POISON; ROWS]);
    let states = run.put(EARLIER, &[SoftmaxState::default(); ROWS]);
    let upstream = run.put(EARLIER, &[1.0_f32; ROWS]);
    let stream = cuda.stream();
    let address = logits.device_ptr(stream).0;
    let rows = raw::MatrixAt { address, rows: ROWS, columns: VOCAB, row_stride: VOCAB, dtype: Dtype::F32 };
    let (targets, options) = (raw::Targets::U32(targets.device_ptr(stream).0), LogitOptions::default());
    let (log_probs, states) = (log_probs.device_ptr(stream).0, states.device_ptr(stream).0);
    let upstream = raw::Upstream::PerRow { log_probs: upstream.device_ptr(stream).0, entropies: 0 };
    let outputs = raw::ForwardOutputs { log_probs, states, entropies: 0 };
    // SAFETY: the buffers above, which live to the end.
    run.call(|| unsafe { raw::token_log_probs(&cuda, rows, targets, &options, outputs) }).expect("forward");
    // SAFETY: the same.
    run.call(|| unsafe { raw::token_log_probs_backward(&cuda, rows, targets, &options, states, 0, upstream, rows) })
        .expect("backward");
    stream.synchronize().expect("nothing has failed");
}

/// Making and dropping everything that holds device resources, their context's last user included.
#[test]
fn the_current_context_survives_making_and_dropping() {
    let _turn = turn::take();
    let (_, others) = places();
    let kept = others[0].context().cu_ctx();
    for before in [null_mut(), kept] {
        let context = CudaContext::new_non_primary(0, 0).expect("a third context of device 0");
        let stream = context.new_stream().expect("a stream");
        drop(context);
        set_current(before);
        let unchanged = |what: &str| assert_eq!(current(), before, "{what}");

        let cuda = Cuda::new(&stream).expect("the kernels load");
        unchanged("Cuda::new");
        let primary = Cuda::device(0).expect("device 0");
        unchanged("Cuda::device");
        drop(primary);
        unchanged("drop of Cuda::device's");
        cuda.clear_status().expect("cleared");
        unchanged("clear_status");
        cuda.status().expect("a status");
        unchanged("status");
        let placed = cuda.upload_batch(&batch()).expect("offsets");
        unchanged("upload_batch");

        let mut loss = PreferenceLoss::new(cuda.clone(), objective());
        {
            let run = |values: &[f32]| stream.clone_htod(values).expect("upload");
            let (hidden, weight) = (run(&numbers(ROWS * SIZE)), run(&numbers(VOCAB * SIZE)));
            let targets = stream.clone_htod(&TARGETS).expect("upload");
            set_current(before);
            let hidden = Matrix::new(hidden.as_view().into(), SIZE).expect("rows");
            let head = Head::new(Matrix::new(weight.as_view().into(), SIZE).expect("rows")).expect("a vocabulary");
            let rewards = [1.0, 0.0, 0.5];
            loss.forward_linear(&hidden, &head, &targets, &batch(), &Reference::None, &rewards).expect("forward");
            unchanged("forward_linear");
            assert!(loss.report().expect("report").loss > 0.0);
            unchanged("report");
        }
        set_current(before);
        // The last users of the stream, of the kernels and of the context, one after the other.
        drop(stream);
        drop(placed);
        unchanged("drop of a batch");
        drop(cuda);
        unchanged("drop of a backend that others share");
        drop(loss);
        unchanged("drop of a loss, and with it of its context");
    }
    set_current(null_mut());
}
