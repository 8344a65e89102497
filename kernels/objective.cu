// Log-ratios and rewards -> the loss of each group, d loss / d log-ratio of each sequence, statistics; all in f64.
//
// One warp per group of any size: lane l has the samples l, l + 32, ... Those below 32 stay in registers from pass to
// pass, the others are computed again in each. Sums are a lane's, in order, and then a butterfly's: the bits of a group
// depend on that group alone.
//
// The centred form of src/cpu/objective.rs, with f the implicit rewards, s the target's logits and m the index of the
// largest f: d_i = (f_i - f_m) - (s_i - s_m), in which both softmax normalisers have cancelled; a_i = log p_i - log q_i
// = d_i - c; a loss is a sum of terms that are never negative; the gradient of the largest p is minus the others' sum.

#include <cstdint>

#include "include/objective_arguments.cuh"
#include "include/objective_math.cuh"
#include "include/status.cuh"
#include "include/warp_reduce.cuh"

namespace exo {

constexpr int THREADS = 128;
constexpr int GROUPS_PER_BLOCK = THREADS / 32;
// e^-10: what the official code's preference target gives the loser, not normalised.
constexpr double OFFICIAL_LOSER = 4.539992976248485e-5;
constexpr double LOG1P_OFFICIAL_LOSER = 4.5398899216864647e-5;
constexpr uint32_t NONE = 0xffffffffu;

__device__ __forceinline__ bool is_finite(double value) {
    return fabs(value) < INFINITY;
}

// Of one sample: the policy's and the target's logit, the proposal's offset on both.
struct Logits {
    double f;
    double s;
};

struct Sample {
    double p;
    double log_p;
    double log_q;
    double d;
};

// The largest of some values and the first place that has it.
struct Largest {
    double value = -INFINITY;
    uint32_t place = NONE;

    __device__ __forceinline__ void see(double candidate, uint32_t at) {
        // Places come in ascending order. -inf has a place too.
        if (place == NONE || candidate > value) {
            value = candidate;
            place = at;
        }
    }

    __device__ __forceinline__ Largest of_warp() const {
        Largest largest;
        largest.value = warp_max(value);
        largest.place = warp_min(value == largest.value ? place : NONE);
        return largest;
    }
};

// -log sum p e^(-alpha d), where every alpha d is small, or its sample's part in the sum is: then what the sum has
// beside 1 is what matters.
struct SmallShift {
    double sum = 0.0;
    bool harmful = false;

    __device__ __forceinline__ void see(const Sample& x, double alpha) {
        const double exponent = -alpha * x.d;
        // p e^x - p; a large x goes with a small p.
        const double term = exponent < 1.0 ? product(x.p, expm1(exponent)) : exp(x.log_p + exponent) - x.p;
        // Also true for NaN.
        harmful |= !(fabs(exponent) < 0.5 || fabs(term) < 1e-3);
        sum += term;
    }
};

// A group, the same in every lane but for what the lane holds.
struct Group {
    const ObjectiveArguments& a;
    int64_t first;
    uint32_t k;
    uint32_t lane;
    // A preference's logits.
    double best_reward = 0.0;
    double log_winner = 0.0;
    double log_loser = 0.0;
    // f and the place of the largest f; s there; s and the place of the largest s.
    Largest top;
    double s_top = 0.0;
    Largest favourite;
    // Of exp(f - f_m) and exp(s - s_favourite).
    double f_log_sum = 0.0;
    double s_log_sum = 0.0;
    // a = d - shift.
    double shift = 0.0;
    double squares = 0.0;
    double rest = 0.0;
    int32_t largest_targets = 0;
    Logits held_logits;
    Sample held;

    __device__ __forceinline__ Group(const ObjectiveArguments& arguments, int64_t group) : a(arguments) {
        first = a.group_offsets[group];
        k = static_cast<uint32_t>(a.group_offsets[group + 1] - first);
        lane = threadIdx.x % 32;
    }

    __device__ __forceinline__ double reward(uint32_t i) const {
        return a.reward_bytes == 8 ? static_cast<const double*>(a.rewards)[first + i]
                                   : static_cast<double>(static_cast<const float*>(a.rewards)[first + i]);
    }

    __device__ __forceinline__ double offset(uint32_t i) const {
        return a.proposal_offsets == nullptr ? 0.0 : a.proposal_offsets[first + i];
    }

    // Each operation rounded by itself, never fused: f has the CPU's bits, and samples that tie in f still tie when the
    // largest is taken away (fused with that, the product would leave its rounding error between them).
    __device__ __forceinline__ double policy_logit(uint32_t i) const {
        return __dadd_rn(__dmul_rn(a.beta_policy, a.log_ratios[first + i]), offset(i));
    }

    __device__ __forceinline__ double target_logit(uint32_t i) const {
        const double value = reward(i);
        double log_q = value;
        if (a.target == TARGET_REWARDS) {
            log_q = value / a.beta_reward;
        } else if (a.target != TARGET_DISTRIBUTION) {
            log_q = k == 1 ? 0.0 : value == best_reward ? log_winner : log_loser;
        }
        return __dadd_rn(log_q, offset(i));
    }

    __device__ __forceinline__ Logits logits(uint32_t i) const {
        return {policy_logit(i), target_logit(i)};
    }

    __device__ __forceinline__ Sample centred(const Logits& x, uint32_t i) const {
        Sample sample;
        // Places and not values: a single -inf or +inf has no difference to itself.
        const double f_from_top = i == top.place ? 0.0 : x.f - top.value;
        sample.log_p = f_from_top - f_log_sum;
        sample.p = exp(sample.log_p);
        sample.log_q = (x.s - favourite.value) - s_log_sum;
        if (s_top == -INFINITY) {
            // Nothing to centre on, and nothing near the optimum either.
            sample.d = sample.log_p - sample.log_q;
        } else {
            sample.d = i == top.place ? 0.0 : f_from_top - (x.s - s_top);
        }
        return sample;
    }

    template <typename Held, typename Make, typename Visit>
    __device__ __forceinline__ void each(const Held& of_lane, Make make, Visit visit) const {
        Held x = of_lane;
#pragma unroll 1
        for (uint32_t i = lane; i < k; i += 32) {
            if (i >= 32) {
                x = make(i);
            }
            visit(i, x);
        }
    }

    template <typename Visit>
    __device__ __forceinline__ void each_logits(Visit visit) const {
        each(held_logits, [&](uint32_t i) { return logits(i); }, visit);
    }

    template <typename Visit>
    __device__ __forceinline__ void each_sample(Visit visit) const {
        each(held, [&](uint32_t i) { return centred(logits(i), i); }, visit);
    }

    // The first sample whose reward, log q or offset the host would have refused; NONE: there is none.
    __device__ __forceinline__ uint32_t first_refused() const {
        const bool zero_refused = a.divergence == REVERSE_KL || (a.divergence == ALPHA && a.alpha == 0.0);
        uint32_t refused = NONE;
        bool some_target = false;
#pragma unroll 1
        for (uint32_t i = lane; i < k; i += 32) {
            const double value = reward(i);
            bool fits = is_finite(value) && (a.target != TARGET_REWARDS || is_finite(value / a.beta_reward));
            if (a.target == TARGET_DISTRIBUTION && value == -INFINITY) {
                fits = !zero_refused;
            }
            some_target |= value > -INFINITY;
            if (!(fits && is_finite(offset(i)))) {
                refused = min(refused, i);
            }
        }
        refused = warp_min(refused);
        // A target that gives the whole group nothing.
        return refused == NONE && !warp_any(some_target) ? 0 : refused;
    }

    __device__ __forceinline__ void prepare_preference() {
        Largest best;
#pragma unroll 1
        for (uint32_t i = lane; i < k; i += 32) {
            best.see(reward(i), i);
        }
        best_reward = warp_max(best.value);
        int32_t count = 0;
#pragma unroll 1
        for (uint32_t i = lane; i < k; i += 32) {
            count += reward(i) == best_reward;
        }
        const double tied = warp_sum(count);
        double winner = 1.0, loser = OFFICIAL_LOSER;
        if (a.target == TARGET_PREFERENCE) {
            winner = 1.0 - a.label_smoothing;
            loser = a.label_smoothing / static_cast<double>(k - 1);
        }
        // Each of the tied is the winner in one of `tied` draws and a loser in the others.
        log_winner = log((winner + (tied - 1.0) * loser) / tied);
        log_loser = log(loser);
    }

    // The largest f and s; whether an f is NaN.
    __device__ __forceinline__ bool find_largest() {
        held_logits = lane < k ? logits(lane) : Logits{-INFINITY, -INFINITY};
        Largest f, s;
        bool has_nan = false;
        each_logits([&](uint32_t i, const Logits& x) {
            f.see(x.f, i);
            s.see(x.s, i);
            has_nan |= isnan(x.f);
        });
        favourite = s.of_warp();
        has_nan = warp_any(has_nan);
        top = f.of_warp();
        return has_nan;
    }

    // The normalisers, and what the statistics need of the logits.
    __device__ __forceinline__ void add_up() {
        double f_sum = 0.0, s_sum = 0.0;
        each_logits([&](uint32_t i, const Logits& x) {
            f_sum += i == top.place ? 0.0 : exp(x.f - top.value);
            s_sum += i == favourite.place ? 0.0 : exp(x.s - favourite.value);
            rest += i == favourite.place ? 0.0 : x.f;
            largest_targets += x.s == favourite.value;
        });
        f_log_sum = log1p(warp_sum(f_sum));
        s_log_sum = log1p(warp_sum(s_sum));
        rest = warp_sum(rest);
        largest_targets = warp_sum(largest_targets);
    }

    // p, log p, log q, d; the shift from d to a.
    __device__ __forceinline__ void make_distributions() {
        s_top = target_logit(top.place);
        held = lane < k ? centred(held_logits, lane) : Sample{0.0, -INFINITY, -INFINITY, 0.0};
        SmallShift small;
        each_sample([&](uint32_t, const Sample& x) {
            squares += x.p * x.p;
            small.see(x, 1.0);
        });
        squares = warp_sum(squares);
        const bool harmful = warp_any(small.harmful);
        const double sum = warp_sum(small.sum);
        if (s_top == -INFINITY) {
            shift = 0.0;
        } else if (harmful) {
            shift = f_log_sum + ((s_top - favourite.value) - s_log_sum);
        } else {
            shift = -log1p(sum);
        }
    }

    __device__ __forceinline__ void write(uint32_t i, double gradient) const {
        const int64_t sequence = first + i;
        const double coefficient = a.beta_policy * a.weight * gradient;
        a.coefficients[sequence] = coefficient;
        if (a.sequence_weights != nullptr) {
            const double share = a.mean == 0 ? 1.0 : 1.0 / static_cast<double>(max(a.scored_rows[sequence], 1));
            a.sequence_weights[sequence] = coefficient * share;
        }
    }

    __device__ __forceinline__ void write_all(double gradient) const {
#pragma unroll 1
        for (uint32_t i = lane; i < k; i += 32) {
            write(i, gradient);
        }
    }

    // Sums the terms of the loss and writes the gradients that `of_sample` gives as (gradient, term).
    template <typename OfSample>
    __device__ __forceinline__ double write_gradients(OfSample of_sample) const {
        double loss = 0.0, others = 0.0;
        each_sample([&](uint32_t i, const Sample& x) {
            double gradient, term;
            of_sample(x, gradient, term);
            loss += term;
            if (i != top.place) {
                others += gradient;
                write(i, gradient);
            }
        });
        // What rounding leaves of the sum goes to the sample with the largest p, where it is smallest beside the true
        // value's terms.
        others = warp_sum(others);
        if (lane == top.place % 32) {
            write(top.place, -others);
        }
        return warp_sum(loss);
    }

    // KL(p|q), KL(q|p) or cross-entropy, and what lies between.
    __device__ __forceinline__ double alpha_divergence() const {
        const double alpha = a.divergence == REVERSE_KL ? 0.0 : a.divergence == FORWARD_KL ? 1.0 : a.alpha;
        // The divergence of order alpha from p to q is that of order 1 - alpha from q to p.
        const bool swapped = alpha > 0.5;
        const double value = swapped ? 1.0 - alpha : alpha;
        const Order order = {value, 1.0 / value, 1.0 / (1.0 - value)};

        // At order 0: the mean of d. Else: W = sum of p^(1 - alpha) q^alpha, and log p - log v = alpha a + log W with
        // v = p^(1 - alpha) q^alpha / W; in centred form alpha d less a shift of its own.
        double mean = 0.0, log_total = 0.0, scale = 0.0, small_shift = 0.0;
        bool is_small = false;
        if (alpha == 0.0) {
            each_sample([&](uint32_t, const Sample& x) { mean += product(x.p, x.d); });
            mean = warp_sum(mean);
        } else {
            double largest = -INFINITY, total = 0.0;
            SmallShift small;
            each_sample([&](uint32_t, const Sample& x) {
                largest = fmax(largest, weighted_logs(alpha, x.log_p, x.log_q));
                small.see(x, alpha);
            });
            largest = warp_max(largest);
            is_small = !warp_any(small.harmful);
            small_shift = -log1p(warp_sum(small.sum));
            each_sample([&](uint32_t, const Sample& x) {
                // Without one sample in common the largest is -inf, and so is the logarithm of the sum.
                total += largest == -INFINITY ? 0.0 : exp(weighted_logs(alpha, x.log_p, x.log_q) - largest);
            });
            log_total = largest == -INFINITY ? -INFINITY : largest + log(warp_sum(total));
            scale = exp(log_total) / alpha;
        }

        return write_gradients([&](const Sample& x, double& gradient, double& term) {
            if (alpha == 0.0) {
                gradient = product(x.p, x.d - mean);
            } else if (log_total == -INFINITY) {
                // W = 0, and stays so to first order.
                gradient = 0.0;
            } else {
                const double b = is_small ? alpha * x.d - small_shift : alpha * (x.d - shift) + log_total;
                // p - v, through expm1 where they are close.
                const double difference = fabs(b) < 1.0
                    ? -x.p * expm1(-b)
                    : x.p - exp(weighted_logs(alpha, x.log_p, x.log_q) - log_total);
                gradient = scale * difference;
            }
            const double q = exp(x.log_q), log_ratio = x.d - shift;
            if (a.divergence == FORWARD_KL) {
                term = product(q, -x.log_p);
            } else if (swapped) {
                term = alpha_term(order, q, x.p, x.log_q, x.log_p, -log_ratio);
            } else {
                term = alpha_term(order, x.p, q, x.log_p, x.log_q, log_ratio);
            }
        });
    }

    // KL(p|m)/2 + KL(q|m)/2, m = (p + q)/2; gradient p (psi - sum of p psi), psi = log(p/m)/2 up to a constant.
    __device__ __forceinline__ double jensen_shannon() const {
        // d of the top is 0, or +inf where its q is 0.
        const double a_top = s_top == -INFINITY ? INFINITY : 0.0 - shift;
        const double softplus_top = softplus(-a_top), sigmoid_top = 1.0 / (1.0 + exp(a_top));
        // (softplus(-a_m) - softplus(-a_i))/2, in one logarithm unless that would overflow.
        const auto psi = [&](const Sample& x) {
            if (a_top == INFINITY || x.d < -30.0) {
                return 0.5 * (softplus_top - softplus(shift - x.d));
            }
            return -0.5 * log1p(sigmoid_top * expm1(-x.d));
        };
        double mean = 0.0;
        each_sample([&](uint32_t, const Sample& x) { mean += x.p > 0.0 ? x.p * psi(x) : 0.0; });
        mean = warp_sum(mean);
        return write_gradients([&](const Sample& x, double& gradient, double& term) {
            gradient = x.p > 0.0 ? x.p * (psi(x) - mean) : 0.0;
            term = jensen_shannon_term(x.p, exp(x.log_q), x.log_p, x.log_q, x.d - shift);
        });
    }

    // The loss; writes the coefficients.
    __device__ __forceinline__ double loss() {
        if (top.value == -INFINITY && k > 1) {
            // The policy can produce none of them: there is no p to pull.
            write_all(0.0);
            return INFINITY;
        }
        make_distributions();
        if (k == 1) {
            write_all(0.0);
            return 0.0;
        }
        if (a.divergence == JENSEN_SHANNON) {
            return jensen_shannon();
        }
        const double loss = alpha_divergence();
        const bool is_official = a.target == TARGET_OFFICIAL_PREFERENCE && a.divergence == REVERSE_KL;
        return is_official ? loss - LOG1P_OFFICIAL_LOSER : loss;
    }

    // Where NaN has come in: through all of the group, and into no other.
    __device__ __forceinline__ double poison() {
        squares = NAN;
        write_all(NAN);
        return NAN;
    }
};

__device__ __forceinline__ void write_statistics(const Group& group, int64_t index) {
    GroupStatistics statistics;
    statistics.effective_sample_size = group.squares == 0.0 ? 0.0 : 1.0 / group.squares;
    const double others = static_cast<double>(group.k - 1);
    statistics.margin = group.k == 1 ? 0.0 : group.policy_logit(group.favourite.place) - group.rest / others;
    statistics.agrees = !isnan(group.squares) && group.target_logit(group.top.place) == group.favourite.value;
    statistics.tied = group.largest_targets > 1;
    group.a.statistics[index] = statistics;
}

}  // namespace exo

// Grid: ceil(G / GROUPS_PER_BLOCK) blocks. Block: THREADS.
// One block per multiprocessor asked for at least: left to itself, the compiler spills for sm_120.
extern "C" __global__ void __launch_bounds__(exo::THREADS, 1)
    objective(const __grid_constant__ exo::ObjectiveArguments a) {
    using namespace exo;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * GROUPS_PER_BLOCK + threadIdx.x / 32;
    if (index >= a.groups) {
        return;
    }
    Group group(a, index);
    const uint32_t refused = group.first_refused();
    double loss;
    if (refused != NONE) {
        loss = group.poison();
        if (group.lane == 0) {
            if (a.status != nullptr) {
                record_first(&a.status->first_bad_reward_sequence, static_cast<uint32_t>(group.first + refused));
            }
            a.group_losses[index] = loss;
            if (a.statistics != nullptr) {
                a.statistics[index] = {NAN, NAN, 0, 0};
            }
        }
        return;
    }
    if (a.target != TARGET_REWARDS && a.target != TARGET_DISTRIBUTION && group.k > 1) {
        group.prepare_preference();
    }
    const bool has_nan = group.find_largest();
    group.add_up();
    loss = has_nan ? group.poison() : group.loss();
    if (group.lane == 0) {
        a.group_losses[index] = loss;
        if (a.statistics != nullptr) {
            write_statistics(group, index);
        }
    }
}
