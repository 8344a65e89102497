// A chunk of f32 logits turned, column by column, into an operand of the next matrix product, in the head's type.
//
// A block does BLOCK_COLUMNS columns of one row. A lane loads 16 bytes and stores its 4 numbers next to those of its
// neighbours: both accesses are whole lines of the warp. Numbers in f32 may overwrite the logits.
#pragma once

#include <cstdint>

#include "logits.cuh"

// As in src/cuda/tuning.rs.
constexpr int32_t BLOCK_COLUMNS = 8192;

// Four numbers of an operand.
template <typename T>
struct Four {
    typename T::Word word[4 / T::PER_WORD];
};

// Not the read-only path: in place, a kernel writes what it reads. `volatile` and the memory clobber keep loads and
// stores in the order of the text.
__device__ __forceinline__ Vector<F32> load_vector(const float* address) {
    Vector<F32> v;
    asm volatile("ld.global.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.word[0]), "=f"(v.word[1]), "=f"(v.word[2]), "=f"(v.word[3])
                 : "l"(address)
                 : "memory");
    return v;
}

template <typename T>
__device__ __forceinline__ void store_four(typename T::Bits* address, const Four<T>& four) {
    if constexpr (T::PER_WORD == 1) {
        asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};"
                     :
                     : "l"(address), "f"(four.word[0]), "f"(four.word[1]), "f"(four.word[2]), "f"(four.word[3])
                     : "memory");
    } else {
        asm volatile("st.global.v2.u32 [%0], {%1, %2};"
                     :
                     : "l"(address), "r"(four.word[0]), "r"(four.word[1])
                     : "memory");
    }
}

// The same word in all columns of a block.
template <int THREADS, typename T>
__device__ __forceinline__ void fill(typename T::Bits* to, int32_t columns, typename T::Word word) {
    Four<T> four;
#pragma unroll
    for (auto& each : four.word) each = word;
    const int32_t vectors = columns / 4, thread = static_cast<int32_t>(threadIdx.x);
#pragma unroll 1
    for (int32_t i = thread; i < vectors; i += THREADS) store_four<T>(to + 4 * i, four);
    const int32_t single = 4 * vectors + thread;
    if (single < columns) to[single] = static_cast<typename T::Bits>(word);
}

template <typename T, typename Value>
__device__ __forceinline__ Four<T> four_of(const Vector<F32>& v, Value& value) {
    float x[4];
    const Vector<F32> one[1] = {v};
    // Without a vote: where the columns end, not all lanes of a warp are here.
    if (__builtin_expect(value.are_near(one), 1)) {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = value.template at<true>(v.word[i]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = value.template at<false>(v.word[i]);
    }
    Four<T> four;
    if constexpr (T::PER_WORD == 1) {
#pragma unroll
        for (int i = 0; i < 4; i++) four.word[i] = x[i];
    } else {
        four.word[0] = T::pack(x[0], x[1]);
        four.word[1] = T::pack(x[2], x[3]);
    }
    return four;
}

// Writes the value of each logit x of a block's columns, bias included: value.at<NEAR>(x), NEAR as in Scale where
// value.are_near(x) of four logits.
template <int THREADS, int LOADS, typename T, bool BIAS, typename Value>
__device__ __forceinline__ void rewrite(const float* logits, const float* bias, typename T::Bits* to, int32_t columns,
                                        Value& value) {
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    const float* from = logits + 4 * thread;
    const float* add = BIAS ? bias + 4 * thread : nullptr;
    auto* out = to + 4 * thread;
    int32_t left = columns / 4 - thread;
    constexpr int32_t STEP = 4 * THREADS;
#pragma unroll 1
    for (; left > (LOADS - 1) * THREADS; left -= LOADS * THREADS) {
        Vector<F32> v[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++) v[i] = load_vector(from + i * STEP);
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            if constexpr (BIAS) {
                const float4 b = __ldg(reinterpret_cast<const float4*>(add + i * STEP));
                v[i] = {{v[i].word[0] + b.x, v[i].word[1] + b.y, v[i].word[2] + b.z, v[i].word[3] + b.w}};
            }
            store_four<T>(out + i * STEP, four_of<T>(v[i], value));
        }
        from += LOADS * STEP;
        if constexpr (BIAS) add += LOADS * STEP;
        out += LOADS * STEP;
    }
#pragma unroll 1
    for (; left > 0; left -= THREADS) {
        Vector<F32> v = load_vector(from);
        if constexpr (BIAS) {
            const float4 b = __ldg(reinterpret_cast<const float4*>(add));
            v = {{v.word[0] + b.x, v.word[1] + b.y, v.word[2] + b.z, v.word[3] + b.w}};
            add += STEP;
        }
        store_four<T>(out, four_of<T>(v, value));
        from += STEP;
        out += STEP;
    }
    const int32_t single = columns / 4 * 4 + thread;
    if (single < columns) {
        const float x = load<F32>(logits + single) + (BIAS ? __ldg(bias + single) : 0.0f);
        to[single] = static_cast<typename T::Bits>(T::pack(value.template at<false>(x), 0.0f));
    }
}

// The target among a block's columns.
struct TargetColumn {
    int32_t column;
    // This thread is the one that rewrites it: what it does to the column before and after is in the order of its own
    // instructions.
    bool is_mine;

    template <int THREADS>
    static __device__ __forceinline__ TargetColumn find(int64_t column, int32_t columns) {
        const bool is_here = column >= 0 && column < columns;
        const int32_t here = is_here ? static_cast<int32_t>(column) : 0;
        const int32_t owner = here / 4 < columns / 4 ? here / 4 % THREADS : here % 4;
        return {here, is_here && owner == static_cast<int32_t>(threadIdx.x)};
    }
};
