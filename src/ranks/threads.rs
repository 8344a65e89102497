//! Ranks that are threads of one process.

use crate::backend::{Backend, Host};
use crate::error::{Error, Result, check_length};
use crate::ranks::Communicator;
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
    /// In the order of the ranks. The next exchange makes another where somebody reads this one still.
    found: Arc<Vec<u32>>,
    /// A rank whose number of words differs from rank 0's, its number, and rank 0's.
    differs: Option<(usize, usize, usize)>,
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
    fn meet(&self, words: &[u32]) -> Result<Arc<Vec<u32>>> {
        self.bring(words)?;
        self.wait()
    }

    /// Brings this rank's words; not once one is gone, who may have been waited for in the exchange before.
    fn bring(&self, words: &[u32]) -> Result<()> {
        let mut meeting = self.meeting();
        meeting.all_are_there()?;
        meeting.brought[self.rank].clear();
        meeting.brought[self.rank].extend_from_slice(words);
        meeting.has_brought[self.rank] = true;
        if meeting.has_brought.iter().all(|has_brought| *has_brought) {
            meeting.complete();
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    /// Waits until all ranks have brought theirs. The next exchange is not completed before this rank has brought its words for it,
    /// so that what is found stays until then.
    fn wait(&self) -> Result<Arc<Vec<u32>>> {
        let mut meeting = self.meeting();
        while meeting.has_brought[self.rank] {
            meeting.all_are_there()?;
            meeting = self.shared.changed.wait(meeting).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some((rank, given, expected)) = meeting.differs {
            let (given, expected) = (given as f64, expected as f64);
            return Err(Error::RanksDisagree { what: "words of an exchange", rank, given, other: 0, expected });
        }
        Ok(Arc::clone(&meeting.found))
    }

    /// The others do not wait for this rank any more.
    fn leave(&self) {
        self.meeting().gone.get_or_insert(self.rank);
        self.shared.changed.notify_all();
    }
}

impl Meeting {
    fn all_are_there(&self) -> Result<()> {
        match self.gone {
            Some(rank) => Err(Error::Rank { rank, reason: "it is gone".to_owned() }),
            None => Ok(()),
        }
    }

    fn complete(&mut self) {
        let Self { brought, found, .. } = self;
        if Arc::get_mut(found).is_none() {
            *found = Arc::default();
        }
        let Some(found) = Arc::get_mut(found) else { return };
        let of_first = brought.first().map_or(0, Vec::len);
        let other = brought.iter().position(|words| words.len() != of_first);
        self.differs = other.map(|rank| (rank, brought[rank].len(), of_first));
        found.clear();
        for words in brought.iter() {
            found.extend_from_slice(words);
        }
        self.has_brought.fill(false);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.leave();
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
        let found = self.meet(&words[self.rank * of_rank..][..of_rank])?;
        words.copy_from_slice(&found);
        Ok(())
    }

    fn sum(&self, _: &B, numbers: &mut [f32], meanwhile: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.bring(bytemuck::cast_slice(numbers))?;
        let done = meanwhile();
        let found = self.wait()?;
        let count = numbers.len();
        for (index, sum) in numbers.iter_mut().enumerate() {
            let of_ranks = found.iter().skip(index).step_by(count.max(1));
            *sum = of_ranks.map(|word| f64::from(f32::from_bits(*word))).sum::<f64>() as f32;
        }
        done
    }

    fn exchange(&self, words: &[u32]) -> Result<Option<Vec<u32>>> {
        Ok(Some(self.meet(words)?.to_vec()))
    }

    fn abort(&self) {
        self.leave();
    }
}
