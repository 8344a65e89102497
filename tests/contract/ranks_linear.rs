//! A preference loss from hidden states under a head whose rows lie on several ranks.
//!
//! One rank has the bits of none. Ranks of whole slices have the log-probs, the report and the head's gradients of one rank, and every rank
//! the same gradient of the hidden states, which is that of one rank within the rounding of its sums. Ranks that are refused or
//! gone leave nobody waiting, also not in the backward pass, whose sum over ranks is the only exchange there is.

use exo_kernels::backend::SLICE;
use exo_kernels::ranks::{Ranks, Threads};
use exo_kernels::{
    Batch, Betas, Cpu, Error, LinearGradients, LinearKept, LogitOptions, LossOptions, MatrixMut, Objective,
    PreferenceLoss, Reference, Report, Result, Rewards, Shard, Step,
};
use std::sync::Arc;
use std::thread;
use support::backend::{HostLoss, Placed, Rows, TestBackend, on_every_backend};
use support::linear::{ALL, Case, Gradients, Wanted};
use support::mesh::{Division, Part, Whole};

on_every_backend!(
    one_rank_has_the_bits_of_none,
    ranks_of_whole_slices_have_the_gradients_of_one,
    a_mesh_adds_up_the_same_hidden_gradient,
    what_a_backward_pass_refuses_all_are_told,
    a_rank_that_is_gone_leaves_nobody_waiting,
);

/// All that there is: the head's columns are those of the batch's rows.
struct Problem {
    case: Case<f32, f32>,
    whole: Whole<f32>,
    options: LossOptions,
}

impl Problem {
    /// Four sequences of 8 rows, one of them masked in each four, in groups of 3 and 1.
    fn new(vocab: usize) -> Self {
        let case = Case::random(8, 5, vocab, true, vocab as u64);
        let batch = Batch::new(&[0, 3, 4, 6, 8], &[0, 3, 4]).expect("a batch");
        let logits = LogitOptions::default().with_temperature(0.8).expect("valid").with_softcap(9.0).expect("valid");
        let objective = Objective::exo(Betas { policy: 0.3, reward: 0.7 }).expect("valid");
        Self {
            whole: Whole {
                rows: Rows::new(vec![0.0; 8 * vocab], case.targets.clone(), vocab),
                batch,
                reference: (0..8).map(|row| -8.0 - row as f32 / 16.0).collect(),
                reference_sums: None,
                rewards: vec![1.0, 0.25, 0.5, 0.0],
                proposal: None,
            },
            case,
            options: LossOptions::from(objective).with_logits(logits).with_entropy(true),
        }
    }

    fn part(&self, division: &Division, place: (usize, usize, usize)) -> (Part<f32>, Case<f32, f32>) {
        let (part, size) = (division.part(&self.whole, place), self.case.hidden_size);
        let (columns, rows) = (part.columns.clone(), &part.rows);
        let case = Case {
            rows: rows.len(),
            hidden_size: size,
            vocab: columns.len(),
            hidden: rows.iter().flat_map(|row| self.case.hidden[row * size..][..size].to_vec()).collect(),
            weight: self.case.weight[columns.start * size..columns.end * size].to_vec(),
            bias: self.case.bias.as_ref().map(|bias| bias[columns].to_vec()),
            targets: part.whole.rows.targets.clone(),
        };
        (part, case)
    }

    /// What one device finds.
    fn alone<B: TestBackend>(&self, backend: &B) -> Outcome {
        let placed = Placed::new(backend, &self.case);
        let mut loss = HostLoss::new(backend, self.options);
        let step = forward(&mut loss, &placed, &self.whole).expect("one rank");
        let (gradients, result) = loss.backward_linear(&step, &placed, &placed, ALL);
        result.expect("one rank");
        Outcome { report: loss.report().expect("a report"), gradients }
    }

    /// A step of each rank, twice backward; `wanted` is of the rank and of the pass.
    fn on_ranks<B: TestBackend>(
        &self,
        backend: &B,
        division: &Division,
        mesh: Vec<Ranks<B>>,
        wanted: impl Fn(usize, usize) -> Wanted + Sync,
    ) -> Vec<Result<Outcome>> {
        thread::scope(|scope| {
            let wanted = &wanted;
            let ranks: Vec<_> = mesh
                .into_iter()
                .zip(division.places())
                .enumerate()
                .map(|(rank, (ranks, place))| {
                    scope.spawn(move || {
                        let (part, case) = self.part(division, place);
                        let placed = Placed::new(backend, &case);
                        let mut loss = HostLoss::new(backend, self.options).with_ranks(ranks, part.shard);
                        let step = forward(&mut loss, &placed, &part.whole)?;
                        let (first, result) =
                            loss.backward_linear::<f32, f32, f32>(&step, &placed, &placed, wanted(rank, 0));
                        result?;
                        // What has been added up stays added up.
                        let (gradients, result) = loss.backward_linear(&step, &placed, &placed, wanted(rank, 1));
                        result?;
                        assert_eq!(bits(&gradients.hidden), bits(&first.hidden));
                        Ok(Outcome { report: loss.report()?, gradients })
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect()
        })
    }

    /// What two sums of T·∂ log π/∂h may differ by, times a gradient g/T of a log-prob: they have V terms p·W, in f32, in any order,
    /// and what is weighted has an error of some units too. |g| ≤ 2·β_π·K.
    fn hidden_bound(&self) -> f32 {
        let largest = self.case.weight.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
        (self.whole.rows.vocab + 64) as f32 * f32::EPSILON * 2.0 * largest * (2.0 * 0.3 * 3.0) / 0.8
    }
}

#[derive(Debug)]
struct Outcome {
    report: Report,
    gradients: Gradients<f32, f32>,
}

fn forward<B: TestBackend>(loss: &mut HostLoss<B>, placed: &Placed<B, f32, f32>, whole: &Whole<f32>) -> Result<Step> {
    let reference = Reference::PerToken(&whole.reference);
    loss.forward_linear(placed, placed, &whole.batch, reference, Rewards::from(&whole.rewards))
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

fn one_rank_has_the_bits_of_none<B: TestBackend>(backend: &B) {
    let (problem, division) = (Problem::new(1100), Division::new(&[0], 1, &[0]));
    let expected = problem.alone(backend);
    for outcome in problem.on_ranks(backend, &division, division.mesh(true, None), |_, _| ALL) {
        let Outcome { report, gradients } = outcome.expect("one rank");
        assert_eq!(format!("{report:?}"), format!("{:?}", expected.report));
        assert_eq!(bits(&gradients.hidden), bits(&expected.gradients.hidden));
        assert_eq!(bits(&gradients.weight), bits(&expected.gradients.weight));
        assert_eq!(bits(&gradients.bias), bits(&expected.gradients.bias));
    }
}

fn ranks_of_whole_slices_have_the_gradients_of_one<B: TestBackend>(backend: &B) {
    let problem = Problem::new(SLICE + 100);
    let expected = problem.alone(backend);
    let division = Division::new(&[0, SLICE], 1, &[0]);
    let found = problem.on_ranks(backend, &division, division.mesh(false, None), |_, _| ALL);
    let first = found[0].as_ref().expect("all fit").gradients.hidden.clone();
    for (outcome, place) in found.into_iter().zip(division.places()) {
        let Outcome { report, gradients } = outcome.expect("all fit");
        let columns = problem.part(&division, place).0.columns;
        if B::KEEPS_BITS_OF_RANKS {
            assert_eq!(format!("{report:?}"), format!("{:?}", expected.report));
            let size = problem.case.hidden_size;
            let of_part = &expected.gradients.weight[columns.start * size..columns.end * size];
            assert_eq!(bits(&gradients.weight), bits(of_part));
            assert_eq!(bits(&gradients.bias), bits(&expected.gradients.bias[columns]));
        }
        assert_eq!(bits(&gradients.hidden), bits(&first), "every rank has the same");
        for (found, expected) in gradients.hidden.iter().zip(&expected.gradients.hidden) {
            assert!((found - expected).abs() <= problem.hidden_bound(), "{found} {expected}");
        }
    }
}

fn a_mesh_adds_up_the_same_hidden_gradient<B: TestBackend>(backend: &B) {
    let problem = Problem::new(1100);
    let expected = problem.alone(backend);
    let division = Division::new(&[0, 1, 700], 2, &[0, 2]);
    let found = problem.on_ranks(backend, &division, division.mesh(false, None), |_, _| ALL);
    let size = problem.case.hidden_size;
    for (outcome, place) in found.into_iter().zip(division.places()) {
        let Outcome { gradients, .. } = outcome.expect("all fit");
        let rows = problem.part(&division, place).0.rows;
        for (found, row) in gradients.hidden.chunks(size).zip(rows) {
            for (found, expected) in found.iter().zip(&expected.gradients.hidden[row * size..]) {
                assert!((found - expected).abs() <= problem.hidden_bound(), "{found} {expected}");
            }
        }
    }
}

fn what_a_backward_pass_refuses_all_are_told<B: TestBackend>(backend: &B) {
    // Nothing was kept.
    let mut problem = Problem::new(70);
    problem.options = problem.options.with_linear_kept(LinearKept::Nothing);
    let division = Division::new(&[0, 30], 1, &[0]);
    for outcome in problem.on_ranks(backend, &division, division.mesh(false, None), |_, _| ALL) {
        let error = outcome.expect_err("nothing was kept");
        assert!(matches!(error, Error::UnitGradientsNotKept | Error::Rank { .. }), "{error}");
    }
    // Frozen hidden states need nobody.
    let frozen = Wanted { hidden: false, ..ALL };
    for outcome in problem.on_ranks(backend, &division, division.mesh(false, None), |_, _| frozen) {
        outcome.expect("the head's gradient is a rank's own");
    }
    // The step of another loss, on one rank.
    let problem = Problem::new(70);
    let found: Vec<Result<()>> = thread::scope(|scope| {
        let ranks = division.mesh(false, None).into_iter().zip(division.places()).enumerate();
        let ranks: Vec<_> = ranks
            .map(|(rank, (ranks, place))| {
                let (problem, division) = (&problem, &division);
                scope.spawn(move || {
                    let (part, case) = problem.part(division, place);
                    let placed = Placed::new(backend, &case);
                    let mut loss = HostLoss::new(backend, problem.options).with_ranks(ranks, part.shard);
                    let first = forward(&mut loss, &placed, &part.whole)?;
                    let second = forward(&mut loss, &placed, &part.whole)?;
                    let step = if rank == 1 { &first } else { &second };
                    loss.backward_linear::<f32, f32, f32>(step, &placed, &placed, ALL).1
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect()
    });
    assert!(matches!(found[0], Err(Error::Rank { rank: 1, .. })), "{found:?}");
    assert!(matches!(found[1], Err(Error::OtherStep { .. })), "{found:?}");
}

fn a_rank_that_is_gone_leaves_nobody_waiting<B: TestBackend>(backend: &B) {
    let (problem, division) = (Problem::new(70), Division::new(&[0, 30], 1, &[0]));
    // Forward: notes and rows; backward: notes and the sum; and the notes of the second backward pass.
    for exchanges in 0..=4 {
        let found = problem.on_ranks(backend, &division, division.mesh(false, Some((1, exchanges))), |_, _| ALL);
        for outcome in found {
            let error = outcome.expect_err("a rank is gone");
            assert!(matches!(error, Error::Rank { .. } | Error::NoForward), "{error}");
        }
    }
}

/// For automatic differentiation the shares are added up where the pass is taken out of the loss.
#[test]
fn a_forward_pass_apart_from_its_loss_has_the_whole_hidden_gradient() {
    let (problem, division) = (Problem::new(70), Division::new(&[0, 30], 1, &[0]));
    let expected = problem.alone(&Cpu::default()).gradients.hidden;
    let threads = Threads::new(2).expect("few");
    let found: Vec<Vec<f32>> = thread::scope(|scope| {
        let ranks: Vec<_> = threads
            .into_iter()
            .zip(division.places())
            .map(|(own, place)| {
                let (problem, division) = (&problem, &division);
                scope.spawn(move || {
                    let (part, case) = problem.part(division, place);
                    let ranks = Ranks { vocab: Some(Arc::new(own)), ..Ranks::default() };
                    let shard = Shard::new(part.columns.start, 70).expect("a shard");
                    let mut loss =
                        PreferenceLoss::new(Cpu::default(), problem.options).with_shard(shard).with_ranks(ranks);
                    let (hidden, head, reference) = (case.hidden(), case.head(), &part.whole.reference);
                    let reference = Reference::PerToken(reference);
                    let (batch, rewards) = (&part.whole.batch, &part.whole.rewards);
                    let step = loss.forward_linear(&hidden, &head, &case.targets, batch, &reference, rewards)?;
                    let pass = loss.into_forward_pass(step)?;
                    let mut gradient = vec![0.0; case.hidden.len()];
                    let to = MatrixMut::new(&mut gradient, case.hidden_size)?;
                    let gradients = LinearGradients::<f32, f32>::new(Some(to), None);
                    pass.backward_linear(1.0, &hidden, &head, gradients)?;
                    Ok(gradient)
                })
            })
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().expect("a rank").map_err(|error: Error| error.to_string()).expect("fits"))
            .collect()
    });
    assert_eq!(bits(&found[0]), bits(&found[1]));
    for (found, expected) in found[0].iter().zip(&expected) {
        assert!((found - expected).abs() <= problem.hidden_bound(), "{found} {expected}");
    }
}
