// Log-probs straight from hidden states, forward: folds the logits of a chunk of the vocabulary, in f32, into the sums
// of each row. The last chunk's launch writes the results.
//
// Grid (M), THREADS threads: a block does one gathered row. Columns are summed up in units of UNIT, one warp each, and
// units are added in f64 in ascending order, across chunks too: those of a slice of SLICE columns first, whose sums are
// rounded to f32, as ranks exchange them (merge_rows.cu), and then added to those of the slices before. Chunks begin at
// multiples of UNIT. So the bits of a row do not depend on how the vocabulary is divided into chunks, nor on which rank has
// which slices, as long as those of its logits do not.
//
// The state of a partial sum is that of token_log_prob.cu: sum 2^t = s * 2^r. A unit's r is that of its own largest
// exponent, and all of its terms are made with it: nothing is rescaled in f32. A term goes through at most 10 additions
// in f32: 3 in an accumulator, 2 across accumulators, 5 in the warp; and its slice is rounded once.

#include <cstdint>

#include "../include/logits.cuh"
#include "../include/row_results.cuh"
#include "../include/softmax_sums.cuh"
#include "../include/status.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
// 16-byte loads in flight per thread: 80 KiB of a multiprocessor with 5 blocks.
constexpr int LOADS = 4;
// Columns of one load of a warp, of a warp, and of a block at once. UNIT: as in src/cuda/tuning.rs.
constexpr int32_t STEP = 32 * 4;
constexpr int32_t UNIT = LOADS * STEP;
constexpr int32_t ROUND = WARPS * UNIT;

// What is kept of a row from chunk to chunk: of the slices before, and of the one that the chunk's end is in.
struct RowSums {
    double s;
    double weighted;
    double slice_s;
    double slice_weighted;
    float r;
    float slice_r;
    float target_logit;
    int32_t reserved;
};

struct LinearLogProb {
    const float* logits;  // [M, columns], rows row_stride elements apart, 16-byte aligned
    const float* bias;    // [columns], 16-byte aligned; or null
    const void* targets;  // [N]
    const int32_t* rows;  // [M]: which of the N rows each is; -1: none
    RowSums* sums;        // [M]; not used where one chunk is all
    float4* parts;        // [N, parts_per_row]: r, s, weighted, the target's logit; or null: rows are finished
    float* log_probs;     // [N]; with parts: of these columns alone, as the states, or null
    float2* states;       // [N]: r, s
    float* entropies;     // [N]; not read by kernels without entropy, nor with parts
    Status* status;
    int64_t row_stride;
    int64_t parts_per_row;
    int32_t begin;    // the column that the chunk begins with, of those that are here
    int32_t columns;  // of the chunk
    int32_t vocab;    // columns that are here
    int32_t first_column;  // of the whole vocabulary
    int32_t whole_vocab;
    int32_t target_bytes;  // 4 or 8
    float scale;           // log2(e)/T
    float softcap;         // not read by kernels without softcap
};

// Nothing writes the logits while this kernel runs.
__device__ __forceinline__ float4 load_vector(const float* address) {
    float4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(address));
    return v;
}

// A lane's columns of a unit that has all of them. Every load is under way before the first is used.
template <bool BIAS>
__device__ __forceinline__ void load_unit(float (&x)[4 * LOADS], const float* from, const float* bias) {
    float4 v[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; i++) v[i] = load_vector(from + i * STEP);
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        if constexpr (BIAS) {
            const float4 b = __ldg(reinterpret_cast<const float4*>(bias + i * STEP));
            v[i] = make_float4(v[i].x + b.x, v[i].y + b.y, v[i].z + b.z, v[i].w + b.w);
        }
        x[4 * i] = v[i].x;
        x[4 * i + 1] = v[i].y;
        x[4 * i + 2] = v[i].z;
        x[4 * i + 3] = v[i].w;
    }
}

// The same where the columns end: `left` of them from the lane's first on, -inf behind.
template <bool BIAS>
__device__ __forceinline__ void load_part(float (&x)[4 * LOADS], const float* from, const float* bias, int32_t left) {
#pragma unroll
    for (int i = 0; i < 4 * LOADS; i++) {
        const int32_t offset = i / 4 * STEP + i % 4;
        x[i] = -INFINITY;
        if (offset < left) x[i] = BIAS ? __ldg(from + offset) + __ldg(bias + offset) : __ldg(from + offset);
    }
}

// The sums of a unit, whose largest logit of this lane is given; every lane gets them. NEAR as in Scale.
template <bool SOFTCAP, bool ENTROPY, bool NEAR>
__device__ __forceinline__ Sums<float> sum_unit(const float (&x)[4 * LOADS], float largest, const Scale& scale) {
    // Beyond the range of i32 there is no softmax anyway. A NaN, which no maximum shows, is in the sum.
    const int32_t exponent = __float2int_rn(round_up(scale.exponent<SOFTCAP, NEAR>(largest, 0.0f)));
    const float r = static_cast<float>(__reduce_max_sync(0xffffffffu, exponent));
    float accumulators[4], weighted[4];
#pragma unroll
    for (int i = 0; i < 4 * LOADS; i++) {
        const float t = scale.exponent<SOFTCAP, NEAR>(x[i], r);
        const float power = exp2_approximate(t);
        accumulators[i % 4] = i < 4 ? power : accumulators[i % 4] + power;
        if constexpr (ENTROPY) {
            // An excluded column's -inf * 0 would be NaN; a NaN is in the power.
            const float finite = fmaxf(t, -127.0f);
            weighted[i % 4] = i < 4 ? finite * power : fmaf(finite, power, weighted[i % 4]);
        }
    }
    Sums<float> sums{r, warp_sum((accumulators[0] + accumulators[1]) + (accumulators[2] + accumulators[3])), 0.0f};
    if constexpr (ENTROPY) sums.weighted = warp_sum((weighted[0] + weighted[1]) + (weighted[2] + weighted[3]));
    return sums;
}

// The same. All lanes of a warp call it.
template <bool SOFTCAP, bool ENTROPY>
__device__ __forceinline__ Sums<float> sum_unit(const float (&x)[4 * LOADS], const Scale& scale) {
    float largest = x[0], smallest = x[0];
#pragma unroll
    for (int i = 1; i < 4 * LOADS; i++) {
        largest = fmaxf(largest, x[i]);
        smallest = fminf(smallest, x[i]);
    }
    // A vote, so that no lane takes the long way alone while the others wait.
    const bool near = !SOFTCAP || __all_sync(0xffffffffu, scale.is_near(fmaxf(fabsf(largest), fabsf(smallest))));
    if (__builtin_expect(near, 1)) return sum_unit<SOFTCAP, ENTROPY, true>(x, largest, scale);
    return sum_unit<SOFTCAP, ENTROPY, false>(x, largest, scale);
}

// Where a block leaves units for thread 0, and what that has of the row: so they cost the loop no register.
struct Shared {
    Sums<float> units[2][WARPS];
    // Of the slices before, and of the one that is going by.
    Sums<double> row;
    Sums<double> slice;
};

// Adds units to their slice, in ascending order. One thread.
template <bool ENTROPY>
__device__ __forceinline__ void add_units(Shared& shared, int32_t place, int32_t count) {
    Sums<double> slice = shared.slice;
#pragma unroll 1
    for (int32_t i = 0; i < count; i++) {
        const Sums<float> unit = shared.units[place][i];
        add_slice<ENTROPY>(slice, unit.r, unit.s, unit.weighted);
    }
    shared.slice = slice;
}

// Adds the slice that ends before column `end` to the row, and begins the next. One thread.
template <bool ENTROPY>
__device__ __forceinline__ void end_slice(Shared& shared, const LinearLogProb& arguments, int32_t end) {
    const Sums<double> slice = shared.slice;
    const auto s = static_cast<float>(slice.s), weighted = static_cast<float>(slice.weighted);
    if (arguments.parts != nullptr) {
        const int64_t row = arguments.rows[blockIdx.x];
        // The target's logit may be here already.
        float4* part = arguments.parts + row * arguments.parts_per_row + (end - 1) / SLICE;
        part->x = slice.r;
        part->y = s;
        part->z = weighted;
    }
    Sums<double> before = shared.row;
    add_slice<ENTROPY>(before, slice.r, s, weighted);
    shared.row = before;
    shared.slice = {START, 0.0, 0.0};
}

// Adds the chunk's columns to the row's sums, slice by slice.
template <bool SOFTCAP, bool ENTROPY, bool BIAS>
__device__ __forceinline__ void add_columns(Shared& shared, const LinearLogProb& arguments, const float* logits) {
    const Scale scale = Scale::make<SOFTCAP>(arguments.scale, arguments.softcap);
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    const int32_t lane = thread % 32, warp = thread / 32;
    const int32_t first = warp * UNIT + lane * 4;
    const float* from = logits + first;
    const float* bias = BIAS ? arguments.bias + first : nullptr;
    float x[4 * LOADS];
    // Two places, taken in turn: thread 0 may still read the last round's while others write this one's. A warp is at
    // most one barrier ahead.
    int32_t place = 0, left_after = arguments.columns;
    // A slice ends at a unit's end, though not at that of a round where the chunk does not begin with a slice.
#pragma unroll 1
    for (int32_t of_slice = SLICE - arguments.begin % SLICE; left_after > 0; of_slice = SLICE) {
        int32_t left = min(of_slice, left_after);
        left_after -= left;
#pragma unroll 1
        for (; left >= ROUND; left -= ROUND) {
            load_unit<BIAS>(x, from, bias);
            const Sums<float> unit = sum_unit<SOFTCAP, ENTROPY>(x, scale);
            if (lane == 0) shared.units[place][warp] = unit;
            __syncthreads();
            if (thread == 0) add_units<ENTROPY>(shared, place, WARPS);
            place ^= 1;
            from += ROUND;
            if constexpr (BIAS) bias += ROUND;
        }
        if (left > 0) {
            if (warp * UNIT < left) {
                if (left - warp * UNIT >= UNIT) {
                    load_unit<BIAS>(x, from, bias);
                } else {
                    load_part<BIAS>(x, from, bias, left - first);
                }
                const Sums<float> unit = sum_unit<SOFTCAP, ENTROPY>(x, scale);
                if (lane == 0) shared.units[place][warp] = unit;
            }
            __syncthreads();
            if (thread == 0) add_units<ENTROPY>(shared, place, (left + UNIT - 1) / UNIT);
            place ^= 1;
            from += left;
            if constexpr (BIAS) bias += left;
        }
        const int32_t end = arguments.begin + arguments.columns - left_after;
        if (thread == 0 && (end % SLICE == 0 || end == arguments.vocab)) end_slice<ENTROPY>(shared, arguments, end);
    }
}

// A row whose target is no column. One thread.
template <bool ENTROPY>
__device__ __forceinline__ void skip_bad_target(const LinearLogProb& arguments, int32_t row) {
    if (arguments.parts == nullptr) return skip_row<ENTROPY>(arguments, row, false);
    record(&arguments.status->bad_targets, &arguments.status->first_bad_target_row, row);
    // Makes NaN of the row.
    arguments.parts[row * arguments.parts_per_row] = make_float4(START, NAN, 0.0f, 0.0f);
    if (arguments.states != nullptr) arguments.states[row] = make_float2(0.0f, NAN);
}

// What a row is of these columns alone. One thread.
template <bool SOFTCAP>
__device__ __forceinline__ void finish_part(const LinearLogProb& arguments, const Scale& scale, const Sums<double>& sums,
                                            float target_logit, bool has_target, int32_t row) {
    if (arguments.states == nullptr) return;
    const RowResult result = row_result<SOFTCAP, false>(scale, sums, target_logit);
    arguments.states[row] = result.state;
    arguments.log_probs[row] = has_target ? result.log_prob : -INFINITY;
}

template <bool SOFTCAP, bool ENTROPY>
__device__ __forceinline__ void linear_log_prob(const LinearLogProb& arguments) {
    __shared__ Shared shared;
    const int32_t row = arguments.rows[blockIdx.x];
    if (row < 0) return;
    const bool is_last = arguments.begin + arguments.columns == arguments.vocab;
    const int64_t target = target_id(arguments.targets, arguments.target_bytes, row);
    if (target >= arguments.whole_vocab) {
        if (is_last && threadIdx.x == 0) skip_bad_target<ENTROPY>(arguments, row);
        return;
    }

    const float* logits = arguments.logits + int64_t{blockIdx.x} * arguments.row_stride;
    if (threadIdx.x == 0) {
        shared.row = shared.slice = {START, 0.0, 0.0};
        if (arguments.begin > 0) {
            const RowSums before = arguments.sums[blockIdx.x];
            shared.row = {before.r, before.s, before.weighted};
            shared.slice = {before.slice_r, before.slice_s, before.slice_weighted};
        }
    }
    if (arguments.bias == nullptr) {
        add_columns<SOFTCAP, ENTROPY, false>(shared, arguments, logits);
    } else {
        add_columns<SOFTCAP, ENTROPY, true>(shared, arguments, logits);
    }

    if (threadIdx.x > 0) return;
    float target_logit = arguments.begin > 0 ? arguments.sums[blockIdx.x].target_logit : 0.0f;
    const int32_t of_rank = static_cast<int32_t>(target) - arguments.first_column;
    const int32_t column = of_rank - arguments.begin;
    if (column >= 0 && column < arguments.columns) {
        target_logit = __ldg(logits + column);
        if (arguments.bias != nullptr) target_logit += __ldg(arguments.bias + column);
        if (arguments.parts != nullptr) {
            arguments.parts[row * arguments.parts_per_row + of_rank / SLICE].w = target_logit;
        }
    }
    if (is_last) {
        const Sums<double> sums = shared.row;
        const Scale scale = Scale::make<SOFTCAP>(arguments.scale, arguments.softcap);
        if (arguments.parts == nullptr) {
            finish_row<SOFTCAP, ENTROPY>(arguments, scale, sums, target_logit, row);
        } else {
            finish_part<SOFTCAP>(arguments, scale, sums, target_logit, of_rank >= 0 && of_rank < arguments.vocab, row);
        }
    } else {
        const Sums<double> sums = shared.row, slice = shared.slice;
        arguments.sums[blockIdx.x] = {sums.s,  sums.weighted, slice.s, slice.weighted,
                                      sums.r, slice.r,       target_logit, 0};
    }
}

#define KERNEL(NAME, SOFTCAP, ENTROPY, BLOCKS)                    \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) \
        NAME(const __grid_constant__ LinearLogProb arguments) {   \
        linear_log_prob<SOFTCAP, ENTROPY>(arguments);             \
    }

KERNEL(linear_log_prob, false, false, 5)
KERNEL(linear_log_prob_entropy, false, true, 4)
KERNEL(linear_log_prob_softcap, true, false, 4)
KERNEL(linear_log_prob_softcap_entropy, true, true, 4)
