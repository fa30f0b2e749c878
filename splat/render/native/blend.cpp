// Front-to-back compositing of one tile at a time ("3D Gaussian Splatting", Kerbl et al. 2023, eq. 3), and its gradient.
//
// A vector holds one block of pixels. The backward pass goes front to back too: it repeats the forward pass's decisions and
// keeps, per pixel, what is still to come of sum_i w_i q_i, where q_i is the upstream gradient of Gaussian i's weight.
#include <algorithm>

#include "scene.h"
#include "threads.h"

namespace splatsmith {
namespace {

struct Offsets {  // of the pixels of a block from the tile's corner
    V x[COLUMNS], y[STRIPS];
    Offsets() {
        for (int l = 0; l < LANES; ++l) {
            for (int k = 0; k < COLUMNS; ++k) x[k][l] = k * BLOCK_WIDTH + l % BLOCK_WIDTH + 0.5f;
            for (int k = 0; k < STRIPS; ++k) y[k][l] = k * BLOCK_HEIGHT + l / BLOCK_WIDTH + 0.5f;
        }
    }
};

struct Window {  // a tile's part of the image
    int x0, y0, width, height;
    Window(const View& view, int64_t tile)
        : x0(int(tile % view.tiles_x) * TILE),
          y0(int(tile / view.tiles_x) * TILE),
          width(std::min(TILE, view.width - x0)),
          height(std::min(TILE, view.height - y0)) {}
};

// Calls body(index of the first pixel in the image, its place in an array of blocks, count) for the rows of all blocks.
template <class F>
inline void for_pixel_runs(const Window& window, int image_width, F&& body) {
    for (int y = 0; y < window.height; ++y)
        for (int x = 0; x < window.width; x += BLOCK_WIDTH) {
            int lane = ((y / BLOCK_HEIGHT) * COLUMNS + x / BLOCK_WIDTH) * LANES + (y % BLOCK_HEIGHT) * BLOCK_WIDTH;
            size_t at = size_t(window.y0 + y) * image_width + window.x0 + x;
            if (window.width - x >= BLOCK_WIDTH)
                body(at, lane, BLOCK_WIDTH);
            else
                body(at, lane, window.width - x);
        }
}

inline V log2_alpha(const Record& g, V dx, V dy) {
    V along_x = fma(splat(g.xx), dx, splat(g.xy) * dy);
    V along_y = fma(splat(g.yy) * dy, dy, splat(g.log2_opacity));
    return fma(along_x, dx, along_y);
}

// The transmittance of a finished pixel, and of a lane outside the image, carries a minus sign.
struct Step {
    V alpha;          // before the clamp to ALPHA_MAX
    V clamped;        // after it
    V weight;         // 0 where not composited
    V transmittance;  // afterwards
    Mask composited;
};

// One Gaussian over one block; alpha = 2^power. No branches: a block that it leaves alone is rarer than a mispredicted jump is dear.
inline Step composite(V power, V alpha, V T) {
    Step step;
    Mask visible = le(splat(LOG2_ALPHA_MIN), power);
    step.alpha = alpha;
    step.clamped = min(step.alpha, splat(ALPHA_MAX));
    V after = fnma(step.clamped, T, T);  // not above the minimum where T is negative
    step.composited = both(visible, lt(splat(TRANSMITTANCE_MIN), after));
    step.weight = keep(step.composited, step.clamped * T);
    step.transmittance = select(step.composited, after, marked(first_only(visible, step.composited), T));
    return step;
}

// Between so many Gaussians, blocks that are finished are looked for.
constexpr uint32_t CHECK_EVERY = 8;

// Blocks with a pixel that is not finished.
inline Bits open_blocks(const V* T) {
    Bits open = 0;
    for (int b = 0; b < BLOCKS; ++b) open |= (Bits)((Bits)any(lt(V{}, T[b])) << b);
    return open;
}

inline void start(const Window& window, V* T) {
    alignas(64) float lanes[BLOCKS * LANES];
    std::fill(lanes, lanes + BLOCKS * LANES, -1.0f);
    for_pixel_runs(window, 0, [&](size_t, int lane, int count) {
        for (int i = 0; i < count; ++i) lanes[lane + i] = 1.0f;
    });
    for (int b = 0; b < BLOCKS; ++b) T[b] = load(lanes + b * LANES);
}

inline int lowest(Bits b) { return __builtin_ctzll((unsigned long long)b); }

void blend_tile(const View& view, const CameraState& state, const Offsets& offsets, int64_t tile, const float* background, float* rgb,
                float* alpha, float* depth) {
    Window window(view, tile);
    V T[BLOCKS], R[BLOCKS] = {}, G[BLOCKS] = {}, B[BLOCKS] = {}, D[BLOCKS] = {};
    start(window, T);
    Bits open = open_blocks(T);
    uint32_t end = state.tile_start[tile + 1];
    for (uint32_t e = state.tile_start[tile]; e < end; ++e) {
        if (e + 6 < end) __builtin_prefetch(&state.records[state.entries[e + 6].rank]);
        if (e % CHECK_EVERY == 0 && !(open = open_blocks(T))) break;
        const Entry& entry = state.entries[e];
        Bits blocks = entry.blocks & open;
        if (!blocks) continue;
        const Record& g = state.records[entry.rank];
        V left = splat(window.x0 - g.x), top = splat(window.y0 - g.y);
        V r = splat(g.r), gr = splat(g.g), bl = splat(g.b), z = splat(g.z);
        do {
            int b = lowest(blocks);
            blocks &= blocks - 1;
            V power = log2_alpha(g, offsets.x[b % COLUMNS] + left, offsets.y[b / COLUMNS] + top);
            Step step = composite(power, exp2(power), T[b]);
            T[b] = step.transmittance;
            R[b] = fma(step.weight, r, R[b]);
            G[b] = fma(step.weight, gr, G[b]);
            B[b] = fma(step.weight, bl, B[b]);
            D[b] = fma(step.weight, z, D[b]);
        } while (blocks);
    }

    V bg_r = V{}, bg_g = V{}, bg_b = V{};
    if (background) bg_r = splat(background[0]), bg_g = splat(background[1]), bg_b = splat(background[2]);
    for (int b = 0; b < BLOCKS; ++b) {
        T[b] = abs(T[b]);
        R[b] = fma(T[b], bg_r, R[b]);
        G[b] = fma(T[b], bg_g, G[b]);
        B[b] = fma(T[b], bg_b, B[b]);
        T[b] = 1.0f - T[b];
    }
    alignas(64) float pixels[5][BLOCKS * LANES];
    for (int b = 0; b < BLOCKS; ++b) {
        store(pixels[0] + b * LANES, R[b]), store(pixels[1] + b * LANES, G[b]), store(pixels[2] + b * LANES, B[b]);
        store(pixels[3] + b * LANES, T[b]), store(pixels[4] + b * LANES, D[b]);
    }
    for_pixel_runs(window, view.width, [&](size_t at, int lane, int count) {
        for (int i = 0; i < count; ++i) {
            rgb[3 * (at + i)] = pixels[0][lane + i];
            rgb[3 * (at + i) + 1] = pixels[1][lane + i];
            rgb[3 * (at + i) + 2] = pixels[2][lane + i];
            alpha[at + i] = pixels[3][lane + i];
            depth[at + i] = pixels[4][lane + i];
        }
    });
}

struct Pixels {  // the upstream gradients of a tile, and the running suffix
    V r[BLOCKS], g[BLOCKS], b[BLOCKS], z[BLOCKS], suffix[BLOCKS];
};

// Returns the sums of T_final * v_rgb for the background's gradient.
void load_upstream(const View& view, const Window& window, const float* rgb, const float* alpha, const float* depth,
                   const Upstream& up, Pixels& pixels, double* v_background) {
    alignas(64) float r[BLOCKS * LANES] = {}, g[BLOCKS * LANES] = {}, b[BLOCKS * LANES] = {}, z[BLOCKS * LANES] = {};
    alignas(64) float suffix[BLOCKS * LANES] = {};
    float total_r = 0, total_g = 0, total_b = 0;
    for_pixel_runs(window, view.width, [&](size_t first, int lane, int count) {
        for (int i = 0; i < count; ++i) {
            size_t at = first + i;
            int l = lane + i;
            float left_over = 1.0f - alpha[at], s = 0;
            if (up.rgb) {
                r[l] = up.rgb[3 * at], g[l] = up.rgb[3 * at + 1], b[l] = up.rgb[3 * at + 2];
                s = rgb[3 * at] * r[l] + rgb[3 * at + 1] * g[l] + rgb[3 * at + 2] * b[l];
                total_r += left_over * r[l], total_g += left_over * g[l], total_b += left_over * b[l];
            }
            if (up.depth) z[l] = up.depth[at], s += depth[at] * z[l];
            if (up.alpha) s -= left_over * up.alpha[at];
            suffix[l] = s;
        }
    });
    for (int k = 0; k < BLOCKS; ++k) {
        pixels.r[k] = load(r + k * LANES), pixels.g[k] = load(g + k * LANES), pixels.b[k] = load(b + k * LANES);
        pixels.z[k] = load(z + k * LANES), pixels.suffix[k] = load(suffix + k * LANES);
    }
    if (v_background) v_background[0] = total_r, v_background[1] = total_g, v_background[2] = total_b;
}

template <bool with_depth, bool with_abs>
void blend_tile_backward(const View& view, const CameraState& state, const Offsets& offsets, int64_t tile, Pixels& pixels,
                         float* slots) {
    constexpr int count = with_abs ? SUMS_WITH_ABS : SUMS;
    Window window(view, tile);
    V T[BLOCKS];
    start(window, T);
    Bits open = open_blocks(T);
    uint32_t e = state.tile_start[tile], end = state.tile_start[tile + 1];
    for (; e < end; ++e) {
        if (e % CHECK_EVERY == 0 && !(open = open_blocks(T))) break;
        if (e + 6 < end) {
            __builtin_prefetch(&state.records[state.entries[e + 6].rank]);
            __builtin_prefetch(slots + count * size_t(state.entries[e + 6].slot), 1);
        }
        const Entry& entry = state.entries[e];
        float* slot = slots + count * size_t(entry.slot);
        Bits blocks = entry.blocks & open;
        const Record& g = state.records[entry.rank];
        V left = splat(window.x0 - g.x), top = splat(window.y0 - g.y);
        V red = splat(g.r), green = splat(g.g), blue = splat(g.b), z = splat(g.z);
        V sums[count] = {};
        if (!blocks) {
            std::memset(slot, 0, count * sizeof(float));
            continue;
        }
        // One block after the other is a long chain of operations: the next block's alpha is begun before this one's sums.
        auto apply = [&](int b, V dx, V dy, V power, V alpha) {
            Step step = composite(power, alpha, T[b]);
            T[b] = step.transmittance;
            V q = fma(red, pixels.r[b], fma(green, pixels.g[b], blue * pixels.b[b]));
            if (with_depth) q = fma(z, pixels.z[b], q);
            V own = step.weight * q;
            V suffix = pixels.suffix[b] - own;
            pixels.suffix[b] = suffix;
            // dL/dalpha = T q - suffix / (1 - alpha); times alpha for dL/d ln(alpha). The clamp to ALPHA_MAX stops it.
            V ratio = step.clamped * reciprocal(1.0f - step.clamped);
            Mask moves = both(step.composited, le(step.alpha, splat(ALPHA_MAX)));
            V v = keep(moves, fma(-suffix, ratio, own));
            V vx = v * dx, vy = v * dy;
            sums[0] += v;
            sums[1] += vx;
            sums[2] += vy;
            sums[3] = fma(vx, dx, sums[3]);
            sums[4] = fma(vx, dy, sums[4]);
            sums[5] = fma(vy, dy, sums[5]);
            sums[6] = fma(step.weight, pixels.r[b], sums[6]);
            sums[7] = fma(step.weight, pixels.g[b], sums[7]);
            sums[8] = fma(step.weight, pixels.b[b], sums[8]);
            if (with_depth) sums[9] = fma(step.weight, pixels.z[b], sums[9]);
            if (with_abs) {
                sums[10] += abs(fma(vx, splat(2 * g.xx), vy * g.xy));
                sums[11] += abs(fma(vy, splat(2 * g.yy), vx * g.xy));
            }
        };
        int b = lowest(blocks);
        V dx = offsets.x[b % COLUMNS] + left, dy = offsets.y[b / COLUMNS] + top;
        V power = log2_alpha(g, dx, dy), alpha = exp2(power);
        while (blocks &= blocks - 1) {
            int next = lowest(blocks);
            V next_dx = offsets.x[next % COLUMNS] + left, next_dy = offsets.y[next / COLUMNS] + top;
            V next_power = log2_alpha(g, next_dx, next_dy), next_alpha = exp2(next_power);
            apply(b, dx, dy, power, alpha);
            b = next, dx = next_dx, dy = next_dy, power = next_power, alpha = next_alpha;
        }
        apply(b, dx, dy, power, alpha);
        sums_of<count>(sums, slot);
    }
    for (; e < end; ++e) std::memset(slots + count * size_t(state.entries[e].slot), 0, count * sizeof(float));
}

const Offsets& offsets() {
    static const Offsets table;
    return table;
}

}  // namespace

void blend(const View& view, int threads, const CameraState& state, const float* background, float* rgb, float* alpha, float* depth) {
    const Offsets& table = offsets();
    parallel(threads, int64_t(view.tiles_x) * view.tiles_y,
             [&](int64_t tile) { blend_tile(view, state, table, tile, background, rgb, alpha, depth); });
}

void blend_backward(const View& view, int threads, const CameraState& state, Scratch& scratch, const float* rgb, const float* alpha,
                    const float* depth, const Upstream& upstream, bool with_abs, float* v_background) {
    const Offsets& table = offsets();
    int64_t tiles = int64_t(view.tiles_x) * view.tiles_y;
    // Some more, because slots are read in whole vectors.
    float* slots = scratch.slots.reserve(size_t(state.pair_count) * (with_abs ? SUMS_WITH_ABS : SUMS) + SUMS_WITH_ABS + LANES);
    auto backward = upstream.depth ? with_abs ? blend_tile_backward<true, true> : blend_tile_backward<true, false>
                    : with_abs     ? blend_tile_backward<false, true>
                                   : blend_tile_backward<false, false>;
    if (v_background) scratch.partial.reserve(3 * tiles);
    parallel(threads, tiles, [&](int64_t tile) {
        Pixels pixels;
        load_upstream(view, Window(view, tile), rgb, alpha, depth, upstream, pixels,
                      v_background ? scratch.partial.data() + 3 * tile : nullptr);
        backward(view, state, table, tile, pixels, slots);
    });
    if (v_background) {
        double total[3] = {};
        for (int64_t t = 0; t < tiles; ++t)
            for (int k = 0; k < 3; ++k) total[k] += scratch.partial[3 * t + k];
        for (int k = 0; k < 3; ++k) v_background[k] = (float)total[k];
    }
}

}  // namespace splatsmith
