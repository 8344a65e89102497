// Log-probs straight from hidden states, backward: turns the f32 logits of a chunk of the vocabulary into their gradient
// in the type of the head, which is an operand of the two products that follow; and what else those products need.
//
// Grid (M, ceil(columns / BLOCK_COLUMNS)), THREADS threads: a block does some columns of one gathered row. With f32
// gradients they may overwrite the logits. Rows of the chunk that are nobody's get zeros, which add nothing.
//
// f16 gradients underflow below 6e-8, where p g / N easily is: they are made larger by a power of two, exactly, that the
// products divide out again (alpha).

#include <cstdint>

#include "../include/linear_chunk.cuh"
#include "../include/logits.cuh"
#include "../include/row_gradient.cuh"
#include "../include/scored_rows.cuh"
#include "../include/status.cuh"

constexpr int THREADS = 256;
// 16-byte loads in flight per thread.
constexpr int LOADS = 4;
struct LinearLogProbBackward {
    const float* logits;   // [M, columns], rows row_stride elements apart, 16-byte aligned
    const float* bias;     // [columns], 16-byte aligned; or null
    void* gradients;       // [M, columns], rows gradient_row_stride elements apart, 16-byte aligned; f32: may be the logits
    const float* factor;   // a power of two that the gradients are multiplied with; or null
    const void* targets;   // [N]
    const int32_t* rows;   // [M]: which of the N rows each is; -1: none
    const float2* states;  // [N]: r, s, as the forward kernel left them
    UpstreamOfRows upstream;
    int64_t row_stride;
    int64_t gradient_row_stride;
    double largest_upstream;  // as in row_gradient.cuh
    int32_t begin;    // the whole vocabulary's column that the chunk begins with
    int32_t columns;  // of the chunk
    int32_t vocab;    // columns of the whole vocabulary
    int32_t target_bytes;  // 4 or 8
    float scale;           // log2(e)/T
    float inverse_temperature;
    float softcap;  // not read by kernels without softcap
    int32_t reserved;
};

// The gradient of a column that is not the target.
template <bool SOFTCAP, bool ENTROPY>
struct Gradient {
    Scale scale;
    RowFactors factors;

    __device__ __forceinline__ bool are_near(const Vector<F32> (&v)[1]) const {
        return !SOFTCAP || all_near<F32>(v, scale);
    }

    template <bool NEAR>
    __device__ __forceinline__ float at(float x) const {
        return gradient<SOFTCAP, ENTROPY, false, NEAR>(x, scale, factors);
    }
};

template <typename T, bool SOFTCAP, bool ENTROPY>
__device__ __forceinline__ void linear_log_prob_backward(const LinearLogProbBackward& arguments) {
    using Bits = typename T::Bits;
    const int32_t row = arguments.rows[blockIdx.x];
    const int32_t offset = static_cast<int32_t>(blockIdx.y) * BLOCK_COLUMNS;
    const int32_t columns = min(arguments.columns - offset, BLOCK_COLUMNS);
    const float* logits = arguments.logits + int64_t{blockIdx.x} * arguments.row_stride + offset;
    const float* bias = arguments.bias == nullptr ? nullptr : arguments.bias + offset;
    auto* gradients =
        static_cast<Bits*>(arguments.gradients) + int64_t{blockIdx.x} * arguments.gradient_row_stride + offset;
    if (row < 0) return fill<THREADS, T>(gradients, columns, 0);

    const int64_t target = target_id(arguments.targets, arguments.target_bytes, row);
    const float2 state = arguments.states[row];
    float g = arguments.upstream.of_log_prob(row);
    float e = 0.0f, entropy = 0.0f;
    if constexpr (ENTROPY) {
        e = arguments.upstream.entropy_gradients[row];
        // As in token_log_prob_backward.cu: 0 times a NaN is a NaN.
        if (e != 0.0f) entropy = arguments.upstream.entropies[row];
    }
    // Rows without a softmax or whose gradient does not fit, and those whose target is no column.
    if (!has_gradient(state, g, e, entropy, arguments.largest_upstream) || target >= arguments.vocab) {
        return fill<THREADS, T>(gradients, columns, T::not_a_number());
    }
    if (g == 0.0f && e == 0.0f) return fill<THREADS, T>(gradients, columns, 0);
    if (arguments.factor != nullptr) {
        const float factor = __ldg(arguments.factor);
        g *= factor;
        e *= factor;
    }

    const RowFactors factors = row_factors<ENTROPY>(state, g, e, entropy, arguments.inverse_temperature);
    // The target's logit, before it is overwritten.
    const TargetColumn at = TargetColumn::find<THREADS>(target - arguments.begin - offset, columns);
    float target_logit = 0.0f;
    if (at.is_mine) target_logit = load<F32>(logits + at.column) + (bias == nullptr ? 0.0f : __ldg(bias + at.column));

    const Scale scale = Scale::make<SOFTCAP>(arguments.scale, arguments.softcap);
    Gradient<SOFTCAP, ENTROPY> value{scale, factors};
    if (bias == nullptr) {
        rewrite<THREADS, LOADS, T, false>(logits, bias, gradients, columns, value);
    } else {
        rewrite<THREADS, LOADS, T, true>(logits, bias, gradients, columns, value);
    }

    if (at.is_mine) {
        const float of_target = target_gradient<SOFTCAP, ENTROPY>(target_logit, scale, arguments.inverse_temperature,
                                                                  state, g, e, entropy);
        gradients[at.column] = static_cast<Bits>(T::pack(of_target, 0.0f));
    }
}

#define KERNEL(NAME, T, SOFTCAP, ENTROPY)                               \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)            \
        NAME(const __grid_constant__ LinearLogProbBackward arguments) { \
        linear_log_prob_backward<T, SOFTCAP, ENTROPY>(arguments);       \
    }
#define KERNELS(SUFFIX, T)                                                         \
    KERNEL(linear_log_prob_backward_##SUFFIX, T, false, false)                     \
    KERNEL(linear_log_prob_backward_##SUFFIX##_entropy, T, false, true)            \
    KERNEL(linear_log_prob_backward_##SUFFIX##_softcap, T, true, false)            \
    KERNEL(linear_log_prob_backward_##SUFFIX##_softcap_entropy, T, true, true)

KERNELS(f32, F32)
KERNELS(f16, F16)
KERNELS(bf16, Bf16)

struct WithholdRows {
    int32_t* rows;         // [M]
    int32_t* positions;    // [N]
    uint4* gathered;       // [M, gathered_words]: hidden states
    const float2* states;  // [N]
    UpstreamOfRows upstream;
    Status* status;
    double largest_upstream;  // as in row_gradient.cuh
    int32_t gathered_words;   // 16-byte words of a row
    int32_t reserved;
};

// Before gradients that are added to: takes rows that would add NaN or an infinity off the list, so that their gradient
// is 0. A hidden state of theirs may hold NaN, and 0 * NaN is NaN: the gathered copy becomes 0 too. Grid (M).
extern "C" __global__ void __launch_bounds__(THREADS)
    linear_withhold_rows(const __grid_constant__ WithholdRows arguments) {
    const int32_t row = arguments.rows[blockIdx.x];
    if (row < 0) return;
    const UpstreamOfRows& upstream = arguments.upstream;
    const float g = upstream.of_log_prob(row);
    float e = 0.0f, entropy = 0.0f;
    if (upstream.entropy_gradients != nullptr) {
        e = upstream.entropy_gradients[row];
        if (e != 0.0f) entropy = upstream.entropies[row];
    }
    // The state of a row whose target is no column is NaN too.
    if (has_gradient(arguments.states[row], g, e, entropy, arguments.largest_upstream)) return;
    uint4* state = arguments.gathered + int64_t{blockIdx.x} * arguments.gathered_words;
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    for (int32_t i = thread; i < arguments.gathered_words; i += THREADS) state[i] = make_uint4(0, 0, 0, 0);
    // Behind the last read of the entry.
    __syncthreads();
    if (thread > 0) return;
    arguments.rows[blockIdx.x] = -1;
    // Its gradient is NaN.
    arguments.positions[row] = UNPLACED;
    record(&arguments.status->withheld_rows, &arguments.status->first_withheld_row, row);
}

struct GradientScale {
    const int32_t* rows;  // [M]
    UpstreamOfRows upstream;
    float* factors;  // [4]: the power of two, its inverse, 0 and 1
    int32_t count;   // M
    float inverse_temperature;
};

constexpr int SCALE_THREADS = 1024;

// The power of two that brings the largest gradient of these rows just below 2^15, for f16. One block.
//
// |d loss / d x_j| <= (|g| + |e| (|p log p| + p H)) / T, and |p log p| <= 1/e < 0.4.
extern "C" __global__ void __launch_bounds__(SCALE_THREADS, 1)
    linear_gradient_scale(const __grid_constant__ GradientScale arguments) {
    __shared__ float warps[SCALE_THREADS / 32];
    const UpstreamOfRows& upstream = arguments.upstream;
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    float largest = 0.0f;
    for (int32_t i = thread; i < arguments.count; i += SCALE_THREADS) {
        const int32_t row = arguments.rows[i];
        if (row < 0) continue;
        float size = fabsf(upstream.of_log_prob(row));
        if (upstream.entropy_gradients != nullptr) {
            const float e = upstream.entropy_gradients[row];
            if (e != 0.0f) size += fabsf(e) * (0.4f + upstream.entropies[row]);
        }
        size *= arguments.inverse_temperature;
        // Rows with NaN have a gradient of NaN whatever the factor is.
        if (size < INFINITY) largest = fmaxf(largest, size);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    }
    if (thread % 32 == 0) warps[thread / 32] = largest;
    __syncthreads();
    if (thread > 0) return;
    for (int warp = 1; warp < SCALE_THREADS / 32; warp++) largest = fmaxf(largest, warps[warp]);
    // At least 14 - 127: that power of two and its inverse are normal numbers.
    const int exponent = largest > 0.0f ? min(14 - ilogbf(largest), 100) : 0;
    arguments.factors[0] = scalbnf(1.0f, exponent);
    arguments.factors[1] = scalbnf(1.0f, -exponent);
    arguments.factors[2] = 0.0f;
    arguments.factors[3] = 1.0f;
}
