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

// What a 1 of a group's logits, and of all differences of logits, stands for in nats: 1, but where the logits are so
// large that a difference or a sum of them would be no f64. A power of two, so nothing is rounded by it.
struct Unit {
    double nats;
    double inverse;  // 1 / nats

    // For the largest size of a logit: +inf where beta_policy times a log-ratio is no f64; beta_policy is below 2^665.
    static __device__ __forceinline__ Unit for_size(double largest) {
        if (largest < 0x1p900) {
            return {1.0, 1.0};
        }
        return largest < INFINITY ? Unit{0x1p64, 0x1p-64} : Unit{0x1p700, 0x1p-700};
    }
};

struct Sample {
    double p;
    double log_p;
    double log_q;
    double d;
};

// Orders below this are 0 in all but samples whose alpha d is not small. From here on an error of 2^-1074, where f64
// ends, in alpha d is divided by alpha without coming into the normal range.
constexpr double SMALLEST_ORDER = 0x1p-50;

// An order of divergence with what every sample divides by. A quotient in f64 is a call on its rare path: one per group
// and not one per sample. An alpha below the normal range has no inverse: there it comes in two factors.
struct Order {
    double value;         // 0 to 1
    double inverse;       // 1 / (value * lift), in the unit; not used at 0
    double rest_inverse;  // 1 / (1 - value)
    double nats;
    double per_nat;
    double lift;  // 1, or 2^64 where 1 / value may be no f64

    static __device__ __forceinline__ Order make(double value, const Unit& unit) {
        const double lift = value < 0x1p-900 ? 0x1p64 : 1.0;
        return {value, 1.0 / (value * lift) * unit.inverse, 1.0 / (1.0 - value), unit.nats, unit.inverse, lift};
    }

    // alpha x in nats, 0 for alpha = 0 even where x is infinite.
    __device__ __forceinline__ double exponent(double x) const {
        return product(value, x) * nats;
    }

    // (1 - e^(-alpha x)) / alpha: x as alpha goes to 0, where alpha x has lost its digits.
    __device__ __forceinline__ double excess(double x) const {
        const double y = exponent(x);
        return fabs(y) < 0x1p-54 ? x : -expm1(-y) * inverse * lift;
    }

    // p times the excess of d; a large -alpha d goes with a small p.
    __device__ __forceinline__ double weighted_excess(const Sample& x) const {
        const double y = exponent(x.d);
        // p^(1 - alpha) is 0, whatever -alpha d.
        if (x.log_p == -INFINITY) {
            return 0.0;
        }
        return y > -1.0 ? product(x.p, excess(x.d)) : (x.p - exp(x.log_p * nats - y)) * inverse * lift;
    }
};

// -log sum p e^(-alpha d), where every alpha d is small, or its sample's part in the sum is: then what the sum has
// beside 1 is what matters.
struct SmallShift {
    double sum = 0.0;
    bool harmful = false;

    __device__ __forceinline__ void see(const Sample& x, const Order& order) {
        const double exponent = -order.exponent(x.d);
        // p e^x - p; a large x goes with a small p.
        double term =
            exponent < 1.0 ? product(x.p, expm1(exponent)) : exp(x.log_p * order.nats + exponent) - x.p;
        bool is_harmful = !(fabs(exponent) < 0.5 || fabs(term) < 1e-3);
        if (x.log_p == -INFINITY && order.value < 1.0) {
            // p^(1 - alpha) is 0.
            term = 0.0;
            is_harmful = false;
        }
        // Also true for NaN.
        harmful |= is_harmful;
        sum += term;
    }
};

// a b c where no product on the way is too large or too small if the result is not: the largest takes the smallest
// first.
__device__ __forceinline__ double product_of_three(double a, double b, double c) {
    const double large = fmax(a, b), small = fmin(a, b), size = fabs(c);
    const double first = size >= large ? c * small : size <= small ? large * c : large * small;
    return first * (size >= large ? large : size <= small ? small : c);
}

// The term of one sample in the divergence of order alpha <= 1/2 from p to q, a = log p - log q:
// {(1 - alpha) p + alpha q - p^(1 - alpha) q^alpha} / (alpha (1 - alpha)). Never negative, and summing to the
// divergence because the p and the q sum to 1. In the unit of the logarithms.
__device__ __forceinline__ double alpha_term(
    const Order& order, double p, double q, double log_p, double log_q, double a
) {
    const double alpha = order.value, nats = a * order.nats, per_nat = order.per_nat;
    if (fabs(nats) < 0.1) {
        // Sum over n >= 2 of (-a)^n / n! * (1 + alpha + ... + alpha^(n - 2)): the difference of the two exponentials
        // has lost its leading digits here.
        double power = -nats, sum = 0.0, geometric = 0.0, factor = 1.0;
#pragma unroll
        for (int n = 2; n <= 12; ++n) {
            power *= -nats * (1.0 / n);
            geometric += factor;
            factor *= alpha;
            sum += power * geometric;
        }
        return p * sum * per_nat;
    }
    // p less p^(1 - alpha) q^alpha, over alpha.
    const double excess = fabs(order.exponent(a)) < 1.0
        ? product(p, order.excess(a))
        : (p - exp(weighted_logs(alpha, log_p, log_q) * order.nats)) * order.inverse * order.lift;
    const double difference = nats > -1.0 ? product(p, expm1(-nats)) : q - p;
    return (difference * per_nat + excess) * order.rest_inverse;
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
