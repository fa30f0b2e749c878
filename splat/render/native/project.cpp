// World to image: which Gaussians are drawn, where, in which colour, over which blocks; and the way back.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "projection.h"
#include "threads.h"

namespace splatsmith {
namespace {

Mask finite(V v) { return le(abs(v), splat(FLT_MAX)); }

// NaN anywhere, or an infinity that no image can come from. A log-scale of -inf (a point) and logits of +-inf are numbers.
bool bad_numbers(const Scene& scene, int64_t first) {
    V mean[3], quat[4], log_scale[3], logit;
    gather_rows<3>(scene.means, first, scene.count, mean);
    gather_rows<4>(scene.quats, first, scene.count, quat);
    gather_rows<3>(scene.log_scales, first, scene.count, log_scale);
    gather_rows<1>(scene.opacity_logits, first, scene.count, &logit);
    Mask good = le(logit, splat(INFINITY));
    for (V v : mean) good = both(good, finite(v));
    for (V v : quat) good = both(good, finite(v));
    for (V v : log_scale) good = both(good, le(v, splat(FLT_MAX)));
    return bits(good) != (1u << LANES) - 1;
}

struct Ellipse {  // where alpha >= 1/255
    float x, y;
    float a, b, det;         // conic a, b and determinant
    float squared;           // squared Mahalanobis radius
    float reach_x, reach_y;  // half box
    float tilt;              // y offset of the rightmost point
};

// First and last block column in each strip of blocks from `strip0` to `strip1`; empty strips have first > last.
void strip_intervals(const View& view, const Ellipse& e, int strip0, int strip1, int32_t* low, int32_t* high) {
    // A little is added everywhere so that rounding never loses a pixel; the alpha test decides.
    float slack = 4e-3f + 1e-6f * (std::fabs(e.x) + e.reach_x);
    float inverse_a = 1.0f / e.a;
    alignas(64) float lane[LANES];
    for (int l = 0; l < LANES; ++l) lane[l] = l * BLOCK_HEIGHT + 0.5f;
    for (int s = strip0; s <= strip1; s += LANES) {
        V top = load(lane) + (s * BLOCK_HEIGHT - e.y);
        V bottom = top + (BLOCK_HEIGHT - 1.0f);
        top = clamp(top - slack, -e.reach_y, e.reach_y);
        bottom = clamp(bottom + slack, -e.reach_y, e.reach_y);
        V y_right = min(max(splat(e.tilt), top), bottom), y_left = min(max(splat(-e.tilt), top), bottom);
        V right = (sqrt(max(e.a * e.squared - e.det * y_right * y_right, V{})) - e.b * y_right) * inverse_a;
        V left = (-sqrt(max(e.a * e.squared - e.det * y_left * y_left, V{})) - e.b * y_left) * inverse_a;
        // Pixel i is inside when its centre i + 0.5 is; truncation is floor because of the clamp and the shift by one.
        V last = clamp(right + (e.x + slack + 0.5f), 0.0f, (float)view.width);
        V first = clamp(left + (e.x - slack + 0.5f), 0.0f, (float)view.width);
        I last_pixel = truncate(last) - 1;
        I first_pixel = truncate(first);
        I ceiling = to_float(first_pixel) < first ? I{} + 1 : I{};
        first_pixel += ceiling - 1;
        first_pixel = first_pixel < 0 ? I{} : first_pixel;
        I low_column = first_pixel >> 2, high_column = last_pixel >> 2;
        high_column = last_pixel < first_pixel ? I{} - 1 : high_column;  // no pixel centre inside
        std::memcpy(low + (s - strip0), &low_column, sizeof low_column);
        std::memcpy(high + (s - strip0), &high_column, sizeof high_column);
    }
}

// Appends the tiles and blocks that the ellipse touches. `low`, `high` are scratch for all strips of the image.
uint32_t append_pairs(const View& view, const Ellipse& e, PairChunk& chunk, int32_t* low, int32_t* high) {
    float slack = 4e-3f + 1e-6f * (std::fabs(e.y) + e.reach_y);
    float y_first = std::max(e.y - e.reach_y - slack - 0.5f, 0.0f);
    float y_last = std::min(e.y + e.reach_y + slack - 0.5f, view.height - 1.0f);
    if (!(y_first <= y_last)) return 0;
    int row0 = (int)std::ceil(y_first), row1 = (int)y_last;
    if (row0 > row1) return 0;
    int strip0 = row0 / BLOCK_HEIGHT, strip1 = row1 / BLOCK_HEIGHT;
    int tile0 = strip0 / STRIPS, tile1 = strip1 / STRIPS;
    // Pad to whole tiles with empty strips.
    int base = tile0 * STRIPS;
    strip_intervals(view, e, strip0, strip1, low + (strip0 - base), high + (strip0 - base));
    for (int s = base; s < strip0; ++s) low[s - base] = INT32_MAX, high[s - base] = -1;
    for (int s = strip1 + 1; s < (tile1 + 1) * STRIPS; ++s) low[s - base] = INT32_MAX, high[s - base] = -1;

    uint32_t start = chunk.used;
    for (int ty = tile0; ty <= tile1; ++ty) {
        const int32_t* lo = low + (ty * STRIPS - base);
        const int32_t* hi = high + (ty * STRIPS - base);
        int column0 = INT32_MAX, column1 = -1;
        for (int s = 0; s < STRIPS; ++s) {
            if (lo[s] > hi[s]) continue;
            column0 = std::min(column0, lo[s]);
            column1 = std::max(column1, hi[s]);
        }
        if (column0 > column1) continue;
        int tx0 = column0 / COLUMNS, tx1 = column1 / COLUMNS;
        Pair* out = chunk.pairs.grow(chunk.used + size_t(tx1 - tx0 + 1), chunk.used) + chunk.used;
        for (int tx = tx0; tx <= tx1; ++tx) {
            Bits blocks = 0;
            for (int s = 0; s < STRIPS; ++s) {
                int l = std::max(lo[s] - tx * COLUMNS, 0), h = std::min(hi[s] - tx * COLUMNS, COLUMNS - 1);
                Bits row = l <= h ? (Bits)((2u << h) - (1u << l)) : (Bits)0;
                blocks |= (Bits)(row << (s * COLUMNS));
            }
            if (!blocks) continue;
            *out++ = {uint32_t(ty * view.tiles_x + tx), blocks};
        }
        size_t used = out - chunk.pairs.data();
        if (used > UINT32_MAX / 2) throw std::bad_alloc();
        chunk.used = (uint32_t)used;
    }
    return chunk.used - start;
}

}  // namespace

View::View(const Lens& lens, int camera) {
    const float* m = lens.cam_from_world + 16 * camera;
    const float* K = lens.K + 9 * camera;
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) W[i][j] = m[4 * i + j];
        t[i] = m[4 * i + 3];
    }
    for (int j = 0; j < 3; ++j) center[j] = -(W[0][j] * t[0] + W[1][j] * t[1] + W[2][j] * t[2]);
    fx = K[0], fy = K[4], cx = K[2], cy = K[5];
    width = lens.width, height = lens.height;
    tiles_x = (width + TILE - 1) / TILE, tiles_y = (height + TILE - 1) / TILE;
    // gsplat's limits: 30 % of the half image beyond the frame.
    float margin_x = 0.3f * 0.5f * width / fx, margin_y = 0.3f * 0.5f * height / fy;
    limit_x_low = -(cx / fx + margin_x), limit_x_high = (width - cx) / fx + margin_x;
    limit_y_low = -(cy / fy + margin_y), limit_y_high = (height - cy) / fy + margin_y;
    near = lens.near, low_pass = lens.low_pass;
    antialiased = lens.antialiased;
}

void CameraState::make_chunks(size_t count) {
    if (count > chunk_count) {
        Buffer<PairChunk> bigger;
        bigger.reserve(count);
        for (size_t i = 0; i < count; ++i) new (&bigger[i]) PairChunk();
        for (size_t i = 0; i < chunk_count; ++i) {
            bigger[i].pairs = std::move(chunks[i].pairs);
            chunks[i].~PairChunk();
        }
        chunks = std::move(bigger);
        chunk_count = count;
    }
}

size_t CameraState::bytes() const {
    size_t total = records.bytes() + first.bytes() + touched.bytes() + tile_start.bytes() + entries.bytes();
    for (size_t i = 0; i < chunk_count; ++i) total += chunks[i].pairs.bytes();
    return total;
}

bool project(const Scene& scene, const View& view, int threads, CameraState& state, float* means2d, float* radii) {
    int64_t n = scene.count, chunks = (n + CHUNK - 1) / CHUNK;
    state.records.reserve(n);
    state.first.reserve(n);
    state.touched.reserve(n);
    state.make_chunks(chunks);
    int used_terms = (scene.degree + 1) * (scene.degree + 1);

    parallel(threads, chunks, [&](int64_t c) {
        PairChunk& chunk = state.chunks[c];
        chunk.used = chunk.drawn = 0;
        chunk.bad_numbers = false;
        int strips = view.tiles_y * STRIPS + LANES;
        static thread_local Buffer<int32_t> strip_scratch;
        int32_t* low = strip_scratch.reserve(2 * size_t(strips));
        int32_t* high = low + strips;

        int64_t end = std::min(n, (c + 1) * CHUNK);
        for (int64_t i = c * CHUNK; i < end; i += LANES) {
            int lanes = (int)std::min<int64_t>(LANES, end - i);
            if (bad_numbers(scene, i)) {
                chunk.bad_numbers = true;
                return;
            }
            Projected p;
            project_lanes(scene, view, i, p);
            V mx = view.fx * p.x * p.rz + view.cx, my = view.fy * p.y * p.rz + view.cy;
            V rdet = 1.0f / p.det;
            V a = p.cov11 * rdet, b = -p.cov01 * rdet, conic_c = p.cov00 * rdet;
            // alpha >= 1/255 within this squared Mahalanobis radius.
            V squared = (p.log2_opacity - LOG2_ALPHA_MIN) * 1.38629436f;
            Mask drawn = both(lt(splat(view.near), p.z), le(V{}, squared));
            drawn = both(drawn, both(lt(V{}, p.det), finite(p.det)));
            drawn = both(drawn, both(finite(p.cov00 * p.cov11), both(finite(mx), finite(my))));
            drawn = both(drawn, both(finite(a), finite(conic_c)));
            V reach_x = sqrt(squared * p.cov00), reach_y = sqrt(squared * p.cov11);
            drawn = both(drawn, both(lt(V{}, mx + reach_x), lt(mx - reach_x, splat((float)view.width))));
            drawn = both(drawn, both(lt(V{}, my + reach_y), lt(my - reach_y, splat((float)view.height))));
            unsigned live = bits(drawn) & ((1u << lanes) - 1);

            if (live) {
                V direction[3] = {}, Y[16], sh[48], rgb[3];
                if (scene.degree > 0) view_directions(view, p, direction);
                sh_basis(scene.degree, direction[0], direction[1], direction[2], Y);
                gather_sh(scene, i, used_terms, sh);
                for (int k = 0; k < 3; ++k) {
                    V sum = splat(0.5f);
                    for (int j = 0; j < used_terms; ++j) sum = fma(Y[j], sh[3 * j + k], sum);
                    if (bits(finite(sum)) != (1u << LANES) - 1) {
                        chunk.bad_numbers = true;
                        return;
                    }
                    rgb[k] = select(lt(sum, V{}), splat(-0.0f), abs(sum));
                }
                const V log2e = splat(1.44269504f);
                // In the order of Record.
                V fields[16] = {mx, my, -0.5f * a * log2e, -b * log2e, -0.5f * conic_c * log2e, p.log2_opacity, rgb[0], rgb[1],
                                rgb[2], p.z, a, b, conic_c, p.opacity, V{}, V{}};
                alignas(64) float columns[16][LANES];
                for (int k = 0; k < 16; ++k) store(columns[k], fields[k]);
                alignas(64) float extra[5][LANES];
                store(extra[0], rdet), store(extra[1], squared * 1.0005f + 1e-4f), store(extra[2], reach_x), store(extra[3], reach_y);
                store(extra[4], p.cov01 / p.cov00);
                for (int l = 0; l < lanes; ++l) {
                    if (!(live >> l & 1)) continue;
                    float* row = reinterpret_cast<float*>(&state.records[i + l]);
                    for (int k = 0; k < 14; ++k) row[k] = columns[k][l];
                    float reach = extra[2][l] * 1.0003f + 1e-3f;
                    Ellipse e{columns[0][l], columns[1][l], columns[10][l], columns[11][l], extra[0][l], extra[1][l], reach,
                              extra[3][l] * 1.0003f + 1e-3f, extra[4][l] * reach};
                    state.first[i + l] = chunk.used;
                    state.touched[i + l] = append_pairs(view, e, chunk, low, high);
                    chunk.drawn += state.touched[i + l] > 0;
                }
            }
            alignas(64) float out_x[LANES], out_y[LANES], out_radius[LANES];
            store(out_x, mx), store(out_y, my), store(out_radius, max(reach_x, reach_y));
            for (int l = 0; l < lanes; ++l) {
                bool on = live >> l & 1;
                if (!on) state.touched[i + l] = 0;
                means2d[2 * (i + l)] = on ? out_x[l] : 0.0f;
                means2d[2 * (i + l) + 1] = on ? out_y[l] : 0.0f;
                radii[i + l] = on ? std::ceil(out_radius[l]) : 0.0f;
            }
        }
    });

    uint64_t total = 0;
    bool good = true;
    for (int64_t c = 0; c < chunks; ++c) {
        good = good && !state.chunks[c].bad_numbers;
        state.chunks[c].base = (uint32_t)total;
        total += state.chunks[c].used;
        if (total > UINT32_MAX / 2) throw std::bad_alloc();
    }
    state.pair_count = (uint32_t)total;
    return good;
}

void project_backward(const Scene& scene, const View& view, int threads, const CameraState& state, Scratch& scratch,
                      const Gradients& out, int camera) {
    int64_t n = scene.count, chunks = (n + CHUNK - 1) / CHUNK;
    const int used_terms = (scene.degree + 1) * (scene.degree + 1);
    const bool first_camera = camera == 0;
    float* v_means2d = out.means2d ? out.means2d + 2 * n * camera : nullptr;
    const bool pose = out.cam_from_world != nullptr;
    if (pose) scratch.partial.reserve(size_t(chunks) * 15);

    parallel(threads, chunks, [&](int64_t c) {
        V v_W[3][3] = {}, v_t[3] = {}, v_center[3] = {};
        int64_t end = std::min(n, (c + 1) * CHUNK);
        for (int64_t i = c * CHUNK; i < end; i += LANES) {
            int lanes = (int)std::min<int64_t>(LANES, end - i);
            unsigned live = 0;
            for (int l = 0; l < lanes; ++l) live |= unsigned(state.touched[i + l] > 0) << l;
            if (first_camera) {
                int stride = 3 * scene.terms;
                if (!live) {
                    std::memset(out.means + 3 * i, 0, lanes * 3 * sizeof(float));
                    std::memset(out.quats + 4 * i, 0, lanes * 4 * sizeof(float));
                    std::memset(out.log_scales + 3 * i, 0, lanes * 3 * sizeof(float));
                    std::memset(out.opacity_logits + i, 0, lanes * sizeof(float));
                    std::memset(out.sh + i * stride, 0, lanes * stride * sizeof(float));
                }
            }
            if (v_means2d && !live) std::memset(v_means2d + 2 * i, 0, lanes * 2 * sizeof(float));
            if (!live) continue;

            // The ten sums over pixels: g, g dx, g dy, g dx^2, g dx dy, g dy^2 with g = dL/d ln(alpha), then r, g, b, z.
            alignas(64) float sums[10][LANES] = {};
            alignas(64) float sign[3][LANES] = {};
            for (int l = 0; l < lanes; ++l) {
                if (!(live >> l & 1)) continue;
                const float* slot = scratch.slots.data() + 10 * (size_t(state.chunks[c].base) + state.first[i + l]);
                float total[10] = {};
                for (uint32_t k = 0; k < state.touched[i + l]; ++k, slot += 10)
                    for (int j = 0; j < 10; ++j) total[j] += slot[j];
                for (int j = 0; j < 10; ++j) sums[j][l] = total[j];
                const Record& record = state.records[i + l];
                sign[0][l] = record.r, sign[1][l] = record.g, sign[2][l] = record.b;
            }
            const Mask on = mask_of(live);
            V G = load(sums[0]), Sx = load(sums[1]), Sy = load(sums[2]), Sxx = load(sums[3]), Sxy = load(sums[4]), Syy = load(sums[5]);

            Projected p;
            project_lanes(scene, view, i, p);
            V rdet = 1.0f / p.det;
            V a = p.cov11 * rdet, b = -p.cov01 * rdet, cc = p.cov00 * rdet;

            // Here d = pixel - mean, so d ln(alpha) / d mean = conic d.
            V v_mx = keep(on, a * Sx + b * Sy), v_my = keep(on, b * Sx + cc * Sy);
            // d ln(alpha) / d conic, as a symmetric matrix; then conic = inverse(cov).
            V va = -0.5f * Sxx, vb = -0.5f * Sxy, vc = -0.5f * Syy;
            V v00 = -(a * (a * va + b * vb) + b * (a * vb + b * vc));
            V v01 = -(a * (b * va + cc * vb) + b * (b * vb + cc * vc));
            V v11 = -(b * (b * va + cc * vb) + cc * (b * vb + cc * vc));
            if (view.antialiased) {
                // ln(opacity) gained half of ln(det_raw / det).
                V half = 0.5f * G, raw = half / max(p.det_raw, splat(1e-37f)), low = view.low_pass * raw;
                v00 += (p.cov11 * raw - low) - half * a;
                v11 += (p.cov00 * raw - low) - half * cc;
                v01 += -p.cov01 * raw - half * b;
            }
            V v_U[2][3], v_JW[2][3];
            for (int k = 0; k < 3; ++k) {
                v_U[0][k] = keep(on, 2.0f * (v00 * p.U[0][k] + v01 * p.U[1][k]));
                v_U[1][k] = keep(on, 2.0f * (v01 * p.U[0][k] + v11 * p.U[1][k]));
            }
            V v_log_scale[3], v_R[3][3];
            for (int k = 0; k < 3; ++k) {
                V total = V{};
                for (int j = 0; j < 3; ++j) {
                    V v = fma(p.JW[0][j], v_U[0][k], p.JW[1][j] * v_U[1][k]) * p.scale[k];
                    v_R[j][k] = v;
                    total = fma(v, p.rotation[j][k], total);
                }
                v_log_scale[k] = total;
            }
            for (int r = 0; r < 2; ++r)
                for (int j = 0; j < 3; ++j) {
                    V v = V{};
                    for (int k = 0; k < 3; ++k) v = fma(v_U[r][k], p.rotation[j][k] * p.scale[k], v);
                    v_JW[r][j] = v;
                }
            V w = p.quat[0], x = p.quat[1], y = p.quat[2], z = p.quat[3];
            V v_quat[4];
            v_quat[0] = 2.0f * (x * (v_R[2][1] - v_R[1][2]) + y * (v_R[0][2] - v_R[2][0]) + z * (v_R[1][0] - v_R[0][1]));
            v_quat[1] = 2.0f * (y * (v_R[0][1] + v_R[1][0]) + z * (v_R[0][2] + v_R[2][0]) + w * (v_R[2][1] - v_R[1][2]) -
                                2.0f * x * (v_R[1][1] + v_R[2][2]));
            v_quat[2] = 2.0f * (x * (v_R[0][1] + v_R[1][0]) + z * (v_R[1][2] + v_R[2][1]) + w * (v_R[0][2] - v_R[2][0]) -
                                2.0f * y * (v_R[0][0] + v_R[2][2]));
            v_quat[3] = 2.0f * (x * (v_R[0][2] + v_R[2][0]) + y * (v_R[1][2] + v_R[2][1]) + w * (v_R[1][0] - v_R[0][1]) -
                                2.0f * z * (v_R[0][0] + v_R[1][1]));
            V along = w * v_quat[0] + x * v_quat[1] + y * v_quat[2] + z * v_quat[3];
            for (int k = 0; k < 4; ++k) v_quat[k] = (v_quat[k] - p.quat[k] * along) * p.quat_scale;

            // Jacobian and mean.
            const auto& W = view.W;
            V kx = view.fx * p.rz, ky = view.fy * p.rz;
            V v_kx = V{}, v_ky = V{}, v_xz = V{}, v_yz = V{};
            for (int j = 0; j < 3; ++j) {
                v_kx += v_JW[0][j] * (W[0][j] - p.xz * W[2][j]);
                v_ky += v_JW[1][j] * (W[1][j] - p.yz * W[2][j]);
                v_xz -= v_JW[0][j] * W[2][j];
                v_yz -= v_JW[1][j] * W[2][j];
            }
            v_xz = keep(p.x_free, v_xz * kx);
            v_yz = keep(p.y_free, v_yz * ky);
            V v_cam[3];
            v_cam[0] = (v_xz + view.fx * v_mx) * p.rz;
            v_cam[1] = (v_yz + view.fy * v_my) * p.rz;
            V v_rz = view.fx * v_kx + view.fy * v_ky + (v_xz + view.fx * v_mx) * p.x + (v_yz + view.fy * v_my) * p.y;
            v_cam[2] = load(sums[9]) - v_rz * p.rz * p.rz;
            for (V& v : v_cam) v = keep(on, v);
            V v_mean[3];
            for (int j = 0; j < 3; ++j) v_mean[j] = W[0][j] * v_cam[0] + W[1][j] * v_cam[1] + W[2][j] * v_cam[2];
            if (pose) {
                for (int r = 0; r < 3; ++r) {
                    v_t[r] += v_cam[r];
                    for (int j = 0; j < 3; ++j) v_W[r][j] += keep(on, v_cam[r] * p.mean[j]);
                }
                for (int j = 0; j < 3; ++j) {
                    V first = keep(on, kx * v_JW[0][j]), second = keep(on, ky * v_JW[1][j]);
                    v_W[0][j] += first;
                    v_W[1][j] += second;
                    v_W[2][j] -= keep(on, p.xz * first + p.yz * second);
                }
            }

            // Colour.
            V v_rgb[3];
            for (int k = 0; k < 3; ++k) {
                I negative = as_int(load(sign[k])) >> 31;
                v_rgb[k] = as_float(as_int(load(sums[6 + k])) & ~negative);
            }
            V direction[3] = {}, Y[16];
            V inverse = V{};
            if (scene.degree > 0) inverse = view_directions(view, p, direction);
            sh_basis(scene.degree, direction[0], direction[1], direction[2], Y);
            if (scene.degree > 0) {
                V sh[48], v_Y[16], v_dir[3];
                gather_sh(scene, i, used_terms, sh);
                for (int k = 0; k < used_terms; ++k)
                    v_Y[k] = v_rgb[0] * sh[3 * k] + v_rgb[1] * sh[3 * k + 1] + v_rgb[2] * sh[3 * k + 2];
                sh_basis_backward(scene.degree, direction[0], direction[1], direction[2], v_Y, v_dir);
                V radial = v_dir[0] * direction[0] + v_dir[1] * direction[1] + v_dir[2] * direction[2];
                for (int j = 0; j < 3; ++j) {
                    V v = keep(on, (v_dir[j] - direction[j] * radial) * inverse);
                    v_mean[j] += v;
                    v_center[j] -= v;
                }
            }
            V v_logit = G * (1.0f - p.opacity_raw);

            // Write, or add to what earlier cameras wrote.
            auto scatter = [&](const V* v, int width, float* rows) {
                alignas(64) float column[4][LANES];
                for (int k = 0; k < width; ++k) store(column[k], keep(on, v[k]));
                for (int l = 0; l < lanes; ++l)
                    for (int k = 0; k < width; ++k) {
                        float& target = rows[(i + l) * width + k];
                        target = first_camera ? column[k][l] : target + column[k][l];
                    }
            };
            scatter(v_mean, 3, out.means);
            scatter(v_quat, 4, out.quats);
            scatter(v_log_scale, 3, out.log_scales);
            scatter(&v_logit, 1, out.opacity_logits);
            alignas(64) float basis[16][LANES], colour[3][LANES];
            for (int k = 0; k < used_terms; ++k) store(basis[k], Y[k]);
            for (int k = 0; k < 3; ++k) store(colour[k], keep(on, v_rgb[k]));
            for (int l = 0; l < lanes; ++l) {
                float* row = out.sh + (i + l) * 3 * scene.terms;
                float r = colour[0][l], g = colour[1][l], bl = colour[2][l];
                if (first_camera) {
                    for (int k = 0; k < used_terms; ++k) {
                        row[3 * k] = basis[k][l] * r;
                        row[3 * k + 1] = basis[k][l] * g;
                        row[3 * k + 2] = basis[k][l] * bl;
                    }
                    std::memset(row + 3 * used_terms, 0, (scene.terms - used_terms) * 3 * sizeof(float));
                } else {
                    for (int k = 0; k < used_terms; ++k) {
                        row[3 * k] += basis[k][l] * r;
                        row[3 * k + 1] += basis[k][l] * g;
                        row[3 * k + 2] += basis[k][l] * bl;
                    }
                }
            }
            if (v_means2d) {
                alignas(64) float vx[LANES], vy[LANES];
                store(vx, v_mx), store(vy, v_my);
                for (int l = 0; l < lanes; ++l) v_means2d[2 * (i + l)] = vx[l], v_means2d[2 * (i + l) + 1] = vy[l];
            }
        }
        if (pose) {
            double* partial = scratch.partial.data() + 15 * c;
            for (int r = 0; r < 3; ++r) {
                for (int j = 0; j < 3; ++j) partial[3 * r + j] = sum(v_W[r][j]);
                partial[9 + r] = sum(v_t[r]);
                partial[12 + r] = sum(v_center[r]);
            }
        }
    });

    if (pose) {
        double total[15] = {};
        for (int64_t c = 0; c < chunks; ++c)
            for (int k = 0; k < 15; ++k) total[k] += scratch.partial[15 * c + k];
        float* v = out.cam_from_world + 16 * camera;
        for (int r = 0; r < 3; ++r) {
            // center = -W^T t
            double v_t = total[9 + r];
            for (int j = 0; j < 3; ++j) {
                v[4 * r + j] = (float)(total[3 * r + j] - view.t[r] * total[12 + j]);
                v_t -= view.W[r][j] * total[12 + j];
            }
            v[4 * r + 3] = (float)v_t;
        }
        for (int j = 0; j < 4; ++j) v[12 + j] = 0;
    }
}

}  // namespace splatsmith
