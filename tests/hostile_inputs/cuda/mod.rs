//! The CUDA backend with hostile arguments, on softcuda where there is no device: what the host can see is refused before
//! anything is launched; what only the device can see is counted there. An address is the caller's word: no walk passes a
//! wrong one.

#![allow(clippy::single_match_else, reason = "refused and accepted are judged side by side")]

mod linear;
mod linear_shards;
mod memory;
mod partial_row;
mod preference_loss;
mod raw;
mod stages;

use crate::hostile::Walk;
use crate::hostile::guarded::{Guarded, Sentinel};
use crate::trials::Trials;
use cudarc::driver::{CudaSlice, DeviceRepr};
use exo_kernels::cuda::{Cuda, View, ViewMut};
use std::ops::Range;
use support::device::{self, download, upload};

/// Every walk of the CUDA backend.
pub(crate) const WALKS: [Walk; 22] = [
    ("cuda memory", memory::walk),
    ("cuda views", stages::views),
    ("cuda token_log_probs", stages::token_log_probs),
    ("cuda partial_rows", partial_row::walk),
    ("cuda log_ratios", stages::log_ratios),
    ("cuda objective", stages::objective),
    ("cuda linear_token_log_probs", linear::token_log_probs),
    ("cuda linear_row_loss", linear::row_loss),
    ("cuda preference_loss", preference_loss::from_logits),
    ("cuda linear_preference_loss", preference_loss::from_hidden_states),
    ("cuda raw token_log_probs", raw::token_log_probs),
    ("cuda raw token_log_probs_backward", raw::token_log_probs_backward),
    ("cuda raw partial_rows", raw::partial_rows),
    ("cuda raw merge_rows", raw::merge_rows),
    ("cuda raw log_ratios", raw::log_ratios),
    ("cuda raw objective", raw::objective),
    ("cuda raw linear_token_log_probs", raw::linear),
    ("cuda raw linear_row_loss", raw::linear_row_loss),
    ("cuda linear_shards", linear_shards::walk),
    ("cuda raw linear_partial_rows", raw::linear_partial_rows),
    ("cuda raw linear_unit_gradients", raw::linear_unit_gradients),
    ("cuda ranked", |choices| crate::hostile::ranked::walk(choices, &cuda(), "cuda/sequence_part::Cuda")),
];

/// Walks that one test makes: two have a core each.
fn deviations(what: &'static str, walks: impl Fn(&str) -> bool + Send + 'static) {
    /// Evenly spread over what a walk has: the emulator takes milliseconds for a call of the linear stage.
    const MOST: usize = 240;
    Trials::run(what, move |trials| {
        for (name, walk) in WALKS.into_iter().filter(|(name, _)| walks(name)) {
            trials.some_single_deviations(name, walk, MOST);
        }
    });
}

fn is_linear(name: &str) -> bool {
    name.contains("linear_")
}

#[test]
fn single_deviations_from_logits() {
    deviations("single deviations from logits on CUDA", |name| !is_linear(name));
}

#[test]
fn single_deviations_from_hidden_states() {
    deviations("single deviations from hidden states on CUDA", is_linear);
}

/// The backend of this thread, with cuBLAS.
fn cuda() -> Cuda {
    thread_local! {
        static CUDA: Cuda = {
            let cuda = device::cuda();
            softcublas::install().expect("softcublas can be loaded where softcuda is");
            cuda
        };
    }
    CUDA.with(Clone::clone)
}

/// A buffer on the device between guard zones.
struct Placed<T> {
    host: Guarded<T>,
    range: Range<usize>,
    slice: CudaSlice<T>,
}

impl<T: Sentinel + DeviceRepr> Placed<T> {
    fn of(cuda: &Cuda, host: Guarded<T>) -> Self {
        let (whole, range) = host.whole();
        Self { range, slice: upload(cuda, whole), host }
    }

    fn new(cuda: &Cuda, length: usize) -> Self {
        Self::of(cuda, Guarded::new(length))
    }

    fn view(&self) -> View<'_, T> {
        self.slice.slice(self.range.clone()).into()
    }

    fn view_mut(&mut self) -> ViewMut<'_, T> {
        self.slice.slice_mut(self.range.clone()).into()
    }

    /// What became of it.
    fn fetch(self, cuda: &Cuda) -> Guarded<T> {
        let mut host = self.host;
        host.replace(download(cuda, &self.slice));
        host
    }
}
