// What the compiler makes of printf, malloc, wmma, and of cooperative groups of several warps.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_fp16.h>
#include <mma.h>
#include <stdio.h>

namespace cg = cooperative_groups;
using namespace nvcuda;

extern "C" __global__ void prints(float value, const char *name)
{
    if (threadIdx.x == 0)
        printf("block %u of %s: %5.2f %lld %c\n", blockIdx.x, "grid", value, 1LL << 40, 'x');
    if (threadIdx.x == 0 && blockIdx.x == 0)
        printf("done\n");
}

// A list that each thread builds on the heap: the sum of 1 to n.
struct Node {
    int value;
    Node *next;
};

extern "C" __global__ void lists(int *sums, int count)
{
    Node *first = nullptr;
    for (int value = 1; value <= count; value++) {
        Node *node = static_cast<Node *>(malloc(sizeof(Node)));
        node->value = value + threadIdx.x;
        node->next = first;
        first = node;
    }
    int sum = 0;
    while (first) {
        Node *next = first->next;
        sum += first->value;
        free(first);
        first = next;
    }
    sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// d[16, 16] = a[16, 16] b[16, 16] + c, and that relu'd.
extern "C" __global__ void product(const __half *a, const __half *b, float *d, float bias)
{
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> left;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major> right;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, bias);
    wmma::load_matrix_sync(left, a, 16);
    wmma::load_matrix_sync(right, b, 16);
    wmma::mma_sync(sum, left, right, sum);
    for (int i = 0; i < sum.num_elements; i++)
        sum.x[i] = sum.x[i] < 0 ? 0 : sum.x[i];
    wmma::store_matrix_sync(d, sum, 16, wmma::mem_row_major);
}

// Sums over tiles of two and four warps, which meet in the system's shared memory.
extern "C" __global__ void tiles(const int *values, int *sums)
{
    auto block = cg::this_thread_block();
    auto pair = cg::tiled_partition<64>(block);
    auto quad = cg::tiled_partition<128>(block);
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    int of_pair = cg::reduce(pair, values[index], cg::plus<int>());
    pair.sync();
    quad.sync();
    int of_quad = cg::reduce(quad, of_pair, cg::plus<int>());
    sums[index] = of_quad;
}
