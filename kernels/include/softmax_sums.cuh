// The sums of a softmax over a part of a row, and how parts are added up: sum 2^t = s * 2^r, r an integer.
#pragma once

#include <cstdint>

// A row whose largest exponent is this large in size has no softmax: neighbouring f32 are 128 apart there.
constexpr float LARGEST_EXPONENT = 1073741824.0f;
// r before any logit was seen: finite, so that a leading -inf gives -inf - r and not -inf - (-inf), which is NaN; and as low as
// that of a row that has a softmax can be. Relative to a lower one, which is that of columns that mask (-1e20, say), the exponents
// would be off by as much as neighbouring f32 are apart there, and their powers infinite, of which not even 0 times is 0.
constexpr float START = -LARGEST_EXPONENT;

// Sums of a part of a row: sum 2^t and, for the entropy, sum t 2^t.
template <typename Real>
struct Sums {
    float r;
    Real s;
    Real weighted;
};

// Sum over the lanes of a warp, all lanes get it.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

// 2^n for an integer n <= 0, exactly; 0 below the range of f64.
__device__ __forceinline__ double exact_power_of_two(double n) {
    const int exponent = n < -1022.0 ? -1023 : static_cast<int>(n);
    return __hiloint2double((1023 + exponent) << 20, 0);
}

// Adds a slice to the slices before it.
template <bool ENTROPY>
__device__ __forceinline__ void add_slice(Sums<double>& row, float r, float s, float weighted) {
    const float largest = fmaxf(row.r, r);
    const double row_distance = double{row.r} - largest, distance = double{r} - largest;
    const double row_factor = exact_power_of_two(row_distance), factor = exact_power_of_two(distance);
    if constexpr (ENTROPY) {
        // Without a term on one side the product of a distance with its zero sum is zero.
        row.weighted =
            fma(row_distance, row.s, row.weighted) * row_factor + fma(distance, double{s}, double{weighted}) * factor;
    }
    row.s = row.s * row_factor + double{s} * factor;
    row.r = largest;
}
