// Passes over activations of Llama-like layers on a CPU: each reads and writes memory once, where PyTorch's operations,
// one after the other, do so several times. Matrix products stay PyTorch's; only the small ones of attention, whose
// operands are in the processor's cache, are made here.
//
// Compiled on the machine that runs it (build.py); called through ops.py, which checks shapes and types. Activations
// are float32 or bfloat16, every sum and exponential is float32. A row, or a row and its head, is one thread's work
// from beginning to end, so results do not depend on what else is in the batch; sums over rows are added in the order
// of the threads.
//
// No -ffast-math: as a shared library it would switch denormals off for all of the process, and NaN must stay NaN.

#include "attention.h"
#include "decoding.h"
#include "layers.h"
#include "vocabulary.h"

// What ops.py calls, by name and types. `delta` and `out`: the types of what is added, and of what is given to
// products.
extern "C" {

#define NORMS(delta, D, out, O)                                                                                     \
    void add_norm_##delta##_##out(const float* x, const D* more, float* sum, const float* weight, float eps,        \
                                  O* normal, float* inverse, int64_t rows, int64_t width, int threads) {            \
        add_norm(x, more, sum, weight, eps, normal, inverse, rows, width, threads);                                 \
    }                                                                                                               \
    void add_norm_backward_##delta##_##out(const O* slope, const float* sum_slope, const float* sum,                \
                                           const float* weight, const float* inverse, float* of_x, D* of_delta,     \
                                           float* of_weight, int64_t rows, int64_t width, int threads) {            \
        add_norm_backward(slope, sum_slope, sum, weight, inverse, of_x, of_delta, of_weight, rows, width, threads); \
    }                                                                                                               \
    void add_norm_columns_##delta##_##out(float* x, const D* more, const float* weight, float eps, O* normal,       \
                                          int64_t features, int64_t columns, int threads) {                         \
        add_norm_columns(x, more, weight, eps, normal, features, columns, threads);                                 \
    }
NORMS(f32, float, f32, float)
NORMS(f32, float, bf16, bfloat16)
NORMS(bf16, bfloat16, f32, float)
NORMS(bf16, bfloat16, bf16, bfloat16)

#define LAYERS(type, T)                                                                                               \
    void gate_##type(const T* x, const T* up, T* out, int64_t count, int threads) {                                   \
        gate(x, up, out, count, threads);                                                                             \
    }                                                                                                                 \
    void gate_backward_##type(const T* slope, const T* x, const T* up, T* of_x, T* of_up, int64_t count,              \
                              int threads) {                                                                          \
        gate_backward(slope, x, up, of_x, of_up, count, threads);                                                     \
    }                                                                                                                 \
    void attend_##type(const T* q, const T* k, const T* v, const float* cos, const float* sin, float scale,           \
                       const int64_t* starts, T* out, float* softmax, int64_t rows, int64_t heads, int64_t kv_heads,  \
                       int64_t head_dim, int threads) {                                                               \
        attend(q, k, v, cos, sin, scale, starts, out, softmax, rows, heads, kv_heads, head_dim, threads);             \
    }                                                                                                                 \
    void attend_backward_##type(const T* slope, const T* q, const T* k, const T* v, const float* cos,                 \
                                const float* sin, float scale, const int64_t* starts, const float* softmax, T* of_q,  \
                                T* of_k, T* of_v, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim,    \
                                int threads) {                                                                        \
        attend_backward(slope, q, k, v, cos, sin, scale, starts, softmax, of_q, of_k, of_v, rows, heads, kv_heads,    \
                        head_dim, threads);                                                                           \
    }                                                                                                                 \
    void attend_step_##type(const T* qkv, const float* q_norm, const float* k_norm, float eps, const float* cos,      \
                            const float* sin, float scale, T* keys, T* values, const int64_t* starts, int64_t column, \
                            int64_t width, T* out, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim,   \
                            int threads) {                                                                            \
        attend_step(qkv, q_norm, k_norm, eps, cos, sin, scale, keys, values, starts, column, width, out, rows, heads, \
                    kv_heads, head_dim, threads);                                                                     \
    }
LAYERS(f32, float)
LAYERS(bf16, bfloat16)

#define HEADS(type, T)                                                                                               \
    void pick_##type(const T* logits, float inverse_temperature, const double* uniform, int64_t* tokens,             \
                     float* logprobs, double* sums, int64_t size, int64_t columns, int64_t width, int threads) {     \
        pick(logits, inverse_temperature, uniform, tokens, logprobs, sums, size, columns, width, threads);           \
    }                                                                                                                \
    void add_block_##type(const T* products, float scale, const int64_t* targets, int64_t first, float* target,      \
                          float* most, float* sum, float* weighted, int64_t rows, int64_t columns, int threads) {    \
        add_block(products, scale, targets, first, target, most, sum, weighted, rows, columns, threads);             \
    }                                                                                                                \
    void block_slopes_##type(const T* products, T* out, float scale, const int64_t* targets, int64_t first,          \
                             const float* normaliser, const float* entropy, const float* slope,                      \
                             const float* entropy_slope, int64_t rows, int64_t columns, int threads) {               \
        block_slopes(products, out, scale, targets, first, normaliser, entropy, slope, entropy_slope, rows, columns, \
                     threads);                                                                                       \
    }
HEADS(f32, float)
HEADS(bf16, bfloat16)
}
