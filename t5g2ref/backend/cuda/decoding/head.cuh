// Logits, the likeliest id, and an id's embedding.

struct Best { float value; int id; };
__device__ __forceinline__ Best better(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a; }

__device__ __forceinline__ void head(Processor& p) {
    Best best[ROWS_OF_LANE];
    for (int i = 0; i < ROWS_OF_LANE; ++i) best[i] = Best{-INF, V};
    bool sound = true;
    multiply<HEAD>(p,
        [&](int row, Sums& s) {
            each_sum(s, p.lane, [&](int r, int n, int which, float x) {
                const int id = row * 16 + r;
                if (id >= V) return;
                x = rounded(x);
                if (LAST_CAPPED) x = rounded(rounded(tanhf(rounded(x / p.a.final_cap))) * p.a.final_cap);
                sound = sound && x < INF;
                if (SAMPLED) sound = sound && x / p.a.temperature < INF;
                best[which] = better(best[which], Best{x, id});
                if (p.a.logits) p.a.logits[((i64)p.token * BATCH + n) * V + id] = narrow(x);
            });
        },
        [&](int, Sums&) {});
    if (!sound) p.a.met[1] = 1;
    Best* found = (Best*)p.pieces;  // [WARPS][BATCH]
#pragma unroll
    for (int i = 0; i < ROWS_OF_LANE; ++i) {
#pragma unroll
        for (int step = HALF ? 4 : 1; step < 32; step <<= 1) {
            Best other;
            other.value = __shfl_xor_sync(0xffffffffu, best[i].value, step);
            other.id = __shfl_xor_sync(0xffffffffu, best[i].id, step);
            best[i] = better(best[i], other);
        }
        const int n = HALF ? p.lane * 2 + i : i;
        if (n < BATCH && p.lane < (HALF ? 4 : 1)) found[p.warp * BATCH + n] = best[i];
    }
    together();
    if (thread() < BATCH) {
        Best all = found[thread()];
        for (int w = 1; w < WARPS; ++w) all = better(all, found[w * BATCH + thread()]);
        float* to = p.a.best + ((i64)thread() * GRID + processor()) * 2;
        to[0] = all.value;
        to[1] = __int_as_float(all.id);
    }
    meet(p);
}

// The largest logit of a row, and the lowest id that has it: for a whole warp.
__device__ __forceinline__ Best best_of(const Processor& p, int n) {
    Best best = Best{-INF, V};
    for (int i = p.lane; i < GRID; i += 32) {
        const float* from = p.a.best + ((i64)n * GRID + i) * 2;
        best = better(best, Best{fresh(from), fresh((const int*)from + 1)});
    }
    for (int step = 16; step; step >>= 1) {
        Best other;
        other.value = __shfl_xor_sync(0xffffffffu, best.value, step);
        other.id = __shfl_xor_sync(0xffffffffu, best.id, step);
        best = better(best, other);
    }
    return best;
}
// A row goes on with an id, or with pad where it has ended; the id may end it. For one thread.
__device__ __forceinline__ void settle(const Processor& p, int n, int id, int* chosen, int* running) {
    chosen[n] = running[n] ? id : p.a.pad;
    for (int i = 0; i < p.a.end_count; ++i)
        if (running[n] && p.a.ends[i] == id) running[n] = 0;
    if (processor() == 0) p.a.ids[(p.token + 1) * BATCH + n] = chosen[n];
}
__device__ __forceinline__ bool any_runs(const int* running) {
    bool any = false;
    for (int n = 0; n < BATCH; ++n) any = any || running[n];
    return any;
}

// The next ids, the same on every processor; false where no row runs on. `chosen` and `running` are int[BATCH] each.
__device__ __forceinline__ bool choose(Processor& p, int* chosen, int* running) {
    for (int n = p.warp; n < BATCH; n += WARPS) {
        const Best best = best_of(p, n);
        if (p.lane == 0) settle(p, n, best.id, chosen, running);
    }
    together();
    return any_runs(running);
}

__device__ __forceinline__ void embed(Processor& p, const int* ids) {
#pragma unroll 1
    for (int i = thread(); i < BATCH * D; i += THREADS) {
        const int n = i / D, c = i % D;
        if (p.a.embedded && p.token == 0) { p.x[i] = widen(p.a.embedded[i]); continue; }
        const int id = ids[n] < 0 || ids[n] >= V ? 0 : ids[n];
        p.x[i] = id == p.a.eoi_id ? widen(p.a.eoi[c]) : rounded(widen(p.a.table[(i64)id * D + c]) * p.a.embed_scale);
    }
    together();
}
