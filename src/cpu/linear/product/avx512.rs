//! Packing and micro-kernels with AVX-512: of f32, and of bf16 pairs with AVX512-BF16.
//!
//! A *word* is what one multiply-add of a lane takes from an operand: an f32, or two bf16 that follow one another along
//! the depth, the first in the low half. Both kinds of word are 32 bits, so they share all of the packing.

use super::operand::Operand;
use crate::element::{Dtype, Element};
use core::arch::x86_64::{
    __m256i, __m512, __m512bh, __m512i, __mmask16, _CMP_UNORD_Q, _mm256_maskz_loadu_epi16, _mm256_storeu_si256,
    _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_castsi512_si256, _mm512_cmp_ps_mask, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_dpbf16_ps,
    _mm512_extracti64x4_epi64, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_mov_epi32, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_permutex2var_epi32, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use core::mem::transmute;
use core::ops::Range;

/// Words of a register.
pub(super) const LANES: usize = 16;

/// Rows of a panel of the left operand: 8 × 48 sums lie in 24 registers, and one step along the depth takes three loads
/// and eight broadcasts for 24 multiply-adds.
pub(super) const LEFT: usize = 8;

/// Columns of a panel of the right operand.
pub(super) const RIGHT: usize = 3 * LANES;

/// The lowest `count` of 16 lanes.
fn lanes(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// Up to 16 numbers as f32; 0 for the rest.
///
/// # Safety
/// `count` numbers, 16 at most, can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn load<T: Element>(from: *const T, count: usize) -> __m512i {
    let mask = lanes(count);
    // SAFETY: masked lanes are not read, and the others lie inside of what the caller promises.
    unsafe {
        match T::DTYPE {
            Dtype::F32 => _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, from.cast())),
            Dtype::Bf16 => _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.cast()))),
            Dtype::F16 => _mm512_castps_si512(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from.cast()))),
        }
    }
}

/// The f32 of 16 lanes rounded to bf16, to nearest even, in the upper halves; the lower halves are 0. NaN stays NaN.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn round_to_bf16(x: __m512i) -> __m512i {
    let is_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(x, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
    // A NaN with low bits set would round up to -0 or to an infinity.
    let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(_mm512_castsi512_ps(x), _mm512_castsi512_ps(x));
    let rounded = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_or_si512(x, _mm512_set1_epi32(0x0040_0000)));
    _mm512_and_si512(rounded, _mm512_set1_epi32(0xffff_0000u32.cast_signed()))
}

/// Up to 16 numbers as bf16 in the upper halves of words.
///
/// # Safety
/// As [`load`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn load_bf16<T: Element>(from: *const T, count: usize) -> __m512i {
    // SAFETY: promised by the caller.
    let wide = unsafe { load(from, count) };
    if T::DTYPE == Dtype::Bf16 { wide } else { round_to_bf16(wide) }
}

/// 16 words of numbers that follow one another along the depth, of which there are `count`.
///
/// # Safety
/// `count` numbers, 16 or, of pairs, 32 at most, can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn words_along<T: Element, const PAIRS: bool>(from: *const T, count: usize) -> __m512i {
    // SAFETY: masked lanes are not read, and the second half is only where there is more than the first.
    unsafe {
        if !PAIRS {
            return load(from, count);
        }
        if T::DTYPE == Dtype::Bf16 {
            let mask = if count >= 32 { !0 } else { (1 << count) - 1 };
            return _mm512_maskz_loadu_epi16(mask, from.cast());
        }
        let low = load_bf16(from, count.min(LANES));
        let high = if count > LANES { load_bf16(from.add(LANES), count - LANES) } else { _mm512_setzero_si512() };
        // Even lanes are the first of a pair.
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        let first = _mm512_permutex2var_epi32(low, even, high);
        let second = _mm512_permutex2var_epi32(low, odd, high);
        _mm512_or_si512(_mm512_srli_epi32::<16>(first), second)
    }
}

/// The same word of up to 16 items next to one another; `next` is what follows `from` along the depth, if anything does.
///
/// # Safety
/// `count` numbers, 16 at most, can be read from both.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn words_across<T: Element, const PAIRS: bool>(from: *const T, next: Option<*const T>, count: usize) -> __m512i {
    // SAFETY: promised by the caller.
    unsafe {
        if !PAIRS {
            return load(from, count);
        }
        let first = load_bf16(from, count);
        let second = next.map_or(_mm512_setzero_si512(), |next| load_bf16(next, count));
        _mm512_or_si512(_mm512_srli_epi32::<16>(first), second)
    }
}

/// 16 rows of 16 words, columns for rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn transpose(rows: &[__m512i; LANES]) -> [__m512i; LANES] {
    let zero = _mm512_setzero_si512();
    let (mut pairs, mut fours, mut out) = ([zero; LANES], [zero; LANES], [zero; LANES]);
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Of rows i..i+4: columns j, 4 + j, 8 + j and 12 + j in the quarters of fours[i + j].
    for i in (0..LANES).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for j in 0..4 {
        let low = [fours[j], fours[4 + j]];
        let high = [fours[8 + j], fours[12 + j]];
        // Quarters 0 and 2, or 1 and 3, of both.
        let low = [_mm512_shuffle_i32x4::<0x88>(low[0], low[1]), _mm512_shuffle_i32x4::<0xdd>(low[0], low[1])];
        let high = [_mm512_shuffle_i32x4::<0x88>(high[0], high[1]), _mm512_shuffle_i32x4::<0xdd>(high[0], high[1])];
        out[j] = _mm512_shuffle_i32x4::<0x88>(low[0], high[0]);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(low[1], high[1]);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low[0], high[0]);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(low[1], high[1]);
    }
    out
}

/// Puts 16 items of one word where the micro-kernels read them: two panels of the left operand, or a part of one of the
/// right, `width` items wide.
///
/// # Safety
/// `to` is the start of the group of items, in a buffer of panels of `words` words.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
#[allow(clippy::cast_ptr_alignment, reason = "the store is one of unaligned words")]
unsafe fn store<const IS_LEFT: bool>(to: *mut u32, words: usize, width: usize, word: usize, x: __m512i) {
    // SAFETY: promised by the caller.
    unsafe {
        if IS_LEFT {
            _mm256_storeu_si256(to.add(word * LEFT).cast::<__m256i>(), _mm512_castsi512_si256(x));
            let upper = _mm512_extracti64x4_epi64::<1>(x);
            _mm256_storeu_si256(to.add((words + word) * LEFT).cast::<__m256i>(), upper);
        } else {
            _mm512_storeu_si512(to.add(word * width).cast(), x);
        }
    }
}

/// Packs a part of an operand: all of `items`, `depth` along the depth. What fills up a group of 16 items, or the last
/// pair of an odd depth, is 0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn pack<T: Element, const PAIRS: bool, const IS_LEFT: bool>(
    operand: &Operand<'_, T>,
    items: Range<usize>,
    depth: Range<usize>,
    to: &mut [u32],
) {
    let per_word = if PAIRS { 2 } else { 1 };
    let words = depth.len().div_ceil(per_word);
    let groups = items.len().div_ceil(LANES);
    assert!(operand.holds(&items, &depth), "a part of an operand that lies outside of it");
    assert!(to.len() >= groups * LANES * words, "too little room for what is packed");
    let (from, stride) = (operand.data.as_ptr(), operand.stride);
    for group in 0..groups {
        let (first, width) = (items.start + group * LANES, groups * LANES);
        let count = LANES.min(items.end - first);
        let start = if IS_LEFT { group * LANES * words } else { group * LANES };
        // SAFETY: all that is read was found to lie inside of the operand, and all that is written inside of `to`.
        unsafe {
            let to = to.as_mut_ptr().add(start);
            if !operand.depth_is_contiguous {
                for word in 0..words {
                    let k = depth.start + word * per_word;
                    let next = (PAIRS && k + 1 < depth.end).then(|| from.add((k + 1) * stride + first));
                    let x = words_across::<T, PAIRS>(from.add(k * stride + first), next, count);
                    store::<IS_LEFT>(to, words, width, word, x);
                }
                continue;
            }
            for word in (0..words).step_by(LANES) {
                let k = depth.start + word * per_word;
                let numbers = (depth.end - k).min(LANES * per_word);
                let mut rows = [_mm512_setzero_si512(); LANES];
                let from = from.add(first * stride + k);
                // Whole squares without a branch in them: their words stay in registers.
                if count == LANES && numbers == LANES * per_word {
                    for (item, row) in rows.iter_mut().enumerate() {
                        *row = words_along::<T, PAIRS>(from.add(item * stride), LANES * per_word);
                    }
                    for (column, x) in transpose(&rows).into_iter().enumerate() {
                        store::<IS_LEFT>(to, words, width, word + column, x);
                    }
                    continue;
                }
                for (item, row) in rows.iter_mut().take(count).enumerate() {
                    *row = words_along::<T, PAIRS>(from.add(item * stride), numbers);
                }
                for (column, x) in transpose(&rows).into_iter().take(words - word).enumerate() {
                    store::<IS_LEFT>(to, words, width, word + column, x);
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn add_product(sum: __m512, left: __m512, right: __m512) -> __m512 {
    _mm512_fmadd_ps(left, right, sum)
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn add_pair(sum: __m512, left: __m512, right: __m512) -> __m512 {
    // SAFETY: both types are 512 bits that mean what is read from them.
    let (left, right) = unsafe { (transmute::<__m512, __m512bh>(left), transmute::<__m512, __m512bh>(right)) };
    _mm512_dpbf16_ps(sum, left, right)
}

/// A panel of the right operand times all of the left one.
pub(super) struct PanelProduct<'a> {
    pub(super) words: usize,
    /// Panels of [`LEFT`] rows, `[words, LEFT]` each.
    pub(super) left: &'a [u32],
    pub(super) rows: usize,
    /// `[words, columns]`, the columns filled up to a multiple of [`LANES`].
    pub(super) right: &'a [u32],
    /// [`RIGHT`] at most.
    pub(super) columns: usize,
    pub(super) out: &'a mut [f32],
    pub(super) out_stride: usize,
    /// Whether to add to what is in `out`.
    pub(super) add: bool,
}

/// One function for each instruction: a function can only use the instructions that it is compiled for.
macro_rules! panel_product {
    ($name:ident, $micro:ident, $add:ident, $features:literal) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(product: PanelProduct<'_>) {
            match product.columns.div_ceil(LANES) {
                1 => $micro::<1>(product),
                2 => $micro::<2>(product),
                3 => $micro::<3>(product),
                _ => unreachable!("a panel of up to three registers"),
            }
        }

        #[target_feature(enable = $features)]
        fn $micro<const REGISTERS: usize>(product: PanelProduct<'_>) {
            let PanelProduct { words, left, rows, right, columns, out, out_stride, add } = product;
            assert!(right.len() >= words * REGISTERS * LANES && left.len() >= rows.next_multiple_of(LEFT) * words);
            assert!(columns <= REGISTERS * LANES && (rows == 0 || (rows - 1) * out_stride + columns <= out.len()));
            let last = lanes(columns - (REGISTERS - 1) * LANES);
            for first_row in (0..rows).step_by(LEFT) {
                // SAFETY: the packed panels and the part of `out` have the sizes that were asserted; masked lanes of `out`
                // are neither read nor written.
                unsafe {
                    let mut left = left.as_ptr().add(first_row * words).cast::<f32>();
                    let mut right = right.as_ptr().cast::<f32>();
                    let out = out.as_mut_ptr().add(first_row * out_stride);
                    let mut sums = [[_mm512_setzero_ps(); REGISTERS]; LEFT];
                    for _ in 0..words {
                        let mut of_right = [_mm512_setzero_ps(); REGISTERS];
                        for (register, x) in of_right.iter_mut().enumerate() {
                            *x = _mm512_loadu_ps(right.add(register * LANES));
                        }
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let of_left = _mm512_set1_ps(*left.add(row));
                            for (sum, of_right) in sums.iter_mut().zip(of_right) {
                                *sum = $add(*sum, of_left, of_right);
                            }
                        }
                        left = left.add(LEFT);
                        right = right.add(REGISTERS * LANES);
                    }
                    for (row, sums) in sums.into_iter().enumerate() {
                        if first_row + row >= rows {
                            break;
                        }
                        for (register, mut sum) in sums.into_iter().enumerate() {
                            let mask = if register == REGISTERS - 1 { last } else { !0 };
                            let out = out.add(row * out_stride + register * LANES);
                            if add {
                                sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum);
                            }
                            _mm512_mask_storeu_ps(out, mask, sum);
                        }
                    }
                }
            }
        }
    };
}

panel_product!(multiply_f32, micro_f32, add_product, "avx512f,avx512bw,avx512dq,avx512vl");
panel_product!(multiply_bf16_pairs, micro_bf16_pairs, add_pair, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16");
