//! Which threads may call when: by what MPI was initialised for.

use crate::Calls;
use exo_kernels::ranks;
use exo_kernels::{Cpu, Error, Result};
use exo_kernels_mpi::Mpi;
use mpi::topology::SimpleCommunicator;
use std::thread;

/// The call that an engine's error names.
fn refused<R: std::fmt::Debug>(result: Result<R>) -> &'static str {
    match result {
        Err(Error::Engine { engine: "MPI", call, .. }) => call,
        other => panic!("an error of MPI expected, {other:?} found"),
    }
}

pub(crate) fn one_thread_is_not_enough(world: &SimpleCommunicator) {
    assert_eq!(refused(Mpi::new(world)), "MPI_Query_thread");
}

pub(crate) fn another_thread_is_refused(world: &SimpleCommunicator) {
    let mpi = Mpi::new(world).expect("a duplicate");
    let found = thread::scope(|scope| scope.spawn(|| mpi.exchange(&[5])).join().expect("no panic"));
    assert_eq!(refused(found), "MPI_Is_thread_main");
    assert_eq!(mpi.exchange(&[5]), Ok(vec![5; mpi.ranks()]), "the one that initialised MPI may");
}

pub(crate) fn another_thread_may_call(world: &SimpleCommunicator) {
    let mpi = Mpi::new(world).expect("a duplicate");
    thread::scope(|scope| {
        let found = scope.spawn(|| mpi.exchange(&[5])).join().expect("no panic");
        assert_eq!(found, Ok(vec![5; mpi.ranks()]));
    });
    // The last call is another thread's, which drops it.
    thread::spawn(move || drop(mpi)).join().expect("no panic");
}

pub(crate) fn a_call_within_a_call_is_refused(world: &SimpleCommunicator) {
    let (mpi, other) = (Mpi::new(world).expect("a duplicate"), Mpi::new(world).expect("a duplicate"));
    let mut found = Vec::new();
    let mut numbers = [1.0];
    let sum = ranks::Communicator::sum(&mpi, &Cpu::default(), &mut numbers, &mut || {
        found.push(mpi.exchange(&[5]));
        found.push(other.exchange(&[5]));
        Ok(())
    });
    assert_eq!((sum, numbers), (Ok(()), [mpi.ranks() as f32]));
    assert_eq!(refused(found.remove(0)), "a call");
    assert_eq!(found, [Ok(vec![5; mpi.ranks()])], "of another communicator");
    assert_eq!(mpi.exchange(&[5]), Ok(vec![5; mpi.ranks()]));
}

/// The second thread calls while the first is in its call.
pub(crate) fn two_at_once_are_refused(world: &SimpleCommunicator) {
    let (mpi, other) = (Mpi::new(world).expect("a duplicate"), Mpi::new(world).expect("a duplicate"));
    let mut found = None;
    let sum = ranks::Communicator::sum(&mpi, &Cpu::default(), &mut [1.0], &mut || {
        found = Some(thread::scope(|scope| scope.spawn(|| other.exchange(&[5])).join().expect("no panic")));
        Ok(())
    });
    assert_eq!(sum, Ok(()));
    assert_eq!(refused(found.expect("called")), "MPI_Query_thread");
    assert_eq!(other.exchange(&[5]), Ok(vec![5; mpi.ranks()]), "by turns they may");
}

pub(crate) fn communicators_of_their_own_are_used_at_once(world: &SimpleCommunicator) {
    let all = [0, 1, 2].map(|_| Mpi::new(world).expect("a duplicate"));
    thread::scope(|scope| {
        for (thread, mpi) in all.iter().enumerate() {
            scope.spawn(move || {
                for call in 0..200 {
                    let word = (1000 * thread + call) as u32;
                    assert_eq!(mpi.exchange(&[word]), Ok(vec![word; mpi.ranks()]));
                }
            });
        }
    });
}
