// What only independent thread scheduling and a real call stack can do.

// Every thread adds to a counter that is not atomic, under a lock: lanes of a warp contend with each other. Where a
// warp ran in lockstep until it converged, the lane that has the lock would wait for the lanes that spin on it, for
// ever.
extern "C" __global__ void spin_lock(unsigned* lock, unsigned* counter, unsigned rounds) {
    for (unsigned round = 0; round < rounds; round++) {
        while (atomicCAS(lock, 0u, 1u) != 0u) {
        }
        __threadfence();
        *reinterpret_cast<volatile unsigned*>(counter) = *reinterpret_cast<volatile unsigned*>(counter) + 1;
        __threadfence();
        atomicExch(lock, 0u);
    }
}

// Odd lanes wait for even lanes of the same warp by a flag in shared memory.
extern "C" __global__ void lane_waits(unsigned* out) {
    __shared__ unsigned flags[32];
    flags[threadIdx.x] = 0;
    __syncwarp();
    if (threadIdx.x % 2 == 1) {
        while (atomicAdd(&flags[threadIdx.x - 1], 0u) == 0u) {
        }
        out[threadIdx.x] = 100 + threadIdx.x;
    } else {
        out[threadIdx.x] = threadIdx.x;
        __threadfence_block();
        atomicExch(&flags[threadIdx.x], 1u);
    }
}

// Fibonacci by two calls of itself: each lane as deep as its own argument.
__device__ __noinline__ unsigned fibonacci(unsigned n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

extern "C" __global__ void recursion(const unsigned* n, unsigned* out) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    out[index] = fibonacci(n[index]);
}

// A call through a table: lanes of one warp go to different functions.
typedef int (*operation)(int, int);
__device__ __noinline__ int add(int a, int b) { return a + b; }
__device__ __noinline__ int subtract(int a, int b) { return a - b; }
__device__ __noinline__ int multiply(int a, int b) { return a * b; }
__device__ __noinline__ int divide(int a, int b) { return b == 0 ? 0 : a / b; }
__device__ operation operations[4] = {add, subtract, multiply, divide};

extern "C" __global__ void calls_through_table(const int* a, const int* b, const unsigned* which, int* out) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    out[index] = operations[which[index]](a[index], b[index]);
}

// An array in local memory with computed indices, a table in constant memory, a switch that becomes a branch table.
__constant__ int weights[8] = {3, 1, 4, 1, 5, 9, 2, 6};

extern "C" __global__ void local_memory(const int* values, int* out) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    int kept[16];
    for (int i = 0; i < 16; i++) kept[i] = values[index] * weights[i % 8] + i;
    int at = values[index] & 15, sum = 0;
    for (int step = 0; step < 20; step++) {
        switch (kept[at] & 7) {
            case 0:
                sum += kept[at];
                break;
            case 1:
                sum ^= kept[at] << 1;
                break;
            case 2:
                sum -= 7;
                break;
            case 3:
                kept[at] += 5;
                break;
            case 4:
                sum = sum * 3 + 1;
                break;
            case 5:
                sum = (sum >> 1) ^ at;
                break;
            case 6:
                kept[(at + 3) & 15] ^= sum;
                break;
            default:
                sum += step;
                break;
        }
        at = (at + (kept[at] & 15) + 1) & 15;
    }
    out[index] = sum;
}

// A loop whose length differs by lane, left early by some: then all meet in a shuffle.
extern "C" __global__ void collatz(const unsigned* start, unsigned* steps, unsigned* warp_most) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned long long value = start[index];
    unsigned count = 0;
    while (value != 1) {
        value = value % 2 == 0 ? value / 2 : 3 * value + 1;
        if (++count == 100) break;
    }
    steps[index] = count;
    __syncwarp();
    unsigned most = count;
    for (int offset = 16; offset > 0; offset /= 2) {
        const unsigned other = __shfl_xor_sync(0xffffffffu, most, offset);
        most = other > most ? other : most;
    }
    if (threadIdx.x % 32 == 0) warp_most[index / 32] = most;
}
