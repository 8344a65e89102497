// Copies that go on while the threads compute: cp.async in two buffers, cuda::barrier, and bulk copies that complete on
// an mbarrier.

#include <cuda_pipeline.h>

#include <cstdint>
#include <cuda/barrier>
#include <cuda/ptx>

using block_barrier = cuda::barrier<cuda::thread_scope_block>;

// out[i] = 2 values[i] + 1 in tiles of one int4 a thread: the next tile is on its way while this one is used.
extern "C" __global__ void double_buffered(const int4* values, int4* out, unsigned tiles) {
    extern __shared__ int4 buffers[];  // two of blockDim.x
    const unsigned base = blockIdx.x * tiles * blockDim.x + threadIdx.x;
    __pipeline_memcpy_async(buffers + threadIdx.x, values + base, sizeof(int4));
    __pipeline_commit();
    for (unsigned tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles)
            __pipeline_memcpy_async(buffers + (tile + 1) % 2 * blockDim.x + threadIdx.x,
                                    values + base + (tile + 1) * blockDim.x, sizeof(int4));
        __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads();
        // A neighbour's element, so that the barrier above is needed.
        const unsigned other = threadIdx.x ^ 1;
        const int4 got = buffers[tile % 2 * blockDim.x + other];
        out[base - threadIdx.x + tile * blockDim.x + other] =
            make_int4(2 * got.x + 1, 2 * got.y + 1, 2 * got.z + 1, 2 * got.w + 1);
        __syncthreads();
    }
}

// Reverses each block's slice; all sizes of cp.async, with the bytes beyond the end filled with zero.
extern "C" __global__ void reverse_partly(const float* values, float* out, unsigned count) {
    __shared__ float kept[256];
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    const bool inside = index < count;
    __pipeline_memcpy_async(kept + threadIdx.x, values + (inside ? index : 0), sizeof(float),
                            inside ? 0 : sizeof(float));
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = kept[blockDim.x - 1 - threadIdx.x];
}

// Rounds of writing and reading shared memory with a cuda::barrier between them, arrival and waiting apart.
extern "C" __global__ void barrier_rounds(unsigned* values, unsigned rounds) {
    __shared__ unsigned kept[256];
#pragma nv_diag_suppress static_var_with_dynamic_init
    __shared__ block_barrier barrier;
    if (threadIdx.x == 0) init(&barrier, blockDim.x);
    __syncthreads();
    unsigned value = values[blockIdx.x * blockDim.x + threadIdx.x];
    for (unsigned round = 0; round < rounds; round++) {
        kept[threadIdx.x] = value;
        auto token = barrier.arrive();
        value = value * 5 + 1;
        barrier.wait(std::move(token));
        value += kept[(threadIdx.x + 1) % blockDim.x];
        barrier.arrive_and_wait();
    }
    values[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

// values[i] += 1 by bulk copies: into shared memory completing on an mbarrier, and back as a bulk group.
extern "C" __global__ void bulk_increment(int* values, unsigned per_block) {
    extern __shared__ __align__(128) int tile[];
#pragma nv_diag_suppress static_var_with_dynamic_init
    __shared__ block_barrier barrier;
    if (threadIdx.x == 0) {
        init(&barrier, blockDim.x);
        cuda::ptx::fence_proxy_async(cuda::ptx::space_shared);
    }
    __syncthreads();
    int* slice = values + blockIdx.x * per_block;
    block_barrier::arrival_token token;
    if (threadIdx.x == 0) {
        cuda::device::memcpy_async_tx(tile, slice, cuda::aligned_size_t<16>(per_block * sizeof(int)), barrier);
        token = cuda::device::barrier_arrive_tx(barrier, 1, per_block * sizeof(int));
    } else {
        token = barrier.arrive();
    }
    barrier.wait(std::move(token));
    for (unsigned index = threadIdx.x; index < per_block; index += blockDim.x) tile[index] += 1;
    cuda::ptx::fence_proxy_async(cuda::ptx::space_shared);
    __syncthreads();
    if (threadIdx.x == 0) {
        cuda::ptx::cp_async_bulk(cuda::ptx::space_global, cuda::ptx::space_shared, slice, tile,
                                 per_block * sizeof(int));
        cuda::ptx::cp_async_bulk_commit_group();
        cuda::ptx::cp_async_bulk_wait_group_read(cuda::ptx::n32_t<0>());
    }
}

// A ring of four stages between one producing warp and the others: full and empty mbarriers by their phase parity.
// out[block] = sum of the block's slice of stages * stage_size ints.
extern "C" __global__ void ring_of_stages(const int* values, int* out, unsigned tiles) {
    constexpr unsigned stages = 4, stage_size = 128;
    __shared__ __align__(128) int stage[stages][stage_size];
    __shared__ uint64_t full[stages], empty[stages];
    __shared__ int total;
    namespace ptx = cuda::ptx;
    const unsigned consumers = blockDim.x - 32;
    if (threadIdx.x == 0) {
        total = 0;
        for (unsigned at = 0; at < stages; at++) {
            ptx::mbarrier_init(&full[at], 1);
            ptx::mbarrier_init(&empty[at], consumers);
        }
        ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
        ptx::fence_proxy_async(ptx::space_shared);
    }
    __syncthreads();
    const int* slice = values + static_cast<size_t>(blockIdx.x) * tiles * stage_size;
    if (threadIdx.x < 32) {
        if (threadIdx.x == 0) {
            for (unsigned tile = 0; tile < tiles; tile++) {
                const unsigned at = tile % stages, lap = tile / stages;
                // The first lap finds the stages empty: the phase before the first counts as completed.
                while (!ptx::mbarrier_try_wait_parity(&empty[at], (lap & 1) ^ 1)) {
                }
                ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &full[at],
                                               sizeof(stage[0]));
                ptx::cp_async_bulk(ptx::space_cluster, ptx::space_global, stage[at], slice + tile * stage_size,
                                   sizeof(stage[0]), &full[at]);
            }
        }
    } else {
        const unsigned consumer = threadIdx.x - 32;
        int sum = 0;
        for (unsigned tile = 0; tile < tiles; tile++) {
            const unsigned at = tile % stages, lap = tile / stages;
            while (!ptx::mbarrier_try_wait_parity(&full[at], lap & 1)) {
            }
            for (unsigned index = consumer; index < stage_size; index += consumers) sum += stage[at][index];
            ptx::mbarrier_arrive(&empty[at]);
        }
        atomicAdd(&total, sum);
    }
    __syncthreads();
    if (threadIdx.x == 0) out[blockIdx.x] = total;
}
