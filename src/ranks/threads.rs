//! Ranks that are threads of one process.

use crate::backend::{Backend, Host};
use crate::error::{Error, Result, check_length};
use crate::ranks::{Communicator, Note};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// More threads no machine has.
const MOST: usize = 1 << 16;

/// One rank of several that are threads of one process, over the memory of the host.
///
/// A rank that is dropped, also by a panic of its thread, is gone: the others get [`Error::Rank`] from calls that wait for it, now
/// and later.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ranks: usize,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

/// What the ranks have brought to the exchange that is under way, and what came of the one before.
#[derive(Debug, Default)]
struct Meeting {
    /// Of each rank; kept between exchanges.
    brought: Vec<Vec<u32>>,
    has_brought: Vec<bool>,
    /// In the order of the ranks.
    found: Vec<u32>,
    /// A rank whose number of words differs from rank 0's, its number, and rank 0's.
    differs: Option<(usize, usize, usize)>,
    /// Exchanges that were completed.
    completed: u64,
    gone: Option<usize>,
}

impl Threads {
    /// So many ranks, in their order.
    ///
    /// # Errors
    /// [`Error::Parameter`] for more than 65536.
    pub fn new(ranks: usize) -> Result<Vec<Self>> {
        if ranks > MOST {
            return Err(Error::Parameter { name: "ranks", given: ranks as f64, expected: "at most 65536" });
        }
        let meeting =
            Meeting { brought: vec![Vec::new(); ranks], has_brought: vec![false; ranks], ..Meeting::default() };
        let shared = Arc::new(Shared { ranks, meeting: Mutex::new(meeting), changed: Condvar::new() });
        Ok((0..ranks).map(|rank| Self { rank, shared: Arc::clone(&shared) }).collect())
    }

    fn meeting(&self) -> MutexGuard<'_, Meeting> {
        self.shared.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings this rank's words and waits for the others': all of them are in what comes back.
    fn meet(&self, words: &[u32]) -> Result<MutexGuard<'_, Meeting>> {
        let mut meeting = self.meeting();
        let before = meeting.completed;
        meeting.brought[self.rank].clear();
        meeting.brought[self.rank].extend_from_slice(words);
        meeting.has_brought[self.rank] = true;
        if meeting.has_brought.iter().all(|has_brought| *has_brought) {
            meeting.complete();
            self.shared.changed.notify_all();
        }
        while meeting.completed == before {
            if let Some(rank) = meeting.gone {
                meeting.has_brought[self.rank] = false;
                return Err(Error::Rank { rank, reason: "it is gone".to_owned() });
            }
            meeting = self.shared.changed.wait(meeting).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some((rank, given, expected)) = meeting.differs {
            let (given, expected) = (given as f64, expected as f64);
            return Err(Error::RanksDisagree { what: "words of an exchange", rank, given, other: 0, expected });
        }
        Ok(meeting)
    }
}

impl Meeting {
    fn complete(&mut self) {
        let Self { brought, found, .. } = self;
        let of_first = brought.first().map_or(0, Vec::len);
        let other = brought.iter().position(|words| words.len() != of_first);
        self.differs = other.map(|rank| (rank, brought[rank].len(), of_first));
        found.clear();
        for words in brought.iter() {
            found.extend_from_slice(words);
        }
        self.has_brought.fill(false);
        self.completed += 1;
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.meeting().gone.get_or_insert(self.rank);
        self.shared.changed.notify_all();
    }
}

impl<B: Backend<Memory = Host>> Communicator<B> for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.shared.ranks
    }

    fn all_gather(&self, _: &B, words: &mut [u32]) -> Result<()> {
        let ranks = self.shared.ranks;
        let of_rank = words.len() / ranks;
        check_length("words of an exchange", words.len(), of_rank * ranks)?;
        let met = self.meet(&words[self.rank * of_rank..][..of_rank])?;
        words.copy_from_slice(&met.found);
        Ok(())
    }

    fn exchange(&self, note: &Note) -> Result<Option<Vec<Note>>> {
        let met = self.meet(bytemuck::cast_slice(std::slice::from_ref(note)))?;
        let notes = met.found.chunks_exact(size_of::<Note>() / size_of::<u32>());
        Ok(Some(notes.map(|note| bytemuck::pod_read_unaligned(bytemuck::cast_slice(note))).collect()))
    }
}
