// The projection of LANES Gaussians at a time, shared by the forward and the backward pass.
#pragma once

#include <cfloat>
#include <cmath>

#include "scene.h"

namespace splatsmith {

constexpr unsigned ALL_LANES = (1u << LANES) - 1;

inline Mask finite(V v) { return le(abs(v), splat(FLT_MAX)); }

// Rows of a [N, width] array, one Gaussian per lane; rows past the end repeat the last one.
template <int width>
inline void gather_rows(const float* rows, int64_t first, int64_t count, V* out) {
    alignas(64) float lanes[width][LANES];
    for (int l = 0; l < LANES; ++l) {
        int64_t i = first + l < count ? first + l : count - 1;
        for (int k = 0; k < width; ++k) lanes[k][l] = rows[i * width + k];
    }
    for (int k = 0; k < width; ++k) out[k] = load(lanes[k]);
}

struct Projected {
    V mean[3], quat[4], scale[3];
    V quat_scale;      // 1 / length of the quaternion as given
    V rotation[3][3];  // of the Gaussian
    V x, y, z, rz;     // camera frame, 1 / z
    V xz, yz;          // x/z and y/z, clamped for the Jacobian
    Mask x_free, y_free;
    V JW[2][3];         // Jacobian times world-to-camera rotation
    V U[2][3];          // JW R S, a root of the 2-D covariance
    V cov00, cov01, cov11;  // with the low pass
    V det_raw, det;     // without and with the low pass
    V opacity_raw, opacity;
    V log2_opacity;     // of `opacity`
};

// gsplat's projection with the clamped tangent in the Jacobian ("EWA Splatting", Zwicker et al. 2002, eq. 29).
// Returns the lanes whose numbers can be drawn: no NaN, and no infinity except a log-scale of -inf (a point) and logits.
inline Mask project_lanes(const Scene& scene, const View& view, int64_t first, Projected& p) {
    gather_rows<3>(scene.means, first, scene.count, p.mean);
    gather_rows<4>(scene.quats, first, scene.count, p.quat);
    gather_rows<3>(scene.log_scales, first, scene.count, p.scale);
    V logit;
    gather_rows<1>(scene.opacity_logits, first, scene.count, &logit);
    Mask good = le(logit, splat(INFINITY));
    for (V v : p.mean) good = both(good, finite(v));
    for (V v : p.quat) good = both(good, finite(v));
    for (V v : p.scale) good = both(good, le(v, splat(FLT_MAX)));

    for (V& s : p.scale) s = exp(s);
    V length = sqrt(p.quat[0] * p.quat[0] + p.quat[1] * p.quat[1] + p.quat[2] * p.quat[2] + p.quat[3] * p.quat[3]);
    p.quat_scale = 1.0f / max(length, splat(1e-12f));
    for (V& q : p.quat) q *= p.quat_scale;
    V w = p.quat[0], qx = p.quat[1], qy = p.quat[2], qz = p.quat[3];
    p.rotation[0][0] = 1.0f - 2.0f * (qy * qy + qz * qz);
    p.rotation[0][1] = 2.0f * (qx * qy - w * qz);
    p.rotation[0][2] = 2.0f * (qx * qz + w * qy);
    p.rotation[1][0] = 2.0f * (qx * qy + w * qz);
    p.rotation[1][1] = 1.0f - 2.0f * (qx * qx + qz * qz);
    p.rotation[1][2] = 2.0f * (qy * qz - w * qx);
    p.rotation[2][0] = 2.0f * (qx * qz - w * qy);
    p.rotation[2][1] = 2.0f * (qy * qz + w * qx);
    p.rotation[2][2] = 1.0f - 2.0f * (qx * qx + qy * qy);

    const auto& W = view.W;
    V cam[3];
    for (int i = 0; i < 3; ++i)
        cam[i] = fma(splat(W[i][0]), p.mean[0], fma(splat(W[i][1]), p.mean[1], fma(splat(W[i][2]), p.mean[2], splat(view.t[i]))));
    p.x = cam[0], p.y = cam[1], p.z = cam[2];
    p.rz = 1.0f / p.z;
    V tan_x = p.x * p.rz, tan_y = p.y * p.rz;
    p.xz = clamp(tan_x, view.limit_x_low, view.limit_x_high);
    p.yz = clamp(tan_y, view.limit_y_low, view.limit_y_high);
    p.x_free = both(le(splat(view.limit_x_low), tan_x), le(tan_x, splat(view.limit_x_high)));
    p.y_free = both(le(splat(view.limit_y_low), tan_y), le(tan_y, splat(view.limit_y_high)));

    V kx = view.fx * p.rz, ky = view.fy * p.rz;
    for (int j = 0; j < 3; ++j) {
        p.JW[0][j] = kx * (W[0][j] - p.xz * W[2][j]);
        p.JW[1][j] = ky * (W[1][j] - p.yz * W[2][j]);
    }
    for (int a = 0; a < 2; ++a)
        for (int k = 0; k < 3; ++k)
            p.U[a][k] = p.scale[k] * fma(p.JW[a][0], p.rotation[0][k], fma(p.JW[a][1], p.rotation[1][k], p.JW[a][2] * p.rotation[2][k]));
    V raw00 = p.U[0][0] * p.U[0][0] + p.U[0][1] * p.U[0][1] + p.U[0][2] * p.U[0][2];
    V raw11 = p.U[1][0] * p.U[1][0] + p.U[1][1] * p.U[1][1] + p.U[1][2] * p.U[1][2];
    p.cov01 = p.U[0][0] * p.U[1][0] + p.U[0][1] * p.U[1][1] + p.U[0][2] * p.U[1][2];
    // det(U U^T) as the sum of squared minors (Cauchy-Binet): no cancellation, unlike cov00 cov11 - cov01^2 for needles.
    V m0 = p.U[0][1] * p.U[1][2] - p.U[0][2] * p.U[1][1];
    V m1 = p.U[0][2] * p.U[1][0] - p.U[0][0] * p.U[1][2];
    V m2 = p.U[0][0] * p.U[1][1] - p.U[0][1] * p.U[1][0];
    p.det_raw = m0 * m0 + m1 * m1 + m2 * m2;
    p.det = p.det_raw + view.low_pass * (raw00 + raw11 + view.low_pass);
    p.cov00 = raw00 + view.low_pass;
    p.cov11 = raw11 + view.low_pass;

    V e = exp(-abs(logit));  // sigmoid without overflow at either end
    Mask negative = lt(logit, V{});
    p.opacity_raw = select(negative, e, splat(1.0f)) / (1.0f + e);
    p.opacity = p.opacity_raw;
    p.log2_opacity = select(negative, logit * 1.44269504f, V{}) - log2(1.0f + e);
    if (view.antialiased) {
        V ratio = p.det_raw / p.det;
        p.opacity *= sqrt(ratio);
        p.log2_opacity += 0.5f * log2(max(ratio, splat(1e-37f)));
    }
    return good;
}

// Real spherical harmonics of unit directions, in the order of splat/sh.py.
inline void sh_basis(int degree, V x, V y, V z, V* Y) {
    Y[0] = splat(0.28209479177387814f);
    if (degree < 1) return;
    constexpr float c1 = 0.4886025119029199f;
    Y[1] = -c1 * y, Y[2] = c1 * z, Y[3] = -c1 * x;
    if (degree < 2) return;
    V xx = x * x, yy = y * y, zz = z * z;
    Y[4] = 1.0925484305920792f * x * y;
    Y[5] = -1.0925484305920792f * y * z;
    Y[6] = 0.31539156525252005f * (2.0f * zz - xx - yy);
    Y[7] = -1.0925484305920792f * x * z;
    Y[8] = 0.5462742152960396f * (xx - yy);
    if (degree < 3) return;
    Y[9] = -0.5900435899266435f * y * (3.0f * xx - yy);
    Y[10] = 2.890611442640554f * x * y * z;
    Y[11] = -0.4570457994644658f * y * (4.0f * zz - xx - yy);
    Y[12] = 0.3731763325901154f * z * (2.0f * zz - 3.0f * xx - 3.0f * yy);
    Y[13] = -0.4570457994644658f * x * (4.0f * zz - xx - yy);
    Y[14] = 1.445305721320277f * z * (xx - yy);
    Y[15] = -0.5900435899266435f * x * (xx - 3.0f * yy);
}

// d (sum_k g[3 k] Y_k) / d (x, y, z), the coordinates taken as independent.
inline void sh_slopes(int degree, V x, V y, V z, const V* g, V* out) {
    V dx = V{}, dy = V{}, dz = V{};
    if (degree >= 1) {
        constexpr float c1 = 0.4886025119029199f;
        dx = -c1 * g[3 * 3], dy = -c1 * g[3 * 1], dz = c1 * g[3 * 2];
    }
    if (degree >= 2) {
        V g4 = 1.0925484305920792f * g[3 * 4], g5 = -1.0925484305920792f * g[3 * 5], g6 = 0.31539156525252005f * g[3 * 6];
        V g7 = -1.0925484305920792f * g[3 * 7], g8 = 0.5462742152960396f * g[3 * 8];
        dx += g4 * y + g7 * z + 2.0f * x * (g8 - g6);
        dy += g4 * x + g5 * z - 2.0f * y * (g8 + g6);
        dz += g5 * y + g7 * x + 4.0f * z * g6;
    }
    if (degree >= 3) {
        V xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
        V g9 = -0.5900435899266435f * g[3 * 9], g10 = 2.890611442640554f * g[3 * 10], g11 = -0.4570457994644658f * g[3 * 11];
        V g12 = 0.3731763325901154f * g[3 * 12], g13 = -0.4570457994644658f * g[3 * 13], g14 = 1.445305721320277f * g[3 * 14];
        V g15 = -0.5900435899266435f * g[3 * 15];
        V ring = 4.0f * zz - xx - yy, axis = 3.0f * (xx - yy);
        dx += g9 * 6.0f * xy + g10 * yz - g11 * 2.0f * xy - g12 * 6.0f * xz + g13 * (ring - 2.0f * xx) + g14 * 2.0f * xz + g15 * axis;
        dy += g9 * axis + g10 * xz + g11 * (ring - 2.0f * yy) - g12 * 6.0f * yz - g13 * 2.0f * xy - g14 * 2.0f * yz - g15 * 6.0f * xy;
        dz += g10 * xy + g11 * 8.0f * yz + g12 * (6.0f * zz - 3.0f * (xx + yy)) + g13 * 8.0f * xz + g14 * (xx - yy);
    }
    out[0] = dx, out[1] = dy, out[2] = dz;
}

// The first `width` floats of a row of `stride` floats, of LANES Gaussians: out[k] holds float k of each.
inline void rows_to_columns(const float* rows, int64_t first, int64_t count, int width, int stride, V* out) {
    const float* row[LANES];
    for (int l = 0; l < LANES; ++l) row[l] = rows + (first + l < count ? first + l : count - 1) * stride;
    if (width < LANES) {
        alignas(64) float lanes[LANES][LANES];
        for (int l = 0; l < LANES; ++l)
            for (int k = 0; k < width; ++k) lanes[k][l] = row[l][k];
        for (int k = 0; k < width; ++k) out[k] = load(lanes[k]);
        return;
    }
    for (int begin = 0; begin < width; begin += LANES) {
        int at = begin + LANES <= width ? begin : width - LANES;  // the last square overlaps the one before
        V square[LANES];
        for (int l = 0; l < LANES; ++l) square[l] = load(row[l] + at);
        transpose(square);
        for (int k = 0; k < LANES; ++k) out[at + k] = square[k];
    }
}

// The way back, to LANES rows of `stride` floats.
inline void columns_to_rows(const V* columns, int width, int stride, float* rows) {
    if (width < LANES) {
        alignas(64) float lanes[LANES][LANES];
        for (int k = 0; k < width; ++k) store(lanes[k], columns[k]);
        for (int l = 0; l < LANES; ++l)
            for (int k = 0; k < width; ++k) rows[l * stride + k] = lanes[k][l];
        return;
    }
    for (int begin = 0; begin < width; begin += LANES) {
        int at = begin + LANES <= width ? begin : width - LANES;
        V square[LANES];
        for (int k = 0; k < LANES; ++k) square[k] = columns[at + k];
        transpose(square);
        for (int l = 0; l < LANES; ++l) store(rows + l * stride + at, square[l]);
    }
}

// Unit directions from the camera to the means, and 1 / distance.
inline V view_directions(const View& view, const Projected& p, V* direction) {
    V d[3];
    for (int i = 0; i < 3; ++i) d[i] = p.mean[i] - view.center[i];
    V inverse = 1.0f / sqrt(max(d[0] * d[0] + d[1] * d[1] + d[2] * d[2], splat(1e-24f)));
    for (int i = 0; i < 3; ++i) direction[i] = d[i] * inverse;
    return inverse;
}

}  // namespace splatsmith
