// Token log-probs -> one log-ratio per sequence: policy minus reference per token first, then the sum in f64.
//
// One block per sequence. Which thread adds which row, and in which order the threads' sums are added, follows from the
// number of the sequence's rows alone: a sequence has the same bits in every batch.
//
// NaN and -inf of the policy go through: the token log-prob stage has counted them, and a second count here would double
// theirs. A reference that is not finite is counted here, and makes the sequence NaN.

#include <cstdint>

#include "include/status.cuh"
#include "include/warp_reduce.cuh"

namespace exo {

struct LogRatio {
    const float* log_probs;             // [N]
    const float* entropies;             // [N], or null
    const void* targets;                // [N] ids; a negative one masks its row
    const float* reference_tokens;      // [N], or null; not read at masked rows
    const double* reference_sequences;  // [S], or null; at most one of the two references
    const int64_t* sequence_offsets;    // [S + 1], in rows
    double* log_ratios;                 // [S]
    double* log_prob_sums;              // [S], or null: over the scored rows, without the reference
    double* entropy_sums;               // [S], or null; written where there are entropies
    int32_t* scored_rows;               // [S]
    int32_t* row_sequences;             // [N], or null: the sequence of each row, masked rows too
    uint32_t* row_targets;              // [N], or null: the target of each row, masked rows too
    Status* status;
    int32_t target_bytes;               // 4 or 8
    int32_t mean;                       // 1: divide by the scored rows
};

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
// Rows whose ids a thread asks for before it waits for the first.
constexpr int AHEAD = 4;

// Of one thread, of a warp, of the sequence.
struct Sums {
    double differences = 0.0;
    double log_probs = 0.0;
    double entropies = 0.0;
    int32_t scored = 0;
    int32_t non_finite_references = 0;
};

// An id in 32 bits, for the backward pass: what masks a row still does, and what is no column of any vocabulary stays none.
__device__ __forceinline__ uint32_t narrowed(int64_t id) {
    constexpr int64_t NO_COLUMN = 0x7fffffff;
    return id < 0 ? 0xffffffffu : static_cast<uint32_t>(id < NO_COLUMN ? id : NO_COLUMN);
}

__device__ __forceinline__ bool is_finite(double value) {
    return fabs(value) < INFINITY;
}

__device__ __forceinline__ Sums sums_of_thread(const LogRatio& a, int sequence, int64_t begin, int64_t end) {
    Sums sums;
    for (int64_t base = begin + threadIdx.x; base < end; base += AHEAD * THREADS) {
        bool scored[AHEAD];
        uint32_t target[AHEAD];
        float log_prob[AHEAD], reference[AHEAD], entropy[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int64_t row = base + i * THREADS;
            const int64_t id = row < end ? target_id(a.targets, a.target_bytes, row) : -1;
            scored[i] = id >= 0;
            target[i] = narrowed(id);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int64_t row = base + i * THREADS;
            // What stands at a masked row may be anything, NaN too, or nothing at all.
            log_prob[i] = scored[i] ? a.log_probs[row] : 0.0f;
            reference[i] = scored[i] && a.reference_tokens != nullptr ? a.reference_tokens[row] : 0.0f;
            entropy[i] = scored[i] && a.entropies != nullptr ? a.entropies[row] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int64_t row = base + i * THREADS;
            if (a.row_sequences != nullptr && row < end) {
                a.row_sequences[row] = sequence;
            }
            if (a.row_targets != nullptr && row < end) {
                a.row_targets[row] = target[i];
            }
            // In f64 before the subtraction: two f32 near -20 have a difference that f32 may not hold.
            sums.differences += static_cast<double>(log_prob[i]) - static_cast<double>(reference[i]);
            sums.log_probs += static_cast<double>(log_prob[i]);
            sums.entropies += static_cast<double>(entropy[i]);
            sums.scored += scored[i];
            sums.non_finite_references += !is_finite(reference[i]);
        }
    }
    return sums;
}

__device__ __forceinline__ Sums sums_of_warp(const Sums& lane) {
    Sums sums;
    sums.differences = warp_sum(lane.differences);
    sums.log_probs = warp_sum(lane.log_probs);
    sums.entropies = warp_sum(lane.entropies);
    sums.scored = warp_sum(lane.scored);
    sums.non_finite_references = warp_sum(lane.non_finite_references);
    return sums;
}

// Thread 0: the warps' sums in their order.
__device__ __forceinline__ void write_sequence(const LogRatio& a, int sequence, const Sums* of_warps) {
    Sums sums = of_warps[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) {
        sums.differences += of_warps[warp].differences;
        sums.log_probs += of_warps[warp].log_probs;
        sums.entropies += of_warps[warp].entropies;
        sums.scored += of_warps[warp].scored;
        sums.non_finite_references += of_warps[warp].non_finite_references;
    }
    double log_ratio = sums.differences;
    if (a.reference_sequences != nullptr) {
        const double reference = a.reference_sequences[sequence];
        sums.non_finite_references += !is_finite(reference);
        // A sequence without a scored row has log-ratio 0 whatever its reference.
        log_ratio -= sums.scored > 0 ? reference : 0.0;
    }
    if (sums.non_finite_references > 0) {
        // An infinite reference would make a log-ratio of +inf, which takes all of its group's weight in silence.
        log_ratio = NAN;
        record(
            &a.status->non_finite_references,
            &a.status->first_non_finite_reference_sequence,
            static_cast<uint32_t>(sequence),
            static_cast<uint32_t>(sums.non_finite_references)
        );
    }
    if (a.mean != 0) {
        log_ratio /= static_cast<double>(max(sums.scored, 1));
    }
    a.log_ratios[sequence] = log_ratio;
    a.scored_rows[sequence] = sums.scored;
    if (a.log_prob_sums != nullptr) {
        a.log_prob_sums[sequence] = sums.log_probs;
    }
    if (a.entropy_sums != nullptr && a.entropies != nullptr) {
        a.entropy_sums[sequence] = sums.entropies;
    }
}

}  // namespace exo

// Grid: S blocks. Block: THREADS.
extern "C" __global__ void __launch_bounds__(exo::THREADS) log_ratio(const __grid_constant__ exo::LogRatio a) {
    using namespace exo;
    __shared__ double shared_sums[WARPS * sizeof(Sums) / sizeof(double)];
    Sums* of_warps = reinterpret_cast<Sums*>(shared_sums);
    const int sequence = static_cast<int>(blockIdx.x);
    const int64_t begin = a.sequence_offsets[sequence], end = a.sequence_offsets[sequence + 1];
    const Sums sums = sums_of_warp(sums_of_thread(a, sequence, begin, end));
    if (threadIdx.x % 32 == 0) {
        of_warps[threadIdx.x / 32] = sums;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        write_sequence(a, sequence, of_warps);
    }
}
