#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod batch;
#[cfg(feature = "candle")]
#[cfg_attr(docsrs, doc(cfg(feature = "candle")))]
pub mod candle;
pub mod cpu;
#[cfg(feature = "cuda")]
#[cfg_attr(docsrs, doc(cfg(feature = "cuda")))]
pub mod cuda;
mod element;
mod error;
#[cfg(feature = "candle")]
mod forward_pass;
mod linear;
mod linear_loss;
mod logits;
mod loss;
mod loss_options;
mod matrix;
pub mod objective;
mod operand;
pub mod reference;
mod report;
mod row_loss;
mod stages;
mod step;
mod targets;

pub use batch::Batch;
pub use cpu::Cpu;
pub use element::{Dtype, Element};
pub use error::{Error, Result};
pub use linear::{Head, LinearGradients};
pub use logits::{LogitOptions, Logits, LogitsMut};
pub use loss::{Backend, PreferenceLoss};
pub use loss_options::{LogRatio, LossOptions, Reduction};
pub use matrix::{Matrix, MatrixMut};
pub use objective::{Betas, Divergence, Objective, Target};
pub use operand::Operand;
pub use report::{Oddities, Report};
pub use row_loss::{DEFAULT_LOG_RATIO_LIMIT, RowLoss};
pub use stages::{
    GroupStatistics, ObjectiveInputs, ObjectiveOutputs, Reference, Rewards, RowGradients, RowLosses, SavedRows,
    SoftmaxState, TokenLogProbs,
};
pub use step::Step;
pub use targets::{IGNORE_INDEX, TokenId, shifted_targets};
