// Reductions over the 32 lanes of a warp, in an order that is fixed: every lane gets the same bits.
#pragma once

#include <cstdint>

namespace exo {

constexpr uint32_t ALL_LANES = 0xffffffffu;

// Butterflies: at each of the five steps two lanes add the same two numbers, and a + b has the bits of b + a. So all
// lanes end with one sum, and no broadcast is needed.
__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    }
    return value;
}

// NaN is left out where another lane has a number, as fmax does.
__device__ __forceinline__ double warp_max(double value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value = fmax(value, __shfl_xor_sync(ALL_LANES, value, distance));
    }
    return value;
}

__device__ __forceinline__ int32_t warp_sum(int32_t value) {
    return __reduce_add_sync(ALL_LANES, value);
}

__device__ __forceinline__ uint32_t warp_min(uint32_t value) {
    return __reduce_min_sync(ALL_LANES, value);
}

__device__ __forceinline__ bool warp_any(bool value) {
    return __any_sync(ALL_LANES, value) != 0;
}

}  // namespace exo
