// The rows of the linear stage: which are scored, their hidden states gathered, their gradients put back.
//
// Masked rows are left out of every matrix product. Only the device knows which they are, and nothing waits for it: so
// the number of gathered rows (`capacity`) is the caller's bound, and what the scored rows leave of it is filled with
// zeros, which add nothing to any product. A masked row is never read: whatever is in it, NaN too, has no effect.

#include <cstdint>

#include "../include/logits.cuh"
#include "../include/scored_rows.cuh"
#include "../include/status.cuh"

constexpr int THREADS = 256;

struct ScoredRows {
    const void* targets;  // [N]
    int32_t* rows;        // [filled]: the scored rows, ascending, then -1
    int32_t* positions;   // [N]: where a row is in `rows`; MASKED, or UNPLACED
    float* log_probs;     // [N] each; null where the caller has none: rows that are not in `rows` get their results here
    float2* states;
    float* entropies;
    float* losses;
    Status* status;
    int32_t count;     // N
    int32_t capacity;  // M
    int32_t target_bytes;
    int32_t filled;  // capacity or more: products of a fixed number of rows
};

constexpr int SCAN_THREADS = 1024;
constexpr int SCAN_WARPS = SCAN_THREADS / 32;

// One block. The order is that of the rows, whatever order threads run in.
extern "C" __global__ void __launch_bounds__(SCAN_THREADS, 1)
    linear_scored_rows(const __grid_constant__ ScoredRows arguments) {
    __shared__ int32_t scored[2][SCAN_WARPS];
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    const int32_t lane = thread % 32, warp = thread / 32;
    int32_t before = 0;
    int32_t place = 0;
#pragma unroll 1
    for (int32_t begin = 0; begin < arguments.count; begin += SCAN_THREADS, place ^= 1) {
        const int32_t row = begin + thread;
        const bool exists = row < arguments.count;
        const bool is_scored = exists && target_id(arguments.targets, arguments.target_bytes, row) >= 0;
        const uint32_t ballot = __ballot_sync(0xffffffffu, is_scored);
        // Two places, taken in turn: a warp is at most one barrier ahead of those that still read.
        if (lane == 0) scored[place][warp] = __popc(ballot);
        __syncthreads();
        int32_t position = before + __popc(ballot & ((1u << lane) - 1));
#pragma unroll
        for (int other = 0; other < SCAN_WARPS; other++) {
            const int32_t of_warp = scored[place][other];
            before += of_warp;
            position += other < warp ? of_warp : 0;
        }
        if (!exists) continue;
        const bool placed = is_scored && position < arguments.capacity;
        if (placed) arguments.rows[position] = row;
        arguments.positions[row] = placed ? position : is_scored ? UNPLACED : MASKED;
        if (placed) continue;
        const float value = is_scored ? NAN : 0.0f;
        if (is_scored) atomicAdd(&arguments.status->unplaced_rows, 1u);
        if (arguments.log_probs != nullptr) arguments.log_probs[row] = value;
        if (arguments.states != nullptr) arguments.states[row] = make_float2(0.0f, value);
        if (arguments.entropies != nullptr) arguments.entropies[row] = value;
        if (arguments.losses != nullptr) arguments.losses[row] = value;
    }
#pragma unroll 1
    for (int32_t position = min(before, arguments.capacity) + thread; position < arguments.filled;
         position += SCAN_THREADS) {
        arguments.rows[position] = MASKED;
    }
}

struct GatherRows {
    const void* hidden;   // [N, H], rows row_stride elements apart
    void* gathered;       // [M, H], rows gathered_stride elements apart, 16-byte aligned
    const int32_t* rows;  // [M]
    int64_t row_stride;
    int64_t gathered_stride;
    int32_t columns;  // H
    int32_t reserved;
};

// Grid (M). `Bits`: an element.
template <typename Bits>
__device__ __forceinline__ void gather_rows(const GatherRows& arguments) {
    const int32_t row = arguments.rows[blockIdx.x];
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    auto* to = static_cast<Bits*>(arguments.gathered) + int64_t{blockIdx.x} * arguments.gathered_stride;
    constexpr int32_t IN_VECTOR = 16 / sizeof(Bits);
    if (row < 0) {
        const int32_t vectors = arguments.columns / IN_VECTOR;
        for (int32_t i = thread; i < vectors; i += THREADS) reinterpret_cast<uint4*>(to)[i] = make_uint4(0, 0, 0, 0);
        for (int32_t i = vectors * IN_VECTOR + thread; i < arguments.columns; i += THREADS) to[i] = 0;
        return;
    }
    const auto* from = static_cast<const Bits*>(arguments.hidden) + int64_t{row} * arguments.row_stride;
    const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0;
    const int32_t vectors = aligned ? arguments.columns / IN_VECTOR : 0;
#pragma unroll 4
    for (int32_t i = thread; i < vectors; i += THREADS) {
        reinterpret_cast<uint4*>(to)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
    }
    for (int32_t i = vectors * IN_VECTOR + thread; i < arguments.columns; i += THREADS) to[i] = __ldg(from + i);
}

extern "C" __global__ void __launch_bounds__(THREADS) linear_gather_16(const __grid_constant__ GatherRows arguments) {
    gather_rows<uint16_t>(arguments);
}
extern "C" __global__ void __launch_bounds__(THREADS) linear_gather_32(const __grid_constant__ GatherRows arguments) {
    gather_rows<uint32_t>(arguments);
}

struct ScatterRows {
    const float* sums;         // [R, H], rows sums_stride elements apart, 16-byte aligned
    void* gradients;           // [N, H], rows row_stride elements apart
    const int32_t* positions;  // [N]
    int64_t sums_stride;
    int64_t row_stride;
    int32_t columns;  // H
    int32_t first;
    int32_t count;  // R
    int32_t reserved;
};

// Grid (N): the one rounding of the hidden states' gradient, for the rows at positions first to first + count - 1, and with
// the first of them zeros for masked rows.
template <typename T>
__device__ __forceinline__ void scatter_rows(const ScatterRows& arguments) {
    using Bits = typename T::Bits;
    const int32_t position = arguments.positions[blockIdx.x];
    auto* to = static_cast<Bits*>(arguments.gradients) + int64_t{blockIdx.x} * arguments.row_stride;
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    if (position < 0) {
        if (arguments.first > 0) return;
        const auto fill = static_cast<Bits>(position == MASKED ? 0 : T::not_a_number());
        for (int32_t i = thread; i < arguments.columns; i += THREADS) to[i] = fill;
        return;
    }
    if (position < arguments.first || position - arguments.first >= arguments.count) return;
    const float* from = arguments.sums + int64_t{position - arguments.first} * arguments.sums_stride;
    constexpr int32_t WORDS = 4 / T::PER_WORD;
    struct alignas(4 * sizeof(Bits)) Four {
        typename T::Word word[WORDS];
    };
    const bool aligned = reinterpret_cast<uintptr_t>(to) % sizeof(Four) == 0;
    const int32_t vectors = aligned ? arguments.columns / 4 : 0;
#pragma unroll 4
    for (int32_t i = thread; i < vectors; i += THREADS) {
        const float4 v = __ldg(reinterpret_cast<const float4*>(from) + i);
        Four four;
        if constexpr (T::PER_WORD == 1) {
            four = {{v.x, v.y, v.z, v.w}};
        } else {
            four = {{T::pack(v.x, v.y), T::pack(v.z, v.w)}};
        }
        reinterpret_cast<Four*>(to)[i] = four;
    }
    for (int32_t i = 4 * vectors + thread; i < arguments.columns; i += THREADS) {
        to[i] = static_cast<Bits>(T::pack(__ldg(from + i), 0.0f));
    }
}

struct WidenBias {
    const void* bias;  // [V]
    float* wide;       // [V]
    int32_t columns;   // V
    int32_t reserved;
};

template <typename T>
__device__ __forceinline__ void widen_bias(const WidenBias& arguments) {
    const int32_t column = static_cast<int32_t>(blockIdx.x * THREADS + threadIdx.x);
    if (column >= arguments.columns) return;
    arguments.wide[column] = load<T>(static_cast<const typename T::Bits*>(arguments.bias) + column);
}

#define KERNELS(SUFFIX, T)                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                       \
        linear_scatter_##SUFFIX(const __grid_constant__ ScatterRows arguments) { \
        scatter_rows<T>(arguments);                                             \
    }                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                       \
        linear_bias_##SUFFIX(const __grid_constant__ WidenBias arguments) {     \
        widen_bias<T>(arguments);                                               \
    }

KERNELS(f32, F32)
KERNELS(f16, F16)
KERNELS(bf16, Bf16)
