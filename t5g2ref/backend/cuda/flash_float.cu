// float32, by plain fused multiply-adds: nothing is rounded to TF32. 64 rows and 64 keys at a time; thread (y, x) of
// 8 × 16 has the scores of rows y + 8 i and keys x + 16 j, and of the same rows the columns of the result that `column`
// says: four side by side of each 64, one of each 16 that are left.

template <int D> __global__ void __launch_bounds__(128) flash_float(ARGUMENTS(float)) {
    const int ROWS = 64, BN = 64, LD = D + 4, LP = BN + 4, THREADS = 128;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    float *queries_ = (float*)shared_memory(), *keys_ = queries_ + ROWS * LD, *values_ = keys_ + BN * LD;
    float* powers = values_ + BN * LD;  // (ROWS, LP)
    unsigned char* ok = (unsigned char*)(powers + ROWS * LP);
    const Tile<float, ROWS, BN> tile(KEYS(float, own), KEYS(float, other), sharing, queries, first);
    const int FOURS = D / 64, COLUMNS = (D + 15) / 16;  // the last may be beyond D: not stored
    auto column = [&](int c) { return c < 4 * FOURS ? c / 4 * 64 + x * 4 + c % 4 : FOURS * 64 + (c - 4 * FOURS) * 16 + x; };

    auto fetch_keys = [&](int step) {
        fetch<float, BN, D, LD, THREADS>(keys_, q, width, wide, tile.keys(step));
    };
    auto fetch_values = [&](int step) {
        fetch<float, BN, D, LD, THREADS>(values_, q, width, wide, tile.values(step));
    };
    fetch<float, ROWS, D, LD, THREADS>(queries_, q, width, wide,
                                             [&](int r) { return tile.query_row(q, q0, q1, q2, r); });
    if (tile.steps) {
        fetch_keys(0);
        if (threadIdx.x < BN) ok[threadIdx.x] = tile.valid(0, threadIdx.x);
    }
    const float factor = scale, inner = cap > 0 ? scale / cap : 0, outer = cap, infinity = -minus_infinity();
    float sums[8][COLUMNS] = {}, top[8], total[8] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) top[i] = -infinity;

    for (int step = 0; step < tile.steps; ++step) {
        copies_done();
        __syncthreads();  // the keys are there; nobody reads the values of the last step any more
        fetch_values(step);
        float scores[8][4] = {};
#pragma unroll 2
        for (int d = 0; d < D; d += 4) {
            float4 a[8], b[4];
#pragma unroll
            for (int i = 0; i < 8; ++i) a[i] = *(const float4*)(queries_ + (y + 8 * i) * LD + d);
#pragma unroll
            for (int j = 0; j < 4; ++j) b[j] = *(const float4*)(keys_ + (x + 16 * j) * LD + d);
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    scores[i][j] = fmaf(a[i].x, b[j].x, scores[i][j]);
                    scores[i][j] = fmaf(a[i].y, b[j].y, scores[i][j]);
                    scores[i][j] = fmaf(a[i].z, b[j].z, scores[i][j]);
                    scores[i][j] = fmaf(a[i].w, b[j].w, scores[i][j]);
                }
        }
        const bool masked = tile.masked(step, ok);
        const Keys<float> keys = tile.group(step);
        const int key = tile.key(step);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int query = masked ? tile.query(y + 8 * i) : 0;
            float most = top[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float& score = scores[i][j];
                score = cap > 0 ? outer * tanhf(score * inner) : score * factor;
                if (masked && !(ok[x + 16 * j] & keys.sees(query, key + x + 16 * j))) score = -infinity;
                most = fmaxf(most, score);
            }
#pragma unroll
            for (int lane = 1; lane < 16; lane *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lane));
            const float shift = most == -infinity ? 0.0f : most, fewer = expf(top[i] - shift);
            float sum = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j)
                sum += powers[(y + 8 * i) * LP + x + 16 * j] = expf(scores[i][j] - shift);
            total[i] = total[i] * fewer + sum;
            top[i] = most;
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) sums[i][c] *= fewer;
        }
        copies_done();
        __syncthreads();  // the values and the powers are there; nobody reads these keys, nor `ok`, any more
        if (step + 1 < tile.steps) {
            fetch_keys(step + 1);
            if (threadIdx.x < BN) ok[threadIdx.x] = tile.valid(step + 1, threadIdx.x);
        }
#pragma unroll 2
        for (int k = 0; k < BN; k += 4) {
            float4 a[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) a[i] = *(const float4*)(powers + (y + 8 * i) * LP + k);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float* row = values_ + (k + e) * LD;
                float b[COLUMNS];
#pragma unroll
                for (int c = 0; c < 4 * FOURS; c += 4) {
                    const float4 four = *(const float4*)(row + column(c));
                    b[c] = four.x; b[c + 1] = four.y; b[c + 2] = four.z; b[c + 3] = four.w;
                }
#pragma unroll
                for (int c = 4 * FOURS; c < COLUMNS; ++c) b[c] = row[column(c)];
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const float weight = e == 0 ? a[i].x : e == 1 ? a[i].y : e == 2 ? a[i].z : a[i].w;
#pragma unroll
                    for (int c = 0; c < COLUMNS; ++c) sums[i][c] = fmaf(weight, b[c], sums[i][c]);
                }
            }
        }
    }
    copies_done();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        float sum = total[i];
#pragma unroll
        for (int lane = 1; lane < 16; lane *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
        const float divisor = sum == 0.0f ? 1.0f : sum;
        if (y + 8 * i >= tile.rows) continue;
        float* to = out + tile.result(y + 8 * i, queries) * width;
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
            if (column(c) < width) to[column(c)] = sums[i][c] / divisor;
    }
}
