// One step of a fit: draw one camera, compare, gradients, Adam.
#pragma once

#include <cstdint>

#include "adam.h"
#include "scene.h"
#include "ssim.h"

namespace splatsmith {

extern "C" struct Step {  // mirrored in library.py
    Scene scene;
    Lens lens;  // of one camera
    Images images;
    L1Ssim loss;  // of images.rgb
    Gradients gradients;
    const AdamArray* arrays;  // means, quats, log_scales, opacity_logits, sh with the gradients above
    double* regularisers;     // out: their share of the loss
    double beta1, beta2, eps;
    float opacity_weight;  // times the mean opacity
    float scale_weight;    // times the mean standard deviation
};

// Adds the gradient of opacity_weight * mean(opacity) + scale_weight * mean(scale); returns that value.
double regularise(const Scene&, float opacity_weight, float scale_weight, const Gradients&, int threads);

}  // namespace splatsmith
