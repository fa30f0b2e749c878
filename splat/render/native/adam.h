// One step of Adam over several arrays.
#pragma once

#include <cstdint>

namespace splatsmith {

extern "C" struct AdamArray {  // mirrored in library.py
    float* value;
    const float* gradient;
    float* mean;    // of the gradients, decaying
    float* square;  // of their squares
    int64_t count;
    float rate;        // learning rate over the mean's bias correction, of the first `head` floats of every row
    float later_rate;  // of the row's other floats
    float root;        // 1 / square root of the squares' bias correction
    int32_t head, row;  // floats, 0 < head <= row
};

void adam(const AdamArray* arrays, int64_t count, double beta1, double beta2, double eps, int threads);

}  // namespace splatsmith
