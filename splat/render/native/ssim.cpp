// SSIM (Wang et al. 2004, eq. 13) with the 11x11 Gaussian window, sigma 1.5, zeros outside, per channel, as in the 3DGS code.
//
// A row of RGB pixels is one row of 3 W floats whose horizontal neighbours are 3 apart. Only four blurred maps are needed:
// x, y, x^2 + y^2 and x y, because SSIM uses the two variances as a sum.
#include "ssim.h"

#include <algorithm>
#include <cmath>

#include "memory.h"
#include "simd.h"
#include "threads.h"

namespace splatsmith {
namespace {

constexpr int HALF = 5;
constexpr int GROUP = 4;        // rows blurred together: each loaded row serves several
constexpr int RING = 16;        // rows kept, at least GROUP + 2 * HALF
constexpr int PAD = 16;         // floats before a row: 3 * HALF, rounded up
constexpr int64_t BAND = 32;    // rows of one task

struct Window {
    float tap[HALF + 1];  // by distance
    Window() {
        double sum = 0, g[HALF + 1];
        for (int k = 0; k <= HALF; ++k) {
            g[k] = std::exp(-k * k / (2 * 1.5 * 1.5));
            sum += k ? 2 * g[k] : g[k];
        }
        for (int k = 0; k <= HALF; ++k) tap[k] = (float)(g[k] / sum);
    }
};
const Window window;

// Horizontal blur at float offset j, a multiple of LANES, of a row that is zero outside [0, 3 W).
inline V blur_row(const float* row, int64_t j) {
    V sum = window.tap[0] * load(row + j);
#if defined(__AVX512F__)
    // Shifting registers is cheaper than loads that cross cache lines.
    const __m512i before = (__m512i)load(row + j - LANES), here = (__m512i)load(row + j), after = (__m512i)load(row + j + LANES);
#define SPLATSMITH_TAP(k)                                                                                     \
    sum = fma(splat(window.tap[k]),                                                                           \
              (V)_mm512_alignr_epi32(here, before, LANES - 3 * k) + (V)_mm512_alignr_epi32(after, here, 3 * k), sum);
    SPLATSMITH_TAP(1) SPLATSMITH_TAP(2) SPLATSMITH_TAP(3) SPLATSMITH_TAP(4) SPLATSMITH_TAP(5)
#undef SPLATSMITH_TAP
#else
    for (int k = 1; k <= HALF; ++k) sum = fma(splat(window.tap[k]), load(row + j - 3 * k) + load(row + j + 3 * k), sum);
#endif
    return sum;
}

// Vertical blur of GROUP rows at float offset j; rows[HALF] is the first of them.
inline void blur_columns(const float* const* rows, int64_t j, float* out, int64_t out_stride) {
    V v[GROUP + 2 * HALF];
    for (int k = 0; k < GROUP + 2 * HALF; ++k) v[k] = load(rows[k] + j);
    for (int r = 0; r < GROUP; ++r) {
        V sum = window.tap[0] * v[HALF + r];
        for (int k = 1; k <= HALF; ++k) sum = fma(splat(window.tap[k]), v[HALF + r - k] + v[HALF + r + k], sum);
        store(out + r * out_stride + j, sum);
    }
}

struct Shape {
    int64_t floats;  // of a row
    int64_t stride;  // of a padded row; whole vectors, zeros around
    explicit Shape(int64_t width) : floats(3 * width), stride(PAD + (3 * width + LANES - 1) / LANES * LANES + PAD) {}
};

inline V weights_at(const float* weight, int64_t j, int64_t floats, float scale) {
    if (!weight && j + LANES <= floats) return splat(scale);
    V w = V{};
    for (int l = 0; l < LANES; ++l)
        if (j + l < floats) w[l] = scale * (weight ? weight[(j + l) / 3] : 1.0f);
    return w;
}

}  // namespace

void l1_ssim(const L1Ssim& job) {
    const Shape shape(job.width);
    const int64_t floats = shape.floats, stride = shape.stride, height = job.height;
    const int64_t bands = (height + BAND - 1) / BAND, tasks = job.batch * bands;
    const bool with_ssim = job.ssim_weight != 0;
    double total_weight = 3.0 * job.batch * height * job.width;
    if (job.weight) {
        total_weight = 0;
        for (int64_t i = 0; i < job.batch * height * job.width; ++i) total_weight += job.weight[i];
        total_weight *= 3;
    }
    if (total_weight <= 0) {
        *job.loss = 0;
        if (job.gradient) std::memset(job.gradient, 0, sizeof(float) * job.batch * height * floats);
        return;
    }
    const float scale = float(1 / total_weight);
    static thread_local Buffer<float> map_memory;
    static thread_local Buffer<double> partial_memory;
    const int64_t map_rows = job.batch * height;
    float* maps = with_ssim && job.gradient ? map_memory.reserve(3 * map_rows * stride) : nullptr;
    double* partial = partial_memory.reserve(2 * tasks);

    // Blur, compare, and keep the derivatives with respect to the blurred x, x^2 + y^2 and x y.
    parallel(job.threads, tasks, [&](int64_t task) {
        int64_t image = task / bands, row0 = task % bands * BAND, row1 = std::min(height, row0 + BAND);
        static thread_local Buffer<float> memory;
        // A ring of rows of the four maps, a row of zeros, GROUP rows of each map blurred vertically.
        float* ring = memory.reserve(size_t(4 * RING + 1 + 4 * GROUP) * stride);
        float* zeros = ring + 4 * RING * stride;
        float* blurred = zeros + stride;
        std::fill(zeros, zeros + (1 + 4 * GROUP) * stride, 0.0f);
        auto ring_row = [&](int map, int64_t y) -> float* {
            return y < 0 || y >= height ? zeros + PAD : ring + (map * RING + (y % RING)) * stride + PAD;
        };
        auto fill = [&](int64_t y) {
            const float* x_row = job.image + (image * height + y) * floats;
            const float* y_row = job.target + (image * height + y) * floats;
            float *px = ring_row(0, y), *py = ring_row(1, y), *pp = ring_row(2, y), *pq = ring_row(3, y);
            int64_t padded = stride - 2 * PAD;
            std::memcpy(px, x_row, floats * sizeof(float));
            std::memcpy(py, y_row, floats * sizeof(float));
            std::fill(px + floats, px + padded, 0.0f);
            std::fill(py + floats, py + padded, 0.0f);
            for (int64_t j = 0; j < padded; j += LANES) {
                V a = load(px + j), b = load(py + j);
                store(pp + j, fma(a, a, b * b));
                store(pq + j, a * b);
            }
        };
        double l1 = 0, similarity = 0;
        if (with_ssim)
            for (int64_t y = std::max<int64_t>(0, row0 - HALF); y < std::min(height, row0 + HALF); ++y) fill(y);
        for (int64_t group = row0; group < row1; group += GROUP) {
            const int64_t group_end = std::min(group + GROUP, row1);
            if (with_ssim) {
                for (int64_t y = group + HALF; y < std::min(height, group + HALF + GROUP); ++y) fill(y);
                for (int m = 0; m < 4; ++m) {
                    const float* rows[GROUP + 2 * HALF];
                    for (int k = 0; k < GROUP + 2 * HALF; ++k) rows[k] = ring_row(m, group + k - HALF);
                    for (int64_t j = 0; j < floats; j += LANES) blur_columns(rows, j, blurred + m * GROUP * stride + PAD, stride);
                }
            }
            for (int64_t y = group; y < group_end; ++y) {
                const float* weight = job.weight ? job.weight + (image * height + y) * job.width : nullptr;
                if (!with_ssim) {
                    const float* x_row = job.image + (image * height + y) * floats;
                    const float* y_row = job.target + (image * height + y) * floats;
                    double sum = 0;
                    for (int64_t j = 0; j < floats; ++j)
                        sum += double(weight ? weight[j / 3] : 1.0f) * std::fabs(x_row[j] - y_row[j]);
                    l1 += sum;
                    continue;
                }
                const float *x_row = ring_row(0, y), *y_row = ring_row(1, y);
                const float* row = blurred + (y - group) * stride + PAD;
                V l1_sum = V{}, ssim_sum = V{};
                float* out = maps ? maps + (image * height + y) * stride + PAD : nullptr;
                for (int64_t j = 0; j < floats; j += LANES) {
                    V mx = blur_row(row, j), my = blur_row(row + GROUP * stride, j);
                    V squares = blur_row(row + 2 * GROUP * stride, j), product = blur_row(row + 3 * GROUP * stride, j);
                    constexpr float c1 = 0.01f * 0.01f, c2 = 0.03f * 0.03f;
                    V mxy = mx * my, mm = fma(mx, mx, my * my);
                    V a1 = 2.0f * mxy + c1, a2 = 2.0f * (product - mxy) + c2, b1 = mm + c1, b2 = squares - mm + c2;
                    V inverse = 1.0f / (b1 * b2);
                    V ssim = a1 * a2 * inverse;
                    V w = weights_at(weight, j, floats, 1.0f);
                    ssim_sum = fma(w, ssim, ssim_sum);
                    l1_sum = fma(w, abs(load(x_row + j) - load(y_row + j)), l1_sum);
                    if (out) {
                        V upstream = w * (-job.ssim_weight * scale);
                        V d_cov = 2.0f * a1 * inverse, d_var = -ssim * b1 * inverse;
                        V d_mean = 2.0f * (my * a2 - ssim * mx * b2) * inverse - my * d_cov - 2.0f * mx * d_var;
                        store(out + j, upstream * d_mean);
                        store(out + map_rows * stride + j, upstream * d_var);
                        store(out + 2 * map_rows * stride + j, upstream * d_cov);
                    }
                }
                l1 += sum(l1_sum);
                similarity += sum(ssim_sum);
            }
        }
        partial[2 * task] = l1;
        partial[2 * task + 1] = similarity;
    });
    double l1 = 0, similarity = 0;
    for (int64_t t = 0; t < tasks; ++t) l1 += partial[2 * t], similarity += partial[2 * t + 1];
    *job.loss = (1.0 - job.ssim_weight) * l1 / total_weight;
    if (with_ssim) *job.loss += job.ssim_weight * (1 - similarity / total_weight);
    if (!job.gradient) return;

    // The blur is its own adjoint.
    const float l1_scale = (1 - job.ssim_weight) * scale;
    parallel(job.threads, tasks, [&](int64_t task) {
        int64_t image = task / bands, row0 = task % bands * BAND, row1 = std::min(height, row0 + BAND);
        static thread_local Buffer<float> memory;
        float* zeros = memory.reserve(size_t(1 + 3 * GROUP) * stride);
        float* blurred = zeros + stride;
        std::fill(zeros, zeros + (1 + 3 * GROUP) * stride, 0.0f);
        for (int64_t y = row0; y < row1; ++y) {
            if (maps && (y - row0) % GROUP == 0) {
                for (int m = 0; m < 3; ++m) {
                    const float* rows[GROUP + 2 * HALF];
                    for (int k = 0; k < GROUP + 2 * HALF; ++k) {
                        int64_t r = y + k - HALF;
                        rows[k] = r < 0 || r >= height ? zeros + PAD : maps + (m * map_rows + image * height + r) * stride + PAD;
                    }
                    for (int64_t j = 0; j < floats; j += LANES) blur_columns(rows, j, blurred + m * GROUP * stride + PAD, stride);
                }
            }
            const float* weight = job.weight ? job.weight + (image * height + y) * job.width : nullptr;
            const float* x_row = job.image + (image * height + y) * floats;
            const float* y_row = job.target + (image * height + y) * floats;
            const float* row = blurred + (y - row0) % GROUP * stride + PAD;
            float* out = job.gradient + (image * height + y) * floats;
            for (int64_t j = 0; j < floats; j += LANES) {
                int live = (int)std::min<int64_t>(LANES, floats - j);
                V a = V{}, b = V{};
                if (live == LANES) {
                    a = load(x_row + j), b = load(y_row + j);
                } else {
                    std::memcpy(&a, x_row + j, live * sizeof(float));
                    std::memcpy(&b, y_row + j, live * sizeof(float));
                }
                V difference = a - b, w = weights_at(weight, j, floats, l1_scale);
                V gradient = select(lt(V{}, difference), w, select(lt(difference, V{}), -w, V{}));
                if (maps)
                    gradient += blur_row(row, j) + 2.0f * a * blur_row(row + GROUP * stride, j) + b * blur_row(row + 2 * GROUP * stride, j);
                if (live == LANES)
                    store(out + j, gradient);
                else
                    std::memcpy(out + j, &gradient, live * sizeof(float));
            }
        }
    });
}

}  // namespace splatsmith
