// World to image: which Gaussians are drawn, where, in which colour, over which blocks; and the way back.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "projection.h"
#include "threads.h"

namespace splatsmith {
namespace {

constexpr size_t STREAM_FROM = size_t(24) << 20;  // bytes of the gradient of SH: most of a large cache
constexpr int SLOT_PARTS = (SUMS_WITH_ABS + LANES - 1) / LANES;  // vectors that hold a slot

// Adds up the slots of LANES Gaussians, each one's in their order. out[j]: sum j of every Gaussian; what lies behind the slot's
// `width` sums is rubbish.
inline void sum_slots(const float* slots, size_t width, const Slots* own, int lanes, V* out) {
    for (int k = 0; k < SLOT_PARTS * LANES; ++k) out[k] = V{};
    for (int l = 0; l < lanes; ++l) {
        const float* slot = slots + width * size_t(own[l].first);
        V total[SLOT_PARTS] = {};
        for (uint32_t k = 0; k < own[l].count; ++k, slot += width)
            for (int part = 0; part < SLOT_PARTS; ++part) total[part] += load(slot + part * LANES);
        for (int part = 0; part < SLOT_PARTS; ++part) out[part * LANES + l] = total[part];
    }
    for (int part = 0; part < SLOT_PARTS; ++part) transpose(out + part * LANES);
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

bool project(const Scene& scene, const View& view, int threads, bool keep_slopes, CameraState& state, Scratch& scratch, float* means2d,
             float* radii) {
    int64_t n = scene.count, chunks = (n + CHUNK - 1) / CHUNK;
    scratch.records.reserve(n);
    scratch.keys_other.reserve(n);
    scratch.chunk_counts.reserve(chunks);
    state.clamped.reserve(n);
    keep_slopes = keep_slopes && scene.degree > 0;
    if (keep_slopes) state.colour_slopes.reserve(9 * size_t(n + LANES));
    const int used_terms = (scene.degree + 1) * (scene.degree + 1);
    std::atomic<bool> bad_numbers{false};

    parallel(threads, chunks, [&](int64_t c) {
        Record* next = scratch.records.data() + c * CHUNK;
        int64_t end = std::min(n, (c + 1) * CHUNK);
        for (int64_t i = c * CHUNK; i < end; i += LANES) {
            int lanes = (int)std::min<int64_t>(LANES, end - i);
            Projected p;
            Mask good = project_lanes(scene, view, i, p);
            V mx = view.fx * p.x * p.rz + view.cx, my = view.fy * p.y * p.rz + view.cy;
            V rdet = 1.0f / p.det;
            // Alpha >= 1/255 where the conic's quadratic form is at most this; both in units of log2.
            V level = p.log2_opacity - LOG2_ALPHA_MIN;
            Mask drawn = both(lt(splat(view.near), p.z), le(V{}, level));
            drawn = both(drawn, both(lt(V{}, p.det), finite(p.det)));
            drawn = both(drawn, both(finite(mx), finite(my)));
            drawn = both(drawn, both(finite(p.cov11 * rdet), finite(p.cov00 * rdet)));
            const float log2e = 1.44269504f;
            V reach_x = sqrt((2 / log2e) * level * p.cov00), reach_y = sqrt((2 / log2e) * level * p.cov11);
            drawn = both(drawn, both(finite(reach_x), finite(reach_y)));
            drawn = both(drawn, both(lt(V{}, mx + reach_x), lt(mx - reach_x, splat((float)view.width))));
            drawn = both(drawn, both(lt(V{}, my + reach_y), lt(my - reach_y, splat((float)view.height))));
            unsigned live = bits(drawn) & ((1u << lanes) - 1);

            if (live) {
                V direction[3] = {}, Y[16], sh[48], rgb[3];
                if (scene.degree > 0) view_directions(view, p, direction);
                sh_basis(scene.degree, direction[0], direction[1], direction[2], Y);
                rows_to_columns(scene.sh, i, n, 3 * used_terms, 3 * scene.terms, sh);
                if (keep_slopes) {
                    V slopes[9];
                    for (int k = 0; k < 3; ++k) sh_slopes(scene.degree, direction[0], direction[1], direction[2], sh + k, slopes + 3 * k);
                    std::memcpy(state.colour_slopes.data() + 9 * i, slopes, sizeof slopes);
                }
                unsigned negative[3];
                for (int k = 0; k < 3; ++k) {
                    V sum = splat(0.5f);
                    for (int j = 0; j < used_terms; ++j) sum = fma(Y[j], sh[3 * j + k], sum);
                    good = both(good, finite(sum));
                    negative[k] = bits(lt(sum, V{}));
                    rgb[k] = max(sum, V{});
                }
                const float half = 0.5f * log2e;
                V scaled = half * rdet;
                // In the order of Record.
                V fields[14] = {mx, my, -scaled * p.cov11, 2.0f * scaled * p.cov01, -scaled * p.cov00, p.log2_opacity, rgb[0], rgb[1],
                                rgb[2], p.z, reach_x, reach_y, p.cov01 / p.cov00 * reach_x, half * scaled};
                alignas(64) float columns[14][LANES];
                for (int k = 0; k < 14; ++k) store(columns[k], fields[k]);
                for (int l = 0; l < lanes; ++l) {
                    state.clamped[i + l] = (negative[0] >> l & 1) | (negative[1] >> l & 1) << 1 | (negative[2] >> l & 1) << 2;
                    if (!(live >> l & 1)) continue;
                    float* row = reinterpret_cast<float*>(next);
                    for (int k = 0; k < 14; ++k) row[k] = columns[k][l];
                    next->gaussian = uint32_t(i + l);
                    std::memcpy(&scratch.keys_other[next - scratch.records.data()], &next->z, sizeof(float));
                    ++next;
                }
            }
            if (bits(good) != ALL_LANES) bad_numbers = true;
            alignas(64) float out_x[LANES], out_y[LANES], out_radius[LANES];
            store(out_x, keep(drawn, mx)), store(out_y, keep(drawn, my)), store(out_radius, keep(drawn, max(reach_x, reach_y)));
            for (int l = 0; l < lanes; ++l) {
                means2d[2 * (i + l)] = out_x[l];
                means2d[2 * (i + l) + 1] = out_y[l];
                radii[i + l] = std::ceil(out_radius[l]);
            }
        }
        scratch.chunk_counts[c] = uint32_t(next - (scratch.records.data() + c * CHUNK));
    });
    return !bad_numbers;
}

void project_backward(const Scene& scene, const View& view, int threads, const CameraState& state, Scratch& scratch,
                      const Gradients& out, int camera) {
    int64_t n = scene.count, chunks = (n + CHUNK - 1) / CHUNK;
    const int used_terms = (scene.degree + 1) * (scene.degree + 1);
    const bool first_camera = camera == 0;
    const int sh_stride = 3 * scene.terms;
    // Gradients that no cache can hold until the optimiser reads them are written past the caches.
    const bool stream = first_camera && sizeof(float) * sh_stride * size_t(n) > STREAM_FROM;
    float* v_means2d = out.means2d ? out.means2d + 2 * n * camera : nullptr;
    float* v_means2d_abs = out.means2d_abs ? out.means2d_abs + 2 * n * camera : nullptr;
    const size_t width = v_means2d_abs ? SUMS_WITH_ABS : SUMS;  // of a slot
    const bool pose = out.cam_from_world != nullptr;
    if (pose) scratch.partial.reserve(size_t(chunks) * 15);

    parallel(threads, chunks, [&](int64_t c) {
        V v_W[3][3] = {}, v_t[3] = {}, v_center[3] = {};
        alignas(64) float rows[48 * LANES];
        int64_t end = std::min(n, (c + 1) * CHUNK);
        for (int64_t i = c * CHUNK; i < end; i += LANES) {
            int lanes = (int)std::min<int64_t>(LANES, end - i);
            unsigned live = 0;
            for (int l = 0; l < lanes; ++l) live |= unsigned(state.slots[i + l].count > 0) << l;
            if (first_camera && !live) {
                std::memset(out.means + 3 * i, 0, lanes * 3 * sizeof(float));
                std::memset(out.quats + 4 * i, 0, lanes * 4 * sizeof(float));
                std::memset(out.log_scales + 3 * i, 0, lanes * 3 * sizeof(float));
                std::memset(out.opacity_logits + i, 0, lanes * sizeof(float));
                std::memset(out.sh + i * sh_stride, 0, lanes * sh_stride * sizeof(float));
            }
            if (v_means2d && !live) std::memset(v_means2d + 2 * i, 0, lanes * 2 * sizeof(float));
            if (v_means2d_abs && !live) std::memset(v_means2d_abs + 2 * i, 0, lanes * 2 * sizeof(float));
            if (!live) continue;

            V sums[SLOT_PARTS * LANES];
            sum_slots(scratch.slots.data(), width, &state.slots[i], lanes, sums);
            unsigned negative[3] = {};
            for (int l = 0; l < lanes; ++l)
                for (int k = 0; k < 3; ++k) negative[k] |= unsigned(state.clamped[i + l] >> k & 1) << l;
            const Mask on = mask_of(live);
            V G = sums[0], Sx = sums[1], Sy = sums[2], Sxx = sums[3], Sxy = sums[4], Syy = sums[5];

            Projected p;
            project_lanes(scene, view, i, p);
            V rdet = 1.0f / p.det;
            V a = p.cov11 * rdet, b = -p.cov01 * rdet, cc = p.cov00 * rdet;

            // Here d = pixel - mean, so d ln(alpha) / d mean = conic d.
            V v_mx = keep(on, a * Sx + b * Sy), v_my = keep(on, b * Sx + cc * Sy);
            // d ln(alpha) / d conic = -S / 2 with the second moments S, and conic = inverse(cov), cov = U U^T + low pass: so
            // v_U = conic S conic U. Column j of conic U is the adjugate of cov times column j over det; written as a sum over
            // the other columns, a needle's length does not cancel out of it.
            V v_U[2][3], v_JW[2][3], v_log_scale[3];
            V minors[3], det_raw = max(p.det_raw, splat(1e-37f));
            for (int j = 0; j < 3; ++j) {
                int n1 = (j + 1) % 3, n2 = (j + 2) % 3;
                minors[j] = p.U[0][n1] * p.U[1][n2] - p.U[0][n2] * p.U[1][n1];
            }
            for (int j = 0; j < 3; ++j) {
                int n1 = (j + 1) % 3, n2 = (j + 2) % 3;
                V plain0 = p.U[1][n1] * minors[n2] - p.U[1][n2] * minors[n1];  // without the low pass
                V plain1 = p.U[0][n2] * minors[n1] - p.U[0][n1] * minors[n2];
                V c0 = (plain0 + view.low_pass * p.U[0][j]) * rdet, c1 = (plain1 + view.low_pass * p.U[1][j]) * rdet;
                V s0 = Sxx * c0 + Sxy * c1, s1 = Sxy * c0 + Syy * c1;
                v_U[0][j] = a * s0 + b * s1, v_U[1][j] = b * s0 + cc * s1;
                v_log_scale[j] = c0 * s0 + c1 * s1;
                if (view.antialiased) {
                    // ln(opacity) gained half of ln(det_raw / det): inverse(U U^T) - conic, again without cancellation.
                    V scale = G * view.low_pass * rdet, sum = p.cov00 + p.cov11 - view.low_pass;
                    V squares = minors[n1] * minors[n1] + minors[n2] * minors[n2];
                    v_U[0][j] += scale * (plain0 * sum / det_raw - p.U[0][j]);
                    v_U[1][j] += scale * (plain1 * sum / det_raw - p.U[1][j]);
                    v_log_scale[j] += scale * (squares * sum / det_raw - (p.U[0][j] * p.U[0][j] + p.U[1][j] * p.U[1][j]));
                }
                for (V* row : v_U) row[j] = keep(on, row[j]);
                v_log_scale[j] = keep(on, v_log_scale[j]);
            }
            V v_R[3][3];
            for (int k = 0; k < 3; ++k)
                for (int j = 0; j < 3; ++j) v_R[j][k] = fma(p.JW[0][j], v_U[0][k], p.JW[1][j] * v_U[1][k]) * p.scale[k];
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
            v_cam[2] = sums[9] - v_rz * p.rz * p.rz;
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
            for (int k = 0; k < 3; ++k) v_rgb[k] = keep(mask_of(live & ~negative[k]), sums[6 + k]);
            V direction[3] = {}, Y[16];
            V inverse = V{};
            if (scene.degree > 0) inverse = view_directions(view, p, direction);
            sh_basis(scene.degree, direction[0], direction[1], direction[2], Y);
            if (scene.degree > 0) {
                V slopes[9], v_dir[3];
                std::memcpy(slopes, state.colour_slopes.data() + 9 * i, sizeof slopes);
                for (int j = 0; j < 3; ++j) v_dir[j] = v_rgb[0] * slopes[j] + v_rgb[1] * slopes[3 + j] + v_rgb[2] * slopes[6 + j];
                V radial = v_dir[0] * direction[0] + v_dir[1] * direction[1] + v_dir[2] * direction[2];
                for (int j = 0; j < 3; ++j) {
                    V v = keep(on, (v_dir[j] - direction[j] * radial) * inverse);
                    v_mean[j] += v;
                    v_center[j] -= v;
                }
            }
            V v_logit = G * (1.0f - p.opacity_raw);

            // Write, or add to what earlier cameras wrote.
            auto scatter = [&](const V* v, int used, int stride, float* to) {
                columns_to_rows(v, used, stride, rows);
                to += i * stride;
                size_t count = size_t(lanes) * stride;
                if (first_camera)
                    write_out(to, rows, count, stream);
                else
                    for (size_t k = 0; k < count; ++k) to[k] += rows[k];
            };
            for (V& v : v_mean) v = keep(on, v);
            for (V& v : v_quat) v = keep(on, v);
            v_logit = keep(on, v_logit);
            scatter(v_mean, 3, 3, out.means);
            scatter(v_quat, 4, 4, out.quats);
            scatter(v_log_scale, 3, 3, out.log_scales);
            scatter(&v_logit, 1, 1, out.opacity_logits);
            V v_sh[48];
            for (int k = 0; k < used_terms; ++k)
                for (int j = 0; j < 3; ++j) v_sh[3 * k + j] = keep(on, Y[k] * v_rgb[j]);
            if (scene.terms > used_terms) std::fill(rows, rows + LANES * sh_stride, 0.0f);
            scatter(v_sh, 3 * used_terms, sh_stride, out.sh);
            if (v_means2d) {
                alignas(64) float vx[LANES], vy[LANES];
                store(vx, v_mx), store(vy, v_my);
                for (int l = 0; l < lanes; ++l) v_means2d[2 * (i + l)] = vx[l], v_means2d[2 * (i + l) + 1] = vy[l];
            }
            if (v_means2d_abs) {
                constexpr float ln2 = 0.693147181f;  // the record's conic counts in powers of two
                alignas(64) float absolute[2][LANES];
                store(absolute[0], sums[10]), store(absolute[1], sums[11]);
                for (int l = 0; l < lanes; ++l)
                    for (int k = 0; k < 2; ++k) v_means2d_abs[2 * (i + l) + k] = ln2 * absolute[k][l];
            }
        }
        if (stream) streamed();
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
