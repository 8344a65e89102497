// What the forward kernels write for a row. `Arguments` has log_probs, states, entropies and status.
#pragma once

#include <cstdint>

#include "logits.cuh"
#include "softmax_sums.cuh"
#include "status.cuh"

// What a row is, of its columns or of some of them; all NaN but r where they have no softmax.
struct RowResult {
    float log_prob;
    float2 state;
    float entropy;
};

// The same from its sums and the logit of its target. One thread.
template <bool SOFTCAP, bool ENTROPY>
__device__ __forceinline__ RowResult row_result(const Scale& scale, const Sums<double>& sums, float target_logit) {
    RowResult result{NAN, make_float2(0.0f, NAN), NAN};
    // r still at its start: only -inf. r infinite: a +inf. A sum that is NaN: a NaN.
    if (fabsf(sums.r) < LARGEST_EXPONENT && !isnan(sums.s)) {
        constexpr double LN_2 = 0.693147180559945309;
        const double log2_sum = log2(sums.s);
        // Without a -0, which becomes 0 where ranks add up what they hold.
        const float r = sums.r + 0.0f;
        const double t = scale.exact_exponent<SOFTCAP>(target_logit + 0.0f, r);
        // The roundings of the sum must not make a probability larger than 1, nor an entropy negative.
        result.log_prob = static_cast<float>(fmin((t - log2_sum) * LN_2, 0.0));
        result.state = make_float2(r, static_cast<float>(sums.s));
        if constexpr (ENTROPY) {
            result.entropy = static_cast<float>(fmax((log2_sum - sums.weighted / sums.s) * LN_2, 0.0));
        }
    }
    return result;
}

// Writes a row's results, and counts what is odd about it. One thread.
template <bool SOFTCAP, bool ENTROPY, typename Arguments>
__device__ __forceinline__ void finish_row(const Arguments& arguments, const Scale& scale, const Sums<double>& sums,
                                           float target_logit, uint32_t row) {
    const RowResult result = row_result<SOFTCAP, ENTROPY>(scale, sums, target_logit);
    if (isnan(result.state.y)) {
        record(&arguments.status->non_finite_rows, &arguments.status->first_non_finite_row, row);
    } else if (result.log_prob == -INFINITY) {
        atomicAdd(&arguments.status->minus_infinite_targets, 1u);
    }
    arguments.log_probs[row] = result.log_prob;
    arguments.states[row] = result.state;
    if constexpr (ENTROPY) arguments.entropies[row] = result.entropy;
}

// A row that is not read: masked, or with a target that is no column. One thread.
template <bool ENTROPY, typename Arguments>
__device__ __forceinline__ void skip_row(const Arguments& arguments, uint32_t row, bool masked) {
    const float value = masked ? 0.0f : NAN;
    if (!masked) record(&arguments.status->bad_targets, &arguments.status->first_bad_target_row, row);
    arguments.log_probs[row] = value;
    arguments.states[row] = make_float2(0.0f, value);
    if constexpr (ENTROPY) arguments.entropies[row] = value;
}
