// How often each byte occurs: counted in shared memory by atomics, then added to the global counts.

extern "C" __global__ void histogram(const uchar4* bytes, unsigned* counts, unsigned count) {
    __shared__ unsigned local[256];
    for (unsigned bin = threadIdx.x; bin < 256; bin += blockDim.x) local[bin] = 0;
    __syncthreads();
    for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < count; index += gridDim.x * blockDim.x) {
        const uchar4 four = bytes[index];
        atomicAdd(local + four.x, 1u);
        atomicAdd(local + four.y, 1u);
        atomicAdd(local + four.z, 1u);
        atomicAdd(local + four.w, 1u);
    }
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin < 256; bin += blockDim.x)
        if (local[bin] != 0) atomicAdd(counts + bin, local[bin]);
}

// The same with one atomic for all lanes of a warp that hold the same byte: they find each other by match.any.
extern "C" __global__ void histogram_matched(const unsigned char* bytes, unsigned* counts, unsigned count) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned inside = __ballot_sync(0xffffffffu, index < count);
    if (index >= count) return;
    const unsigned char byte = bytes[index];
    const unsigned peers = __match_any_sync(inside, static_cast<unsigned>(byte));
    if (__ffs(static_cast<int>(peers)) - 1 == static_cast<int>(threadIdx.x % 32))
        atomicAdd(counts + byte, __popc(peers));
}

// Smallest and greatest, a 64-bit sum and a compare-and-swap maximum of floats: the other atomics in ordinary use.
extern "C" __global__ void extremes(const int* values, int* least, int* greatest, unsigned long long* sum,
                                    float* greatest_float, unsigned count) {
    for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < count; index += gridDim.x * blockDim.x) {
        const int value = values[index];
        atomicMin(least, value);
        atomicMax(greatest, value);
        atomicAdd(sum, static_cast<unsigned long long>(static_cast<long long>(value)));
        const float as_float = static_cast<float>(value);
        int* address = reinterpret_cast<int*>(greatest_float);
        int seen = atomicAdd(address, 0);
        while (__int_as_float(seen) < as_float) {
            const int expected = seen;
            seen = atomicCAS(address, expected, __float_as_int(as_float));
            if (seen == expected) break;
        }
    }
}
