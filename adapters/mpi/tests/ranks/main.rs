//! What `Mpi` promises, on as many ranks as `mpirun` starts: `scripts/mpi-test` runs this. Without `mpirun` it is one rank.
//!
//! A test is a function in the table below. Every rank runs the tests in its order, and all learn when one of them has failed. What
//! MPI was initialised for is the argument: `single`, `funneled`, `serialized` or `multiple` (the default).

mod leaving;
mod loss;
mod row_log_probs;
mod threads;
mod words;

use exo_kernels::ranks::Communicator;
use exo_kernels::{Cpu, Error};
use exo_kernels_mpi::Mpi;
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives};
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// What a test of all ranks gets: the world communicator, on which it may do what it likes.
type Test = fn(&SimpleCommunicator);

/// A row of the table.
struct Row {
    name: &'static str,
    /// How many ranks it needs at least.
    ranks: usize,
    /// What MPI must be initialised for: at least, at most.
    threading: RangeInclusive<Threading>,
    test: Test,
}

macro_rules! tests {
    ($(($module:ident::$name:ident, $ranks:expr, $least:ident to $most:ident)),* $(,)?) => {
        &[$(Row {
            name: concat!(stringify!($module), "::", stringify!($name)),
            ranks: $ranks,
            threading: Threading::$least..=Threading::$most,
            test: $module::$name,
        }),*]
    };
}

const TESTS: &[Row] = tests![
    (words::every_word_is_gathered, 1, Funneled to Multiple),
    (words::a_number_of_words_that_is_no_multiple_is_refused, 2, Funneled to Multiple),
    (words::every_word_is_exchanged, 1, Funneled to Multiple),
    (words::sums_are_exact_where_f32_is, 1, Funneled to Multiple),
    (words::sums_have_the_same_bits_on_every_rank_within_their_bound, 1, Funneled to Multiple),
    (words::meanwhile_is_called_once_and_its_error_comes_after_the_sum, 1, Funneled to Multiple),
    (words::messages_of_the_user_do_not_mix_with_ours, 1, Funneled to Multiple),
    (words::rows_of_a_split_communicator_are_ranks_of_their_own, 1, Funneled to Multiple),
    (words::ranks_that_differ_are_all_told_so_and_go_on, 2, Funneled to Multiple),
    (words::a_largest_message_that_is_none_is_refused, 1, Funneled to Multiple),
    (row_log_probs::slices_have_the_bits_of_one_call, 1, Funneled to Multiple),
    (row_log_probs::columns_of_any_ranks_are_within_the_bounds, 1, Funneled to Multiple),
    (row_log_probs::what_one_rank_refuses_all_are_told, 1, Funneled to Multiple),
    (row_log_probs::ranks_that_disagree_are_all_told_so, 2, Funneled to Multiple),
    (loss::a_group_on_all_processes_is_that_of_one, 1, Funneled to Multiple),
    (loss::rows_on_all_processes_are_those_of_one, 1, Funneled to Multiple),
    (loss::a_head_on_all_processes_has_one_hidden_gradient, 1, Funneled to Multiple),
    (leaving::a_rank_that_is_dropped_is_gone, 2, Funneled to Multiple),
    (leaving::a_rank_that_aborts_is_gone, 2, Funneled to Multiple),
    (leaving::a_rank_that_panics_is_gone, 2, Funneled to Multiple),
    (leaving::a_panic_in_meanwhile_ends_after_the_sum, 1, Funneled to Multiple),
    (leaving::ranks_that_leave_together_wait_for_nobody, 1, Funneled to Multiple),
    (threads::one_thread_is_not_enough, 1, Single to Single),
    (threads::another_thread_is_refused, 1, Funneled to Funneled),
    (threads::another_thread_may_call, 1, Serialized to Multiple),
    (threads::a_call_within_a_call_is_refused, 1, Funneled to Multiple),
    (threads::two_at_once_are_refused, 1, Serialized to Serialized),
    (threads::communicators_of_their_own_are_used_at_once, 1, Multiple to Multiple),
];

/// The levels that `MPI_Init_thread` knows, by name.
const LEVELS: [(&str, Threading); 4] = [
    ("single", Threading::Single),
    ("funneled", Threading::Funneled),
    ("serialized", Threading::Serialized),
    ("multiple", Threading::Multiple),
];

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_else(|| "multiple".to_owned());
    let Some((_, asked)) = LEVELS.into_iter().find(|(name, _)| *name == argument) else {
        eprintln!("ranks: single, funneled, serialized or multiple expected, {argument} given");
        return ExitCode::from(2);
    };
    let (universe, given) = mpi::initialize_with_threading(asked).expect("the first");
    let world = universe.world();
    let (ranks, first) = (world.size() as usize, world.rank() == 0);
    let say = |line: String| {
        if first {
            println!("{line}");
        }
    };
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    for Row { name, ranks: least, threading, test } in TESTS {
        if ranks < *least || !threading.contains(&given) {
            left_out += 1;
            continue;
        }
        // MPI keeps no state of a test that a panic could leave half done.
        let own = u32::from(catch_unwind(AssertUnwindSafe(|| test(&world))).is_err());
        let mut all = 0_u32;
        world.all_reduce_into(&own, &mut all, SystemOperation::sum());
        say(format!("test {name} ... {}", if all == 0 { "ok".to_owned() } else { format!("FAILED on {all} ranks") }));
        *if all == 0 { &mut passed } else { &mut failed } += 1;
    }
    let kept = (given > Threading::Single).then(|| Mpi::new(&world).expect("a duplicate"));
    drop(world);
    drop(universe);
    // All have left MPI: calls are errors, and to drop what is left is nothing.
    if let Some(kept) = kept {
        let error = Communicator::<Cpu>::exchange(&kept, &[1]).expect_err("MPI is finalised");
        assert!(matches!(error, Error::Engine { call: "MPI_Finalized", .. }), "{error}");
    }
    if first {
        println!(
            "ranks: {ranks}, threads: {given:?} ({argument} asked for): {passed} passed, {failed} failed, {left_out} for other numbers of ranks or threads"
        );
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The methods of [`Communicator`] without a backend's name at each call; where they are used that trait is not in scope.
trait Calls {
    fn all_gather(&self, words: &mut [u32]) -> exo_kernels::Result<()>;
    fn sum(&self, numbers: &mut [f32]) -> exo_kernels::Result<()>;
    fn exchange(&self, words: &[u32]) -> exo_kernels::Result<Vec<u32>>;
}

impl Calls for Mpi {
    fn all_gather(&self, words: &mut [u32]) -> exo_kernels::Result<()> {
        Communicator::all_gather(self, &Cpu::default(), words)
    }

    fn sum(&self, numbers: &mut [f32]) -> exo_kernels::Result<()> {
        Communicator::sum(self, &Cpu::default(), numbers, &mut || Ok(()))
    }

    fn exchange(&self, words: &[u32]) -> exo_kernels::Result<Vec<u32>> {
        Communicator::<Cpu>::exchange(self, words).map(|all| all.expect("notes are exchanged"))
    }
}
