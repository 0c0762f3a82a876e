// Fused twins of the operations in ops.py, rope.py and attention.py, one kernel each.
//
// T is the type in memory; Wide<T>::type is float, or double for double. Everything is computed wide and narrowed once
// to nearest even, at the places where the array definitions round. Compiled without contraction to fused
// multiply-add, so that an elementwise kernel gives the bits of its definition; sums are taken in another order.
// No header is needed: bfloat16 and float16 are two bytes with conversions of their own.

typedef long long i64;

struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

template <typename T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ inline void narrow(float x, float& y) { y = x; }
__device__ inline void narrow(double x, double& y) { y = x; }
__device__ inline void narrow(float x, f16& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
__device__ inline void narrow(float x, bf16& y) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { y.bits = (bits >> 16) | 0x40u; return; }  // NaN stays NaN
    y.bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // half up, and a tie to the even neighbour
}
template <typename T, typename A> __device__ inline T rounded(A x) { T y; narrow(x, y); return y; }

__device__ inline float root(float x) { return sqrtf(x); }
__device__ inline double root(double x) { return sqrt(x); }
__device__ inline float hyperbolic(float x) { return tanhf(x); }
__device__ inline double hyperbolic(double x) { return tanh(x); }
__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }

// The sum or the maximum over a block, given to every thread. `shared` holds 32 values.
template <typename A> __device__ A block_sum(A x, A* shared) {
    for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
    __syncthreads();
    x = 0;
    for (int warp = 0; warp < (blockDim.x >> 5); ++warp) x += shared[warp];
    return x;
}
template <typename A> __device__ A block_max(A x, A* shared) {
    for (int step = 16; step; step >>= 1) {
        A other = __shfl_xor_sync(0xffffffffu, x, step);
        x = other > x ? other : x;
    }
    __syncthreads();
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
    __syncthreads();
    x = shared[0];
    for (int warp = 1; warp < (blockDim.x >> 5); ++warp) x = shared[warp] > x ? shared[warp] : x;
    return x;
}

// Row r of an array (n0, n1, n2, width) whose first three axes have any strides, counted in elements.
__device__ inline i64 row_offset(i64 r, i64 n1, i64 n2, i64 s0, i64 s1, i64 s2) {
    return (r / (n1 * n2)) * s0 + (r / n2 % n1) * s1 + (r % n2) * s2;
}

// 1 / sqrt(mean(x²) + eps) of a row, the same in each rms_norm below.
template <typename T, typename A>
__device__ inline A inverse_rms(const T* row, i64 width, double eps, A* shared) {
    A sum = 0;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        A value = widen(row[i]);
        sum += value * value;
    }
    return A(1) / root(block_sum(sum, shared) / A(width) + A(eps));
}

// x / sqrt(mean(x²) + eps) · (1 + weight): one block a row.
template <typename T>
__global__ void rms_norm(const T* x, i64 n1, i64 n2, i64 s0, i64 s1, i64 s2, i64 width, const T* weight, double eps,
                         T* out) {
    typedef typename Wide<T>::type A;
    __shared__ A shared[32];
    const T* row = x + row_offset(blockIdx.x, n1, n2, s0, s1, s2);
    A scale = inverse_rms(row, width, eps, shared);
    for (i64 i = threadIdx.x; i < width; i += blockDim.x)
        out[(i64)blockIdx.x * width + i] = rounded<T>(A(widen(row[i])) * scale * (A(1) + A(widen(weight[i]))));
}

// residual + rms_norm(x), the norm rounded before the sum; both dense rows.
template <typename T>
__global__ void add_norm(const T* residual, const T* x, i64 width, const T* weight, double eps, T* out) {
    typedef typename Wide<T>::type A;
    __shared__ A shared[32];
    const i64 first = (i64)blockIdx.x * width;
    A scale = inverse_rms(x + first, width, eps, shared);
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        T normed = rounded<T>(A(widen(x[first + i])) * scale * (A(1) + A(widen(weight[i]))));
        out[first + i] = rounded<T>(A(widen(residual[first + i])) + A(widen(normed)));
    }
}

// x · cos + other · sin, both products and the sum rounded.
template <typename T, typename A> __device__ inline T turn(A x, A other, T cosine, T sine) {
    A straight = widen(rounded<T>(x * A(widen(cosine))));
    A turned = widen(rounded<T>(other * A(widen(sine))));
    return rounded<T>(straight + turned);
}

// rms_norm of a head, rounded, then turned as by `rotate` below: x (B, N, T, H ≤ 1024) with cos and sin (B, T, H).
template <typename T>
__global__ void turned_norm(const T* x, i64 heads, i64 length, i64 s0, i64 s1, i64 s2, i64 width, const T* weight,
                            double eps, const T* cosines, const T* sines, T* out) {
    typedef typename Wide<T>::type A;
    __shared__ A shared[32];
    __shared__ A normed[1024];
    const T* row = x + row_offset(blockIdx.x, heads, length, s0, s1, s2);
    A scale = inverse_rms(row, width, eps, shared);
    for (i64 i = threadIdx.x; i < width; i += blockDim.x)
        normed[i] = widen(rounded<T>(A(widen(row[i])) * scale * (A(1) + A(widen(weight[i])))));
    __syncthreads();
    i64 half = width / 2, t = blockIdx.x % length, b = blockIdx.x / length / heads, angle = (b * length + t) * width;
    for (i64 h = threadIdx.x; h < width; h += blockDim.x) {
        A other = h < half ? -normed[h + half] : normed[h - half];
        out[(i64)blockIdx.x * width + h] = turn(normed[h], other, cosines[angle + h], sines[angle + h]);
    }
}

// (x − mean) / sqrt(var + eps) · weight + bias: one block a row.
template <typename T>
__global__ void layer_norm(const T* x, i64 n1, i64 n2, i64 s0, i64 s1, i64 s2, i64 width, const T* weight,
                           const T* bias, double eps, T* out) {
    typedef typename Wide<T>::type A;
    __shared__ A shared[32];
    const T* row = x + row_offset(blockIdx.x, n1, n2, s0, s1, s2);
    A sum = 0, squares = 0;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) sum += A(widen(row[i]));
    A mean = block_sum(sum, shared) / A(width);
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        A centred = A(widen(row[i])) - mean;
        squares += centred * centred;
    }
    A scale = A(1) / root(block_sum(squares, shared) / A(width) + A(eps));
    for (i64 i = threadIdx.x; i < width; i += blockDim.x)
        out[(i64)blockIdx.x * width + i] =
            rounded<T>((A(widen(row[i])) - mean) * scale * A(widen(weight[i])) + A(widen(bias[i])));
}

template <typename A> __device__ inline A gelu(A x) {
    A inner = A(0.7978845608028654) * (x + A(0.044715) * (x * x * x));
    return A(0.5) * x * (A(1) + hyperbolic(inner));
}

template <typename T> __global__ void gelu_tanh(const T* x, i64 size, T* out) {
    typedef typename Wide<T>::type A;
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) out[i] = rounded<T>(gelu(A(widen(x[i]))));
}

// gelu(gate), rounded, times up, rounded.
template <typename T> __global__ void gated_gelu(const T* gate, const T* up, i64 size, T* out) {
    typedef typename Wide<T>::type A;
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) out[i] = rounded<T>(A(widen(rounded<T>(gelu(A(widen(gate[i])))))) * A(widen(up[i])));
}

// y + bias, along the last axis; y is wide.
template <typename T>
__global__ void biased(const typename Wide<T>::type* y, const T* bias, i64 width, i64 size, T* out) {
    typedef typename Wide<T>::type A;
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) out[i] = rounded<T>(y[i] + A(widen(bias[i % width])));
}

// x (B, N, T, H) of any strides but a dense last axis, turned by cos and sin (B, T, H).
template <typename T>
__global__ void rotate(const T* x, i64 heads, i64 length, i64 s0, i64 s1, i64 s2, i64 width, const T* cosines,
                       const T* sines, i64 size, T* out) {
    typedef typename Wide<T>::type A;
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= size) return;
    i64 h = at % width, half = width / 2;
    i64 row = at / width, t = row % length, b = row / length / heads;
    const T* head = x + row_offset(row, heads, length, s0, s1, s2);
    i64 angle = (b * length + t) * width + h;
    A other = h < half ? -A(widen(head[h + half])) : A(widen(head[h - half]));
    out[at] = turn(A(widen(head[h])), other, cosines[angle], sines[angle]);
}

// A product (float32) near a tie, rounded to its other side: ops.across_ties. `squares` sums its terms' squares.
template <typename T>
__global__ void across_ties(const float* products, const float* squares, double loose_, i64 size, T* out) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    float x = products[i], loose = loose_, error = (fabsf(x) + sqrtf(squares[i])) * loose;
    T near = rounded<T>(x), low = rounded<T>(x - error), high = rounded<T>(x + error);
    out[i] = widen(low) == widen(near) ? high : low;
}

// softmax(cap · tanh(x · scale / cap)) over the last axis, 0 where not allowed: one block a row. A score of a half type
// is rounded to it, as an unfused attention does: without a cap. Row r belongs to query
// r % queries of batch row r / per_batch; `allowed` is (masks, queries, keys) with masks 1 or B, or null. A row with
// nothing allowed gives zeros, a NaN gives NaN.
const int HELD = 16;
template <typename A>
__device__ inline A score(A x, A scale, A cap) {
    x = x * scale;
    return cap > A(0) ? cap * hyperbolic(x / cap) : x;
}
template <typename S> __device__ inline float scored(S x, float scale, float cap) {
    return widen(rounded<S>(score(widen(x), scale, cap)));
}
__device__ inline float scored(float x, float scale, float cap) { return score(x, scale, cap); }
__device__ inline double scored(double x, double scale, double cap) { return score(x, scale, cap); }
template <typename S, typename T>
__global__ void masked_softmax(const S* x, const bool* allowed, i64 masks, i64 queries, i64 per_batch, i64 keys,
                               double scale_, double cap_, T* out) {
    typedef typename Wide<T>::type A;
    __shared__ A shared[32];
    const A infinity = __longlong_as_double(0x7ff0000000000000LL), scale = scale_, cap = cap_;
    i64 row = blockIdx.x;
    const S* scores = x + row * keys;
    const bool* may = allowed ? allowed + ((masks > 1 ? row / per_batch : 0) * queries + row % queries) * keys : 0;
    A top = -infinity, total = 0, held[HELD];  // a row of up to HELD · threads keys is read once
    bool fits = keys <= HELD * blockDim.x;
    if (fits) {
#pragma unroll
        for (int j = 0; j < HELD; ++j) {
            i64 k = threadIdx.x + j * blockDim.x;
            held[j] = k < keys && (!may || may[k]) ? scored(scores[k], scale, cap) : -infinity;
            top = held[j] > top ? held[j] : top;
        }
    } else {
        for (i64 k = threadIdx.x; k < keys; k += blockDim.x)
            if (!may || may[k]) {
                A s = scored(scores[k], scale, cap);
                top = s > top ? s : top;
            }
    }
    top = block_max(top, shared);
    if (!(top > -infinity && top < infinity)) top = 0;
    if (fits) {
#pragma unroll
        for (int j = 0; j < HELD; ++j) total += held[j] = exponential(held[j] - top);
    } else {
        for (i64 k = threadIdx.x; k < keys; k += blockDim.x)
            if (!may || may[k]) total += exponential(scored(scores[k], scale, cap) - top);
    }
    total = block_sum(total, shared);
    if (total == A(0)) total = 1;
    if (fits) {
#pragma unroll
        for (int j = 0; j < HELD; ++j) {
            i64 k = threadIdx.x + j * blockDim.x;
            if (k < keys) out[row * keys + k] = rounded<T>(held[j] / total);
        }
    } else {
        for (i64 k = threadIdx.x; k < keys; k += blockDim.x) {
            bool seen = !may || may[k];
            A weight = seen ? exponential(scored(scores[k], scale, cap) - top) : A(0);
            out[row * keys + k] = rounded<T>(weight / total);
        }
    }
}

// The weights of a flash kernel, wide, with arguments as above: keys go in steps of `step`, at most MOST_STEPS of them,
// and an exponential is rounded to T relative to the largest score so far. The sum is that of unrounded ones.
const int MOST_STEPS = 4096;
template <typename S, typename T>
__global__ void flash_softmax(const S* x, const bool* allowed, i64 masks, i64 queries, i64 per_batch, i64 keys,
                              i64 step, double scale_, double cap_, S* out) {
    __shared__ S tops[MOST_STEPS], sums[MOST_STEPS], whole;
    const S infinity = __longlong_as_double(0x7ff0000000000000LL), scale = scale_, cap = cap_;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5, steps = (keys + step - 1) / step;
    const i64 row = blockIdx.x;
    const S* scores = x + row * keys;
    const bool* may = allowed ? allowed + ((masks > 1 ? row / per_batch : 0) * queries + row % queries) * keys : 0;
    for (int n = warp; n < steps; n += warps) {  // the largest score of each step
        S top = -infinity;
        for (i64 k = n * step + lane; k < keys && k < (n + 1) * step; k += 32)
            if (!may || may[k]) {
                S s = score(scores[k], scale, cap);
                top = s > top ? s : top;
            }
        for (int by = 16; by; by >>= 1) {
            S other = __shfl_xor_sync(0xffffffffu, top, by);
            top = other > top ? other : top;
        }
        if (lane == 0) tops[n] = top;
    }
    __syncthreads();
    if (threadIdx.x == 0) {  // so far
        S top = -infinity;
        for (int n = 0; n < steps; ++n) tops[n] = top = tops[n] > top ? tops[n] : top;
    }
    __syncthreads();
    S last = tops[steps - 1];
    last = last > -infinity && last < infinity ? last : S(0);
    for (int n = warp; n < steps; n += warps) {
        S seen = tops[n], sum = 0;
        seen = seen > -infinity && seen < infinity ? seen : S(0);
        for (i64 k = n * step + lane; k < keys && k < (n + 1) * step; k += 32)
            if (!may || may[k]) sum += exponential(score(scores[k], scale, cap) - seen);
        for (int by = 16; by; by >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, by);
        if (lane == 0) sums[n] = sum * exponential(seen < last ? seen - last : S(0));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        S total = 0;
        for (int n = 0; n < steps; ++n) total += sums[n];
        whole = total == S(0) ? S(1) : total;
    }
    __syncthreads();
    for (i64 k = threadIdx.x; k < keys; k += blockDim.x) {
        S seen = tops[k / step], power = 0;
        seen = seen > -infinity && seen < infinity ? seen : S(0);
        if (!may || may[k]) power = exponential(score(scores[k], scale, cap) - seen);
        out[row * keys + k] = S(widen(rounded<T>(power))) * exponential(seen < last ? seen - last : S(0)) / whole;
    }
}

// Which keys of up to two sources, side by side, the queries first … may see: bool (B, queries, a_keys + b_keys).
// Key j of a source stands at position low + j; it is seen from `behind` behind to `ahead` in front of the query, where
// valid (B, …; null for all) says that it is no padding.
__device__ inline bool sees(i64 low, i64 behind, i64 ahead, i64 stride, const bool* valid, i64 b, i64 q, i64 j) {
    i64 distance = low + j - q;
    return distance >= -behind && distance <= ahead && (!valid || valid[b * stride + j]);
}
__global__ void visible(i64 first, i64 queries, i64 size, i64 a_low, i64 a_keys, i64 a_behind, i64 a_ahead,
                                   i64 a_stride, const bool* a_valid, i64 b_low, i64 b_keys, i64 b_behind,
                                   i64 b_ahead, i64 b_stride, const bool* b_valid, bool* out) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= size) return;
    i64 keys = a_keys + b_keys, j = at % keys, q = first + at / keys % queries, b = at / keys / queries;
    out[at] = j < a_keys ? sees(a_low, a_behind, a_ahead, a_stride, a_valid, b, q, j)
                         : sees(b_low, b_behind, b_ahead, b_stride, b_valid, b, q, j - a_keys);
}

// a (n0, n1, a_rows, width) and b (n0, n1, b_rows, width), of any strides but a dense last axis, one behind the other.
template <typename T>
__global__ void join(const T* a, i64 a_rows, i64 a0, i64 a1, i64 a2, const T* b, i64 b_rows, i64 b0, i64 b1, i64 b2,
                     i64 n1, i64 width, i64 size, T* out) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= size) return;
    i64 h = at % width, rows = a_rows + b_rows, row = at / width % rows, outer = at / width / rows;
    i64 i = outer / n1, j = outer % n1;
    out[at] = row < a_rows ? a[i * a0 + j * a1 + row * a2 + h] : b[i * b0 + j * b1 + (row - a_rows) * b2 + h];
}

// A copy to shared memory of one element, or of zeros where there is none; it is there when its group was waited for.
#if defined(EMULATED)
template <typename A> inline void fetch(A* to, const A* from, bool there) {
    emu_cp_async(to, from, there ? sizeof(A) : 0, sizeof(A));
}
inline void fetched() { emu_cp_async_commit(); }
template <int LEFT> inline void await() { emu_cp_async_wait(LEFT); }
#elif __CUDA_ARCH__ >= 800
template <typename A> __device__ inline void fetch(A* to, const A* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from),
                 "n"(sizeof(A)), "r"(there ? (int)sizeof(A) : 0) : "memory");
}
__device__ inline void fetched() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ inline void await() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }
#else
template <typename A> __device__ inline void fetch(A* to, const A* from, bool there) { *to = there ? *from : A(0); }
__device__ inline void fetched() {}
template <int LEFT> __device__ inline void await() {}
#endif

// C (M, N) = A (M, K) B (K, N), each element one running sum over k of rounded products. Strides in elements; the third
// grid axis is the batch. 16 R rows by 64 columns a block, R × 4 elements a thread, DEPTH steps of k at a time, of which
// STAGES are in shared memory or on their way: each waits long for the device's memory, and a sum is one chain.
const int DEPTH = 16;
template <typename A, int R>
__device__ inline void running_sums(const A* a, i64 a_row, i64 a_col, const A* b, i64 b_row, i64 b_col, i64 m, i64 n,
                                    i64 depth, A* c) {
    const int STAGES = 16 / sizeof(A), ROWS = 16 * R;
    __shared__ __align__(16) A left[STAGES][DEPTH][ROWS + 4];
    __shared__ __align__(16) A right[STAGES][DEPTH][64 + 4];
    const i64 row0 = (i64)blockIdx.y * ROWS, col0 = (i64)blockIdx.x * 64;
    const int tid = threadIdx.x, ty = tid / 16, tx = tid % 16;
    auto load = [&](i64 k0, int stage) {
        for (int i = tid; k0 < depth && i < ROWS * DEPTH; i += 256) {
            const int k = i % DEPTH, r = i / DEPTH;
            const bool there = row0 + r < m && k0 + k < depth;
            fetch(&left[stage][k][r], there ? a + (row0 + r) * a_row + (k0 + k) * a_col : a, there);
        }
        for (int i = tid; k0 < depth && i < 64 * DEPTH; i += 256) {
            const int k = b_row == 1 ? i % DEPTH : i / 64, r = b_row == 1 ? i / DEPTH : i % 64;
            const bool there = col0 + r < n && k0 + k < depth;
            fetch(&right[stage][k][r], there ? b + (k0 + k) * b_row + (col0 + r) * b_col : b, there);
        }
        fetched();
    };
    A sum[R][4] = {};
    auto add = [&](int stage, int k) {
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < 4; ++j) sum[i][j] += left[stage][k][ty * R + i] * right[stage][k][tx * 4 + j];
    };
    for (int i = 0; i < STAGES - 1; ++i) load(i * DEPTH, i);
    int stage = 0;
    for (i64 k0 = 0; k0 < depth; k0 += DEPTH, stage = (stage + 1) % STAGES) {
        await<STAGES - 2>();
        __syncthreads();  // all have seen this stage, and are done with the one before
        load(k0 + (STAGES - 1) * DEPTH, (stage + STAGES - 1) % STAGES);
        if (depth - k0 >= DEPTH) {
#pragma unroll
            for (int k = 0; k < DEPTH; ++k) add(stage, k);
        } else {
            for (int k = 0; k < int(depth - k0); ++k) add(stage, k);
        }
    }
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < 4; ++j) {
            const i64 r = row0 + ty * R + i, col = col0 + tx * 4 + j;
            if (r < m && col < n) c[r * n + col] = sum[i][j];
        }
}
template <typename A>
__global__ void running(const A* a, i64 a_batch, i64 a_row, i64 a_col, const A* b, i64 b_batch, i64 b_row, i64 b_col,
                        i64 m, i64 n, i64 depth, A* c) {
    running_sums<A, 4>(a + blockIdx.z * a_batch, a_row, a_col, b + blockIdx.z * b_batch, b_row, b_col, m, n, depth,
                       c + blockIdx.z * m * n);
}
template <typename A>  // for up to 16 rows
__global__ void running_few(const A* a, i64 a_batch, i64 a_row, i64 a_col, const A* b, i64 b_batch, i64 b_row,
                            i64 b_col, i64 m, i64 n, i64 depth, A* c) {
    running_sums<A, 1>(a + blockIdx.z * a_batch, a_row, a_col, b + blockIdx.z * b_batch, b_row, b_col, m, n, depth,
                       c + blockIdx.z * m * n);
}
