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
