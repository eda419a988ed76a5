// Residual sums with their norms, and gates: forward and backward, a token a row.

#pragma once

#include <cstring>

#include "numbers.h"

namespace {

template <class D, class O>
void add_norm(const float* x, const D* delta, float* sum, const float* weight, float eps, O* out, float* inverse,
              int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float* from = x + row * width;
        float squares = 0;
        if (delta) {
            float* to = sum + row * width;
            const D* more = delta + row * width;
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < width; i++) {
                float value = from[i] + read(more[i]);
                to[i] = value;
                squares += value * value;
            }
            from = to;
        } else {
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < width; i++) squares += from[i] * from[i];
        }
        float scale = 1.f / __builtin_sqrtf(squares / width + eps);
        inverse[row] = scale;
        O* to = out + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) write(to[i], from[i] * scale * weight[i]);
    }
}

constexpr int64_t ROWS_PER_SUM = 32;  // a sum over all rows one by one would lose digits

template <class D, class O>
void add_norm_backward(const O* slope, const float* sum_slope, const float* sum, const float* weight,
                       const float* inverse, float* of_x, D* of_delta, float* of_weight, int64_t rows, int64_t width,
                       int threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        int64_t first = rows * part / threads, end = rows * (part + 1) / threads;
        float *total = of_weight ? of_weight + part * width : nullptr, *some = scratch(width);
        if (total) memset(total, 0, width * sizeof(float));
        memset(some, 0, width * sizeof(float));
        for (int64_t row = first; row < end; row++) {
            const O* dy = slope + row * width;
            const float* value = sum + row * width;
            float scale = inverse[row], product = 0;
#pragma omp simd reduction(+ : product)
            for (int64_t i = 0; i < width; i++) product += read(dy[i]) * weight[i] * value[i];
            float pull = product * scale / width;
            float* to = of_x + row * width;
            const float* passing = sum_slope + row * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                to[i] = passing[i] + scale * (read(dy[i]) * weight[i] - value[i] * scale * pull);
            if (of_delta)
#pragma omp simd
                for (int64_t i = 0; i < width; i++) write(of_delta[row * width + i], to[i]);
            if (!total) continue;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) some[i] += read(dy[i]) * (value[i] * scale);
            if ((row - first) % ROWS_PER_SUM < ROWS_PER_SUM - 1 && row < end - 1) continue;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) {
                total[i] += some[i];
                some[i] = 0;
            }
        }
    }
}

template <class T>
void gate(const T* gate, const T* up, T* out, int64_t count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float x = read(gate[i]);
        write(out[i], x * logistic(x) * read(up[i]));
    }
}

template <class T>
void gate_backward(const T* slope, const T* gate, const T* up, T* of_gate, T* of_up, int64_t count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float dy = read(slope[i]), x = read(gate[i]), share = logistic(x);
        write(of_up[i], dy * x * share);
        write(of_gate[i], dy * read(up[i]) * share * (1.f + x * (1.f - share)));
    }
}

}  // namespace
