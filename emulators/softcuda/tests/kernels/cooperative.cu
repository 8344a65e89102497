// Cooperative groups: tiles of a warp, the threads that happen to be together, the whole grid, and a cluster of blocks
// that read each other's shared memory.

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>

namespace cg = cooperative_groups;

// Sums, maxima and running sums by tiles of 8 lanes.
extern "C" __global__ void tile_reduce(const int* values, int* sums, int* greatest, int* running) {
    const auto block = cg::this_thread_block();
    const auto tile = cg::tiled_partition<8>(block);
    const unsigned index = blockIdx.x * blockDim.x + block.thread_rank();
    const int value = values[index];
    const int sum = cg::reduce(tile, value, cg::plus<int>());
    const int most = cg::reduce(tile, value, cg::greater<int>());
    running[index] = cg::inclusive_scan(tile, value, cg::plus<int>());
    if (tile.thread_rank() == 0) {
        sums[index / 8] = sum;
        greatest[index / 8] = most;
    }
}

// Keeps the positive values, in any order: the lanes that have one share a single atomic.
extern "C" __global__ void keep_positive(const int* values, int* kept, unsigned* length, unsigned count) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const int value = values[index];
    if (value > 0) {
        const auto together = cg::coalesced_threads();
        unsigned start = 0;
        if (together.thread_rank() == 0) start = atomicAdd(length, together.size());
        start = together.shfl(start, 0);
        kept[start + together.thread_rank()] = value;
    }
}

// Lanes by the remainder of their value by three, through labeled_partition: the sum of each group, written by its
// first.
extern "C" __global__ void group_by_remainder(const int* values, int* sums) {
    const auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    const int value = values[index];
    const auto group = cg::labeled_partition(warp, value % 3);
    const int sum = cg::reduce(group, value, cg::plus<int>());
    if (group.thread_rank() == 0) sums[index / 32 * 3 + value % 3] = sum;
}

// Rounds of a stencil on a ring: every thread reads both neighbours of the round before, across all blocks.
extern "C" __global__ void ring_rounds(unsigned* even, unsigned* odd, unsigned rounds) {
    const auto grid = cg::this_grid();
    const unsigned size = static_cast<unsigned>(grid.size()), index = static_cast<unsigned>(grid.thread_rank());
    unsigned *from = even, *to = odd;
    for (unsigned round = 0; round < rounds; round++) {
        to[index] = from[(index + 1) % size] + 3 * from[(index + size - 1) % size] + from[index];
        grid.sync();
        unsigned* swapped = from;
        from = to;
        to = swapped;
    }
}

// out[cluster] = sum over a cluster of four blocks: each leaves its own in shared memory, rank 0 reads them all.
extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_sum(const int* values, int* out, int* ranks) {
    __shared__ int mine;
    const auto cluster = cg::this_cluster();
    const auto block = cg::this_thread_block();
    const auto warp = cg::tiled_partition<32>(block);
    if (block.thread_rank() == 0) mine = 0;
    block.sync();
    const int sum = cg::reduce(warp, values[blockIdx.x * blockDim.x + threadIdx.x], cg::plus<int>());
    if (warp.thread_rank() == 0) atomicAdd(&mine, sum);
    cluster.sync();
    if (block.thread_rank() == 0) ranks[blockIdx.x] = static_cast<int>(cluster.block_rank());
    if (cluster.block_rank() == 0 && block.thread_rank() == 0) {
        int total = 0;
        for (unsigned rank = 0; rank < cluster.num_blocks(); rank++) total += *cluster.map_shared_rank(&mine, rank);
        out[blockIdx.x / cluster.num_blocks()] = total;
    }
    // Nobody may leave while its shared memory can still be read.
    cluster.sync();
}

// A histogram over 4 x 256 bins, divided among the four blocks of a cluster: atomics go to the block that has the bin.
// Launched with a cluster of any size that divides the grid (no attribute here: the launch says it).
extern "C" __global__ void cluster_histogram(const unsigned* values, unsigned* counts, unsigned count,
                                             unsigned bins_of_block) {
    extern __shared__ unsigned bins[];
    const auto cluster = cg::this_cluster();
    for (unsigned bin = threadIdx.x; bin < bins_of_block; bin += blockDim.x) bins[bin] = 0;
    cluster.sync();
    for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < count; index += gridDim.x * blockDim.x) {
        const unsigned bin = values[index];
        unsigned* home = cluster.map_shared_rank(bins, bin / bins_of_block);
        atomicAdd(home + bin % bins_of_block, 1u);
    }
    cluster.sync();
    for (unsigned bin = threadIdx.x; bin < bins_of_block; bin += blockDim.x)
        atomicAdd(counts + cluster.block_rank() * bins_of_block + bin, bins[bin]);
}
