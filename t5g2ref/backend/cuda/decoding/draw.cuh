// Drawing the next id: temperature, top-k, top-p, min-p, then the inverse of the distribution function (processors.py).
//
// No id is sorted. A number's bits are a key of the same order. Its largest digit is found by what ids with each digit
// have together, ids or probability, then the next: a few bits a round, and in each round all processors meet. Every
// processor has the logits that it made itself, in the order of ids; its warps have them in equal runs, each row by its
// own. What is summed is summed in one order, so that the same numbers draw the same ids. It is another order than the
// definition's: an id whose probability reaches a bound to within some 1e-16 of the whole may lie on its other side; of
// min-p, whose exponentials are the definition's float32, to within a rounding of those.

const int KEY = HALF ? 16 : 32, DIGIT = 4, BINS = 1 << DIGIT;  // bits of a key and of a digit
const int OF_ROW = WARPS / GROUPS;                              // warps of a batch row

struct Row {
    double sought;  // what is still to be found, from the largest key downward
    double mass;    // of top-p
    float top;      // the largest logit; this and the next are divided by the temperature
    float least;    // what top-k leaves is not smaller
    float edge;     // what top-p leaves is larger, or equal if its id is
    int last;       // at most this
    unsigned key;   // its first digits
};
struct Scratch {  // in the place of the activations, which the head has read
    double of_warp[WARPS][BINS], gathered[WARPS][BINS];
    Row rows[BATCH];
};
static_assert(!SAMPLED || sizeof(Scratch) <= ACT, "plan.py has room for it");

struct Drawing {
    Processor& p;
    Scratch& s;
    double* tally;             // [BATCH][GRID][BINS], of the last tally
    const int n, warp, group;  // the batch row, the warp among its own, its first warp
    const int from, to;        // this warp's ids
};

// A logit as a number of the same order, and back. It tells apart what is equal as y: zeros of two signs, quotients
// that are rounded to one. So keys find a bound, and who is inside is asked of y.
__device__ __forceinline__ unsigned key_of(T x) {
#if HALF
    return x & 0x8000 ? 0xffff & ~x : x | 0x8000;
#else
    const unsigned bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
#endif
}
__device__ __forceinline__ float value_of(unsigned key) {
#if HALF
    return widen((T)(key & 0x8000 ? key & 0x7fff : ~key));
#else
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
#endif
}

__device__ __forceinline__ int ids_until(const Processor& p, int warp, int warps) {  // this processor's, in equal runs
    const int* share = p.share + HEAD * (WARPS + 1);
    const int first = share[0] / Matrix<HEAD>::across * 16, end = share[WARPS] / Matrix<HEAD>::across * 16;
    const int last = end < V ? end : V;
    return first < last ? first + (last - first) * warp / warps : last;
}
__device__ __forceinline__ T logit(const Drawing& d, int id) {
    return d.p.a.logits[((i64)d.p.token * BATCH + d.n) * V + id];
}
__device__ __forceinline__ double weight(const Row& row, float y) { return exp((double)y - (double)row.top); }

// What a round adds up. COUNTS and MASSES: of keys that begin as the row's, each next digit; EDGE: the mass above the
// edge, and how many lie on it; LEFT: the mass of all that is left.
enum What { COUNTS, MASSES, EDGE, LEFT };

// What an id adds to that, y its logit over the temperature, and to which bin.
struct Share { double value; int bin; };
__device__ __forceinline__ Share share_of(const Drawing& d, const Row& row, What what, int shift, int id, T x) {
    const float y = widen(x) / d.p.a.temperature;
    const unsigned key = key_of(x);
    bool counts = y >= row.least;
    int bin = 0;
    if (what == LEFT) {
        counts = counts && (y > row.edge || (y == row.edge && id <= row.last)) && !(expf(y - row.top) < d.p.a.min_p);
    } else if (what == EDGE) {
        counts = counts && y >= row.edge;
        bin = y == row.edge;
    } else {
        counts = counts && (unsigned)((u64)key >> (shift + DIGIT)) == row.key;
        bin = key >> shift & (BINS - 1);
    }
    return Share{!counts ? 0.0 : what == COUNTS || (what == EDGE && bin) ? 1.0 : weight(row, y), bin};
}

__device__ __forceinline__ void add_up(const Drawing& d, What what, int shift, double* bins) {
    const Row row = d.s.rows[d.n];
    const int AHEAD = 4;
#pragma unroll 1
    for (int first = d.from; first < d.to; first += AHEAD * 32) {
        T asked[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int id = first + i * 32 + d.p.lane;
            asked[i] = logit(d, id < d.to ? id : d.to - 1);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int id = first + i * 32 + d.p.lane;
            Share share = share_of(d, row, what, shift, id, asked[i]);
            if (id >= d.to) share.value = 0.0;
            if (!__any_sync(0xffffffffu, share.value != 0.0)) continue;  // of most, behind the first digit
#pragma unroll
            for (int b = 0; b < BINS; ++b) bins[b] += b == share.bin ? share.value : 0.0;
        }
    }
}
// Each half of the lanes goes on with half of the bins, 2 · COUNT of them so far: the sums of both.
template <int COUNT> __device__ __forceinline__ void fold(int lane, double* bins) {
#pragma unroll
    for (int b = 0; b < COUNT; ++b) {
        const bool upper = lane & (COUNT * 2);
        const double low = bins[b], high = bins[b + COUNT];
        bins[b] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, COUNT * 2);
    }
}
// What all processors have in each bin, of this warp's part of them.
__device__ __forceinline__ double gathered(const Drawing& d) {
    const int RUN = (GRID + 2 * OF_ROW - 1) / (2 * OF_ROW), AHEAD = RUN < 12 ? RUN : 12;  // of half a warp
    double sum = 0.0;
#pragma unroll 1
    for (int first = 0; first < RUN; first += AHEAD) {
        double asked[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int from = ((first + i) * OF_ROW + d.warp) * 2 + d.p.lane / BINS;
            asked[i] = fresh(d.tally + (d.n * GRID + (from < GRID ? from : 0)) * BINS + d.p.lane % BINS);
            if (from >= GRID) asked[i] = 0.0;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) sum += asked[i];
    }
    return sum + __shfl_xor_sync(0xffffffffu, sum, BINS);
}
// A round's sums, of all processors: where they are, `column` says.
__device__ __forceinline__ void tally(Drawing& d, What what, int shift) {
    Processor& p = d.p;
    double bins[BINS];
#pragma unroll
    for (int b = 0; b < BINS; ++b) bins[b] = 0.0;
    if (d.n < BATCH) add_up(d, what, shift, bins);
    fold<8>(p.lane, bins);
    fold<4>(p.lane, bins);
    fold<2>(p.lane, bins);
    fold<1>(p.lane, bins);
    bins[0] += __shfl_xor_sync(0xffffffffu, bins[0], 1);
    if ((p.lane & 1) == 0) d.s.of_warp[p.warp][p.lane >> 1] = bins[0];
    together();
    d.tally = d.tally == p.a.tally ? p.a.tally + BATCH * GRID * BINS : p.a.tally;  // others may still read the last
    for (int i = thread(); i < BATCH * BINS; i += THREADS) {
        double sum = 0.0;
        for (int w = 0; w < OF_ROW; ++w) sum += d.s.of_warp[i / BINS * OF_ROW + w][i % BINS];
        d.tally[(i / BINS * GRID + processor()) * BINS + i % BINS] = sum;
    }
    meet(p);
    if (d.n < BATCH) {
        const double sum = gathered(d);
        if (p.lane < BINS) d.s.gathered[p.warp][p.lane] = sum;
    }
    together();
}
__device__ __forceinline__ double column(const Drawing& d, int bin) {  // of this warp's row
    double sum = 0.0;
    for (int w = 0; w < OF_ROW; ++w) sum += d.s.gathered[d.group + w][bin];
    return sum;
}

// The row's next digit: the largest so that keys from there on have `sought` together. What follows is for a whole
// warp, the first of its row.
__device__ __forceinline__ void take_digit(const Drawing& d, Row& row, What what, int shift) {
    const double mine = column(d, d.p.lane % BINS);
    double sought = row.sought, mass = row.mass;
    if (what == MASSES && shift == KEY - DIGIT) {
        double all = mine;  // what top-k leaves
        for (int step = BINS / 2; step; step >>= 1) all += __shfl_xor_sync(0xffffffffu, all, step);
        sought = mass = d.p.a.top_p * all;
    }
    int digit = BINS - 1;
#pragma unroll 1
    for (; digit; --digit) {
        const double here = __shfl_sync(0xffffffffu, mine, digit);
        if (here >= sought) break;
        sought -= here;
    }
    __syncwarp();  // all have read the row
    if (d.p.lane) return;
    row.sought = sought;
    row.mass = mass;
    row.key = row.key << DIGIT | digit;
    if (shift) return;
    const float found = value_of(row.key) / d.p.a.temperature;
    if (what == COUNTS) row.least = found;
    else row.edge = found == found ? found : -INF;  // rounding may leave a little that no id has
    row.key = 0;
}

// The first of [from, to) at which the running sum, `before` in front of them, is above `target`, and the sum in front
// of it. If rounding leaves none, the last with a weight; −1 if there is none either.
struct Place { int at; double before; };
template <typename Weight>
__device__ __forceinline__ Place first_above(int lane, int from, int to, double before, double target, Weight of) {
    Place place = {-1, before};
#pragma unroll 1
    for (int first = from; first < to; first += 32) {
        const double mine = first + lane < to ? of(first + lane) : 0.0;
        double sum = mine;
#pragma unroll
        for (int step = 1; step < 32; step <<= 1) {
            const double other = __shfl_sync(0xffffffffu, sum, lane - step);
            if (lane >= step) sum += other;
        }
        const double other = __shfl_sync(0xffffffffu, sum, lane - 1), front = before + (lane ? other : 0.0);
        const unsigned some = __ballot_sync(0xffffffffu, mine > 0.0);
        const unsigned above = __ballot_sync(0xffffffffu, mine > 0.0 && before + sum > target);
        if (some) {
            const int at = above ? __ffs(above) - 1 : 31 - __clz(some);
            place = Place{first + at, __shfl_sync(0xffffffffu, front, at)};
            if (above) break;
        }
        before += __shfl_sync(0xffffffffu, sum, 31);
    }
    return place;
}

// The same over all ids, whose sums a bin of the last tally has: the processor with the id, and there the id.
struct Found { int holder, id; };
__device__ __forceinline__ Found find(const Drawing& d, const Row& row, What what, int bin, double target) {
    Processor& p = d.p;
    const double* sums = d.tally + d.n * GRID * BINS + bin;
    Place at = first_above(p.lane, 0, GRID, 0.0, target, [&](int i) { return fresh(sums + i * BINS); });
    const int holder = at.at;
    if (holder != processor()) return Found{holder, 0};
    at = first_above(p.lane, 0, OF_ROW, at.before, target, [&](int w) { return d.s.of_warp[d.group + w][bin]; });
    const int from = ids_until(p, at.at, OF_ROW), to = ids_until(p, at.at + 1, OF_ROW);
    at = first_above(p.lane, from, to, at.before, target, [&](int id) {
        const Share share = share_of(d, row, what, 0, id, logit(d, id));
        return share.bin == bin ? share.value : 0.0;
    });
    return Found{holder, at.at};
}

// EDGE: which ids on the edge are left, the lower first. LEFT: the id that is drawn, by who has it.
__device__ __forceinline__ void take_id(const Drawing& d, Row& row, What what) {
    Processor& p = d.p;
    const Row here = row;
    double target, total = column(d, 0);
    if (what == EDGE) {
        const double kept = ceil((here.mass - total) / weight(here, here.edge));  // so many
        if (!(kept < column(d, 1))) return;
        target = kept < 1.0 ? 0.0 : kept - 1.0;
    } else {
        target = p.a.uniform[p.token * BATCH + d.n] * total;
    }
    const Found found = find(d, here, what, what == EDGE, target);
    if (p.lane) return;
    if (what == EDGE) {
        row.last = found.holder == processor() ? found.id : found.holder < processor() ? -1 : V;
    } else if ((found.holder < 0 ? 0 : found.holder) == processor()) {  // −1: no logit is a number
        p.a.drawn[d.n] = found.id;
        const float y = widen(logit(d, found.id)) / p.a.temperature;
        p.a.log_probs[p.token * BATCH + d.n] = (double)y - here.top - log(total);
    }
}

// The next ids, as `choose`, by p.a.uniform.
__device__ __forceinline__ bool draw(Processor& p, int* chosen, int* running) {
    Scratch& s = *(Scratch*)p.act;
    const int n = p.warp / OF_ROW, warp = p.warp % OF_ROW;
    Drawing d = {p, s, p.a.tally, n, warp, n * OF_ROW, ids_until(p, warp, OF_ROW), ids_until(p, warp + 1, OF_ROW)};
    const bool leads = n < BATCH && warp == 0;
    if (leads) {
        const float top = best_of(p, n).value / p.a.temperature;
        if (p.lane == 0) s.rows[n] = Row{(double)p.a.top_k, 0.0, top, -INF, -INF, V, 0};
    }
    together();
    const int ROUNDS = KEY / DIGIT;  // of a search
#pragma unroll 1
    for (int round = p.a.top_k ? 0 : ROUNDS; round < 2 * ROUNDS + 2; ++round) {  // one text for all: see decode.cu
        if (round == ROUNDS && p.a.top_p >= 1.0) round = 2 * ROUNDS + 1;
        const What what = round < ROUNDS ? COUNTS : round < 2 * ROUNDS ? MASSES : round == 2 * ROUNDS ? EDGE : LEFT;
        const int shift = KEY - DIGIT - round % ROUNDS * DIGIT;
        tally(d, what, shift);
        if (leads) {
            if (what == COUNTS || what == MASSES) take_digit(d, s.rows[n], what, shift);
            else take_id(d, s.rows[n], what);
        }
        together();
    }
    meet(p);
    for (int i = thread(); i < BATCH; i += THREADS) settle(p, i, fresh(p.a.drawn + i), chosen, running);
    together();
    return any_runs(running);
}
