// What the matrix products leave to do for the gradients of a head: the bias's sums over rows, and the weight's rounding
// where it was summed up in f32 beside its buffer.

#include <cstdint>

#include "../include/logits.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
// Columns of a block of the bias's gradient, a lane each. As in src/cuda/raw/linear/head.rs.
constexpr int32_t BIAS_COLUMNS = 32;

struct BiasGradient {
    const void* gradients;  // [M, columns] of the logits, rows row_stride elements apart
    const float* factor;    // what each is multiplied with; or null
    const float* coefficients;  // [M]: what each of a row is multiplied with; or null
    double* sums;           // [columns]: from one call to the next; not used where one call is all
    void* target;           // [columns]: the gradient of the bias
    int64_t row_stride;
    int32_t rows;     // M
    int32_t columns;
    int32_t is_first;
    int32_t is_last;
    int32_t accumulate;  // adds to what is there
    int32_t reserved;
};

// Grid (ceil(columns / BIAS_COLUMNS)): a lane a column, a warp every WARPS-th row; sums in f64 in an order that the row's place in
// the batch decides, and nothing else.
template <typename T, typename G>
__device__ __forceinline__ void bias_gradient(const BiasGradient& arguments) {
    __shared__ double shared[WARPS][BIAS_COLUMNS];
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int32_t column = static_cast<int32_t>(blockIdx.x) * BIAS_COLUMNS + lane;
    double sum = 0.0;
    if (column < arguments.columns) {
        const auto* from = static_cast<const typename T::Bits*>(arguments.gradients) + column;
#pragma unroll 4
        for (int32_t row = warp; row < arguments.rows; row += WARPS) {
            const double gradient{load<T>(from + row * arguments.row_stride)};
            // 0 times the NaN of a row without a softmax is a NaN, as it must be.
            sum += arguments.coefficients == nullptr ? gradient : gradient * double{arguments.coefficients[row]};
        }
    }
    shared[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= arguments.columns) return;
#pragma unroll
    for (int other = 1; other < WARPS; other++) sum += shared[other][lane];
    if (arguments.factor != nullptr) sum *= double{__ldg(arguments.factor)};
    if (!arguments.is_first) sum += arguments.sums[column];
    if (!arguments.is_last) {
        arguments.sums[column] = sum;
        return;
    }
    auto* to = static_cast<typename G::Bits*>(arguments.target) + column;
    if (arguments.accumulate) sum += double{load<G>(to)};
    *to = static_cast<typename G::Bits>(G::pack(static_cast<float>(sum), 0.0f));
}

struct RoundWeight {
    const float* sums;  // [V, H], rows sums_stride elements apart
    void* gradients;    // [V, H], rows row_stride elements apart
    int64_t sums_stride;
    int64_t row_stride;
    int32_t columns;     // H
    int32_t accumulate;  // adds to what is there
};

// Grid (V).
template <typename G>
__device__ __forceinline__ void round_weight(const RoundWeight& arguments) {
    const float* from = arguments.sums + int64_t{blockIdx.x} * arguments.sums_stride;
    auto* to = static_cast<typename G::Bits*>(arguments.gradients) + int64_t{blockIdx.x} * arguments.row_stride;
#pragma unroll 4
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < arguments.columns; i += THREADS) {
        const float before = arguments.accumulate ? load<G>(to + i) : 0.0f;
        to[i] = static_cast<typename G::Bits>(G::pack(__ldg(from + i) + before, 0.0f));
    }
}

#define BIAS(SUFFIX, T, GRADIENT_SUFFIX, G)                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                        \
        linear_bias_gradient_##SUFFIX##_##GRADIENT_SUFFIX(const __grid_constant__ BiasGradient arguments) { \
        bias_gradient<T, G>(arguments);                                                          \
    }
#define ROUND(SUFFIX, G)                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS)                             \
        linear_round_weight_##SUFFIX(const __grid_constant__ RoundWeight arguments) { \
        round_weight<G>(arguments);                                                   \
    }

BIAS(f32, F32, f32, F32)
BIAS(f16, F16, f32, F32)
BIAS(bf16, Bf16, f32, F32)
BIAS(f16, F16, f16, F16)
BIAS(bf16, Bf16, bf16, Bf16)
ROUND(f16, F16)
ROUND(bf16, Bf16)
