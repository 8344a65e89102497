// The kernels of the README's example. block_sum.ptx is what nvcc makes of them:
//   nvcc --ptx --gpu-architecture=sm_80 block_sum.cu

// Adds up the 256 values of each block. It has a fault.
extern "C" __global__ void block_sum(const float *values, float *sums)
{
    __shared__ float partial[256];
    partial[threadIdx.x] = values[blockIdx.x * 256 + threadIdx.x];
    __syncthreads();
#pragma unroll 1
    for (unsigned step = 128; step > 0; step /= 2) {
        if (threadIdx.x < step)
            partial[threadIdx.x] += partial[threadIdx.x + step];
    }
    if (threadIdx.x == 0)
        sums[blockIdx.x] = partial[0];
}

// The same, repaired.
extern "C" __global__ void block_sum_repaired(const float *values, float *sums)
{
    __shared__ float partial[256];
    partial[threadIdx.x] = values[blockIdx.x * 256 + threadIdx.x];
    __syncthreads();
#pragma unroll 1
    for (unsigned step = 128; step > 0; step /= 2) {
        if (threadIdx.x < step)
            partial[threadIdx.x] += partial[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        sums[blockIdx.x] = partial[0];
}
