// The intrinsics of cuda_fp16.h and cuda_bf16.h on pairs, and conversions between them and f32. Each result goes to its
// own row of out (count pairs a row), as bits.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace {

__device__ __forceinline__ uint32_t bits(__half2 value) { return *reinterpret_cast<const uint32_t*>(&value); }
__device__ __forceinline__ uint32_t bits(__nv_bfloat162 value) { return *reinterpret_cast<const uint32_t*>(&value); }

}  // namespace

// Rows: add, sub, mul, fma, max, min, negated, absolute, fma with relu, a > b as 1 or 0, saturated add, through f32
// times 3.
extern "C" __global__ void half_pairs(const uint32_t* a_bits, const uint32_t* b_bits, const uint32_t* c_bits,
                                      uint32_t* out, unsigned count) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const __half2 a = reinterpret_cast<const __half2*>(a_bits)[index],
                  b = reinterpret_cast<const __half2*>(b_bits)[index],
                  c = reinterpret_cast<const __half2*>(c_bits)[index];
    const float2 wide = __half22float2(a);
    const __half2 rows[] = {__hadd2(a, b),    __hsub2(a, b),     __hmul2(a, b),
                            __hfma2(a, b, c), __hmax2(a, b),     __hmin2(a, b),
                            __hneg2(a),       __habs2(a),        __hfma2_relu(a, b, c),
                            __hgt2(a, b),     __hadd2_sat(a, b), __floats2half2_rn(wide.x * 3.0f, wide.y * 3.0f)};
    for (unsigned row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) out[row * count + index] = bits(rows[row]);
}

extern "C" __global__ void bfloat_pairs(const uint32_t* a_bits, const uint32_t* b_bits, const uint32_t* c_bits,
                                        uint32_t* out, unsigned count) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const __nv_bfloat162 a = reinterpret_cast<const __nv_bfloat162*>(a_bits)[index],
                         b = reinterpret_cast<const __nv_bfloat162*>(b_bits)[index],
                         c = reinterpret_cast<const __nv_bfloat162*>(c_bits)[index];
    const float2 wide = __bfloat1622float2(a);
    const __nv_bfloat162 rows[] = {
        __hadd2(a, b),         __hsub2(a, b), __hmul2(a, b),     __hfma2(a, b, c),
        __hmax2(a, b),         __hmin2(a, b), __hneg2(a),        __habs2(a),
        __hfma2_relu(a, b, c), __hgt2(a, b),  __hadd2_sat(a, b), __floats2bfloat162_rn(wide.x * 3.0f, wide.y * 3.0f)};
    for (unsigned row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) out[row * count + index] = bits(rows[row]);
}

// A dot product of halves by pairs with an f32 sum, and atomic adds of pairs.
extern "C" __global__ void half_dot(const __half2* a, const __half2* b, float* out, __half2* pair_sum,
                                    __nv_bfloat162* bfloat_sum, unsigned count) {
    float sum = 0.0f;
    for (unsigned index = threadIdx.x; index < count; index += blockDim.x) {
        const float2 wide_a = __half22float2(a[index]), wide_b = __half22float2(b[index]);
        sum = fmaf(wide_a.x, wide_b.x, sum);
        sum = fmaf(wide_a.y, wide_b.y, sum);
    }
    atomicAdd(out, sum);
    atomicAdd(pair_sum, __floats2half2_rn(1.0f, 2.0f));
    atomicAdd(bfloat_sum, __floats2bfloat162_rn(1.0f, 2.0f));
}

// The conversions with other roundings and to integers: rows of 32-bit results.
extern "C" __global__ void conversions(const float* values, uint32_t* out, unsigned count) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const float value = values[index];
    const uint32_t rows[] = {
        __half_as_ushort(__float2half_rn(value)),
        __half_as_ushort(__float2half_rz(value)),
        __half_as_ushort(__float2half_ru(value)),
        __half_as_ushort(__float2half_rd(value)),
        __bfloat16_as_ushort(__float2bfloat16_rn(value)),
        __bfloat16_as_ushort(__float2bfloat16_rz(value)),
        static_cast<uint32_t>(__float2int_rn(value)),
        static_cast<uint32_t>(__float2int_rz(value)),
        static_cast<uint32_t>(__float2int_ru(value)),
        static_cast<uint32_t>(__float2int_rd(value)),
        __float2uint_rn(value),
        __float_as_uint(floorf(value)),
        __float_as_uint(ceilf(value)),
        __float_as_uint(truncf(value)),
        __float_as_uint(rintf(value)),
        __float_as_uint(__saturatef(value)),
    };
    for (unsigned row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) out[row * count + index] = rows[row];
}
