// C = A B with f32 accumulators on the tensor cores: one warp a 16 x 8 tile of C, A row-major (rows x depth), B
// column-major (columns x depth), C row-major. mma.sync with fragments from ldmatrix (16-bit types) or loaded element
// by element (tf32).

#include <cstdint>

namespace {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void store_tile(float* c, const float (&sum)[4], unsigned row, unsigned column,
                                           unsigned columns) {
    const unsigned lane = threadIdx.x % 32;
    float* at = c + (row + lane / 4) * columns + column + lane % 4 * 2;
    *reinterpret_cast<float2*>(at) = make_float2(sum[0], sum[1]);
    *reinterpret_cast<float2*>(at + 8 * columns) = make_float2(sum[2], sum[3]);
}

// Eight 16-bit numbers at once.
__device__ __forceinline__ void copy_eight(uint16_t* to, const uint16_t* from) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
}

__device__ __forceinline__ void load_a(uint32_t (&fragment)[4], const uint16_t (&tile)[16][16]) {
    const unsigned lane = threadIdx.x % 32;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(&tile[lane % 16][lane / 16 * 8]))
                 : "memory");
}

struct Bf16 {
    static __device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4],
                                                        const uint32_t (&b)[2]) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
            "%1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

struct F16 {
    static __device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4],
                                                        const uint32_t (&b)[2]) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
            "%2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

template <typename Type>
__device__ __forceinline__ void gemm(const uint16_t* a, const uint16_t* b, float* c, unsigned columns, unsigned depth) {
    __shared__ __align__(16) uint16_t of_a[16][16], of_b[8][16];
    const unsigned lane = threadIdx.x, row = blockIdx.y * 16, column = blockIdx.x * 8, half = lane % 2 * 8;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (unsigned at = 0; at < depth; at += 16) {
        copy_eight(&of_a[lane / 2][half], a + (row + lane / 2) * depth + at + half);
        if (lane < 16) copy_eight(&of_b[lane / 2][half], b + (column + lane / 2) * depth + at + half);
        __syncwarp();
        uint32_t fragment_a[4], fragment_b[2];
        load_a(fragment_a, of_a);
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(fragment_b[0]), "=r"(fragment_b[1])
                     : "r"(shared_address(&of_b[lane % 8][lane / 8 % 2 * 8]))
                     : "memory");
        Type::multiply_add(sum, fragment_a, fragment_b);
        __syncwarp();
    }
    store_tile(c, sum, row, column, columns);
}

}  // namespace

extern "C" __global__ void gemm_bf16(const uint16_t* a, const uint16_t* b, float* c, unsigned columns, unsigned depth) {
    gemm<Bf16>(a, b, c, columns, depth);
}

extern "C" __global__ void gemm_f16(const uint16_t* a, const uint16_t* b, float* c, unsigned columns, unsigned depth) {
    gemm<F16>(a, b, c, columns, depth);
}

// The same with B row-major (depth x columns): ldmatrix transposes it on the way.
extern "C" __global__ void gemm_bf16_row(const uint16_t* a, const uint16_t* b, float* c, unsigned columns,
                                         unsigned depth) {
    __shared__ __align__(16) uint16_t of_a[16][16], of_b[16][8];
    const unsigned lane = threadIdx.x, row = blockIdx.y * 16, column = blockIdx.x * 8, half = lane % 2 * 8;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (unsigned at = 0; at < depth; at += 16) {
        copy_eight(&of_a[lane / 2][half], a + (row + lane / 2) * depth + at + half);
        if (lane < 16) copy_eight(of_b[lane], b + (at + lane) * columns + column);
        __syncwarp();
        uint32_t fragment_a[4], fragment_b[2];
        load_a(fragment_a, of_a);
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(fragment_b[0]), "=r"(fragment_b[1])
                     : "r"(shared_address(of_b[lane % 16]))
                     : "memory");
        Bf16::multiply_add(sum, fragment_a, fragment_b);
        __syncwarp();
    }
    store_tile(c, sum, row, column, columns);
}

// tf32: the inputs are f32, rounded to ten fraction bits by cvt.rna on the way into the fragments.
extern "C" __global__ void gemm_tf32(const float* a, const float* b, float* c, unsigned columns, unsigned depth) {
    const unsigned lane = threadIdx.x, row = blockIdx.y * 16, column = blockIdx.x * 8;
    const unsigned group = lane / 4, member = lane % 4;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (unsigned at = 0; at < depth; at += 8) {
        const float from_a[4] = {a[(row + group) * depth + at + member], a[(row + group + 8) * depth + at + member],
                                 a[(row + group) * depth + at + member + 4],
                                 a[(row + group + 8) * depth + at + member + 4]};
        const float from_b[2] = {b[(column + group) * depth + at + member],
                                 b[(column + group) * depth + at + member + 4]};
        uint32_t fa[4], fb[2];
        for (int i = 0; i < 4; i++) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fa[i]) : "f"(from_a[i]));
        for (int i = 0; i < 2; i++) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fb[i]) : "f"(from_b[i]));
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
            "%2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
    }
    store_tile(c, sum, row, column, columns);
}
