// One new token in each row: activations stand feature first, a column for each row.

#pragma once

#include <cstring>

#include "numbers.h"

namespace {

// `x` (features, columns), a token for each column: x += delta, then its RMS norm times the weight.
template <class D, class O>
void add_norm_columns(float* x, const D* delta, const float* weight, float eps, O* out, int64_t features,
                      int64_t columns, int threads) {
    constexpr int64_t WIDTH = 32;
    int64_t blocks = (columns + WIDTH - 1) / WIDTH;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t first = block * WIDTH, count = columns - first < WIDTH ? columns - first : WIDTH;
        float scale[WIDTH] = {};
        for (int64_t f = 0; f < features; f++) {
            float* line = x + f * columns + first;
            const D* more = delta ? delta + f * columns + first : nullptr;
            if (more)
#pragma omp simd
                for (int64_t c = 0; c < count; c++) line[c] += read(more[c]);
#pragma omp simd
            for (int64_t c = 0; c < count; c++) scale[c] += line[c] * line[c];
        }
        for (int64_t c = 0; c < count; c++) scale[c] = 1.f / __builtin_sqrtf(scale[c] / features + eps);
        for (int64_t f = 0; f < features; f++) {
            const float* line = x + f * columns + first;
            O* to = out + f * columns + first;
#pragma omp simd
            for (int64_t c = 0; c < count; c++) write(to[c], line[c] * scale[c] * weight[f]);
        }
    }
}

inline Vector load(const float* x) { return at(x); }

inline Vector load(const bfloat16* x) {
    typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(2), may_alias));
    typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
    Words wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(x), Words) << 16;
    Vector result;
    memcpy(&result, &wide, sizeof(result));
    return result;
}

template <class T>
inline float dot(const float* a, const T* b, int64_t count) {
    Vector sums = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sums += at(a + i) * load(b + i);
    float sum = total(sums);
    for (; i < count; i++) sum += a[i] * read(b[i]);
    return sum;
}

// A head's numbers: normalised if there is a weight, turned by the angle of the token's place, scaled.
inline void prepare(float* head, const float* norm, float eps, const float* cos, const float* sin, int64_t step,
                    float scale, int64_t half) {
    if (norm) {
        float squares = 0;
        for (int64_t d = 0; d < 2 * half; d++) squares += head[d] * head[d];
        float inverse = 1.f / __builtin_sqrtf(squares / (2 * half) + eps);
        for (int64_t d = 0; d < 2 * half; d++) head[d] *= inverse * norm[d];
    }
    for (int64_t d = 0; d < half; d++) {
        float a = head[d] * scale, b = head[d + half] * scale, c = cos[d * step], s = sin[d * step];
        head[d] = a * c - b * s;
        head[d + half] = b * c + a * s;
    }
}

// `qkv` (all heads * D, rows), the new token of each row: key and value go to `column` of the row's cache (rows, J,
// width, D), the query attends to columns starts[row] to `column`. `cos`, `sin`: (D / 2, rows).
template <class T>
void attend_step(const T* qkv, const float* q_norm, const float* k_norm, float eps, const float* cos, const float* sin,
                 float scale, T* keys, T* values, const int64_t* starts, int64_t column, int64_t width, T* out,
                 int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, int threads) {
    constexpr int64_t ROWS = 16;
    int64_t group = heads / kv_heads, features = (heads + 2 * kv_heads) * head_dim, half = head_dim / 2;
    int64_t blocks = (rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t first = block * ROWS, count = rows - first < ROWS ? rows - first : ROWS;
        float* by_row = scratch(ROWS * features + round_up(width, LANES));
        float* shares = by_row + ROWS * features;
        for (int64_t f = 0; f < features; f++)
            for (int64_t r = 0; r < count; r++) by_row[r * features + f] = read(qkv[f * rows + first + r]);
        for (int64_t r = 0; r < count; r++) {
            int64_t row = first + r, start = starts[row], seen = column + 1 - start, padded = round_up(seen, LANES);
            float *q = by_row + r * features, *k = q + heads * head_dim, *v = k + kv_heads * head_dim;
            for (int64_t h = 0; h < heads; h++)
                prepare(q + h * head_dim, q_norm, eps, cos + row, sin + row, rows, scale, half);
            for (int64_t h = 0; h < kv_heads; h++)
                prepare(k + h * head_dim, k_norm, eps, cos + row, sin + row, rows, 1, half);
            for (int64_t kv = 0; kv < kv_heads; kv++) {
                T* own_keys = keys + ((row * kv_heads + kv) * width + start) * head_dim;
                T* own_values = values + ((row * kv_heads + kv) * width + start) * head_dim;
                for (int64_t d = 0; d < head_dim; d++) {
                    write(own_keys[(seen - 1) * head_dim + d], k[kv * head_dim + d]);
                    write(own_values[(seen - 1) * head_dim + d], v[kv * head_dim + d]);
                }
                for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
                    float* query = q + h * head_dim;
                    for (int64_t s = 0; s < seen; s++) shares[s] = dot(query, own_keys + s * head_dim, head_dim);
                    for (int64_t s = seen; s < padded; s++) shares[s] = -1e30f;
                    float most = largest(shares, padded);
                    Vector sums = {};
                    for (int64_t s = 0; s < padded; s += LANES)
                        sums += at(shares + s) = exponential(at(shares + s) - most);
                    float factor = 1.f / total(sums);
                    int64_t d = 0;
                    for (; d + 4 * LANES <= head_dim; d += 4 * LANES) {
                        Vector mixed[4] = {};
                        for (int64_t s = 0; s < seen; s++)
                            for (int w = 0; w < 4; w++)
                                mixed[w] += shares[s] * load(own_values + s * head_dim + d + w * LANES);
                        for (int w = 0; w < 4; w++) at(query + d + w * LANES) = mixed[w] * factor;
                    }
                    for (; d + LANES <= head_dim; d += LANES) {
                        Vector mixed = {};
                        for (int64_t s = 0; s < seen; s++) mixed += shares[s] * load(own_values + s * head_dim + d);
                        at(query + d) = mixed * factor;
                    }
                    for (; d < head_dim; d++) {
                        float mixed = 0;
                        for (int64_t s = 0; s < seen; s++) mixed += shares[s] * read(own_values[s * head_dim + d]);
                        query[d] = mixed * factor;
                    }
                }
            }
        }
        for (int64_t f = 0; f < heads * head_dim; f++)
            for (int64_t r = 0; r < count; r++) write(out[f * rows + first + r], by_row[r * features + f]);
    }
}

}  // namespace
