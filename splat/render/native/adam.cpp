// "Adam: a method for stochastic optimization" (Kingma and Ba 2015), algorithm 1, in the order of torch's fused kernel.
#include "adam.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "simd.h"
#include "threads.h"

namespace splatsmith {
namespace {

constexpr int64_t SHARE = 1 << 14;  // floats of one task

struct Rates {
    V new_mean, new_square, keep_square, eps;  // 1 - beta in double: in float, 1 - 0.999 is off by 5e-5
};

inline void update(const Rates& rates, const V& root, const V& rate, V* value, const V& gradient, V* mean, V* square) {
    *mean = fma(rates.new_mean, gradient - *mean, *mean);
    *square = fma(rates.new_square, gradient * gradient, rates.keep_square * *square);
    *value -= rate * *mean / fma(sqrt(*square), root, rates.eps);
}

// The rate of every float, repeated until whole vectors hold whole rows.
std::vector<float> rate_pattern(const AdamArray& a, float rate, float later_rate) {
    std::vector<float> pattern(a.head == a.row ? LANES : std::lcm(a.row, LANES));
    for (size_t j = 0; j < pattern.size(); ++j) pattern[j] = int64_t(j) % a.row < a.head ? rate : later_rate;
    return pattern;
}

}  // namespace

void adam(AdamArray* arrays, int64_t count, double beta1, double beta2, double eps, int threads) {
    const Rates rates{splat(float(1 - beta1)), splat(float(1 - beta2)), splat(float(beta2)), splat(float(eps))};
    std::vector<int64_t> first_task(count + 1, 0);
    std::vector<std::vector<float>> patterns;
    std::vector<float> roots;
    for (int64_t k = 0; k < count; ++k) {
        AdamArray& a = arrays[k];
        const double t = double(++a.steps), mean_correction = 1 - std::pow(beta1, t);
        first_task[k + 1] = first_task[k] + (a.count + SHARE - 1) / SHARE;
        patterns.push_back(rate_pattern(a, float(a.lr / mean_correction), float(a.later_lr / mean_correction)));
        roots.push_back(float(1 / std::sqrt(1 - std::pow(beta2, t))));
    }
    parallel(threads, first_task[count], [&](int64_t task) {
        int64_t k = std::upper_bound(first_task.begin(), first_task.end(), task) - first_task.begin() - 1;
        const AdamArray& a = arrays[k];
        int64_t i = (task - first_task[k]) * SHARE, end = std::min(a.count, i + SHARE);
        const std::vector<float>& pattern = patterns[k];
        const V root = splat(roots[k]);
        size_t at = i % pattern.size();
        auto next_rate = [&] {
            V rate = load(&pattern[at]);
            at = at + LANES < pattern.size() ? at + LANES : 0;
            return rate;
        };
        for (; i + LANES <= end; i += LANES) {
            V value = load(a.value + i), mean = load(a.mean + i), square = load(a.square + i);
            update(rates, root, next_rate(), &value, load(a.gradient + i), &mean, &square);
            store(a.value + i, value), store(a.mean + i, mean), store(a.square + i, square);
        }
        if (i < end) {  // the last few, through vectors of their own
            size_t bytes = (end - i) * sizeof(float);
            V value = V{}, mean = V{}, square = V{}, gradient = V{};
            std::memcpy(&value, a.value + i, bytes), std::memcpy(&mean, a.mean + i, bytes);
            std::memcpy(&square, a.square + i, bytes), std::memcpy(&gradient, a.gradient + i, bytes);
            update(rates, root, next_rate(), &value, gradient, &mean, &square);
            std::memcpy(a.value + i, &value, bytes), std::memcpy(a.mean + i, &mean, bytes), std::memcpy(a.square + i, &square, bytes);
        }
    });
}

}  // namespace splatsmith
