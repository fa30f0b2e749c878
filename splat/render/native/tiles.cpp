// Every tile's Gaussians, nearest first: one radix sort of all depths, then a counting scatter that keeps the order.
#include <algorithm>
#include <cstring>

#include "scene.h"
#include "threads.h"

namespace splatsmith {
namespace {

// Sorts `count` (key, value) pairs by key, equal keys by their order; the result is in the first pair of arrays.
void radix_sort(int threads, uint32_t count, uint32_t*& keys, uint32_t*& values, uint32_t*& keys_other, uint32_t*& values_other,
                Buffer<uint32_t>& counts) {
    if (count == 0) return;
    uint32_t low = UINT32_MAX, high = 0;
    for (uint32_t i = 0; i < count; ++i) low = std::min(low, keys[i]), high = std::max(high, keys[i]);
    int width = 0;
    while (width < 32 && (high - low) >> width) ++width;
    if (width == 0) return;
    int passes = (width + 10) / 11, digit_bits = (width + passes - 1) / passes;
    uint32_t buckets = 1u << digit_bits;
    uint32_t parts = count < 16384 ? 1 : std::max(1, threads);
    counts.reserve(size_t(parts) * buckets);
    for (int pass = 0; pass < passes; ++pass) {
        int shift = pass * digit_bits;
        auto digit = [&](uint32_t key) { return ((key - low) >> shift) & (buckets - 1); };
        auto range = [&](int64_t part) { return uint32_t(uint64_t(count) * part / parts); };
        parallel(threads, parts, [&](int64_t part) {
            uint32_t* histogram = counts.data() + part * buckets;
            std::memset(histogram, 0, buckets * sizeof(uint32_t));
            for (uint32_t i = range(part), end = range(part + 1); i < end; ++i) ++histogram[digit(keys[i])];
        });
        uint32_t total = 0;
        for (uint32_t d = 0; d < buckets; ++d)
            for (uint32_t part = 0; part < parts; ++part) {
                uint32_t& cell = counts[part * buckets + d];
                uint32_t here = cell;
                cell = total;
                total += here;
            }
        parallel(threads, parts, [&](int64_t part) {
            uint32_t* next = counts.data() + part * buckets;
            for (uint32_t i = range(part), end = range(part + 1); i < end; ++i) {
                uint32_t to = next[digit(keys[i])]++;
                keys_other[to] = keys[i];
                values_other[to] = values[i];
            }
        });
        std::swap(keys, keys_other);
        std::swap(values, values_other);
    }
}

}  // namespace

void bin_by_depth(const Scene& scene, const View& view, int threads, CameraState& state, Scratch& scratch) {
    int64_t n = scene.count, chunks = (n + CHUNK - 1) / CHUNK;
    Buffer<uint32_t>& base = scratch.counts;
    base.reserve(chunks + 1);
    uint32_t drawn = 0;
    for (int64_t c = 0; c < chunks; ++c) {
        base[c] = drawn;
        drawn += state.chunks[c].drawn;
    }
    uint32_t* keys = scratch.keys.reserve(drawn);
    uint32_t* order = scratch.order.reserve(drawn);
    uint32_t* keys_other = scratch.keys_other.reserve(drawn);
    uint32_t* order_other = scratch.order_other.reserve(drawn);
    parallel(threads, chunks, [&](int64_t c) {
        uint32_t at = base[c];
        for (int64_t i = c * CHUNK, end = std::min(n, (c + 1) * CHUNK); i < end; ++i) {
            if (!state.touched[i]) continue;
            std::memcpy(&keys[at], &state.records[i].z, sizeof(uint32_t));  // z > near: floats order like their bits
            order[at++] = (uint32_t)i;
        }
    });
    radix_sort(threads, drawn, keys, order, keys_other, order_other, scratch.counts);

    uint32_t tiles = uint32_t(view.tiles_x * view.tiles_y);
    uint32_t parts = std::max(1u, std::min({uint32_t(16), drawn / 512, uint32_t(4 * threads)}));
    if (threads <= 1) parts = 1;
    uint32_t* counts = scratch.counts.reserve(size_t(parts) * tiles);
    auto range = [&](int64_t part) { return uint32_t(uint64_t(drawn) * part / parts); };
    auto pairs_of = [&](uint32_t g) { return state.chunks[g / CHUNK].pairs.data() + state.first[g]; };
    parallel(threads, parts, [&](int64_t part) {
        uint32_t* count = counts + part * tiles;
        std::memset(count, 0, tiles * sizeof(uint32_t));
        for (uint32_t k = range(part), end = range(part + 1); k < end; ++k) {
            uint32_t g = order[k];
            const Pair* pair = pairs_of(g);
            for (uint32_t j = 0; j < state.touched[g]; ++j) ++count[pair[j].tile];
        }
    });
    state.tile_start.reserve(tiles + 1);
    uint32_t total = 0;
    for (uint32_t t = 0; t < tiles; ++t) {
        state.tile_start[t] = total;
        for (uint32_t part = 0; part < parts; ++part) {
            uint32_t& cell = counts[part * size_t(tiles) + t];
            uint32_t here = cell;
            cell = total;
            total += here;
        }
    }
    state.tile_start[tiles] = total;
    Entry* entries = state.entries.reserve(total);
    parallel(threads, parts, [&](int64_t part) {
        uint32_t* next = counts + part * tiles;
        for (uint32_t k = range(part), end = range(part + 1); k < end; ++k) {
            uint32_t g = order[k], slot = state.chunks[g / CHUNK].base + state.first[g];
            const Pair* pair = pairs_of(g);
            for (uint32_t j = 0; j < state.touched[g]; ++j) entries[next[pair[j].tile]++] = {g, slot + j, pair[j].blocks};
        }
    });
}

}  // namespace splatsmith
