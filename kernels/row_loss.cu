// Losses that are a sum over rows: each row's loss, and its gradient with respect to the row's log-prob.

#include <cmath>
#include <cstdint>

constexpr int THREADS = 256;

struct RowLoss {
    const int32_t* rows;     // [M]: which of the N rows each is; -1: none
    const float* log_probs;  // [N]
    const float* weights;    // [N]
    const float* advantages;     // [N]; null: the loss is -w log pi
    const float* old_log_probs;  // [N]; read with advantages
    float* losses;               // [N]
    float* gradients;            // [N]
    int32_t count;  // M
    float low;
    float high;
    int32_t reserved;
};

extern "C" __global__ void __launch_bounds__(THREADS) row_loss(const __grid_constant__ RowLoss arguments) {
    const int32_t index = static_cast<int32_t>(blockIdx.x * THREADS + threadIdx.x);
    if (index >= arguments.count) return;
    const int32_t row = arguments.rows[index];
    if (row < 0) return;
    const float weight = arguments.weights[row];
    float loss = 0.0f, gradient = 0.0f;
    // At a weight of 0 not 0 * -inf, for a target that has no probability.
    if (weight != 0.0f && arguments.advantages == nullptr) {
        loss = -weight * arguments.log_probs[row];
        gradient = -weight;
    } else if (weight != 0.0f) {
        const double advantage = arguments.advantages[row];
        const double ratio = exp(double{arguments.log_probs[row]} - double{arguments.old_log_probs[row]});
        const double least = 1.0 - double{arguments.low}, most = 1.0 + double{arguments.high};
        // Not fmin and fmax: they would drop a NaN.
        const double clipped = ratio < least ? least : ratio > most ? most : ratio;
        // Where the clipped branch is the smaller one the ratio has no gradient; at a tie it still has.
        const bool is_clipped = clipped * advantage < ratio * advantage;
        loss = static_cast<float>(-double{weight} * (is_clipped ? clipped : ratio) * advantage);
        gradient = is_clipped ? 0.0f : loss;
    }
    arguments.losses[row] = loss;
    arguments.gradients[row] = gradient;
}
