// Vectors of 16 (AVX-512), 8 (AVX2) or 4 floats (portable), and the few functions the kernels need on them.
//
// Arithmetic uses the compiler's vector extension; only masks, fused multiply-add and reductions are named here. The build
// forbids contraction, so that `fma` is fused exactly where it is written: the backward pass repeats the decisions of the
// forward pass and must get the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

namespace splatsmith {

#if defined(__AVX512F__)
constexpr int LANES = 16;
using Mask = __mmask16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float V __attribute__((vector_size(LANES * 4)));
typedef int32_t I __attribute__((vector_size(LANES * 4)));
typedef uint32_t U __attribute__((vector_size(LANES * 4)));
#if !defined(__AVX512F__)
using Mask = I;  // all bits of a lane set, or none
#endif

#if defined(__AVX512F__)
inline V splat(float x) { return _mm512_set1_ps(x); }
#elif defined(__AVX2__)
inline V splat(float x) { return _mm256_set1_ps(x); }
#else
inline V splat(float x) { return V{x, x, x, x}; }
#endif

inline V load(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }

inline I as_int(V v) { return (I)v; }
inline V as_float(I v) { return (V)v; }

#if defined(__AVX512F__)
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }    // a * b + c
inline V fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
inline V min(V a, V b) { return _mm512_min_ps(a, b); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V sqrt(V a) { return _mm512_sqrt_ps(a); }
inline Mask lt(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Mask le(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
inline Mask both(Mask a, Mask b) { return a & b; }
inline Mask either(Mask a, Mask b) { return a | b; }
inline Mask first_only(Mask a, Mask b) { return a & ~b; }
inline V select(Mask m, V yes, V no) { return _mm512_mask_mov_ps(no, m, yes); }
inline V keep(Mask m, V v) { return _mm512_maskz_mov_ps(m, v); }  // 0 elsewhere
inline unsigned bits(Mask m) { return m; }
inline Mask mask_of(unsigned b) { return (Mask)b; }
inline V to_float(I v) { return _mm512_cvtepi32_ps((__m512i)v); }
inline I truncate(V v) { return (I)_mm512_cvttps_epi32(v); }
inline V round_down(V v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline V round_up(V v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
// The square root or up to 0.1 % more.
inline V sqrt_above(V a) { return a * 1.0002f * _mm512_rsqrt14_ps(a); }
// v with the sign bit set in the lanes of m.
inline V marked(Mask m, V v) { return _mm512_mask_or_ps(v, m, v, _mm512_set1_ps(-0.0f)); }
// 1 / a to about 1e-7 relative; a in [1e-3, 1].
inline V reciprocal(V a) {
    V r = _mm512_rcp14_ps(a);
    return r * fnma(a, r, splat(2.0f));
}
#else
#if defined(__AVX2__)
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V fnma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
inline V min(V a, V b) { return _mm256_min_ps(a, b); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline V sqrt(V a) { return _mm256_sqrt_ps(a); }
inline unsigned bits(Mask m) { return (unsigned)_mm256_movemask_ps((__m256)m); }
inline V to_float(I v) { return _mm256_cvtepi32_ps((__m256i)v); }
inline I truncate(V v) { return (I)_mm256_cvttps_epi32(v); }
inline V round_down(V v) { return _mm256_floor_ps(v); }
inline V sqrt_above(V a) { return a * 1.0005f * _mm256_rsqrt_ps(a); }
inline V round_up(V v) { return _mm256_ceil_ps(v); }
#else
inline V fma(V a, V b, V c) { return a * b + c; }
inline V fnma(V a, V b, V c) { return c - a * b; }
inline V min(V a, V b) { return a < b ? a : b; }
inline V max(V a, V b) { return a > b ? a : b; }
inline V sqrt(V a) {
    V r;
    for (int l = 0; l < LANES; ++l) r[l] = __builtin_sqrtf(a[l]);
    return r;
}
inline unsigned bits(Mask m) {
#if defined(__SSE2__)
    return (unsigned)_mm_movemask_ps((__m128)m);
#else
    unsigned b = 0;
    for (int l = 0; l < LANES; ++l) b |= (unsigned)(m[l] & 1) << l;
    return b;
#endif
}
inline V to_float(I v) { return __builtin_convertvector(v, V); }
inline I truncate(V v) { return __builtin_convertvector(v, I); }
inline V sqrt_above(V a) { return sqrt(a); }
inline V round_down(V v) {  // within the range of int32
    V t = to_float(truncate(v));
    return t > v ? t - 1.0f : t;
}
inline V round_up(V v) { return -round_down(-v); }
#endif
inline Mask lt(V a, V b) { return a < b; }
inline Mask le(V a, V b) { return a <= b; }
inline Mask both(Mask a, Mask b) { return a & b; }
inline Mask either(Mask a, Mask b) { return a | b; }
inline Mask first_only(Mask a, Mask b) { return a & ~b; }
inline V select(Mask m, V yes, V no) { return as_float((m & as_int(yes)) | (~m & as_int(no))); }
inline V keep(Mask m, V v) { return as_float(m & as_int(v)); }
inline V marked(Mask m, V v) { return as_float(as_int(v) | (m & INT32_MIN)); }
inline Mask mask_of(unsigned b) {
    I m;
    for (int l = 0; l < LANES; ++l) m[l] = -(int32_t)((b >> l) & 1);
    return m;
}
inline V reciprocal(V a) { return 1.0f / a; }
#endif

inline bool any(Mask m) { return bits(m) != 0; }
inline V abs(V v) { return as_float(as_int(v) & 0x7fffffff); }
inline V clamp(V v, float low, float high) { return min(max(v, splat(low)), splat(high)); }

// 2^x to 2e-7 relative, x in [-126, 126]; other x give garbage but never trap.
inline V exp2(V x) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const V magic = splat(12582912.0f);
    V rounded = x + magic;
    V f = x - (rounded - magic);  // [-0.5, 0.5]
    V p = splat(1.339086778e-3f);
    p = fma(p, f, splat(9.618436731e-3f));
    p = fma(p, f, splat(5.550324544e-2f));
    p = fma(p, f, splat(2.402264923e-1f));
    p = fma(p, f, splat(6.931471825e-1f));
    p = fma(p, f, splat(1.0f));
    return (V)((U)p + ((U)rounded << 23));
}

// e^x to 3e-7 relative; x is clamped to [-87, 87].
inline V exp(V x) {
    x = clamp(x, -87.0f, 87.0f);
    const V magic = splat(12582912.0f);
    V rounded = fma(x, splat(1.44269504f), magic);
    V n = rounded - magic;
    V f = fnma(n, splat(0.693145752f), x);
    f = fnma(n, splat(1.42860677e-6f), f);
    V p = splat(1.3981999e-3f);
    p = fma(p, f, splat(8.3334520e-3f));
    p = fma(p, f, splat(4.1665795e-2f));
    p = fma(p, f, splat(1.6666665e-1f));
    p = fma(p, f, splat(0.5f));
    p = fma(p, f, splat(1.0f));
    p = fma(p, f, splat(1.0f));
    return (V)((U)p + ((U)rounded << 23));
}

// log2(x) to 2e-7 absolute plus 1e-7 relative, for normal positive x.
inline V log2(V x) {
    I shifted = (I)((U)x - 0x3f3504f3u);  // so that the mantissa falls in [sqrt(1/2), sqrt(2))
    I exponent = shifted >> 23;
    V m = (V)((U)x - ((U)exponent << 23));
    V s = (m - 1.0f) / (m + 1.0f);
    V s2 = s * s;
    V p = fma(splat(0.22222222f), s2, splat(0.28571429f));
    p = fma(p, s2, splat(0.4f));
    p = fma(p, s2, splat(0.66666667f));
    p = fma(p, s2, splat(2.0f));
    return fma(p * s, splat(1.44269504f), to_float(exponent));
}

// The lanes of a and b in turn: a0 b0 a1 b1 ..., first half and second half.
inline void interleave(V a, V b, V& first, V& second) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    first = _mm512_permutex2var_ps(a, low, b), second = _mm512_permutex2var_ps(a, high, b);
#elif defined(__AVX2__)
    __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    first = _mm256_permute2f128_ps(low, high, 0x20), second = _mm256_permute2f128_ps(low, high, 0x31);
#else
    first = V{a[0], b[0], a[1], b[1]}, second = V{a[2], b[2], a[3], b[3]};
#endif
}

// LANES vectors as the rows of a square become its columns.
inline void transpose(V* rows) {
    for (int round = 1; round < LANES; round *= 2) {
        V mixed[LANES];
        for (int k = 0; k < LANES / 2; ++k) interleave(rows[k], rows[k + LANES / 2], mixed[2 * k], mixed[2 * k + 1]);
        for (int k = 0; k < LANES; ++k) rows[k] = mixed[k];
    }
}

// Copies `count` floats; with `stream` past the caches, where the addresses and the processor allow it. A later `streamed()`
// orders such writes before whatever follows.
inline void write_out(float* to, const float* from, size_t count, [[maybe_unused]] bool stream) {
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
    if (stream && reinterpret_cast<uintptr_t>(to) % sizeof(V) == 0 && count % LANES == 0) {
        for (size_t k = 0; k < count; k += LANES) {
#if defined(__AVX512F__)
            _mm512_stream_ps(to + k, load(from + k));
#elif defined(__AVX2__)
            _mm256_stream_ps(to + k, load(from + k));
#else
            _mm_stream_ps(to + k, (__m128)load(from + k));
#endif
        }
        return;
    }
#endif
    std::memcpy(to, from, count * sizeof(float));
}

inline void streamed() {
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
    _mm_sfence();
#endif
}

inline float sum(V v) {
    float x[LANES];
    store(x, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; ++l) x[l] += x[l + width];
    return x[0];
}

// Sums over the lanes of `count` vectors at once, 10 or 12, to out[0..count).
template <int count>
inline void sums_of(const V* v, float* out) {
#if defined(__AVX512F__)
    // Each step halves the lanes that belong to one input and packs two inputs into one register.
    auto quarters = [](V a, V b) -> V {
        return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);  // 2 x 128 bits of a, then of b
    };
    V ab = quarters(v[0], v[1]), cd = quarters(v[2], v[3]), ef = quarters(v[4], v[5]), gh = quarters(v[6], v[7]);
    V ij = quarters(v[8], v[9]), kl = count > 10 ? quarters(v[10], v[11]) : ij;
    V abcd = quarters(ab, cd), efgh = quarters(ef, gh), ijkl = quarters(ij, kl);
    // One 128-bit quarter per input now; the lanes within a quarter remain.
    V low = _mm512_shuffle_ps(abcd, efgh, 0x88) + _mm512_shuffle_ps(abcd, efgh, 0xdd);
    V rest = _mm512_shuffle_ps(ijkl, ijkl, 0x88) + _mm512_shuffle_ps(ijkl, ijkl, 0xdd);
    V all = _mm512_shuffle_ps(low, rest, 0x88) + _mm512_shuffle_ps(low, rest, 0xdd);
    // Quarter q holds: input q, input 4 + q, input 8 + q, again.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 0, 0, 0, 0);
    _mm512_mask_storeu_ps(out, (1u << count) - 1, _mm512_permutexvar_ps(order, all));
#elif defined(__AVX2__)
    auto halves = [](V a, V b) -> __m256 {
        return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    };
    // halves: a in the low half, b in the high half; two hadd steps finish four inputs of each half.
    __m256 x = _mm256_hadd_ps(_mm256_hadd_ps(halves(v[0], v[4]), halves(v[1], v[5])),
                              _mm256_hadd_ps(halves(v[2], v[6]), halves(v[3], v[7])));
    _mm256_storeu_ps(out, x);
    __m256 y = halves(v[8], v[9]), z = count > 10 ? halves(v[10], v[11]) : y;
    y = _mm256_hadd_ps(y, z);
    y = _mm256_hadd_ps(y, y);  // lanes: 8, 10, 8, 10 | 9, 11, 9, 11
    __m128 even = _mm256_castps256_ps128(y), odd = _mm256_extractf128_ps(y, 1);
    out[8] = _mm_cvtss_f32(even), out[9] = _mm_cvtss_f32(odd);
    if (count > 10) out[10] = _mm_cvtss_f32(_mm_movehdup_ps(even)), out[11] = _mm_cvtss_f32(_mm_movehdup_ps(odd));
#else
    for (int i = 0; i < count; ++i) out[i] = sum(v[i]);
#endif
}

}  // namespace splatsmith
