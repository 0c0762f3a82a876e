// The decoder for one new token a row, as one kernel that stays on the card: all layers, the head and the next token.
//
// A token reads every weight once, so the card's memory is the limit. Each warp has a share of every matrix, contiguous
// in memory, and a ring in shared memory into which the copy engine brings that share ahead of its use. Blocks meet at a
// barrier where one product needs all of another; the copies go on meanwhile, since weights wait for nobody.
//
//   instructions.cuh   what a processor has instructions for
//   layout.cuh         types, sizes, what lies where, the rings, the barrier
//   product.cuh        a matrix times the activations, by all processors
//   residual.cuh       norms, and the residual stream
//   attention.cuh      own and the encoder's keys under one softmax
//   head.cuh           logits, the likeliest id, an id's embedding
//   draw.cuh           an id by chance
//   decode.cu          all of it in its order
//
// They are compiled as one text, in this order, behind the lines of `Plan.defines` (plan.py): LAYERS D F V NQ NKV HD,
// BATCH, HALF (bfloat16, or float32), GRID processors, WARPS of a block, BLOCKS of a stage, STAGES of a ring, SPLITS of
// the keys, the most SLOTS of each matrix, bytes of ACT and numbers of PIECES in shared memory, whether scores and logits
// are CAPPED and LAST_CAPPED, whether to SHOW what is between, whether ids are SAMPLED.
//
// Everything is rounded where the definitions round (decoder.py, attention.py, mlp.py); softmax and its weights stay
// wide. What is elementwise before a product every processor computes for itself. A layer that does not fit into the
// instruction cache takes twice the time, so loops are unrolled where loads need it, and not elsewhere.

__device__ __forceinline__ void all_layers(Processor& p) {
#pragma unroll 1
    for (int layer = 0; layer < LAYERS; ++layer) {
        const T* norms = p.a.norms + (i64)layer * NORMS;
        ask_ahead(p, layer, norms);
        if (layer == 0) residual<HEAD, QKV>(p, 0, norms, norms + PRE, 0);
        else residual<DOWN, QKV>(p, layer, norms - NORMS + POSTFF, norms + PRE, layer - 1);
        product<QKV>(p, layer);
        attention(p, layer, norms);
        join_parts(p, layer);
        product<OUT>(p, layer);
        residual<OUT, GATED>(p, layer, norms + POST, norms + PREFF, layer);
        product<GATED>(p, layer);
        take_active(p);
        product<DOWN>(p, layer);
    }
    const T* last = p.a.norms + (i64)LAYERS * NORMS;
    residual<DOWN, HEAD>(p, LAYERS, last - NORMS + POSTFF, last, LAYERS - 1);
}

__device__ __forceinline__ char* aligned(char* at) { return (char*)(((u64)at + 15) & ~(u64)15); }

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode(const __grid_constant__ Arguments a) {
    MEMORY;
    const int warp = thread() / 32;
    char* rings = memory;
    u64* bars = (u64*)(rings + WARPS * STAGES * BLOCKS * BLOCK_BYTES);
    Route* routes = (Route*)(bars + WARPS * STAGES);
    Layer* layers = (Layer*)(routes + WARPS * MATRICES);
    float* pieces = (float*)aligned((char*)(layers + LAYERS));
    float* reduced = pieces + PIECES;
    float* x = reduced + 2 * WARPS;
    T* vectors = (T*)(x + BATCH * D);
    char* act = aligned((char*)(vectors + 2 * D));
    int* share = (int*)(act + ACT);
    int* leaders = share + MATRICES * (WARPS + 1);
    int* chosen = leaders + HEAD * WARPS * 2;
    int* running = chosen + BATCH;
    unsigned char* parts = (unsigned char*)(running + BATCH);
    for (int i = thread(); i < MATRICES * (WARPS + 1); i += THREADS) {
        const int m = i / (WARPS + 1), w = i % (WARPS + 1);
        share[i] = a.shares[m * (GRID * WARPS + 1) + processor() * WARPS + w];
    }
    for (int i = thread(); i < PARTS; i += THREADS) parts[i] = a.parts[i];
    for (int i = thread(); i < LAYERS; i += THREADS) layers[i] = Layer{a.cross_keys[i], a.cross_values[i], a.windows[i], a.kinds[i]};
    for (int i = thread(); i < BATCH; i += THREADS) { chosen[i] = a.ids[i]; running[i] = a.running[i]; }
    for (int i = thread(); i < WARPS * STAGES; i += THREADS) bar_init(bars + i);
    made_ready();
    together();
    for (int i = thread(); i < WARPS * 2; i += THREADS) {
        leaders[QKV * WARPS * 2 + i] = leader_of<QKV>(a, share, i / 2, i % 2);
        leaders[OUT * WARPS * 2 + i] = leader_of<OUT>(a, share, i / 2, i % 2);
        leaders[GATED * WARPS * 2 + i] = leader_of<GATED>(a, share, i / 2, i % 2);
        leaders[DOWN * WARPS * 2 + i] = leader_of<DOWN>(a, share, i / 2, i % 2);
    }
    for (int i = thread(); i < WARPS * MATRICES; i += THREADS) {
        const int m = i % MATRICES, *edge = share + m * (WARPS + 1) + i / MATRICES;
        const char* from = m == HEAD ? a.head : a.weights + first_block(0, m) * BLOCK_BYTES;
        routes[i] = Route{from + (i64)edge[0] * BLOCK_BYTES, edge[1] - edge[0]};
    }
    together();
    Processor p = {a, layers, rings + warp * STAGES * BLOCKS * BLOCK_BYTES, bars + warp * STAGES, routes + warp * MATRICES, share, leaders, parts, pieces, reduced,
                   x, vectors, act, {-1, LAYERS - 1, a.with_head ? HEAD : DOWN, 0, 0, nullptr}, 0, 0, warp, thread() % 32, 0, 0, 0, 0};
#pragma unroll 1
    for (int i = 0; i < STAGES; ++i) fetch(p, i);
    int made = 0;
#pragma unroll 1
    for (; p.token < a.tokens; ++p.token) {
        embed(p, chosen);
        all_layers(p);
        ++made;
        if (!a.with_head) continue;
        head(p);
        if (!(SAMPLED ? draw(p, chosen, running) : choose(p, chosen, running))) break;
    }
    while (p.ahead) { wait(p); passed(p); }  // copies that were ordered in vain
    if (processor() == 0 && thread() == 0) a.met[2] = made;
    if (processor() == 0 && thread() < BATCH) a.running[thread()] = running[thread()];
}
