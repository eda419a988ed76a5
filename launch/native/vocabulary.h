// Softmax over the vocabulary by blocks, its gradient, and drawing a token.

#pragma once

#include "numbers.h"

namespace {

// A block of logits is scale * products. Over the blocks: the largest logit so far, and relative to it the sums of
// exp(l) and of exp(l) l; the target's logit when it comes.
template <class T>
void add_block(const T* products, float scale, const int64_t* targets, int64_t first, float* target, float* most,
               float* sum, float* weighted, int64_t rows, int64_t columns, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const T* line = products + row * columns;
        float top = most[row], old = most[row];
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < columns; i++) {
            float logit = read(line[i]) * scale;
            top = logit > top ? logit : top;
        }
        float exponentials = 0, products_sum = 0;
#pragma omp simd reduction(+ : exponentials, products_sum)
        for (int64_t i = 0; i < columns; i++) {
            float gap = read(line[i]) * scale - top, power = exponential(gap);
            exponentials += power;
            products_sum += power * gap;
        }
        float drop = old - top, shrink = exponential(drop);  // before the first block 0 times what is finite
        weighted[row] = (weighted[row] + drop * sum[row]) * shrink + products_sum;
        sum[row] = sum[row] * shrink + exponentials;
        most[row] = top;
        int64_t place = targets[row] - first;
        if (place >= 0 && place < columns) target[row] = read(line[place]) * scale;
    }
}

// The gradient in the block's logits, in place of the products or elsewhere. `slope` and `entropy_slope` (either may be
// null) are those in log-probability and entropy: d logprob / d logit = [is the target] - p, d entropy / d logit = -p
// (log p + entropy).
template <class T>
void block_slopes(const T* products, T* out, float scale, const int64_t* targets, int64_t first,
                  const float* normaliser, const float* entropy, const float* slope, const float* entropy_slope,
                  int64_t rows, int64_t columns, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const T* line = products + row * columns;
        T* to = out + row * columns;
        float norm = normaliser[row], of_logprob = slope ? slope[row] : 0;
        int64_t place = targets[row] - first;
        bool inside = place >= 0 && place < columns;
        float chosen = inside ? read(line[place]) * scale - norm : 0, of_chosen = 0;
        if (entropy_slope) {
            float factor = -of_logprob - entropy_slope[row] * entropy[row], by_log = entropy_slope[row];
#pragma omp simd
            for (int64_t i = 0; i < columns; i++) {
                float log_p = read(line[i]) * scale - norm;
                write(to[i], exponential(log_p) * (factor - by_log * log_p));
            }
            of_chosen = exponential(chosen) * (factor - by_log * chosen);
        } else {
#pragma omp simd
            for (int64_t i = 0; i < columns; i++) write(to[i], exponential(read(line[i]) * scale - norm) * -of_logprob);
            of_chosen = exponential(chosen) * -of_logprob;
        }
        if (inside) write(to[place], of_chosen + of_logprob);
    }
}

// Draws a token for each column of `logits` (size, columns): the first whose cumulative probability passes the column's
// uniform number, found by blocks of `width` tokens and then inside the block; or, without uniform numbers, the first
// of the largest. `sums`: memory for (blocks, columns).
template <class T>
void pick(const T* logits, float inverse_temperature, const double* uniform, int64_t* tokens, float* logprobs,
          double* sums, int64_t size, int64_t columns, int64_t width, int threads) {
    int64_t blocks = (size + width - 1) / width;
    float* most = scratch(columns);
    for (int64_t c = 0; c < columns; c++) most[c] = -3e38f;
#pragma omp parallel num_threads(threads)
    {
        float* own = scratch(columns);  // of the calling thread it is `most` itself
        if (own != most)
            for (int64_t c = 0; c < columns; c++) own[c] = -3e38f;
#pragma omp for schedule(static)
        for (int64_t token = 0; token < size; token++) {
            const T* line = logits + token * columns;
#pragma omp simd
            for (int64_t c = 0; c < columns; c++) own[c] = read(line[c]) > own[c] ? read(line[c]) : own[c];
        }
#pragma omp critical
        if (own != most)
            for (int64_t c = 0; c < columns; c++) most[c] = own[c] > most[c] ? own[c] : most[c];
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            double* sum = sums + block * columns;
            for (int64_t c = 0; c < columns; c++) sum[c] = 0;
            for (int64_t token = block * width; token < size && token < (block + 1) * width; token++) {
                const T* line = logits + token * columns;
#pragma omp simd
                for (int64_t c = 0; c < columns; c++)
                    sum[c] += exponential((read(line[c]) - most[c]) * inverse_temperature);
            }
        }
    }
    for (int64_t c = 0; c < columns; c++) {
        auto weight = [&](int64_t token) {
            return exponential((read(logits[token * columns + c]) - most[c]) * inverse_temperature);
        };
        double whole = 0;
        for (int64_t block = 0; block < blocks; block++) whole += sums[block * columns + c];
        int64_t token = 0;
        if (uniform) {
            double threshold = uniform[c] * whole, begin = 0;
            int64_t block = 0;
            while (block < blocks - 1 && begin + sums[block * columns + c] <= threshold)
                begin += sums[block++ * columns + c];
            token = block * width;
            int64_t end = token + width < size ? token + width : size, possible = token;
            double inside = begin;
            for (; token < end; token++) {
                float own = weight(token);
                if (own > 0) possible = token;
                inside += own;
                if (inside > threshold) break;
            }
            if (token == end) token = possible;  // the sum of the block may have been larger in the last bit
        } else {
            while (token < size - 1 && !(read(logits[token * columns + c]) >= most[c])) token++;
        }
        tokens[c] = token;
        logprobs[c] = float(__builtin_log(weight(token) / whole));
    }
}

}  // namespace
