//! A call's operands, each put in order once for all of the call's stages ([`Backend::ordered`]).

use crate::backend::Backend;
use crate::data::head::Head;
use crate::data::matrix::{Matrix, MatrixMut};
use crate::data::targets::Targets;
use crate::element::Number;

pub(crate) fn matrix<'a, B: Backend, T: Number>(
    backend: &'a B,
    matrix: &'a Matrix<'_, T, B::Memory>,
) -> (Matrix<'a, T, B::Memory>, B::Ordered<'a>) {
    let (data, ordered) = backend.ordered(&matrix.data);
    (Matrix { data, shape: matrix.shape }, ordered)
}

pub(crate) fn matrix_mut<'a, B: Backend, T: Number>(
    backend: &'a B,
    matrix: &'a mut MatrixMut<'_, T, B::Memory>,
) -> (MatrixMut<'a, T, B::Memory>, B::Ordered<'a>) {
    let (data, ordered) = backend.ordered_mut(&mut matrix.data);
    (MatrixMut { data, shape: matrix.shape }, ordered)
}

pub(crate) fn targets<'a, B: Backend>(
    backend: &'a B,
    targets: &'a Targets<'_, B::Memory>,
) -> (Targets<'a, B::Memory>, B::Ordered<'a>) {
    match targets {
        Targets::U32(ids) => {
            let (ids, ordered) = backend.ordered(ids);
            (Targets::U32(ids), ordered)
        }
        Targets::I64(ids) => {
            let (ids, ordered) = backend.ordered(ids);
            (Targets::I64(ids), ordered)
        }
    }
}

/// What keeps the order of a weight and of a bias.
type OfHead<'a, B> = (<B as Backend>::Ordered<'a>, Option<<B as Backend>::Ordered<'a>>);

/// Weight and bias.
pub(crate) fn head<'a, B: Backend, T: Number>(
    backend: &'a B,
    head: &'a Head<'_, T, B::Memory>,
) -> (Head<'a, T, B::Memory>, OfHead<'a, B>) {
    let (weight, of_weight) = matrix(backend, &head.weight);
    let (bias, of_bias) = head.bias.as_ref().map(|bias| backend.ordered(bias)).unzip();
    (Head { weight, bias }, (of_weight, of_bias))
}
