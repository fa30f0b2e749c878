// L1 + SSIM and its gradient in one pass over the images.
#pragma once

#include <cstdint>

namespace splatsmith {

extern "C" struct L1Ssim {  // mirrored in library.py
    const float* image;   // [B, H, W, 3]
    const float* target;  // [B, H, W, 3]
    const float* weight;  // [B, H, W] or null for 1
    float* gradient;      // [B, H, W, 3] of the loss with respect to the image, or null
    double* loss;         // [1]
    int64_t batch, height, width;
    float ssim_weight;
    int32_t threads;
};

// (1 - s) sum(w |x - y|) / sum(w) + s (1 - sum(w ssim) / sum(w)), sums over pixels and channels.
void l1_ssim(const L1Ssim& job);

}  // namespace splatsmith
