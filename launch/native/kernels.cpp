// Passes over activations of Llama-like layers on a CPU: each reads and writes memory once, where PyTorch's operations, one
// after the other, do so several times. Matrix products stay PyTorch's; only the small ones of attention, whose operands are
// in the processor's cache, are made here.
//
// Compiled on the machine that runs it (build.py); called through ops.py, which checks shapes and types. Activations are
// float32 or bfloat16, every sum and exponential is float32. A row, or a row and its head, is one thread's work from beginning
// to end, so results do not depend on what else is in the batch; sums over rows are added in the order of the threads.
//
// No -ffast-math: as a shared library it would switch denormals off for all of the process, and NaN must stay NaN.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <utility>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t IntegerVector __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4), may_alias));

struct bfloat16 {
    uint16_t bits;
};

inline float read(float x) { return x; }

inline float read(bfloat16 x) {
    uint32_t wide = uint32_t(x.bits) << 16;
    float result;
    memcpy(&result, &wide, 4);
    return result;
}

inline void write(float& to, float x) { to = x; }

inline void write(bfloat16& to, float x) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = x == x ? uint16_t(rounded) : uint16_t(0x7fc0);
}

// e^x to 2 units in the last place; 0 below -87. x = n ln 2 + r, e^r by its Taylor series (|r| < 0.35) to the power 7.
// Of one number or of a vector: F and its integers of the same size.
template <class F, class Integers>
inline F exponential_of(F x) {
    const F most = F{} + 88.f, least = F{} - 87.f;
    F bounded = x > most ? most : x;
    bounded = bounded < least ? least : bounded;
    F shifted = bounded * 1.442695041f + 12582912.f;  // 1.5 * 2^23: the sum's last bits are the rounded integer
    F n = shifted - 12582912.f;
    F r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    F series = F{} + 1.f / 5040;
    for (float coefficient : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) series = series * r + coefficient;
    Integers bits;
    memcpy(&bits, &shifted, sizeof(bits));
    Integers power_bits = (bits + (127 - 0x4b400000)) << 23;
    F power;
    memcpy(&power, &power_bits, sizeof(power));
    return x < least ? F{} : series * power;
}

inline float exponential(float x) { return exponential_of<float, int32_t>(x); }
inline Vector exponential(Vector x) { return exponential_of<Vector, IntegerVector>(x); }

inline float logistic(float x) { return 1.f / (1.f + exponential(-x)); }

inline Vector& at(float* x) { return *reinterpret_cast<Vector*>(x); }
inline const Vector& at(const float* x) { return *reinterpret_cast<const Vector*>(x); }

inline float total(Vector x) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
}

inline float largest(const float* x, int64_t count) {  // a whole number of vectors
    Vector most = at(x);
    for (int64_t i = LANES; i < count; i += LANES) most = at(x + i) > most ? at(x + i) : most;
    float result = most[0];
    for (int lane = 1; lane < LANES; lane++) result = most[lane] > result ? most[lane] : result;
    return result;
}

constexpr int64_t round_up(int64_t n, int64_t by) { return (n + by - 1) / by * by; }

// Memory of a thread, which grows and stays until the thread ends.
struct Memory {
    float* held = nullptr;
    size_t size = 0;
    ~Memory() { free(held); }
};

float* scratch(size_t floats) {
    static thread_local Memory memory;
    if (floats > memory.size) {
        free(memory.held);
        memory.held = static_cast<float*>(aligned_alloc(64, round_up(floats * sizeof(float), 64)));
        if (!memory.held) abort();
        memory.size = floats;
    }
    return memory.held;
}

// ------------------------------------------------------------------------------------ norms and gates

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

template <class D, class O>
void add_norm_backward(const O* slope, const float* sum_slope, const float* sum, const float* weight, const float* inverse,
                       float* of_x, D* of_delta, float* of_weight, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        float* partial = of_weight ? of_weight + part * width : nullptr;
        if (partial) memset(partial, 0, width * sizeof(float));
        for (int64_t row = rows * part / threads; row < rows * (part + 1) / threads; row++) {
            const O* dy = slope + row * width;
            const float* value = sum + row * width;
            float scale = inverse[row], product = 0;
#pragma omp simd reduction(+ : product)
            for (int64_t i = 0; i < width; i++) product += read(dy[i]) * weight[i] * value[i];
            float pull = product / width * scale * scale * scale;
            float* to = of_x + row * width;
            const float* passing = sum_slope + row * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) to[i] = passing[i] + read(dy[i]) * weight[i] * scale - value[i] * pull;
            if (partial)
#pragma omp simd
                for (int64_t i = 0; i < width; i++) partial[i] += read(dy[i]) * value[i] * scale;
            if (of_delta)
#pragma omp simd
                for (int64_t i = 0; i < width; i++) write(of_delta[row * width + i], to[i]);
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

// ------------------------------------------------------------------------------------ attention of short rows

// to[m][n] = sum over k of a[m * down + k * along] * b[k][n], for R rows of `to` and n in [0, columns), a multiple of LANES.
template <int R, int W>
inline void multiply_tile(float* to, int64_t to_step, const float* a, int64_t down, int64_t along, const float* b, int64_t b_step,
                          int64_t depth) {
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
inline void multiply(float* to, int64_t to_step, const float* a, int64_t down, int64_t along, const float* b, int64_t b_step,
                     int64_t depth, int64_t columns) {
    int64_t n = 0;
    for (; n + 2 * LANES <= columns; n += 2 * LANES) multiply_tile<R, 2>(to + n, to_step, a, down, along, b + n, b_step, depth);
    for (; n < columns; n += LANES) multiply_tile<R, 1>(to + n, to_step, a, down, along, b + n, b_step, depth);
}

constexpr int R = 8;  // rows of a tile; rows that fill up the last one are zeros

// Sizes of a row's buffers: `tokens` and `features` rounded up to whole tiles and vectors.
struct Sizes {
    int64_t tokens, features, half;
    Sizes(int64_t count, int64_t head) : tokens(round_up(count, LANES)), features(round_up(head, LANES)), half(head / 2) {}
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
    return __builtin_shufflevector(a, b, (FIRST + LANE / 2 + LANE % 2 * LANES)...);
}

// (tokens, features) to (features, tokens). A square of LANES vectors: as often as LANES is a power of two, line i and line
// i + LANES / 2 are dealt out in turn.
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

template <class T>
void attend(const T* q, const T* k, const T* v, const float* cos, const float* sin, float scale, const int64_t* starts, T* out,
            float* softmax, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, int threads) {
    int64_t group = heads / kv_heads, q_step = heads * head_dim, kv_step = kv_heads * head_dim;
#pragma omp parallel for num_threads(threads) schedule(dynamic, together(rows, kv_heads, threads))
    for (int64_t job = 0; job < rows * kv_heads; job++) {
        int64_t row = job / kv_heads, kv = job % kv_heads, start = starts[row], count = starts[row + 1] - start;
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
                multiply<R>(keys + i * s.features, s.features, shares, s.tokens, 1, values, s.features, i + R, s.features);
            }
            store_head(out + start * q_step + h * head_dim, keys, q_step, count, s);
        }
    }
}

template <class T>
void attend_backward(const T* slope, const T* q, const T* k, const T* v, const float* cos, const float* sin, float scale,
                     const int64_t* starts, const float* softmax, T* of_q, T* of_k, T* of_v, int64_t rows, int64_t heads,
                     int64_t kv_heads, int64_t head_dim, int threads) {
    int64_t group = heads / kv_heads, q_step = heads * head_dim, kv_step = kv_heads * head_dim;
#pragma omp parallel for num_threads(threads) schedule(dynamic, together(rows, kv_heads, threads))
    for (int64_t job = 0; job < rows * kv_heads; job++) {
        int64_t row = job / kv_heads, kv = job % kv_heads, start = starts[row], count = starts[row + 1] - start;
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
                    for (int64_t j = 0; j < columns; j += LANES) at(slopes + j) = at(line + j) * (at(slopes + j) - mean);
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

// ------------------------------------------------------------------------------------ softmax over the vocabulary, by blocks

// A block of logits is scale * products. Over the blocks: the largest logit so far, and relative to it the sums of exp(l) and
// of exp(l) l; the target's logit when it comes.
template <class T>
void add_block(const T* products, float scale, const int64_t* targets, int64_t first, float* target, float* most, float* sum,
               float* weighted, int64_t rows, int64_t columns, int threads) {
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

// The gradient in the block's logits, in place of the products or elsewhere. `slope` and `entropy_slope` (either may be null) are those in
// log-probability and entropy: d logprob / d logit = [is the target] - p, d entropy / d logit = -p (log p + entropy).
template <class T>
void block_slopes(const T* products, T* out, float scale, const int64_t* targets, int64_t first, const float* normaliser,
                  const float* entropy, const float* slope, const float* entropy_slope, int64_t rows, int64_t columns,
                  int threads) {
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

// ------------------------------------------------------------------------------------ decoding: one token a row

// `x` (features, columns), a token for each column: x += delta, then its RMS norm times the weight.
template <class D, class O>
void add_norm_columns(float* x, const D* delta, const float* weight, float eps, O* out, int64_t features, int64_t columns,
                      int threads) {
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
inline void prepare(float* head, const float* norm, float eps, const float* cos, const float* sin, int64_t step, float scale,
                    int64_t half) {
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

// `qkv` (all heads * D, rows), the new token of each row: key and value go to `column` of the row's cache (rows, J, width, D), the
// query attends to columns starts[row] to `column`. `cos`, `sin`: (D / 2, rows).
template <class T>
void attend_step(const T* qkv, const float* q_norm, const float* k_norm, float eps, const float* cos, const float* sin, float scale,
                 T* keys, T* values, const int64_t* starts, int64_t column, int64_t width, T* out, int64_t rows, int64_t heads,
                 int64_t kv_heads, int64_t head_dim, int threads) {
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
            for (int64_t h = 0; h < heads; h++) prepare(q + h * head_dim, q_norm, eps, cos + row, sin + row, rows, scale, half);
            for (int64_t h = 0; h < kv_heads; h++) prepare(k + h * head_dim, k_norm, eps, cos + row, sin + row, rows, 1, half);
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
                    for (int64_t s = 0; s < padded; s += LANES) sums += at(shares + s) = exponential(at(shares + s) - most);
                    float factor = 1.f / total(sums);
                    int64_t d = 0;
                    for (; d + 4 * LANES <= head_dim; d += 4 * LANES) {
                        Vector mixed[4] = {};
                        for (int64_t s = 0; s < seen; s++)
                            for (int w = 0; w < 4; w++) mixed[w] += shares[s] * load(own_values + s * head_dim + d + w * LANES);
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

// Draws a token for each column of `logits` (size, columns): the first whose cumulative probability passes the column's uniform
// number, found by blocks of `width` tokens and then inside the block; or, without uniform numbers, the first of the largest.
// `sums`: memory for (blocks, columns).
template <class T>
void pick(const T* logits, float inverse_temperature, const double* uniform, int64_t* tokens, float* logprobs, double* sums,
          int64_t size, int64_t columns, int64_t width, int threads) {
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
                for (int64_t c = 0; c < columns; c++) sum[c] += exponential((read(line[c]) - most[c]) * inverse_temperature);
            }
        }
    }
    for (int64_t c = 0; c < columns; c++) {
        auto weight = [&](int64_t token) { return exponential((read(logits[token * columns + c]) - most[c]) * inverse_temperature); };
        double whole = 0;
        for (int64_t block = 0; block < blocks; block++) whole += sums[block * columns + c];
        int64_t token = 0;
        if (uniform) {
            double threshold = uniform[c] * whole, begin = 0;
            int64_t block = 0;
            while (block < blocks - 1 && begin + sums[block * columns + c] <= threshold) begin += sums[block++ * columns + c];
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

// What ops.py calls, by name and types. `delta` and `out`: the types of what is added, and of what is given to products.
extern "C" {

#define NORMS(delta, D, out, O)                                                                                               \
    void add_norm_##delta##_##out(const float* x, const D* more, float* sum, const float* weight, float eps, O* normal,       \
                                  float* inverse, int64_t rows, int64_t width, int threads) {                                 \
        add_norm(x, more, sum, weight, eps, normal, inverse, rows, width, threads);                                           \
    }                                                                                                                         \
    void add_norm_backward_##delta##_##out(const O* slope, const float* sum_slope, const float* sum, const float* weight,     \
                                           const float* inverse, float* of_x, D* of_delta, float* of_weight, int64_t rows,    \
                                           int64_t width, int threads) {                                                      \
        add_norm_backward(slope, sum_slope, sum, weight, inverse, of_x, of_delta, of_weight, rows, width, threads);           \
    }                                                                                                                         \
    void add_norm_columns_##delta##_##out(float* x, const D* more, const float* weight, float eps, O* normal,                 \
                                          int64_t features, int64_t columns, int threads) {                                   \
        add_norm_columns(x, more, weight, eps, normal, features, columns, threads);                                           \
    }
NORMS(f32, float, f32, float)
NORMS(f32, float, bf16, bfloat16)
NORMS(bf16, bfloat16, f32, float)
NORMS(bf16, bfloat16, bf16, bfloat16)

#define LAYERS(type, T)                                                                                                       \
    void gate_##type(const T* x, const T* up, T* out, int64_t count, int threads) { gate(x, up, out, count, threads); }       \
    void gate_backward_##type(const T* slope, const T* x, const T* up, T* of_x, T* of_up, int64_t count, int threads) {       \
        gate_backward(slope, x, up, of_x, of_up, count, threads);                                                             \
    }                                                                                                                         \
    void attend_##type(const T* q, const T* k, const T* v, const float* cos, const float* sin, float scale,                   \
                       const int64_t* starts, T* out, float* softmax, int64_t rows, int64_t heads, int64_t kv_heads,         \
                       int64_t head_dim, int threads) {                                                                       \
        attend(q, k, v, cos, sin, scale, starts, out, softmax, rows, heads, kv_heads, head_dim, threads);                    \
    }                                                                                                                         \
    void attend_backward_##type(const T* slope, const T* q, const T* k, const T* v, const float* cos, const float* sin,       \
                                float scale, const int64_t* starts, const float* softmax, T* of_q, T* of_k, T* of_v,         \
                                int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, int threads) {               \
        attend_backward(slope, q, k, v, cos, sin, scale, starts, softmax, of_q, of_k, of_v, rows, heads, kv_heads, head_dim, \
                        threads);                                                                                             \
    }                                                                                                                         \
    void attend_step_##type(const T* qkv, const float* q_norm, const float* k_norm, float eps, const float* cos,              \
                            const float* sin, float scale, T* keys, T* values, const int64_t* starts, int64_t column,         \
                            int64_t width, T* out, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim,           \
                            int threads) {                                                                                    \
        attend_step(qkv, q_norm, k_norm, eps, cos, sin, scale, keys, values, starts, column, width, out, rows, heads,         \
                    kv_heads, head_dim, threads);                                                                             \
    }
LAYERS(f32, float)
LAYERS(bf16, bfloat16)

#define HEADS(type, T)                                                                                                        \
    void pick_##type(const T* logits, float inverse_temperature, const double* uniform, int64_t* tokens, float* logprobs,     \
                     double* sums, int64_t size, int64_t columns, int64_t width, int threads) {                               \
        pick(logits, inverse_temperature, uniform, tokens, logprobs, sums, size, columns, width, threads);                    \
    }                                                                                                                         \
    void add_block_##type(const T* products, float scale, const int64_t* targets, int64_t first, float* target, float* most,  \
                          float* sum, float* weighted, int64_t rows, int64_t columns, int threads) {                          \
        add_block(products, scale, targets, first, target, most, sum, weighted, rows, columns, threads);                      \
    }                                                                                                                         \
    void block_slopes_##type(const T* products, T* out, float scale, const int64_t* targets, int64_t first, const float* normaliser,        \
                             const float* entropy, const float* slope, const float* entropy_slope, int64_t rows,              \
                             int64_t columns, int threads) {                                                                  \
        block_slopes(products, out, scale, targets, first, normaliser, entropy, slope, entropy_slope, rows, columns, threads);     \
    }
HEADS(f32, float)
HEADS(bf16, bfloat16)
}
