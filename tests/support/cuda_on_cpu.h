// CUDA kernels on a CPU, one fiber a thread, to find errors before a card does. g++ -std=c++17 -DEMULATED
//   emu::launch(grid, block, dynamic_shared_bytes, cooperative, [&]{ kernel(args...); });
// Not cooperative: blocks run one after the other, and `__shared__` arrays in functions are static. Cooperative: all
// blocks at once; then only dynamic shared memory, emu::shared(), may be used. Wrong results follow from a missing
// wait: cp_async copies happen at the wait, bulk copies at some later time.
#pragma once
#undef _FORTIFY_SOURCE  // which takes another stack for an error
#include <setjmp.h>
#include <ucontext.h>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __constant__ static

struct emu_dim3 { unsigned x = 1, y = 1, z = 1; emu_dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {} };
typedef emu_dim3 dim3;
struct uint4 { unsigned x, y, z, w; };
struct uint2 { unsigned x, y; };
struct int4 { int x, y, z, w; };
struct int2 { int x, y; };
struct float4 { float x, y, z, w; };
struct float2 { float x, y; };
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

namespace emu {
struct Copy { char* to; const char* from; unsigned bytes, zeros; };
struct Meeting { int arrived = 0; unsigned long gen = 0; };
struct Warp { Meeting meet; int lanes; alignas(16) char buffer[2][32][64]; };
struct Block { dim3 at; Meeting all; std::map<int, Meeting> named; std::vector<Warp> warps; std::vector<char> memory; };
struct Fiber { ucontext_t context; jmp_buf at; bool begun = false; std::vector<char> stack; dim3 thread; unsigned flat; Block* block; bool done = false; const void* waits = nullptr;
               std::vector<Copy> open; std::deque<std::vector<Copy>> groups; };
struct Bar { int count = 0, pending = 0; long tx = 0; unsigned phase = 0; };
struct Bulk { char* to; const char* from; unsigned bytes; void* bar; };
inline Fiber* now; inline jmp_buf main_at; inline dim3 grid_dim, block_dim; inline std::function<void()> body;
inline std::unordered_map<void*, Bar> bars; inline std::vector<Bulk> bulks; inline unsigned seed = 1, idle = 0;
inline bool lags = false;  // whether blocks get behind each other, one for a while and then another: a race shows
inline unsigned random() { seed = seed * 1664525u + 1013904223u; return seed >> 8; }
// A fiber begins by its context and goes on by a jump, which asks nothing of the system: swapcontext took most of the time.
inline void yield() { if (!_setjmp(now->at)) _longjmp(main_at, 1); }
__attribute__((noinline)) inline void go_on() {
    if (_setjmp(main_at)) return;
    if (now->begun) _longjmp(now->at, 1);
    now->begun = true;
    setcontext(&now->context);
}
inline void trampoline() { body(); now->done = true; for (;;) yield(); }
inline void meet(Meeting& m, int count) {
    unsigned long mine = m.gen; idle = 0;
    if (++m.arrived == count) { m.arrived = 0; m.gen++; } else { now->waits = &m; while (m.gen == mine) yield(); now->waits = nullptr; }
}
inline char* shared() { char* p = now->block->memory.data(); return p + (-(intptr_t)p & 1023); }
inline Warp& warp() { return now->block->warps[now->flat / 32]; }
inline int lane() { return now->flat % 32; }
template <typename T> inline const T* exchange(const T& mine) {  // all lanes' values, 64 bytes apart: use at()
    static_assert(sizeof(T) <= 64, "64 bytes a lane");
    Warp& w = warp(); char* slots = (char*)w.buffer[w.meet.gen & 1];
    memcpy(slots + 64 * lane(), &mine, sizeof(T));
    meet(w.meet, w.lanes);
    return (const T*)slots;
}
template <typename T> inline const T& at(const T* all, int i) { return *(const T*)((const char*)all + 64 * i); }
inline void tick(Bar& b) { if (b.pending == 0 && b.tx == 0) { b.phase ^= 1; b.pending = b.count; } }
inline void do_bulk(size_t i) {
    Bulk c = bulks[i]; bulks.erase(bulks.begin() + i);
    memcpy(c.to, c.from, c.bytes); Bar& b = bars.at(c.bar); b.tx -= c.bytes; idle = 0; tick(b);
}
inline void launch(dim3 grid, dim3 block, size_t dynamic, bool cooperative, std::function<void()> kernel) {
    body = kernel; grid_dim = grid; block_dim = block; bars.clear(); bulks.clear();
    unsigned threads = block.x * block.y * block.z, blocks = grid.x * grid.y * grid.z, step = cooperative ? blocks : 1;
    for (unsigned first = 0; first < blocks; first += step) {
        std::vector<Block> live(step); std::deque<Fiber> fibers;
        for (unsigned b = 0; b < step; b++) {
            Block& l = live[b]; unsigned i = first + b; l.at = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
            l.warps.resize((threads + 31) / 32); l.memory.assign(dynamic + 1024, 0x7f);
            for (unsigned w = 0; w < l.warps.size(); w++) l.warps[w].lanes = threads - 32 * w < 32 ? threads - 32 * w : 32;
            for (unsigned t = 0; t < threads; t++) {
                fibers.emplace_back(); Fiber& f = fibers.back();
                f.thread = dim3(t % block.x, t / block.x % block.y, t / block.x / block.y); f.flat = t; f.block = &l;
                f.stack.resize(1 << 16); getcontext(&f.context); f.context.uc_stack.ss_sp = f.stack.data();
                f.context.uc_stack.ss_size = f.stack.size(); f.context.uc_link = nullptr; makecontext(&f.context, trampoline, 0);
            }
        }
        size_t left = fibers.size(); idle = 0;
        const Block* late = nullptr;
        while (left) {
            left = 0;
            if (lags && random() % 16 == 0) late = random() % 2 ? &live[random() % step] : nullptr;
            for (Fiber& f : fibers) if (!f.done) { if (f.block != late) { now = &f; go_on(); } left += !f.done; }
            while (!bulks.empty() && random() % 3 == 0) do_bulk(random() % bulks.size());
            if (++idle > 100000) { fprintf(stderr, "emu: deadlock, %zu threads wait, %zu bulks\n", left, bulks.size());
                for (Fiber& f : fibers) if (!f.done && f.flat % 32 == 0) fprintf(stderr, "block %u warp %u waits %s\n", f.block->at.x, f.flat / 32, f.waits == &f.block->all ? "all" : f.waits == &f.block->warps[f.flat / 32].meet ? "warp" : f.waits ? "named" : "spins");
                abort(); }
        }
        for (Block& l : live)
            for (char* p = l.memory.data() + (-(intptr_t)l.memory.data() & 1023) + dynamic; p < l.memory.data() + l.memory.size(); ++p)
                if (*p != 0x7f) { fprintf(stderr, "emu: a block wrote behind its shared memory\n"); abort(); }
    }
}
// As `launch`, not cooperative, with a pointer to each argument, as CUDA's own launch has them.
template <typename... A, size_t... I> inline void call(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
    kernel(*(A*)values[I]...);
}
template <typename... A> inline void launch_with(void (*kernel)(A...), const int* grid, int threads, long dynamic, void** values) {
    launch(dim3(grid[0], grid[1], grid[2]), dim3(threads), dynamic, false,
           [=] { call(kernel, values, std::index_sequence_for<A...>()); });
}
}  // namespace emu
#define threadIdx (emu::now->thread)
#define blockIdx (emu::now->block->at)
#define blockDim (emu::block_dim)
#define gridDim (emu::grid_dim)
static inline void __syncthreads() { emu::meet(emu::now->block->all, (int)(blockDim.x * blockDim.y * blockDim.z)); }
static inline void emu_named_barrier(int id, int count) { emu::meet(emu::now->block->named[id], count); }
static inline void __syncwarp(unsigned = ~0u) { emu::meet(emu::warp().meet, emu::warp().lanes); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
template <typename T> static inline T __shfl_sync(unsigned, T x, int from) { return emu::at(emu::exchange(x), from & 31); }
template <typename T> static inline T __shfl_xor_sync(unsigned, T x, int mask) { return emu::at(emu::exchange(x), emu::lane() ^ mask); }
template <typename T> static inline T __shfl_down_sync(unsigned, T x, int by) { int l = emu::lane() + by; return emu::at(emu::exchange(x), l > 31 ? emu::lane() : l); }
static inline unsigned __ballot_sync(unsigned, int p) { const int* all = emu::exchange(p); unsigned r = 0; for (int i = 0; i < emu::warp().lanes; i++) r |= (emu::at(all, i) != 0) << i; return r; }
static inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
static inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, !p) == 0; }
template <typename T> static inline T atomicAdd(T* p, T x) { T old = *p; *p += x; return old; }
template <typename T> static inline T atomicExch(T* p, T x) { T old = *p; *p = x; return old; }
template <typename T> static inline T atomicMax(T* p, T x) { T old = *p; if (x > old) *p = x; return old; }
static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
static inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
#define __expf expf
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int __ffs(unsigned x) { return __builtin_ffs((int)x); }
static inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
template <typename T> static inline T __ldg(const T* p) { return *p; }
template <typename T> static inline T __ldcg(const T* p) { return *p; }

// cp.async: copied at the wait. `bytes` of 16 (the rest zeros).
static inline void emu_cp_async_16(void* to, const void* from, unsigned bytes = 16) { emu::now->open.push_back({(char*)to, (const char*)from, bytes, 16 - bytes}); }
static inline void emu_cp_async(void* to, const void* from, unsigned bytes, unsigned size) { emu::now->open.push_back({(char*)to, (const char*)from, bytes, size - bytes}); }
static inline void emu_cp_async_commit() { emu::now->groups.push_back(std::move(emu::now->open)); emu::now->open.clear(); }
static inline void emu_cp_async_wait(int left) {
    auto& g = emu::now->groups;
    while ((int)g.size() > left) { for (auto& c : g.front()) { memcpy(c.to, c.from, c.bytes); memset(c.to + c.bytes, 0, c.zeros); } g.pop_front(); }
}
// mbarrier and bulk copies (cp.async.bulk.shared.global.mbarrier)
static inline void emu_bar_init(void* bar, int count) { emu::Bar b; b.count = b.pending = count; emu::bars[bar] = b; }
static inline void emu_bar_expect(void* bar, unsigned bytes) { auto& b = emu::bars.at(bar); b.tx += bytes; b.pending--; emu::idle = 0; emu::tick(b); }
static inline void emu_bar_arrive(void* bar) { auto& b = emu::bars.at(bar); b.pending--; emu::idle = 0; emu::tick(b); }
static inline bool emu_bar_passed(void* bar, unsigned parity) { return emu::bars.at(bar).phase != parity; }  // yield and ask again
static inline void emu_bulk_prefetch(const void* from, unsigned bytes) {
    if ((intptr_t)from % 16 || bytes % 16) { fprintf(stderr, "emu: a bulk prefetch is not aligned\n"); abort(); }
}
static inline void emu_bulk(void* to, const void* from, unsigned bytes, void* bar) {
    if ((intptr_t)to % 16 || (intptr_t)from % 16 || bytes % 16) { fprintf(stderr, "emu: a bulk copy is not aligned\n"); abort(); }
    emu::bulks.push_back({(char*)to, (const char*)from, bytes, bar});
}
// Matrix units
static inline float emu_bf16(unsigned short x) { return __uint_as_float((unsigned)x << 16); }
static inline float emu_f16(unsigned short h) {
    unsigned s = (h & 0x8000u) << 16, e = h >> 10 & 31, m = h & 1023;
    if (e == 0) { float v = ldexpf((float)m, -24); return s ? -v : v; }
    return __uint_as_float(s | (e == 31 ? 0x7f800000u : (e + 112) << 23) | m << 13);
}
struct emu_ab { unsigned a[4], b[2]; };
template <bool BF16> static inline void emu_mma_16816(float* d, const unsigned* a, const unsigned* b, const float* c) {
    emu_ab mine; memcpy(mine.a, a, 16); memcpy(mine.b, b, 8);
    const emu_ab* all = emu::exchange(mine); int g = emu::lane() / 4, t = emu::lane() % 4; float out[4];
    auto half = [](unsigned word, int k) { unsigned short h = k & 1 ? word >> 16 : word & 0xffff; return BF16 ? emu_bf16(h) : emu_f16(h); };
    for (int i = 0; i < 4; i++) {
        int row = g + (i / 2) * 8, col = 2 * t + (i & 1); float sum = c[i];
        for (int k = 0; k < 16; k++) {
            const emu_ab& la = emu::at(all, (row % 8) * 4 + k % 8 / 2); const emu_ab& lb = emu::at(all, col * 4 + k % 8 / 2);
            sum += half(la.a[row / 8 + 2 * (k / 8)], k) * half(lb.b[k / 8], k);
        }
        out[i] = sum;
    }
    memcpy(d, out, 16);
}
static inline void emu_mma_bf16(float* d, const unsigned* a, const unsigned* b, const float* c) { emu_mma_16816<true>(d, a, b, c); }
static inline void emu_mma_f16(float* d, const unsigned* a, const unsigned* b, const float* c) { emu_mma_16816<false>(d, a, b, c); }
static inline void emu_ldmatrix(unsigned* r, const void* row, int count, bool trans) {  // count 1, 2 or 4
    const void* const* all = (const void* const*)emu::exchange(row); int l = emu::lane();
    auto row_of = [&](int m, int i) { return *(const unsigned short* const*)((const char*)all + 64 * (8 * m + i)); };
    unsigned out[4];
    for (int m = 0; m < count; m++) {
        unsigned short lo, hi;
        if (trans) { lo = row_of(m, 2 * (l % 4))[l / 4]; hi = row_of(m, 2 * (l % 4) + 1)[l / 4]; }
        else { lo = row_of(m, l / 4)[2 * (l % 4)]; hi = row_of(m, l / 4)[2 * (l % 4) + 1]; }
        out[m] = lo | (unsigned)hi << 16;
    }
    memcpy(r, out, 4 * count);
}
