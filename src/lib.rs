#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
pub mod cpu;
#[cfg(feature = "cuda")]
#[cfg_attr(docsrs, doc(cfg(feature = "cuda")))]
pub mod cuda;
mod data;
mod element;
mod error;
mod forward_pass;
pub mod guide;
mod host;
mod kept_rows;
mod loss;
pub mod objective;
mod operand;
mod options;
mod ordered;
pub mod ranks;
pub mod reference;
mod report;
mod stage;
mod stages;
mod step;
mod step_buffers;
mod workspace;

pub use crate::backend::Backend;
pub use crate::cpu::Cpu;
pub use crate::data::batch::Batch;
pub use crate::data::shard::Shard;
pub use crate::data::targets::{IGNORE_INDEX, TokenId, shifted_targets};
pub use crate::element::{Dtype, Element};
pub use crate::error::{Error, Result};
pub use crate::forward_pass::ForwardPass;
pub use crate::host::*;
pub use crate::loss::PreferenceLoss;
pub use crate::objective::{Betas, Divergence, Objective, Target};
pub use crate::operand::Operand;
pub use crate::options::{LinearKept, LogRatio, LogitOptions, LossOptions, Reduction};
pub use crate::report::{Oddities, Report};
pub use crate::stage::objective::GroupStatistics;
pub use crate::stage::row_loss::{DEFAULT_LOG_RATIO_LIMIT, RowLoss};
pub use crate::stage::token_log_prob::SoftmaxState;
pub use crate::step::Step;
