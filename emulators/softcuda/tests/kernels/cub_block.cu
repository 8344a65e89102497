// CUB's building blocks: warp and block reduction and scan in every algorithm, a radix sort of a block, and the whole
// DeviceReduce in two passes with vectorised loads.

#include <cub/cub.cuh>

constexpr int threads = 128;
constexpr int items = 4;

extern "C" __global__ void cub_block_reduce(const int* values, int* out, float* float_out) {
    using Shuffle = cub::BlockReduce<int, threads, cub::BLOCK_REDUCE_WARP_REDUCTIONS>;
    using Raking = cub::BlockReduce<int, threads, cub::BLOCK_REDUCE_RAKING>;
    using Commutative = cub::BlockReduce<float, threads, cub::BLOCK_REDUCE_RAKING_COMMUTATIVE_ONLY>;
    __shared__ union {
        typename Shuffle::TempStorage shuffle;
        typename Raking::TempStorage raking;
        typename Commutative::TempStorage commutative;
    } shared;
    const int value = values[blockIdx.x * threads + threadIdx.x];
    const int sum = Shuffle(shared.shuffle).Sum(value);
    __syncthreads();
    const int greatest = Raking(shared.raking).Reduce(value, cuda::maximum<>{});
    __syncthreads();
    const float float_sum = Commutative(shared.commutative).Sum(static_cast<float>(value));
    if (threadIdx.x == 0) {
        out[blockIdx.x * 2] = sum;
        out[blockIdx.x * 2 + 1] = greatest;
        float_out[blockIdx.x] = float_sum;
    }
}

extern "C" __global__ void cub_block_scan(const int* values, int* inclusive, int* exclusive) {
    using Load = cub::BlockLoad<int, threads, items, cub::BLOCK_LOAD_WARP_TRANSPOSE>;
    using Store = cub::BlockStore<int, threads, items, cub::BLOCK_STORE_WARP_TRANSPOSE>;
    using Scan = cub::BlockScan<int, threads, cub::BLOCK_SCAN_WARP_SCANS>;
    using Raking = cub::BlockScan<int, threads, cub::BLOCK_SCAN_RAKING>;
    __shared__ union {
        typename Load::TempStorage load;
        typename Store::TempStorage store;
        typename Scan::TempStorage scan;
        typename Raking::TempStorage raking;
    } shared;
    const unsigned base = blockIdx.x * threads * items;
    int mine[items], summed[items];
    Load(shared.load).Load(values + base, mine);
    __syncthreads();
    Scan(shared.scan).InclusiveSum(mine, summed);
    __syncthreads();
    Store(shared.store).Store(inclusive + base, summed);
    __syncthreads();
    Raking(shared.raking).ExclusiveSum(mine, summed);
    __syncthreads();
    Store(shared.store).Store(exclusive + base, summed);
}

extern "C" __global__ void cub_block_sort(const unsigned* keys, unsigned* out) {
    using Sort = cub::BlockRadixSort<unsigned, threads, items>;
    __shared__ typename Sort::TempStorage shared;
    const unsigned base = (blockIdx.x * threads + threadIdx.x) * items;
    unsigned mine[items];
#pragma unroll
    for (int item = 0; item < items; item++) mine[item] = keys[base + item];
    Sort(shared).Sort(mine);
#pragma unroll
    for (int item = 0; item < items; item++) out[base + item] = mine[item];
}

// First pass of a DeviceReduce: each block takes whole tiles in turn, sixteen bytes a thread, and the ragged end last.
extern "C" __global__ void cub_device_reduce_first(const float* values, float* partial, unsigned count) {
    using Reduce = cub::BlockReduce<float, threads>;
    __shared__ typename Reduce::TempStorage shared;
    constexpr unsigned per_tile = threads * items;
    float sum = 0.0f;
    const unsigned tiles = count / per_tile;
    for (unsigned tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float mine[items];
        cub::LoadDirectBlockedVectorized(static_cast<int>(threadIdx.x), const_cast<float*>(values) + tile * per_tile,
                                         mine);
        sum += cub::ThreadReduce(mine, cuda::std::plus<>{});
    }
    if (blockIdx.x == tiles % gridDim.x)
        for (unsigned index = tiles * per_tile + threadIdx.x; index < count; index += threads) sum += values[index];
    sum = Reduce(shared).Sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Second pass: one block adds the partial sums.
extern "C" __global__ void cub_device_reduce_second(const float* partial, float* out, unsigned blocks) {
    using Reduce = cub::BlockReduce<float, threads>;
    __shared__ typename Reduce::TempStorage shared;
    float sum = 0.0f;
    for (unsigned index = threadIdx.x; index < blocks; index += threads)
        sum += cub::ThreadLoad<cub::LOAD_LDG>(partial + index);
    sum = Reduce(shared).Sum(sum);
    if (threadIdx.x == 0) *out = sum;
}

// Warp-wide pieces: a segmented sum by flags, and reductions by groups of eight lanes.
extern "C" __global__ void cub_warp(const int* values, const int* heads, int* segmented, int* eights) {
    using Warp = cub::WarpReduce<int>;
    using Eight = cub::WarpReduce<int, 8>;
    __shared__ typename Warp::TempStorage warp[threads / 32];
    __shared__ typename Eight::TempStorage eight[threads / 8];
    const unsigned index = blockIdx.x * threads + threadIdx.x;
    const int value = values[index];
    const int sum = Warp(warp[threadIdx.x / 32]).HeadSegmentedSum(value, heads[index]);
    if (heads[index]) segmented[index] = sum;
    const int of_eight = Eight(eight[threadIdx.x / 8]).Sum(value);
    if (threadIdx.x % 8 == 0) eights[index / 8] = of_eight;
}
