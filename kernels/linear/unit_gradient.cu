// The gradient of a hidden state h for an upstream gradient of 1, without what the temperature does: T d log pi / d h. The
// upstream gradient of a row is one number g, so that the row's gradient is (g/T) times this, which needs no loss.
//
// With e_j = 2^t_j relative to the row's state (r, s), sigma_j the softcap's slope (1 without one) and t the target:
//
//     T d log pi / d h = (sigma_t W_t sum' e_j - sum' e_j sigma_j W_j) / s, over the columns j that are not t.
//
// The target is left out of the sums, because W_t - sum p_j W_j over all columns would lose its digits where p_t is near 1.
// Here the rounding of e_j sigma_j to the head's type is one relative to what is left.
//
// Three launches around the product: exponentials e_j sigma_j with their sum, what is left of the formula, and, once there
// is a loss, the gradient.

#include <cstdint>

#include "../include/linear_chunk.cuh"
#include "../include/logits.cuh"
#include "../include/row_gradient.cuh"
#include "../include/scored_rows.cuh"
#include "../include/softmax_sums.cuh"
#include "../include/status.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
// 16-byte loads in flight per thread.
constexpr int LOADS = 4;

struct LinearExponentials {
    float* logits;           // [R, V], rows row_stride elements apart, 16-byte aligned
    const float* bias;       // [V], 16-byte aligned; or null
    void* exponentials;      // [R, V], rows exponential_row_stride elements apart, 16-byte aligned; f32: may be the logits
    const void* targets;     // [N]
    const int32_t* rows;     // [R]: which of the N rows each is; -1: none
    const float2* states;    // [N]: r, s, as linear/fold.cu left them
    const float* log_probs;  // [N], as linear/fold.cu left them; read for f16
    float* sums;             // [R, ceil(V / BLOCK_COLUMNS)]: sum' e_j of each block
    float2* targets_of_rows;  // [R]: the softcap's slope at the target, and the power of two that e is multiplied with
    int64_t row_stride;
    int64_t exponential_row_stride;
    int32_t vocab;
    int32_t target_bytes;  // 4 or 8
    int32_t keeps_logits;  // another kernel reads them again
    float scale;           // log2(e)/T
    float softcap;         // not read by kernels without softcap
    int32_t first_column;  // of the whole vocabulary
};

// The power of two that brings the largest e_j that is not the target's just below 2^14, for f16: it holds nothing below
// 6e-8. e_j <= sum' e_j = s (1 - p_t). Where 1 - p_t is below 2^-20 of f32's own rounding of log p_t it is taken for that.
__device__ __forceinline__ float range_shift(float2 state, float log_prob) {
    const float rest = state.y * (1.0f - exp2_approximate(log_prob * 1.4426950408889634f) + 9.5367431640625e-7f);
    return static_cast<float>(13 - ilogbf(rest));
}

// e_j sigma_j of a column, and the sum of e_j over a thread's columns.
template <bool SOFTCAP>
struct Exponential {
    Scale scale;
    float r;
    float sum;

    __device__ __forceinline__ bool are_near(const Vector<F32> (&v)[1]) const {
        return !SOFTCAP || all_near<F32>(v, scale);
    }

    template <bool NEAR>
    __device__ __forceinline__ float at(float x) {
        float slope;
        const float power = exp2_approximate(scale.exponent<SOFTCAP, NEAR>(x, r, slope));
        sum += power;
        return SOFTCAP ? power * slope : power;
    }
};

// Grid (R, ceil(V / BLOCK_COLUMNS)). Zeros for rows that are nobody's, and for those without a softmax.
template <typename T, bool SOFTCAP>
__device__ __forceinline__ void linear_exponentials(const LinearExponentials& arguments) {
    using Bits = typename T::Bits;
    __shared__ float warps[WARPS];
    const int32_t row = arguments.rows[blockIdx.x];
    const int32_t offset = static_cast<int32_t>(blockIdx.y) * BLOCK_COLUMNS;
    const int32_t columns = min(arguments.vocab - offset, BLOCK_COLUMNS);
    float* logits = arguments.logits + int64_t{blockIdx.x} * arguments.row_stride + offset;
    const float* bias = arguments.bias == nullptr ? nullptr : arguments.bias + offset;
    auto* to = static_cast<Bits*>(arguments.exponentials) + int64_t{blockIdx.x} * arguments.exponential_row_stride + offset;
    if (row < 0) return fill<THREADS, T>(to, columns, 0);
    const int64_t target = target_id(arguments.targets, arguments.target_bytes, row);
    const float2 state = arguments.states[row];
    // The state of a row whose target is no column is NaN too.
    if (isnan(state.y)) return fill<THREADS, T>(to, columns, 0);

    float shift = 0.0f;
    if constexpr (T::SMALL_RANGE) shift = range_shift(state, arguments.log_probs[row]);
    const Scale scale = Scale::make<SOFTCAP>(arguments.scale, arguments.softcap);
    // The target's logit is -inf while the row is rewritten, so that it adds nothing.
    const TargetColumn at = TargetColumn::find<THREADS>(target - arguments.first_column - offset, columns);
    float target_logit = 0.0f;
    if (at.is_mine) {
        target_logit = load<F32>(logits + at.column);
        float slope;
        scale.exponent<SOFTCAP>(target_logit + (bias == nullptr ? 0.0f : __ldg(bias + at.column)), state.x, slope);
        arguments.targets_of_rows[blockIdx.x] = make_float2(slope, shift);
        logits[at.column] = -INFINITY;
    }
    Exponential<SOFTCAP> value{scale, state.x - shift, 0.0f};
    if (bias == nullptr) {
        rewrite<THREADS, LOADS, T, false>(logits, bias, to, columns, value);
    } else {
        rewrite<THREADS, LOADS, T, true>(logits, bias, to, columns, value);
    }
    if (at.is_mine && arguments.keeps_logits) logits[at.column] = target_logit;

    const float sum = warp_sum(value.sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    float of_block = warps[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; warp++) of_block += warps[warp];
    arguments.sums[blockIdx.x * gridDim.y + blockIdx.y] = of_block;
    if (blockIdx.y > 0) return;
    // Of a target that another rank has nobody has said so. Read anew, so that it costs the loop no register.
    const int64_t column = target_id(arguments.targets, arguments.target_bytes, row) - arguments.first_column;
    if (column < 0 || column >= arguments.vocab) arguments.targets_of_rows[blockIdx.x] = make_float2(0.0f, shift);
}

struct UnitGradient {
    const float* products;  // [R, H]: sum' e_j sigma_j W_j, rows product_stride elements apart
    float* unit_gradients;  // [R, H], rows unit_stride elements apart; may be the products
    void* exponentials;     // [R, V], rows exponential_row_stride elements apart: gets the target's column; null: not kept
    float* kept_shifts;     // [R]; with exponentials
    const void* weight;     // [V, H], rows weight_stride elements apart
    const void* targets;    // [N]
    const int32_t* rows;    // [R]
    const float2* states;   // [N]
    const float* sums;      // [R, blocks]
    const float2* targets_of_rows;  // [R]
    int64_t product_stride;
    int64_t unit_stride;
    int64_t exponential_row_stride;
    int64_t weight_stride;
    int32_t columns;  // H
    int32_t blocks;
    int32_t target_bytes;
    int32_t reserved;
};

// Grid (R).
template <typename T>
__device__ __forceinline__ void unit_gradient(const UnitGradient& arguments) {
    using Bits = typename T::Bits;
    const int32_t row = arguments.rows[blockIdx.x];
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    if (row < 0) return;
    const float* from = arguments.products + int64_t{blockIdx.x} * arguments.product_stride;
    float* to = arguments.unit_gradients + int64_t{blockIdx.x} * arguments.unit_stride;
    const float2 state = arguments.states[row];
    if (isnan(state.y)) {
        for (int32_t i = thread; i < arguments.columns; i += THREADS) to[i] = NAN;
        if (thread == 0 && arguments.exponentials != nullptr) arguments.kept_shifts[blockIdx.x] = 0.0f;
        return;
    }
    double sum = 0.0;
    for (int32_t i = 0; i < arguments.blocks; i++) sum += double{arguments.sums[blockIdx.x * arguments.blocks + i]};
    const float2 of_target = arguments.targets_of_rows[blockIdx.x];
    const float coefficient = static_cast<float>(sum) * of_target.x;
    const float factor = scalbnf(1.0f / state.y, -static_cast<int>(of_target.y));
    const int64_t target = target_id(arguments.targets, arguments.target_bytes, row);
    const auto* weight = static_cast<const Bits*>(arguments.weight) + target * arguments.weight_stride;
#pragma unroll 4
    for (int32_t i = thread; i < arguments.columns; i += THREADS) {
        // One rounding of the product with the weight: what it leaves may be small.
        to[i] = fmaf(coefficient, T::low(static_cast<typename T::Word>(__ldg(weight + i))), -from[i]) * factor;
    }
    if (thread > 0 || arguments.exponentials == nullptr) return;
    auto* kept = static_cast<Bits*>(arguments.exponentials) + int64_t{blockIdx.x} * arguments.exponential_row_stride;
    kept[target] = static_cast<Bits>(T::pack(-coefficient, 0.0f));
    arguments.kept_shifts[blockIdx.x] = of_target.y;
}

struct HiddenGradient {
    const float* unit_gradients;  // [R, H], rows unit_stride elements apart: of the rows at `first` and after it
    void* gradients;              // [N, H], rows row_stride elements apart
    const int32_t* positions;     // [N]
    const float2* states;         // [N]
    UpstreamOfRows upstream;
    double largest_upstream;  // as in row_gradient.cuh
    int64_t unit_stride;
    int64_t row_stride;
    int32_t columns;  // H
    int32_t first;
    int32_t count;  // R
    float inverse_temperature;
};

// Grid (N): the gradients of the rows at positions first to first + count - 1, and with the first of them those of rows that
// have no position.
template <typename T>
__device__ __forceinline__ void hidden_gradient(const HiddenGradient& arguments) {
    using Bits = typename T::Bits;
    const int32_t row = static_cast<int32_t>(blockIdx.x), thread = static_cast<int32_t>(threadIdx.x);
    const int32_t position = arguments.positions[row];
    auto* to = static_cast<Bits*>(arguments.gradients) + int64_t{row} * arguments.row_stride;
    float factor = 0.0f;
    bool is_number = position == MASKED;
    if (position >= 0) {
        if (position < arguments.first || position - arguments.first >= arguments.count) return;
        const float g = arguments.upstream.of_log_prob(row);
        is_number = has_gradient(arguments.states[row], g, 0.0f, 0.0f, arguments.largest_upstream);
        factor = g * arguments.inverse_temperature;
    } else if (arguments.first > 0) {
        return;
    }
    if (!is_number || factor == 0.0f) {
        const auto word = static_cast<Bits>(is_number ? 0 : T::not_a_number());
        for (int32_t i = thread; i < arguments.columns; i += THREADS) to[i] = word;
        return;
    }
    const float* from = arguments.unit_gradients + int64_t{position - arguments.first} * arguments.unit_stride;
#pragma unroll 4
    for (int32_t i = thread; i < arguments.columns; i += THREADS) {
        to[i] = static_cast<Bits>(T::pack(factor * __ldg(from + i), 0.0f));
    }
}

#define EXPONENTIALS(NAME, T, SOFTCAP)                               \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)         \
        NAME(const __grid_constant__ LinearExponentials arguments) { \
        linear_exponentials<T, SOFTCAP>(arguments);                  \
    }
#define KERNELS(SUFFIX, T)                                                            \
    EXPONENTIALS(linear_exponentials_##SUFFIX, T, false)                              \
    EXPONENTIALS(linear_exponentials_##SUFFIX##_softcap, T, true)                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                             \
        linear_unit_gradient_##SUFFIX(const __grid_constant__ UnitGradient arguments) { \
        unit_gradient<T>(arguments);                                                  \
    }                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                             \
        linear_hidden_gradient_##SUFFIX(const __grid_constant__ HiddenGradient arguments) { \
        hidden_gradient<T>(arguments);                                                \
    }

KERNELS(f32, F32)
KERNELS(f16, F16)
KERNELS(bf16, Bf16)
