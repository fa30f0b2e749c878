// Between the drawing and the photo: the colour around a masked subject, and how the photo's camera exposed it.
#include <algorithm>
#include <vector>

#include "step.h"
#include "threads.h"

namespace splatsmith {
namespace {

constexpr int64_t SHARE = 1 << 13;  // pixels of one task
constexpr int TERMS = 6;            // of one exposure: gain less 1, offset; each for three colours

// Calls body(task, first, end) for pixels [first, end).
template <class F>
void for_pixels(const Run& run, const Turn& turn, F&& body) {
    int64_t pixels = int64_t(turn.width) * turn.height;
    parallel(run.lens.threads, (pixels + SHARE - 1) / SHARE,
             [&](int64_t task) { body(task, task * SHARE, std::min(pixels, (task + 1) * SHARE)); });
}

}  // namespace

const float* truth_of(const Run& run, const Turn& turn) {
    if (!turn.mask) return turn.photo;
    for_pixels(run, turn, [&](int64_t, int64_t first, int64_t end) {
        for (int64_t i = first; i < end; ++i)
            for (int c = 0; c < 3; ++c) run.truth[3 * i + c] = turn.photo[3 * i + c] + (1 - turn.mask[i]) * turn.tint[c];
    });
    return run.truth;
}

void expose(const Run& run, const Turn& turn) {
    const float* exposure = run.exposures + TERMS * turn.exposure;
    for_pixels(run, turn, [&](int64_t, int64_t first, int64_t end) {
        for (int64_t i = first; i < end; ++i)
            for (int c = 0; c < 3; ++c)
                run.exposed[3 * i + c] = run.images.rgb[3 * i + c] * (1 + exposure[c]) + exposure[3 + c] * run.images.alpha[i] +
                                         (1 - run.images.alpha[i]) * turn.backdrop[c];
    });
}

void expose_backward(const Run& run, const Turn& turn) {
    const float* exposure = run.exposures + TERMS * turn.exposure;
    int64_t tasks = (int64_t(turn.width) * turn.height + SHARE - 1) / SHARE;
    std::vector<double> partial(TERMS * tasks);
    for_pixels(run, turn, [&](int64_t task, int64_t first, int64_t end) {
        double sums[TERMS] = {};
        for (int64_t i = first; i < end; ++i) {
            const float alpha = run.images.alpha[i];
            float v_alpha = 0;
            for (int c = 0; c < 3; ++c) {
                const float v = run.v_image[3 * i + c];
                sums[c] += v * run.images.rgb[3 * i + c];
                sums[3 + c] += v * alpha;
                v_alpha += v * (exposure[3 + c] - turn.backdrop[c]);
                run.v_image[3 * i + c] = v * (1 + exposure[c]);
            }
            run.v_alpha[i] = v_alpha;
        }
        std::copy(sums, sums + TERMS, &partial[TERMS * task]);
    });
    std::fill(run.v_exposures, run.v_exposures + TERMS * run.photos, 0.0f);
    for (int k = 0; k < TERMS; ++k) {
        double total = 0;
        for (int64_t task = 0; task < tasks; ++task) total += partial[TERMS * task + k];
        run.v_exposures[TERMS * turn.exposure + k] = float(total);
    }
}

void centre_exposures(const Run& run) {
    for (int k = 0; k < TERMS; ++k) {
        double total = 0;
        for (int64_t photo = 0; photo < run.photos; ++photo) total += run.exposures[TERMS * photo + k];
        for (int64_t photo = 0; photo < run.photos; ++photo) run.exposures[TERMS * photo + k] -= float(total / run.photos);
    }
}

}  // namespace splatsmith
