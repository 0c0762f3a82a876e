// Attention in blocks with online softmax (Milakov and Gimelshein, 2018; Dao et al., 2022): no score is ever in memory.
//
//     out(q) = softmax(cap · tanh(q · kᵀ · scale / cap) + mask) · v,   keys and values in one or two groups
//
// A block of threads has ROWS rows of one kv head of one batch row: row r is query r / G of query head r % G, so keys
// are read once for the G heads that share them. It goes through the keys that its queries can reach, BN at a time, with
// the largest score so far, the sum of the exponentials and the weighted values in registers. While it multiplies keys,
// the values of the step are on their way to shared memory; while it multiplies values, the keys of the next step are;
// flash_hopper.cu has another order.
//
// The mask is computed here: key j of a group stands at position start + j and is seen from `back` behind to `ahead` in
// front of the query, where `valid` (null for all) says that it is no padding. A row that sees nothing gets zeros.
//
// No header is needed. Every instruction that C++ has not is a function here, which the tests replace on a CPU.

typedef long long i64;

struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

#ifndef EMULATED
__device__ inline unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}
// 16 bytes to shared memory, or 16 zeros where they are not `there`; done when `copies_done` returns.
__device__ inline void copy_16(void* to, const void* from, bool there) {
    unsigned place = (unsigned)__cvta_generic_to_shared(to), bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Four 8 × 8 matrices of half numbers; lane l has the address of row l % 8 of matrix l / 8.
__device__ inline void load_4(unsigned* to, const void* row) {
    unsigned place = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(place) : "memory");
}
__device__ inline void load_4_turned(unsigned* to, const void* row) {
    unsigned place = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(place) : "memory");
}
// sum (16 × 8, float) += a (16 × 16) b (16 × 8) by a warp.
#define MULTIPLY(NAME)                                                                                              \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, "                   \
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                                    \
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
__device__ inline void multiply(bf16, float* sum, const unsigned* a, const unsigned* b) { MULTIPLY("bf16"); }
__device__ inline void multiply(f16, float* sum, const unsigned* a, const unsigned* b) { MULTIPLY("f16"); }
// Two numbers rounded to nearest even, the first in the lower half.
__device__ inline unsigned pair(bf16, float low, float high) {
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
__device__ inline unsigned pair(f16, float low, float high) {
    unsigned y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
__device__ inline float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

__device__ inline float minus_infinity() { return __uint_as_float(0xff800000u); }

// One group of keys and values (B, K, length, H) of any strides, in elements, but a dense last axis.
template <typename T> struct Keys {
    const T *k, *v;
    i64 k_step, v_step;
    int length, start, back, ahead;
    const bool* valid;
    int low, high;  // what the queries from `first` to `last` can reach
    __device__ void reach(int first, int last) {
        low = max(0, first - back - start);
        high = max(low, min(length, last + ahead + 1 - start));
    }
    __device__ int steps(int width) const { return (high - low + width - 1) / width; }
    // The steps of so many keys that all queries first … last see, padding aside: from x to before y.
    __device__ int2 whole(int width, int first, int last) const {
        return {max(0, last - back - start - low + width - 1) / width,
                max(0, min(high, first + ahead + 1 - start) - low) / width};
    }
    __device__ bool sees(int query, int key) const {
        int distance = start + key - query;
        return (key < high) & (distance >= -back) & (distance <= ahead);  // no branch: this is asked for every score
    }
};

// ROWS rows to shared memory, LD elements from one to the next: elements 0 … D − 1 of what `at` gives for each row, zeros
// from `width` on; null gives zeros. `wide`: everything lies on 16 bytes, so that no thread has to wait. Threads side by
// side have pieces of 16 bytes side by side.
template <typename T, int ROWS, int D, int LD, int THREADS, typename At>
__device__ inline void fetch(T* to, const T* any, int width, bool wide, At at) {
    const int piece = 16 / sizeof(T), pieces = D / piece;
    static_assert(ROWS * pieces % THREADS == 0 && D % piece == 0, "whole pieces, as many for each thread");
#pragma unroll
    for (int j = 0; j < ROWS * pieces / THREADS; ++j) {
        const int i = threadIdx.x + THREADS * j, row = i / pieces, column = i % pieces * piece;
        const T* from = at(row);
        T* lies = to + row * LD + column;
        const bool there = from && column < width;
        if (wide) copy_16(lies, there ? from + column : any, there);
        else
            for (int e = 0; e < piece; ++e) lies[e] = from && column + e < width ? from[column + e] : T{};
    }
}

// The arguments of every kernel here: queries (B, N, T, H) of any strides but a dense last axis, out (B, T, N, H).
#define GROUP(T, X)                                                                                                   \
    const T *X##_k, i64 X##_k0, i64 X##_k1, i64 X##_k2, const T *X##_v, i64 X##_v0, i64 X##_v1, i64 X##_v2,           \
        i64 X##_length, i64 X##_start, i64 X##_back, i64 X##_ahead, const bool *X##_valid, i64 X##_stride
#define ARGUMENTS(T)                                                                                                  \
    const T *q, i64 q0, i64 q1, i64 q2, i64 sharing, i64 queries, i64 width, i64 first, double scale, double cap,     \
        i64 wide, GROUP(T, own), GROUP(T, other), T *out
#define KEYS(T, X)                                                                                                    \
    Keys<T>{X##_k + blockIdx.z * X##_k0 + blockIdx.y * X##_k1, X##_v + blockIdx.z * X##_v0 + blockIdx.y * X##_v1,      \
            X##_k2, X##_v2, (int)X##_length, (int)X##_start, (int)X##_back, (int)X##_ahead,                           \
            X##_valid ? X##_valid + blockIdx.z * X##_stride : 0, 0, 0}

// Rows of a step: the first, elements from one to the next, and how many there are. Null beyond them.
template <typename T> struct Rows {
    const T* first;
    i64 step;
    int count;
    __device__ const T* operator()(int row) const { return row < count ? first + row * step : 0; }
};

// A tile: its rows, and the steps through the keys of both groups.
template <typename T, int ROWS, int BN> struct Tile {
    int row, rows, sharing, first, last, own_steps, steps;  // the positions of its first and last query
    int2 own_whole, other_whole;  // steps without a mask
    bool padded;
    Keys<T> own, other;
    __device__ Tile(Keys<T> a, Keys<T> b, i64 sharing_, i64 queries, i64 position) : own(a), other(b) {
        sharing = sharing_;
        row = (gridDim.x - 1 - blockIdx.x) * ROWS;  // the last queries have the most keys before them: they begin
        rows = min(ROWS, (int)(queries * sharing) - row);
        first = (int)position + row / sharing;
        last = (int)position + (row + rows - 1) / sharing;
        own.reach(first, last);
        other.reach(first, last);
        own_steps = own.steps(BN);
        steps = own_steps + other.steps(BN);
        own_whole = own.whole(BN, first, last);
        other_whole = other.whole(BN, first, last);
        padded = own.valid || other.valid;
    }
    __device__ Keys<T> group(int step) const {  // by value: a reference would keep both in local memory
        const bool mine = step < own_steps;
        return {mine ? own.k : other.k, mine ? own.v : other.v, mine ? own.k_step : other.k_step,
                mine ? own.v_step : other.v_step, mine ? own.length : other.length, mine ? own.start : other.start,
                mine ? own.back : other.back, mine ? own.ahead : other.ahead, mine ? own.valid : other.valid,
                mine ? own.low : other.low, mine ? own.high : other.high};
    }
    __device__ int key(int step) const {
        return step < own_steps ? own.low + step * BN : other.low + (step - own_steps) * BN;
    }
    __device__ int query(int r) const { return first - row / sharing + (row + min(r, rows - 1)) / sharing; }
    // Where row r of the queries lies; null beyond the last.
    __device__ const T* query_row(const T* q, i64 q0, i64 q1, i64 q2, int r) const {
        const int at = row + r;
        return r < rows ? q + blockIdx.z * q0 + (blockIdx.y * sharing + at % sharing) * q1 + at / sharing * q2 : 0;
    }
    // The keys of a step, and its values.
    __device__ Rows<T> keys(int step) const {
        const Keys<T> from = group(step);
        const int j = key(step);
        return {from.k + j * from.k_step, from.k_step, from.high - j};
    }
    __device__ Rows<T> values(int step) const {
        const Keys<T> from = group(step);
        const int j = key(step);
        return {from.v + j * from.v_step, from.v_step, from.high - j};
    }
    // The row of out (B · T · N, H) that row r is.
    __device__ i64 result(int r, i64 queries) const {
        const i64 at = row + r, head = blockIdx.y * sharing + at % sharing;
        return (blockIdx.z * queries + at / sharing) * gridDim.y * sharing + head;
    }
    // Whether key `at` of a step is one, and no padding.
    __device__ bool valid(int step, int at) const {
        const Keys<T> keys = group(step);
        const int j = key(step) + at;
        return at < BN && j < keys.high && (!keys.valid || keys.valid[j]);
    }
    // Whether a step needs its mask; the same in every thread of a warp.
    __device__ bool masked(int step, const unsigned char* ok) const {
        const int later = step - own_steps;
        const bool whole = later < 0 ? step >= own_whole.x && step < own_whole.y
                                     : later >= other_whole.x && later < other_whole.y;
        if (!whole || !padded) return !whole;
        bool all = true;
        for (int j = threadIdx.x % 32; j < BN; j += 32) all = all && ok[j];
        return !__all_sync(0xffffffffu, all);
    }
};
