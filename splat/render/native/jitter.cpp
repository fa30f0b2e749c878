// "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al. 2024), eq. 9: noise shaped by the covariance, for
// faint Gaussians only. The same as `MCMCDensify.perturb`, with other random numbers.
#include <algorithm>
#include <cmath>

#include "step.h"
#include "threads.h"

namespace splatsmith {
namespace {

constexpr int64_t SHARE = 1 << 11;  // Gaussians of one task
constexpr float FAINT = -2.52f;     // opacity logit above which the gate is below a thousandth

// SplitMix64 (Steele et al. 2014): number `index` of the sequence `key`.
inline uint64_t random_bits(uint64_t key, uint64_t index) {
    uint64_t z = key * 0xd1342543de82ef95ull + (index + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// Twelve uniform numbers have the mean and variance of a normal one plus 6, and their sum is the same on every machine.
inline float normal(uint64_t key, uint64_t index) {
    int32_t sum = 0;
    for (int word = 0; word < 3; ++word)
        for (uint64_t bits = random_bits(key, 3 * index + word), k = 0; k < 4; ++k, bits >>= 16) sum += int32_t(bits & 0xffff);
    return (float(sum) - 6 * 65535.0f) / 65536.0f;
}

}  // namespace

void jitter(const Scene& scene, float* means, float strength, uint64_t key, int threads) {
    parallel(threads, (scene.count + SHARE - 1) / SHARE, [&](int64_t task) {
        for (int64_t i = task * SHARE, end = std::min(scene.count, i + SHARE); i < end; ++i) {
            if (!(scene.opacity_logits[i] < FAINT)) continue;
            const float* q = scene.quats + 4 * i;
            float length = std::max(std::sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]), 1e-12f);
            float w = q[0] / length, x = q[1] / length, y = q[2] / length, z = q[3] / length;
            const float R[3][3] = {{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
                                   {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
                                   {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
            float opacity = 1 / (1 + std::exp(-scene.opacity_logits[i]));
            float gate = strength / (1 + std::exp(-100 * (0.005f - opacity)));
            float noise[3];
            for (int c = 0; c < 3; ++c) noise[c] = gate * normal(key, 3 * i + c);
            for (int axis = 0; axis < 3; ++axis) {  // covariance = sum over the axes of variance * axis axis^T
                float along = R[0][axis] * noise[0] + R[1][axis] * noise[1] + R[2][axis] * noise[2];
                along *= std::exp(2 * scene.log_scales[3 * i + axis]);
                for (int c = 0; c < 3; ++c) means[3 * i + c] += R[c][axis] * along;
            }
        }
    });
}

}  // namespace splatsmith
