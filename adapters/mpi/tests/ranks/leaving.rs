//! Ranks that make no other call while the others go on: nobody waits for ever, and everybody is told who it was.

use crate::Calls;
use exo_kernels::ranks;
use exo_kernels::{Cpu, Error};
use exo_kernels_mpi::Mpi;
use mpi::topology::SimpleCommunicator;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Every rank in turn leaves before the others' first, second and third call.
fn every_rank_leaves(world: &SimpleCommunicator, leave: impl Fn(Mpi)) {
    for calls in 0..3 {
        let count = Mpi::new(world).expect("a duplicate").ranks();
        for leaving in 0..count {
            let mpi = Mpi::new(world).expect("a duplicate");
            let gone = Error::Rank { rank: leaving, reason: "it is gone".to_owned() };
            for _ in 0..calls {
                assert_eq!(mpi.exchange(&[5]), Ok(vec![5; mpi.ranks()]));
            }
            if mpi.rank() == leaving {
                leave(mpi);
                continue;
            }
            // Now and later, whatever the call.
            let mut numbers = [5.0; 3];
            assert_eq!(mpi.sum(&mut numbers), Err(gone.clone()));
            assert_eq!(numbers, [5.0; 3], "a refused call wrote");
            assert_eq!(mpi.exchange(&[5]), Err(gone.clone()));
            assert_eq!(mpi.all_gather(&mut vec![5; mpi.ranks()]), Err(gone));
        }
    }
}

pub(crate) fn a_rank_that_is_dropped_is_gone(world: &SimpleCommunicator) {
    every_rank_leaves(world, drop);
}

pub(crate) fn a_rank_that_aborts_is_gone(world: &SimpleCommunicator) {
    every_rank_leaves(world, |mpi| {
        ranks::Communicator::<Cpu>::abort(&mpi);
        let gone = Error::Rank { rank: mpi.rank(), reason: "it is gone".to_owned() };
        assert_eq!(mpi.exchange(&[5]), Err(gone), "for itself too");
        ranks::Communicator::<Cpu>::abort(&mpi);
    });
}

/// Panics without a line on standard error, which a reader would take for a failure.
fn quietly_panics(run: impl FnOnce()) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(run));
    std::panic::set_hook(hook);
    assert!(result.is_err(), "a panic");
}

pub(crate) fn a_rank_that_panics_is_gone(world: &SimpleCommunicator) {
    every_rank_leaves(world, |mpi| {
        quietly_panics(move || {
            let _mpi = mpi;
            panic!("between two calls");
        });
    });
}

/// MPI writes the sums until it is done with them, so a panic must wait for that.
pub(crate) fn a_panic_in_meanwhile_ends_after_the_sum(world: &SimpleCommunicator) {
    let mpi = Mpi::new(world).expect("a duplicate");
    let mut numbers = vec![1.0; 100_001];
    let mut sum = || {
        let backend = Cpu::default();
        ranks::Communicator::sum(&mpi, &backend, &mut numbers, &mut || panic!("in meanwhile")).expect("not reached");
    };
    quietly_panics(&mut sum);
    assert!(numbers.iter().all(|number| *number == mpi.ranks() as f32), "summed when the panic came through");
    assert_eq!(mpi.exchange(&[5]), Ok(vec![5; mpi.ranks()]), "together still");
}

pub(crate) fn ranks_that_leave_together_wait_for_nobody(world: &SimpleCommunicator) {
    for _ in 0..100 {
        let mpi = Mpi::new(world).expect("a duplicate");
        ranks::Communicator::<Cpu>::abort(&mpi);
    }
}
