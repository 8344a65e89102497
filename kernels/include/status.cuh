// The status word: what only the device can see of bad input. The host reads it when a report is asked for.
#pragma once

#include <cstdint>

// Mirrored by #[repr(C)] in src/cuda. All zeros is "nothing found", so that a memset clears the word. A `first` holds the
// complement of the lowest index: 0 is none, the largest is the first, and no index of ours is 0xffffffff. Counts add and
// firsts take the maximum, both on integers, so that the word does not depend on the order of blocks.
struct Status {
    uint32_t non_finite_rows;
    uint32_t first_non_finite_row;
    uint32_t bad_targets;
    uint32_t first_bad_target_row;
    uint32_t non_finite_references;
    uint32_t first_non_finite_reference_sequence;
    uint32_t minus_infinite_targets;
    uint32_t first_bad_reward_sequence;
    uint32_t unplaced_rows;
    uint32_t bad_row_inputs;
    uint32_t first_bad_row_input;
    uint32_t withheld_rows;
    uint32_t first_withheld_row;
};

// Notes an occurrence at `index`.
__device__ __forceinline__ void record_first(uint32_t* first, uint32_t index) {
    atomicMax(first, ~index);
}

// Counts `occurrences`, the first of them at `index`.
__device__ __forceinline__ void record(uint32_t* count, uint32_t* first, uint32_t index, uint32_t occurrences = 1) {
    atomicAdd(count, occurrences);
    record_first(first, index);
}

// The target id of a row: u32 ids (4 bytes) are negative when they are so as an i32, i64 ids (8 bytes) as they stand. A
// negative id masks its row.
__device__ __forceinline__ int64_t target_id(const void* targets, int32_t target_bytes, int64_t row) {
    return target_bytes == 4 ? int64_t{static_cast<const int32_t*>(targets)[row]}
                             : static_cast<const int64_t*>(targets)[row];
}
