//! With the identity for a weight the logits are the hidden states and their gradient is the hidden gradient, exactly: every
//! digit must be that of the stage, and of the loss, over logits. CUDA sums rows in another order in either stage, and does
//! not promise this.

use exo_kernels::{Batch, Betas, Element, LinearKept, LogitOptions, LossOptions, Objective, Reference, Rewards};
use half::{bf16, f16};
use support::backend::{HostLoss, Placed, Rows, TestBackend, on_every_host};
use support::linear::{ALL, Case, Gradients, Wanted};

on_every_host!(an_identity_for_a_head_is_the_token_log_prob_stage, over_an_identity_head_it_is_the_loss_over_logits,);

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

fn case<T: Element>(rows: usize, vocab: usize, seed: u64) -> Case<T, T> {
    let mut case = Case::random(rows, vocab, vocab, false, seed);
    case.weight = (0..vocab * vocab).map(|i| T::from_f32(if i / vocab == i % vocab { 1.0 } else { 0.0 })).collect();
    case
}

fn an_identity_for_a_head_is_the_token_log_prob_stage(backend: &impl TestBackend) {
    fn check<T: Element>(backend: &impl TestBackend, vocab: usize, options: &LogitOptions) {
        let mut case = case::<T>(21, vocab, 3);
        for value in &mut case.hidden {
            *value = T::from_f32(value.to_f32() * 5.0);
        }
        let at = |row: usize, shift: usize| ((row * 7 + shift) % 11) as f32 * 0.2 - 0.9;
        let g: Vec<f32> = (0..case.rows).map(|row| at(row, 0)).collect();
        let e: Vec<f32> = (0..case.rows).map(|row| at(row, 5)).collect();
        let placed = Placed::new(backend, &case);
        let linear = placed.forward(options, true);
        let gradients: Gradients<T, T> = placed.backward(options, &linear, (&g, Some(&e)), ALL);

        let rows = Rows::new(case.hidden, case.targets, vocab);
        let forward = backend.forward(&rows, options, true);
        let gradient = backend.backward(&rows, options, &forward, (&g, Some(&e)), false);
        // One unit of 512 columns is summed alike by both stages.
        assert_eq!(bits(&linear.log_probs), bits(&forward.log_probs));
        assert_eq!(bits(&linear.entropies), bits(&forward.entropies));
        // Zeros may differ in sign: a sum that begins with +0 stays +0.
        let same = bits(&gradients.hidden).into_iter().zip(bits(&gradient)).all(|(a, b)| a == b || (a | b) << 1 == 0);
        assert!(same, "hidden gradient, V={vocab} {options:?}");
    }
    let capped = LogitOptions::default().with_temperature(0.8).and_then(|options| options.with_softcap(6.0));
    for vocab in [1, 2, 37, 300, 512] {
        for options in [LogitOptions::default(), capped.clone().expect("valid")] {
            check::<f32>(backend, vocab, &options);
            check::<f16>(backend, vocab, &options);
            check::<bf16>(backend, vocab, &options);
        }
    }
}

fn over_an_identity_head_it_is_the_loss_over_logits(backend: &impl TestBackend) {
    const REWARDS: [f64; 5] = [0.3, -0.2, 0.9, 0.0, 0.4];
    let case = case::<f32>(20, 60, 11);
    let vocab = case.vocab;
    let reference = vec![-4.0f32; case.rows];
    let (reference, rewards) = (Reference::PerToken(&reference), Rewards::from(&REWARDS));
    // Two groups, of three and of two completions.
    let batch = Batch::new(&[0, 4, 7, 11, 14, 20], &[0, 3, 5]).expect("a batch");
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.7 }).expect("valid");
    let options =
        LossOptions::from(objective).with_logits(LogitOptions::default().with_temperature(0.8).expect("valid"));
    // With unit gradients the digits are others, but no fewer.
    let mut of_hidden: HostLoss<_> = backend.loss(options.with_linear_kept(LinearKept::Nothing));
    let placed = Placed::new(backend, &case);
    let step = of_hidden.forward_linear(&placed, &placed, &batch, reference, rewards).expect("forward");
    of_hidden.set_loss_scale(0.5);
    let wanted = Wanted { bias: false, ..ALL };
    let (gradients, done): (Gradients<f32, f32>, _) = of_hidden.backward_linear(&step, &placed, &placed, wanted);
    done.expect("backward");

    let mut of_logits = backend.loss(options);
    let rows = Rows::new(case.hidden.clone(), case.targets.clone(), vocab);
    let step = of_logits.forward(&rows, &batch, reference, rewards).expect("forward");
    of_logits.set_loss_scale(0.5);
    let gradient = of_logits.backward(&step, &rows).expect("backward");
    assert_eq!(of_hidden.report().expect("a report"), of_logits.report().expect("a report"));
    assert_eq!(gradients.hidden, gradient);

    // And the weight's gradient is the product of the two.
    for column in 0..vocab {
        for i in 0..vocab {
            let rows = (0..20).filter(|row| case.targets[*row] >= 0);
            let (mut sum, mut size) = (0.0, 0.0);
            for row in rows {
                let term = f64::from(gradient[row * vocab + column]) * f64::from(case.hidden[row * vocab + i]);
                sum += term;
                size += term.abs();
            }
            let error = (f64::from(gradients.weight[column * vocab + i]) - sum).abs();
            assert!(error <= size * 20.0 * f32::UNIT_ROUNDOFF, "weight {column} {i}");
        }
    }
}
