// Half types, on the matrix units: products of 16 × 16 by 16 × 8, summed in float. A warp has M · 16 rows of the tile.
// The exponentials are rounded to T before they multiply the values; their sum is that of the unrounded ones.
//
// Thread (group, quad) of a warp has rows `group` and `group` + 8 of 16, and of 8 columns n · 8 … the two from quad · 2 on:
// elements 0, 1 of the first row and 2, 3 of the second.

const float PER_POWER = 1.4426950408889634f;  // exp(x) = 2^(x / ln 2)

// cap · tanh(score · scale / cap) where there is a cap.
template <int N> __device__ inline void capped(float (&scores)[N][4], double scale, double cap) {
    if (!(cap > 0)) return;
    const float inner = scale / cap, outer = cap;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[n][e] = outer * tanhf(scores[n][e] * inner);
}

// −∞ where row `row` (and `row` + 8) of the tile does not see a key of the step.
template <int N, typename Tile> __device__ inline void masked(float (&scores)[N][4], const Tile& tile, int step,
                                                              const unsigned char* ok, int row) {
    const auto keys = tile.group(step);
    const int key = tile.key(step), quad = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int query = tile.query(row + h * 8);
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int j = n * 8 + quad * 2 + e;
                if (!(ok[j] & keys.sees(query, key + j))) scores[n][h * 2 + e] = minus_infinity();
            }
    }
}

// Scores to their exponentials relative to the largest of each row so far; `fewer` is what earlier ones are multiplied by.
// Largest ones and sums are taken in four parts each, so that none has to wait for the one before it.
template <int N> __device__ inline void powers(float (&scores)[N][4], float (&top)[2], float (&total)[2],
                                               float (&fewer)[2], float factor) {
    float most[2][4], sums[2][4] = {}, shift[2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int part = 0; part < 4; ++part) most[h][part] = top[h];
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            float& part = most[e / 2][n % 2 * 2 + e % 2];
            part = fmaxf(part, scores[n][e]);
        }
#pragma unroll
    for (int h = 0; h < 2; ++h) most[h][0] = fmaxf(fmaxf(most[h][0], most[h][1]), fmaxf(most[h][2], most[h][3]));
#pragma unroll
    for (int step = 1; step <= 2; ++step)
#pragma unroll
        for (int h = 0; h < 2; ++h) most[h][0] = fmaxf(most[h][0], __shfl_xor_sync(0xffffffffu, most[h][0], step));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        shift[h] = most[h][0] == minus_infinity() ? 0.0f : most[h][0] * factor;
        fewer[h] = power_of_2(top[h] * factor - shift[h]);
        top[h] = most[h][0];
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            float& score = scores[n][e];
            score = power_of_2(fmaf(score, factor, -shift[e / 2]));
            sums[e / 2][n % 2 * 2 + e % 2] += score;
        }
#pragma unroll
    for (int h = 0; h < 2; ++h)
        total[h] = total[h] * fewer[h] + ((sums[h][0] + sums[h][1]) + (sums[h][2] + sums[h][3]));
}

template <int N> __device__ inline void scaled(float (&sums)[N][4], const float (&fewer)[2]) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[n][e] *= fewer[e / 2];
}

// Exponentials of keys n · 16 …, rounded, as the left factor of a product.
template <typename T, int N> __device__ inline void rounded(unsigned (&a)[4], const float (&scores)[N][4], int n) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        a[i] = pair(T{}, scores[2 * n + i / 2][i % 2 * 2], scores[2 * n + i / 2][i % 2 * 2 + 1]);
}

// Row `row` (and `row` + 8) of the tile, divided by its sum of exponentials, to `out` (B, T, N, H).
template <typename T, int N, typename Tile> __device__ inline void stored(const float (&sums)[N][4], float (&total)[2],
                                                                          const Tile& tile, int row, i64 queries,
                                                                          int width, T* out) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = total[h];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const float share = sum == 0.0f ? 1.0f : 1.0f / sum;
        if (row + h * 8 >= tile.rows) continue;
        T* to = out + tile.result(row + h * 8, queries) * width;
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const int column = n * 8 + threadIdx.x % 4 * 2;
            const unsigned two = pair(T{}, sums[n][h * 2] * share, sums[n][h * 2 + 1] * share);
            if (width % 2 == 0) {
                if (column < width) *(unsigned*)(to + column) = two;
            } else {
                if (column < width) to[column].bits = two & 0xffffu;
                if (column + 1 < width) to[column + 1].bits = two >> 16;
            }
        }
    }
}

template <typename T, int D, int WARPS, int M, int BN>
__global__ void __launch_bounds__(WARPS * 32) flash_half(ARGUMENTS(T)) {
    const int ROWS = WARPS * M * 16, LD = D + 8, THREADS = WARPS * 32;  // LD: an odd number of 16 bytes, no conflicts
    const bool HELD = D <= 80;  // the queries stay in registers
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4;
    T* queries_ = (T*)shared_memory();
    T *keys_ = queries_ + ROWS * LD, *values_ = keys_ + BN * LD;
    unsigned char* ok = (unsigned char*)(values_ + BN * LD);
    const Tile<T, ROWS, BN> tile(KEYS(T, own), KEYS(T, other), sharing, queries, first);

    auto fetch_keys = [&](int step) {
        fetch<T, BN, D, LD, THREADS>(keys_, q, width, wide, tile.keys(step));
    };
    auto fetch_values = [&](int step) {
        fetch<T, BN, D, LD, THREADS>(values_, q, width, wide, tile.values(step));
    };
    fetch<T, ROWS, D, LD, THREADS>(queries_, q, width, wide,
                                         [&](int r) { return tile.query_row(q, q0, q1, q2, r); });
    if (tile.steps) {
        fetch_keys(0);
        if (threadIdx.x < BN) ok[threadIdx.x] = tile.valid(0, threadIdx.x);
    }

    const int warp_row = warp * M * 16;
    const float factor = cap > 0 ? PER_POWER : (float)(scale * PER_POWER);
    float sums[M][D / 8][4] = {}, top[M][2], total[M][2] = {};
    unsigned held[HELD ? D / 16 : 1][M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) top[m][0] = top[m][1] = minus_infinity();

    auto load_queries = [&](int d, int m, unsigned* to) {
        load_4(to, queries_ + (warp_row + m * 16 + lane % 16) * LD + d * 16 + lane / 16 * 8);
    };
    for (int step = 0; step < tile.steps; ++step) {
        copies_done();
        __syncthreads();  // the keys are there; nobody reads the values of the last step any more
        fetch_values(step);
        if (HELD && step == 0)
#pragma unroll
            for (int d = 0; d < D / 16; ++d)
#pragma unroll
                for (int m = 0; m < M; ++m) load_queries(d, m, held[HELD ? d : 0][m]);

        float scores[M][BN / 8][4] = {};
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
            unsigned fresh[M][4];
            if (!HELD)
#pragma unroll
                for (int m = 0; m < M; ++m) load_queries(d, m, fresh[m]);
#pragma unroll
            for (int n = 0; n < BN / 16; ++n) {
                unsigned b[4];
                load_4(b, keys_ + (n * 16 + lane / 16 * 8 + lane % 8) * LD + d * 16 + lane / 8 % 2 * 8);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    const unsigned* a = HELD ? held[HELD ? d : 0][m] : fresh[m];
                    multiply(T{}, scores[m][2 * n], a, b);
                    multiply(T{}, scores[m][2 * n + 1], a, b + 2);
                }
            }
        }
        const bool hidden = tile.masked(step, ok);
#pragma unroll
        for (int m = 0; m < M; ++m) {
            capped(scores[m], scale, cap);
            if (hidden) masked(scores[m], tile, step, ok, warp_row + m * 16 + group);
        }
        copies_done();
        __syncthreads();  // the values are there; nobody reads these keys, nor `ok`, any more
        bool next_ok = false;
        if (step + 1 < tile.steps) {
            fetch_keys(step + 1);
            next_ok = tile.valid(step + 1, threadIdx.x);
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
            float fewer[2];
            powers(scores[m], top[m], total[m], fewer, factor);
            scaled(sums[m], fewer);
        }
#pragma unroll
        for (int n = 0; n < BN / 16; ++n) {
            unsigned a[M][4];
#pragma unroll
            for (int m = 0; m < M; ++m) rounded<T>(a[m], scores[m], n);
#pragma unroll
            for (int d = 0; d < D / 16; ++d) {
                unsigned b[4];
                load_4_turned(b, values_ + (n * 16 + lane % 16) * LD + d * 16 + lane / 16 * 8);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    multiply(T{}, sums[m][2 * d], a[m], b);
                    multiply(T{}, sums[m][2 * d + 1], a[m], b + 2);
                }
            }
        }
        if (threadIdx.x < BN) ok[threadIdx.x] = next_ok;
    }
    copies_done();
#pragma unroll
    for (int m = 0; m < M; ++m) stored(sums[m], total[m], tile, warp_row + m * 16 + group, queries, width, out);
}
