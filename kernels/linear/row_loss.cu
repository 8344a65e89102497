// Losses that are a sum over rows: each row's loss, and its gradient with respect to the row's log-prob.

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "../include/status.cuh"

constexpr int THREADS = 256;

struct RowLossArguments {
    const int32_t* rows;     // [M]: which of the N rows each is; -1: none
    const float* log_probs;  // [N]
    const float* weights;    // [N]
    const float* advantages;     // [N]; null: the loss is -w log pi
    const float* old_log_probs;  // [N]; read with advantages
    float* losses;               // [N]
    float* gradients;            // [N]
    Status* status;
    double largest_product;  // of |w|, or |w A|: RowLoss::largest_product in src/stage/row_loss.rs
    int32_t count;           // M
    float low;
    float high;
    float log_ratio_limit;
};

struct LossAndGradient {
    float loss;
    float gradient;
};

// -w log pi. False: the weight is not accepted.
__device__ __forceinline__ bool weighted(const RowLossArguments& arguments, int32_t row, LossAndGradient& result) {
    const float weight = arguments.weights[row];
    if (!(fabs(double{weight}) <= arguments.largest_product)) return false;
    // Not 0 * -inf, for a target that has no probability.
    if (weight == 0.0f) return true;
    const float log_prob = arguments.log_probs[row];
    const float loss = -weight * log_prob;
    const bool overflows = isinf(loss) && !isinf(log_prob);
    result = {overflows ? copysignf(FLT_MAX, loss) : loss, -weight};
    return true;
}

// The clipped ratio. False: one of its numbers is not accepted. What cannot matter is not looked at.
__device__ __forceinline__ bool clipped_ratio(const RowLossArguments& arguments, int32_t row, LossAndGradient& result) {
    const double weight = arguments.weights[row];
    if (!isfinite(weight)) return false;
    if (weight == 0.0) return true;
    const double advantage = arguments.advantages[row];
    if (!isfinite(advantage)) return false;
    if (advantage == 0.0) return true;
    const double old_log_prob = arguments.old_log_probs[row];
    if (!isfinite(old_log_prob) || fabs(weight * advantage) > arguments.largest_product) return false;

    const double log_ratio = double{arguments.log_probs[row]} - old_log_prob;
    const double limit = arguments.log_ratio_limit;
    const bool is_beyond = fabs(log_ratio) > limit;
    const double ratio = exp(is_beyond ? copysign(limit, log_ratio) : log_ratio);
    const double least = 1.0 - double{arguments.low}, most = 1.0 + double{arguments.high};
    // Not fmin and fmax: they would drop a NaN.
    const double clipped = ratio < least ? least : ratio > most ? most : ratio;
    // Where the clipped branch is the smaller one the ratio has no gradient; at a tie it still has.
    const bool is_clipped = clipped * advantage < ratio * advantage;
    const auto loss = static_cast<float>(-weight * (is_clipped ? clipped : ratio) * advantage);
    result = {loss, is_clipped || is_beyond ? 0.0f : loss};
    return true;
}

extern "C" __global__ void __launch_bounds__(THREADS) row_loss(const __grid_constant__ RowLossArguments arguments) {
    const int32_t index = static_cast<int32_t>(blockIdx.x * THREADS + threadIdx.x);
    if (index >= arguments.count) return;
    const int32_t row = arguments.rows[index];
    if (row < 0) return;
    LossAndGradient result{0.0f, 0.0f};
    const bool accepted = arguments.advantages == nullptr ? weighted(arguments, row, result)
                                                          : clipped_ratio(arguments, row, result);
    if (!accepted) record(&arguments.status->bad_row_inputs, &arguments.status->first_bad_row_input, row);
    arguments.losses[row] = result.loss;
    arguments.gradients[row] = result.gradient;
}
