// What crosses the C boundary, and what the forward pass of one camera leaves for its backward pass.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"
#include "simd.h"

namespace splatsmith {

// The structures below are mirrored field by field in library.py.
extern "C" {

struct Scene {
    const float* means;           // [N, 3] world
    const float* quats;           // [N, 4] wxyz
    const float* log_scales;      // [N, 3]
    const float* opacity_logits;  // [N]
    const float* sh;              // [N, terms, 3]
    int64_t count;
    int32_t terms;
    int32_t degree;  // bands used, (degree + 1)^2 <= terms
};

struct Lens {
    const float* cam_from_world;  // [C, 4, 4]
    const float* K;               // [C, 3, 3]
    const float* background;      // [C, 3] or null for black
    int32_t cameras;
    int32_t width;
    int32_t height;
    int32_t antialiased;
    float near;
    float low_pass;
    int32_t threads;
    int32_t keep;  // keep what the backward pass needs
};

struct Images {
    float* rgb;      // [C, H, W, 3]
    float* alpha;    // [C, H, W]
    float* depth;    // [C, H, W]
    float* means2d;  // [C, N, 2]
    float* radii;    // [C, N]
};

// Of the loss with respect to the images; any may be null for zero.
struct Upstream {
    const float* rgb;
    const float* alpha;
    const float* depth;
};

struct Gradients {
    float* means;
    float* quats;
    float* log_scales;
    float* opacity_logits;
    float* sh;
    float* means2d;         // [C, N, 2] or null
    float* means2d_abs;     // [C, N, 2] or null: sums over pixels of the absolute values of each pixel's share
    float* cam_from_world;  // [C, 4, 4] or null
    float* background;      // [C, 3] or null
};
}

constexpr int TILE = 16;                        // pixels
constexpr int BLOCK_WIDTH = 4;                  // a block is what one vector covers
constexpr int BLOCK_HEIGHT = LANES / BLOCK_WIDTH;
constexpr int COLUMNS = TILE / BLOCK_WIDTH;     // blocks across a tile
constexpr int STRIPS = TILE / BLOCK_HEIGHT;     // block rows of a tile
constexpr int BLOCKS = COLUMNS * STRIPS;        // 16, 32 or 64: one bit each in Bits
constexpr int CHUNK = 1024;                     // Gaussians that one task projects

#if defined(__AVX512F__)
using Bits = uint16_t;
#elif defined(__AVX2__)
using Bits = uint32_t;
#else
using Bits = uint64_t;
#endif

// What the backward pass adds up over the pixels of a (Gaussian, tile) pair: g, g dx, g dy, g dx^2, g dx dy, g dy^2 with
// g = dL/d ln(alpha), then r, g, b, z; then the absolute values of g d ln(alpha)/d(x, y).
constexpr int SUMS = 10, SUMS_WITH_ABS = 12;

constexpr float ALPHA_MAX = 0.999f;
constexpr float TRANSMITTANCE_MIN = 1e-4f;
constexpr float LOG2_ALPHA_MIN = -7.99435344f;  // log2(1 / 255)

// A projected Gaussian: log2 alpha(d) = log2_opacity + xx dx^2 + xy dx dy + yy dy^2. One cache line.
struct alignas(64) Record {
    float x, y;  // pixels
    float xx, xy, yy;
    float log2_opacity;
    float r, g, b;  // clamped at 0
    float z;
    float reach_x, reach_y;  // half the box outside which alpha < 1/255
    float tilt;              // y offset of the rightmost point of that ellipse
    float det;               // xx yy - xy^2 / 4, computed without cancellation
    uint32_t gaussian;
    uint32_t unused;
};

struct Pair {  // a Gaussian touches a tile
    uint32_t rank;  // of the Gaussian by depth
    uint32_t tile;
    Bits blocks;
};

struct Entry {  // the same in the tile's list, nearest first
    uint32_t rank;  // of the record
    uint32_t slot;  // where the backward pass puts this pair's sums
    Bits blocks;
};

struct Slots {  // of one Gaussian: one for every tile it touches; Gaussians in their own order
    uint32_t first, count;
};

struct CameraState {
    Buffer<Record> records;       // by depth
    Buffer<uint8_t> clamped;      // [N] bit k: colour channel k was clamped at 0
    Buffer<float> colour_slopes;  // [N / LANES, 9, LANES] d colour / d direction, row by row; above degree 0, if kept
    Buffer<Slots> slots;          // [N]
    Buffer<uint32_t> tile_start;  // [tiles + 1]
    Buffer<Entry> entries;
    uint32_t drawn = 0;
    uint32_t pair_count = 0;

    size_t bytes() const {
        return records.bytes() + clamped.bytes() + colour_slopes.bytes() + slots.bytes() + tile_start.bytes() + entries.bytes();
    }
};

// One camera's numbers in the form the kernels use.
struct View {
    float W[3][3], t[3], center[3];
    float fx, fy, cx, cy;
    float limit_x_low, limit_x_high, limit_y_low, limit_y_high;  // of x/z and y/z in the Jacobian
    int width, height, tiles_x, tiles_y;
    float near, low_pass;
    bool antialiased;

    View(const Lens& lens, int camera);
};

// Scratch that every camera of a call reuses.
struct Scratch {
    Buffer<Record> records;         // [N] by chunk of CHUNK Gaussians: those that may be drawn, then unused ones
    Buffer<uint32_t> chunk_counts;  // how many they are
    Buffer<uint32_t> keys, keys_other, order, order_other, counts;
    std::vector<Buffer<Pair>> pairs;
    Buffer<float> slots;  // [pairs, SUMS or SUMS_WITH_ABS]
    Buffer<double> partial;
    size_t bytes() const {
        size_t total = records.bytes() + keys.bytes() * 4 + counts.bytes() + slots.bytes() + partial.bytes();
        for (auto& p : pairs) total += p.bytes();
        return total;
    }
};

// project.cpp: fills scratch.records. Returns false when the scene holds NaN or infinity. `keep` is for a backward pass.
bool project(const Scene&, const View&, int threads, bool keep, CameraState&, Scratch&, float* means2d, float* radii);
// Sums the slots of every Gaussian; the first camera overwrites the gradients, later ones add to them.
void project_backward(const Scene&, const View&, int threads, const CameraState&, Scratch&, const Gradients&, int camera);

// tiles.cpp: scratch.records to records by depth, and every tile's entries.
void bin_by_depth(const Scene&, const View&, int threads, CameraState&, Scratch&);

// blend.cpp
void blend(const View&, int threads, const CameraState&, const float* background, float* rgb, float* alpha, float* depth);
void blend_backward(const View&, int threads, const CameraState&, Scratch&, const float* rgb, const float* alpha, const float* depth,
                    const Upstream& upstream, bool with_abs, float* v_background);

}  // namespace splatsmith
