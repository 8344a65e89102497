//! The linear stage on a CUDA device for tests.

use crate::device::{self, Forward, download, upload};
use crate::linear::Case;
pub use crate::linear::{ALL, Gradients, Wanted};
use cudarc::driver::{CudaSlice, DeviceRepr};
use exo_kernels::cuda::{
    Cuda, Head, Hidden, LinearChunks, LinearGradients, Matrix, MatrixMut, RowGradients, RowLosses, SavedRows,
    TokenLogProbs,
};
use exo_kernels::{Element, LogitOptions, RowLoss, SoftmaxState};

/// A backend with cuBLAS.
pub fn cuda() -> Cuda {
    let cuda = device::cuda();
    eprintln!("cuBLAS: {:?}", softcublas::install().expect("softcublas can be loaded where softcuda is"));
    cuda
}

/// So many columns at once, and as many bytes of rows.
pub fn set_chunks(cuda: &Cuda, columns: usize, row_bytes: usize) {
    cuda.set_linear_chunks(LinearChunks::default().with_columns(columns).expect("units").with_row_bytes(row_bytes));
}

/// A case on the device.
pub struct OnDevice<T> {
    cuda: Cuda,
    rows: usize,
    size: usize,
    vocab: usize,
    hidden: CudaSlice<T>,
    weight: CudaSlice<T>,
    bias: Option<CudaSlice<T>>,
    targets: CudaSlice<i64>,
    /// What is said of the number of scored rows.
    pub scored_rows: Option<usize>,
}

/// Buffers for gradients, on the device.
struct Buffers<T, G> {
    hidden: CudaSlice<T>,
    weight: CudaSlice<G>,
    bias: CudaSlice<G>,
}

impl<T: Element + DeviceRepr, G: Element + DeviceRepr> Buffers<T, G> {
    fn new(case: &OnDevice<T>, wanted: Wanted) -> Self {
        // Poison: what is not written shows.
        let before = wanted.accumulate.map_or(G::NAN, G::from_f32);
        Self {
            hidden: upload(&case.cuda, &vec![T::NAN; case.rows * case.size]),
            weight: upload(&case.cuda, &vec![before; case.vocab * case.size]),
            bias: upload(&case.cuda, &vec![before; case.vocab]),
        }
    }

    fn views(&mut self, case: &OnDevice<T>, wanted: Wanted) -> LinearGradients<'_, T, G> {
        let (rows, size, vocab) = (case.rows, case.size, case.vocab);
        let hidden = self.hidden.slice_mut(..rows * size);
        let hidden = wanted.hidden.then(|| MatrixMut::new(hidden, size).expect("rows"));
        let weight = self.weight.slice_mut(..vocab * size);
        let weight = wanted.weight.then(|| MatrixMut::new(weight, size).expect("rows"));
        let gradients = LinearGradients::new(hidden, weight);
        let gradients = if wanted.bias { gradients.with_bias(self.bias.slice_mut(..vocab)) } else { gradients };
        if wanted.accumulate.is_some() { gradients.accumulating() } else { gradients }
    }

    fn download(self, case: &OnDevice<T>) -> Gradients<T, G> {
        Gradients {
            hidden: download(&case.cuda, &self.hidden.slice(..case.rows * case.size)),
            weight: download(&case.cuda, &self.weight),
            bias: download(&case.cuda, &self.bias),
        }
    }
}

impl<T: Element + DeviceRepr> OnDevice<T> {
    pub fn new(cuda: &Cuda, case: &Case<T, T>) -> Self {
        Self {
            cuda: cuda.clone(),
            rows: case.rows,
            size: case.hidden_size,
            vocab: case.vocab,
            hidden: upload(cuda, &case.hidden),
            weight: upload(cuda, &case.weight),
            bias: case.bias.as_ref().map(|bias| upload(cuda, bias)),
            targets: upload(cuda, &case.targets),
            scored_rows: None,
        }
    }

    /// Calls with the operands.
    fn with<R>(&self, call: impl FnOnce(Hidden<'_, '_, T>, &Head<'_, T>) -> R) -> R {
        let hidden = Matrix::new(self.hidden.slice(..self.rows * self.size), self.size).expect("rows");
        let head = Head::new(Matrix::new(self.weight.as_view(), self.size).expect("rows")).expect("a vocabulary");
        let head = match &self.bias {
            Some(bias) => head.with_bias(bias.as_view()).expect("a bias"),
            None => head,
        };
        let hidden = Hidden::new(&hidden);
        let hidden = match self.scored_rows {
            Some(rows) => hidden.with_scored_rows(rows),
            None => hidden,
        };
        call(hidden, &head)
    }

    /// Forward.
    pub fn forward(&self, options: &LogitOptions, entropies: bool) -> Forward {
        let (cuda, rows) = (&self.cuda, self.rows);
        let mut log_probs = upload(cuda, &vec![f32::MAX; rows]);
        let mut states = upload(cuda, &vec![SoftmaxState { r: f32::MAX, s: f32::MAX }; rows]);
        let mut entropy = upload(cuda, &vec![f32::MAX; rows]);
        let mut outputs = TokenLogProbs {
            log_probs: log_probs.slice_mut(..rows),
            states: states.slice_mut(..rows),
            entropies: entropies.then(|| entropy.slice_mut(..rows)),
        };
        let targets = self.targets.slice(..rows);
        self.with(|hidden, head| cuda.linear_token_log_probs(hidden, head, &targets, options, &mut outputs))
            .expect("forward");
        Forward {
            log_probs: download(cuda, &log_probs.slice(..rows)),
            states: download(cuda, &states.slice(..rows)),
            entropies: if entropies { download(cuda, &entropy.slice(..rows)) } else { Vec::new() },
        }
    }

    /// Backward.
    pub fn backward<G: Element + DeviceRepr>(
        &self,
        options: &LogitOptions,
        forward: &Forward,
        (log_probs, entropies): (&[f32], Option<&[f32]>),
        wanted: Wanted,
    ) -> Gradients<T, G> {
        let (cuda, rows) = (&self.cuda, self.rows);
        let states = upload(cuda, &forward.states);
        let kept = upload(cuda, &forward.entropies);
        let log_probs = upload(cuda, log_probs);
        let entropies = entropies.map(|entropies| upload(cuda, entropies));
        let saved = SavedRows {
            states: states.slice(..rows),
            entropies: (!forward.entropies.is_empty()).then(|| kept.slice(..rows)),
        };
        let upstream = RowGradients {
            log_probs: log_probs.slice(..rows),
            entropies: entropies.as_ref().map(|entropies| entropies.slice(..rows)),
        };
        let mut buffers = Buffers::<T, G>::new(self, wanted);
        let targets = self.targets.slice(..rows);
        self.with(|hidden, head| {
            let gradients = buffers.views(self, wanted);
            cuda.linear_token_log_probs_backward(hidden, head, &targets, options, &saved, &upstream, gradients)
        })
        .expect("backward");
        buffers.download(self)
    }

    /// A row loss: log-probs, losses, gradients.
    pub fn row_loss<G: Element + DeviceRepr>(
        &self,
        options: &LogitOptions,
        loss: RowLoss<&[f32]>,
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>, Gradients<T, G>) {
        let (cuda, rows) = (&self.cuda, self.rows);
        let mut log_probs = upload(cuda, &vec![f32::MAX; rows]);
        let mut losses = upload(cuda, &vec![f32::MAX; rows]);
        let mut buffers = Buffers::<T, G>::new(self, wanted);
        let targets = self.targets.slice(..rows);
        let slices: Vec<CudaSlice<f32>> = match loss {
            RowLoss::Weighted { weights } => vec![upload(cuda, weights)],
            RowLoss::ClippedRatio { weights, advantages, old_log_probs, .. } => {
                vec![upload(cuda, weights), upload(cuda, advantages), upload(cuda, old_log_probs)]
            }
        };
        let on_device = match loss {
            RowLoss::Weighted { .. } => RowLoss::Weighted { weights: slices[0].slice(..rows) },
            RowLoss::ClippedRatio { low, high, log_ratio_limit, .. } => RowLoss::ClippedRatio {
                weights: slices[0].slice(..rows),
                advantages: slices[1].slice(..rows),
                old_log_probs: slices[2].slice(..rows),
                low,
                high,
                log_ratio_limit,
            },
        };
        let mut outputs = RowLosses { log_probs: log_probs.slice_mut(..rows), losses: losses.slice_mut(..rows) };
        self.with(|hidden, head| {
            let gradients = buffers.views(self, wanted);
            cuda.linear_row_loss(hidden, head, &targets, options, on_device, &mut outputs, gradients)
        })
        .expect("a pass");
        let gradients = buffers.download(self);
        (download(cuda, &log_probs.slice(..rows)), download(cuda, &losses.slice(..rows)), gradients)
    }
}
