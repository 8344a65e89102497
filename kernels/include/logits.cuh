// Logits of every type: how 16 bytes of a row are loaded, widened and rounded back.
#pragma once

#include <cstdint>

// A vocabulary is reduced in slices of this many columns, each in the same way whichever block does it.
constexpr int32_t SLICE = 32768;

// Tags for the types of logits. `Bits` is one number in memory, `Word` a register with PER_WORD of them. bf16 and f16
// are handled as bits, so that no header of theirs is needed. Words become f32 in assembly text, because C++ has to
// move them to a register of another type first.
struct F32 {
    using Bits = float;
    using Word = float;
    static constexpr int PER_WORD = 1;
    static constexpr bool SMALL_RANGE = false;

    static __device__ __forceinline__ Word minus_infinity() { return __uint_as_float(0xff800000u); }
    static __device__ __forceinline__ Word not_a_number() { return __uint_as_float(0x7fc00000u); }
    static __device__ __forceinline__ float low(Word word) { return word; }
    static __device__ __forceinline__ float high(Word) { return 0.0f; }
    // The larger, number by number; a NaN loses against a number.
    static __device__ __forceinline__ Word larger(Word a, Word b) { return fmaxf(a, b); }
    static __device__ __forceinline__ float largest(Word word) { return word; }
    static __device__ __forceinline__ Word smaller(Word a, Word b) { return fminf(a, b); }
    static __device__ __forceinline__ float smallest(Word word) { return word; }
    static __device__ __forceinline__ Word pack(float low, float) { return low; }
};

struct Bf16 {
    using Bits = uint16_t;
    using Word = uint32_t;
    static constexpr int PER_WORD = 2;
    static constexpr bool SMALL_RANGE = false;

    static __device__ __forceinline__ Word minus_infinity() { return 0xff80ff80u; }
    static __device__ __forceinline__ Word not_a_number() { return 0x7fc07fc0u; }
    static __device__ __forceinline__ float low(Word word) {
        float low;
        asm("shl.b32 %0, %1, 16;" : "=f"(low) : "r"(word));
        return low;
    }
    static __device__ __forceinline__ float high(Word word) {
        float high;
        asm("and.b32 %0, %1, 0xffff0000;" : "=f"(high) : "r"(word));
        return high;
    }
    static __device__ __forceinline__ Word larger(Word a, Word b) {
        Word larger;
        asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
        return larger;
    }
    static __device__ __forceinline__ float largest(Word word) { return fmaxf(low(word), high(word)); }
    static __device__ __forceinline__ Word smaller(Word a, Word b) {
        Word smaller;
        asm("min.bf16x2 %0, %1, %2;" : "=r"(smaller) : "r"(a), "r"(b));
        return smaller;
    }
    static __device__ __forceinline__ float smallest(Word word) { return fminf(low(word), high(word)); }
    static __device__ __forceinline__ Word pack(float low, float high) {
        Word word;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }
};

struct F16 {
    using Bits = uint16_t;
    using Word = uint32_t;
    static constexpr int PER_WORD = 2;
    // Nothing below 6e-8.
    static constexpr bool SMALL_RANGE = true;

    static __device__ __forceinline__ Word minus_infinity() { return 0xfc00fc00u; }
    static __device__ __forceinline__ Word not_a_number() { return 0x7e007e00u; }
    static __device__ __forceinline__ float low(Word word) {
        float low;
        asm("{.reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a;}" : "=f"(low) : "r"(word));
        return low;
    }
    static __device__ __forceinline__ float high(Word word) {
        float high;
        asm("{.reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b;}" : "=f"(high) : "r"(word));
        return high;
    }
    static __device__ __forceinline__ Word larger(Word a, Word b) {
        Word larger;
        asm("max.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
        return larger;
    }
    static __device__ __forceinline__ float largest(Word word) { return fmaxf(low(word), high(word)); }
    static __device__ __forceinline__ Word smaller(Word a, Word b) {
        Word smaller;
        asm("min.f16x2 %0, %1, %2;" : "=r"(smaller) : "r"(a), "r"(b));
        return smaller;
    }
    static __device__ __forceinline__ float smallest(Word word) { return fminf(low(word), high(word)); }
    static __device__ __forceinline__ Word pack(float low, float high) {
        Word word;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }
};

// 16 bytes of a row.
template <typename T>
struct Vector {
    typename T::Word word[4];
};

// Columns in 16 bytes.
template <typename T>
constexpr int32_t COLUMNS = 4 * T::PER_WORD;

// One logit.
template <typename T>
__device__ __forceinline__ float load(const volatile typename T::Bits* logit) {
    return T::low(static_cast<typename T::Word>(*logit));
}

// 2^t, 0 for t < -126. One instruction; NaN for NaN, 0 for -inf.
__device__ __forceinline__ float exp2_approximate(float t) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(t));
    return power;
}

// 2^n for an integer n <= 0, exactly; 0 for n <= -127. Made of the exponent field: ex2.approx promises no exact powers.
// Adding 1.5 * 2^23 + 127 leaves n + 127 in the lowest bits.
__device__ __forceinline__ float power_of_two(float n) {
    return __uint_as_float(__float_as_uint(fmaxf(n, -127.0f) + 12583039.0f) << 23);
}

// x rounded up to an integer, without the conversion unit. Above 2^23 every f32 is an integer.
__device__ __forceinline__ float round_up(float x) {
    const float magic = copysignf(8388608.0f, x);
    const float rounded = __fadd_ru(x, magic) - magic;
    return fabsf(x) < 8388608.0f ? rounded : x;
}

// factor * tanh(y)/y for |y| <= 1, as a polynomial in y^2.
//
// Minimax in the absolute error of tanh, then rounded to f32: off by at most 0.45 u (u = 2^-24), and by 2 u relative to
// tanh, next to 0 (tests/softcap_polynomial.rs). In Horner's scheme the steps before the last and the coefficients are off by
// at most 0.55 u each (the sum of the coefficients without the first), the rounding of y^2 moves it by 0.34 u: 1.5 u of a
// tanh(y)/y that is at least 0.76. With the last step's rounding that is 2.9 u of it.
struct TanhPolynomial {
    float coefficients[7];

    static __device__ __forceinline__ TanhPolynomial times(float factor) {
        return {{factor, factor * -3.33327532e-1f, factor * 1.33237362e-1f, factor * -5.33918627e-2f,
                 factor * 2.01657098e-2f, factor * -6.0953428e-3f, factor * 1.00584747e-3f}};
    }

    __device__ __forceinline__ float at(float square) const {
        float sum = coefficients[6];
#pragma unroll
        for (int i = 5; i >= 0; i--) sum = fmaf(sum, square, coefficients[i]);
        return sum;
    }
};

// tanh(y) and 1 - tanh(y)^2 for |y| <= 1: the slope is at least 0.41 there, so the difference keeps its digits.
__device__ __forceinline__ float tanh_near(float y, float& slope) {
    const float tanh = TanhPolynomial::times(1.0f).at(y * y) * y;
    slope = fmaf(-tanh, tanh, 1.0f);
    return tanh;
}

// The same for |y| >= 1, without cancellation: (1 - e)/(1 + e) and 4e/(1 + e)^2 with e = exp(-2|y|). NaN for NaN.
__device__ __forceinline__ float tanh_far(float y, float& slope) {
    const float e = exp2_approximate(fabsf(y) * -2.8853900817779268f);
    const float sum = 1.0f + e;
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(sum));
    float tanh = (1.0f - e) * reciprocal;
    // One correction, since the reciprocal is off by a unit in the last place.
    tanh = fmaf(fmaf(-tanh, sum, 1.0f - e), reciprocal, tanh);
    slope = 4.0f * e * reciprocal * reciprocal;
    return copysignf(tanh, y);
}

// From a logit to its exponent in base 2.
//
// Under a softcap, logits up to it in size (near ones) take a polynomial, and all others an exponential. Which of the two a
// logit takes depends on the logit alone, so its bits do too. A warp all of whose logits are near may say so (NEAR): then
// the exponential is not computed only to be dropped.
struct Scale {
    // log2(e)/T, or softcap * log2(e)/T under a softcap.
    float factor;
    float softcap;
    // 1/softcap.
    float inverse_softcap;
    TanhPolynomial tanh_times_factor;

    // `scale`: log2(e)/T.
    template <bool SOFTCAP>
    static __device__ __forceinline__ Scale make(float scale, float softcap) {
        if constexpr (!SOFTCAP) return {scale, 0.0f, 0.0f, {}};
        return {scale * softcap, softcap, 1.0f / softcap, TanhPolynomial::times(scale * softcap)};
    }

    // True for NaN, which either way stays NaN.
    __device__ __forceinline__ bool is_near(float largest) const { return !(fabsf(largest) > softcap); }

    // tanh(x/softcap) and its slope.
    template <bool NEAR>
    __device__ __forceinline__ float tanh(float x, float& slope) const {
        const float y = x * inverse_softcap;
        float near_slope, far_slope;
        const float near = tanh_near(y, near_slope);
        if constexpr (NEAR) {
            slope = near_slope;
            return near;
        }
        const float far = tanh_far(y, far_slope);
        slope = is_near(x) ? near_slope : far_slope;
        return is_near(x) ? near : far;
    }

    // t = z * log2(e) - r for the scaled logit z, and d capped logit / d logit.
    template <bool SOFTCAP, bool NEAR = false>
    __device__ __forceinline__ float exponent(float x, float r, float& slope) const {
        slope = 1.0f;
        if constexpr (!SOFTCAP) {
            return fmaf(x, factor, -r);
        } else {
            const float t = fmaf(tanh<NEAR>(x, slope), factor, -r);
            if constexpr (NEAR) return t;
            // Infinities stay what they are: a capped -inf would have the probability of a logit of -softcap.
            const bool finite = fabsf(x) < INFINITY;
            slope = finite ? slope : 0.0f;
            return finite ? t : x;
        }
    }

    // t without the slope: of near logits with the factor in the polynomial, which saves the product tanh.
    template <bool SOFTCAP, bool NEAR = false>
    __device__ __forceinline__ float exponent(float x, float r) const {
        if constexpr (!SOFTCAP) {
            return fmaf(x, factor, -r);
        } else {
            const float y = x * inverse_softcap;
            const float near = fmaf(tanh_times_factor.at(y * y), y, -r);
            if constexpr (NEAR) return near;
            float slope;
            const float far = fmaf(tanh_far(y, slope), factor, -r);
            return is_near(x) ? near : fabsf(x) < INFINITY ? far : x;
        }
    }

    // The same in f64, for the one column per row that is the target.
    template <bool SOFTCAP>
    __device__ __forceinline__ double exact_exponent(float x, float r) const {
        if constexpr (!SOFTCAP) {
            return fma(double{x}, double{factor}, -double{r});
        } else {
            float slope;
            const float capped = tanh<false>(x, slope);
            return fabsf(x) < INFINITY ? fma(double{capped}, double{factor}, -double{r}) : double{x};
        }
    }
};

// Whether all logits of some vectors are near.
template <typename T, int COUNT>
__device__ __forceinline__ bool all_near(const Vector<T> (&vectors)[COUNT], const Scale& scale) {
    typename T::Word largest = vectors[0].word[0], smallest = largest;
#pragma unroll
    for (int i = 1; i < 4 * COUNT; i++) {
        largest = T::larger(largest, vectors[i / 4].word[i % 4]);
        smallest = T::smaller(smallest, vectors[i / 4].word[i % 4]);
    }
    return scale.is_near(fmaxf(fabsf(T::largest(largest)), fabsf(T::smallest(smallest))));
}
