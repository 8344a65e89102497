// The scalar pieces of the K-sample objectives, in f64: terms that are never negative, and limits without NaN.
#pragma once

#include <cmath>

namespace exo {

// weight * value, 0 for a weight of 0 even where the value is infinite: the limit that the divergences have.
__device__ __forceinline__ double product(double weight, double value) {
    return weight == 0.0 ? 0.0 : weight * value;
}

// (1 - alpha) log p + alpha log q, where 0 * (-inf) is 0.
__device__ __forceinline__ double weighted_logs(double alpha, double log_p, double log_q) {
    return product(1.0 - alpha, log_p) + product(alpha, log_q);
}

// log(1 + e^x). e^(-|x|) cannot overflow.
__device__ __forceinline__ double softplus(double x) {
    return fmax(x, 0.0) + log1p(exp(-fabs(x)));
}

// An order of divergence with what every sample divides by. A quotient in f64 is a call on its rare path: one per group
// and not one per sample.
struct Order {
    double value;         // 0 to 1/2
    double inverse;       // 1 / value; not used at 0
    double rest_inverse;  // 1 / (1 - value)
};

// The term of one sample in the divergence of order alpha <= 1/2 from p to q, a = log p - log q:
// {(1 - alpha) p + alpha q - p^(1 - alpha) q^alpha} / (alpha (1 - alpha)). Never negative, and summing to the
// divergence because the p and the q sum to 1.
__device__ __forceinline__ double alpha_term(
    const Order& order, double p, double q, double log_p, double log_q, double a
) {
    const double alpha = order.value;
    if (fabs(a) < 0.1) {
        // Sum over n >= 2 of (-a)^n / n! * (1 + alpha + ... + alpha^(n - 2)): the difference of the two exponentials
        // has lost its leading digits here.
        double power = -a, sum = 0.0, geometric = 0.0, factor = 1.0;
#pragma unroll
        for (int n = 2; n <= 12; ++n) {
            power *= -a * (1.0 / n);
            geometric += factor;
            factor *= alpha;
            sum += power * geometric;
        }
        return p * sum;
    }
    // p^(1 - alpha) q^alpha less p, over alpha.
    double excess;
    if (alpha == 0.0) {
        excess = product(p, -a);
    } else if (fabs(alpha * a) < 1.0) {
        excess = p * expm1(-alpha * a) * order.inverse;
    } else {
        excess = (exp(weighted_logs(alpha, log_p, log_q)) - p) * order.inverse;
    }
    const double difference = a > -1.0 ? p * expm1(-a) : q - p;
    return (difference - excess) * order.rest_inverse;
}

// sinh of |x| <= 1: the Taylor series; what it leaves out is below 2^-60 of the value.
__device__ __forceinline__ double sinh_of_small(double x) {
    const double square = x * x;
    double series = 1.0;
#pragma unroll
    for (int n = 18; n >= 2; n -= 2) {
        series = fma(series, square * (1.0 / (n * (n + 1))), 1.0);
    }
    return x * series;
}

// The term of one sample in the Jensen-Shannon divergence; never negative.
__device__ __forceinline__ double jensen_shannon_term(double p, double q, double log_p, double log_q, double a) {
    if (fabs(a) < 2.0) {
        // sqrt(pq) (y sinh y - cosh y log cosh y), y = a/2: near 0 a difference of y^2 and y^2/2.
        const double y = 0.5 * a;
        const double half = sinh_of_small(0.5 * y);
        const double excess = 2.0 * half * half;  // cosh y - 1
        return exp(0.5 * (log_p + log_q)) * (y * sinh_of_small(y) - (1.0 + excess) * log1p(excess));
    }
    // softplus(a) = a + softplus(-a): one of the two is enough, but for a = +-inf.
    const double small = log1p(exp(-fabs(a))), large = fabs(a) + small;
    const double log_2 = 0.6931471805599453;
    const double of_p = product(p, log_2 - (a > 0.0 ? small : large));
    const double of_q = product(q, log_2 - (a > 0.0 ? large : small));
    return 0.5 * (of_p + of_q);
}

}  // namespace exo
