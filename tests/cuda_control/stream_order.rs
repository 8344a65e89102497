//! A step puts its work into the stream and waits for none of it, wherever the rewards are. A binary of its own: the
//! settings of softcuda are the process's. On a real device when work runs cannot be chosen: then this says so and stops.

use exo_kernels::cuda::{Matrix, MatrixMut, Reference, Rewards};
use exo_kernels::{Batch, Betas, Objective, PreferenceLoss};
use softcuda::Settings;
use support::device::{self, download, upload};
use support::turn;

#[test]
fn a_step_does_not_wait_for_the_device() {
    let _turn = turn::take();
    let cuda = device::cuda();
    let Some(control) = softcuda::control() else {
        println!("NOT RUN: on a real device work cannot be held back");
        return;
    };
    let vocab = 500;
    let logits: Vec<f32> = (0..4 * vocab).map(|i| ((i * 7919) % 1013) as f32 * 0.01).collect();
    let (logits, targets) = (upload(&cuda, &logits), upload(&cuda, &[5_u32, 499, 7, 0]));
    let on_host = [1.0, 0.0, -1.0, 0.5];
    let on_device = upload(&cuda, &on_host);
    let mut gradients = upload(&cuda, &vec![f32::MAX; 4 * vocab]);
    let batch = Batch::new(&[0u32, 1, 2, 3, 4], &[0u32, 2, 4]).expect("offsets");
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("betas");
    let mut loss = PreferenceLoss::new(cuda.clone(), objective);
    let view = Matrix::new(logits.as_view().into(), vocab).expect("rows");
    cuda.stream().synchronize().expect("nothing has failed");

    control.configure(&Settings { delay_streams: true, ..Settings::default() });
    control.take_launches();
    for _ in 0..3 {
        for rewards in [Rewards::from(&on_host), Rewards::from(&on_device)] {
            let step = loss.forward(&view, &targets, &batch, &Reference::None, rewards).expect("forward");
            loss.backward(&step, &view, MatrixMut::new(gradients.as_view_mut().into(), vocab).expect("rows"))
                .expect("backward");
        }
    }
    assert_eq!(control.take_launches().len(), 0, "something has waited for the stream");
    assert!(loss.report().expect("report").loss > 0.0);
    assert_eq!(control.take_launches().len(), 6 * 4, "the report waits for all of it");
    assert!(download(&cuda, &gradients).iter().all(|gradient| gradient.is_finite()));
    control.configure(&Settings::default());
}

/// A caller's buffers that another stream writes before a step and overwrites after it, in cudarc's order of their uses,
/// whichever stream somebody waits for first.
#[test]
fn other_streams_uses_of_a_callers_buffers_are_in_order() {
    let _turn = turn::take();
    let cuda = device::cuda();
    let Some(control) = softcuda::control() else {
        println!("NOT RUN: on a real device work cannot be held back");
        return;
    };
    let vocab = 500;
    let numbers =
        |seed: usize| -> Vec<f32> { (0..4 * vocab).map(|i| ((i * 7919 + seed) % 1013) as f32 * 0.01).collect() };
    let batch = Batch::new(&[0u32, 1, 2, 3, 4], &[0u32, 2, 4]).expect("offsets");
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("betas");
    let other = cuda.stream().context().new_stream().expect("a stream");
    let (of_logits, of_targets, of_reference) = (numbers(5), [7_i64, 3, 77, 499], [-4.0_f32, -5.0, -6.5, -7.0]);
    let of_rewards = [0.25_f64, 1.0, -0.5, 0.0];

    let mut results = Vec::new();
    for case in 0..10 {
        // Which input is not there yet, and which stream is made to run first.
        let (early, own_first) = ((case / 2 < 4).then_some(case / 2), case % 2 == 0);
        let mut logits = upload(&cuda, if early == Some(0) { numbers(1) } else { of_logits.clone() }.as_slice());
        let mut targets = upload(&cuda, if early == Some(1) { &[0_i64; 4] } else { &of_targets });
        let mut reference = upload(&cuda, if early == Some(2) { &[-1.0_f32; 4] } else { &of_reference });
        let mut rewards = upload(&cuda, if early == Some(3) { &[9.0_f64, 0.0, 0.0, 0.0] } else { &of_rewards });
        let mut gradients = upload(&cuda, &vec![0.5_f32; 4 * vocab]);
        let mut before = upload(&cuda, &vec![f32::MAX; 4 * vocab]);
        let mut loss = PreferenceLoss::new(cuda.clone(), objective);
        cuda.stream().synchronize().expect("nothing has failed");
        control.configure(&Settings { delay_streams: true, ..Settings::default() });

        // The other stream writes one of the inputs, and reads what the gradient's buffer held.
        other.memcpy_htod(&of_logits, &mut logits).expect("a copy");
        other.memcpy_htod(&of_targets, &mut targets).expect("a copy");
        other.memcpy_htod(&of_reference, &mut reference).expect("a copy");
        other.memcpy_htod(&of_rewards, &mut rewards).expect("a copy");
        other.memcpy_dtod(&gradients, &mut before).expect("a copy");
        let view = Matrix::new(logits.as_view().into(), vocab).expect("rows");
        let of_tokens = Reference::PerToken(reference.as_view().into());
        let step = loss.forward(&view, &targets, &batch, &of_tokens, &rewards).expect("forward");
        loss.backward(&step, &view, MatrixMut::new(gradients.as_view_mut().into(), vocab).expect("rows"))
            .expect("backward");
        // Then it overwrites all of them, and reads the gradient.
        other.memset_zeros(&mut logits).expect("a memset");
        other.memset_zeros(&mut targets).expect("a memset");
        other.memset_zeros(&mut reference).expect("a memset");
        other.memset_zeros(&mut rewards).expect("a memset");
        let mut after = cuda.stream().context().default_stream().alloc_zeros::<f32>(4 * vocab).expect("memory");
        other.memcpy_dtod(&gradients, &mut after).expect("a copy");
        if own_first {
            cuda.stream().synchronize().expect("nothing has failed");
        }
        other.synchronize().expect("nothing has failed");
        control.configure(&Settings::default());
        assert_eq!(download(&cuda, &before), vec![0.5; 4 * vocab], "the gradient was written too early");
        let report = loss.report().expect("report").clone();
        assert!(report.loss > 0.0);
        results.push((report, download(&cuda, &after)));
    }
    assert!(results[0].1.iter().any(|gradient| *gradient != 0.0 && *gradient != 0.5), "a gradient was read");
    for (case, result) in results.iter().enumerate() {
        assert!(result == &results[9], "case {case}: an input was read too early or too late");
    }
}
