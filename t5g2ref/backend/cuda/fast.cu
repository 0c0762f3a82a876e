// Passes over arrays in pieces of 16 bytes a thread, for half types and float32. What is computed is computed in float
// and rounded once.

typedef long long i64;

struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ inline void narrow(float x, float& y) { y = x; }
__device__ inline void narrow(float x, f16& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
__device__ inline void narrow(float x, bf16& y) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }

template <typename T> struct __align__(16) Piece {
    static const int SIZE = 16 / sizeof(T);
    T at[SIZE];
};

// x / (1 + exp(−2 u)) with u = √(2/π) · (x + 0.044715 x³), which is gelu_tanh and keeps its digits where it is small.
__device__ inline float gelu(float x) {
    const float twice = 1.5957691216057308f * (x + 0.044715f * (x * x * x));
    return x / (1.0f + expf(-twice));
}

template <typename T> __global__ void gelu_tanh(const Piece<T>* x, i64 size, Piece<T>* out) {
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    Piece<T> piece = x[i];
#pragma unroll
    for (int e = 0; e < Piece<T>::SIZE; ++e) narrow(gelu(widen(piece.at[e])), piece.at[e]);
    out[i] = piece;
}

// What follows a product y (rows, width), in its place: y + bias, rounded; then nothing, gelu of it, or the sum of it and
// `residual`, rounded again. `width` in pieces.
enum { PLAIN, GELU, RESIDUAL };
template <typename T, int THEN>
__global__ void finish(Piece<T>* y, const Piece<T>* bias, unsigned width, const Piece<T>* residual, i64 size) {
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    Piece<T> piece = y[i], other;
    const Piece<T> shift = bias[(unsigned)i % width];
    if (THEN == RESIDUAL) other = residual[i];
#pragma unroll
    for (int e = 0; e < Piece<T>::SIZE; ++e) {
        T& value = piece.at[e];
        narrow(widen(value) + widen(shift.at[e]), value);
        if (THEN == GELU) narrow(gelu(widen(value)), value);
        if (THEN == RESIDUAL) narrow(widen(other.at[e]) + widen(value), value);
    }
    y[i] = piece;
}

// (x − mean) / sqrt(var + eps) · weight + bias: a warp a row, which it holds; at most 32 · HELD pieces.
template <typename T, int HELD>
__global__ void layer_norm(const Piece<T>* x, int pieces, i64 rows, const Piece<T>* weight, const Piece<T>* bias,
                           double eps, Piece<T>* out) {
    const i64 row = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    const int lane = threadIdx.x % 32, width = pieces * Piece<T>::SIZE;
    Piece<T> held[HELD];
    float sum = 0, squares = 0;
#pragma unroll
    for (int j = 0; j < HELD; ++j)
        if (lane + 32 * j < pieces) {
            held[j] = x[row * pieces + lane + 32 * j];
#pragma unroll
            for (int e = 0; e < Piece<T>::SIZE; ++e) sum += widen(held[j].at[e]);
        }
    for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    const float mean = sum / width;
#pragma unroll
    for (int j = 0; j < HELD; ++j)
        if (lane + 32 * j < pieces)
#pragma unroll
            for (int e = 0; e < Piece<T>::SIZE; ++e) {
                const float centred = widen(held[j].at[e]) - mean;
                squares += centred * centred;
            }
    for (int step = 16; step; step >>= 1) squares += __shfl_xor_sync(0xffffffffu, squares, step);
    const float scale = 1.0f / sqrtf(squares / width + (float)eps);
#pragma unroll
    for (int j = 0; j < HELD; ++j)
        if (lane + 32 * j < pieces) {
            const Piece<T> w = weight[lane + 32 * j], b = bias[lane + 32 * j];
#pragma unroll
            for (int e = 0; e < Piece<T>::SIZE; ++e)
                narrow((widen(held[j].at[e]) - mean) * scale * widen(w.at[e]) + widen(b.at[e]), held[j].at[e]);
            out[row * pieces + lane + 32 * j] = held[j];
        }
}
