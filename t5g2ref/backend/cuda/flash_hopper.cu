// The same for Hopper (compute capability 9.0a), whose matrix units take a warpgroup's 64 rows at once, read shared memory
// by themselves and work on while the threads do something else.
//
// Two warpgroups of 64 rows take turns at the units: while one's scores and weighted values are multiplied, the other
// takes its exponentials. Each waits for its turn, says what is to be multiplied, and hands the turn over. The second group
// also fetches, once both are done with the places: the keys of two steps ahead and the values of one; what it fetched
// before has arrived when it hands over. Every row lies on 16 bytes here; behind the last step zeros are fetched, on which
// a tile without any key relies. No branch and no other use of their registers may stand between what the units are told
// and the wait for it, or the compiler makes them wait at once (it says so as C7514).

#ifndef EMULATED
__device__ inline void multiplying() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void queued() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until of what was queued `LEFT` are not done.
template <int LEFT> __device__ inline void multiplied() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// What the threads wrote to shared memory is there for the matrix units, once all have passed a barrier behind it.
__device__ inline void shown_to_units() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The compiler keeps x where it is until here: the matrix units may still read or write it.
__device__ inline void used(float& x) { asm volatile("" : "+f"(x)::"memory"); }
__device__ inline void used(unsigned& x) { asm volatile("" : "+r"(x)::"memory"); }
template <typename All> __device__ inline void hold(All& all) {
    for (auto& row : all)
        for (auto& x : row) used(x);
}
// `copy_16`, or nothing where it is not `wanted`: without a branch.
__device__ inline void copy_16_if(bool wanted, void* to, const void* from, bool there) {
    unsigned place = (unsigned)__cvta_generic_to_shared(to), bytes = there ? 16 : 0;
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0;\n@p cp.async.cg.shared.global [%1], [%2], 16, %3; }" ::"r"((int)wanted),
                 "r"(place), "l"(from), "r"(bytes) : "memory");
}
// A barrier that one warpgroup waits at, for itself and for the other one, which signals.
__device__ inline void await(int barrier) { asm volatile("bar.sync %0, 256;" ::"r"(barrier) : "memory"); }
__device__ inline void signal(int barrier) { asm volatile("bar.arrive %0, 256;" ::"r"(barrier) : "memory"); }
__device__ inline unsigned shared_place(const void* x) { return (unsigned)__cvta_generic_to_shared(x); }

#define F4(I) "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3])
#define F16(I) F4(I), F4(I + 4), F4(I + 8), F4(I + 12)
#define F32(I) F16(I), F16(I + 16)
#define F64(I) F32(I), F32(I + 32)
#define R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define R1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define R2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define R3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define R4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define R5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define R6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define R7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define R8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define R9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define R10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define R11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define R12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define R13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define R14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define R15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define U8 R0
#define U32 R0 ", " R1 ", " R2 ", " R3
#define U64 U32 ", " R4 ", " R5 ", " R6 ", " R7
#define U128 U64 ", " R8 ", " R9 ", " R10 ", " R11 ", " R12 ", " R13 ", " R14 ", " R15
// d (64 × N) += a b, by a warpgroup: `a` and b (16 × N) where descriptors say, its numbers one after the other along k; or
// `a` in registers and b along N. SCORES does not read d where `onto` is 0.
#define SCORES(NAME, N, COUNT, OPERANDS, A, B, P)                                                                 \
    __device__ inline void score(NAME, Size<N>, float* d, i64 a, i64 b, int onto) {                               \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #P ", 0;\n"                                               \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #NAME "." #NAME " {" U##COUNT "}, %" #A     \
                     ", %" #B ", p, 1, 1, 0, 0; }"                                                                \
                     : OPERANDS : "l"(a), "l"(b), "r"(onto));                                                     \
    }
#define WEIGHED(NAME, N, COUNT, OPERANDS, A0, A1, A2, A3, B)                                                      \
    __device__ inline void weigh(NAME, Size<N>, float* d, const unsigned* a, i64 b) {                             \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #NAME "." #NAME " {" U##COUNT "}, {%" #A0   \
                     ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 1;"                                      \
                     : OPERANDS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                            \
    }
#define BOTH(NAME)                                                      \
    SCORES(NAME, 64, 32, F32(0), 32, 33, 34)                            \
    SCORES(NAME, 128, 64, F64(0), 64, 65, 66)                           \
    WEIGHED(NAME, 16, 8, F4(0) COMMA F4(4), 8, 9, 10, 11, 12)           \
    WEIGHED(NAME, 64, 32, F32(0), 32, 33, 34, 35, 36)                   \
    WEIGHED(NAME, 128, 64, F64(0), 64, 65, 66, 67, 68)                  \
    WEIGHED(NAME, 256, 128, F64(0) COMMA F64(64), 128, 129, 130, 131, 132)
#define COMMA ,
template <int N> struct Size {};
BOTH(bf16)
BOTH(f16)
#endif

// Where rows of D numbers lie in shared memory, as the matrix units read them: blocks of 64 numbers of all rows, then, where
// D is no multiple of 64, one of 16. A row of a block is 128 or 32 bytes, side by side, in pieces of 16 whose order depends
// on the row, so that eight rows' pieces of one place have banks of their own. Blocks begin at multiples of 1024 bytes.
template <int D> struct Blocks {
    static const int WIDE = D / 64, NARROW = D % 64 / 16;
    static_assert(D % 64 == 0 || D % 64 == 16, "blocks of 64, and one of 16 at most");
};
enum { OF_64 = 1, OF_16 = 3 };
enum { TURN = 1, DONE = 3 };  // barriers: a group's turn, by group; the first group is done with a step, even or odd
// A block as the units are told of it: the bytes from one block to the next, and from eight rows to the next eight.
__device__ inline i64 descriptor(const void* first, int kind, int block) {
    const int eight = kind == OF_64 ? 1024 : 256;
    return (i64)(shared_place(first) >> 4) | (i64)(block >> 4) << 16 | (i64)(eight >> 4) << 32 |
           (i64)((unsigned long long)kind << 62);
}

// ROWS rows to shared memory, by a warpgroup: zeros for rows that are null; what is beyond `width` in a row stays what it
// was. Threads side by side have pieces of one row. ALL: no row is null.
template <typename T, int ROWS, int D, bool ALL, typename At>
__device__ inline void fetch_pieces(T* to, const T* any, int width, At at) {
    const int thread = threadIdx.x % 128, WIDE = Blocks<D>::WIDE;
    static_assert(ROWS % 64 == 0, "as many pieces for each thread");
    auto copied = [&](T* lies, const T* row, int column) {
        const bool there = ALL || row;
        copy_16_if(column < width, lies, there ? row + column : any, there);
    };
    const int piece = thread % 8, first = thread / 8;
    T* lies = to + first * 64 + (piece ^ first % 8) * 8;
#pragma unroll
    for (int i = 0; i < ROWS / 16; ++i) {
        const T* row = at(first + 16 * i);
#pragma unroll
        for (int block = 0; block < WIDE; ++block)
            copied(lies + block * 64 * ROWS + i * 16 * 64, row, block * 64 + piece * 8);
    }
    if (!Blocks<D>::NARROW) return;
    const int half = thread % 2, row = thread / 2;
    lies = to + WIDE * 64 * ROWS + row * 16 + (half ^ row / 4 % 2) * 8;
#pragma unroll
    for (int i = 0; i < ROWS / 64; ++i) copied(lies + i * 64 * 16, at(row + 64 * i), WIDE * 64 + half * 8);
}
template <typename T, int ROWS, int D> __device__ inline void fetch_rows(T* to, const T* any, int width, Rows<T> rows) {
    if (rows.count >= ROWS)
        fetch_pieces<T, ROWS, D, true>(to, any, width, [&](int r) { return rows.first + r * rows.step; });
    else
        fetch_pieces<T, ROWS, D, false>(to, any, width, rows);
}

template <typename T, int D, int BN>
__global__ void __launch_bounds__(256, 1) flash_hopper(ARGUMENTS(T)) {
    const int ROWS = 128, THREADS = 128, PLACE = BN * D, TOLD = 4;
    const int WIDE = Blocks<D>::WIDE, NARROW = Blocks<D>::NARROW;
    const int group = threadIdx.x / THREADS, thread = threadIdx.x % THREADS;
    const int row = group * 64 + thread / 32 * 16 + thread % 32 / 4;
    T* queries_ = (T*)(shared_memory() + (-shared_place(shared_memory()) & 1023));
    T *keys_ = queries_ + ROWS * D, *values_ = keys_ + 2 * PLACE;
    unsigned char* ok = (unsigned char*)(values_ + 2 * PLACE);  // of TOLD steps
    const Tile<T, ROWS, BN> tile(KEYS(T, own), KEYS(T, other), sharing, queries, first);

    auto fetch_keys = [&](int step) {
        fetch_rows<T, BN, D>(keys_ + step % 2 * PLACE, q, width, tile.keys(step));
        if (thread < BN) ok[step % TOLD * BN + thread] = tile.valid(step, thread);
    };
    auto fetch_values = [&](int step) {
        fetch_rows<T, BN, D>(values_ + step % 2 * PLACE, q, width, tile.values(step));
    };
    auto arrived = [&]() {  // what this thread fetched, for the units, once all have passed a barrier
        copies_done();
        shown_to_units();
    };

    const float factor = cap > 0 ? PER_POWER : (float)(scale * PER_POWER);
    float sums[D / 8][4] = {}, scores[BN / 8][4] = {}, total[2] = {}, top[2] = {minus_infinity(), minus_infinity()}, fewer[2];
    unsigned weights[BN / 16][4] = {};

    auto make_scores = [&](int step) {
        const T *q_ = queries_ + group * 64 * D, *k_ = keys_ + step % 2 * PLACE;
        const i64 a = descriptor(q_, OF_64, 0), b = descriptor(k_, OF_64, 0);
#pragma unroll
        for (int d = 0; d < WIDE * 4; ++d)
            score(T{}, Size<BN>{}, scores[0], a + d / 4 * (64 * 128 >> 4) + d % 4 * 2,
                  b + d / 4 * (BN * 128 >> 4) + d % 4 * 2, d > 0);
        if (NARROW)
            score(T{}, Size<BN>{}, scores[0], descriptor(q_ + WIDE * 64 * 64, OF_16, 0),
                  descriptor(k_ + WIDE * 64 * BN, OF_16, 0), 1);
    };
    auto weigh_values = [&](int step) {
        const T* v_ = values_ + step % 2 * PLACE;
        const i64 of_64 = descriptor(v_, OF_64, BN * 128), of_16 = descriptor(v_ + WIDE * 64 * BN, OF_16, 0);
#pragma unroll
        for (int n = 0; n < BN / 16; ++n) {
            weigh(T{}, Size<WIDE * 64>{}, sums[0], weights[n], of_64 + n * (16 * 128 >> 4));
            if (NARROW) weigh(T{}, Size<16>{}, sums[WIDE * 8], weights[n], of_16 + n * (16 * 32 >> 4));
        }
    };

    if (width < D) {  // what is beyond it is zero and stays so
        for (int i = threadIdx.x; i < (ROWS + 4 * BN) * D / 8; i += 256) ((uint4*)queries_)[i] = uint4{0, 0, 0, 0};
        __syncthreads();
    }
    fetch_pieces<T, 64, D, false>(queries_ + group * 64 * D, q, width,
                                  [&](int r) { return tile.query_row(q, q0, q1, q2, group * 64 + r); });
    if (group) {
        fetch_keys(0);
        fetch_keys(1);
        fetch_values(0);
    }
    arrived();
    auto soften = [&](int step) {
        if (group) {
            await(DONE + step % 2);
            fetch_keys(step + 2);
            fetch_values(step + 1);
        } else
            signal(DONE + step % 2);
        capped(scores, scale, cap);
        const unsigned char* told = ok + step % TOLD * BN;
        if (tile.masked(step, told)) masked(scores, tile, step, told, row);
        powers(scores, top, total, fewer, factor);
        scaled(sums, fewer);
#pragma unroll
        for (int n = 0; n < BN / 16; ++n) rounded<T>(weights[n], scores, n);
    };
    __syncthreads();
    if (group) signal(TURN);
    await(TURN + group);
    hold(scores);
    multiplying();
    make_scores(0);
    queued();
    arrived();
    signal(TURN + 1 - group);
    multiplied<0>();
    hold(scores);
    soften(0);
    for (int step = 1; step < tile.steps; ++step) {
        await(TURN + group);
        hold(scores);
        hold(weights);
        hold(sums);
        multiplying();
        make_scores(step);
        weigh_values(step - 1);
        queued();
        arrived();
        signal(TURN + 1 - group);
        multiplied<0>();
        hold(scores);
        hold(weights);
        hold(sums);
        soften(step);
    }
    await(TURN + group);
    hold(weights);
    hold(sums);
    multiplying();
    weigh_values(max(0, tile.steps - 1));
    queued();
    multiplied<0>();
    hold(weights);
    hold(sums);
    copies_done();
    if (!group) signal(TURN + 1);
    stored(sums, total, tile, row, queries, width, out);
}
