// The terms of a softmax's sums, as in `terms.cuh`, for architectures with arithmetic of pairs of f32 (10.x).
//
// Such a multiprocessor takes 16 exponentials a clock, and its share of the memory's bandwidth is about as many 16-bit
// logits. So of those every fourth exponential is a polynomial, and pairs make room for its instructions. Which columns take
// it follows from their place in the row alone: those whose number is 6 or 7 modulo 8. f32 logits come half as fast, and all
// take the exponential.
#pragma once

#include "logits.cuh"
#include "softmax_sums.cuh"

// Two f32, each rounded as if it were alone.
struct Pair {
    uint64_t bits;

    static __device__ __forceinline__ Pair of(float low, float high) {
        Pair pair;
        asm("mov.b64 %0, {%1, %2};" : "=l"(pair.bits) : "f"(low), "f"(high));
        return pair;
    }
    static __device__ __forceinline__ Pair both(float value) { return of(value, value); }

    __device__ __forceinline__ void get(float& low, float& high) const {
        asm("mov.b64 {%0, %1}, %2;" : "=f"(low), "=f"(high) : "l"(bits));
    }
    // The function of each.
    template <typename Function>
    __device__ __forceinline__ Pair map(Function function) const {
        float low, high;
        get(low, high);
        return of(function(low), function(high));
    }
};

__device__ __forceinline__ Pair operator+(Pair a, Pair b) {
    Pair sum;
    asm("add.rn.f32x2 %0, %1, %2;" : "=l"(sum.bits) : "l"(a.bits), "l"(b.bits));
    return sum;
}

__device__ __forceinline__ Pair operator-(Pair a, Pair b) {
    Pair difference;
    asm("sub.rn.f32x2 %0, %1, %2;" : "=l"(difference.bits) : "l"(a.bits), "l"(b.bits));
    return difference;
}

__device__ __forceinline__ Pair operator*(Pair a, Pair b) {
    Pair product;
    asm("mul.rn.f32x2 %0, %1, %2;" : "=l"(product.bits) : "l"(a.bits), "l"(b.bits));
    return product;
}

// a*b + c, rounded once.
__device__ __forceinline__ Pair fma(Pair a, Pair b, Pair c) {
    Pair sum;
    asm("fma.rn.f32x2 %0, %1, %2, %3;" : "=l"(sum.bits) : "l"(a.bits), "l"(b.bits), "l"(c.bits));
    return sum;
}

// The larger; a NaN wins.
__device__ __forceinline__ float larger_or_nan(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}

// 2^t as a product of two factors, without the exponential unit: 2^f in [0.7, 1.42] and 2^n, of t = n + f, |f| <= 1/2.
//
// Minimax in the relative error with 2^0 = 1, then rounded to f32: off by at most 1.6 u (u = 2^-24), and with the roundings
// of Horner's scheme by 2.6 u, which is less than 2 units in the last place (tests/exponential_polynomial.rs): no more than
// ex2.approx may be off by. n and f are exact.
struct Power {
    Pair fraction;
    Pair whole;

    // `t` at least -127, whose power is 0, and at most 128; NaN for NaN.
    static __device__ __forceinline__ Power of(Pair t) {
        // Leaves n + 127 in the lowest bits, where a shift makes it the exponent's field.
        const Pair shift = Pair::both(12583039.0f);
        const Pair shifted = t + shift;
        const Pair f = t - (shifted - shift);
        constexpr float COEFFICIENTS[] = {1.0f,           6.93147e-1f,   2.4022247e-1f,
                                          5.550711e-2f, 9.671292e-3f, 1.3269528e-3f};
        Pair sum = Pair::both(COEFFICIENTS[5]);
#pragma unroll
        for (int i = 4; i >= 0; i--) sum = fma(sum, f, Pair::both(COEFFICIENTS[i]));
        return {sum, shifted.map([](float x) { return __uint_as_float(__float_as_uint(x) << 23); })};
    }
};

// t of two logits: of near ones what Scale::exponent gives, in pairs.
template <bool SOFTCAP, bool NEAR>
__device__ __forceinline__ Pair exponents(Pair x, const Scale& scale, float r) {
    if constexpr (!SOFTCAP) {
        return fma(x, Pair::both(scale.factor), Pair::both(-r));
    } else if constexpr (NEAR) {
        const Pair y = x * Pair::both(scale.inverse_softcap), square = y * y;
        const float(&coefficients)[7] = scale.tanh_times_factor.coefficients;
        Pair sum = Pair::both(coefficients[6]);
#pragma unroll
        for (int i = 5; i >= 0; i--) sum = fma(sum, square, Pair::both(coefficients[i]));
        return fma(sum, y, Pair::both(-r));
    } else {
        return x.map([&](float logit) { return scale.exponent<true, false>(logit, r); });
    }
}

// Logits 2i and 2i + 1 of some vectors.
template <typename T, int COUNT>
__device__ __forceinline__ Pair logits(const Vector<T> (&v)[COUNT], int i) {
    if constexpr (T::PER_WORD == 1) {
        return Pair::of(v[i / 2].word[i % 2 * 2], v[i / 2].word[i % 2 * 2 + 1]);
    } else {
        const typename T::Word word = v[i / 4].word[i % 4];
        return Pair::of(T::low(word), T::high(word));
    }
}

// Adds the terms of some vectors to sums whose r is at least their exponents. NEAR as in Scale.
template <bool SOFTCAP, bool ENTROPY, bool NEAR, typename T, int COUNT>
__device__ __forceinline__ void add_terms(const Vector<T> (&v)[COUNT], const Scale& scale, Sums<float>& sums) {
    const auto at_least = [](float t) { return larger_or_nan(t, -127.0f); };
    // Two pairs in turn: four accumulators.
    Pair accumulators[2], weighted[2];
#pragma unroll
    for (int i = 0; i < 2 * T::PER_WORD * COUNT; i++) {
        const Pair t = exponents<SOFTCAP, NEAR>(logits<T>(v, i), scale, sums.r);
        Pair &sum = accumulators[i % 2], &weighted_sum = weighted[i % 2];
        if (T::PER_WORD == 2 && i % 4 == 3) {
            const Pair finite = t.map(at_least);
            const Power power = Power::of(finite);
            sum = fma(power.fraction, power.whole, sum);
            // t 2^n is exact.
            if constexpr (ENTROPY) weighted_sum = fma(finite * power.whole, power.fraction, weighted_sum);
        } else {
            const Pair power = t.map(exp2_approximate);
            sum = i < 2 ? power : sum + power;
            if constexpr (ENTROPY) {
                // An excluded column's -inf * 0 would be NaN.
                const Pair finite = t.map(at_least);
                weighted_sum = i < 2 ? finite * power : fma(finite, power, weighted_sum);
            }
        }
    }
    const auto total = [](Pair even, Pair odd) {
        float a, b, c, d;
        even.get(a, b);
        odd.get(c, d);
        return (a + b) + (c + d);
    };
    sums.s += total(accumulators[0], accumulators[1]);
    if constexpr (ENTROPY) sums.weighted += total(weighted[0], weighted[1]);
}
