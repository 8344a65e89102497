// Transpose of a square matrix of floats, one thread an element, blocks of 32 x 32: straight from row to column;
// through shared memory, where reading a column of 32 floats hits one bank 32 times; and with one float of padding a
// row, where it does not. The counters of the three are known by hand.

constexpr unsigned tile = 32;

extern "C" __global__ void transpose_naive(const float* in, float* out, unsigned size) {
    const unsigned column = blockIdx.x * tile + threadIdx.x, row = blockIdx.y * tile + threadIdx.y;
    out[column * size + row] = in[row * size + column];
}

template <unsigned pitch>
__device__ __forceinline__ void transpose(const float* in, float* out, unsigned size) {
    __shared__ float kept[tile * pitch];
    const unsigned column = blockIdx.x * tile + threadIdx.x, row = blockIdx.y * tile + threadIdx.y;
    kept[threadIdx.y * pitch + threadIdx.x] = in[row * size + column];
    __syncthreads();
    out[(blockIdx.x * tile + threadIdx.y) * size + blockIdx.y * tile + threadIdx.x] =
        kept[threadIdx.x * pitch + threadIdx.y];
}

extern "C" __global__ void transpose_shared(const float* in, float* out, unsigned size) {
    transpose<tile>(in, out, size);
}

extern "C" __global__ void transpose_padded(const float* in, float* out, unsigned size) {
    transpose<tile + 1>(in, out, size);
}

// Copies with a stride between lanes: how many sectors a warp touches follows from the stride alone.
extern "C" __global__ void copy_strided(const float* in, float* out, unsigned stride, unsigned offset) {
    const unsigned index = (blockIdx.x * blockDim.x + threadIdx.x) * stride + offset;
    out[index] = in[index];
}

// Sixteen bytes a lane.
extern "C" __global__ void copy_wide(const float4* in, float4* out) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    out[index] = in[index];
}

// One warp writes shared memory with a stride of words between lanes, then reads it back: gcd(stride, 32) lanes share a
// bank.
extern "C" __global__ void stride_shared(unsigned* out, unsigned stride) {
    __shared__ unsigned words[1024];
    words[threadIdx.x * stride] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = words[threadIdx.x * stride];
}
