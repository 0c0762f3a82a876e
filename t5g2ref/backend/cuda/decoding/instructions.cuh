// What a processor has instructions for; on the CPU, what stands for them (tests/support/cuda_on_cpu.h).

#ifdef EMULATED
#define MEMORY char* memory = emu::shared()
#else
typedef unsigned short u16;
#define MEMORY extern __shared__ __align__(1024) char memory[]
#endif
typedef long long i64;
typedef unsigned long long u64;

#ifdef EMULATED
static inline void bar_init(void* bar) { emu_bar_init(bar, 1); }
static inline void bar_expect(void* bar, unsigned bytes) { emu_bar_expect(bar, bytes); }
static inline bool bar_passed(void* bar, unsigned parity) { emu::yield(); return emu_bar_passed(bar, parity); }
static inline void together() { emu_named_barrier(1, WARPS * 32); }
static inline void ask_cache(const void* from, unsigned bytes) { emu_bulk_prefetch(from, bytes); }
static inline void bring(void* to, const void* from, unsigned bytes, void* bar) { emu_bulk(to, from, bytes, bar); }
static inline void made_ready() {}
static inline void mma(float* d, const unsigned* a, const unsigned* b) { emu_mma_bf16(d, a, b, d); }
static inline float fresh(const float* p) { return *p; }
static inline double fresh(const double* p) { return *p; }
static inline uint4 fresh(const uint4* p) { return *p; }
static inline int fresh(const int* p) { return *p; }
static inline float fresh(const unsigned short* p) { return __uint_as_float((unsigned)*p << 16); }
static inline void arrive(unsigned* p) { ++*p; }
static inline unsigned arrived(const unsigned* p) { emu::yield(); return *p; }
#else
__device__ __forceinline__ unsigned at(const void* p) {
    unsigned x;
    asm("{ .reg .u64 y; cvta.to.shared.u64 y, %1; cvt.u32.u64 %0, y; }" : "=r"(x) : "l"(p));
    return x;
}
__device__ __forceinline__ void bar_init(void* bar) { asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at(bar))); }
__device__ __forceinline__ void bar_expect(void* bar, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at(bar)), "r"(bytes) : "memory");
}
__device__ __forceinline__ bool bar_passed(void* bar, unsigned parity) {
    unsigned passed;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(passed) : "r"(at(bar)), "r"(parity) : "memory");
    return passed;
}
__device__ __forceinline__ void together() { asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory"); }  // all who compute
__device__ __forceinline__ void ask_cache(const void* from, unsigned bytes) {  // into the second-level cache
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void bring(void* to, const void* from, unsigned bytes, void* bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(at(to)),
                 "l"(from), "r"(bytes), "r"(at(bar)) : "memory");
}
__device__ __forceinline__ void made_ready() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void mma(float* d, const unsigned* a, const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// What other processors wrote in this launch: never from the first-level cache.
__device__ __forceinline__ float fresh(const float* p) {
    float x;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(p));
    return x;
}
__device__ __forceinline__ double fresh(const double* p) {
    double x;
    asm volatile("ld.global.cg.f64 %0, [%1];" : "=d"(x) : "l"(p));
    return x;
}
__device__ __forceinline__ int fresh(const int* p) {
    int x;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(x) : "l"(p));
    return x;
}
__device__ __forceinline__ float fresh(const u16* p) {
    u16 x;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(x) : "l"(p));
    return __uint_as_float((unsigned)x << 16);
}
__device__ __forceinline__ uint4 fresh(const uint4* p) {
    uint4 x;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
    return x;
}
__device__ __forceinline__ void arrive(unsigned* p) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory"); }
__device__ __forceinline__ unsigned arrived(const unsigned* p) {
    unsigned x;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
    return x;
}
#endif

__device__ __forceinline__ void bar_wait(void* bar, unsigned parity) { while (!bar_passed(bar, parity)) {} }
