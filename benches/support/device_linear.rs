//! The linear stage on a device with buffers made once: what `benches/cuda.rs` and `benches/tuning.rs` time.

use crate::device::{Bench, Failure};
use cudarc::cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
use cudarc::cublas::{CudaBlas, Gemm, GemmConfig};
use cudarc::driver::CudaSlice;
use exo_kernels::backend::kept_logit_words;
use exo_kernels::cuda::{
    Cuda, Head, LinearGradients, LinearOutputs, Matrix, MatrixMut, RowGradients, RowLosses, SavedLinear, SavedRows,
    TokenLogProbs,
};
use exo_kernels::{Backend, Dtype, LinearKept, LogitOptions, RowLoss, SoftmaxState};
use half::bf16;

/// N hidden states of H and a head of V rows, in bf16, and their gradients.
pub(crate) struct DeviceLinear {
    cuda: Cuda,
    pub(crate) rows: usize,
    hidden_size: usize,
    vocab: usize,
    hidden: CudaSlice<bf16>,
    weight: CudaSlice<bf16>,
    targets: CudaSlice<i64>,
    upstream: CudaSlice<f32>,
    log_probs: CudaSlice<f32>,
    losses: CudaSlice<f32>,
    states: CudaSlice<SoftmaxState>,
    grad_hidden: CudaSlice<bf16>,
    grad_weight: CudaSlice<bf16>,
    /// What a forward pass may keep, made when it is first wanted.
    unit_gradients: Option<CudaSlice<f32>>,
    logit_gradients: Option<CudaSlice<u32>>,
}

impl DeviceLinear {
    /// Logits with a standard deviation of about 2.
    pub(crate) fn new(bench: &Bench, (rows, hidden_size, vocab): (usize, usize, usize)) -> Result<Self, Failure> {
        let stream = bench.stream();
        let ids: Vec<i64> = (0..rows).map(|row| (row * 7919 % vocab) as i64).collect();
        Ok(Self {
            cuda: bench.cuda.clone(),
            rows,
            hidden_size,
            vocab,
            hidden: bench.numbers(rows * hidden_size, 1.0)?,
            weight: bench.numbers(vocab * hidden_size, 6.0 / (hidden_size as f32).sqrt())?,
            targets: stream.clone_htod(&ids)?,
            upstream: stream.clone_htod(&vec![1.0_f32; rows])?,
            log_probs: stream.alloc_zeros(rows)?,
            losses: stream.alloc_zeros(rows)?,
            states: stream.alloc_zeros(rows)?,
            grad_hidden: stream.alloc_zeros(rows * hidden_size)?,
            grad_weight: stream.alloc_zeros(vocab * hidden_size)?,
            unit_gradients: None,
            logit_gradients: None,
        })
    }

    /// Operations of one product.
    pub(crate) fn operations(&self) -> usize {
        2 * self.rows * self.hidden_size * self.vocab
    }

    fn make_kept(&mut self, kept: LinearKept) -> Result<(), Failure> {
        let stream = self.cuda.stream().clone();
        if kept > LinearKept::Nothing && self.unit_gradients.is_none() {
            self.unit_gradients = Some(stream.alloc_zeros(self.rows * self.hidden_size)?);
        }
        if kept == LinearKept::LogitGradients && self.logit_gradients.is_none() {
            let words = kept_logit_words(Dtype::Bf16, self.rows, self.vocab);
            self.logit_gradients = Some(stream.alloc_zeros(words)?);
        }
        Ok(())
    }

    pub(crate) fn forward(&mut self, kept: LinearKept) -> Result<(), Failure> {
        self.make_kept(kept)?;
        let hidden = Matrix::new(self.hidden.as_view().into(), self.hidden_size)?;
        let head = Head::new(Matrix::new(self.weight.as_view().into(), self.hidden_size)?)?;
        let unit_gradients = self.unit_gradients.as_mut().filter(|_| kept > LinearKept::Nothing);
        let logit_gradients = self.logit_gradients.as_mut().filter(|_| kept == LinearKept::LogitGradients);
        let outputs = LinearOutputs {
            rows: TokenLogProbs {
                log_probs: self.log_probs.as_view_mut().into(),
                states: self.states.as_view_mut().into(),
                entropies: None,
            },
            unit_gradients: unit_gradients.map(|numbers| numbers.as_view_mut().into()),
            logit_gradients: logit_gradients.map(|words| words.as_view_mut().into()),
        };
        let options = LogitOptions::default();
        Ok(self.cuda.linear_token_log_probs(&hidden, &head, &self.targets, &options, outputs)?)
    }

    /// After a forward pass that kept the same.
    pub(crate) fn backward(&mut self, kept: LinearKept, trains_head: bool) -> Result<(), Failure> {
        let size = self.hidden_size;
        let hidden = Matrix::new(self.hidden.as_view().into(), size)?;
        let head = Head::new(Matrix::new(self.weight.as_view().into(), size)?)?;
        let unit_gradients = self.unit_gradients.as_ref().filter(|_| kept > LinearKept::Nothing);
        let logit_gradients = self.logit_gradients.as_ref().filter(|_| kept == LinearKept::LogitGradients);
        let saved = SavedLinear {
            rows: SavedRows { states: self.states.as_view().into(), entropies: None },
            unit_gradients: unit_gradients.map(|numbers| numbers.as_view().into()),
            logit_gradients: logit_gradients.map(|words| words.as_view().into()),
        };
        let upstream = RowGradients::PerRow { log_probs: self.upstream.as_view().into(), entropies: None };
        let of_weight = trains_head.then(|| MatrixMut::new(self.grad_weight.as_view_mut().into(), size)).transpose()?;
        let of_hidden = MatrixMut::new(self.grad_hidden.as_view_mut().into(), size)?;
        let gradients = LinearGradients::new(Some(of_hidden), of_weight);
        let options = LogitOptions::default();
        Ok(self.cuda.linear_token_log_probs_backward(
            &hidden,
            &head,
            &self.targets,
            &options,
            saved,
            &upstream,
            gradients,
        )?)
    }

    /// Forward and backward in one.
    pub(crate) fn row_loss(&mut self, trains_head: bool) -> Result<(), Failure> {
        let size = self.hidden_size;
        let hidden = Matrix::new(self.hidden.as_view().into(), size)?;
        let head = Head::new(Matrix::new(self.weight.as_view().into(), size)?)?;
        let loss = RowLoss::Weighted { weights: self.upstream.as_view().into() };
        let outputs =
            RowLosses { log_probs: self.log_probs.as_view_mut().into(), losses: self.losses.as_view_mut().into() };
        let of_weight = trains_head.then(|| MatrixMut::new(self.grad_weight.as_view_mut().into(), size)).transpose()?;
        let of_hidden = MatrixMut::new(self.grad_hidden.as_view_mut().into(), size)?;
        let gradients = LinearGradients::new(Some(of_hidden), of_weight);
        let options = LogitOptions::default();
        Ok(self.cuda.linear_row_loss(&hidden, &head, &self.targets, &options, &loss, outputs, gradients)?)
    }
}

/// The device's limit: the product hidden · weightᵀ by cuBLAS, in chunks of columns that are written one over the other.
pub(crate) struct Product {
    blas: CudaBlas,
    shape: (usize, usize, usize),
    hidden: CudaSlice<bf16>,
    weight: CudaSlice<bf16>,
    out: CudaSlice<bf16>,
}

/// Columns of a chunk at most.
const COLUMNS: usize = 32_768;

impl Product {
    pub(crate) fn new(bench: &Bench, shape: (usize, usize, usize)) -> Result<Self, Failure> {
        let (rows, size, vocab) = shape;
        let blas = CudaBlas::new(bench.stream())?;
        let out = bench.stream().alloc_zeros(rows * COLUMNS.min(vocab))?;
        Ok(Self {
            blas,
            shape,
            hidden: bench.numbers(rows * size, 1.0)?,
            weight: bench.numbers(vocab * size, 1.0)?,
            out,
        })
    }

    pub(crate) fn run(&mut self) -> Result<(), Failure> {
        let (rows, size, vocab) = self.shape;
        for begin in (0..vocab).step_by(COLUMNS) {
            let columns = COLUMNS.min(vocab - begin);
            // Column-major: the rows of ours are cuBLAS's columns.
            let config = GemmConfig {
                transa: CUBLAS_OP_T,
                transb: CUBLAS_OP_N,
                m: columns as i32,
                n: rows as i32,
                k: size as i32,
                alpha: bf16::ONE,
                lda: size as i32,
                ldb: size as i32,
                beta: bf16::ZERO,
                ldc: columns as i32,
            };
            let weight = self.weight.slice(begin * size..(begin + columns) * size);
            // SAFETY: matrices of these shapes; the output has room for the largest chunk.
            unsafe { self.blas.gemm(config, &weight, &self.hidden, &mut self.out) }?;
        }
        Ok(())
    }
}
