//! One source of each kernel, compiled once per instruction set and chosen at run time.
//!
//! A [`Kernel`] is plain Rust over fixed-size arrays of lanes. Inlined into a function with `#[target_feature]`, the
//! compiler puts its lanes into that instruction set's registers. So there are no intrinsics, and no second source to
//! keep equal.

use crate::error::{Error, Result};

/// A vector instruction set that the CPU backend has kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstructionSet {
    /// AVX-512 (F, BW, DQ, VL) and AVX512-BF16, for matrix products of bf16. By default only where that multiplies more
    /// numbers a cycle than f32: on AMD's processors, which do two products in the time of one f32 product. Intel's do
    /// not, and f32 products of bf16 numbers have fewer roundings.
    Avx512Bf16,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// What every processor of the compilation target has: SSE2 on `x86_64`, NEON on `aarch64`.
    Portable,
}

impl InstructionSet {
    /// All of them, the widest first.
    pub const ALL: [InstructionSet; 4] =
        [InstructionSet::Avx512Bf16, InstructionSet::Avx512, InstructionSet::Avx2, InstructionSet::Portable];

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Bf16 => {
                is_x86_feature_detected!("avx512bf16") && InstructionSet::Avx512.is_available()
            }
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && InstructionSet::Avx2.is_available()
            }
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            InstructionSet::Avx512Bf16 | InstructionSet::Avx512 | InstructionSet::Avx2 => false,
            InstructionSet::Portable => true,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            InstructionSet::Avx512Bf16 => "avx512bf16",
            InstructionSet::Avx512 => "avx512",
            InstructionSet::Avx2 => "avx2",
            InstructionSet::Portable => "portable",
        }
    }

    /// Whether there is no narrower one that is as fast.
    fn pays(self) -> bool {
        self != InstructionSet::Avx512Bf16 || has_fast_bf16_pairs()
    }
}

/// Whether the processor multiplies bf16 pairs as often a cycle as f32: AMD's do (Zen 4 and 5), Intel's at half that rate
/// (88 Gflop/s of pairs, 158 of f32 on a core of Emerald Rapids).
fn has_fast_bf16_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every processor of x86_64 has the instruction and its leaf 0. Newer compilers know.
        #[allow(unused_unsafe)]
        let leaf = unsafe { std::arch::x86_64::__cpuid(0) };
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// An instruction set that was seen to be there: the only way to run a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Available(InstructionSet);

impl Available {
    pub(super) fn best() -> Self {
        let best = InstructionSet::ALL.into_iter().find(|set| set.is_available() && set.pays());
        Available(best.unwrap_or(InstructionSet::Portable))
    }

    pub(super) fn require(set: InstructionSet) -> Result<Self> {
        if set.is_available() { Ok(Available(set)) } else { Err(Error::InstructionSet { name: set.name() }) }
    }

    pub(super) fn get(self) -> InstructionSet {
        self.0
    }

    /// Runs the kernel as compiled for this instruction set.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Available` is only made after `is_available` found these features on this processor.
            InstructionSet::Avx512Bf16 | InstructionSet::Avx512 => unsafe { run_avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            InstructionSet::Avx2 => unsafe { run_avx2(kernel) },
            _ => kernel.run::<PORTABLE_FMA>(),
        }
    }
}

/// A loop over lanes. `run` and everything it calls must be `#[inline(always)]`: a call that stays a call would be
/// compiled without the vector instructions.
pub(super) trait Kernel {
    type Output;

    /// `FMA`: whether the instruction set has a fused multiply-add. Without one, `f32::mul_add` is a library call. On x86_64
    /// it then has F16C, too.
    fn run<const FMA: bool>(self) -> Self::Output;
}

/// NEON has a fused multiply-add, SSE2 has none.
const PORTABLE_FMA: bool = cfg!(target_arch = "aarch64");

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}
