// The mean opacity and the mean scale as parts of the loss.
#include <algorithm>
#include <vector>

#include "simd.h"
#include "step.h"
#include "threads.h"

namespace splatsmith {
namespace {

constexpr int64_t SHARE = 1 << 14;  // floats of one task

// Adds weight * f'(x) to `gradient` and returns weight * the sum of f(x), where f turns x into (f, f').
template <class F>
double add_mean(const float* x, int64_t count, float weight, float* gradient, int threads, F&& f) {
    int64_t tasks = (count + SHARE - 1) / SHARE;
    std::vector<double> partial(tasks);
    parallel(threads, tasks, [&](int64_t task) {
        double total = 0;
        for (int64_t i = task * SHARE, end = std::min(count, i + SHARE); i < end; i += LANES) {
            size_t bytes = std::min<int64_t>(LANES, end - i) * sizeof(float);
            V in = V{}, v = V{}, value, slope;
            std::memcpy(&in, x + i, bytes), std::memcpy(&v, gradient + i, bytes);
            f(in, value, slope);
            v = fma(splat(weight), slope, v);
            std::memcpy(gradient + i, &v, bytes);
            total += sum(keep(mask_of((1u << (bytes / sizeof(float))) - 1), value));
        }
        partial[task] = total;
    });
    double total = 0;
    for (double part : partial) total += part;
    return weight * total;
}

}  // namespace

double regularise(const Scene& scene, float opacity_weight, float scale_weight, const Gradients& out, int threads) {
    double value = 0;
    if (scene.count == 0) return value;
    if (opacity_weight != 0)
        value += add_mean(scene.opacity_logits, scene.count, opacity_weight / scene.count, out.opacity_logits, threads,
                          [](V logit, V& opacity, V& slope) {
                              V e = exp(-abs(logit)), inverse = 1.0f / (1.0f + e);
                              opacity = select(lt(logit, V{}), e, splat(1.0f)) * inverse;
                              slope = e * inverse * inverse;
                          });
    if (scale_weight != 0)
        value += add_mean(scene.log_scales, 3 * scene.count, scale_weight / (3 * scene.count), out.log_scales, threads,
                          [](V log_scale, V& scale, V& slope) { scale = slope = exp(log_scale); });
    return value;
}

}  // namespace splatsmith
