// The gradient of a row's logits: what is the same for all of its columns, then column by column.
//
// d loss / d x_j = { g ([j = target] - p_j) - e p_j (log p_j + H) } dz_j/dx_j, with z the scaled logits, p their softmax,
// g and e the upstream gradients of log-prob and entropy H.
#pragma once

#include <cstdint>

#include "logits.cuh"

// Where the upstream gradient of a row comes from.
struct UpstreamOfRows {
    const float* row_gradients;      // [N], d loss / d log-prob; null: from the sequences
    const float* entropy_gradients;  // [N], d loss / d entropy; null: none
    const float* entropies;          // [N], as the forward kernel left them; read with entropy gradients
    const int32_t* row_sequences;    // [N]; read where row_gradients is null
    const double* sequence_weights;  // [S], d loss / d log-prob of each of the sequence's rows
    double loss_scale;
    int64_t sequences;               // S

    __device__ __forceinline__ float of_log_prob(int32_t row) const {
        if (row_gradients != nullptr) return row_gradients[row];
        const int32_t sequence = row_sequences[row];
        // One that is none has no weight: NaN, which goes through the row and through no other.
        if (sequence < 0 || sequence >= sequences) return NAN;
        return static_cast<float>(sequence_weights[sequence] * loss_scale);
    }
};

// What turns exponents into gradients: 2^t (constant + slope t), or, folded, 2^(t + log2 |constant|) and the sign: that
// is half an operation per column less where two columns are packed into a word, which takes both signs at once.
struct RowFactors {
    float r;         // folded: r - log2 |constant|
    float constant;  // -(g + e (H - ln s))/(T s)
    float slope;     // -e ln 2/(T s)
    uint32_t sign;   // folded: the sign bits of a word
};

// Whether a row has a gradient that fits f32 with all that it is made of; LogitOptions::largest_upstream in src/options.rs
// says why. Every comparison with a NaN is false. In f64, of which many devices have few units, only where it may be close:
// the limit is at least 3.4e8 s, as a temperature is at least 1e-30.
__device__ __forceinline__ bool has_gradient(float2 state, float g, float e, float entropy, double largest_upstream) {
    if (isnan(state.y) || (e != 0.0f && !isfinite(entropy))) return false;
    if (fabsf(g) + 128.0f * fabsf(e) < 1e7f && state.y >= 0.25f) return true;
    return 2.0 * fabs(double{g}) + 256.0 * fabs(double{e}) <= largest_upstream * fmin(1.0, 2.0 * double{state.y});
}

// The factors of a row, not folded. All threads of a block call it: with an entropy it has a barrier.
template <bool ENTROPY>
__device__ __forceinline__ RowFactors row_factors(float2 state, float g, float e, float entropy,
                                                  float inverse_temperature) {
    RowFactors factors{state.x, 0.0f, 0.0f, 0};
    if constexpr (ENTROPY) {
        // H - ln s cancels, so it is formed in f64: by one thread, since many devices have few units for that.
        __shared__ float shared[2];
        if (threadIdx.x == 0) {
            const double unit = double{inverse_temperature} / double{state.y};
            shared[0] = static_cast<float>(-(double{g} + double{e} * (double{entropy} - log(double{state.y}))) * unit);
            shared[1] = static_cast<float>(double{e} * -0.693147180559945309 * unit);
        }
        __syncthreads();
        factors.constant = shared[0];
        factors.slope = shared[1];
    } else {
        factors.constant = -(g * inverse_temperature) / state.y;
    }
    return factors;
}

// A column that is not the target. NEAR as in Scale.
template <bool SOFTCAP, bool ENTROPY, bool FOLD, bool NEAR = false>
__device__ __forceinline__ float gradient(float x, const Scale& scale, const RowFactors& factors) {
    float softcap_slope;
    const float t = scale.exponent<SOFTCAP, NEAR>(x, factors.r, softcap_slope);
    const float power = exp2_approximate(t);
    if constexpr (FOLD) return power;
    float factor = factors.constant;
    // Without the limit, an excluded column would get 0 * -inf, which is NaN.
    if constexpr (ENTROPY) factor = fmaf(fmaxf(t, -127.0f), factors.slope, factor);
    const float value = power * factor;
    return SOFTCAP ? value * softcap_slope : value;
}

// The target's column: g (1 - p_t), formed before the rounding to the gradient's type. One thread.
template <bool SOFTCAP, bool ENTROPY>
__device__ __forceinline__ float target_gradient(float logit, const Scale& scale, float inverse_temperature,
                                                 float2 state, float g, float e, float entropy) {
    float softcap_slope;
    const float t = scale.exponent<SOFTCAP>(logit, state.x, softcap_slope);
    const float p = exp2_approximate(t) / state.y;
    float value = g * (1.0f - p);
    if constexpr (ENTROPY) {
        const double log_p =
            (scale.exact_exponent<SOFTCAP>(logit, state.x) - log2(double{state.y})) * 0.693147180559945309;
        const double of_entropy = p > 0.0f ? double{e} * p * (log_p + entropy) : 0.0;
        value = static_cast<float>(double{g} * (1.0 - p) - of_entropy);
    }
    return value * inverse_temperature * softcap_slope;
}
