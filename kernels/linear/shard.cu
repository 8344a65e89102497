// The linear stage where ranks hold parts of a head: what linear/fold.cu and linear/unit_gradient.cu leave to do for a rank's part
// of each row, for what its unit gradients are made of, and, once all ranks' parts are here, for its share in them.
//
// With e_j relative to some power of two, sigma_j the softcap's slope, t the target, and (r, s) the state of all columns:
//
//     T d log pi / d h = (sigma_t W_t sum' e_j - sum' e_j sigma_j W_j) / s, over the columns j of all ranks that are not t.
//
// The first term is the share of the rank that has t. Its sum is made of what the rank keeps of its own columns without t, and of the
// other ranks' parts, which have no t: s - e_t would lose its digits where p_t is near 1.

#include <cstdint>

#include "../include/logits.cuh"
#include "../include/scored_rows.cuh"
#include "../include/softmax_sums.cuh"
#include "../include/status.cuh"

constexpr int THREADS = 256;

struct EmptyParts {
    float4* parts;             // [N, parts_per_row]
    const int32_t* positions;  // [N]
    int64_t count;             // N parts_per_row
    int64_t parts_per_row;
};

// Grid (ceil(count / THREADS)): parts that count for nothing; or, of scored rows that nobody takes, one that makes NaN of the row.
extern "C" __global__ void __launch_bounds__(THREADS) linear_empty_parts(const __grid_constant__ EmptyParts arguments) {
    const int64_t index = int64_t{blockIdx.x} * THREADS + threadIdx.x;
    if (index >= arguments.count) return;
    const bool is_unplaced = arguments.positions[index / arguments.parts_per_row] == UNPLACED;
    arguments.parts[index] = make_float4(START, is_unplaced ? NAN : 0.0f, 0.0f, 0.0f);
}

struct KeepUnitSums {
    const float* products;  // [R, H]: sum' e_j sigma_j W_j, rows product_stride elements apart
    float* unit_sums;       // [R, H]
    float4* rests;          // [R]: r of what e is relative to, sum' e_j, 0, the softcap's slope at the target
    const int32_t* rows;    // [R]: which of the N rows each is; -1: none
    const float2* states;   // [N]: of the rank's columns alone
    const float* sums;      // [R, blocks], as linear/unit_gradient.cu left them
    const float2* targets_of_rows;  // [R], as there
    int64_t product_stride;
    int32_t columns;  // H
    int32_t blocks;
    float excluded_slope;  // the softcap's at -inf; 1 without one
    int32_t reserved;
};

// Grid (R).
extern "C" __global__ void __launch_bounds__(THREADS) linear_unit_sums(const __grid_constant__ KeepUnitSums arguments) {
    const int32_t row = arguments.rows[blockIdx.x], thread = static_cast<int32_t>(threadIdx.x);
    float* to = arguments.unit_sums + int64_t{blockIdx.x} * arguments.columns;
    const float2 state = row < 0 ? make_float2(0.0f, NAN) : arguments.states[row];
    if (isnan(state.y)) {
        // Nobody's, or no column counts: its exponentials and their sums have not been made. The target may be one of these
        // columns all the same, with a logit of -inf, and then other ranks' columns have a part in its gradient.
        for (int32_t i = thread; i < arguments.columns; i += THREADS) to[i] = 0.0f;
        if (thread == 0) arguments.rests[blockIdx.x] = make_float4(START, 0.0f, 0.0f, arguments.excluded_slope);
        return;
    }
    const float* from = arguments.products + int64_t{blockIdx.x} * arguments.product_stride;
#pragma unroll 4
    for (int32_t i = thread; i < arguments.columns; i += THREADS) to[i] = __ldg(from + i);
    if (thread > 0) return;
    double sum = 0.0;
    for (int32_t i = 0; i < arguments.blocks; i++) sum += double{arguments.sums[blockIdx.x * arguments.blocks + i]};
    const float2 of_target = arguments.targets_of_rows[blockIdx.x];
    arguments.rests[blockIdx.x] = make_float4(state.x - of_target.y, static_cast<float>(sum), 0.0f, of_target.x);
}

struct UnitShare {
    float* unit_sums;       // [M, H]: what linear_unit_sums left, overwritten
    const float4* rests;    // [M], as it left them
    const float4* parts;    // [ranks, N, parts_per_row]
    const void* weight;     // [vocab, H], rows weight_stride elements apart
    const void* targets;    // [N]
    const int32_t* rows;    // [M]: which of the N rows each is; -1: none
    const float2* states;   // [N]: of all columns
    int64_t count;          // N
    int64_t parts_per_row;
    int64_t weight_stride;
    int32_t ranks;
    int32_t rank;
    int32_t columns;        // H
    int32_t first_column;   // of the whole vocabulary
    int32_t vocab;          // columns that are here
    int32_t target_bytes;   // 4 or 8
};

// The other ranks' columns, and this one's without the target. One thread.
__device__ __forceinline__ Sums<double> sum_without_target(const UnitShare& arguments, int32_t row, float4 rest) {
    Sums<double> sums{START, 0.0, 0.0};
#pragma unroll 1
    for (int32_t rank = 0; rank < arguments.ranks; rank++) {
        if (rank == arguments.rank) continue;
        const float4* parts = arguments.parts + (rank * arguments.count + row) * arguments.parts_per_row;
#pragma unroll 1
        for (int64_t i = 0; i < arguments.parts_per_row; i++) add_slice<false>(sums, parts[i].x, parts[i].y, 0.0f);
    }
    add_slice<false>(sums, rest.x, rest.y, 0.0f);
    return sums;
}

// What turns the sums into the share: relative to a power of two that is common to both terms, and from there to the state.
struct Factors {
    float coefficient;
    float to_common;
    float to_state;
};

// Grid (M).
template <typename T>
__device__ __forceinline__ void unit_share(const UnitShare& arguments) {
    using Bits = typename T::Bits;
    __shared__ Factors shared;
    const int32_t row = arguments.rows[blockIdx.x], thread = static_cast<int32_t>(threadIdx.x);
    if (row < 0) return;
    float* sums = arguments.unit_sums + int64_t{blockIdx.x} * arguments.columns;
    const float2 state = arguments.states[row];
    if (isnan(state.y)) {
        for (int32_t i = thread; i < arguments.columns; i += THREADS) sums[i] = NAN;
        return;
    }
    // A target that is no column has a state of NaN.
    const int64_t target = target_id(arguments.targets, arguments.target_bytes, row) - arguments.first_column;
    const bool has_target = target >= 0 && target < arguments.vocab;
    if (thread == 0) {
        const float4 rest = arguments.rests[blockIdx.x];
        const Sums<double> all = sum_without_target(arguments, row, rest);
        // No r of columns that count is far above that of all; without any column all sums are 0.
        const double distance = fmin(fmax(double{all.r} - double{state.x}, -1000.0), 1000.0);
        shared.coefficient = static_cast<float>(all.s) * rest.w;
        shared.to_common = static_cast<float>(exact_power_of_two(double{rest.x} - double{all.r}));
        // In the order of linear/unit_gradient.cu, whose bits one rank gives that has all columns.
        shared.to_state = scalbnf(1.0f / state.y, static_cast<int>(distance));
    }
    __syncthreads();
    const Factors factors = shared;
    if (!has_target) {
#pragma unroll 4
        for (int32_t i = thread; i < arguments.columns; i += THREADS) {
            sums[i] = -(sums[i] * factors.to_common) * factors.to_state;
        }
        return;
    }
    const auto* weight = static_cast<const Bits*>(arguments.weight) + target * arguments.weight_stride;
#pragma unroll 4
    for (int32_t i = thread; i < arguments.columns; i += THREADS) {
        // One rounding of the product with the weight: what it leaves may be small.
        const float of_target = T::low(static_cast<typename T::Word>(__ldg(weight + i)));
        sums[i] = fmaf(factors.coefficient, of_target, -(sums[i] * factors.to_common)) * factors.to_state;
    }
}

#define KERNEL(SUFFIX, T)                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS)                         \
        linear_unit_share_##SUFFIX(const __grid_constant__ UnitShare arguments) { \
        unit_share<T>(arguments);                                                 \
    }

KERNEL(f32, F32)
KERNEL(f16, F16)
KERNEL(bf16, Bf16)
