// Parts of rows whose columns lie on several ranks -> log-probs and softmax states, as if one kernel had read all columns.
//
// One thread per row. The parts are added up in the order of the ranks, and of a rank's slices: on every rank in the same
// order, and where ranks begin at slices in the order in which the forward kernel adds up the slices of a row.

#include <cstdint>

#include "include/logits.cuh"
#include "include/row_results.cuh"
#include "include/softmax_sums.cuh"
#include "include/status.cuh"

constexpr int THREADS = 256;

struct MergeRows {
    const float4* parts;  // [ranks, N, parts_per_row]: r, s, weighted, the target's logit or 0
    const void* targets;  // [N]
    float* log_probs;     // [N]
    float2* states;       // [N]: r, s
    float* entropies;     // [N]; not read by kernels without entropy
    Status* status;
    int64_t rows;
    int64_t parts_per_row;
    int32_t ranks;
    int32_t target_bytes;  // 4 or 8
    float scale;           // log2(e)/T
    float softcap;         // not read by kernels without softcap
};

template <bool SOFTCAP, bool ENTROPY>
__device__ __forceinline__ void merge_rows(const MergeRows& arguments) {
    const int64_t row = int64_t{blockIdx.x} * THREADS + threadIdx.x;
    if (row >= arguments.rows) return;
    const int64_t target = target_id(arguments.targets, arguments.target_bytes, row);
    if (target < 0) return skip_row<ENTROPY>(arguments, static_cast<uint32_t>(row), true);
    Sums<double> sums{START, 0.0, 0.0};
    float target_logit = 0.0f;
#pragma unroll 1
    for (int32_t rank = 0; rank < arguments.ranks; rank++) {
        const float4* parts = arguments.parts + (rank * arguments.rows + row) * arguments.parts_per_row;
#pragma unroll 1
        for (int64_t i = 0; i < arguments.parts_per_row; i++) {
            const float4 part = parts[i];
            add_slice<ENTROPY>(sums, part.x, part.y, part.z);
            target_logit += part.w;
        }
    }
    const Scale scale = Scale::make<SOFTCAP>(arguments.scale, arguments.softcap);
    finish_row<SOFTCAP, ENTROPY>(arguments, scale, sums, target_logit, static_cast<uint32_t>(row));
}

#define KERNEL(NAME, SOFTCAP, ENTROPY)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ MergeRows arguments) { \
        merge_rows<SOFTCAP, ENTROPY>(arguments);                                                              \
    }

KERNEL(merge_rows, false, false)
KERNEL(merge_rows_entropy, false, true)
KERNEL(merge_rows_softcap, true, false)
KERNEL(merge_rows_softcap_entropy, true, true)
