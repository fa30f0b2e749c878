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
    int64_t steps;      // taken; `adam` counts its own
    double lr;          // of the first `head` floats of every row
    double later_lr;    // of the row's other floats
    int32_t head, row;  // floats, 0 < head <= row
};

void adam(AdamArray* arrays, int64_t count, double beta1, double beta2, double eps, int threads);

}  // namespace splatsmith
