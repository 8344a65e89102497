//! The matrix products of the linear stage: of tiles, on one thread, summed in f32.
//!
//! The operands are packed as they are read, a part of the depth at a time, so it costs nothing more to convert them:
//! bf16 and f16 to f32; or, where both hidden states and head are bf16 and the processor multiplies bf16 pairs fast, the
//! gradient of the logits to bf16, rounded to nearest even.
//!
//! The bits of an element depend on its row of the left operand, its column of the right one and their length alone: not
//! on what is beside it, where it lies in a tile, or on the number of threads. The depth is divided into parts of equal
//! size, at most [`WORDS`] words, by the depth alone; a part is summed in ascending order from 0, and then added to what
//! was there. What fills up registers is zeros, and never stored.
//!
//! Of bf16 pairs (`VDPBF16PS`) the processor adds first the product of the later element to the sum, then that of the
//! earlier one, each rounded to nearest even as a fused multiply-add is, but with operands and results below 2^-126 taken
//! for 0 ([`reference::bounds`](crate::reference::bounds)).

#[cfg(target_arch = "x86_64")]
mod avx512;
mod by_gemm;
mod operand;
#[cfg(test)]
mod tests;

use crate::cpu::InstructionSet;
use crate::element::{Dtype, Element};

use self::by_gemm::GemmScratch;
use self::operand::Operand;
pub(crate) use self::operand::{Block, Sums};

/// The most words (f32, or pairs of bf16) that are summed before the sum is added to the others: a panel of the right
/// operand is then 48 KiB.
#[cfg(target_arch = "x86_64")]
const WORDS: usize = 256;

#[cfg(test)]
thread_local! {
    /// How many multiplications the products of this thread are made of.
    pub(super) static MULTIPLICATIONS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How the products of a pair of types are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Products(Kernels);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernels {
    #[cfg(target_arch = "x86_64")]
    Bf16Pairs,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// By the crate `gemm`, in f32.
    Gemm,
}

/// What products pack, kept for the next ones.
#[derive(Default)]
pub(crate) struct ProductScratch {
    #[cfg(target_arch = "x86_64")]
    left: Vec<CacheLine>,
    #[cfg(target_arch = "x86_64")]
    right: Vec<CacheLine>,
    gemm: GemmScratch,
}

/// 16 words, aligned so that no vector lies in two lines.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct CacheLine([u32; avx512::LANES]);

impl Products {
    /// With these instructions, or what the processor has of them, for hidden states and a head of these types.
    pub(crate) fn new(instructions: InstructionSet, hidden: Dtype, head: Dtype) -> Self {
        #[cfg(target_arch = "x86_64")]
        if instructions.is_available() {
            match (instructions, hidden, head) {
                (InstructionSet::Avx512Bf16, Dtype::Bf16, Dtype::Bf16) => return Self(Kernels::Bf16Pairs),
                (InstructionSet::Avx512Bf16 | InstructionSet::Avx512, ..) => return Self(Kernels::Avx512),
                _ => {}
            }
        }
        let _ = (instructions, hidden, head);
        Self(Kernels::Gemm)
    }

    /// Logits: hidden `[rows, H]` · weightᵀ, of weight `[columns, H]`, to `[rows, columns]`.
    pub(crate) fn logits<T: Element, W: Element>(
        self,
        hidden: Block<'_, T>,
        weight: Block<'_, W>,
        out: Sums<'_>,
        scratch: &mut ProductScratch,
    ) {
        self.multiply(hidden.rows_as_items(), weight.rows_as_items(), out, scratch);
    }

    /// What a tile says of the gradient of hidden states: D `[rows, columns]` · weight `[columns, H]`, to `[rows, H]`.
    pub(crate) fn hidden<W: Element>(
        self,
        logit_gradient: Block<'_, f32>,
        weight: Block<'_, W>,
        out: Sums<'_>,
        scratch: &mut ProductScratch,
    ) {
        self.multiply(logit_gradient.rows_as_items(), weight.columns_as_items(), out, scratch);
    }

    /// What a tile says of the gradient of the weight: Dᵀ · hidden, of D `[rows, columns]` and hidden `[rows, H]`, to
    /// `[columns, H]`.
    pub(crate) fn weight<T: Element>(
        self,
        logit_gradient: Block<'_, f32>,
        hidden: Block<'_, T>,
        out: Sums<'_>,
        scratch: &mut ProductScratch,
    ) {
        self.multiply(logit_gradient.columns_as_items(), hidden.columns_as_items(), out, scratch);
    }

    fn multiply<A: Element, B: Element>(
        self,
        left: Operand<'_, A>,
        right: Operand<'_, B>,
        mut out: Sums<'_>,
        scratch: &mut ProductScratch,
    ) {
        let (rows, columns) = (left.items, right.items);
        assert_eq!(left.depth, right.depth, "the product's inner sides");
        assert!(left.holds(&(0..rows), &(0..left.depth)) && right.holds(&(0..columns), &(0..right.depth)));
        if rows == 0 || columns == 0 {
            return;
        }
        #[cfg(test)]
        MULTIPLICATIONS.set(MULTIPLICATIONS.get() + rows * columns * left.depth);
        assert!((rows - 1) * out.stride + columns <= out.data.len(), "a product that lies outside of its buffer");
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` chooses this only where these features were found on this processor.
            Kernels::Bf16Pairs => unsafe { packed::<_, _, true>(&left, &right, &mut out, scratch) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kernels::Avx512 => unsafe { packed::<_, _, false>(&left, &right, &mut out, scratch) },
            Kernels::Gemm => by_gemm::multiply(&left, &right, &mut out, &mut scratch.gemm),
        }
    }
}

/// The product by packed panels.
///
/// # Safety
/// The processor has AVX-512 (F, BW, DQ, VL), and AVX512-BF16 for `PAIRS`.
#[cfg(target_arch = "x86_64")]
unsafe fn packed<A: Element, B: Element, const PAIRS: bool>(
    left: &Operand<'_, A>,
    right: &Operand<'_, B>,
    out: &mut Sums<'_>,
    scratch: &mut ProductScratch,
) {
    use avx512::{LANES, PanelProduct, RIGHT, multiply_bf16_pairs, multiply_f32, pack};

    let (rows, depth) = (left.items, left.depth);
    let per_word = if PAIRS { 2 } else { 1 };
    let words = depth.div_ceil(per_word);
    let step = words.div_ceil(words.div_ceil(WORDS).max(1)).max(1);
    scratch.left.resize(rows.div_ceil(LANES) * step, CacheLine::default());
    scratch.right.resize(RIGHT / LANES * step, CacheLine::default());
    let (packed_left, packed_right): (&mut [u32], &mut [u32]) =
        (bytemuck::cast_slice_mut(&mut scratch.left), bytemuck::cast_slice_mut(&mut scratch.right));
    let mut first_word = 0;
    loop {
        let part_words = step.min(words - first_word);
        let part = first_word * per_word..depth.min((first_word + part_words) * per_word);
        // SAFETY: the processor has the features, as the caller promises.
        unsafe { pack::<A, PAIRS, true>(left, 0..rows, part.clone(), packed_left) };
        for first_column in (0..right.items).step_by(RIGHT) {
            let columns = RIGHT.min(right.items - first_column);
            // SAFETY: as above.
            unsafe { pack::<B, PAIRS, false>(right, first_column..first_column + columns, part.clone(), packed_right) };
            let panel = PanelProduct {
                words: part_words,
                left: packed_left,
                rows,
                right: packed_right,
                columns,
                out: &mut out.data[first_column..],
                out_stride: out.stride,
                add: out.add || first_word > 0,
            };
            // SAFETY: as above.
            unsafe { if PAIRS { multiply_bf16_pairs(panel) } else { multiply_f32(panel) } };
        }
        first_word += part_words;
        if first_word >= words {
            break;
        }
    }
}
