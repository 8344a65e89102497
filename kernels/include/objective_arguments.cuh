// What the objective kernel is given and what it writes. Mirrored by #[repr(C)] in src/cuda/raw/objective.rs.
#pragma once

#include <cstdint>

#include "status.cuh"

namespace exo {

// Codes of the target distribution.
constexpr int32_t TARGET_REWARDS = 0;
constexpr int32_t TARGET_PREFERENCE = 1;
constexpr int32_t TARGET_OFFICIAL_PREFERENCE = 2;
constexpr int32_t TARGET_DISTRIBUTION = 3;
// Codes of the divergence.
constexpr int32_t REVERSE_KL = 0;
constexpr int32_t FORWARD_KL = 1;
constexpr int32_t ALPHA = 2;
constexpr int32_t JENSEN_SHANNON = 3;

struct GroupStatistics {
    double effective_sample_size;
    double margin;
    double agreement;
    int64_t tied;
};

struct ObjectiveArguments {
    const double* log_ratios;        // [S]
    const void* rewards;             // [S], f32 or f64: rewards, or log q for TARGET_DISTRIBUTION
    const double* proposal_offsets;  // [S], or null
    const int64_t* group_offsets;    // [G + 1], in sequences
    const int32_t* scored_rows;      // [S]; read for `mean` only, may be null without
    double* group_losses;            // [G], before the reduction
    double* coefficients;            // [S], with beta_policy and the reduction's weight
    double* sequence_weights;        // [S], or null: what each row of the sequence gets of its coefficient
    GroupStatistics* statistics;     // [G], or null
    Status* status;                  // or null
    double beta_policy;
    double beta_reward;              // TARGET_REWARDS
    double label_smoothing;          // TARGET_PREFERENCE
    double alpha;                    // ALPHA; 0 to 1
    double weight;                   // the reduction's
    int32_t target;
    int32_t divergence;
    int32_t reward_bytes;            // 4 or 8
    int32_t groups;
    int32_t mean;                    // 1: a row gets 1 / max(scored rows, 1) of the coefficient
    int32_t padding;
};

}  // namespace exo
