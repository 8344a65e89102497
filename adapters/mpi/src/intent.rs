//! What each rank is about to do, told to all before they do it: MPI itself waits for ever, or worse, where ranks differ.

use exo_kernels::{Error, Result};

/// A call that all ranks make together. The numbers are what errors show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// None: the rank is leaving, and makes no other.
    Leave = 0,
    AllGather = 1,
    Sum = 2,
    Exchange = 3,
}

/// Of one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Intent {
    pub(crate) call: Call,
    /// Words of this rank.
    pub(crate) count: usize,
    /// Words of one message, at most.
    pub(crate) largest: usize,
}

impl Intent {
    /// As it is sent.
    pub(crate) const WORDS: usize = 3;

    pub(crate) fn words(self) -> [u64; Self::WORDS] {
        [self.call as u64, self.count as u64, self.largest as u64]
    }
}

/// That all ranks are about to do the same; `intents` are theirs in their order.
pub(crate) fn check(intents: &[u64]) -> Result<()> {
    const WHAT: [&str; Intent::WORDS] =
        ["call (0 none, 1 all_gather, 2 sum, 3 exchange)", "words of an exchange", "words of one message"];
    let (intents, _) = intents.as_chunks::<{ Intent::WORDS }>();
    if let Some(rank) = intents.iter().position(|intent| intent[0] == Call::Leave as u64) {
        return Err(Error::Rank { rank, reason: "it is gone".to_owned() });
    }
    let Some(first) = intents.first() else { return Ok(()) };
    for (rank, intent) in intents.iter().enumerate() {
        for (what, (given, expected)) in WHAT.into_iter().zip(intent.iter().zip(first)) {
            if given != expected {
                let (given, expected) = (*given as f64, *expected as f64);
                return Err(Error::RanksDisagree { what, rank, given, other: 0, expected });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(intents: &[(Call, usize, usize)]) -> Result<()> {
        let words: Vec<_> =
            intents.iter().flat_map(|&(call, count, largest)| Intent { call, count, largest }.words()).collect();
        check(&words)
    }

    #[test]
    fn ranks_that_do_the_same_may() {
        assert_eq!(found(&[(Call::Sum, 5, 9), (Call::Sum, 5, 9), (Call::Sum, 5, 9)]), Ok(()));
    }

    #[test]
    fn what_differs_is_named() {
        let differs = |what, given, expected| Error::RanksDisagree { what, rank: 1, given, other: 0, expected };
        let call = "call (0 none, 1 all_gather, 2 sum, 3 exchange)";
        let same = (Call::AllGather, 5, 9);
        assert_eq!(found(&[same, (Call::Exchange, 6, 9)]), Err(differs(call, 3.0, 1.0)));
        assert_eq!(found(&[same, (Call::AllGather, 6, 9)]), Err(differs("words of an exchange", 6.0, 5.0)));
        assert_eq!(found(&[same, (Call::AllGather, 5, 8)]), Err(differs("words of one message", 8.0, 9.0)));
    }

    #[test]
    fn a_rank_that_leaves_is_gone_whatever_the_others_do() {
        let gone = Error::Rank { rank: 2, reason: "it is gone".to_owned() };
        assert_eq!(found(&[(Call::Sum, 5, 9), (Call::AllGather, 7, 9), (Call::Leave, 0, 9)]), Err(gone));
    }
}
