// A run of steps of a fit: each draws one camera, compares with one photo, and moves the splats by one step of Adam.
#pragma once

#include <cstdint>

#include "adam.h"
#include "scene.h"
#include "ssim.h"

namespace splatsmith {

// Both are mirrored in library.py.
extern "C" {

struct Turn {  // what differs from step to step
    const float* cam_from_world;  // [4, 4]
    const float* K;               // [3, 3]
    const float* photo;           // [H, W, 3]
    const float* mask;            // [H, W] or null for all 1
    float backdrop[3];            // behind the splats
    float tint[3];                // added to the photo where the mask is 0
    int32_t width, height;
    int32_t degree;    // SH bands used
    int32_t exposure;  // row of the exposures
    double lr_means;
    uint64_t key;  // of the jitter's random numbers
};

struct Run {
    Scene scene;       // `degree` is the turn's
    Lens lens;         // of one camera, `keep` set; camera, size and background are the turn's
    Images images;     // room for the largest turn
    float* truth;      // [H, W, 3] room for masked photos with their tint; null without any
    float* exposed;    // [H, W, 3] the drawing after its exposure; null without exposures
    float* v_image;    // [H, W, 3] gradient of what is compared with the photo, then of images.rgb
    float* v_alpha;    // [H, W] null without exposures
    float* exposures;  // [photos, 2, 3] gain less 1 and offset; null for none
    float* v_exposures;
    int64_t photos;
    Gradients gradients;
    AdamArray* arrays;  // means, quats, log_scales, opacity_logits, sh, exposures where there are any
    int64_t array_count;
    double beta1, beta2, eps;
    float ssim_weight;
    float opacity_weight;  // times the mean opacity
    float scale_weight;    // times the mean standard deviation
    float noise;           // times the learning rate of the means: jitter of faint Gaussians; 0 for none
    double photo_loss;     // out, of the last turn
    double regularisers;   // out: their share of its loss
    int32_t done;          // out: turns that moved the splats
};
}

// Adds the gradient of opacity_weight * mean(opacity) + scale_weight * mean(scale); returns that value.
double regularise(const Scene&, float opacity_weight, float scale_weight, const Gradients&, int threads);

// photo.cpp
// The photo with its tint, which is in run.truth or the photo itself.
const float* truth_of(const Run&, const Turn&);
// run.images on the turn's backdrop, as the photo's camera exposed it, to run.exposed.
void expose(const Run&, const Turn&);
// Gradients of the above: run.v_image in place, run.v_alpha and run.v_exposures.
void expose_backward(const Run&, const Turn&);
// The average photo keeps its own exposure.
void centre_exposures(const Run&);

// jitter.cpp: moves faint Gaussians at random; the same for any number of threads.
void jitter(const Scene&, float* means, float strength, uint64_t key, int threads);

}  // namespace splatsmith
