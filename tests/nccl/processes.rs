//! Ranks as processes: this binary, started again.

use crate::{LIMIT, call, cuda, rows, shard, slices, turn_with};
use exo_kernels::cuda::{Grown, Nccl};
use exo_kernels::ranks::{Communicator, Threads};
use exo_kernels::{Error, LogitOptions};
use limits::watchdog::within;
use softcuda::Settings;
use std::process::{Child, Command, Stdio};

/// What makes a process a rank: the communicator's id, and how many steps it makes before it ends.
const ID: &str = "EXO_KERNELS_TEST_NCCL_ID";
const STEPS: &str = "EXO_KERNELS_TEST_NCCL_STEPS";

/// Rank 1 of two.
fn start(id: &[u8; 128], steps: usize) -> Child {
    let id = id.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "processes::a_rank", "--ignored"]).stdout(Stdio::null());
    command.env(ID, id).env(STEPS, steps.to_string()).spawn().expect("a process")
}

/// Steps of a rank, the first result of which is its; then an error, if there is one.
fn steps(id: &[u8; 128], rank: usize, count: usize) -> (Vec<u32>, Result<(), Error>) {
    let ((vocab, layout), device) = (slices(2), cuda(0));
    let nccl = Nccl::new(&device, id, rank, 2).expect("a communicator");
    let options = shard(&LogitOptions::default(), &layout, rank, vocab);
    let own = layout.of_rank(&rows(vocab, 0), rank);
    let mut first = Vec::new();
    for step in 0..count {
        let (result, found) = call(&device, &nccl, &own, &options, &mut Grown::default());
        if let Err(error) = result.and_then(|()| nccl.status()) {
            return (first, Err(error));
        }
        if step == 0 {
            first = found;
        }
    }
    // Without a word to the other.
    std::mem::forget(nccl);
    (first, Ok(()))
}

/// Not a test, but a rank of the test below.
#[test]
#[ignore = "started by another test"]
fn a_rank() {
    let variable = |name| std::env::var(name).ok();
    let (Some(text), Some(count)) = (variable(ID), variable(STEPS)) else { return };
    let Some(_turn) = turn_with(1, Settings::default(), true) else { return };
    let mut id = [0; 128];
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("two digits");
    }
    let (_, result) = steps(&id, 1, count.parse().expect("a number"));
    std::process::exit(i32::from(result.is_err()));
}

/// The bits of one call; and a process that is gone is an error of the other, which does not wait.
#[test]
fn a_process_is_a_rank_until_it_ends() {
    let Some(_turn) = turn_with(1, Settings::default(), true) else { return };
    let id = Nccl::unique_id().expect("an id");
    within(LIMIT, || {
        let mut other = start(&id, 2);
        let (found, result) = steps(&id, 0, 3);
        let Err(Error::Engine { reason, .. }) = result else { panic!("{result:?}") };
        assert!(reason.contains("rank 1 is gone"), "{reason}");
        assert!(other.wait().expect("it ends").success(), "it has made its steps");
        let alone = support::ranks::Staged(Threads::new(1).expect("one").remove(0));
        assert_eq!(Communicator::<exo_kernels::cuda::Cuda>::ranks(&alone), 1);
        let options = LogitOptions::default();
        let one = call(&cuda(0), &alone, &rows(slices(2).0, 0), &options, &mut Grown::default());
        assert_eq!(one, (Ok(()), found));
    });
}
