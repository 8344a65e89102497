// Log-softmax of rows of bf16, one row a block: one pass for the running maximum and the sum of exponentials, with
// 16-byte loads, a second that writes. columns is a multiple of 8, blockDim.x a multiple of 32.

#include <cstdint>

namespace {

constexpr float log2_e = 1.4426950408889634f;
constexpr float ln_2 = 0.6931471805599453f;

struct Running {
    float greatest;
    float sum;  // of 2^((x - greatest) log2 e)
};

__device__ __forceinline__ float exp2_fast(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

__device__ __forceinline__ Running merge(Running left, Running right) {
    const float greatest = fmaxf(left.greatest, right.greatest);
    if (greatest == -INFINITY) return {greatest, 0.0f};
    return {greatest, left.sum * exp2_fast((left.greatest - greatest) * log2_e) +
                          right.sum * exp2_fast((right.greatest - greatest) * log2_e)};
}

__device__ __forceinline__ Running reduce_warp(Running running) {
    for (int offset = 16; offset > 0; offset /= 2) {
        const float greatest = __shfl_xor_sync(0xffffffffu, running.greatest, offset);
        running = merge(running, {greatest, __shfl_xor_sync(0xffffffffu, running.sum, offset)});
    }
    return running;
}

__device__ __forceinline__ float low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// One pass over the block's row: every thread's running maximum and sum, merged; the whole row's in every thread.
__device__ __forceinline__ Running reduce_row(const uint4* row, unsigned eights) {
    __shared__ Running of_warp[32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Running running = {-INFINITY, 0.0f};
    for (unsigned index = threadIdx.x; index < eights; index += blockDim.x) {
        const uint4 packed = __ldcs(row + index);
        const float values[8] = {low(packed.x), high(packed.x), low(packed.y), high(packed.y),
                                 low(packed.z), high(packed.z), low(packed.w), high(packed.w)};
        float greatest = running.greatest;
#pragma unroll
        for (int i = 0; i < 8; i++) greatest = fmaxf(greatest, values[i]);
        const float shift = greatest == -INFINITY ? 0.0f : greatest * log2_e;
        float sum = running.sum * exp2_fast(fmaf(running.greatest, log2_e, -shift));
#pragma unroll
        for (int i = 0; i < 8; i++) sum += exp2_fast(fmaf(values[i], log2_e, -shift));
        running = {greatest, sum};
    }
    running = reduce_warp(running);
    if (lane == 0) of_warp[warp] = running;
    __syncthreads();
    running = {-INFINITY, 0.0f};
    if (lane < blockDim.x / 32) running = of_warp[lane];
    return reduce_warp(running);
}

// log of the sum of exponentials of the row.
__device__ __forceinline__ float normalizer(Running running) {
    float log2_sum;
    asm("lg2.approx.f32 %0, %1;" : "=f"(log2_sum) : "f"(running.sum));
    return fmaf(log2_sum, ln_2, running.greatest);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1024)
    log_softmax_bf16(const uint16_t* logits, float* out, unsigned columns) {
    const uint4* row = reinterpret_cast<const uint4*>(logits + static_cast<size_t>(blockIdx.x) * columns);
    const unsigned eights = columns / 8;
    const float shift = normalizer(reduce_row(row, eights));
    float4* to = reinterpret_cast<float4*>(out + static_cast<size_t>(blockIdx.x) * columns);
    for (unsigned index = threadIdx.x; index < eights; index += blockDim.x) {
        const uint4 packed = row[index];
        __stcs(to + 2 * index, make_float4(low(packed.x) - shift, high(packed.x) - shift, low(packed.y) - shift,
                                           high(packed.y) - shift));
        __stcs(to + 2 * index + 1, make_float4(low(packed.z) - shift, high(packed.z) - shift, low(packed.w) - shift,
                                               high(packed.w) - shift));
    }
}

// The first pass alone, what a loss needs: normalizers[row]. The bench of the interpreter.
extern "C" __global__ void __launch_bounds__(1024)
    log_sum_exp_bf16(const uint16_t* logits, float* normalizers, unsigned columns) {
    const uint4* row = reinterpret_cast<const uint4*>(logits + static_cast<size_t>(blockIdx.x) * columns);
    const Running running = reduce_row(row, columns / 8);
    if (threadIdx.x == 0) normalizers[blockIdx.x] = normalizer(running);
}
