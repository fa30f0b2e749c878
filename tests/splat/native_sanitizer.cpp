// Drives the kernels' C boundary with ordinary and degenerate scenes in buffers of exactly the promised size, so that a
// sanitizer build sees every stray access. Built together with the kernels by test_native_hostile.py.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <thread>
#include <vector>

#include "adam.h"
#include "scene.h"
#include "ssim.h"
#include "step.h"

using namespace splatsmith;

extern "C" {
int32_t splatsmith_forward(const Scene*, const Lens*, const Images*, void**);
int32_t splatsmith_backward(void*, const Scene*, const Lens*, const Images*, const Upstream*, const Gradients*);
void splatsmith_release(void*);
int32_t splatsmith_l1_ssim(const L1Ssim*);
int32_t splatsmith_adam(AdamArray*, int64_t, double, double, double, int32_t);
int32_t splatsmith_run(Run*, const Turn*, int32_t);
}

struct Random {
    uint64_t state;
    float uniform() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return float(state >> 40) / float(1 << 24);
    }
    float normal() { return (uniform() + uniform() + uniform() + uniform() - 2) * 1.7f; }
    float pick(std::vector<float> values) { return values[size_t(uniform() * values.size()) % values.size()]; }
};

std::vector<float> filled(size_t n, float value = 0) { return std::vector<float>(n, value); }

void run(uint64_t seed, int64_t n, int width, int height, int cameras, int degree, int threads, bool degenerate) {
    Random random{seed};
    int terms = (degree + 1) * (degree + 1);
    auto means = filled(3 * n), quats = filled(4 * n), scales = filled(3 * n), logits = filled(n), sh = filled(3 * n * terms);
    for (float& x : means) x = random.normal();
    for (float& x : quats) x = random.normal();
    for (float& x : scales) x = -3 + random.normal();
    for (float& x : logits) x = 2 * random.normal();
    for (float& x : sh) x = 0.5f * random.normal();
    const float inf = std::numeric_limits<float>::infinity();
    if (degenerate) {
        for (float& x : scales)
            if (random.uniform() < 0.3f) x = random.pick({-inf, -50, -20, 3, 10, 30, 80});
        for (float& x : logits)
            if (random.uniform() < 0.3f) x = random.pick({-inf, inf, -100, 100, -5.54f});
        for (float& x : means)
            if (random.uniform() < 0.2f) x = random.pick({0, -4, -3.99f, 1e10f, -1e10f, 1e30f, 1e-30f});
        for (float& x : quats)
            if (random.uniform() < 0.2f) x = random.pick({0, 1e-20f, 1e15f});
    }
    auto poses = filled(16 * cameras), K = filled(9 * cameras), background = filled(3 * cameras, 0.5f);
    for (int c = 0; c < cameras; ++c) {
        for (int k = 0; k < 4; ++k) poses[16 * c + 5 * k] = 1;
        poses[16 * c + 11] = 4;
        poses[16 * c + 3] = 0.3f * c;
        K[9 * c] = K[9 * c + 4] = degenerate ? random.pick({1.0f, 50.0f, 5000.0f}) : 1.1f * width;
        K[9 * c + 2] = 0.5f * width, K[9 * c + 5] = 0.5f * height, K[9 * c + 8] = 1;
    }
    size_t pixels = size_t(width) * height;
    auto rgb = filled(3 * pixels * cameras), alpha = filled(pixels * cameras), depth = alpha;
    auto means2d = filled(2 * n * cameras), radii = filled(n * cameras);
    Scene scene{means.data(), quats.data(), scales.data(), logits.data(), sh.data(), n, terms, degree};
    Lens lens{poses.data(), K.data(), background.data(), cameras, width, height, int(seed & 1), 0.01f, 0.3f, threads, 1};
    Images images{rgb.data(), alpha.data(), depth.data(), means2d.data(), radii.data()};
    void* frame = nullptr;
    if (splatsmith_forward(&scene, &lens, &images, &frame) != 0) std::abort();

    auto v_rgb = filled(rgb.size(), 1), v_alpha = filled(alpha.size(), -1), v_depth = filled(depth.size(), 0.5f);
    auto v_means = means, v_quats = quats, v_scales = scales, v_logits = logits, v_sh = sh, v_means2d = means2d, v_absolute = means2d, v_poses = poses;
    auto v_background = background;
    Upstream upstream{v_rgb.data(), v_alpha.data(), seed % 3 ? v_depth.data() : nullptr};
    Gradients out{v_means.data(), v_quats.data(), v_scales.data(), v_logits.data(), v_sh.data(), v_means2d.data(),
                  seed % 2 ? v_absolute.data() : nullptr, v_poses.data(), v_background.data()};
    if (splatsmith_backward(frame, &scene, &lens, &images, &upstream, &out) != 0) std::abort();
    splatsmith_release(frame);

    double loss = 0;
    L1Ssim job{rgb.data(), v_rgb.data(), seed & 2 ? alpha.data() : nullptr, v_rgb.data(), &loss, cameras, height, width, 0.2f, threads};
    auto gradient = filled(rgb.size());
    job.gradient = gradient.data();
    if (splatsmith_l1_ssim(&job) != 0) std::abort();
    auto mean = filled(means.size()), square = mean, other = filled(quats.size()), other_square = other;
    for (float& x : v_means) x = std::isfinite(x) ? x : 0;
    AdamArray arrays[] = {{means.data(), v_means.data(), mean.data(), square.data(), 3 * n, 0, 0.1, 0.1, 1, 1},
                          {quats.data(), v_quats.data(), other.data(), other_square.data(), 4 * n, 0, 0.1, 0.2, 3, 4}};
    if (splatsmith_adam(arrays, 2, 0.9, 0.999, 1e-15, threads) != 0) std::abort();
    auto moments = [](const std::vector<float>& like) { return filled(2 * like.size() + 1); };
    auto m0 = moments(means), m1 = moments(quats), m2 = moments(scales), m3 = moments(logits), m4 = moments(sh);
    auto array = [](std::vector<float>& value, std::vector<float>& v, std::vector<float>& moment) {
        int64_t count = value.size();
        return AdamArray{value.data(), v.data(), moment.data(), moment.data() + count, count, 0, 1e-3, 1e-3, 1, 1};
    };
    const int64_t photos = 3;
    auto exposures = filled(6 * photos), v_exposures = exposures, m5 = moments(exposures);
    AdamArray all[] = {array(means, v_means, m0), array(quats, v_quats, m1), array(scales, v_scales, m2), array(logits, v_logits, m3),
                       array(sh, v_sh, m4), array(exposures, v_exposures, m5)};
    auto mask = filled(pixels, 0.4f), photo = filled(3 * pixels, 0.6f), truth = photo, exposed = photo, v_image = photo, v_drawn = mask;
    Lens one = lens;
    one.cameras = 1, one.keep = 1;
    Run steps{};
    steps.scene = scene, steps.lens = one, steps.images = images, steps.truth = truth.data(), steps.v_image = v_image.data();
    steps.gradients = {v_means.data(), v_quats.data(), v_scales.data(), v_logits.data(), v_sh.data(), nullptr, nullptr, nullptr, nullptr};
    steps.arrays = all, steps.array_count = 5, steps.beta1 = 0.9, steps.beta2 = 0.999, steps.eps = 1e-15;
    steps.ssim_weight = 0.2f, steps.opacity_weight = 0.01f, steps.scale_weight = seed % 2 ? 0.01f : 0, steps.noise = seed % 3 ? 10 : 0;
    if (seed % 2) {
        steps.exposed = exposed.data(), steps.v_alpha = v_drawn.data(), steps.exposures = exposures.data();
        steps.v_exposures = v_exposures.data(), steps.photos = photos, steps.array_count = 6;
    }
    Turn turn{poses.data(), K.data(), photo.data(), nullptr, {0.1f, 0.2f, 0.3f}, {}, width, height, degree, 2, 1e-3, seed};
    Turn masked = turn;
    masked.mask = mask.data(), masked.tint[1] = 0.3f, masked.exposure = 0;
    Turn smaller = masked;
    smaller.width = (width + 1) / 2, smaller.height = (height + 1) / 2;
    const Turn turns[] = {turn, masked, smaller};
    int32_t status = splatsmith_run(&steps, turns, 3);  // 1: a step moved something out of the finite numbers
    if (status != 0 && status != 1) std::abort();
    for (auto* values : {&rgb, &alpha, &depth, &gradient})
        for (float x : *values)
            if (!std::isfinite(x)) {
                std::fprintf(stderr, "not finite: seed %d\n", (int)seed);
                std::abort();
            }
}

int main(int argc, char** argv) {
    int rounds = argc > 1 ? std::atoi(argv[1]) : 6;
    const int sizes[][2] = {{1, 1}, {17, 3}, {5, 40}, {64, 48}, {33, 31}, {130, 20}};
    auto worker = [&](uint64_t first) {
        for (int i = 0; i < rounds; ++i)
            for (int64_t n : {0, 1, 15, 16, 17, 1500})
                run(first + 7 * i + n, n, sizes[i % 6][0], sizes[i % 6][1], 1 + i % 2, i % 4, 1 + i % 3, i % 3 != 0);
    };
    std::thread other(worker, 1000);  // two callers at once
    worker(1);
    other.join();
    std::puts("done");
}
