//! The types of [`backend`] over the memory of the host.

use crate::backend::{self, Host};

/// [`backend::Matrix`] on the host: made from a slice.
pub type Matrix<'a, T> = backend::Matrix<'a, T, Host>;
/// [`backend::MatrixMut`] on the host: made from a slice.
pub type MatrixMut<'a, T> = backend::MatrixMut<'a, T, Host>;
/// [`backend::Head`] on the host.
pub type Head<'a, T> = backend::Head<'a, T, Host>;
/// [`backend::Hidden`] on the host.
pub type Hidden<'m, 'a, T> = backend::Hidden<'m, 'a, T, Host>;
/// [`backend::LinearGradients`] on the host.
pub type LinearGradients<'a, T, G> = backend::LinearGradients<'a, T, G, Host>;
/// [`backend::Targets`] on the host: made from a slice, array or `Vec` of ids.
pub type Targets<'a> = backend::Targets<'a, Host>;
/// [`backend::Reference`] on the host.
pub type Reference<'a> = backend::Reference<'a, Host>;
/// [`backend::Rewards`] on the host: made from a slice, array or `Vec` of numbers.
pub type Rewards<'a> = backend::Rewards<'a, Host>;
/// [`backend::TokenLogProbs`] on the host.
pub type TokenLogProbs<'a> = backend::TokenLogProbs<'a, Host>;
/// [`backend::SavedRows`] on the host.
pub type SavedRows<'a> = backend::SavedRows<'a, Host>;
/// [`backend::LinearOutputs`] on the host.
pub type LinearOutputs<'a> = backend::LinearOutputs<'a, Host>;
/// [`backend::SavedLinear`] on the host.
pub type SavedLinear<'a> = backend::SavedLinear<'a, Host>;
/// [`backend::RowGradients`] on the host.
pub type RowGradients<'a> = backend::RowGradients<'a, Host>;
/// [`backend::RowLogProbs`] on the host.
pub type RowLogProbs<'a> = backend::RowLogProbs<'a, Host>;
/// [`backend::LogRatioOutputs`] on the host.
pub type LogRatioOutputs<'a> = backend::LogRatioOutputs<'a, Host>;
/// [`backend::ObjectiveOutputs`] on the host.
pub type ObjectiveOutputs<'a> = backend::ObjectiveOutputs<'a, Host>;
/// [`backend::RowWeights`] on the host.
pub type RowWeights<'a> = backend::RowWeights<'a, Host>;
/// [`backend::RowLosses`] on the host.
pub type RowLosses<'a> = backend::RowLosses<'a, Host>;
/// [`backend::LinearParts`] on the host; P is [`Backend::PartialRow`](crate::Backend::PartialRow).
pub type LinearParts<'a, P> = backend::LinearParts<'a, Host, P>;
/// [`backend::UnitSums`] on the host.
pub type UnitSums<'a, P> = backend::UnitSums<'a, Host, P>;
/// [`backend::GatheredRows`] on the host.
pub type GatheredRows<'a, P> = backend::GatheredRows<'a, Host, P>;
