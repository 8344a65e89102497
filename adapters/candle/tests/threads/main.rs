//! No lock is held over rayon: the candle adapter's operations go forward and backward on many threads at once, inside of
//! a rayon pool and outside, and give the bits that one thread gives.
//!
//! A thread that waits in rayon for the other half of its work takes up another task meanwhile. If it holds a lock that
//! this task wants, it waits for itself.

use exo_kernels::{Batch, Betas, Objective, Reference};
use exo_kernels_candle::candle_core::{Device, Tensor, Var};
use exo_kernels_candle::{linear_preference_loss, preference_loss};
use limits::watchdog;
use std::time::Duration;

const ROUNDS: usize = 1000;
/// More threads than cores, so that they are interrupted anywhere.
const THREADS: usize = 8;
const SEQUENCES: usize = 4;
const ROWS: usize = 2 * SEQUENCES;
/// Enough that the rows of one loss are divided between threads several times.
const VOCAB: usize = 8500;
/// Of the linear operation: as many columns as make several tiles.
const HEAD: usize = 700;
const HIDDEN: usize = 8;

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1013) as f32 / 256.0 - 2.0).collect()
}

fn variable(shape: (usize, usize), seed: usize) -> Var {
    let tensor = Tensor::from_vec(numbers(shape.0 * shape.1, seed), shape, &Device::Cpu);
    Var::from_tensor(&tensor.expect("a tensor")).expect("a variable")
}

/// A model of a trainer: logits, or hidden states and a head.
struct Model {
    variables: Vec<Var>,
    targets: Tensor,
    batch: Batch,
    seed: usize,
}

impl Model {
    fn new(seed: usize, linear: bool) -> Self {
        let variables = if linear {
            vec![variable((ROWS, HIDDEN), seed), variable((HEAD, HIDDEN), seed + 1)]
        } else {
            vec![variable((ROWS, VOCAB), seed)]
        };
        let targets: Vec<u32> = (0..ROWS).map(|row| ((row * 97 + seed) % HEAD) as u32).collect();
        Self {
            variables,
            targets: Tensor::from_vec(targets, ROWS, &Device::Cpu).expect("targets"),
            batch: Batch::padded(SEQUENCES, 2, 2).expect("a batch"),
            seed,
        }
    }

    fn loss(&self) -> Tensor {
        let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid");
        let rewards = numbers(SEQUENCES, self.seed + 2);
        let loss = match self.variables.as_slice() {
            [logits] => {
                preference_loss(logits.as_tensor(), &self.targets, &self.batch, Reference::None, &rewards, objective)
            }
            [hidden, weight, ..] => linear_preference_loss(
                hidden.as_tensor(),
                weight.as_tensor(),
                None,
                &self.targets,
                &self.batch,
                Reference::None,
                &rewards,
                objective,
            ),
            [] => unreachable!("a model has variables"),
        };
        loss.expect("forward").0
    }

    /// The gradients of all variables, from one backward pass.
    fn gradients(&self, loss: &Tensor) -> Vec<Vec<f32>> {
        let gradients = loss.backward().expect("backward");
        let numbers = |variable| gradients.get(variable).expect("a gradient").flatten_all()?.to_vec1::<f32>();
        self.variables.iter().map(|variable| numbers(variable.as_tensor()).expect("numbers")).collect()
    }
}

/// Three losses of one thread's own, and one that all tasks go backward from.
fn rounds(linear: bool) {
    let models: Vec<Model> = (0..3).map(|index| Model::new(10 * index, linear)).collect();
    let expected: Vec<_> = models.iter().map(|model| model.gradients(&model.loss())).collect();
    assert!(expected.iter().flatten().flatten().any(|value| value.abs() > 1e-3), "there is a gradient");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build().expect("a pool");
    for round in 0..ROUNDS {
        let shared = models[0].loss();
        let check = |model: usize, loss: &Tensor| {
            // Not assert_eq: nobody wants to read the numbers.
            assert!(models[model].gradients(loss) == expected[model], "round {round}, model {model}");
        };
        pool.in_place_scope(|scope| {
            for index in 0..models.len() {
                let (models, check, shared) = (&models, &check, &shared);
                scope.spawn(move |_| {
                    check(index, &models[index].loss());
                    check(0, shared);
                });
            }
            // This thread is none of the pool's.
            check(0, &shared);
            check(1, &models[1].loss());
        });
    }
}

#[test]
fn losses_from_logits_on_many_threads() {
    watchdog::within(Duration::from_secs(300), || rounds(false));
}

#[test]
fn losses_from_hidden_states_on_many_threads() {
    watchdog::within(Duration::from_secs(300), || rounds(true));
}

/// Set for the process that is to hang.
const HANG: &str = "EXO_KERNELS_TEST_HANG";

/// What a hang looks like, in a process of its own that runs this very test.
#[test]
fn a_hang_is_told_with_every_stack() {
    if std::env::var_os(HANG).is_some() {
        return hang();
    }
    let mut child = std::process::Command::new(std::env::current_exe().expect("this program"));
    let child = child.args(["--exact", "a_hang_is_told_with_every_stack"]).env(HANG, "1");
    let output = child.output().expect("a child");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("not finished after"), "{said}");
    for function in ["holds_the_lock_for_ever", "waits_for_the_lock"] {
        assert!(said.contains(function) || cfg!(not(target_os = "linux")), "{function} is not in: {said}");
    }
}

fn hang() {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    #[inline(never)]
    fn holds_the_lock_for_ever() {
        let _held = LOCK.lock();
        std::thread::sleep(Duration::from_secs(3600));
    }
    #[inline(never)]
    fn waits_for_the_lock() {
        std::thread::sleep(Duration::from_millis(50));
        drop(LOCK.lock());
    }
    watchdog::within(Duration::from_millis(300), || {
        std::thread::scope(|scope| {
            scope.spawn(holds_the_lock_for_ever);
            scope.spawn(waits_for_the_lock);
        });
    });
}
