// What flash.cu and the files behind it have no C++ for, on a CPU. Include it before them, behind cuda_on_cpu.h.
//
// A copy is made at once or when it is waited for, by chance. What the matrix units of Hopper are told is done, with LATE,
// some time after it is waited for, and else at once. A result that depends on that has a missing wait, or something
// writes to what they still read.
#include <type_traits>
struct bf16;
struct f16;

const int AWRY = 16;  // bytes: a card promises no more than that shared memory begins at a multiple of them
static inline unsigned char* shared_memory() { return (unsigned char*)emu::shared() + AWRY; }
static inline unsigned shared_place(const void* x) { return (unsigned)((const char*)x - emu::shared()); }
static inline void copy_16(void* to, const void* from, bool there) {
    if ((intptr_t)to % 16 || (there && (intptr_t)from % 16)) { fprintf(stderr, "emu: a copy is not aligned\n"); abort(); }
    if (emu::random() % 2) emu_cp_async_16(to, from, there ? 16 : 0);
    else if (there) memcpy(to, from, 16);
    else memset(to, 0, 16);
}
static inline void copy_16_if(bool wanted, void* to, const void* from, bool there) { if (wanted) copy_16(to, from, there); }
static inline void copies_done() { emu_cp_async_commit(); emu_cp_async_wait(0); }
static inline void load_4(unsigned* to, const void* row) { emu_ldmatrix(to, row, 4, false); }
static inline void load_4_turned(unsigned* to, const void* row) { emu_ldmatrix(to, row, 4, true); }
static inline float power_of_2(float x) { return exp2f(x); }
template <typename T> static inline float number(T, unsigned short bits) {
    return std::is_same<T, bf16>::value ? emu_bf16(bits) : emu_f16(bits);
}
template <typename T> static inline unsigned short narrowed(T, float x) {
    if (std::is_same<T, bf16>::value) {
        const unsigned bits = __float_as_uint(x);
        return (bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40 : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    }
    const _Float16 half = (_Float16)x;
    unsigned short bits;
    memcpy(&bits, &half, 2);
    return bits;
}
template <typename T> static inline unsigned pair(T t, float low, float high) {
    return narrowed(t, low) | (unsigned)narrowed(t, high) << 16;
}
template <typename T> static inline void multiply(T, float* sum, const unsigned* a, const unsigned* b) {
    emu_mma_16816<std::is_same<T, bf16>::value>(sum, a, b, sum);
}

// Hopper's
template <int N> struct Size {};
template <typename All> static inline void hold(All&) {}
static inline void multiplying() {}
static inline void queued() {}
static inline void shown_to_units() {}
static std::map<std::pair<void*, int>, int> signalled;
static inline void await(int barrier) {
    emu_named_barrier(barrier, 256);
    signalled[{emu::now->block, barrier}] = 0;
}
static inline void signal(int barrier) {
    emu::Meeting& m = emu::now->block->named[barrier];
    emu::idle = 0;
    int& signals = signalled[{emu::now->block, barrier}];  // since it last let anyone through
    if (++signals > 128) { fprintf(stderr, "emu: a barrier was signalled twice before it let anyone through\n"); abort(); }
    if (++m.arrived == 256) { m.arrived = 0; m.gen++; }
}
static std::map<void*, std::vector<std::function<void()>>> told;  // by thread
static inline void tell(std::function<void()> work) {
#ifdef LATE
    told[emu::now].push_back(work);
#else
    work();
#endif
}
template <int LEFT> static inline void multiplied() {
    static_assert(LEFT == 0, "all of it");
    std::vector<std::function<void()>> all;
    all.swap(told[emu::now]);
#ifdef LATE
    for (unsigned turns = emu::random() % 64; turns; --turns) emu::yield();  // others go on meanwhile
#endif
    for (auto& work : all) work();
}
// Number k, n of a factor that a descriptor tells of; `along`: numbers lie one after the other along k, else along n.
static inline unsigned short at(long long descriptor, bool along, int k, int n) {
    const unsigned start = (descriptor & 0x3fff) << 4, block = (descriptor >> 16 & 0x3fff) << 4;
    const unsigned eight = (descriptor >> 32 & 0x3fff) << 4, kind = (unsigned long long)descriptor >> 62;
    if (kind != 1 && kind != 3) { fprintf(stderr, "emu: no such order of pieces\n"); abort(); }
    const unsigned row = kind == 1 ? 128 : 32, numbers = row / 2, mixed = row / 16 - 1;
    const unsigned off = along ? n % 8 * row + n / 8 * eight + k * 2
                               : n % numbers * 2 + n / numbers * block + k / 8 * eight + k % 8 * row;
    const unsigned place = start + off, shift = 4 + __builtin_ctz(8);
    return *(unsigned short*)(emu::shared() + (place ^ (place >> shift & mixed) << 4));
}
template <typename T, int N> static inline void score(T t, Size<N>, float* d, long long a, long long b, int onto) {
    tell([=] {
        const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
        for (int i = 0; i < N / 2; ++i) {
            const int r = row + i % 4 / 2 * 8, c = i / 4 * 8 + column + i % 2;
            float sum = onto ? d[i] : 0;
            for (int k = 0; k < 16; ++k) sum += number(t, at(a, true, k, r)) * number(t, at(b, true, k, c));
            d[i] = sum;
        }
    });
}
template <typename T, int N> static inline void weigh(T t, Size<N>, float* d, const unsigned* a, long long b) {
    tell([=] {
        struct Row { unsigned a[4]; } mine, all[32];
        memcpy(&mine, a, sizeof mine);
        const Row* shown = emu::exchange(mine);
        for (int lane = 0; lane < 32; ++lane) all[lane] = emu::at(shown, lane);
        const int group = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
        for (int i = 0; i < N / 2; ++i) {
            const int c = i / 4 * 8 + column + i % 2;
            float sum = d[i];
            for (int k = 0; k < 16; ++k) {
                const unsigned word = all[group * 4 + k % 8 / 2].a[i % 4 / 2 + k / 8 * 2];
                sum += number(t, k % 2 ? word >> 16 : word & 0xffff) * number(t, at(b, false, k, c));
            }
            d[i] = sum;
        }
    });
}
