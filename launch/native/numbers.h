// Numbers of both types, vectors of them, the exponential, and memory.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

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
    for (float coefficient : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f})
        series = series * r + coefficient;
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

}  // namespace
