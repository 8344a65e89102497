// What ranks exchange of their sequences, and what they make of it. Small: a thread for each number or sequence.

#include <cstdint>

#include "include/status.cuh"

constexpr int THREADS = 256;

// 64 bytes.
struct SequencePart {
    int64_t index;  // among all ranks' sequences; -1 for what only fills up
    int64_t scored_rows;
    double log_ratio;
    double log_prob_sum;
    double entropy_sum;
    double reward;
    double proposal_offset;
    double reserved;
};

// In the place of one.
struct CountPart {
    int64_t index;  // -1
    Status status;
    uint32_t reserved;
};
static_assert(sizeof(CountPart) == sizeof(SequencePart), "one takes the other's place");

// One struct for the kernels that go from sequences to parts and back: those of one rank, or of all.
struct SequenceParts {
    void* parts;               // SequencePart
    void* log_ratios;          // [S] f64
    void* log_prob_sums;       // [S] f64
    void* entropy_sums;        // [S] f64, or null
    void* scored_rows;         // [S] i32
    void* rewards;             // [S] f64 or f32, or null
    void* proposal_offsets;    // [S] f64, or null
    const double* references;  // [S], or null
    Status* status;
    int64_t count;             // of parts
    int64_t sequences;         // S
    int64_t first;             // index of this rank's first sequence, or of its first row
    int32_t ranks;
    int32_t reward_bytes;      // 4 or 8
    int32_t mean;              // 1: divide by the scored rows
    int32_t reserved;
};

struct AddRanks {
    const float* numbers;  // [ranks, count]
    float* sums;           // [count]
    int64_t count;
    int32_t ranks;
    int32_t reserved;
};

__device__ __forceinline__ int64_t index_of_thread() {
    return int64_t{blockIdx.x} * THREADS + threadIdx.x;
}

__device__ __forceinline__ void write_sequence(const SequenceParts& a, int64_t i, const SequencePart& part) {
    static_cast<double*>(a.log_ratios)[i] = part.log_ratio;
    static_cast<double*>(a.log_prob_sums)[i] = part.log_prob_sum;
    static_cast<int32_t*>(a.scored_rows)[i] = static_cast<int32_t>(part.scored_rows);
    if (a.entropy_sums != nullptr) static_cast<double*>(a.entropy_sums)[i] = part.entropy_sum;
}

// Grid: as many threads as parts.
extern "C" __global__ void __launch_bounds__(THREADS)
    write_sequence_parts(const __grid_constant__ SequenceParts a) {
    const int64_t i = index_of_thread();
    if (i >= a.count) return;
    SequencePart part{-1, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
    if (i < a.sequences) {
        part.index = a.first + i;
        part.scored_rows = static_cast<const int32_t*>(a.scored_rows)[i];
        part.log_ratio = static_cast<const double*>(a.log_ratios)[i];
        part.log_prob_sum = static_cast<const double*>(a.log_prob_sums)[i];
        if (a.entropy_sums != nullptr) part.entropy_sum = static_cast<const double*>(a.entropy_sums)[i];
        if (a.rewards != nullptr) {
            part.reward = a.reward_bytes == 4 ? static_cast<double>(static_cast<const float*>(a.rewards)[i])
                                              : static_cast<const double*>(a.rewards)[i];
        }
        if (a.proposal_offsets != nullptr) part.proposal_offset = static_cast<const double*>(a.proposal_offsets)[i];
    }
    static_cast<SequencePart*>(a.parts)[i] = part;
}

// One thread: the status word of the rows before, its first row as an index among all ranks' rows.
extern "C" __global__ void __launch_bounds__(THREADS) write_count_part(const __grid_constant__ SequenceParts a) {
    if (index_of_thread() != 0) return;
    CountPart part{-1, *a.status, 0};
    if (part.status.first_non_finite_row != 0) {
        // Held as its complement. An index beyond 32 bits becomes the largest there is.
        const int64_t row = a.first + int64_t{~part.status.first_non_finite_row};
        part.status.first_non_finite_row = ~static_cast<uint32_t>(row < 0xfffffffe ? row : 0xfffffffe);
    }
    *static_cast<CountPart*>(a.parts) = part;
}

// Grid: as many threads as sequences. Parts [ranks, S + 1]: a sequence's rows lie on several ranks.
extern "C" __global__ void __launch_bounds__(THREADS) add_sequences(const __grid_constant__ SequenceParts a) {
    const int64_t i = index_of_thread();
    if (i >= a.sequences) return;
    SequencePart sum{-1, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
    for (int32_t rank = 0; rank < a.ranks; rank++) {
        const SequencePart part = static_cast<const SequencePart*>(a.parts)[rank * (a.sequences + 1) + i];
        sum.scored_rows += part.scored_rows;
        sum.log_ratio += part.log_ratio;
        sum.log_prob_sum += part.log_prob_sum;
        sum.entropy_sum += part.entropy_sum;
    }
    if (a.references != nullptr) {
        const double reference = a.references[i];
        if (!(fabs(reference) < INFINITY)) {
            // An infinite reference would make a log-ratio of +inf, which takes all of its group's weight in silence.
            sum.log_ratio = NAN;
            record(
                &a.status->non_finite_references,
                &a.status->first_non_finite_reference_sequence,
                static_cast<uint32_t>(i)
            );
        } else if (sum.scored_rows > 0) {
            sum.log_ratio -= reference;
        }
    }
    if (a.mean != 0) sum.log_ratio /= static_cast<double>(sum.scored_rows > 1 ? sum.scored_rows : 1);
    write_sequence(a, i, sum);
}

// Grid: as many threads as parts, of all ranks.
extern "C" __global__ void __launch_bounds__(THREADS) place_sequences(const __grid_constant__ SequenceParts a) {
    const int64_t i = index_of_thread();
    if (i >= a.count) return;
    const SequencePart part = static_cast<const SequencePart*>(a.parts)[i];
    if (part.index < 0 || part.index >= a.sequences) return;
    write_sequence(a, part.index, part);
    static_cast<double*>(a.rewards)[part.index] = part.reward;
    if (a.proposal_offsets != nullptr) static_cast<double*>(a.proposal_offsets)[part.index] = part.proposal_offset;
}

// Grid: as many threads as sums.
extern "C" __global__ void __launch_bounds__(THREADS) add_ranks(const __grid_constant__ AddRanks a) {
    const int64_t i = index_of_thread();
    if (i >= a.count) return;
    double sum = 0.0;
    for (int32_t rank = 0; rank < a.ranks; rank++) sum += static_cast<double>(a.numbers[rank * a.count + i]);
    a.sums[i] = static_cast<float>(sum);
}
