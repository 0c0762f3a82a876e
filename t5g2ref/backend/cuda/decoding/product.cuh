// A matrix times the activations, by all processors: sums of q·k·v, o and down, and gelu(gate) · up.

// Products of a run of blocks with the activations: 16 rows by BATCH.
struct Sums {
#if HALF
    float v[2][4];
#else
    float v[BATCH];
#endif
};
__device__ __forceinline__ void clear(Sums& s) {
    for (unsigned i = 0; i < sizeof(Sums) / 4; ++i) ((float*)&s)[i] = 0.0f;
}
__device__ __forceinline__ void add_run(Sums& s, const char* blocks, const char* act, int count, int lane) {
    blocks += lane * 16;
#if HALF
    const int n = lane >> 2;
    act += n * 32 + (lane & 3) * 8;  // columns 4t to 4t + 3 of a block: the weights lie so that these are the lane's
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
        uint4 w = *(const uint4*)(blocks + i * BLOCK_BYTES);
        uint2 y = make_uint2(0, 0);
        if (n < BATCH) y = *(const uint2*)(act + i * (BATCH * 32));
        mma(s.v[i & 1], &w.x, &y.x);
    }
#else
    act += (lane & 1) * 16;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
        float4 w = *(const float4*)(blocks + i * BLOCK_BYTES);
#pragma unroll
        for (int n = 0; n < BATCH; ++n) {
            float4 y = *(const float4*)(act + (i * BATCH + n) * 32);
            s.v[n] = fmaf(w.w, y.w, fmaf(w.z, y.z, fmaf(w.y, y.y, fmaf(w.x, y.x, s.v[n]))));
        }
    }
#endif
}
// put(row 0 … 15, batch row, which of this lane's batch rows, sum), each once a warp.
const int ROWS_OF_LANE = HALF ? 2 : BATCH;
template <typename Put> __device__ __forceinline__ void each_sum(Sums& s, int lane, Put put) {
#if HALF
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int row = (lane >> 2) + (i >> 1) * 8, n = (lane & 3) * 2 + (i & 1);
        if (n < BATCH) put(row, n, i & 1, s.v[0][i] + s.v[1][i]);
    }
#else
#pragma unroll
    for (int n = 0; n < BATCH; ++n) {
        float sum = s.v[n] + __shfl_xor_sync(0xffffffffu, s.v[n], 1);
        if ((lane & 1) == 0) put(lane >> 1, n, n, sum);
    }
#endif
}

// put(row 0 … 7, batch row, its sum, that of row + 8), each once a warp.
template <typename Put> __device__ __forceinline__ void each_pair(Sums& s, int lane, Put put) {
#if HALF
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int n = (lane & 3) * 2 + i;
        if (n < BATCH) put(lane >> 2, n, s.v[0][i] + s.v[1][i], s.v[0][i + 2] + s.v[1][i + 2]);
    }
#else
#pragma unroll
    for (int n = 0; n < BATCH; ++n) {
        const float sum = s.v[n] + __shfl_xor_sync(0xffffffffu, s.v[n], 1), other = __shfl_xor_sync(0xffffffffu, sum, 16);
        if ((lane & 17) == 0) put(lane >> 1, n, sum, other);
    }
#endif
}

// This warp's share of a matrix times the activations. whole(row of blocks, sums) has rows that are complete here;
// part(which, sums) what is begun or ended elsewhere: the first piece of the share, or another, its last.
template <int M, typename Whole, typename Part> __device__ __forceinline__ void multiply(Processor& p, Whole whole, Part part) {
    typedef Matrix<M> Size;
    const int* share = p.share + M * (WARPS + 1);
    const int first = share[p.warp], last = share[p.warp + 1];
    int row = first / Size::across, column = first % Size::across, index = (first - share[0]) % Size::across;
    bool begun = column != 0;
    int which = 0;
    Sums sums;
    clear(sums);
#pragma unroll 1
    for (int at = first; at < last;) {
        const int count = last - at < BLOCKS ? last - at : BLOCKS;
        wait(p);
#pragma unroll 1
        for (int i = 0; i < count;) {
            int run = count - i;
            if (Size::across - column < run) run = Size::across - column;
            if (Size::across - index < run) run = Size::across - index;
            add_run(sums, p.ring + (p.stage * BLOCKS + i) * BLOCK_BYTES, p.act + index * (BATCH * 32), run, p.lane);
            i += run;
            if ((index += run) == Size::across) index = 0;
            if ((column += run) == Size::across) {
                if (begun) part(which, sums); else whole(row, sums);
                clear(sums);
                begun = false;
                column = 0;
                which = 1;
                ++row;
            }
        }
        at += count;
        __syncwarp();
        fetch(p, p.stage);
        passed(p);
    }
    if (column && first < last) part(which, sums);
}

template <int M> __device__ __forceinline__ float* sums_of(const Arguments& a) {
    i64 at = 0;
    if (M > QKV) at += Matrix<QKV>::rows;
    if (M > OUT) at += Matrix<OUT>::rows;
    return a.sums + at * (SLOTS * BATCH);
}

__device__ __forceinline__ void show(const Processor& p, int layer, int what, int width, int n, int i, float value) {
    if (SHOW) p.a.shown[(i64)layer * (SHOWN * BATCH) + (i64)what * BATCH + (i64)n * width + i] = narrow(value);
}

// gelu(gate) · up of one unit, for the next product.
__device__ __forceinline__ void activate(const Processor& p, int layer, int n, int unit, float gate, float up) {
    if (unit >= F) return;
    gate = rounded(gate);
    up = rounded(up);
    const float inner = 0.7978845608028654f * (gate + 0.044715f * (gate * gate * gate));
    const float active = rounded(0.5f * gate * (1.0f + tanhf(inner))), product = rounded(active * up);
    p.a.active[(i64)n * ACTIVE + unit] = narrow(product);
    show(p, layer, S_GATE, F, n, unit, gate);
    show(p, layer, S_UP, F, n, unit, up);
    show(p, layer, S_ACT, F, n, unit, active);
    show(p, layer, S_PROD, F, n, unit, product);
}

// A row of blocks that is begun or ended by another warp is in pieces: the first of a warp's share, 0, and its last, 1.
// Here the first piece of a row leads: it is added to those of the warps behind it. The leader of (warp, which) is the
// row of blocks, its slot and the last such warp, in one number; −1 for a piece that leads nothing.
template <int M> __device__ __forceinline__ int leader_of(const Arguments& a, const int* shares, int warp, int which) {
    const int across = Matrix<M>::across, *share = shares + M * (WARPS + 1), first = share[warp], last = share[warp + 1];
    const int begins = which ? last - last % across : first, row = begins / across, ends = (row + 1) * across;
    if (first == last) return -1;
    if (which ? (begins <= first || begins == last) : (first % across == 0 && last >= ends)) return -1;
    if (begins % across && begins != share[0]) return -1;  // an earlier warp here began it
    int behind = warp;
    while (behind + 1 < WARPS && share[behind + 1] < ends) ++behind;
    return (row * GRID + (begins % across ? a.slots[M * GRID + processor()] : 0)) * WARPS + behind;
}

// A product of all processors, into `sums`; of GATED into `active`. Then they meet.
template <int M> __device__ __forceinline__ void product(Processor& p, int layer) {
    typedef Matrix<M> Size;
    float* sums = sums_of<M>(p.a);
    multiply<M>(p,
        [&](int row, Sums& s) {
            if (M == GATED) each_pair(s, p.lane, [&](int r, int n, float gate, float up) {
                activate(p, layer, n, row * 8 + r, gate, up);
            });
            else each_sum(s, p.lane, [&](int r, int n, int, float x) {
                if (row * 16 + r < Size::rows) sums[(i64)n * Size::rows + row * 16 + r] = x;
            });
        },
        [&](int which, Sums& s) {
            float* piece = p.pieces + (p.warp * 2 + which) * (16 * BATCH);
            each_sum(s, p.lane, [&](int r, int n, int, float x) { piece[r * BATCH + n] = x; });
        });
    together();
    const int* share = p.share + M * (WARPS + 1);
    const int each = M == GATED ? 8 : 16;
#pragma unroll 1
    for (int i = thread(); i < WARPS * 2 * each; i += THREADS) {
        const int leader = p.leaders[M * WARPS * 2 + i / each], r = i % each;
        if (leader < 0) continue;
        const int row = leader / (GRID * WARPS), slot = leader / WARPS % GRID, last = leader % WARPS, warp = i / each / 2;
        const float* piece = p.pieces + i / each * (16 * BATCH);
        const auto sum_of = [&](int r, int n) {
            float sum = piece[r * BATCH + n];
#pragma unroll 1
            for (int other = warp + 1; other <= last; ++other)
                if (share[other] < share[other + 1]) sum += p.pieces[other * 2 * (16 * BATCH) + r * BATCH + n];
            return sum;
        };
#pragma unroll 1
        for (int n = 0; n < BATCH; ++n) {
            if (M == GATED) activate(p, layer, n, row * 8 + r, sum_of(r, n), sum_of(r + 8, n));
            else if (row * 16 + r < Size::rows) sums[(slot * BATCH + n) * Size::rows + row * 16 + r] = sum_of(r, n);
        }
    }
    meet(p);
}

// One result of a product, the slots added, in two steps: who asks for several before the first answer waits once.
template <int M> struct Asked {
    static const int most = M == QKV ? SLOTS_QKV : M == OUT ? SLOTS_OUT : SLOTS_DOWN;
    float part[most];
    int parts;
};
template <int M> __device__ __forceinline__ Asked<M> ask(const Processor& p, int n, int row) {
    const float* sums = sums_of<M>(p.a);
    Asked<M> asked;
    asked.parts = p.parts[parts_at<M>(row)];
    unsigned at = n * Matrix<M>::rows + row;
#pragma unroll
    for (int slot = 0; slot < Asked<M>::most; ++slot) {
        asked.part[slot] = fresh(sums + at);
        if (slot + 1 < asked.parts) at += BATCH * Matrix<M>::rows;
    }
    return asked;
}
template <int M> __device__ __forceinline__ float answer(const Asked<M>& asked) {
    float sum = asked.part[0];
#pragma unroll
    for (int slot = 1; slot < Asked<M>::most; ++slot) sum += slot < asked.parts ? asked.part[slot] : 0.0f;
    return rounded(sum);
}
