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

// tanh(y) and 1 - tanh(y)^2, each without cancellation: near 0 an odd polynomial, farther out (1 - e)/(1 + e) and
// 4e/(1 + e)^2 with e = exp(-2|y|). NaN for NaN.
__device__ __forceinline__ float tanh_and_slope(float y, float& slope) {
    const float a = fabsf(y);
    const float square = y * y;
    float p = -5.895159e-3f;
    p = fmaf(p, square, 2.0795973e-2f);
    p = fmaf(p, square, -5.378383e-2f);
    p = fmaf(p, square, 1.3331924e-1f);
    p = fmaf(p, square, -3.33333e-1f);
    const float near = fmaf(p * square, y, y);

    const float e = exp2_approximate(a * -2.8853900817779268f);
    const float sum = 1.0f + e;
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(sum));
    // One correction, since the reciprocal is off by a unit in the last place.
    float far = (1.0f - e) * reciprocal;
    far = fmaf(fmaf(-far, sum, 1.0f - e), reciprocal, far);
    const bool is_near = a < 0.6f;
    slope = is_near ? fmaf(-near, near, 1.0f) : 4.0f * e * reciprocal * reciprocal;
    return is_near ? near : copysignf(far, y);
}

// From a logit to its exponent in base 2.
struct Scale {
    // log2(e)/T, or softcap * log2(e)/T under a softcap.
    float factor;
    // 1/softcap.
    float inverse_softcap;

    // `scale`: log2(e)/T.
    template <bool SOFTCAP>
    static __device__ __forceinline__ Scale make(float scale, float softcap) {
        return SOFTCAP ? Scale{scale * softcap, 1.0f / softcap} : Scale{scale, 0.0f};
    }

    // t = z * log2(e) - r for the scaled logit z, and d capped logit / d logit.
    template <bool SOFTCAP>
    __device__ __forceinline__ float exponent(float x, float r, float& slope) const {
        slope = 1.0f;
        if constexpr (!SOFTCAP) {
            return fmaf(x, factor, -r);
        } else {
            const float t = fmaf(tanh_and_slope(x * inverse_softcap, slope), factor, -r);
            // Infinities stay what they are: a capped -inf would have the probability of a logit of -softcap.
            const bool finite = fabsf(x) < INFINITY;
            slope = finite ? slope : 0.0f;
            return finite ? t : x;
        }
    }

    template <bool SOFTCAP>
    __device__ __forceinline__ float exponent(float x, float r) const {
        float slope;
        return exponent<SOFTCAP>(x, r, slope);
    }

    // The same in f64, for the one column per row that is the target.
    template <bool SOFTCAP>
    __device__ __forceinline__ double exact_exponent(float x, float r) const {
        if constexpr (!SOFTCAP) {
            return fma(double{x}, double{factor}, -double{r});
        } else {
            float slope;
            const float capped = tanh_and_slope(x * inverse_softcap, slope);
            return fabsf(x) < INFINITY ? fma(double{capped}, double{factor}, -double{r}) : double{x};
        }
    }
};
