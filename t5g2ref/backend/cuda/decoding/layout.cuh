// Types, sizes, what lies where, the rings and the barrier.
//
//   weights   blocks of 512 bytes, 16 rows by KB columns, in the order in which a warp's lanes take them; a matrix is its
//             rows of blocks, one behind the other; a layer is q·k·v, o, gate·up and down
//   sums      a product's results in float32, [slot][batch row][matrix row]. A row of blocks that several processors
//             share has a slot for each; who reads adds them, always in one order

// The type in memory, and its rounding.
#if HALF
typedef unsigned short T;
__device__ __forceinline__ float widen(T x) { return __uint_as_float((unsigned)x << 16); }
#ifdef EMULATED
static inline T narrow(float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (T)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#else
__device__ __forceinline__ T narrow(float x) {  // to nearest even; NaN stays NaN
    T y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#endif
#else
typedef float T;
__device__ __forceinline__ float widen(T x) { return x; }
__device__ __forceinline__ T narrow(float x) { return x; }
#endif
__device__ __forceinline__ float rounded(float x) { return widen(narrow(x)); }

const int KB = HALF ? 16 : 8, THREADS = WARPS * 32, GROUP = NQ / NKV, BLOCK_BYTES = 512;
enum { QKV, OUT, GATED, DOWN, HEAD, MATRICES };  // a row of blocks of GATED: 8 rows of gate, and the same of up
template <int M> struct Matrix {
    static const int rows = M == QKV ? (NQ + 2 * NKV) * HD : M == GATED ? (F + 7) / 8 * 16 : M == HEAD ? V : D;
    static const int depth = M == OUT ? NQ * HD : M == DOWN ? F : D;
    static const int across = (depth + KB - 1) / KB, down = (rows + 15) / 16;  // in blocks
    static const i64 blocks = (i64)across * down;
};
const int DOWN_QKV = Matrix<QKV>::down, DOWN_OUT = Matrix<OUT>::down, DOWN_GATED = Matrix<GATED>::down;
const i64 LAYER = Matrix<QKV>::blocks + Matrix<OUT>::blocks + Matrix<GATED>::blocks + Matrix<DOWN>::blocks;
__device__ __forceinline__ i64 first_block(int layer, int matrix) {
    i64 at = layer * LAYER;
    if (matrix > QKV) at += Matrix<QKV>::blocks;
    if (matrix > OUT) at += Matrix<OUT>::blocks;
    if (matrix > GATED) at += Matrix<GATED>::blocks;
    return at;
}
template <int M> __device__ __forceinline__ int parts_at(int row) {  // where the number of slots of a matrix row stands
    return (M > QKV ? DOWN_QKV : 0) + (M > OUT ? DOWN_OUT : 0) + (M > GATED ? DOWN_GATED : 0) + row / 16;
}
const int PARTS = DOWN_QKV + DOWN_OUT + DOWN_GATED + Matrix<DOWN>::down, ACTIVE = Matrix<DOWN>::across * KB;

// The vectors of a layer, side by side, and what a layer shows.
enum { PRE = 0, QNORM = D, KNORM = QNORM + HD, POST = KNORM + HD, PREFF = POST + D, POSTFF = PREFF + D, NORMS = POSTFF + D };
enum {
    S_PRE = 0, S_Q = S_PRE + D, S_K = S_Q + NQ * HD, S_V = S_K + NKV * HD, S_QN = S_V + NKV * HD, S_KN = S_QN + NQ * HD,
    S_QR = S_KN + NKV * HD, S_KR = S_QR + NQ * HD, S_ATT = S_KR + NKV * HD, S_O = S_ATT + NQ * HD, S_POST = S_O + D,
    S_RES = S_POST + D, S_PREFF = S_RES + D, S_GATE = S_PREFF + D, S_UP = S_GATE + F, S_ACT = S_UP + F,
    S_PROD = S_ACT + F, S_DOWN = S_PROD + F, S_POSTFF = S_DOWN + D, S_X = S_POSTFF + D, SHOWN = S_X + D
};

struct Arguments {
    const char* weights;           // blocks of the layers
    const char* head;              // blocks of the table
    const int* shares;             // [matrix][GRID · WARPS + 1]: the first block of each warp
    const int* slots;              // [matrix][GRID]: the slot of a processor's first row of blocks
    const unsigned char* parts;    // [PARTS]: how many slots a row of blocks has, of the four matrices of a layer
    const T* norms;                // [LAYERS][NORMS], then [D]
    const T* table;                // [V][D]
    const T* eoi;                  // [D]
    const T* cosines;              // [kind][token][row or 1][HD]
    const T* sines;
    T* own_keys;                   // [LAYERS][BATCH][NKV][room][HD]
    T* own_values;
    const T* const* cross_keys;    // [LAYERS] of [BATCH][NKV][source][HD]
    const T* const* cross_values;
    const unsigned char* own_valid;    // [BATCH][room]
    const unsigned char* cross_valid;  // [BATCH][source]
    const int* windows;            // [LAYERS]: keys that a query sees behind it and itself
    const int* kinds;              // [LAYERS]: which cosines
    const T* embedded;             // [BATCH][D] of the first token; null: those of `ids`
    int* ids;                      // [tokens + 1][BATCH]: the first, then what follows
    int* running;                  // [BATCH]
    const int* ends;               // ids that end a row
    T* active;                     // [BATCH][ACTIVE]: gelu(gate) · up, zeros behind F
    float* sums;                   // of q·k·v, o and down, SLOTS · BATCH · rows each
    float* attended;               // [BATCH][NQ][SPLITS][PARTIAL]: weighed values, largest score, sum
    float* best;                   // [BATCH][GRID][2]: a processor's largest logit and its id, which is an int
    T* logits;                     // [tokens][BATCH][V] or null
    T* hidden;                     // [tokens][BATCH][D] or null
    T* shown;                      // [LAYERS][SHOWN · BATCH] or null; of one token
    unsigned* met;                 // [0] the barrier, [1] logits that are no number, [2] tokens made
    i64 kind_stride, token_stride, row_stride;  // of the cosines
    int length, room, source, tokens, end_count, pad, eoi_id, with_head;
    float embed_scale, scale, cap, final_cap, eps;
    // Where ids are drawn:
    const double* uniform;         // [tokens][BATCH], in [0, 1)
    double* tally;                 // [2][BATCH][GRID][BINS]: sums of a processor, see draw.cuh
    double* log_probs;             // [tokens][BATCH]
    int* drawn;                    // [BATCH]
    double top_p;                  // 1: all
    int top_k;                     // 0: all
    float temperature, min_p;
};

// A warp's way through its shares, as its copies are ordered: layer by layer, then the head, then the next token.
struct Order { int token, layer, matrix, at, end; const char* from; };
struct Route { const char* from; int blocks; };  // a warp's share of a matrix: where it is, in layer 0, and how much

struct Layer { const T *cross_keys, *cross_values; int window, kind; };

struct Processor {
    const Arguments& a;
    const Layer* layers;          // [LAYERS]
    char* ring;                   // of this warp
    u64* bars;                    // of this warp's stages
    const Route* routes;          // [matrix] of this warp
    int* share;                   // [matrix][WARPS + 1]
    const int* leaders;           // [layer matrix][WARPS][2]: of what follows from pieces, see product.cuh
    unsigned char* parts;
    float* pieces;                // [WARPS][2][16][BATCH]
    float* reduced;               // [2][WARPS]
    float* x;                     // [BATCH][D], the residual stream
    T* vectors;                   // [2][D], weights of two norms
    char* act;                    // what the next product is multiplied with, in the order of its lanes; or scratch
    Order order;                  // of the next copy
    int stage, parity, warp, lane, flip, token;
    unsigned meeting, ahead;
};

__device__ __forceinline__ int thread() { return (int)threadIdx.x; }
__device__ __forceinline__ int processor() { return (int)blockIdx.x; }

// Order the next copy, of a share that is not empty, into a stage that is free; nothing behind the last token.
__device__ __forceinline__ void fetch(Processor& p, int stage) {
    Order& o = p.order;
    while (o.at == o.end) {
        if (o.token >= p.a.tokens) return;
        if (++o.matrix == (p.a.with_head && o.layer == LAYERS - 1 ? MATRICES : HEAD)) {
            o.matrix = QKV;
            if (++o.layer == LAYERS) {
                o.layer = 0;
                if (++o.token >= p.a.tokens) return;
            }
        }
        const Route route = p.routes[o.matrix];
        o.at = 0;
        o.end = route.blocks;
        o.from = route.from + (o.matrix == HEAD ? 0 : o.layer * LAYER * BLOCK_BYTES);
    }
    const int count = o.end - o.at < BLOCKS ? o.end - o.at : BLOCKS;
    if (p.lane == 0) {
        bar_expect(p.bars + stage, count * BLOCK_BYTES);
        bring(p.ring + stage * BLOCKS * BLOCK_BYTES, o.from + o.at * BLOCK_BYTES, count * BLOCK_BYTES, p.bars + stage);
    }
    o.at += count;
    ++p.ahead;
}

__device__ __forceinline__ void wait(Processor& p) { bar_wait(p.bars + p.stage, p.parity); }
__device__ __forceinline__ void passed(Processor& p) {
    --p.ahead;
    if (++p.stage == STAGES) { p.stage = 0; p.parity ^= 1; }
}

// All processors meet; what each wrote before, each may read after.
__device__ __forceinline__ void meet(Processor& p) {
    together();
    p.meeting += GRID;
    if (thread() == 0) {  // `arrive` releases what all threads here wrote before `together`
        arrive(p.a.met);
        while (arrived(p.a.met) < p.meeting) {}
    }
    together();
}
