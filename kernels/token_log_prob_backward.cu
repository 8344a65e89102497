// Token log-probs, backward: one read of the logits, one write of their gradient, in place or not.
//
// Grid (N, ceil(V / SLICE)), THREADS threads: a block does one slice of one row. With z the scaled logits, p their
// softmax, g and e the upstream gradients of log-prob and entropy H:
//
// d loss / d x_j = { g ([j = target] - p_j) - e p_j (log p_j + H) } dz_j/dx_j
//
// The loop knows no target: it writes -g p_j everywhere. The target's column is then written again from g (1 - p_t),
// formed before the one rounding to the logits' type: adding g to a rounded -g p_t would lose everything where p_t is
// near 1.

#include <cstdint>

#include "include/logits.cuh"
#include "include/memory_access.cuh"
#include "include/row_gradient.cuh"
#include "include/status.cuh"

constexpr int THREADS = 256;
// 16-byte loads in flight per thread.
constexpr int LOADS = 4;

struct TokenLogProbBackward {
    const void* logits;    // [N, V], rows row_stride elements apart
    void* gradients;       // [N, V], rows gradient_row_stride elements apart; may be the logits
    const void* targets;   // [N]
    const float2* states;  // [N]: r, s, as the forward kernel left them
    UpstreamOfRows upstream;
    int64_t row_stride;
    int64_t gradient_row_stride;
    double largest_upstream;  // as in row_gradient.cuh
    int32_t vocab;         // columns that are here
    int32_t target_bytes;  // 4 or 8
    float scale;           // log2(e)/T
    float inverse_temperature;
    float softcap;         // not read by kernels without softcap
    int32_t first_column;  // of the whole vocabulary
    int32_t whole_vocab;
    int32_t reserved;  // no padding that would be left uninitialised
};

// Not the read-only path and no __restrict__: in place, this kernel writes what it reads. `volatile` and the memory
// clobber keep loads and stores in the order of the text, which in place decides what is read.
template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const void* address) {
    Vector<T> v;
    if constexpr (T::PER_WORD == 1) {
        asm volatile("ld.global.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(v.word[0]), "=f"(v.word[1]), "=f"(v.word[2]), "=f"(v.word[3])
                     : "l"(address)
                     : "memory");
    } else {
        asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                     : "l"(address)
                     : "memory");
    }
    return v;
}

// Evict-first: the gradient's next reader is another kernel.
template <typename T>
__device__ __forceinline__ void store_vector(void* address, const Vector<T>& v) {
    if constexpr (T::PER_WORD == 1) {
        asm volatile("st.global.cs.v4.f32 [%0], {%1, %2, %3, %4};"
                     :
                     : "l"(address), "f"(v.word[0]), "f"(v.word[1]), "f"(v.word[2]), "f"(v.word[3])
                     : "memory");
    } else {
        asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};"
                     :
                     : "l"(address), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
                     : "memory");
    }
}

// How a block's columns are divided: vectors where the gradient is 16-byte aligned, single columns at both ends.
template <typename T>
struct Division {
    uint32_t residue;  // of the logits' vectors: bytes after a 16-byte boundary; 0 in place
    int32_t head;      // single columns before the first vector
    int32_t vectors;
    int32_t singles;  // head and tail

    __device__ __forceinline__ Division(const void* logits, const void* gradients, int32_t columns) {
        constexpr uint32_t BYTES = sizeof(typename T::Bits);
        residue = (residue_of(logits) - residue_of(gradients)) % 16u;
        head = static_cast<int32_t>((16u - residue_of(gradients)) % 16u / BYTES);
        int32_t after = 0;
        if (residue != 0) {
            // Vectors across a boundary are taken from the 32 bytes around them. All of these must be the block's: what lies
            // next to a row may be another one that is being written, or no memory at all.
            const int32_t before = static_cast<int32_t>(residue / BYTES);
            if (head < before) head += COLUMNS<T>;
            after = COLUMNS<T> - before;
        }
        head = min(head, columns);
        vectors = max(columns - head - after, 0) / COLUMNS<T>;
        singles = columns - vectors * COLUMNS<T>;
    }

    __device__ __forceinline__ int32_t single(int32_t index) const {
        return index < head ? index : index + vectors * COLUMNS<T>;
    }

    // The thread that writes a column: it alone may read the column beforehand and write it again afterwards.
    __device__ __forceinline__ int32_t owner(int32_t column) const {
        const int32_t behind_head = column - head;
        if (behind_head < 0) return column % THREADS;
        if (behind_head < vectors * COLUMNS<T>) return behind_head / COLUMNS<T> % THREADS;
        return (column - vectors * COLUMNS<T>) % THREADS;
    }
};

// Writes one value to all columns.
template <typename T>
__device__ __forceinline__ void fill(typename T::Bits* gradients, const Division<T>& division, typename T::Word word) {
    const Vector<T> v{{word, word, word, word}};
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < division.vectors; i += THREADS) {
        store_vector<T>(gradients + division.head + i * COLUMNS<T>, v);
    }
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < division.singles; i += THREADS) {
        gradients[division.single(i)] = static_cast<typename T::Bits>(word);
    }
}

// Rounding r - log2 |constant| to f32 costs at most 2^-19 in the exponent below this size, little beside the last place
// of f16, 2^-11; under an offset of thousands it would cost 2^-13. Usual logits and gradients lie well below.
constexpr float LARGEST_FOLDED = 64.0f;

// Folds the constant into r, where that is exact enough.
__device__ __forceinline__ bool fold(RowFactors& factors) {
    const uint32_t bits = __float_as_uint(factors.constant);
    const int32_t exponent = static_cast<int32_t>(bits >> 23 & 0xff);
    // Zero, subnormal, infinite.
    if (exponent == 0 || exponent == 255) return false;
    const float mantissa = __uint_as_float((bits & 0x7fffffu) | 0x3f800000u);
    const float folded = (factors.r - static_cast<float>(exponent - 127)) - log2f(mantissa);
    if (!(fabsf(folded) <= LARGEST_FOLDED)) return false;
    factors.r = folded;
    factors.sign = (bits & 0x80000000u) | (bits & 0x80000000u) >> 16;
    return true;
}

template <typename T, bool SOFTCAP, bool ENTROPY, bool FOLD, bool NEAR = false>
__device__ __forceinline__ typename T::Word word_of_gradients(typename T::Word word, const Scale& scale,
                                                              const RowFactors& factors) {
    const float low = gradient<SOFTCAP, ENTROPY, FOLD, NEAR>(T::low(word), scale, factors);
    float high = 0.0f;
    if constexpr (T::PER_WORD == 2) high = gradient<SOFTCAP, ENTROPY, FOLD, NEAR>(T::high(word), scale, factors);
    if constexpr (FOLD) {
        return T::pack(low, high) ^ factors.sign;
    } else {
        return T::pack(low, high);
    }
}

// A vector of logits becomes their gradients. NEAR as in Scale.
template <typename T, bool SOFTCAP, bool ENTROPY, bool FOLD, bool NEAR>
__device__ __forceinline__ void to_gradients(Vector<T>& v, const Scale& scale, const RowFactors& factors) {
#pragma unroll
    for (auto& word : v.word) word = word_of_gradients<T, SOFTCAP, ENTROPY, FOLD, NEAR>(word, scale, factors);
}

// Vectors of logits become their gradients. WARP: all lanes of a warp call it.
template <typename T, bool SOFTCAP, bool ENTROPY, bool FOLD, bool WARP, int COUNT>
__device__ __forceinline__ void all_to_gradients(Vector<T> (&v)[COUNT], const Scale& scale, const RowFactors& factors) {
    if constexpr (SOFTCAP) {
        bool near = all_near<T>(v, scale);
        // A vote, so that no lane takes the long way alone while the others wait.
        if constexpr (WARP) near = __all_sync(0xffffffffu, near);
        if (__builtin_expect(!near, 0)) {
            // One after the other, in turn at the front: all at once take more registers than there are.
#pragma unroll 1
            for (int turn = 0; turn < COUNT; turn++) {
                Vector<T> first = v[0];
                to_gradients<T, SOFTCAP, ENTROPY, FOLD, false>(first, scale, factors);
#pragma unroll
                for (int i = 1; i < COUNT; i++) v[i - 1] = v[i];
                v[COUNT - 1] = first;
            }
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) to_gradients<T, SOFTCAP, ENTROPY, FOLD, true>(v[i], scale, factors);
}

// Vectors of logits, from one to the next a block's threads apart, and their gradients' places. ACROSS: the logits' lie
// `residue` bytes after a 16-byte boundary, the first of them after `boundary`. Then they are not in place, so that nothing
// writes them. WARP: all lanes of a warp call it.
template <typename T, bool SOFTCAP, bool ENTROPY, bool FOLD, bool ACROSS, bool WARP, int COUNT>
__device__ __forceinline__ void write_vectors(const char* boundary, uint32_t residue, char* to, const Scale& scale,
                                              const RowFactors& factors) {
    Vector<T> v[COUNT];
    if constexpr (ACROSS) {
        load_across<THREADS>(v, boundary, residue);
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++) v[i] = load_vector<T>(boundary + i * THREADS * 16);
    }
    all_to_gradients<T, SOFTCAP, ENTROPY, FOLD, WARP>(v, scale, factors);
#pragma unroll
    for (int i = 0; i < COUNT; i++) store_vector<T>(to + i * THREADS * 16, v[i]);
}

// A thread's vectors of a block's `left` from its first on.
template <typename T, bool SOFTCAP, bool ENTROPY, bool FOLD, bool ACROSS>
__device__ __forceinline__ void write_all_vectors(const char* boundary, uint32_t residue, char* to, int32_t left,
                                                  const Scale& scale, const RowFactors& factors) {
    // Under a softcap whole warps, because they vote.
    const int32_t to_last_lane = SOFTCAP ? 31 - static_cast<int32_t>(threadIdx.x) % 32 : 0;
#pragma unroll 1
    for (; left - to_last_lane > (LOADS - 1) * THREADS; left -= LOADS * THREADS) {
        write_vectors<T, SOFTCAP, ENTROPY, FOLD, ACROSS, true, LOADS>(boundary, residue, to, scale, factors);
        boundary += LOADS * THREADS * 16;
        to += LOADS * THREADS * 16;
    }
#pragma unroll 1
    for (; left > 0; left -= THREADS) {
        write_vectors<T, SOFTCAP, ENTROPY, FOLD, ACROSS, false, 1>(boundary, residue, to, scale, factors);
        boundary += THREADS * 16;
        to += THREADS * 16;
    }
}

// A block's columns, as if none were the target.
template <typename T, bool SOFTCAP, bool ENTROPY, bool FOLD>
__device__ __forceinline__ void write_columns(const typename T::Bits* logits, typename T::Bits* gradients,
                                              const Division<T>& division, const Scale& scale,
                                              const RowFactors& factors) {
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    const uint32_t residue = division.residue;
    const char* boundary = reinterpret_cast<const char*>(logits + division.head) - residue + thread * 16;
    char* to = reinterpret_cast<char*>(gradients + division.head) + thread * 16;
    const int32_t left = division.vectors - thread;
    if (residue == 0) {
        write_all_vectors<T, SOFTCAP, ENTROPY, FOLD, false>(boundary, residue, to, left, scale, factors);
    } else {
        write_all_vectors<T, SOFTCAP, ENTROPY, FOLD, true>(boundary, residue, to, left, scale, factors);
    }
#pragma unroll 1
    for (int32_t i = thread; i < division.singles; i += THREADS) {
        const int32_t column = division.single(i);
        const typename T::Word logit = *static_cast<const volatile typename T::Bits*>(logits + column);
        gradients[column] =
            static_cast<typename T::Bits>(word_of_gradients<T, SOFTCAP, ENTROPY, FOLD>(logit, scale, factors));
    }
}

// What a row's gradient is made of besides its logits.
struct RowInputs {
    float2 state;
    float g;
    float e;
    float entropy;
};

template <bool ENTROPY>
__device__ __forceinline__ RowInputs read_row(const TokenLogProbBackward& arguments, uint32_t row) {
    RowInputs inputs{arguments.states[row], arguments.upstream.of_log_prob(row), 0.0f, 0.0f};
    if constexpr (ENTROPY) {
        inputs.e = arguments.upstream.entropy_gradients[row];
        // Without a gradient of its entropy a row's entropy is not looked at: 0 times a NaN is a NaN.
        if (inputs.e != 0.0f) inputs.entropy = arguments.upstream.entropies[row];
    }
    return inputs;
}

template <typename T, bool SOFTCAP, bool ENTROPY>
__device__ __forceinline__ void token_log_prob_backward(const TokenLogProbBackward& arguments) {
    using Bits = typename T::Bits;
    const uint32_t row = blockIdx.x;
    const int32_t begin = static_cast<int32_t>(blockIdx.y) * SLICE;
    const int32_t columns = min(arguments.vocab - begin, SLICE);
    const auto* logits = static_cast<const Bits*>(arguments.logits) + int64_t{row} * arguments.row_stride + begin;
    auto* gradients = static_cast<Bits*>(arguments.gradients) + int64_t{row} * arguments.gradient_row_stride + begin;
    const Division<T> division(logits, gradients, columns);

    const int64_t target = target_id(arguments.targets, arguments.target_bytes, row);
    if (target < 0) return fill<T>(gradients, division, 0);
    const auto [state, g, e, entropy] = read_row<ENTROPY>(arguments, row);
    // Rows without a softmax or whose gradient does not fit, and those whose target is no column.
    if (!has_gradient(state, g, e, entropy, arguments.largest_upstream) || target >= arguments.whole_vocab) {
        return fill<T>(gradients, division, T::not_a_number());
    }
    if (g == 0.0f && e == 0.0f) return fill<T>(gradients, division, 0);

    const RowFactors factors = row_factors<ENTROPY>(state, g, e, entropy, arguments.inverse_temperature);
    const Scale scale = Scale::make<SOFTCAP>(arguments.scale, arguments.softcap);

    // The target's logit, before the row is overwritten. Only the thread that overwrites it reads it: then the order of
    // its own instructions is enough. Another thread would need a barrier.
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    // Outside of this block's columns where it is another block's, or another rank's.
    const int32_t target_column = static_cast<int32_t>(target) - arguments.first_column - begin;
    const bool owns_target = target_column >= 0 && target_column < columns && division.owner(target_column) == thread;
    // In shared memory it costs the loop no register.
    __shared__ float target_logit;
    if (owns_target) target_logit = load<T>(logits + target_column);

    // One condition for the whole row, so that all of its columns are rounded alike.
    RowFactors folded = factors;
    if (!SOFTCAP && !ENTROPY && T::PER_WORD == 2 && fold(folded)) {
        write_columns<T, SOFTCAP, ENTROPY, !SOFTCAP && !ENTROPY && T::PER_WORD == 2>(logits, gradients, division, scale,
                                                                                     folded);
    } else {
        write_columns<T, SOFTCAP, ENTROPY, false>(logits, gradients, division, scale, factors);
    }

    if (owns_target) {
        // Read and made anew, so that they cost the loop no register; nor do their addresses, which the compiler would keep
        // if it knew that the row is the same.
        uint32_t same_row = row;
        asm volatile("" : "+r"(same_row));
        const auto [state, g, e, entropy] = read_row<ENTROPY>(arguments, same_row);
        const Scale scale = Scale::make<SOFTCAP>(arguments.scale, arguments.softcap);
        const float value = target_gradient<SOFTCAP, ENTROPY>(target_logit, scale, arguments.inverse_temperature, state,
                                                              g, e, entropy);
        gradients[target_column] = static_cast<Bits>(T::pack(value, 0.0f));
    }
}

#define KERNEL(NAME, T, SOFTCAP, ENTROPY, BLOCKS)                      \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)      \
        NAME(const __grid_constant__ TokenLogProbBackward arguments) { \
        token_log_prob_backward<T, SOFTCAP, ENTROPY>(arguments);       \
    }

KERNEL(token_log_prob_backward_f32, F32, false, false, 4)
KERNEL(token_log_prob_backward_f16, F16, false, false, 4)
KERNEL(token_log_prob_backward_bf16, Bf16, false, false, 4)
KERNEL(token_log_prob_backward_f32_entropy, F32, false, true, 4)
KERNEL(token_log_prob_backward_f16_entropy, F16, false, true, 4)
KERNEL(token_log_prob_backward_bf16_entropy, Bf16, false, true, 4)
KERNEL(token_log_prob_backward_f32_softcap, F32, true, false, 4)
KERNEL(token_log_prob_backward_f16_softcap, F16, true, false, 4)
KERNEL(token_log_prob_backward_bf16_softcap, Bf16, true, false, 4)
KERNEL(token_log_prob_backward_f32_softcap_entropy, F32, true, true, 4)
KERNEL(token_log_prob_backward_f16_softcap_entropy, F16, true, true, 4)
KERNEL(token_log_prob_backward_bf16_softcap_entropy, Bf16, true, true, 4)
