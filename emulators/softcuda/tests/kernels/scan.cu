// Prefix sums within a block: Hillis and Steele's by shuffles, Blelloch's up and down a tree in shared memory.

namespace {
constexpr unsigned full_mask = 0xffffffffu;
}

// out[i] = values[0] + ... + values[i] within each block; blockDim.x a multiple of 32, at most 1024.
extern "C" __global__ void inclusive_scan(const int* values, int* out, unsigned count) {
    __shared__ int of_warp[32];
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = index < count ? values[index] : 0;
    for (unsigned offset = 1; offset < 32; offset *= 2) {
        const int before = __shfl_up_sync(full_mask, sum, offset);
        if (lane >= offset) sum += before;
    }
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        int total = lane < blockDim.x / 32 ? of_warp[lane] : 0;
        for (unsigned offset = 1; offset < 32; offset *= 2) {
            const int before = __shfl_up_sync(full_mask, total, offset);
            if (lane >= offset) total += before;
        }
        if (lane < blockDim.x / 32) of_warp[lane] = total;
    }
    __syncthreads();
    if (warp > 0) sum += of_warp[warp - 1];
    if (index < count) out[index] = sum;
}

// out[i] = values[0] + ... + values[i - 1], total[block] = the sum; two values a thread, blockDim.x a power of two.
extern "C" __global__ void exclusive_scan(const unsigned* values, unsigned* out, unsigned* total) {
    extern __shared__ unsigned tree[];
    const unsigned size = 2 * blockDim.x, base = blockIdx.x * size;
    tree[threadIdx.x] = values[base + threadIdx.x];
    tree[threadIdx.x + blockDim.x] = values[base + threadIdx.x + blockDim.x];
    unsigned stride = 1;
    for (unsigned active = blockDim.x; active > 0; active /= 2) {
        __syncthreads();
        if (threadIdx.x < active) {
            const unsigned left = stride * (2 * threadIdx.x + 1) - 1, right = stride * (2 * threadIdx.x + 2) - 1;
            tree[right] += tree[left];
        }
        stride *= 2;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        total[blockIdx.x] = tree[size - 1];
        tree[size - 1] = 0;
    }
    for (unsigned active = 1; active < size; active *= 2) {
        stride /= 2;
        __syncthreads();
        if (threadIdx.x < active) {
            const unsigned left = stride * (2 * threadIdx.x + 1) - 1, right = stride * (2 * threadIdx.x + 2) - 1;
            const unsigned kept = tree[left];
            tree[left] = tree[right];
            tree[right] += kept;
        }
    }
    __syncthreads();
    out[base + threadIdx.x] = tree[threadIdx.x];
    out[base + threadIdx.x + blockDim.x] = tree[threadIdx.x + blockDim.x];
}
