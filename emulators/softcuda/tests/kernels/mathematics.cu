// The functions of the device's mathematics library, accurate and fast, in f32 and f64: one row of out each.

extern "C" __global__ void functions_f32(const float* values, float* out, unsigned count) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const float x = values[index];
    const float rows[] = {expf(x),         exp2f(x),         logf(fabsf(x)), log1pf(fabsf(x)),
                          sqrtf(fabsf(x)), rsqrtf(fabsf(x)), 1.0f / x,       sinf(x),
                          cosf(x),         tanhf(x),         erff(x),        expm1f(x),
                          x / 3.0f,        fmodf(x, 0.7f),   cbrtf(x),       powf(fabsf(x), 1.5f)};
    for (unsigned row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) out[row * count + index] = rows[row];
}

extern "C" __global__ void fast_functions_f32(const float* values, float* out, unsigned count) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const float x = values[index];
    float tanh_approx;
    asm("tanh.approx.f32 %0, %1;" : "=f"(tanh_approx) : "f"(x));
    const float rows[] = {__expf(x), __logf(fabsf(x)),    __log2f(fabsf(x)),      __sinf(x),
                          __cosf(x), __fdividef(1.0f, x), __powf(fabsf(x), 1.5f), tanh_approx};
    for (unsigned row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) out[row * count + index] = rows[row];
}

extern "C" __global__ void functions_f64(const double* values, double* out, unsigned count) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const double x = values[index];
    const double rows[] = {exp(x), log(fabs(x)), sqrt(fabs(x)), 1.0 / x, sin(x), tanh(x), x / 3.0, rint(x)};
    for (unsigned row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) out[row * count + index] = rows[row];
}

// Integers: rows of 64-bit results.
extern "C" __global__ void integers(const long long* left, const long long* right, long long* out, unsigned count) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const long long a = left[index], b = right[index];
    const int narrow_a = static_cast<int>(a), narrow_b = static_cast<int>(b);
    const unsigned plain_a = static_cast<unsigned>(a), plain_b = static_cast<unsigned>(b);
    const long long rows[] = {
        a / b,
        a % b,
        narrow_a / (narrow_b == 0 ? 1 : narrow_b),
        plain_a % (plain_b == 0 ? 1 : plain_b),
        __mul64hi(a, b),
        __mulhi(narrow_a, narrow_b),
        __umulhi(plain_a, plain_b),
        __clz(narrow_a),
        __clzll(a),
        __popc(plain_a),
        __popcll(static_cast<unsigned long long>(a)),
        static_cast<long long>(__brev(plain_a)),
        __ffsll(a),
        static_cast<long long>(__byte_perm(plain_a, plain_b, plain_b & 0x7777)),
        static_cast<long long>(__funnelshift_l(plain_a, plain_b, plain_a & 31)),
        static_cast<long long>(__funnelshift_r(plain_a, plain_b, plain_b & 31)),
        __dp4a(narrow_a, narrow_b, 7),
        static_cast<long long>(__dp4a(plain_a, plain_b, 7u)),
        static_cast<long long>(__usad(plain_a, plain_b, 5u)),
        static_cast<long long>(__vaddus4(plain_a, plain_b)),
        a >> (b & 63),
        static_cast<long long>(static_cast<unsigned long long>(a) << (b & 63)),
        __hadd(narrow_a, narrow_b),
        static_cast<long long>(static_cast<short>(a)) * static_cast<short>(b),
    };
    for (unsigned row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) out[row * count + index] = rows[row];
}
