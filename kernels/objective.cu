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
    // What f, s, all differences of them, the loss and the gradients are in.
    Unit unit = {1.0, 1.0};
    // Of exp(f - f_m) and exp(s - s_favourite).
    double f_log_sum = 0.0;
    double s_log_sum = 0.0;
    // a = d - shift, near enough to the top.
    double shift = 0.0;
    bool some_are_far = false;
    double squares = 0.0;
    double margin = 0.0;
    double agreement = 0.0;
    int32_t favourites = 0;
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
        return __dadd_rn(__dmul_rn(a.beta_policy * unit.inverse, a.log_ratios[first + i]), offset(i) * unit.inverse);
    }

    // In nats, without the proposal's offset.
    __device__ __forceinline__ double target_log_q(uint32_t i) const {
        const double value = reward(i);
        double log_q = value;
        if (a.target == TARGET_REWARDS) {
            log_q = value / a.beta_reward;
        } else if (a.target != TARGET_DISTRIBUTION) {
            log_q = k == 1 ? 0.0 : value == best_reward ? log_winner : log_loser;
        }
        return log_q;
    }

    __device__ __forceinline__ double target_logit(uint32_t i) const {
        return __dadd_rn(target_log_q(i) * unit.inverse, offset(i) * unit.inverse);
    }

    __device__ __forceinline__ Logits logits(uint32_t i) const {
        return {policy_logit(i), target_logit(i)};
    }

    __device__ __forceinline__ Sample centred(const Logits& x, uint32_t i) const {
        Sample sample;
        // Places and not values: a single -inf or +inf has no difference to itself.
        const double f_from_top = i == top.place ? 0.0 : x.f - top.value;
        sample.log_p = f_from_top - f_log_sum;
        sample.p = exp(sample.log_p * unit.nats);
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
        double winner = 1.0, loser = OFFICIAL_LOSER, others = 1.0;
        if (a.target == TARGET_PREFERENCE) {
            winner = 1.0 - a.label_smoothing;
            loser = a.label_smoothing;
            others = static_cast<double>(k - 1);
        }
        // Each of the tied is the winner in one of `tied` draws and a loser in the others.
        log_winner = log((winner + (tied - 1.0) * (loser / others)) / tied);
        // The quotient may be below every f64.
        log_loser = log(loser) - log(others);
    }

    // The unit that keeps all sums of logits in range.
    __device__ __forceinline__ void choose_unit() {
        double largest = 0.0;
#pragma unroll 1
        for (uint32_t i = lane; i < k; i += 32) {
            const double log_ratio = a.log_ratios[first + i], log_q = target_log_q(i);
            largest = fmax(largest, is_finite(log_ratio) ? fabs(a.beta_policy * log_ratio) : 0.0);
            largest = fmax(largest, is_finite(log_q) ? fabs(log_q) : 0.0);
            largest = fmax(largest, fabs(offset(i)));
        }
        unit = Unit::for_size(warp_max(largest));
    }

    // The largest f and s; whether an f is NaN, or +inf.
    __device__ __forceinline__ bool find_largest() {
        held_logits = lane < k ? logits(lane) : Logits{-INFINITY, -INFINITY};
        Largest f, s;
        bool has_nan = false;
        each_logits([&](uint32_t i, const Logits& x) {
            f.see(x.f, i);
            s.see(x.s, i);
            has_nan |= !(x.f < INFINITY);
        });
        favourite = s.of_warp();
        has_nan = warp_any(has_nan);
        top = f.of_warp();
        return has_nan;
    }

    // The normalisers.
    __device__ __forceinline__ void add_up() {
        double f_sum = 0.0, s_sum = 0.0;
        each_logits([&](uint32_t i, const Logits& x) {
            f_sum += i == top.place ? 0.0 : exp((x.f - top.value) * unit.nats);
            s_sum += i == favourite.place ? 0.0 : exp((x.s - favourite.value) * unit.nats);
        });
        f_log_sum = log1p(warp_sum(f_sum)) * unit.inverse;
        s_log_sum = log1p(warp_sum(s_sum)) * unit.inverse;
    }

    // Whose favourite is whose. Each favourite of the target less the mean of all but it, averaged: with W favourites,
    // F their mean and R the sum of the rest, ((K - W) F - R) / (K - 1).
    __device__ __forceinline__ void rank() {
        double of_favourites = 0.0, rest = 0.0;
        int32_t leaders = 0, both = 0;
        each_logits([&](uint32_t, const Logits& x) {
            const bool is_favourite = x.s == favourite.value, is_leader = x.f == top.value;
            (is_favourite ? of_favourites : rest) += x.f;
            favourites += is_favourite;
            leaders += is_leader;
            both += is_favourite && is_leader;
        });
        of_favourites = warp_sum(of_favourites);
        rest = warp_sum(rest);
        favourites = warp_sum(favourites);
        agreement = static_cast<double>(warp_sum(both)) / static_cast<double>(warp_sum(leaders));
        const double count = favourites, others = k - count, all_but_one = k - 1.0;
        const double mean = of_favourites / count;
        margin = others == 0.0 ? 0.0 : (mean * (others / all_but_one) - rest / all_but_one) * unit.nats;
    }

    // p, log p, log q, d; the shift from d to a.
    __device__ __forceinline__ void make_distributions() {
        s_top = target_logit(top.place);
        held = lane < k ? centred(held_logits, lane) : Sample{0.0, -INFINITY, -INFINITY, 0.0};
        SmallShift small;
        const Order order = Order::make(1.0, unit);
        each_sample([&](uint32_t, const Sample& x) {
            squares += x.p * x.p;
            small.see(x, order);
        });
        squares = warp_sum(squares);
        some_are_far = warp_any(small.harmful);
        const double sum = warp_sum(small.sum);
        if (s_top == -INFINITY) {
            shift = 0.0;
        } else if (some_are_far) {
            shift = f_log_sum + ((s_top - favourite.value) - s_log_sum);
        } else {
            shift = -log1p(sum) * unit.inverse;
        }
    }

    // a = log p - log q. Of a sample that is far from the top, but not far down in p and q, d - shift has the top's digits
    // only.
    __device__ __forceinline__ double log_ratio(const Sample& x) const {
        const bool is_far = some_are_far && fabs(x.d) > 4.0 * (fabs(x.log_p) + fabs(x.log_q));
        return is_far ? x.log_p - x.log_q : x.d - shift;
    }

    __device__ __forceinline__ void write(uint32_t i, double gradient) const {
        const int64_t sequence = first + i;
        const double in_nats = gradient * unit.nats;
        // A gradient of either infinity in nats may be small enough with beta and the weight.
        const bool fits = is_finite(in_nats);
        const double coefficient =
            product_of_three(a.beta_policy, a.weight, fits ? in_nats : gradient) * (fits ? 1.0 : unit.nats);
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
        const Order order = Order::make(alpha, unit), loss_order = Order::make(swapped ? 1.0 - alpha : alpha, unit);

        // W = sum of p^(1 - alpha) q^alpha, and log p - log v = alpha a + log W with v = p^(1 - alpha) q^alpha / W; in
        // centred form alpha d less a shift of its own. Next to order 0 p - v has no digits: there the gradient is
        // e^(alpha c) p (x - sum of p x), x = (1 - e^(-alpha d)) / alpha, and in the limit p (d - sum of p d).
        double mean = 0.0, log_total = 0.0, scale = 0.0, small_shift = 0.0, largest = -INFINITY;
        SmallShift small;
        each_sample([&](uint32_t, const Sample& x) {
            largest = fmax(largest, weighted_logs(alpha, x.log_p, x.log_q) * unit.nats);
            small.see(x, order);
        });
        const bool is_small = !warp_any(small.harmful);
        const bool is_next_to_zero = alpha < SMALLEST_ORDER && is_small;
        if (is_next_to_zero) {
            each_sample([&](uint32_t, const Sample& x) { mean += order.weighted_excess(x); });
            mean = warp_sum(mean);
            scale = exp(order.exponent(shift));
        } else {
            double total = 0.0;
            largest = warp_max(largest);
            small_shift = -log1p(warp_sum(small.sum));
            each_sample([&](uint32_t, const Sample& x) {
                // Without one sample in common the largest is -inf, and so is the logarithm of the sum.
                const double log = weighted_logs(alpha, x.log_p, x.log_q) * unit.nats;
                total += largest == -INFINITY ? 0.0 : exp(log - largest);
            });
            log_total = largest == -INFINITY ? -INFINITY : largest + log(warp_sum(total));
            scale = exp(log_total) * order.inverse;
        }

        return write_gradients([&](const Sample& x, double& gradient, double& term) {
            if (is_next_to_zero) {
                gradient = order.exponent(x.d) > -1.0 ? product(x.p, order.excess(x.d) - mean)
                                                      : order.weighted_excess(x) - x.p * mean;
                gradient *= scale;
            } else if (log_total == -INFINITY) {
                // W = 0, and stays so to first order.
                gradient = 0.0;
            } else {
                const double far = order.exponent(log_ratio(x)) + log_total;
                const double b = is_small ? order.exponent(x.d) - small_shift : far;
                // p - v, through expm1 where they are close.
                const double difference = fabs(b) < 1.0
                    ? -x.p * expm1(-b)
                    : x.p - exp(weighted_logs(alpha, x.log_p, x.log_q) * unit.nats - log_total);
                gradient = scale * difference * order.lift;
            }
            const double q = exp(x.log_q * unit.nats);
            if (a.divergence == FORWARD_KL) {
                term = product(q, -x.log_p);
            } else if (swapped) {
                term = alpha_term(loss_order, q, x.p, x.log_q, x.log_p, -log_ratio(x));
            } else {
                term = alpha_term(loss_order, x.p, q, x.log_p, x.log_q, log_ratio(x));
            }
        });
    }

    // KL(p|m)/2 + KL(q|m)/2, m = (p + q)/2; gradient p (psi - sum of p psi), psi = log(p/m)/2 up to a constant.
    __device__ __forceinline__ double jensen_shannon() const {
        // d of the top is 0, or +inf where its q is 0. Bounded by log 2 and computed in nats, in which a difference that
        // is no f64 is as good as infinite.
        const double a_top = s_top == -INFINITY ? INFINITY : (0.0 - shift) * unit.nats;
        const double softplus_top = softplus(-a_top), sigmoid_top = 1.0 / (1.0 + exp(a_top));
        // (softplus(-a_m) - softplus(-a_i))/2, in one logarithm unless that would overflow.
        const auto psi = [&](const Sample& x) {
            const double d = x.d * unit.nats;
            if (a_top == INFINITY || d < -30.0) {
                return 0.5 * (softplus_top - softplus(-log_ratio(x) * unit.nats));
            }
            return -0.5 * log1p(sigmoid_top * expm1(-d));
        };
        double mean = 0.0;
        each_sample([&](uint32_t, const Sample& x) { mean += x.p > 0.0 ? x.p * psi(x) : 0.0; });
        mean = warp_sum(mean);
        return write_gradients([&](const Sample& x, double& gradient, double& term) {
            gradient = x.p > 0.0 ? x.p * (psi(x) - mean) * unit.inverse : 0.0;
            const double log_p = x.log_p * unit.nats, log_q = x.log_q * unit.nats;
            term = jensen_shannon_term(x.p, exp(log_q), log_p, log_q, log_ratio(x) * unit.nats) * unit.inverse;
        });
    }

    // The loss, in the unit; writes the coefficients.
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
        return is_official ? loss - LOG1P_OFFICIAL_LOSER * unit.inverse : loss;
    }

    // Where NaN has come in: through all of the group, and into no other.
    __device__ __forceinline__ double poison() {
        squares = NAN;
        agreement = 0.0;
        margin = k == 1 ? 0.0 : NAN;
        write_all(NAN);
        return NAN;
    }
};

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
        if (group.lane == 0 && a.status != nullptr) {
            record_first(&a.status->first_bad_reward_sequence, static_cast<uint32_t>(group.first + refused));
        }
    } else {
        if (a.target != TARGET_REWARDS && a.target != TARGET_DISTRIBUTION && group.k > 1) {
            group.prepare_preference();
        }
        group.choose_unit();
        const bool has_nan = group.find_largest();
        group.rank();
        group.add_up();
        loss = has_nan ? group.poison() : group.loss() * group.unit.nats;
    }
    if (group.lane == 0) {
        a.group_losses[index] = loss;
        if (a.statistics != nullptr) {
            const double effective_sample_size = group.squares == 0.0 ? 0.0 : 1.0 / group.squares;
            a.statistics[index] = {effective_sample_size, group.margin, group.agreement, group.favourites > 1};
        }
    }
}
