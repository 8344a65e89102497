//! What adapters to other frameworks need besides the public interface. Not part of it: it changes without notice.

pub use crate::data::targets::check as check_targets;
pub use crate::forward_pass::ForwardPass;

/// The same on CUDA.
#[cfg(feature = "cuda")]
pub mod cuda {
    pub use crate::cuda::forward_pass::ForwardPass;
}
