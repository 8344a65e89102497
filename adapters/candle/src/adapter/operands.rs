//! What makes the rows' logits, as tensors and as the stages take them: the logits themselves, or hidden states and a head.

use super::candle_core::{D, Error, Result, Tensor, bail};
use super::row_layout::{RowLayout, in_place};
use super::tensor_backend::{Located, Scalar, TensorBackend, part};
use exo_kernels::backend::{Head, Hidden, LinearGradients, Matrix, MatrixMut, Memory, ViewMut};

/// Logits; or hidden states, the weight of a head and, if there is one, its bias: on one device, of one dtype, with rows that
/// lie at one stride.
pub(super) struct Tensors(Vec<Tensor>);

/// What the operands are called in errors.
pub(super) fn names(operands: usize) -> &'static [&'static str] {
    if operands == 1 { &["logits"] } else { &["hidden", "weight", "bias"] }
}

impl Tensors {
    /// Logits `[.., V]`.
    pub(super) fn logits(logits: &Tensor, targets: &Tensor) -> Result<Self> {
        Ok(Self(vec![rows_of("logits", logits, targets)?]))
    }

    /// Hidden states `[.., H]`, weight `[V, H]` and bias `[V]`.
    pub(super) fn linear(hidden: &Tensor, weight: &Tensor, bias: Option<&Tensor>, targets: &Tensor) -> Result<Self> {
        let hidden = rows_of("hidden", hidden, targets)?;
        let size = hidden.dim(D::Minus1)?;
        let &[vocab, columns] = weight.dims() else {
            bail!("weight: shape {:?} given, [V, {size}] expected", weight.dims())
        };
        if columns != size {
            bail!("weight: shape {:?} given, [V, {size}] expected", weight.dims());
        }
        for (what, tensor) in [("weight", Some(weight)), ("bias", bias)] {
            let Some(tensor) = tensor else { continue };
            if tensor.dtype() != hidden.dtype() {
                bail!(
                    "{what}: dtype {:?} given, {:?} (that of the hidden states) expected",
                    tensor.dtype(),
                    hidden.dtype()
                );
            }
            if !tensor.device().same_device(hidden.device()) {
                bail!("{what}: a tensor on {:?} given, {:?} expected", tensor.device(), hidden.device());
            }
        }
        if let Some(bias) = bias
            && bias.dims() != [vocab]
        {
            bail!("bias: shape {:?} given, [{vocab}] expected", bias.dims());
        }
        let mut tensors = vec![hidden, in_place(weight)?];
        tensors.extend(bias.map(Tensor::contiguous).transpose()?);
        Ok(Self(tensors))
    }

    pub(super) fn all(&self) -> &[Tensor] {
        &self.0
    }

    /// Logits or hidden states.
    pub(super) fn rows(&self) -> &Tensor {
        &self.0[0]
    }

    /// V.
    pub(super) fn vocab(&self) -> Result<usize> {
        self.0.get(1).map_or_else(|| self.rows().dim(D::Minus1), |weight| weight.dim(0))
    }
}

/// Logits `[.., V]`, or hidden states `[.., H]`, of rows that can be read where they lie: see [`in_place`].
fn rows_of(what: &str, rows: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let Some((_, leading)) = rows.dims().split_last() else { bail!("{what}: a scalar given, rows expected") };
    if leading != targets.dims() {
        bail!(
            "targets: shape {:?} given, {leading:?} (that of the {what} without the last dimension) expected",
            targets.dims()
        );
    }
    in_place(rows)
}

/// The operands of a stage.
pub(super) enum Operands<'a, T: Scalar, M: Memory> {
    /// `[N, V]`
    Logits(Matrix<'a, T, M>),
    /// Hidden states `[N, H]` and a head of V rows.
    Linear(Matrix<'a, T, M>, Head<'a, T, M>),
}

impl<'a, T: Scalar, M: Memory> Operands<'a, T, M> {
    /// As the stages take them.
    pub(super) fn new<B: TensorBackend<Memory = M>>(operands: &[Located<'a, B::Storage>]) -> Result<Self> {
        match operands {
            [logits] => matrix::<B, T>("logits", *logits).map(Self::Logits),
            [hidden, weight, bias @ ..] => {
                let mut head = Head::new(matrix::<B, T>("weight", *weight)?).map_err(Error::wrap)?;
                if let [(storage, layout)] = bias {
                    let numbers = B::numbers::<T>("bias", storage)?;
                    let bias = part::<B, T>(&numbers, layout.start_offset(), layout.shape().elem_count())?;
                    head = head.with_bias(bias).map_err(Error::wrap)?;
                }
                Ok(Self::Linear(matrix::<B, T>("hidden", *hidden)?, head))
            }
            [] => bail!("an operation without operands"),
        }
    }

    /// Logits or hidden states.
    pub(super) fn rows(&self) -> &Matrix<'a, T, M> {
        let (Self::Logits(rows) | Self::Linear(rows, _)) = self;
        rows
    }
}

/// `[rows, columns]`, of a tensor whose rows lie at one stride.
fn matrix<'a, B: TensorBackend, T: Scalar>(
    what: &str,
    (storage, layout): Located<'a, B::Storage>,
) -> Result<Matrix<'a, T, B::Memory>> {
    let RowLayout { start, rows, columns, stride } = RowLayout::of_operand(what, layout)?;
    let numbers = B::numbers::<T>(what, storage)?;
    let length = B::Memory::length(&numbers).saturating_sub(start);
    Matrix::strided(part::<B, T>(&numbers, start, length)?, rows, columns, stride).map_err(Error::wrap)
}

/// Hidden states with the number of scored rows, if that is known.
pub(super) fn with_scored_rows<'m, 'a, T: Scalar, M: Memory>(
    states: &'m Matrix<'a, T, M>,
    scored_rows: Option<usize>,
) -> Hidden<'m, 'a, T, M> {
    let hidden = Hidden::new(states);
    scored_rows.map_or(hidden, |count| hidden.with_scored_rows(count))
}

/// Where the gradients of the operands are written; `None` for one that takes part in none.
pub(super) struct Gradients<'a, T: Scalar, M: Memory> {
    /// Of the logits `[N, V]` or the hidden states `[N, H]`.
    pub(super) rows: Option<MatrixMut<'a, T, M>>,
    /// `[V, H]`
    pub(super) weight: Option<MatrixMut<'a, T, M>>,
    /// `[V]`
    pub(super) bias: Option<M::ViewMut<'a, T>>,
}

impl<'a, T: Scalar, M: Memory> Gradients<'a, T, M> {
    /// As views of the buffers; the rows of the first two have so many `columns`.
    pub(super) fn new<B: TensorBackend<Memory = M>>(
        [rows, weight, bias]: [Option<ViewMut<'a, B, T>>; 3],
        columns: usize,
    ) -> Result<Self> {
        let matrix = |view| MatrixMut::new(view, columns).map_err(Error::wrap);
        Ok(Self { rows: rows.map(matrix).transpose()?, weight: weight.map(matrix).transpose()?, bias })
    }

    /// As the linear stage takes them.
    pub(super) fn linear(self) -> LinearGradients<'a, T, T, M> {
        let gradients = LinearGradients::new(self.rows, self.weight);
        match self.bias {
            Some(bias) => gradients.with_bias(bias),
            None => gradients,
        }
    }
}
