//! Ranks as processes: this binary, started again for each.

use crate::alone;
use crate::failures::{Raw, id};
use cudarc::nccl::sys::{ncclResult_t, ncclUniqueId};
use limits::watchdog::within;
use softcuda::Settings;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What makes a process a rank: its number, and how many sums it makes before it ends.
const RANK: &str = "SOFTNCCL_TEST_RANK";
const SUMS: &str = "SOFTNCCL_TEST_SUMS";
const ID: &str = "SOFTNCCL_TEST_ID";

fn start(id: &ncclUniqueId, rank: usize, sums: usize) -> Child {
    let id = id.internal.iter().fold(String::new(), |text, byte| text + &format!("{:02x}", *byte as u8));
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args(["--exact", "processes::a_rank", "--ignored", "--nocapture"]).stdout(Stdio::null());
    command.env(RANK, rank.to_string()).env(SUMS, sums.to_string()).env(ID, id).spawn().expect("a process")
}

/// Not a test, but a rank of the tests below.
#[test]
#[ignore = "started by other tests"]
fn a_rank() {
    let variable = |name| std::env::var(name).ok();
    let (Some(rank), Some(sums), Some(text)) = (variable(RANK), variable(SUMS), variable(ID)) else { return };
    let Some(_alone) = alone(&Settings::default()) else { return };
    let mut id = ncclUniqueId { internal: [0; 128] };
    for (at, byte) in id.internal.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("two digits") as _;
    }
    let raw = Raw::new(id, 3, rank.parse().expect("a rank")).expect("a communicator");
    for _ in 0..sums.parse().expect("a number") {
        raw.sum(8);
        if raw.error().0 != ncclResult_t::ncclSuccess {
            std::process::exit(1);
        }
    }
    // Without a word to the others.
    std::process::exit(0);
}

#[test]
fn processes_sum() {
    let Some(_alone) = alone(&Settings::default()) else { return };
    let id = id();
    within(Duration::from_secs(60), || {
        let others = [1, 2].map(|rank| start(&id, rank, 2));
        let raw = Raw::new(id, 3, 0).expect("a communicator");
        for _ in 0..2 {
            raw.sum(8);
            assert_eq!(raw.error().0, ncclResult_t::ncclSuccess);
        }
        assert_eq!(
            raw.stream.clone_dtoh(&raw.buffer).expect("read")[..9],
            [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0]
        );
        for mut other in others {
            assert!(other.wait().expect("it ends").success());
        }
    });
}

/// It has ended, and nobody has asked the system how: a process that waits for its parent is dead too.
#[test]
fn a_process_that_dies_is_an_error_of_the_others() {
    let Some(_alone) = alone(&Settings::default()) else { return };
    let id = id();
    within(Duration::from_secs(60), || {
        let others = [start(&id, 1, 2), start(&id, 2, 1)];
        let raw = Raw::new(id, 3, 0).expect("a communicator");
        raw.sum(8);
        assert_eq!(raw.error().0, ncclResult_t::ncclSuccess);
        raw.sum(8);
        let (code, text) = raw.error();
        assert_eq!(code, ncclResult_t::ncclRemoteError, "{text}");
        assert!(text.contains("rank 2 is gone"), "{text}");
        let [mut one, mut two] = others;
        assert_eq!(one.wait().expect("it ends").code(), Some(1), "rank 1 has an error too");
        assert!(two.wait().expect("it ends").success());
    });
}
