// The sums of sums.py for one tap on a device: each element is read once, and one of two launches does what a dozen of
// array operations did.
//
// Row 0 is the truth, row 1 the peer, then the controls and the patterns, each (tokens, features) in a type of its own.
// An error is row − truth; scaled, it is in units of the bound. Everything is float64. ROWS, ERRORS and THREADS stand in
// sums_at_once.py, which puts them in front.

typedef long long i64;
const int TILE = THREADS / 2;

// Element i of an array of double, float, bfloat16 or float16: types 0 to 3.
__device__ inline double element(const void* at, int type, i64 i) {
    if (type == 0) return ((const double*)at)[i];
    if (type == 1) return ((const float*)at)[i];
    unsigned bits = ((const unsigned short*)at)[i];
    if (type == 2) return __uint_as_float(bits << 16);
    int exponent = bits >> 10 & 31, digits = bits & 1023;
    double size = exponent == 31 ? (double)__uint_as_float(0x7f800000u | digits << 13)
                                 : ldexp(double(exponent ? digits | 1024 : digits), (exponent ? exponent : 1) - 25);
    return bits >> 15 ? -size : size;
}
__device__ inline double larger(double a, double b) { return b > a || b != b ? b : a; }  // a NaN is the largest
__device__ inline i64 lesser(i64 a, i64 b) { return b < a ? b : a; }
__device__ inline double sign(double x) { return x != x ? x : double((x > 0) - (x < 0)); }

// Columns of sums by token, in order: ‖truth‖²; of each error its square, then its largest scaled size, its sums with
// the truth's sign and without, and its scaled square; of each pair of rows the product of what is scaled.
// Block (token, unit): a unit is one of `pieces` of one of the parts of a token, up to `length` elements of `width`.
extern "C" __global__ void token_sums(
    const void* r0, const void* r1, const void* r2, const void* r3, const void* r4, const void* r5, const void* r6,
    const void* r7, const void* r8, const void* r9, const void* r10, const void* r11, const void* r12, const void* r13,
    const void* r14, const void* r15, const void* bound, i64 types, int rows, int errors, int pairs, i64 tokens,
    i64 features, i64 width, int pieces, i64 length, double smallest, double* sums) {
    __shared__ double truth[TILE], apart[ERRORS][TILE + 1], scaled[ROWS - 1][TILE + 1], halves[2][TILE];
    const void* all[ROWS] = {r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15};
    const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, half = tid / TILE, pair = tid % TILE;
    const i64 token = blockIdx.x, part = blockIdx.y / pieces, first = part * width + (blockIdx.y % pieces) * length;
    const i64 last = lesser((part + 1) * width, first + length);
    int one = 0, other = pair;  // the rows of this thread's pair, one ≤ other
    while (pair < pairs && other >= rows - 1 - one) other -= rows - 1 - one, ++one;
    other += one;
    double norm = 0, square = 0, top = 0, gain = 0, shift = 0, scaled_square = 0, product = 0;
    for (i64 start = first; start < last; start += TILE) {
        const int count = (int)lesser(TILE, last - start);
        for (int i = tid; i < rows * TILE; i += THREADS) {
            const int row = i / TILE, f = i % TILE;
            if (f >= count) continue;
            const i64 at = token * features + start + f;
            const double true_one = element(all[0], types & 3, at);
            if (row == 0) { truth[f] = true_one; continue; }
            const double error = element(all[row], types >> 2 * row & 3, at) - true_one;
            if (row <= errors) apart[row - 1][f] = error;
            scaled[row - 1][f] =
                bound ? error * (1.0 / (fabs(element(bound, types >> 2 * ROWS & 3, at)) + smallest)) : 0.0;
        }
        __syncthreads();
        if (warp < errors)
            for (int f = lane; f < count; f += 32) {
                const double error = apart[warp][f], size = scaled[warp][f];
                norm += truth[f] * truth[f];
                square += error * error;
                top = larger(top, fabs(size));
                gain += size * sign(truth[f]);
                shift += size;
                scaled_square += size * size;
            }
        if (pair < pairs)
            for (int f = half * (TILE / 2); f < lesser(count, (half + 1) * (TILE / 2)); ++f)
                product += scaled[one][f] * scaled[other][f];
        __syncthreads();
    }
    for (int step = 16; step; step >>= 1) {
        norm += __shfl_xor_sync(0xffffffffu, norm, step);
        square += __shfl_xor_sync(0xffffffffu, square, step);
        top = larger(top, __shfl_xor_sync(0xffffffffu, top, step));
        gain += __shfl_xor_sync(0xffffffffu, gain, step);
        shift += __shfl_xor_sync(0xffffffffu, shift, step);
        scaled_square += __shfl_xor_sync(0xffffffffu, scaled_square, step);
    }
    double* out = sums + (i64)blockIdx.y * (1 + 5 * errors + pairs) * tokens + token;
    if (tid == 0) out[0] = norm;
    if (lane == 0 && warp < errors) {
        out[(1 + warp) * tokens] = square;
        out[(1 + errors + warp) * tokens] = top;
        out[(1 + 2 * errors + warp) * tokens] = gain;
        out[(1 + 3 * errors + warp) * tokens] = shift;
        out[(1 + 4 * errors + warp) * tokens] = scaled_square;
    }
    halves[half][pair] = product;
    __syncthreads();
    if (half == 0 && pair < pairs) out[(1 + 5 * errors + pair) * tokens] = halves[0][pair] + halves[1][pair];
}

// All units of a token together, in the columns that `_named` reads: norms are no squares, products are of (row, row,
// part). A thread a number.
extern "C" __global__ void token_totals(const double* sums, int rows, int errors, int pairs, i64 tokens, int parts,
                                        int pieces, i64 size, double* out) {
    const i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= size) return;
    const i64 token = at % tokens, singles = 1 + 5 * errors, columns = singles + pairs;
    i64 column = at / tokens, first = 0, last = (i64)parts * pieces;
    const bool is_norm = column <= errors, is_top = column > errors && column <= 2 * errors;
    if (column >= singles) {
        const i64 part = (column - singles) % parts, both = (column - singles) / parts;
        const i64 a = both / (rows - 1), b = both % (rows - 1), one = lesser(a, b), other = a + b - one;
        column = singles + one * (rows - 1) - one * (one - 1) / 2 + other - one;
        first = part * pieces;
        last = first + pieces;
    }
    double total = 0;
    for (i64 unit = first; unit < last; ++unit) {
        const double sum = sums[(unit * columns + column) * tokens + token];
        total = is_top ? larger(total, sum) : total + sum;
    }
    out[at] = is_norm ? sqrt(total) : total;
}
