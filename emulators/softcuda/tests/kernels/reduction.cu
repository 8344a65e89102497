// Sums, as the textbooks have them: a tree in shared memory, shuffles within a warp, both together, and several blocks
// that find out by a ticket which of them finishes last.

#include <cstdint>

namespace {

constexpr unsigned full_mask = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(full_mask, value, offset);
    return value;
}

// The sum over the block, in thread 0.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float of_warp[32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    value = warp_sum(value);
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    const unsigned warps = blockDim.x / 32;
    value = threadIdx.x < warps ? of_warp[lane] : 0.0f;
    if (warp == 0) value = warp_sum(value);
    return value;
}

}  // namespace

// out[block] = sum of the block's slice. Tree over dynamic shared memory, blockDim.x a power of two.
extern "C" __global__ void sum_tree(const int* values, int* out, unsigned count) {
    extern __shared__ int tree[];
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    tree[threadIdx.x] = index < count ? values[index] : 0;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) tree[threadIdx.x] += tree[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = tree[0];
}

// The same with one barrier forgotten: the fault that every course warns of. The race detector has to name it.
extern "C" __global__ void sum_tree_without_barrier(const int* values, int* out, unsigned count) {
    extern __shared__ int tree[];
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    tree[threadIdx.x] = index < count ? values[index] : 0;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) tree[threadIdx.x] += tree[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[blockIdx.x] = tree[0];
}

// out[warp] = sum of the warp's 32 values: down, butterfly and the hardware's own reduction side by side.
extern "C" __global__ void sum_warp(const int* values, int* down, int* butterfly, int* hardware, unsigned* extremes) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    const int value = values[index];
    int by_down = value, by_butterfly = value;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        by_down += __shfl_down_sync(full_mask, by_down, offset);
        by_butterfly += __shfl_xor_sync(full_mask, by_butterfly, offset);
    }
    const int by_hardware = __reduce_add_sync(full_mask, value);
    const int least = __reduce_min_sync(full_mask, value);
    const int greatest = __reduce_max_sync(full_mask, value);
    const unsigned common = __reduce_and_sync(full_mask, static_cast<unsigned>(value));
    const unsigned any = __reduce_or_sync(full_mask, static_cast<unsigned>(value));
    const unsigned parity = __reduce_xor_sync(full_mask, static_cast<unsigned>(value));
    // Every lane has the butterfly's result and the hardware's; lane 31 writes them to show it.
    if (threadIdx.x % 32 == 0) down[index / 32] = by_down;
    if (threadIdx.x % 32 == 31) {
        butterfly[index / 32] = by_butterfly;
        hardware[index / 32] = by_hardware;
        unsigned* row = extremes + index / 32 * 5;
        row[0] = static_cast<unsigned>(least);
        row[1] = static_cast<unsigned>(greatest);
        row[2] = common;
        row[3] = any;
        row[4] = parity;
    }
}

// One launch, whole grid: each block leaves its sum in partial, the last to draw a ticket adds them up. The ticket
// counter wraps to zero by itself (atomicInc), so that the kernel can be launched again.
extern "C" __global__ void sum_grid(const float* values, float* partial, unsigned* ticket, float* out, unsigned count) {
    __shared__ bool is_last;
    float sum = 0.0f;
    for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < count; index += gridDim.x * blockDim.x)
        sum += values[index];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        is_last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    sum = 0.0f;
    for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) sum += __ldcg(partial + block);
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}

// A dot product of doubles, added to out by one atomic per warp.
extern "C" __global__ void dot_atomic(const double* left, const double* right, double* out, unsigned count) {
    double sum = 0.0;
    for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < count; index += gridDim.x * blockDim.x)
        sum = fma(left[index], right[index], sum);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(full_mask, sum, offset);
    if (threadIdx.x % 32 == 0) atomicAdd(out, sum);
}
