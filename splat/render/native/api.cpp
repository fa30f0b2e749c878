// The C boundary. Every function returns 0 or an error code of library.py and never throws.
#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "adam.h"
#include "scene.h"
#include "ssim.h"
#include "step.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace splatsmith {
namespace {

enum Status { OK = 0, BAD_NUMBERS = 1, OUT_OF_MEMORY = 2 };

// What one forward pass leaves for its backward pass.
struct Frame {
    std::vector<std::unique_ptr<CameraState>> cameras;
    Scratch scratch;
    size_t bytes() const {
        size_t total = scratch.bytes();
        for (auto& c : cameras) total += c->bytes();
        return total;
    }
};

// Frames of finished calls keep their memory for the next call.
constexpr size_t SPARE_FRAMES = 2, SPARE_BYTES = size_t(1) << 31;
std::mutex spare_mutex;
std::vector<Frame*>& spare() {
    static auto* frames = new std::vector<Frame*>;  // never destroyed: other threads may still render at exit
    return *frames;
}

Frame* take_frame() {
    {
        std::lock_guard<std::mutex> lock(spare_mutex);
        if (!spare().empty()) {
            Frame* frame = spare().back();
            spare().pop_back();
            return frame;
        }
    }
    return new Frame;
}

void give_frame(Frame* frame) {
    if (frame->bytes() <= SPARE_BYTES) {
        std::lock_guard<std::mutex> lock(spare_mutex);
        if (spare().size() < SPARE_FRAMES) {
            spare().push_back(frame);
            return;
        }
    }
    delete frame;
}

template <class F>
int guarded(F&& body) {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
}

}  // namespace
}  // namespace splatsmith

using namespace splatsmith;

EXPORT int32_t splatsmith_lanes() { return LANES; }

// Draws every camera. With `keep`, *frame receives what `splatsmith_backward` needs, to be given to `splatsmith_release`.
EXPORT int32_t splatsmith_forward(const Scene* scene, const Lens* lens, const Images* out, void** frame) {
    *frame = nullptr;
    return guarded([&] {
        struct Release {
            void operator()(Frame* f) const { give_frame(f); }
        };
        std::unique_ptr<Frame, Release> work(take_frame());
        size_t needed = lens->keep ? lens->cameras : 1;
        while (work->cameras.size() < needed) work->cameras.push_back(std::make_unique<CameraState>());
        size_t pixels = size_t(lens->width) * lens->height;
        for (int c = 0; c < lens->cameras; ++c) {
            CameraState& state = *work->cameras[lens->keep ? c : 0];
            View view(*lens, c);
            if (!project(*scene, view, lens->threads, lens->keep, state, work->scratch, out->means2d + 2 * c * scene->count,
                         out->radii + c * scene->count))
                return (int)BAD_NUMBERS;
            bin_by_depth(*scene, view, lens->threads, state, work->scratch);
            blend(view, lens->threads, state, lens->background ? lens->background + 3 * c : nullptr, out->rgb + 3 * c * pixels,
                  out->alpha + c * pixels, out->depth + c * pixels);
        }
        if (lens->keep) *frame = work.release();
        return (int)OK;
    });
}

// Gradients of the loss whose gradients with respect to the images are `upstream`. `images` and the inputs are those of
// the forward call, unchanged. Overwrites `out`.
EXPORT int32_t splatsmith_backward(void* frame, const Scene* scene, const Lens* lens, const Images* images, const Upstream* upstream,
                                   const Gradients* out) {
    return guarded([&] {
        Frame& work = *static_cast<Frame*>(frame);
        size_t pixels = size_t(lens->width) * lens->height;
        for (int c = 0; c < lens->cameras; ++c) {
            const CameraState& state = *work.cameras[c];
            View view(*lens, c);
            Upstream up{upstream->rgb ? upstream->rgb + 3 * c * pixels : nullptr, upstream->alpha ? upstream->alpha + c * pixels : nullptr,
                        upstream->depth ? upstream->depth + c * pixels : nullptr};
            blend_backward(view, lens->threads, state, work.scratch, images->rgb + 3 * c * pixels, images->alpha + c * pixels,
                           images->depth + c * pixels, up, out->means2d_abs != nullptr, out->background ? out->background + 3 * c : nullptr);
            project_backward(*scene, view, lens->threads, state, work.scratch, *out, c);
        }
        return (int)OK;
    });
}

EXPORT void splatsmith_release(void* frame) { give_frame(static_cast<Frame*>(frame)); }

EXPORT int32_t splatsmith_l1_ssim(const L1Ssim* job) {
    return guarded([&] {
        l1_ssim(*job);
        return (int)OK;
    });
}

EXPORT int32_t splatsmith_adam(AdamArray* arrays, int64_t count, double beta1, double beta2, double eps, int32_t threads) {
    return guarded([&] {
        adam(arrays, count, beta1, beta2, eps, threads);
        return (int)OK;
    });
}

namespace {

// Leaves the splats alone when the loss is not finite.
int32_t take(Run& run, const Turn& turn) {
    Scene scene = run.scene;
    Lens lens = run.lens;
    scene.degree = turn.degree;
    lens.cam_from_world = turn.cam_from_world, lens.K = turn.K, lens.width = turn.width, lens.height = turn.height;
    lens.background = run.exposures ? nullptr : turn.backdrop;  // `expose` puts it behind
    void* drawn;
    if (int32_t status = splatsmith_forward(&scene, &lens, &run.images, &drawn)) return status;
    std::unique_ptr<void, void (*)(void*)> frame(drawn, splatsmith_release);
    return guarded([&] {
        if (run.exposures) expose(run, turn);
        const float* image = run.exposures ? run.exposed : run.images.rgb;
        l1_ssim({image, truth_of(run, turn), nullptr, run.v_image, &run.photo_loss, 1, turn.height, turn.width, run.ssim_weight, lens.threads});
        if (!std::isfinite(run.photo_loss)) return (int)OK;
        if (run.exposures) expose_backward(run, turn);
        const Upstream upstream{run.v_image, run.v_alpha, nullptr};
        if (int status = splatsmith_backward(drawn, &scene, &lens, &run.images, &upstream, &run.gradients)) return status;
        frame.reset();
        run.regularisers = regularise(scene, run.opacity_weight, run.scale_weight, run.gradients, lens.threads);
        if (!std::isfinite(run.regularisers)) return (int)OK;
        run.arrays[0].lr = turn.lr_means;
        adam(run.arrays, run.array_count, run.beta1, run.beta2, run.eps, lens.threads);
        if (run.exposures) centre_exposures(run);
        if (run.noise != 0) jitter(scene, run.arrays[0].value, run.noise * float(turn.lr_means), turn.key, lens.threads);
        ++run.done;
        return (int)OK;
    });
}

}  // namespace

// Takes the turns one after the other, and ends early when the loss of one is not finite or it fails.
EXPORT int32_t splatsmith_run(Run* run, const Turn* turns, int32_t count) {
    run->done = 0, run->photo_loss = 0, run->regularisers = 0;
    for (int32_t k = 0; k < count; ++k)
        if (int32_t status = take(*run, turns[k]); status || run->done <= k) return status;
    return OK;
}
