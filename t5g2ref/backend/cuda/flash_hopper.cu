// The same for Hopper (compute capability 9.0a), whose matrix units take a warpgroup's 64 rows at once, read shared memory
// by themselves and work on while the threads do something else: a step's scores are made, and the last step's values
// multiplied, while exponentials are taken.
//
// Two warpgroups of 64 rows. Keys and values have two places each in shared memory; behind each step's one barrier, while
// the units work, the keys of the next step and the values of this one are fetched. No branch and no other use of their
// registers stands between what the units are told and the wait for it, or the compiler makes them wait at once (it says
// so as C7514). So every row lies on 16 bytes here, and behind the last step zeros are fetched.

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
#define U32 R0 ", " R1 ", " R2 ", " R3
#define U40 U32 ", " R4
#define U64 U40 ", " R5 ", " R6 ", " R7
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
    WEIGHED(NAME, 64, 32, F32(0), 32, 33, 34, 35, 36)                   \
    WEIGHED(NAME, 80, 40, F32(0) COMMA F4(32) COMMA F4(36), 40, 41, 42, 43, 44) \
    WEIGHED(NAME, 128, 64, F64(0), 64, 65, 66, 67, 68)                  \
    WEIGHED(NAME, 256, 128, F64(0) COMMA F64(64), 128, 129, 130, 131, 132)
#define COMMA ,
template <int N> struct Size {};
BOTH(bf16)
BOTH(f16)
#endif

// Where a factor lies, as the matrix units are told: bytes from its first 8 × 16 bytes to the next along k and across.
__device__ inline i64 descriptor(const void* first, int along, int across) {
    return (i64)(shared_place(first) >> 4) | (i64)(along >> 4) << 16 | (i64)(across >> 4) << 32;
}

template <typename T, int D, int BN>
__global__ void __launch_bounds__(256, 1) flash_hopper(ARGUMENTS(T)) {
    const int ROWS = 128, THREADS = 256, PLACE = BN * D;
    const int group = threadIdx.x / 128;
    const int row = group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    T* queries_ = (T*)shared_memory();
    T *keys_ = queries_ + ROWS * D, *values_ = keys_ + 2 * PLACE;
    unsigned char* ok = (unsigned char*)(values_ + 2 * PLACE);
    const Tile<T, ROWS, BN> tile(KEYS(T, own), KEYS(T, other), sharing, queries, first);

    auto fetch_keys = [&](int step) {
        T* to = keys_ + step % 2 * PLACE;
        fetch<T, BN, BN, D, 0, THREADS>(to, q, width, true, [&](int r) { return tile.key_row(step, r); });
    };
    auto fetch_values = [&](int step) {
        T* to = values_ + step % 2 * PLACE;
        fetch<T, BN, BN, D, 0, THREADS>(to, q, width, true, [&](int r) { return tile.value_row(step, r); });
    };
    fetch<T, ROWS, 64, D, 0, THREADS>(queries_, q, width, true,
                                      [&](int r) { return tile.query_row(q, q0, q1, q2, r); });
    auto tell = [&](int step, bool valid) {
        if (threadIdx.x < BN) ok[step % 2 * BN + threadIdx.x] = valid;
    };
    fetch_keys(0);
    tell(0, tile.valid(0));

    const float factor = cap > 0 ? PER_POWER : (float)(scale * PER_POWER);
    float sums[D / 8][4] = {}, scores[BN / 8][4] = {}, total[2] = {}, top[2] = {minus_infinity(), minus_infinity()}, fewer[2];
    unsigned weights[BN / 16][4] = {};

    auto make_scores = [&](int step) {
        const i64 a = descriptor(queries_ + group * 64 * D, 64 * 16, 128);
        const i64 b = descriptor(keys_ + step % 2 * PLACE, BN * 16, 128);
#pragma unroll
        for (int d = 0; d < D / 16; ++d)
            score(T{}, Size<BN>{}, scores[0], a + d * (2 * 64 * 16 >> 4), b + d * (2 * BN * 16 >> 4), d > 0);
        queued();
    };
    auto weigh_values = [&](int step) {
        const i64 b = descriptor(values_ + step % 2 * PLACE, 128, BN * 16);
#pragma unroll
        for (int n = 0; n < BN / 16; ++n) weigh(T{}, Size<D>{}, sums[0], weights[n], b + n * (16 * 16 >> 4));
        queued();
    };
    auto take_powers = [&](int step) {
        capped(scores, scale, cap);
        if (tile.masked(step, ok + step % 2 * BN)) masked(scores, tile, step, ok + step % 2 * BN, row);
        powers(scores, top, total, fewer, factor);
    };
    auto round_weights = [&]() {
#pragma unroll
        for (int n = 0; n < BN / 16; ++n) rounded<T>(weights[n], scores, n);
    };
    auto arrived = [&]() {  // what was fetched; and nobody's matrix units read what comes next into its place
        copies_done();
        shown_to_units();
        __syncthreads();
    };
    arrived();
    bool next = tile.valid(1);
    hold(scores);
    multiplying();
    make_scores(0);
    fetch_keys(1);  // while the units work; zeros behind the last
    fetch_values(0);
    multiplied<0>();
    hold(scores);
    take_powers(0);
    round_weights();
    tell(1, next);
    for (int step = 1; step < tile.steps; ++step) {
        arrived();
        next = tile.valid(step + 1);
        hold(scores);
        hold(sums);
        multiplying();
        make_scores(step);
        weigh_values(step - 1);
        fetch_keys(step + 1);
        fetch_values(step);
        multiplied<1>();
        hold(scores);
        take_powers(step);
        multiplied<0>();
        hold(weights);
        hold(sums);
        scaled(sums, fewer);
        round_weights();
        tell(step + 1, next);
    }
    arrived();
    hold(sums);
    multiplying();
    weigh_values(max(0, tile.steps - 1));
    multiplied<0>();
    hold(sums);
    copies_done();
    stored(sums, total, tile, row, queries, width, out);
}
