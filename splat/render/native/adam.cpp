// "Adam: a method for stochastic optimization" (Kingma and Ba 2015), algorithm 1, in the order of torch's fused kernel.
#include "adam.h"

#include <algorithm>
#include <vector>

#include "simd.h"
#include "threads.h"

namespace splatsmith {
namespace {

constexpr int64_t SHARE = 1 << 14;  // floats of one task

struct Rates {
    V new_mean, new_square, keep_square, eps;  // 1 - beta in double: in float, 1 - 0.999 is off by 5e-5
};

inline void update(const AdamArray& a, const Rates& rates, V* value, const V& gradient, V* mean, V* square) {
    *mean = fma(rates.new_mean, gradient - *mean, *mean);
    *square = fma(rates.new_square, gradient * gradient, rates.keep_square * *square);
    *value -= a.rate * *mean / fma(sqrt(*square), splat(a.root), rates.eps);
}

}  // namespace

void adam(const AdamArray* arrays, int64_t count, double beta1, double beta2, double eps, int threads) {
    const Rates rates{splat(float(1 - beta1)), splat(float(1 - beta2)), splat(float(beta2)), splat(float(eps))};
    std::vector<int64_t> first_task(count + 1, 0);
    for (int64_t k = 0; k < count; ++k) first_task[k + 1] = first_task[k] + (arrays[k].count + SHARE - 1) / SHARE;
    parallel(threads, first_task[count], [&](int64_t task) {
        int64_t k = std::upper_bound(first_task.begin(), first_task.end(), task) - first_task.begin() - 1;
        const AdamArray& a = arrays[k];
        int64_t i = (task - first_task[k]) * SHARE, end = std::min(a.count, i + SHARE);
        for (; i + LANES <= end; i += LANES) {
            V value = load(a.value + i), mean = load(a.mean + i), square = load(a.square + i);
            update(a, rates, &value, load(a.gradient + i), &mean, &square);
            store(a.value + i, value), store(a.mean + i, mean), store(a.square + i, square);
        }
        if (i < end) {  // the last few, through vectors of their own
            size_t bytes = (end - i) * sizeof(float);
            V value = V{}, mean = V{}, square = V{}, gradient = V{};
            std::memcpy(&value, a.value + i, bytes), std::memcpy(&mean, a.mean + i, bytes);
            std::memcpy(&square, a.square + i, bytes), std::memcpy(&gradient, a.gradient + i, bytes);
            update(a, rates, &value, gradient, &mean, &square);
            std::memcpy(a.value + i, &value, bytes), std::memcpy(a.mean + i, &mean, bytes), std::memcpy(a.square + i, &square, bytes);
        }
    });
}

}  // namespace splatsmith
