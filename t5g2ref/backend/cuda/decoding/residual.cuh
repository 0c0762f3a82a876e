// Norms and the residual stream, which every processor has for itself.

// Which of a matrix's columns, in blocks, a processor reads: `count` of them from `first` on, around the end.
struct Columns { int first, count; };
template <int M> __device__ __forceinline__ Columns columns_of(const Processor& p) {
    const int* share = p.share + M * (WARPS + 1);
    const int first = share[0], count = share[WARPS] - first;
    return Columns{first % Matrix<M>::across, count < Matrix<M>::across ? count : Matrix<M>::across};
}
// Column k, batch row n, among the activations that are read here, if it is.
template <int M> __device__ __forceinline__ void put(const Processor& p, Columns c, int k, int n, float value) {
    int index = k / KB - c.first;
    if (index < 0) index += Matrix<M>::across;
    if (index < c.count) ((T*)p.act)[(index * BATCH + n) * KB + k % KB] = narrow(value);
}

// Warps in equal groups, one for a batch row.
const int GROUPS = BATCH <= 1 ? 1 : BATCH <= 2 ? 2 : BATCH <= 4 ? 4 : 8;
const int WIDE = WARPS / GROUPS * 32, EACH = (D + WIDE - 1) / WIDE;

__device__ __forceinline__ float group_sum(Processor& p, float x) {
    for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
    float* reduced = p.reduced + (p.flip ^= 1) * WARPS;
    if (p.lane == 0) reduced[p.warp] = x;
    together();
    x = 0.0f;
    for (int w = 0; w < WARPS / GROUPS; ++w) x += reduced[p.warp / (WARPS / GROUPS) * (WARPS / GROUPS) + w];
    return x;
}

// Of the residual stream: add the norm of a product FROM (HEAD: of none), then the activations of INTO are its norm.
// `after` and `before` are the two norms' weights.
template <int FROM, int INTO>
__device__ __forceinline__ void residual(Processor& p, int layer, const T* after, const T* before, int shown_layer) {
    const int n = thread() / WIDE, r = thread() % WIDE, M = FROM == HEAD ? OUT : FROM, AHEAD = EACH < 8 ? EACH : 8;
    const bool shows = SHOW && processor() == 0;
    const Columns columns = columns_of<INTO>(p);
    const int OWN = (D + THREADS - 1) / THREADS;
    T weights[2][OWN];
#pragma unroll
    for (int e = 0; e < OWN; ++e) {
        const int i = thread() + e * THREADS < D ? thread() + e * THREADS : D - 1;
        weights[0][e] = after[i];
        weights[1][e] = before[i];
    }
    float *x = p.x + n * D, *v = (float*)p.act + n * D, sum = 0.0f;  // of this batch row, if there is one
    if (FROM != HEAD)
#pragma unroll 1
        for (int from = 0; from < EACH; from += AHEAD) {
            Asked<M> asked[AHEAD];
#pragma unroll
            for (int e = 0; e < AHEAD; ++e) {
                const int i = r + (from + e) * WIDE;
                asked[e] = ask<M>(p, n < BATCH ? n : 0, i < D ? i : D - 1);
            }
#pragma unroll
            for (int e = 0; e < AHEAD; ++e) {
                const int i = r + (from + e) * WIDE;
                const float y = n < BATCH && i < D ? answer<M>(asked[e]) : 0.0f;
                if (n < BATCH && i < D) v[i] = y;
                sum += y * y;
            }
        }
#pragma unroll
    for (int e = 0; e < OWN; ++e)
        if (thread() + e * THREADS < D)
            for (int which = 0; which < 2; ++which) p.vectors[which * D + thread() + e * THREADS] = weights[which][e];
    if (FROM != HEAD) {
        const float scale = 1.0f / sqrtf(group_sum(p, sum) / D + p.a.eps);
        sum = 0.0f;
#pragma unroll 1
        for (int from = 0; from < EACH; from += AHEAD)
#pragma unroll
            for (int e = 0; e < AHEAD; ++e) {
                const int i = r + (from + e) * WIDE;
                if (n >= BATCH || i >= D) continue;
                const float normed = rounded(v[i] * scale * (1.0f + widen(p.vectors[i]))), y = rounded(x[i] + normed);
                if (shows) {
                    show(p, shown_layer, FROM == OUT ? S_O : S_DOWN, D, n, i, v[i]);
                    show(p, shown_layer, FROM == OUT ? S_POST : S_POSTFF, D, n, i, normed);
                    show(p, shown_layer, FROM == OUT ? S_RES : S_X, D, n, i, y);
                }
                x[i] = y;
                sum += y * y;
            }
    } else {
#pragma unroll 1
        for (int i = r; i < D && n < BATCH; i += WIDE) sum += x[i] * x[i];
    }
    const float scale = 1.0f / sqrtf(group_sum(p, sum) / D + p.a.eps);  // who is here has read its v
#pragma unroll 1
    for (int from = 0; from < EACH; from += AHEAD)
#pragma unroll
        for (int e = 0; e < AHEAD; ++e) {
            const int i = r + (from + e) * WIDE;
            if (n >= BATCH || i >= D) continue;
            const float y = rounded(x[i] * scale * (1.0f + widen(p.vectors[D + i])));
            put<INTO>(p, columns, i, n, y);
            if (shows && INTO != HEAD) show(p, layer, INTO == QKV ? S_PRE : S_PREFF, D, n, i, y);
            if (INTO == HEAD && processor() == 0 && p.a.hidden) p.a.hidden[((i64)p.token * BATCH + n) * D + i] = narrow(y);
        }
#pragma unroll 1
    for (int i = D + thread(); i < Matrix<INTO>::across * KB; i += THREADS)
#pragma unroll 1
        for (int m = 0; m < BATCH; ++m) put<INTO>(p, columns, i, m, 0.0f);
    together();
}
