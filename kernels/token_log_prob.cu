// Token log-probs, forward: one read of the logits, log softmax(z)[target] and the softmax state of each row written.
//
// Grid (N, ceil(slices / slices_per_block)), THREADS threads. A block reduces slices of SLICE columns of one row, one
// after the other. Which thread takes which columns of a slice, and in which order anything is added, follows from the
// column alone: not from the address of the row, nor from how many blocks share a row. So do the bits.
//
// State of a partial sum: sum 2^t = s * 2^r, r the largest exponent seen, rounded up to an integer. When r grows, s is
// multiplied by a power of two, which is exact; no rounding depends on what came first. A term goes through at most 20
// additions in f32 (16-bit logits: 7 in an accumulator, 2 across accumulators, 3 across iterations, 5 in a warp, 3
// across warps; f32 logits: 3, 2, 7, 5, 3), slices are added in f64.
//
// Of a rank that holds some of the columns only, each slice's sums are kept as they are, for merge_rows.cu.

#include <cstdint>

#include "include/logits.cuh"
#include "include/memory_access.cuh"
#include "include/row_results.cuh"
#include "include/softmax_sums.cuh"
#include "include/status.cuh"
// Defined by the file that stands in for this one on an architecture with arithmetic of pairs.
#ifdef PACKED_ARITHMETIC
#include "include/packed_terms.cuh"
#else
#include "include/terms.cuh"
#endif

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
// 16-byte loads in flight per thread. 6 blocks keep 96 KiB in flight on a multiprocessor.
constexpr int LOADS = 4;

struct TokenLogProb {
    const void* logits;   // [N, V], rows row_stride elements apart
    const void* targets;  // [N]
    float* log_probs;     // [N]
    float2* states;       // [N]: r, s
    float* entropies;     // [N]; not read by kernels without entropy
    float4* partials;     // [N, slices], or [N, kept_parts]; used where gridDim.y > 1 or parts are kept
    uint32_t* tickets;    // [N], zero before and after; used where gridDim.y > 1
    Status* status;
    int64_t row_stride;
    int32_t vocab;  // columns that are here
    int32_t slices;
    int32_t slices_per_block;
    int32_t target_bytes;  // 4 or 8
    float scale;           // log2(e)/T
    float softcap;         // not read by kernels without softcap
    int32_t first_column;  // of the whole vocabulary
    int32_t whole_vocab;
    int32_t kept_parts;  // to a row: gridDim.y, one slice to a block; 0: rows are finished
    int32_t reserved;    // no padding that would be left uninitialised
};

// Warps' sums, and what a block leaves here while it walks the columns, so that it costs the loop no register.
struct Shared {
    Sums<float> warps[2][WARPS];
    // Over slices.
    Sums<double> row;
    int32_t target;
    int32_t last_slice;
    int32_t kept_parts;
};

// A streaming load. The read-only path is safe: nothing writes logits while this kernel runs.
template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const void* address) {
    Vector<T> v;
    if constexpr (T::PER_WORD == 1) {
        asm volatile("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(v.word[0]), "=f"(v.word[1]), "=f"(v.word[2]), "=f"(v.word[3])
                     : "l"(address));
    } else {
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                     : "l"(address));
    }
    return v;
}

// The columns of a vector that exist, -inf elsewhere, one by one. `count`: columns left in the row.
template <typename T>
__device__ __forceinline__ Vector<T> load_singly(const typename T::Bits* columns, int32_t count) {
    static_assert(T::PER_WORD == 2, "two columns to a word");
    Vector<T> v;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v.word[i] = T::minus_infinity();
        if (2 * i >= count) continue;
        const uint32_t low = __ldg(columns + 2 * i);
        const bool both = 2 * i + 1 < count;
        v.word[i] = both ? low | uint32_t{__ldg(columns + 2 * i + 1)} << 16 : low | (T::minus_infinity() & 0xffff0000u);
    }
    return v;
}

// Columns from one vector of a thread to its next.
template <typename T>
constexpr int32_t APART = THREADS * COLUMNS<T>;

// One iteration's vectors, wherever they lie and however many of their columns exist. `boundary`: the 16-byte boundary at the
// first of them or before it, `residue` bytes; `count`: columns from the first of them to the end of the row; `starts`: the
// first of them may be the row's. Of f32 a word is a column: each is loaded alone where not all of an aligned vector are there.
__device__ __forceinline__ void load_ragged(Vector<F32> (&v)[LOADS], const char* boundary, uint32_t residue, int32_t count,
                                            bool) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const char* address = boundary + residue + i * THREADS * 16;
        if (residue == 0 && count >= i * APART<F32> + 4) {
            v[i] = load_vector<F32>(address);
            continue;
        }
#pragma unroll
        for (int word = 0; word < 4; word++) {
            v[i].word[word] = F32::minus_infinity();
            load_word_if(v[i].word[word], address + 4 * word, count, i * APART<F32> + word + 1);
        }
    }
}

// The same of numbers of 2 bytes. What lies next to a row may be another one that is being written, or no memory at all. So of
// a vector across a boundary both sides are loaded only where the row has all of their bytes. The row's first vector and its
// last ones are loaded column by column: at most one of a thread at either end.
template <typename T>
__device__ __forceinline__ void load_ragged(Vector<T> (&v)[LOADS], const char* boundary, uint32_t residue, int32_t count,
                                            bool starts) {
    const bool is_aligned = residue == 0;
    const bool is_first = !is_aligned && starts && threadIdx.x == 0;
    if (is_aligned) {
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
#pragma unroll
            for (auto& word : v[i].word) word = T::minus_infinity();
            load_words_if<4>(v[i].word, boundary + i * THREADS * 16, count, COLUMNS<T> + i * APART<T>);
        }
    } else {
        load_across_if<THREADS>(v, boundary, residue, count, is_first);
    }
    // The vector that the row ends in, or just after; and before it the row's first one.
    const int32_t last = (count - 1) / APART<T>;
    const bool is_last = count > 0 && last < LOADS && count - last * APART<T> < (is_aligned ? COLUMNS<T> : COLUMNS_ACROSS<T>);
    if (!is_first && !is_last) return;
    // One after the other: both at once take more registers than there are.
#pragma unroll 1
    for (int32_t edge = is_first ? 0 : last;; edge = last) {
        const char* columns = boundary + residue + edge * THREADS * 16;
        const Vector<T> part =
            load_singly<T>(reinterpret_cast<const typename T::Bits*>(columns), count - edge * APART<T>);
#pragma unroll
        for (int i = 0; i < 4 * LOADS; i++) {
            if (i / 4 == edge) v[i / 4].word[i % 4] = part.word[i % 4];
        }
        if (edge == last || !is_last) return;
    }
}

// Brings sums to another r that is not smaller.
template <bool ENTROPY>
__device__ __forceinline__ void rescale(Sums<float>& sums, float r) {
    const float distance = fmaxf(sums.r - r, -127.0f);
    const float factor = power_of_two(distance);
    if constexpr (ENTROPY) sums.weighted = fmaf(distance, sums.s, sums.weighted) * factor;
    sums.s *= factor;
    sums.r = r;
}

// Takes in one iteration's columns. NEAR as in Scale.
template <typename T, bool SOFTCAP, bool ENTROPY, bool NEAR>
__device__ __forceinline__ void add_columns(const Vector<T> (&v)[LOADS], const Scale& scale, Sums<float>& sums) {
    typename T::Word largest = v[0].word[0];
#pragma unroll
    for (int i = 1; i < 4 * LOADS; i++) largest = T::larger(largest, v[i / 4].word[i % 4]);
    const float exponent = scale.exponent<SOFTCAP, NEAR>(T::largest(largest), 0.0f);
    // Rare after a slice's first iteration. False for NaN, which then shows in s.
    if (__builtin_expect(exponent > sums.r, 0)) rescale<ENTROPY>(sums, round_up(exponent));

    add_terms<SOFTCAP, ENTROPY, NEAR>(v, scale, sums);
}

// The same. All lanes of a warp call it.
template <typename T, bool SOFTCAP, bool ENTROPY>
__device__ __forceinline__ void absorb(const Vector<T> (&v)[LOADS], const Scale& scale, Sums<float>& sums) {
    // A vote, so that no lane takes the long way alone while the others wait.
    if (SOFTCAP && __builtin_expect(__any_sync(0xffffffffu, !all_near<T>(v, scale)), 0)) {
        add_columns<T, SOFTCAP, ENTROPY, false>(v, scale, sums);
    } else {
        add_columns<T, SOFTCAP, ENTROPY, true>(v, scale, sums);
    }
}

// Brings a warp's sums to their largest r and adds them up.
template <bool ENTROPY>
__device__ __forceinline__ void reduce_warp(Sums<float>& sums) {
    // r is an integer, and beyond the range of i32 there is no softmax anyway.
    const float r = static_cast<float>(__reduce_max_sync(0xffffffffu, __float2int_rn(sums.r)));
    rescale<ENTROPY>(sums, r);
    sums.s = warp_sum(sums.s);
    if constexpr (ENTROPY) sums.weighted = warp_sum(sums.weighted);
}

// Orders this thread's accesses before it and after it, for threads of the device that an atomic between them ties to it.
// __threadfence() is fence.sc, which besides puts all such fences of the device in one order: blocks of a row need no more
// than who came before whom, which the count says, and fence.sc has to wait for longer.
__device__ __forceinline__ void fence_acquire_release() {
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// The place of this block's part of its row.
__device__ __forceinline__ float4* kept_part(const TokenLogProb& arguments, uint32_t row) {
    return arguments.partials + int64_t{row} * arguments.kept_parts + blockIdx.y;
}

// A part that counts for nothing; or, of a target that is no column, one that makes NaN of the row. One thread.
__device__ __forceinline__ void keep_no_columns(const TokenLogProb& arguments, uint32_t row, bool valid) {
    if (!valid && blockIdx.y == 0) record(&arguments.status->bad_targets, &arguments.status->first_bad_target_row, row);
    *kept_part(arguments, row) = make_float4(START, valid ? 0.0f : NAN, 0.0f, 0.0f);
}

// This block's slice, and its target's logit if it has that. One thread.
template <typename T>
__device__ __forceinline__ void keep_part(const TokenLogProb& arguments, uint32_t row, const Sums<float>& sums) {
    // Read anew, so that it costs the loop no register.
    const int64_t target = target_id(arguments.targets, arguments.target_bytes, row) - arguments.first_column;
    const int64_t in_slice = target - int64_t{blockIdx.y} * SLICE;
    float logit = 0.0f;
    if (in_slice >= 0 && in_slice < SLICE && target < arguments.vocab) {
        const auto* logits = static_cast<const typename T::Bits*>(arguments.logits) + int64_t{row} * arguments.row_stride;
        logit = load<T>(logits + target);
    }
    *kept_part(arguments, row) = make_float4(sums.r, sums.s, sums.weighted, logit);
}

template <typename T, bool SOFTCAP, bool ENTROPY, bool ALIGNED>
__device__ __forceinline__ void token_log_prob(const TokenLogProb& arguments) {
    __shared__ Shared shared;
    const uint32_t row = blockIdx.x;
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    const int64_t target = target_id(arguments.targets, arguments.target_bytes, row);
    if (target < 0 || target >= arguments.whole_vocab) {
        if (arguments.kept_parts > 0) {
            if (thread == 0) keep_no_columns(arguments, row, target < 0);
        } else if (thread == 0 && blockIdx.y == 0) {
            skip_row<ENTROPY>(arguments, row, target < 0);
        }
        return;
    }

    const int32_t first_slice = static_cast<int32_t>(blockIdx.y) * arguments.slices_per_block;
    if (thread == 0) {
        shared.target = static_cast<int32_t>(target);
        shared.kept_parts = arguments.kept_parts;
        shared.last_slice = min(first_slice + arguments.slices_per_block, arguments.slices) - 1;
        shared.row = {START, 0.0, 0.0};
    }
    const Scale scale = Scale::make<SOFTCAP>(arguments.scale, arguments.softcap);
    // Columns of one iteration of the block.
    constexpr int32_t STEP = THREADS * LOADS * COLUMNS<T>;
    const auto* columns = static_cast<const typename T::Bits*>(arguments.logits) + int64_t{row} * arguments.row_stride +
                          int64_t{first_slice} * SLICE + thread * COLUMNS<T>;
    // Columns of the row from the first slice on.
    int32_t left = arguments.vocab - first_slice * SLICE;

    // With so many columns of the row left, all of a thread's next vectors may be loaded across boundaries. Of 2-byte numbers, not
    // warp 0's in the row's first iteration: the row's first vector is among them. One comparison says both.
    int32_t all_across = thread * COLUMNS<T> + (LOADS - 1) * APART<T> + COLUMNS_ACROSS<T>;
    uint32_t across_range = T::PER_WORD == 2 && thread < 32 ? max(arguments.vocab - all_across, 0) : 1u << 31;
    uint32_t residue = ALIGNED ? 0 : residue_of(columns);
    // Or the compiler makes them anew in every iteration; for f32 it may, since there a softcap leaves no registers.
    if (!ALIGNED && T::PER_WORD == 2) asm volatile("" : "+r"(all_across), "+r"(across_range), "+r"(residue));
    int32_t slice = first_slice;
    // Once at least: a block of parts that are kept, beyond this rank's columns, finds none, and keeps a part that counts for nothing.
    do {
        Sums<float> sums{START, 0.0f, 0.0f};
        // Columns of the row after this slice; at so many left, one iteration of the slice is left.
        const int32_t after = max(left - SLICE, 0), of_last = after + STEP;
        if (residue == 0) {
#pragma unroll 1
            for (; left >= of_last; left -= STEP) {
                Vector<T> v[LOADS];
#pragma unroll
                for (int i = 0; i < LOADS; i++) v[i] = load_vector<T>(columns + i * APART<T>);
                absorb<T, SOFTCAP, ENTROPY>(v, scale, sums);
                columns += STEP;
            }
        }
#pragma unroll 1
        for (; left > after; left -= STEP) {
            Vector<T> v[LOADS];
            if (!ALIGNED && T::PER_WORD == 1) residue = residue_of(columns);
            const char* boundary = ALIGNED ? reinterpret_cast<const char*>(columns) : boundary_of(columns);
            // Of f32 a softcap leaves no registers for it.
            const bool is_across = !ALIGNED && (T::PER_WORD == 2 || (!SOFTCAP && residue != 0));
            if (is_across && static_cast<uint32_t>(left - all_across) < across_range) {
                load_across<THREADS>(v, boundary, residue);
            } else {
                const bool starts = left == arguments.vocab && thread < 32;
                load_ragged(v, boundary, residue, left - thread * COLUMNS<T>, starts);
            }
            absorb<T, SOFTCAP, ENTROPY>(v, scale, sums);
            columns += STEP;
        }

        reduce_warp<ENTROPY>(sums);
        // Two places, taken in turn: warp 0 may still read the last slice's while others write this one's. A warp is at
        // most one barrier ahead, so it cannot write a place that is still being read.
        Sums<float>* warps = shared.warps[slice & 1];
        if (thread % 32 == 0) warps[thread / 32] = sums;
        __syncthreads();
        if (thread < 32) {
            sums = thread < WARPS ? warps[thread] : Sums<float>{START, 0.0f, 0.0f};
            reduce_warp<ENTROPY>(sums);
            if (thread == 0) {
                if (shared.kept_parts > 0) {
                    keep_part<T>(arguments, row, sums);
                } else if (gridDim.y > 1) {
                    arguments.partials[int64_t{row} * arguments.slices + slice] =
                        make_float4(sums.r, sums.s, sums.weighted, 0.0f);
                } else {
                    Sums<double> before = shared.row;
                    add_slice<ENTROPY>(before, sums.r, sums.s, sums.weighted);
                    shared.row = before;
                }
            }
        }
    } while (slice++ < shared.last_slice);

    if (thread > 0) return;
    if (shared.kept_parts > 0) return;
    Sums<double> sums;
    if (gridDim.y > 1) {
        // The last block of the row to come here adds up the slices, in order. The count returns to 0 by itself.
        // Release: whoever reads this count, or a later one, then reads this block's sums too. Without it the last block may
        // add up what was there before.
        fence_acquire_release();
        if (atomicInc(arguments.tickets + row, gridDim.y - 1) != gridDim.y - 1) return;
        // Acquire: the sums are read after the count, on which their being there depends.
        fence_acquire_release();
        sums = {START, 0.0, 0.0};
        const float4* partials = arguments.partials + int64_t{row} * arguments.slices;
#pragma unroll 1
        for (int32_t slice = 0; slice < arguments.slices; slice++) {
            // Past the first-level cache, which may hold what was there before.
            const float4 part = __ldcg(partials + slice);
            add_slice<ENTROPY>(sums, part.x, part.y, part.z);
        }
    } else {
        sums = shared.row;
    }
    const auto* logits = static_cast<const typename T::Bits*>(arguments.logits) + int64_t{row} * arguments.row_stride;
    const float target_logit = load<T>(logits + shared.target);
    // The scale is made anew, so that its exact part costs the loop no register.
    const Scale exact = Scale::make<SOFTCAP>(arguments.scale, arguments.softcap);
    finish_row<SOFTCAP, ENTROPY>(arguments, exact, sums, target_logit, row);
}

// `_unaligned`: for rows that need not start at 16 bytes, as all others but the plain ones: their loads take registers, which
// six blocks of a multiprocessor have none of to spare.
#define KERNEL(NAME, T, SOFTCAP, ENTROPY, ALIGNED, BLOCKS)        \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) \
        NAME(const __grid_constant__ TokenLogProb arguments) {    \
        token_log_prob<T, SOFTCAP, ENTROPY, ALIGNED>(arguments);  \
    }

KERNEL(token_log_prob_f32, F32, false, false, true, 6)
KERNEL(token_log_prob_f16, F16, false, false, true, 6)
KERNEL(token_log_prob_bf16, Bf16, false, false, true, 6)
KERNEL(token_log_prob_f32_unaligned, F32, false, false, false, 4)
KERNEL(token_log_prob_f16_unaligned, F16, false, false, false, 4)
KERNEL(token_log_prob_bf16_unaligned, Bf16, false, false, false, 4)
KERNEL(token_log_prob_f32_entropy, F32, false, true, false, 4)
KERNEL(token_log_prob_f16_entropy, F16, false, true, false, 4)
KERNEL(token_log_prob_bf16_entropy, Bf16, false, true, false, 4)
KERNEL(token_log_prob_f32_softcap, F32, true, false, false, 4)
KERNEL(token_log_prob_f16_softcap, F16, true, false, false, 4)
KERNEL(token_log_prob_bf16_softcap, Bf16, true, false, false, 4)
KERNEL(token_log_prob_f32_softcap_entropy, F32, true, true, false, 4)
KERNEL(token_log_prob_f16_softcap_entropy, F16, true, true, false, 4)
KERNEL(token_log_prob_bf16_softcap_entropy, Bf16, true, true, false, 4)
