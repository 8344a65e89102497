// Loads of rows that start anywhere: 16 bytes that lie across a 16-byte boundary, made of the aligned loads on both sides.
//
// Each row of 32001 bf16 starts 2 bytes farther from a boundary than the one before it, and a load can be no wider than its
// address is aligned. So both aligned vectors that hold a part are loaded and the 16 bytes are taken out of them: two loads for
// eight numbers instead of four, or of eight. What the neighbouring thread loads too is in the first-level cache, or on its way
// there.
#pragma once

#include <cstdint>

#include "logits.cuh"

// Bytes from the last 16-byte boundary to an address.
__device__ __forceinline__ uint32_t residue_of(const void* address) {
    return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(address)) % 16u;
}

// The last 16-byte boundary.
__device__ __forceinline__ const char* boundary_of(const void* address) {
    return reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(address) & ~uintptr_t{15});
}

// Loads of 1, 2 or 4 words, OFFSET bytes after an address, aligned to their size, that nothing writes while the kernel runs.
// Unlike streaming loads they stay in the first-level cache, for the neighbour that wants the rest of them. `volatile` keeps
// the loads of an iteration together, before the first use of any.
template <int COUNT, int OFFSET>
__device__ __forceinline__ void load_words(uint32_t* words, const char* address) {
    static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4, "a load of 4, 8 or 16 bytes");
    if constexpr (COUNT == 1) {
        asm volatile("ld.global.nc.u32 %0, [%1 + %2];" : "=r"(words[0]) : "l"(address), "n"(OFFSET));
    } else if constexpr (COUNT == 2) {
        asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2 + %3];"
                     : "=r"(words[0]), "=r"(words[1])
                     : "l"(address), "n"(OFFSET));
    } else {
        asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "l"(address), "n"(OFFSET));
    }
}

template <int COUNT, int OFFSET>
__device__ __forceinline__ void load_words(float* words, const char* address) {
    static_assert(COUNT == 1 || COUNT == 2, "a load of 4 or 8 bytes");
    if constexpr (COUNT == 1) {
        asm volatile("ld.global.nc.f32 %0, [%1 + %2];" : "=f"(words[0]) : "l"(address), "n"(OFFSET));
    } else {
        asm volatile("ld.global.nc.v2.f32 {%0, %1}, [%2 + %3];"
                     : "=f"(words[0]), "=f"(words[1])
                     : "l"(address), "n"(OFFSET));
    }
}

// The same where `count` >= `least`; elsewhere the words stay what they are. Without a branch, so that no load waits for
// another.
template <int COUNT>
__device__ __forceinline__ void load_words_if(uint32_t* words, const char* address, int32_t count, int32_t least) {
    static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4, "a load of 4, 8 or 16 bytes");
    if constexpr (COUNT == 1) {
        asm volatile("{.reg .pred p; setp.ge.s32 p, %2, %3; @p ld.global.nc.u32 %0, [%1];}"
                     : "+r"(words[0])
                     : "l"(address), "r"(count), "r"(least));
    } else if constexpr (COUNT == 2) {
        asm volatile("{.reg .pred p; setp.ge.s32 p, %3, %4; @p ld.global.nc.v2.u32 {%0, %1}, [%2];}"
                     : "+r"(words[0]), "+r"(words[1])
                     : "l"(address), "r"(count), "r"(least));
    } else {
        asm volatile("{.reg .pred p; setp.ge.s32 p, %5, %6; @p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];}"
                     : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
                     : "l"(address), "r"(count), "r"(least));
    }
}

__device__ __forceinline__ void load_word_if(float& word, const char* address, int32_t count, int32_t least) {
    asm volatile("{.reg .pred p; setp.ge.s32 p, %2, %3; @p ld.global.nc.f32 %0, [%1];}"
                 : "+f"(word)
                 : "l"(address), "r"(count), "r"(least));
}

// Columns of a row that there must be from the start of a vector on, for all that is loaded for it to be the row's, wherever it
// starts. Of numbers of 2 bytes that is up to the end of the aligned 16 bytes that the vector ends in.
template <typename T>
constexpr int32_t COLUMNS_ACROSS = T::PER_WORD == 1 ? COLUMNS<T> : 2 * COLUMNS<T>;

// What 16 bytes from word `FIRST` of an aligned vector on, or from the middle of it, take from that vector and from the one
// after it: each word in the place that it has in its vector.
template <typename T, int FIRST>
struct Halves {
    using Word = typename T::Word;
    // Of numbers of 2 bytes: words of the second vector, whose last may be needed in part. Loads of the first vector start at
    // SKIPPED. What is not needed is loaded only where a load has to be wider than what is, and takes no register.
    static constexpr int SKIPPED = FIRST <= 1 ? 0 : FIRST;
    static constexpr int OF_SECOND = FIRST == 2 ? 4 : FIRST + 1;
    Word first[4], second[4];

    // OFFSET: bytes from the address to the first vector.
    template <int OFFSET>
    __device__ __forceinline__ void load(const char* boundary) {
        if constexpr (T::PER_WORD == 2) {
            load_words<4 - SKIPPED, OFFSET + 4 * SKIPPED>(first + SKIPPED, boundary);
            load_words<OF_SECOND, OFFSET + 16>(second, boundary);
        } else {
            // Nothing but the four words, in four registers, by two loads or three.
            if constexpr (FIRST % 2 == 1) load_words<1, OFFSET + 4 * FIRST>(first + FIRST, boundary);
            if constexpr (FIRST <= 2) load_words<2, OFFSET + 8>(first + 2, boundary);
            if constexpr (FIRST >= 2) load_words<2, OFFSET + 16>(second, boundary);
            if constexpr (FIRST % 2 == 1) load_words<1, OFFSET + 12 + 4 * FIRST>(second + FIRST - 1, boundary);
        }
    }

    // All -inf where `count` < `least`.
    __device__ __forceinline__ void load_if(const char* boundary, int32_t count, int32_t least) {
        static_assert(T::PER_WORD == 2);
#pragma unroll
        for (int i = 0; i < 4; i++) first[i] = second[i] = T::minus_infinity();
        load_words_if<4 - SKIPPED>(first + SKIPPED, boundary + 4 * SKIPPED, count, least);
        load_words_if<OF_SECOND>(second, boundary + 16, count, least);
    }

    __device__ __forceinline__ Word word(int index) const { return index < 4 ? first[index] : second[index - 4]; }

    // `bits`: 8 for each byte from the boundary on. -inf shifted by a number of numbers is -inf.
    __device__ __forceinline__ Vector<T> joined(uint32_t bits) const {
        Vector<T> v;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (T::PER_WORD == 1) {
                v.word[i] = word(FIRST + i);
            } else {
                v.word[i] = __funnelshift_r(word(FIRST + i), word(FIRST + i + 1), bits);  // modulo 32
            }
        }
        return v;
    }
};

// From the vector INDEX on.
template <int THREADS, int INDEX, typename T, int FIRST, int COUNT>
__device__ __forceinline__ void load_halves(Halves<T, FIRST> (&halves)[COUNT], const char* boundary) {
    halves[INDEX].template load<INDEX * THREADS * 16>(boundary);
    if constexpr (INDEX + 1 < COUNT) load_halves<THREADS, INDEX + 1>(halves, boundary);
}

template <int THREADS, int FIRST, typename T, int COUNT>
__device__ __forceinline__ void load_across_from(Vector<T> (&v)[COUNT], const char* boundary, uint32_t bits) {
    // All before the first use of any.
    Halves<T, FIRST> halves[COUNT];
    load_halves<THREADS, 0>(halves, boundary);
#pragma unroll
    for (int i = 0; i < COUNT; i++) v[i] = halves[i].joined(bits);
}

template <int THREADS, int FIRST, typename T, int COUNT>
__device__ __forceinline__ void load_across_from_if(Vector<T> (&v)[COUNT], const char* boundary, uint32_t bits, int32_t count,
                                                    bool without_first) {
    Halves<T, FIRST> halves[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const int32_t least = COLUMNS_ACROSS<T> + i * THREADS * COLUMNS<T>;
        halves[i].load_if(boundary + i * THREADS * 16, count, i == 0 && without_first ? INT32_MAX : least);
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) v[i] = halves[i].joined(bits);
}

// Calls a function with the word that a residue lies in as a template argument, since registers cannot be indexed. The residue
// is the same for the whole block. That of numbers of 4 bytes is not 0.
#define WITH_FIRST_WORD(T, RESIDUE, FUNCTION, ...)   \
    if ((RESIDUE) >= 12) {                           \
        FUNCTION<THREADS, 3>(__VA_ARGS__);           \
    } else if ((RESIDUE) >= 8) {                     \
        FUNCTION<THREADS, 2>(__VA_ARGS__);           \
    } else if (T::PER_WORD == 1 || (RESIDUE) >= 4) { \
        FUNCTION<THREADS, 1>(__VA_ARGS__);           \
    } else {                                         \
        FUNCTION<THREADS, 0>(__VA_ARGS__);           \
    }

// Vectors of a row, from one to the next a block's threads apart; the first of them `residue` bytes after a 16-byte boundary; of
// numbers of 4 bytes not at it. Reads of each nothing outside of the 32 bytes from the boundary on.
template <int THREADS, typename T, int COUNT>
__device__ __forceinline__ void load_across(Vector<T> (&v)[COUNT], const char* boundary, uint32_t residue) {
    WITH_FIRST_WORD(T, residue, load_across_from, v, boundary, residue * 8);
}

// Those of them with COLUMNS_ACROSS columns or more, and where `without_first` not the first; -inf for the others. `count`:
// columns from the first vector to the end of the row.
template <int THREADS, typename T, int COUNT>
__device__ __forceinline__ void load_across_if(Vector<T> (&v)[COUNT], const char* boundary, uint32_t residue, int32_t count,
                                               bool without_first) {
    WITH_FIRST_WORD(T, residue, load_across_from_if, v, boundary, residue * 8, count, without_first);
}
#undef WITH_FIRST_WORD
