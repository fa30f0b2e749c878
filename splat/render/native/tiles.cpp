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

// A little is added to every extent so that rounding never loses a pixel; the alpha test decides.
constexpr float SLACK = 4e-3f, RELATIVE_SLACK = 1e-6f;

struct Ellipse {  // the region alpha >= 1/255 of one Gaussian, or of LANES of them
    V x, y, a, b, det, level, reach_x, reach_y, tilt, slack_x, slack_y;
};

// The block columns [low, high) whose pixel centres may lie inside, in the given strips of blocks.
inline void strip_columns(const View& view, const Ellipse& e, V strip, V& low, V& high) {
    V top = strip * (float)BLOCK_HEIGHT + 0.5f - e.y;
    V bottom = min(top + (BLOCK_HEIGHT - 1.0f) + e.slack_y, e.reach_y);
    top = max(top - e.slack_y, -e.reach_y);
    V y_right = min(max(e.tilt, top), bottom), y_left = min(max(-e.tilt, top), bottom);
    V inverse_a = 1.0f / e.a;
    V root_right = sqrt_above(max(e.a * e.level - e.det * y_right * y_right, splat(1e-30f)));
    V root_left = sqrt_above(max(e.a * e.level - e.det * y_left * y_left, splat(1e-30f)));
    V right = (root_right - e.b * y_right) * inverse_a;
    V left = (-root_left - e.b * y_left) * inverse_a;
    // Pixel i is inside when its centre i + 0.5 is. A strip beside the ellipse has top > bottom.
    V first = clamp(left + (e.x - e.slack_x - 0.5f), 0.0f, (float)view.width);
    V last = clamp(right + (e.x + e.slack_x + 0.5f), 0.0f, (float)view.width);  // exclusive once rounded down
    first = round_up(first);
    last = round_down(last);
    Mask some = both(lt(first, last), le(top, bottom));
    low = keep(some, round_down(first * (1.0f / BLOCK_WIDTH)));
    high = keep(some, round_up(last * (1.0f / BLOCK_WIDTH)));
}

inline Ellipse gather_ellipses(const Record* records, int count) {
    alignas(64) float columns[9][LANES];
    for (int l = 0; l < LANES; ++l) {
        const Record& r = records[std::min(l, count - 1)];
        columns[0][l] = r.x, columns[1][l] = r.y, columns[2][l] = r.xx, columns[3][l] = r.xy, columns[4][l] = r.log2_opacity;
        columns[5][l] = r.reach_x, columns[6][l] = r.reach_y, columns[7][l] = r.tilt, columns[8][l] = r.det;
    }
    Ellipse e;
    e.x = load(columns[0]), e.y = load(columns[1]);
    e.a = -load(columns[2]), e.b = -0.5f * load(columns[3]);
    e.level = (load(columns[4]) - LOG2_ALPHA_MIN) * 1.0005f + 1e-4f;
    e.reach_x = load(columns[5]) * 1.0005f + 1e-3f, e.reach_y = load(columns[6]) * 1.0005f + 1e-3f;
    e.tilt = load(columns[7]), e.det = load(columns[8]);
    e.slack_x = SLACK + RELATIVE_SLACK * (abs(e.x) + e.reach_x);
    e.slack_y = SLACK + RELATIVE_SLACK * (abs(e.y) + e.reach_y);
    return e;
}

Ellipse only_lane(const Ellipse& e, int lane) {
    Ellipse one;
    const V* from = &e.x;
    V* to = &one.x;
    for (size_t k = 0; k < sizeof(Ellipse) / sizeof(V); ++k) to[k] = splat(from[k][lane]);
    return one;
}

// Bits of one tile from its strips' columns, four bits each, gathered at `shift` from 16-bit rows.
constexpr int FAST_TILES = 4;               // a 16-bit row covers so many tiles
constexpr int WORDS = STRIPS / 4;           // 64-bit words of four rows
inline Bits tile_bits(const uint64_t* rows, int tile) {
    Bits blocks = 0;
    for (int w = 0; w < WORDS; ++w) {
        uint64_t nibbles = (rows[w] >> (4 * tile)) & 0x000f000f000f000full;
#if defined(__BMI2__)
        uint64_t packed = _pext_u64(nibbles, 0x000f000f000f000full);
#else
        uint64_t packed = (nibbles | nibbles >> 12 | nibbles >> 24 | nibbles >> 36) & 0xffff;
#endif
        blocks |= (Bits)((Bits)packed << (16 * w % (8 * sizeof(Bits))));
    }
    return blocks;
}

// Counts and lists the tiles of the Gaussians that one part of the depth order holds.
class Emitter {
  public:
    Emitter(const View& view, Buffer<Pair>& pairs, uint32_t* counts) : view_(view), pairs_(pairs), counts_(counts) {}

    // Writes how many tiles each of `count` records touches.
    void emit(const Record* records, uint32_t rank, int count, uint32_t* touched) {
        Ellipse e = gather_ellipses(records, count);
        // Tiles of the box; pixel centres decide about the last row and column of tiles soon enough.
        V tx0 = tile_of(e.x - e.reach_x - e.slack_x, view_.tiles_x), tx1 = tile_of(e.x + e.reach_x + e.slack_x, view_.tiles_x);
        V ty0 = tile_of(e.y - e.reach_y - e.slack_y, view_.tiles_y), ty1 = tile_of(e.y + e.reach_y + e.slack_y, view_.tiles_y);
        alignas(64) float x0[LANES], y0[LANES], wide[LANES], tall[LANES];
        store(x0, tx0), store(y0, ty0), store(wide, tx1 - tx0), store(tall, ty1 - ty0);
        int rows = 0;
        for (int l = 0; l < count; ++l)
            if (wide[l] < FAST_TILES && tall[l] < FAST_TILES) rows = std::max(rows, (int)tall[l] + 1);
        // Strip s of every lane's box: its columns as bits from the box's left tile.
        alignas(64) int32_t columns[FAST_TILES * STRIPS][LANES];
        V base = tx0 * (float)COLUMNS;
        for (int s = 0; s < rows * STRIPS; ++s) {
            V low, high;
            strip_columns(view_, e, ty0 * (float)STRIPS + (float)s, low, high);
            I l = truncate(clamp(low - base, 0.0f, 16.0f)), h = truncate(clamp(high - base, 0.0f, 16.0f));
            I row = ((I{} + 1) << h) - ((I{} + 1) << l);
            std::memcpy(columns[s], &row, sizeof row);
        }
        for (int l = 0; l < count; ++l) {
            Pair* start = pairs_.grow(used_ + FAST_TILES * FAST_TILES, used_) + used_;
            Pair* out = start;
            if (wide[l] < FAST_TILES && tall[l] < FAST_TILES) {
                for (int y = 0; y <= (int)tall[l]; ++y) {
                    uint64_t words[WORDS];
                    for (int w = 0; w < WORDS; ++w) {
                        const int32_t* row = &columns[y * STRIPS + 4 * w][l];
                        words[w] = uint64_t(row[0]) | uint64_t(row[LANES]) << 16 | uint64_t(row[2 * LANES]) << 32 |
                                   uint64_t(row[3 * LANES]) << 48;
                    }
                    uint32_t tile = uint32_t(((int)y0[l] + y) * view_.tiles_x + (int)x0[l]);
                    for (int x = 0; x <= (int)wide[l]; ++x) {
                        Bits blocks = tile_bits(words, x);
                        *out = {rank + l, tile + x, blocks};
                        counts_[tile + x] += blocks != 0;
                        out += blocks != 0;
                    }
                }
                touched[l] = uint32_t(out - start);
                used_ += touched[l];
            } else {
                size_t before = used_;
                emit_large(only_lane(e, l), rank + l, (int)x0[l], (int)y0[l], (int)wide[l] + 1, (int)tall[l] + 1);
                touched[l] = uint32_t(used_ - before);
            }
            if (used_ > UINT32_MAX / 2) throw std::bad_alloc();
        }
    }

    size_t used() const { return used_; }

  private:
    static V tile_of(V pixel, int tiles) { return round_down(clamp(pixel * (1.0f / TILE), 0.0f, tiles - 1.0f)); }

    void emit_large(const Ellipse& e, uint32_t rank, int tx0, int ty0, int wide, int tall) {
        alignas(64) float ramp[LANES];
        for (int l = 0; l < LANES; ++l) ramp[l] = (float)l;
        alignas(64) float low[TILE * 4], high[TILE * 4];
        for (int ty = ty0; ty < ty0 + tall; ++ty) {
            float first = 1e9f, last = 0;
            for (int s = 0; s < STRIPS; s += LANES) {
                V l, h;
                strip_columns(view_, e, load(ramp) + (float)(ty * STRIPS + s), l, h);
                store(low + s, l), store(high + s, h);
            }
            for (int s = 0; s < STRIPS; ++s) {
                if (low[s] >= high[s]) continue;
                first = std::min(first, low[s]), last = std::max(last, high[s]);
            }
            if (first >= last) continue;
            int begin = std::max(tx0, (int)first / COLUMNS), end = std::min(tx0 + wide, ((int)last - 1) / COLUMNS + 1);
            Pair* out = pairs_.grow(used_ + size_t(std::max(end - begin, 0)), used_) + used_;
            for (int tx = begin; tx < end; ++tx) {
                Bits blocks = 0;
                for (int s = 0; s < STRIPS; ++s) {
                    int l = std::max((int)low[s] - tx * COLUMNS, 0), h = std::min((int)high[s] - tx * COLUMNS, COLUMNS);
                    Bits row = l < h ? Bits((1u << h) - (1u << l)) : Bits(0);
                    blocks |= Bits(row << (s * COLUMNS));
                }
                if (!blocks) continue;
                uint32_t tile = uint32_t(ty * view_.tiles_x + tx);
                *out++ = {rank, tile, blocks};
                ++counts_[tile];
            }
            used_ = out - pairs_.data();
            if (used_ > UINT32_MAX / 2) throw std::bad_alloc();
        }
    }

    const View& view_;
    Buffer<Pair>& pairs_;
    uint32_t* counts_;
    size_t used_ = 0;
};

}  // namespace

void bin_by_depth(const Scene& scene, const View& view, int threads, CameraState& state, Scratch& scratch) {
    int64_t n = scene.count, chunks = (n + CHUNK - 1) / CHUNK;
    Buffer<uint32_t>& base = scratch.counts;
    base.reserve(chunks + 1);
    uint32_t drawn = 0;
    for (int64_t c = 0; c < chunks; ++c) {
        base[c] = drawn;
        drawn += scratch.chunk_counts[c];
    }
    state.drawn = drawn;
    uint32_t* keys = scratch.keys.reserve(drawn);
    uint32_t* order = scratch.order.reserve(drawn);
    uint32_t* keys_other = scratch.keys_other.data();  // holds the keys, by chunk
    uint32_t* order_other = scratch.order_other.reserve(drawn);
    parallel(threads, chunks, [&](int64_t c) {
        uint32_t count = scratch.chunk_counts[c];
        std::memcpy(keys + base[c], keys_other + c * CHUNK, count * sizeof(uint32_t));  // z > 0: floats order like their bits
        for (uint32_t k = 0; k < count; ++k) order[base[c] + k] = uint32_t(c * CHUNK + k);
    });
    radix_sort(threads, drawn, keys, order, keys_other, order_other, scratch.counts);

    // Records into depth order, and the tiles they touch, in a few parts of the order.
    uint32_t tiles = uint32_t(view.tiles_x * view.tiles_y);
    uint32_t parts = threads <= 1 ? 1 : std::max(1u, std::min({uint32_t(32), drawn / 512, uint32_t(4 * threads)}));
    uint32_t* counts = scratch.counts.reserve(size_t(parts) * tiles);
    uint32_t* touched_by_rank = order_other;
    Record* records = state.records.reserve(drawn);
    uint32_t* gaussian_by_rank = keys_other;
    Slots* slots = state.slots.reserve(n);
    std::memset(static_cast<void*>(slots), 0, n * sizeof(Slots));
    if (scratch.pairs.size() < parts) scratch.pairs.resize(parts);
    std::vector<uint64_t> pairs_before(parts + 1);
    auto range = [&](int64_t part) { return uint32_t(uint64_t(drawn) * part / parts); };
    parallel(threads, parts, [&](int64_t part) {
        uint32_t* count = counts + part * size_t(tiles);
        std::memset(count, 0, tiles * sizeof(uint32_t));
        Emitter emitter(view, scratch.pairs[part], count);
        uint32_t end = range(part + 1);
        for (uint32_t k = range(part); k < end; k += LANES) {
            int lanes = (int)std::min<uint32_t>(LANES, end - k);
            for (int l = 0; l < lanes; ++l) {
                if (k + l + 2 * LANES < end) __builtin_prefetch(&scratch.records[order[k + l + 2 * LANES]]);
                records[k + l] = scratch.records[order[k + l]];
            }
            emitter.emit(records + k, k, lanes, touched_by_rank + k);
            for (int l = 0; l < lanes; ++l) {
                gaussian_by_rank[k + l] = records[k + l].gaussian;
                slots[records[k + l].gaussian].count = touched_by_rank[k + l];
            }
        }
        pairs_before[part + 1] = emitter.used();
    });
    for (uint32_t part = 0; part < parts; ++part) pairs_before[part + 1] += pairs_before[part];
    if (pairs_before[parts] > UINT32_MAX / 2) throw std::bad_alloc();
    state.pair_count = (uint32_t)pairs_before[parts];
    uint32_t next_slot = 0;
    for (int64_t i = 0; i < n; ++i) {
        slots[i].first = next_slot;
        next_slot += slots[i].count;
    }

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
        uint32_t* next = counts + part * size_t(tiles);
        // From a pair's number to its slot, by rank; differences of uint32 wrap round and back.
        uint32_t* shift = touched_by_rank;
        uint32_t number = (uint32_t)pairs_before[part];
        for (uint32_t k = range(part), end = range(part + 1); k < end; ++k) {
            Slots own = slots[gaussian_by_rank[k]];
            shift[k] = own.first - number;
            number += own.count;
        }
        const Pair* pair = scratch.pairs[part].data();
        for (number = (uint32_t)pairs_before[part]; number < pairs_before[part + 1]; ++number, ++pair)
            entries[next[pair->tile]++] = {pair->rank, number + shift[pair->rank], pair->blocks};
    });
}

}  // namespace splatsmith
