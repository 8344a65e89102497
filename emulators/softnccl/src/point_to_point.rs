//! Sends and receives: parcels in mailboxes, one for each pair of ranks and each direction. Those of a group go on side by side, so
//! that ranks may send to each other.

use crate::call::{Call, INVALID_USAGE, UNHANDLED_CUDA_ERROR, kind};
use crate::collective::Trouble;
use crate::communicator::{Communicator, Failed};
use crate::control::count;
use crate::driver::{Bytes, Fault};
use crate::segment::PARCEL;
use softload::host_work::Memory;
use std::sync::atomic::Ordering;

/// A send or a receive of one rank, as it waits in a stream. The other rank is the call's root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) call: Call,
    /// On the device.
    pub(crate) address: u64,
}

/// How far a transfer is, in bytes. One of no bytes takes one parcel too.
struct Progress {
    transfer: Transfer,
    moved: u64,
    finished: bool,
}

/// What came of a try.
enum Step {
    Moved,
    Waits,
    /// Both sides' calls.
    Differs(Call, Call),
    Fault(Fault),
}

impl Progress {
    fn step(&mut self, communicator: &Communicator, memory: &Memory) -> Step {
        let (rank, other, call) = (communicator.rank, self.transfer.call.root, self.transfer.call);
        let sends = call.kind == kind::SEND;
        let (from, to) = if sends { (rank, other) } else { (other, rank) };
        let mailbox = communicator.segment.mailbox(from, to);
        let is_full = mailbox.put.load(Ordering::SeqCst) != mailbox.taken.load(Ordering::SeqCst);
        if is_full == sends {
            return Step::Waits;
        }
        let rest = call.bytes(communicator.ranks()) - self.moved;
        let bytes = rest.min(PARCEL as u64);
        // SAFETY: an empty mailbox is the sender's, a full one the receiver's.
        let (shown, data) = unsafe { (&mut *mailbox.call.get(), &mut (&mut *mailbox.data.get())[..bytes as usize]) };
        let address = self.transfer.address + self.moved;
        if sends {
            if let Err(fault) = memory.load(address, data) {
                return Step::Fault(fault);
            }
            *shown = call;
            mailbox.put.fetch_add(1, Ordering::SeqCst);
        } else {
            if (shown.count, shown.data_type) != (call.count, call.data_type) {
                return Step::Differs(*shown, call);
            }
            if let Err(fault) = memory.store(address, data) {
                return Step::Fault(fault);
            }
            mailbox.taken.fetch_add(1, Ordering::SeqCst);
        }
        self.moved += bytes;
        self.finished = bytes == rest;
        communicator.segment.ring();
        Step::Moved
    }
}

/// Runs the transfers of a group. Those between the same two ranks in the same direction are in order.
pub(crate) fn run(transfers: &[Transfer], communicator: &Communicator, memory: &Memory) -> Result<(), Trouble> {
    let _turn = communicator.turn();
    let mut open: Vec<_> =
        transfers.iter().map(|transfer| Progress { transfer: *transfer, moved: 0, finished: false }).collect();
    let what = || transfers.first().map_or(String::new(), |transfer| transfer.call.to_string());
    while !open.is_empty() {
        let mut trouble = None;
        // One that has gone, if there is such a one, else any.
        let others: Vec<_> = open.iter().map(|progress| progress.transfer.call.root).collect();
        let is_behind = || others.iter().copied().find(|rank| communicator.is_gone(*rank)).or(others.first().copied());
        let mut advance = || {
            let (mut moved, mut begun) = (false, Vec::new());
            for progress in &mut open {
                let lane = (progress.transfer.call.kind, progress.transfer.call.root);
                if progress.finished || begun.contains(&lane) {
                    continue;
                }
                begun.push(lane);
                match progress.step(communicator, memory) {
                    Step::Moved => moved = true,
                    Step::Waits => {}
                    Step::Differs(sent, received) => trouble = Some(differs(communicator, sent, received)),
                    Step::Fault(fault) => trouble = Some(faulted(communicator, &progress.transfer.call, fault)),
                }
            }
            moved || trouble.is_some()
        };
        communicator.wait_until(&mut advance, &is_behind, &what)?;
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        open.retain(|progress| !progress.finished);
    }
    for transfer in transfers {
        count(transfer.call.kind, transfer.call.bytes(communicator.ranks()));
    }
    Ok(())
}

fn differs(communicator: &Communicator, sent: Call, received: Call) -> Trouble {
    let text = format!(
        "the ranks' calls differ: rank {} makes {sent}, rank {} makes {received}",
        received.root, communicator.rank
    );
    Trouble::from(communicator.fail(INVALID_USAGE, &text))
}

fn faulted(communicator: &Communicator, call: &Call, fault: Fault) -> Trouble {
    let text = format!("rank {}: an access to device memory failed with {} in {call}", communicator.rank, fault.0);
    let Failed = communicator.fail(UNHANDLED_CUDA_ERROR, &text);
    Trouble::Fault(fault)
}
