//! The manual, as it stands in the repository's `docs`.

#[doc = include_str!("../docs/hidden_states.md")]
pub mod hidden_states {}

#[cfg(feature = "cuda")]
#[cfg_attr(docsrs, doc(cfg(feature = "cuda")))]
#[doc = include_str!("../docs/cuda.md")]
pub mod cuda {}

#[doc = include_str!("../docs/numerics.md")]
pub mod numerics {}

#[doc = include_str!("../docs/ranks.md")]
pub mod ranks {}

#[doc = include_str!("../docs/bad_input.md")]
pub mod bad_input {}

#[doc = include_str!("../docs/speed.md")]
pub mod speed {}
