// The gradient of the weight from gradients of the logits that the forward pass kept (linear/unit_gradient.cu): e_j sigma_j of
// each column, relative to the row's state, and in the target's minus the sum of the others. What they lack is one number a
// row, c = -g/(T s), with which the hidden states are multiplied on their way to the product.

#include <cstdint>

#include "../include/logits.cuh"
#include "../include/row_gradient.cuh"
#include "../include/status.cuh"

constexpr int THREADS = 256;
constexpr int COEFFICIENT_THREADS = 1024;

struct RowCoefficients {
    const int32_t* rows;    // [R]: which of the N rows each is; -1: none
    const float2* states;   // [N]
    UpstreamOfRows upstream;
    const float* shifts;    // [R]: the powers of two that the kept numbers are multiplied with
    float* coefficients;    // [R]: c
    float* factors;         // [4]: the power of two for f16, its inverse, 0 and 1; null for other types
    double largest_upstream;  // as in row_gradient.cuh
    int32_t count;          // R
    float inverse_temperature;
};

// One block. With factors also the power of two that brings the largest c just below 1: in f16 the product of a small one
// with a hidden state would vanish.
extern "C" __global__ void __launch_bounds__(COEFFICIENT_THREADS, 1)
    linear_row_coefficients(const __grid_constant__ RowCoefficients arguments) {
    __shared__ float warps[COEFFICIENT_THREADS / 32];
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    float largest = 0.0f;
    for (int32_t i = thread; i < arguments.count; i += COEFFICIENT_THREADS) {
        const int32_t row = arguments.rows[i];
        float coefficient = 0.0f;
        if (row >= 0) {
            const float2 state = arguments.states[row];
            const float g = arguments.upstream.of_log_prob(row);
            coefficient = has_gradient(state, g, 0.0f, 0.0f, arguments.largest_upstream)
                              ? scalbnf(-(g * arguments.inverse_temperature) / state.y,
                                        -static_cast<int>(arguments.shifts[i]))
                              : NAN;
        }
        arguments.coefficients[i] = coefficient;
        // Not of NaN, whose row's gradient is NaN whatever the factor is.
        if (fabsf(coefficient) < INFINITY) largest = fmaxf(largest, fabsf(coefficient));
    }
    if (arguments.factors == nullptr) return;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    }
    if (thread % 32 == 0) warps[thread / 32] = largest;
    __syncthreads();
    if (thread > 0) return;
    for (int warp = 1; warp < COEFFICIENT_THREADS / 32; warp++) largest = fmaxf(largest, warps[warp]);
    // The power of two and its inverse are normal numbers.
    const int exponent = largest > 0.0f ? max(-126, min(-1 - ilogbf(largest), 126)) : 0;
    arguments.factors[0] = scalbnf(1.0f, exponent);
    arguments.factors[1] = scalbnf(1.0f, -exponent);
    arguments.factors[2] = 0.0f;
    arguments.factors[3] = 1.0f;
}

struct ScaledRows {
    const void* hidden;         // [N, H], rows row_stride elements apart
    void* gathered;             // [R, H], rows gathered_stride elements apart
    const int32_t* rows;        // [R]
    const float* coefficients;  // [R]
    const float* factor;        // a power of two, or null
    int64_t row_stride;
    int64_t gathered_stride;
    int32_t columns;  // H
    int32_t reserved;
};

// Grid (R): hidden states times c, in their type.
template <typename T>
__device__ __forceinline__ void scaled_rows(const ScaledRows& arguments) {
    using Bits = typename T::Bits;
    const int32_t row = arguments.rows[blockIdx.x], thread = static_cast<int32_t>(threadIdx.x);
    auto* to = static_cast<Bits*>(arguments.gathered) + int64_t{blockIdx.x} * arguments.gathered_stride;
    const float factor = arguments.factor == nullptr ? 1.0f : __ldg(arguments.factor);
    const float coefficient = arguments.coefficients[blockIdx.x] * factor;
    if (row < 0 || coefficient == 0.0f) {
        for (int32_t i = thread; i < arguments.columns; i += THREADS) to[i] = 0;
        return;
    }
    const auto* from = static_cast<const Bits*>(arguments.hidden) + int64_t{row} * arguments.row_stride;
#pragma unroll 4
    for (int32_t i = thread; i < arguments.columns; i += THREADS) {
        const float value = coefficient * T::low(static_cast<typename T::Word>(__ldg(from + i)));
        to[i] = static_cast<Bits>(T::pack(value, 0.0f));
    }
}

#define KERNEL(SUFFIX, T)                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                           \
        linear_scaled_rows_##SUFFIX(const __grid_constant__ ScaledRows arguments) { \
        scaled_rows<T>(arguments);                                                  \
    }

KERNEL(f32, F32)
KERNEL(f16, F16)
KERNEL(bf16, Bf16)
