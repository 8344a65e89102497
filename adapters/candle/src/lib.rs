#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![allow(clippy::duplicate_mod, reason = "one source, a module for each version of candle")]

#[cfg(not(any(feature = "candle-0-9", feature = "candle-0-10", feature = "candle-0-11")))]
compile_error!("exo-kernels-candle needs a version of candle: candle-0-9, candle-0-10 or candle-0-11");

// One source for every version. It is included, since a file can be a module once only.

/// The operations on tensors of candle 0.9.
#[cfg(feature = "candle-0-9")]
#[cfg_attr(docsrs, doc(cfg(feature = "candle-0-9")))]
pub mod candle_0_9 {
    #[doc(no_inline)]
    pub use candle_core_0_9 as candle_core;
    include!("adapter/mod.rs");
}

/// The operations on tensors of candle 0.10.
#[cfg(feature = "candle-0-10")]
#[cfg_attr(docsrs, doc(cfg(feature = "candle-0-10")))]
pub mod candle_0_10 {
    #[doc(no_inline)]
    pub use candle_core_0_10 as candle_core;
    include!("adapter/mod.rs");
}

/// The operations on tensors of candle 0.11.
#[cfg(feature = "candle-0-11")]
#[cfg_attr(docsrs, doc(cfg(feature = "candle-0-11")))]
pub mod candle_0_11 {
    #[doc(no_inline)]
    pub use ::candle_core;
    include!("adapter/mod.rs");
}

#[cfg(feature = "candle-0-11")]
#[doc(no_inline)]
pub use candle_0_11::*;

#[cfg(all(feature = "candle-0-10", not(feature = "candle-0-11")))]
#[doc(no_inline)]
pub use candle_0_10::*;

#[cfg(all(feature = "candle-0-9", not(any(feature = "candle-0-10", feature = "candle-0-11"))))]
#[doc(no_inline)]
pub use candle_0_9::*;
