// Causal attention within short rows, with its rotary embedding, forward and backward.

#pragma once

#include <cstring>
#include <utility>

#include "numbers.h"

namespace {

// to[m][n] = sum over k of a[m * down + k * along] * b[k][n], for R rows of `to` and n in [0, columns), a multiple of
// LANES.
template <int R, int W>
inline void multiply_tile(float* to, int64_t to_step, const float* a, int64_t down, int64_t along, const float* b,
                          int64_t b_step, int64_t depth) {
    Vector sums[R][W] = {};
    for (int64_t k = 0; k < depth; k++) {
        const Vector* line = reinterpret_cast<const Vector*>(b + k * b_step);
        for (int m = 0; m < R; m++) {
            float factor = a[m * down + k * along];
            for (int w = 0; w < W; w++) sums[m][w] += factor * line[w];
        }
    }
#pragma GCC unroll 16  // else the sums go through memory
    for (int m = 0; m < R; m++)
#pragma GCC unroll 16
        for (int w = 0; w < W; w++) reinterpret_cast<Vector*>(to + m * to_step)[w] = sums[m][w];
}

template <int R>
inline void multiply(float* to, int64_t to_step, const float* a, int64_t down, int64_t along, const float* b,
                     int64_t b_step, int64_t depth, int64_t columns) {
    int64_t n = 0;
    for (; n + 2 * LANES <= columns; n += 2 * LANES)
        multiply_tile<R, 2>(to + n, to_step, a, down, along, b + n, b_step, depth);
    for (; n < columns; n += LANES) multiply_tile<R, 1>(to + n, to_step, a, down, along, b + n, b_step, depth);
}

constexpr int R = 8;  // rows of a tile; rows that fill up the last one are zeros

// Sizes of a row's buffers: `tokens` and `features` rounded up to whole tiles and vectors.
struct Sizes {
    int64_t tokens, features, half;
    Sizes(int64_t count, int64_t head)
        : tokens(round_up(count, LANES)), features(round_up(head, LANES)), half(head / 2) {}
    int64_t by_token() const { return tokens * features; }
    int64_t pairs() const { return tokens * tokens; }
};

template <class T>
void load_head(float* to, const T* from, int64_t step, int64_t count, Sizes s) {
    if (s.tokens != count || s.features != 2 * s.half) memset(to, 0, s.by_token() * sizeof(float));
    for (int64_t t = 0; t < count; t++)
#pragma omp simd
        for (int64_t d = 0; d < 2 * s.half; d++) to[t * s.features + d] = read(from[t * step + d]);
}

// Pairs (d, d + D / 2) turned by the angle of the token's place; with `sign` -1 turned back.
void turn(float* x, const float* cos, const float* sin, float scale, float sign, int64_t count, Sizes s) {
    for (int64_t t = 0; t < count; t++) {
        float* first = x + t * s.features;
        float* second = first + s.half;
        const float *c = cos + t * s.half, *n = sin + t * s.half;
#pragma omp simd
        for (int64_t d = 0; d < s.half; d++) {
            float a = first[d] * scale, b = second[d] * scale, turn = sign * n[d];
            first[d] = a * c[d] - b * turn;
            second[d] = b * c[d] + a * turn;
        }
    }
}

// Lanes of two vectors in turn: of their first halves, or of their second ones.
template <int FIRST, int... LANE>
inline Vector interleave(Vector a, Vector b, std::integer_sequence<int, LANE...>) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
    return __builtin_shuffle(a, b, IntegerVector{(FIRST + LANE / 2 + LANE % 2 * LANES)...});
#else
    return __builtin_shufflevector(a, b, (FIRST + LANE / 2 + LANE % 2 * LANES)...);
#endif
}

// (tokens, features) to (features, tokens). A square of LANES vectors: as often as LANES is a power of two, line i and
// line i + LANES / 2 are dealt out in turn.
void transpose(float* to, const float* from, Sizes s) {
    constexpr std::make_integer_sequence<int, LANES> lanes;
    for (int64_t t = 0; t < s.tokens; t += LANES)
        for (int64_t d = 0; d < s.features; d += LANES) {
            Vector lines[LANES], dealt[LANES];
            for (int i = 0; i < LANES; i++) lines[i] = at(from + (t + i) * s.features + d);
            for (int round = 1; round < LANES; round *= 2) {
                for (int i = 0; i < LANES / 2; i++) {
                    dealt[2 * i] = interleave<0>(lines[i], lines[i + LANES / 2], lanes);
                    dealt[2 * i + 1] = interleave<LANES / 2>(lines[i], lines[i + LANES / 2], lanes);
                }
                for (int i = 0; i < LANES; i++) lines[i] = dealt[i];
            }
            for (int i = 0; i < LANES; i++) at(to + (d + i) * s.tokens + t) = lines[i];
        }
}

template <class T>
void store_head(T* to, const float* from, int64_t step, int64_t count, Sizes s) {
    for (int64_t t = 0; t < count; t++)
#pragma omp simd
        for (int64_t d = 0; d < 2 * s.half; d++) write(to[t * step + d], from[t * s.features + d]);
}

// Heads that one thread takes at a time: all of a row, whose numbers lie side by side, where there are rows enough.
inline int64_t together(int64_t rows, int64_t kv_heads, int threads) { return rows >= 4 * threads ? kv_heads : 1; }

// A row and one of its key-value heads: which head, the row's first token, and its tokens.
struct Place {
    int64_t kv, start, count;
};

inline Place place_of(int64_t job, const int64_t* starts, int64_t kv_heads) {
    int64_t row = job / kv_heads;
    return {job % kv_heads, starts[row], starts[row + 1] - starts[row]};
}

template <class T>
void attend(const T* q, const T* k, const T* v, const float* cos, const float* sin, float scale, const int64_t* starts,
            T* out, float* softmax, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, int threads) {
    int64_t group = heads / kv_heads, q_step = heads * head_dim, kv_step = kv_heads * head_dim;
#pragma omp parallel for num_threads(threads) schedule(dynamic, together(rows, kv_heads, threads))
    for (int64_t job = 0; job < rows * kv_heads; job++) {
        auto [kv, start, count] = place_of(job, starts, kv_heads);
        if (!count) continue;
        Sizes s(count, head_dim);
        float* keys = scratch(4 * s.by_token() + s.pairs());
        float *turned = keys + s.by_token(), *values = turned + s.by_token(), *query = values + s.by_token();
        float* shares = query + s.by_token();
        load_head(query, k + start * kv_step + kv * head_dim, kv_step, count, s);
        turn(query, cos, sin, 1, 1, count, s);
        transpose(turned, query, s);
        load_head(values, v + start * kv_step + kv * head_dim, kv_step, count, s);
        for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
            load_head(query, q + start * q_step + h * head_dim, q_step, count, s);
            turn(query, cos, sin, scale, 1, count, s);
            for (int64_t i = 0; i < count; i += R) {
                multiply<R>(shares, s.tokens, query + i * s.features, s.features, 1, turned, s.tokens, s.features,
                            round_up(i + R, LANES));
                for (int64_t m = 0; m < R; m++) {
                    float* line = shares + m * s.tokens;
                    int64_t seen = i + m + 1, end = round_up(i + R, LANES);
                    for (int64_t j = seen; j < end; j++) line[j] = -1e30f;
                    float most = largest(line, end);
                    Vector sums = {};
                    for (int64_t j = 0; j < end; j += LANES) sums += at(line + j) = exponential(at(line + j) - most);
                    float sum = total(sums), factor = 1.f / sum;
                    for (int64_t j = 0; j < end; j += LANES) at(line + j) *= factor;
                    if (i + m < count) {
                        float* kept = softmax + 2 * ((start + i + m) * heads + h);
                        kept[0] = most, kept[1] = factor;
                    }
                }
                multiply<R>(keys + i * s.features, s.features, shares, s.tokens, 1, values, s.features, i + R,
                            s.features);
            }
            store_head(out + start * q_step + h * head_dim, keys, q_step, count, s);
        }
    }
}

template <class T>
void attend_backward(const T* slope, const T* q, const T* k, const T* v, const float* cos, const float* sin,
                     float scale, const int64_t* starts, const float* softmax, T* of_q, T* of_k, T* of_v, int64_t rows,
                     int64_t heads, int64_t kv_heads, int64_t head_dim, int threads) {
    int64_t group = heads / kv_heads, q_step = heads * head_dim, kv_step = kv_heads * head_dim;
#pragma omp parallel for num_threads(threads) schedule(dynamic, together(rows, kv_heads, threads))
    for (int64_t job = 0; job < rows * kv_heads; job++) {
        auto [kv, start, count] = place_of(job, starts, kv_heads);
        if (!count) continue;
        Sizes s(count, head_dim);
        int64_t size = s.by_token();
        float* keys = scratch(10 * size + 2 * s.pairs());
        float *keys_t = keys + size, *values_t = keys_t + size, *query = values_t + size, *dy = query + size;
        float *dq = dy + size, *dk = dq + size, *dv = dk + size, *part = dv + size, *values = part + size;
        float *shares = values + size, *scores = shares + s.pairs();
        load_head(keys, k + start * kv_step + kv * head_dim, kv_step, count, s);
        turn(keys, cos, sin, 1, 1, count, s);
        transpose(keys_t, keys, s);
        load_head(values, v + start * kv_step + kv * head_dim, kv_step, count, s);
        transpose(values_t, values, s);
        memset(dk, 0, size * sizeof(float));
        memset(dv, 0, size * sizeof(float));
        for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
            load_head(query, q + start * q_step + h * head_dim, q_step, count, s);
            turn(query, cos, sin, scale, 1, count, s);
            load_head(dy, slope + start * q_step + h * head_dim, q_step, count, s);
            for (int64_t i = 0; i < s.tokens; i += R) {
                int64_t columns = round_up(i + R, LANES);
                float *p = shares + i * s.tokens, *ds = scores + i * s.tokens;
                multiply<R>(p, s.tokens, query + i * s.features, s.features, 1, keys_t, s.tokens, s.features, columns);
                multiply<R>(ds, s.tokens, dy + i * s.features, s.features, 1, values_t, s.tokens, s.features, columns);
                for (int64_t m = 0; m < R; m++) {
                    float *line = p + m * s.tokens, *slopes = ds + m * s.tokens;
                    int64_t seen = i + m < count ? i + m + 1 : 0;
                    const float* kept = softmax + 2 * ((start + (seen ? i + m : 0)) * heads + h);
                    for (int64_t j = seen; j < columns; j++) line[j] = -1e30f;
                    Vector products = {};
                    for (int64_t j = 0; j < columns; j += LANES) {
                        at(line + j) = exponential(at(line + j) - kept[0]) * kept[1];
                        products += at(line + j) * at(slopes + j);
                    }
                    float mean = total(products);
                    for (int64_t j = 0; j < columns; j += LANES)
                        at(slopes + j) = at(line + j) * (at(slopes + j) - mean);
                }
                multiply<R>(dq + i * s.features, s.features, ds, s.tokens, 1, keys, s.features, i + R, s.features);
            }
            for (int64_t j = 0; j < count; j += R) {  // keys j are seen by the queries from j on
                int64_t depth = s.tokens - j;
                const float *p = shares + j * s.tokens + j, *ds = scores + j * s.tokens + j;
                multiply<R>(part, s.features, ds, 1, s.tokens, query + j * s.features, s.features, depth, s.features);
                for (int64_t d = 0; d < R * s.features; d++) dk[j * s.features + d] += part[d];
                multiply<R>(part, s.features, p, 1, s.tokens, dy + j * s.features, s.features, depth, s.features);
                for (int64_t d = 0; d < R * s.features; d++) dv[j * s.features + d] += part[d];
            }
            turn(dq, cos, sin, scale, -1, count, s);
            store_head(of_q + start * q_step + h * head_dim, dq, q_step, count, s);
        }
        turn(dk, cos, sin, 1, -1, count, s);
        store_head(of_k + start * kv_step + kv * head_dim, dk, kv_step, count, s);
        store_head(of_v + start * kv_step + kv * head_dim, dv, kv_step, count, s);
    }
}

}  // namespace
