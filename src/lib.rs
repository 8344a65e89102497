#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[doc(hidden)]
pub mod adapter;
pub mod cpu;
#[cfg(feature = "cuda")]
#[cfg_attr(docsrs, doc(cfg(feature = "cuda")))]
pub mod cuda;
mod data;
mod element;
mod error;
mod forward_pass;
pub mod guide;
mod loss;
pub mod objective;
mod operand;
mod options;
pub mod reference;
mod report;
mod stage;
mod step;

pub use crate::cpu::Cpu;
pub use crate::data::batch::Batch;
pub use crate::data::head::{Head, LinearGradients};
pub use crate::data::logits::{Logits, LogitsMut};
pub use crate::data::matrix::{Matrix, MatrixMut};
pub use crate::data::reference::Reference;
pub use crate::data::rewards::Rewards;
pub use crate::data::targets::{IGNORE_INDEX, TokenId, shifted_targets};
pub use crate::element::{Dtype, Element};
pub use crate::error::{Error, Result};
pub use crate::loss::{Backend, PreferenceLoss};
pub use crate::objective::{Betas, Divergence, Objective, Target};
pub use crate::operand::Operand;
pub use crate::options::{LogRatio, LogitOptions, LossOptions, Reduction};
pub use crate::report::{Oddities, Report};
pub use crate::stage::objective::{GroupStatistics, ObjectiveInputs, ObjectiveOutputs};
pub use crate::stage::row_loss::{DEFAULT_LOG_RATIO_LIMIT, RowLoss, RowLosses};
pub use crate::stage::token_log_prob::{RowGradients, SavedRows, SoftmaxState, TokenLogProbs};
pub use crate::step::Step;
