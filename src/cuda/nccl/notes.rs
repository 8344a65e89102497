//! Words that hosts exchange: by a communicator and a stream of their own, so that nobody waits for the backend's work.

use crate::cuda::driver::called;
use crate::cuda::lent::Lender;
use crate::cuda::nccl::library::WORDS;
use crate::cuda::nccl::owned::Owned;
use crate::cuda::nccl::side::{Side, Staging};
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, result, sys};
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a host asks again at once before it sleeps between two questions.
const AT_ONCE: Duration = Duration::from_micros(100);
const SLEEP: Duration = Duration::from_micros(50);

/// What an exchange between hosts needs.
pub(super) struct Notes {
    staging: Lender<Option<Staging>>,
    /// Behind what is used on it.
    side: Side,
}

impl Notes {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        Ok(Self { staging: Lender::default(), side: Side::new(context)? })
    }

    /// Words of all ranks, `[P, n]`. Waits for them, for so long at most.
    pub(super) fn gather(&self, communicator: &Owned, words: &[u32], longest: Duration) -> Result<Vec<u32>> {
        self.staging.with(Option::default, |staging| {
            let staging = match staging {
                Some(staging) => staging,
                None => staging.insert(Staging::new(self.side.stream())?),
            };
            self.gather_in(staging, communicator, words, longest)
        })
    }

    fn gather_in(
        &self,
        staging: &mut Staging,
        communicator: &Owned,
        words: &[u32],
        longest: Duration,
    ) -> Result<Vec<u32>> {
        let (count, all) = (words.len(), words.len() * communicator.ranks);
        staging.reserve(all)?;
        let own = communicator.rank * count;
        staging.host()[own..own + count].copy_from_slice(words);
        let (device, stream) = (staging.device.address(), self.side.stream().cu_stream());
        let (of_own, bytes) = (device + (own * size_of::<u32>()) as u64, count * size_of::<u32>());
        let host = staging.host().as_mut_ptr();
        if count > 0 {
            // SAFETY: the words that were just written, which nobody touches before the stream is waited for; as many on the device.
            let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(of_own, host.add(own).cast(), bytes, stream) };
            called("cuMemcpyHtoDAsync", copied.result())?;
        }
        communicator.enqueue("ncclAllGather", |library, handle| {
            let (send, receive) = (of_own as *const c_void, device as *mut c_void);
            // SAFETY: a communicator; P times as many words, of which this rank's are in their place.
            unsafe { (library.ncclAllGather)(send, receive, count, WORDS, handle, stream.cast()) }
        })?;
        if count > 0 {
            // SAFETY: room for the words of all ranks, on either side.
            let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(host.cast(), device, all * size_of::<u32>(), stream) };
            called("cuMemcpyDtoHAsync", copied.result())?;
        }
        // SAFETY: both are alive, and of one context.
        let recorded = unsafe { result::event::record(staging.arrived.cu_event(), stream) };
        called("cuEventRecord", recorded)?;
        let are_there = || called("cuEventQuery", staging.arrived.try_is_complete());
        wait(are_there, || communicator.check(), (communicator.rank, longest))?;
        Ok(staging.host()[..all].to_vec())
    }
}

/// Waits until the words are there, and looks meanwhile whether the communicator is well. Nothing is locked.
fn wait(
    mut are_there: impl FnMut() -> Result<bool>,
    check: impl Fn() -> Result<()>,
    (rank, longest): (usize, Duration),
) -> Result<()> {
    let began = Instant::now();
    while !are_there()? {
        check()?;
        if began.elapsed() >= longest {
            let reason = format!("no words of the other ranks within {longest:?}");
            return Err(Error::Rank { rank, reason });
        }
        if began.elapsed() < AT_ONCE { std::thread::yield_now() } else { std::thread::sleep(SLEEP) }
    }
    // What has failed has ended too.
    check()
}

#[cfg(test)]
mod test {
    use super::*;

    const SOON: Duration = Duration::from_millis(5);

    #[test]
    fn a_wait_ends_with_the_words_an_error_or_the_time() {
        let failed = Error::Engine { engine: "NCCL", call: "a call", reason: "a reason".to_owned() };
        let broken = || Err(failed.clone());
        let mut questions = 0;
        let third = || {
            questions += 1;
            Ok(questions == 3)
        };
        assert_eq!(wait(third, || Ok(()), (1, Duration::MAX)), Ok(()));
        assert_eq!(questions, 3);
        assert_eq!(wait(|| Ok(false), broken, (1, Duration::MAX)), broken(), "an error ends it");
        assert_eq!(wait(|| Ok(true), broken, (1, Duration::MAX)), broken(), "work that has ended may have failed");
        assert_eq!(wait(|| Err(Error::NoDriver), || Ok(()), (1, Duration::MAX)), Err(Error::NoDriver));
        let late = wait(|| Ok(false), || Ok(()), (1, SOON));
        assert!(matches!(late, Err(Error::Rank { rank: 1, .. })), "{late:?}");
    }
}
