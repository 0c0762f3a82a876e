// Attention over own keys and the encoder's, one softmax: a processor takes a part of the keys of one batch row and key
// head, for all its queries.
const int LANES = HD <= 8 ? 1 : HD <= 16 ? 2 : HD <= 32 ? 4 : HD <= 64 ? 8 : HD <= 128 ? 16 : 32;  // of a key, 8 numbers each
const int KEYS = 32 / LANES, AT_ONCE = HALF ? 3 : 2, PARTIAL = (HD + 3) / 4 * 4 + 4, PER_LANE = (HD + 31) / 32;
#define INF __int_as_float(0x7f800000)

struct Numbers {
    unsigned words[HALF ? 4 : 8];
    __device__ __forceinline__ float operator[](int i) const {
        return __uint_as_float(!HALF ? words[i] : i & 1 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    }
};
// Numbers `chunk` to chunk + 7 of a head; beyond its end any of it, which meet zeros.
__device__ __forceinline__ Numbers eight(const T* head, int chunk) {
    Numbers r;
    if (HD % 8) {  // not where sixteen bytes may be read at once
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const unsigned bits = __float_as_uint(fresh(head + (chunk + i < HD ? chunk + i : 0)));
            if (!HALF) r.words[i] = bits;
            else if (i & 1) r.words[i / 2] |= bits;
            else r.words[i / 2] = bits >> 16;
        }
        return r;
    }
#pragma unroll
    for (int part = 0; part < (HALF ? 1 : 2); ++part) {
        const uint4 x = fresh((const uint4*)(head + (chunk < HD ? chunk : 0)) + part);
        r.words[4 * part] = x.x;
        r.words[4 * part + 1] = x.y;
        r.words[4 * part + 2] = x.z;
        r.words[4 * part + 3] = x.w;
    }
    return r;
}

// Query head j of the group, or the new key (GROUP) or value (GROUP + 1): by one warp, from the product's sums. Queries
// and key are normed and turned by RoPE into `to`, float[HD]; key and value go into the cache.
__device__ __forceinline__ void head_of(Processor& p, int layer, const T* norms, int n, int h, int j, float* to, float* scratch,
                                        bool shows) {
    const bool query = j < GROUP, value = j > GROUP;
    const int head = query ? h * GROUP + j : h, row = (query ? head : value ? NQ + NKV + h : NQ + h) * HD;
    const int width = (query ? NQ : NKV) * HD;
    const T* weight = norms + (query ? QNORM : KNORM);
    const i64 angle = p.layers[layer].kind * p.a.kind_stride + p.token * p.a.token_stride + n * p.a.row_stride;
    T* cached = (value ? p.a.own_values : p.a.own_keys) +
                ((((i64)layer * BATCH + n) * NKV + h) * p.a.room + p.a.length + p.token) * HD;
    Asked<QKV> asked[PER_LANE];
    float factor[PER_LANE], cosine[PER_LANE], sine[PER_LANE], v[PER_LANE], sum = 0.0f;
#pragma unroll
    for (int e = 0; e < PER_LANE; ++e) {
        const int i = p.lane + 32 * e < HD ? p.lane + 32 * e : HD - 1;
        asked[e] = ask<QKV>(p, n, row + i);
        factor[e] = widen(weight[i]);
        cosine[e] = widen(p.a.cosines[angle + i]);
        sine[e] = widen(p.a.sines[angle + i]);
    }
#pragma unroll
    for (int e = 0; e < PER_LANE; ++e) {
        const int i = p.lane + 32 * e;
        v[e] = i < HD ? answer<QKV>(asked[e]) : 0.0f;
        if (shows && i < HD) show(p, layer, query ? S_Q : value ? S_V : S_K, width, n, head * HD + i, v[e]);
        if (value && i < HD) cached[i] = narrow(v[e]);
        sum += v[e] * v[e];
    }
    if (value) return;
    for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    const float scale = 1.0f / sqrtf(sum / HD + p.a.eps);
#pragma unroll
    for (int e = 0; e < PER_LANE; ++e) {
        const int i = p.lane + 32 * e;
        if (i >= HD) continue;
        scratch[i] = v[e] = rounded(v[e] * scale * (1.0f + factor[e]));
        if (shows) show(p, layer, query ? S_QN : S_KN, width, n, head * HD + i, v[e]);
    }
    __syncwarp();
#pragma unroll
    for (int e = 0; e < PER_LANE; ++e) {
        const int i = p.lane + 32 * e;
        if (i >= HD) continue;
        const float other = i < HD / 2 ? -scratch[i + HD / 2] : scratch[i - HD / 2];
        const float turned = rounded(rounded(v[e] * cosine[e]) + rounded(other * sine[e]));
        if (query) to[i] = turned;
        else cached[i] = narrow(turned);
        if (shows) show(p, layer, query ? S_QR : S_KR, width, n, head * HD + i, turned);
    }
}

// Of part lo … hi of the keys of (n, h): this warp's weighed values, largest scores and sums of all its queries.
struct Read { float top[GROUP], sum[GROUP], out[GROUP][8]; };
__device__ __forceinline__ void read_keys(Processor& p, int layer, int n, int h, int lo, int hi, int own_first, int own_count,
                          const float* queries, Read& r) {
    const int chunk = p.lane % LANES * 8, sub = p.lane / LANES;
    const i64 head = ((i64)layer * BATCH + n) * NKV + h, row = (i64)n * NKV + h;
    const T* own[2] = {p.a.own_keys + head * p.a.room * HD, p.a.own_values + head * p.a.room * HD};
    const T* cross[2] = {p.layers[layer].cross_keys + row * p.a.source * HD, p.layers[layer].cross_values + row * p.a.source * HD};
    const unsigned char *own_valid = p.a.own_valid + (i64)n * p.a.room, *cross_valid = p.a.cross_valid + (i64)n * p.a.source;
    float q[GROUP][8];
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
        r.top[g] = -INF;
        r.sum[g] = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) { q[g][i] = chunk + i < HD ? queries[g * HD + chunk + i] : 0.0f; r.out[g][i] = 0.0f; }
    }
#pragma unroll 1
    for (int start = lo + p.warp * KEYS; start < hi; start += WARPS * KEYS * AT_ONCE) {
        Numbers k[AT_ONCE], v[AT_ONCE];
        bool seen[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) {
            const int wanted = start + j * (WARPS * KEYS) + sub, key = wanted < hi ? wanted : hi - 1;
            const bool mine = key < own_count;
            const int at = mine ? own_first + key : key - own_count;
            seen[j] = (mine ? own_valid : cross_valid)[at] && wanted < hi;
            k[j] = eight((mine ? own[0] : cross[0]) + (i64)at * HD, chunk);
            v[j] = eight((mine ? own[1] : cross[1]) + (i64)at * HD, chunk);
        }
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
            float score[AT_ONCE], top = r.top[g];
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                float dot = 0.0f;
#pragma unroll
                for (int i = 0; i < 8; ++i) dot = fmaf(q[g][i], k[j][i], dot);
#pragma unroll
                for (int step = LANES / 2; step; step >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, step);
                dot *= p.a.scale;
                if (CAPPED) dot = p.a.cap * tanhf(dot / p.a.cap);
                score[j] = seen[j] ? dot : -INF;
                top = score[j] > top || score[j] != score[j] ? score[j] : top;
            }
            if (top == -INF) continue;
            const float fade = expf(r.top[g] - top);
            r.top[g] = top;
            r.sum[g] *= fade;
#pragma unroll
            for (int i = 0; i < 8; ++i) r.out[g][i] *= fade;
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                const float weight = expf(score[j] - top);
                r.sum[g] += weight;
#pragma unroll
                for (int i = 0; i < 8; ++i) r.out[g][i] = seen[j] ? fmaf(weight, v[j][i], r.out[g][i]) : r.out[g][i];
            }
        }
    }
#pragma unroll
    for (int step = LANES; step < 32; step <<= 1)  // keys that other lanes of the warp have
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
            const float other = __shfl_xor_sync(0xffffffffu, r.top[g], step), top = other > r.top[g] || other != other ? other : r.top[g];
            const float mine = top == -INF ? 0.0f : expf(r.top[g] - top), theirs = top == -INF ? 0.0f : expf(other - top);
            r.top[g] = top;
            r.sum[g] = r.sum[g] * mine + __shfl_xor_sync(0xffffffffu, r.sum[g], step) * theirs;
#pragma unroll
            for (int i = 0; i < 8; ++i)
                r.out[g][i] = r.out[g][i] * mine + __shfl_xor_sync(0xffffffffu, r.out[g][i], step) * theirs;
        }
}

struct Split { int own_first, own_count, keys, count; };
__device__ __forceinline__ Split split_of(const Processor& p, int layer) {
    Split s;
    const int reach = p.a.length + p.token + 1;  // own keys so far, the new one among them
    s.own_first = reach > p.layers[layer].window ? reach - p.layers[layer].window : 0;
    s.own_count = reach - s.own_first;
    s.keys = s.own_count + p.a.source;
    const int most = GRID / (BATCH * NKV) < 1 ? 1 : GRID / (BATCH * NKV) < SPLITS ? GRID / (BATCH * NKV) : SPLITS;
    const int wanted = (s.keys + WARPS * KEYS * AT_ONCE - 1) / (WARPS * KEYS * AT_ONCE);
    s.count = wanted < most ? wanted : most;
    return s;
}

// Ask for what a layer's attention reads here, and for the layer's vectors, before it is needed.
__device__ __forceinline__ void ask_ahead(Processor& p, int layer, const T* norms) {
    if (thread()) return;
    const Split s = split_of(p, layer);
    const int item = processor();
    if (item == GRID - 1) {  // in pieces of sixteen bytes that begin where such pieces do
        const u64 first = ((u64)norms + 15) / 16 * 16, last = (u64)(norms + NORMS) / 16 * 16;
        if (first < last) ask_cache((const void*)first, (unsigned)(last - first));
    }
    if (item >= BATCH * NKV * s.count || HD % 8) return;
    const int n = item / (NKV * s.count), h = item / s.count % NKV, split = item % s.count;
    const int lo = (int)((i64)s.keys * split / s.count), hi = (int)((i64)s.keys * (split + 1) / s.count);
    const int own = lo < s.own_count ? (hi < s.own_count ? hi : s.own_count) - lo : 0, rest = hi - lo - own;
    const i64 row = (i64)n * NKV + h;
    const i64 own_at = ((((i64)layer * BATCH + n) * NKV + h) * p.a.room + s.own_first + lo) * HD;
    const i64 cross_at = (row * p.a.source + lo + own - s.own_count) * HD;
    if (own) { ask_cache(p.a.own_keys + own_at, own * HD * sizeof(T)); ask_cache(p.a.own_values + own_at, own * HD * sizeof(T)); }
    if (rest) {
        ask_cache(p.layers[layer].cross_keys + cross_at, rest * HD * sizeof(T));
        ask_cache(p.layers[layer].cross_values + cross_at, rest * HD * sizeof(T));
    }
}

__device__ __forceinline__ void attention(Processor& p, int layer, const T* norms) {
    float* heads = (float*)p.act;                   // [GROUP + 1][HD]
    float* scratch = heads + (GROUP + 1) * HD;      // [GROUP + 1][HD]
    float* outs = scratch + (GROUP + 1) * HD;       // [WARPS][GROUP][HD + 2]
    float* fades = p.pieces;                        // [GROUP][WARPS + 1]: of each warp's, and the largest score
    const Split s = split_of(p, layer);
#pragma unroll 1
    for (int item = processor(); item < BATCH * NKV * s.count; item += GRID) {
        const int n = item / (NKV * s.count), h = item / s.count % NKV, split = item % s.count;
        const int lo = (int)((i64)s.keys * split / s.count), hi = (int)((i64)s.keys * (split + 1) / s.count);
        const bool newest = lo < s.own_count && s.own_count <= hi;
#pragma unroll 1
        for (int j = p.warp; j < GROUP + 2; j += WARPS)
            if (j < GROUP || newest)
                head_of(p, layer, norms, n, h, j, heads + j * HD, scratch + j * HD, j < GROUP ? split == 0 : true);
        together();
        Read r;
        read_keys(p, layer, n, h, lo, hi, s.own_first, s.own_count, heads, r);
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
            float* out = outs + (p.warp * GROUP + g) * (HD + 2);
            if (p.lane < LANES)
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    if (p.lane * 8 + i < HD) out[p.lane * 8 + i] = r.out[g][i];
            if (p.lane == 0) { out[HD] = r.top[g]; out[HD + 1] = r.sum[g]; }
        }
        together();
        if (thread() < GROUP) {
            float top = -INF;
            for (int w = 0; w < WARPS; ++w) {
                const float x = outs[(w * GROUP + thread()) * (HD + 2) + HD];
                top = x > top || x != x ? x : top;
            }
            for (int w = 0; w < WARPS; ++w) {
                const float x = outs[(w * GROUP + thread()) * (HD + 2) + HD];
                fades[thread() * (WARPS + 1) + w] = x == -INF ? 0.0f : expf(x - top);
            }
            fades[thread() * (WARPS + 1) + WARPS] = top;
        }
        together();
#pragma unroll 1
        for (int i = thread(); i < GROUP * (HD + 2); i += THREADS) {
            const int g = i / (HD + 2), c = i % (HD + 2);
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                const float fade = fades[g * (WARPS + 1) + w];
                if (fade != 0.0f) sum += outs[(w * GROUP + g) * (HD + 2) + c] * fade;
            }
            p.a.attended[(((i64)n * NQ + h * GROUP + g) * SPLITS + split) * PARTIAL + (c < HD ? c : c - HD + PARTIAL - 4)] =
                c == HD ? fades[g * (WARPS + 1) + WARPS] : sum;
        }
        together();
    }
    meet(p);
}

// The parts of the keys put together, as the activations of o.
__device__ __forceinline__ void join_parts(Processor& p, int layer) {
    const int splits = split_of(p, layer).count;
    float* weights = p.pieces;  // [BATCH · NQ][SPLITS]
#pragma unroll 1
    for (int j = p.warp; j < BATCH * NQ; j += WARPS) {
        const float* part = p.a.attended + ((i64)j * SPLITS + (p.lane < splits ? p.lane : 0)) * PARTIAL + PARTIAL - 4;
        const bool there = p.lane < splits;
        const float its_top = fresh(part), its_sum = fresh(part + 1), mine = there ? its_top : -INF;
        float top = mine, sum = there ? its_sum : 0.0f;
        for (int step = 16; step; step >>= 1) {
            const float other = __shfl_xor_sync(0xffffffffu, top, step);
            top = other > top || other != other ? other : top;
        }
        const float fade = mine == -INF ? 0.0f : expf(mine - top);
        sum *= fade;
        for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (there) weights[j * SPLITS + p.lane] = sum == 0.0f ? 0.0f : fade / sum;
    }
    together();
    const Columns columns = columns_of<OUT>(p);
    const int first = columns.first, count = columns.count, across = Matrix<OUT>::across;
    const int AHEAD = 12, STEP = HD % 4 ? 1 : 4;
#pragma unroll 1
    for (int i = thread(); i < count * (KB / STEP) * BATCH; i += THREADS) {
        const int n = i / (count * (KB / STEP)), c = i % (count * (KB / STEP)) * STEP, k = (first + c / KB) % across * KB + c % KB;
        float sum[STEP];
#pragma unroll
        for (int e = 0; e < STEP; ++e) sum[e] = 0.0f;
        if (k < NQ * HD) {
            const int head = n * NQ + k / HD;
            const float *part = p.a.attended + (i64)head * SPLITS * PARTIAL + k % HD, *weight = weights + head * SPLITS;
#pragma unroll 1
            for (int from = 0; from < splits; from += AHEAD) {
                uint4 x[AHEAD];
#pragma unroll
                for (int j = 0; j < AHEAD; ++j) {
                    const float* at = part + (from + j < splits ? from + j : 0) * PARTIAL;
                    if (STEP == 4) x[j] = fresh((const uint4*)at);
                    else x[j].x = __float_as_uint(fresh(at));
                }
#pragma unroll
                for (int j = 0; j < AHEAD; ++j) {
                    const float share = from + j < splits ? weight[from + j] : 0.0f;
#pragma unroll
                    for (int e = 0; e < STEP; ++e)
                        if (share != 0.0f) sum[e] += __uint_as_float(e == 0 ? x[j].x : e == 1 ? x[j].y : e == 2 ? x[j].z : x[j].w) * share;
                }
            }
        }
#pragma unroll
        for (int e = 0; e < STEP; ++e) {
            if (k < NQ * HD) show(p, layer, S_ATT, NQ * HD, n, k + e, sum[e]);
            put<OUT>(p, columns, k + e, n, sum[e]);
        }
    }
    together();
}

// The activations of down, of those columns that are read here.
__device__ __forceinline__ void take_active(Processor& p) {
    const int AHEAD = 8;
    const Columns columns = columns_of<DOWN>(p);
    const int first = columns.first, count = columns.count, across = Matrix<DOWN>::across;
    const int size = count * BATCH * 2;  // of sixteen bytes
#pragma unroll 1
    for (int from = thread(); from < size; from += THREADS * AHEAD) {
        uint4 y[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
            const int i = from + j * THREADS < size ? from + j * THREADS : from, n = i / 2 % BATCH;
            const T* row = p.a.active + (i64)n * ACTIVE + (first + i / (2 * BATCH)) % across * KB;
            y[j] = fresh((const uint4*)row + i % 2);
        }
#pragma unroll
        for (int j = 0; j < AHEAD; ++j)
            if (from + j * THREADS < size) ((uint4*)p.act)[from + j * THREADS] = y[j];
    }
    together();
}
