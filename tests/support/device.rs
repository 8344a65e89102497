//! A CUDA device for tests: a real one where there is a driver, softcuda elsewhere.

#![allow(dead_code, reason = "every test binary uses its own part of it")]

use cudarc::driver::{CudaContext, CudaSlice, DevicePtr, DeviceRepr};
use exo_kernels::cuda::{Cuda, Logits, LogitsMut, RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{Element, LogitOptions, SoftmaxState};

/// A backend on a stream of its own.
pub(crate) fn cuda() -> Cuda {
    let installed = softcuda::install().expect("softcuda can be loaded where there is no driver");
    eprintln!("CUDA device: {installed:?}");
    let context = CudaContext::new(0).expect("device 0");
    Cuda::new(&context.new_stream().expect("a stream")).expect("the kernels load")
}

/// Host numbers on the device.
pub(crate) fn upload<T: DeviceRepr + Copy>(cuda: &Cuda, numbers: &[T]) -> CudaSlice<T> {
    // An allocation of nothing is none: empty inputs get one element that nobody reads.
    if numbers.is_empty() {
        // SAFETY: it is never read.
        return unsafe { cuda.stream().alloc(1) }.expect("memory");
    }
    cuda.stream().clone_htod(numbers).expect("upload")
}

/// Device numbers on the host, behind everything in the stream. A fault on softcuda fails the test with its text.
pub(crate) fn download<T: DeviceRepr + Clone>(cuda: &Cuda, numbers: &impl DevicePtr<T>) -> Vec<T> {
    let numbers = cuda.stream().clone_dtoh(numbers).and_then(|numbers| cuda.stream().synchronize().map(|()| numbers));
    numbers.unwrap_or_else(|error| match softcuda::control().and_then(|control| control.take_fault()) {
        Some(fault) => panic!("{fault}"),
        None => panic!("{error}"),
    })
}

/// What the forward pass gave, on the host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Forward {
    pub(crate) log_probs: Vec<f32>,
    pub(crate) states: Vec<SoftmaxState>,
    pub(crate) entropies: Vec<f32>,
}

/// Rows of logits with their targets: `[N, V]`, row stride ≥ V.
#[derive(Debug, Clone)]
pub(crate) struct Rows<T> {
    pub(crate) logits: Vec<T>,
    pub(crate) targets: Vec<i64>,
    pub(crate) vocab: usize,
    pub(crate) row_stride: usize,
    /// Elements before the first row: another alignment.
    pub(crate) offset: usize,
}

impl<T: Element + DeviceRepr> Rows<T> {
    /// Contiguous rows.
    pub(crate) fn new(logits: Vec<T>, targets: Vec<i64>, vocab: usize) -> Self {
        Self { logits, targets, vocab, row_stride: vocab, offset: 0 }
    }

    /// N.
    pub(crate) fn count(&self) -> usize {
        self.targets.len()
    }

    /// Forward on the device.
    pub(crate) fn forward(&self, cuda: &Cuda, options: &LogitOptions, entropies: bool) -> Forward {
        let count = self.count();
        let logits = upload(cuda, &self.logits);
        let targets = upload(cuda, &self.targets);
        // Poison: what is not written shows.
        let mut log_probs = upload(cuda, &vec![f32::MAX; count]);
        let mut states = upload(cuda, &vec![SoftmaxState { r: f32::MAX, s: f32::MAX }; count]);
        let mut entropy = upload(cuda, &vec![f32::MAX; count]);
        let view = Logits::strided(logits.slice(self.offset..), count, self.vocab, self.row_stride).expect("rows");
        let mut outputs = TokenLogProbs {
            log_probs: log_probs.slice_mut(..count),
            states: states.slice_mut(..count),
            entropies: entropies.then(|| entropy.slice_mut(..count)),
        };
        cuda.token_log_probs(&view, &targets.slice(..count), options, &mut outputs).expect("forward");
        Forward {
            log_probs: download(cuda, &log_probs.slice(..count)),
            states: download(cuda, &states.slice(..count)),
            entropies: if entropies { download(cuda, &entropy.slice(..count)) } else { Vec::new() },
        }
    }

    /// Backward on the device: the whole buffer, in place or out of place.
    pub(crate) fn backward(
        &self,
        cuda: &Cuda,
        options: &LogitOptions,
        forward: &Forward,
        (log_probs, entropies): (&[f32], Option<&[f32]>),
        in_place: bool,
    ) -> Vec<T> {
        let count = self.count();
        let mut logits = upload(cuda, &self.logits);
        let targets = upload(cuda, &self.targets);
        let states = upload(cuda, &forward.states);
        let kept = upload(cuda, &forward.entropies);
        let upstream = upload(cuda, log_probs);
        let entropy_upstream = entropies.map(|entropies| upload(cuda, entropies));
        let saved = SavedRows {
            states: states.slice(..count),
            entropies: (!forward.entropies.is_empty()).then(|| kept.slice(..count)),
        };
        let upstream = RowGradients {
            log_probs: upstream.slice(..count),
            entropies: entropy_upstream.as_ref().map(|entropies| entropies.slice(..count)),
        };
        let ids = targets.slice(..count);
        if in_place {
            let view = logits.slice_mut(self.offset..);
            let mut view = LogitsMut::strided(view, count, self.vocab, self.row_stride).expect("rows");
            cuda.token_log_probs_backward_in_place(&mut view, &ids, options, &saved, &upstream).expect("backward");
            return download(cuda, &logits);
        }
        let mut gradients = upload(cuda, &self.logits);
        let view = Logits::strided(logits.slice(self.offset..), count, self.vocab, self.row_stride).expect("rows");
        let out = gradients.slice_mut(self.offset..);
        let mut out = LogitsMut::strided(out, count, self.vocab, self.row_stride).expect("rows");
        cuda.token_log_probs_backward(&view, &ids, options, &saved, &upstream, &mut out).expect("backward");
        download(cuda, &gradients)
    }
}
