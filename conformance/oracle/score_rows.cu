// What oracles make of attention's scores, a row at a time: softmax with a defect, and the bound of a legal one. Arrays
// of a picture's scores are gigabytes, and the formulas over arrays go through them a dozen times.
//
// A block a row of `keys` products, float64. Row r belongs to query r % queries of batch row r / per_batch; `allowed` is
// (masks, queries, keys) with masks 1 or as many as batch rows, or null. A score is product · scale, softcapped by cap > 0.

typedef long long i64;
struct Rows { i64 masks, queries, per_batch, keys; double scale, cap; };

__device__ inline double larger(double a, double b) { return b > a || b != b ? b : a; }  // a NaN is the largest
__device__ inline double finite_or_0(double x) { return x - x == 0 ? x : 0.0; }
__device__ inline const bool* seen_by(const Rows& of, const bool* allowed, i64 row) {
    return allowed ? allowed + ((of.masks > 1 ? row / of.per_batch : 0) * of.queries + row % of.queries) * of.keys : 0;
}

// The sum, or the largest, over a block's threads, given to each; `shared` holds 32.
__device__ double all_sum(double x, double* shared) {
    for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
    __syncthreads();
    x = 0;
    for (int warp = 0; warp < (int)(blockDim.x >> 5); ++warp) x += shared[warp];
    return x;
}
__device__ double all_largest(double x, double* shared) {
    for (int step = 16; step; step >>= 1) x = larger(x, __shfl_xor_sync(0xffffffffu, x, step));
    __syncthreads();
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
    __syncthreads();
    x = shared[0];
    for (int warp = 1; warp < (int)(blockDim.x >> 5); ++warp) x = larger(x, shared[warp]);
    return x;
}

// x on the grid of bfloat16, or of float16, rounded once. In float32 between, what is inexact becomes its odd neighbour.
__device__ inline double on_grid(double wide, bool brain) {
    float x = (float)wide;
    if (!(wide - wide == 0)) return x;
    if (x != wide) x = __uint_as_float((__float_as_uint(x) - (fabs((double)x) > fabs(wide))) | 1u);
    const int lost = brain ? 16 : 13;
    if (!brain && fabsf(x) < 0x1p-14f) return rintf(x * 0x1p24f) * 0x1p-24f;
    unsigned bits = __float_as_uint(x);
    bits = (bits + (1u << (lost - 1)) - 1 + (bits >> lost & 1)) >> lost << lost;
    const float y = __uint_as_float(bits);
    return !brain && fabsf(y) >= 65536.0f ? copysign((double)__uint_as_float(0x7f800000u), (double)y) : y;
}

// Every step rounded: product, score, its distance from the largest, power, their sum, quotient.
__device__ inline double narrow_score(double x, const Rows& of, bool brain) {
    x = on_grid(on_grid(x, brain) * of.scale, brain);
    return of.cap > 0 ? on_grid(of.cap * tanh(x / of.cap), brain) : x;
}
extern "C" __global__ void narrow_softmax(const double* products, const bool* allowed, i64 masks, i64 queries,
                                          i64 per_batch, i64 keys, double scale, double cap, int brain, double* out) {
    __shared__ double shared[32];
    const Rows of = {masks, queries, per_batch, keys, scale, cap};
    const double infinity = __longlong_as_double(0x7ff0000000000000LL);
    const i64 row = blockIdx.x;
    const double* x = products + row * keys;
    const bool* may = seen_by(of, allowed, row);
    double top = -infinity, total = 0;
    for (i64 k = threadIdx.x; k < keys; k += blockDim.x)
        if (!may || may[k]) top = larger(top, narrow_score(x[k], of, brain));
    top = finite_or_0(all_largest(top, shared));
    for (i64 k = threadIdx.x; k < keys; k += blockDim.x)
        if (!may || may[k]) total += on_grid(exp(on_grid(narrow_score(x[k], of, brain) - top, brain)), brain);
    total = on_grid(all_sum(total, shared), brain);
    if (total == 0) total = 1;
    for (i64 k = threadIdx.x; k < keys; k += blockDim.x) {
        double power = 0;
        if (!may || may[k]) power = on_grid(exp(on_grid(narrow_score(x[k], of, brain) - top, brain)), brain);
        out[row * keys + k] = on_grid(power / total, brain);
    }
}

__device__ inline double score(double x, const Rows& of) {
    x *= of.scale;
    return of.cap > 0 ? of.cap * tanh(x / of.cap) : x;
}
// A key that is not allowed has the score `hidden`.
extern "C" __global__ void counted_softmax(const double* products, const bool* allowed, i64 masks, i64 queries,
                                           i64 per_batch, i64 keys, double scale, double cap, double hidden, double* out) {
    __shared__ double shared[32];
    const Rows of = {masks, queries, per_batch, keys, scale, cap};
    const i64 row = blockIdx.x;
    const double* x = products + row * keys;
    const bool* may = seen_by(of, allowed, row);
    double top = -__longlong_as_double(0x7ff0000000000000LL), total = 0;
    for (i64 k = threadIdx.x; k < keys; k += blockDim.x) top = larger(top, !may || may[k] ? score(x[k], of) : hidden);
    top = all_largest(top, shared);
    for (i64 k = threadIdx.x; k < keys; k += blockDim.x) total += exp((!may || may[k] ? score(x[k], of) : hidden) - top);
    total = all_sum(total, shared);
    for (i64 k = threadIdx.x; k < keys; k += blockDim.x)
        out[row * keys + k] = exp((!may || may[k] ? score(x[k], of) : hidden) - top) / total;
}

// The bound of a legal run's weights, as `worst_case._weights` has it. A score is off by `by_score` of itself and by
// `by_size` of its terms' sizes, of which `sizes` has the sums; a weight by `fixed` of itself and as much of what is lost.
extern "C" __global__ void weights_bound(const double* products, const double* sizes, const bool* allowed, i64 masks,
                                         i64 queries, i64 per_batch, i64 keys, double scale, double cap, double by_score,
                                         double by_size, double fixed, double smallest, double* out) {
    __shared__ double shared[32];
    const Rows of = {masks, queries, per_batch, keys, scale, cap};
    const double infinity = __longlong_as_double(0x7ff0000000000000LL);
    const i64 row = blockIdx.x;
    const double *x = products + row * keys, *size = sizes + row * keys;
    const bool* may = seen_by(of, allowed, row);
    double top = -infinity, off = 0, total = 0;
    for (i64 k = threadIdx.x; k < keys; k += blockDim.x)
        if (!may || may[k]) {
            top = larger(top, score(x[k], of));
            off = larger(off, by_score * (fabs(x[k]) * scale) + by_size * (size[k] * scale));
        }
    top = finite_or_0(all_largest(top, shared));
    off = all_largest(off, shared);
    const double lost = expm1(2 * off > 700 ? 700.0 : 2 * off), relative = lost + fixed * (1 + lost);
    for (i64 k = threadIdx.x; k < keys; k += blockDim.x)
        if (!may || may[k]) total += exp(score(x[k], of) - top);
    total = all_sum(total, shared);
    if (total == 0) total = 1;
    for (i64 k = threadIdx.x; k < keys; k += blockDim.x) {
        const double weight = !may || may[k] ? exp(score(x[k], of) - top) / total : 0.0;
        out[row * keys + k] = weight * relative + (weight > 0 ? smallest : 0.0);
    }
}
