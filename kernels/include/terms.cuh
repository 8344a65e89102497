// The terms of a softmax's sums: 2^t of every column, and t 2^t for the entropy. `packed_terms.cuh` is the same for
// architectures with arithmetic of pairs.
#pragma once

#include "logits.cuh"
#include "softmax_sums.cuh"

// Adds the terms of some vectors to sums whose r is at least their exponents. NEAR as in Scale.
template <bool SOFTCAP, bool ENTROPY, bool NEAR, typename T, int COUNT>
__device__ __forceinline__ void add_terms(const Vector<T> (&v)[COUNT], const Scale& scale, Sums<float>& sums) {
    float accumulators[4], weighted[4];
#pragma unroll
    for (int i = 0; i < 4 * COUNT; i++) {
#pragma unroll
        for (int half = 0; half < T::PER_WORD; half++) {
            const typename T::Word word = v[i / 4].word[i % 4];
            const int lane = (T::PER_WORD * i + half) % 4;
            const bool first = T::PER_WORD * i + half < 4;
            const float t = scale.exponent<SOFTCAP, NEAR>(half == 0 ? T::low(word) : T::high(word), sums.r);
            const float power = exp2_approximate(t);
            accumulators[lane] = first ? power : accumulators[lane] + power;
            if constexpr (ENTROPY) {
                // An excluded column's -inf * 0 would be NaN; a NaN is in the power.
                const float finite = fmaxf(t, -127.0f);
                weighted[lane] = first ? finite * power : fmaf(finite, power, weighted[lane]);
            }
        }
    }
    sums.s += (accumulators[0] + accumulators[1]) + (accumulators[2] + accumulators[3]);
    if constexpr (ENTROPY) sums.weighted += (weighted[0] + weighted[1]) + (weighted[2] + weighted[3]);
}
