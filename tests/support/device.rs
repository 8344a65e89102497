//! A CUDA device for tests: a real one where there is a driver, softcuda elsewhere.

use cudarc::driver::{CudaContext, CudaSlice, DevicePtr, DeviceRepr};
use exo_kernels::cuda::{Cuda, Logits, LogitsMut, RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{Element, LogitOptions, Result, SoftmaxState};

pub use crate::host_rows::{Forward, Rows};

/// A backend on a stream of its own.
pub fn cuda() -> Cuda {
    let installed = softcuda::install().expect("softcuda can be loaded where there is no driver");
    eprintln!("CUDA device: {installed:?}");
    let context = CudaContext::new(0).expect("device 0");
    Cuda::new(&context.new_stream().expect("a stream")).expect("the kernels load")
}

/// Host numbers on the device.
pub fn upload<T: DeviceRepr + Copy>(cuda: &Cuda, numbers: &[T]) -> CudaSlice<T> {
    // An allocation of nothing is none: empty inputs get one element that nobody reads.
    if numbers.is_empty() {
        // SAFETY: it is never read.
        return unsafe { cuda.stream().alloc(1) }.expect("memory");
    }
    cuda.stream().clone_htod(numbers).expect("upload")
}

/// Device numbers on the host, behind everything in the stream. A fault on softcuda fails the test with its text.
pub fn download<T: DeviceRepr + Clone>(cuda: &Cuda, numbers: &impl DevicePtr<T>) -> Vec<T> {
    let numbers = cuda.stream().clone_dtoh(numbers).and_then(|numbers| cuda.stream().synchronize().map(|()| numbers));
    numbers.unwrap_or_else(|error| match softcuda::control().and_then(|control| control.take_fault()) {
        Some(fault) => panic!("{fault}"),
        None => panic!("{error}"),
    })
}

impl<T: Element + DeviceRepr> Rows<T> {
    /// Forward on the device.
    pub fn forward(&self, cuda: &Cuda, options: &LogitOptions, entropies: bool) -> Forward {
        self.try_forward(cuda, options, entropies).expect("forward")
    }

    /// The same, as an error where it is refused.
    pub fn try_forward(&self, cuda: &Cuda, options: &LogitOptions, entropies: bool) -> Result<Forward> {
        let count = self.count();
        let logits = upload(cuda, &self.logits);
        // Poison: what is not written shows.
        let mut log_probs = upload(cuda, &vec![f32::MAX; count]);
        let mut states = upload(cuda, &vec![SoftmaxState { r: f32::MAX, s: f32::MAX }; count]);
        let mut entropy = upload(cuda, &vec![f32::MAX; count]);
        let view = logits.slice(self.offset..self.logits.len());
        let view = Logits::strided(view, count, self.vocab, self.row_stride)?;
        let mut outputs = TokenLogProbs {
            log_probs: log_probs.slice_mut(..count),
            states: states.slice_mut(..count),
            entropies: entropies.then(|| entropy.slice_mut(..count)),
        };
        if self.targets_in_32_bits {
            let targets = upload(cuda, &self.narrow_targets());
            cuda.token_log_probs(&view, &targets.slice(..count), options, &mut outputs)?;
        } else {
            let targets = upload(cuda, &self.targets);
            cuda.token_log_probs(&view, &targets.slice(..count), options, &mut outputs)?;
        }
        Ok(Forward {
            log_probs: download(cuda, &log_probs.slice(..count)),
            states: download(cuda, &states.slice(..count)),
            entropies: if entropies { download(cuda, &entropy.slice(..count)) } else { Vec::new() },
        })
    }

    /// Backward on the device: the whole buffer, in place or out of place.
    pub fn backward(
        &self,
        cuda: &Cuda,
        options: &LogitOptions,
        forward: &Forward,
        upstream: (&[f32], Option<&[f32]>),
        in_place: bool,
    ) -> Vec<T> {
        self.try_backward(cuda, options, forward, upstream, in_place).expect("backward")
    }

    /// The same, as an error where it is refused.
    pub fn try_backward(
        &self,
        cuda: &Cuda,
        options: &LogitOptions,
        forward: &Forward,
        (log_probs, entropies): (&[f32], Option<&[f32]>),
        in_place: bool,
    ) -> Result<Vec<T>> {
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
            let mut view = LogitsMut::strided(view, count, self.vocab, self.row_stride)?;
            cuda.token_log_probs_backward_in_place(&mut view, &ids, options, &saved, &upstream)?;
            return Ok(download(cuda, &logits));
        }
        let mut gradients = upload(cuda, &self.logits);
        let view = Logits::strided(logits.slice(self.offset..), count, self.vocab, self.row_stride)?;
        let out = gradients.slice_mut(self.offset..);
        let mut out = LogitsMut::strided(out, count, self.vocab, self.row_stride)?;
        cuda.token_log_probs_backward(&view, &ids, options, &saved, &upstream, &mut out)?;
        Ok(download(cuda, &gradients))
    }
}
