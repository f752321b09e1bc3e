// Residual sum, normalisation over the width, and adaptive scale and shift in one pass over the rows; and the gradients.
// A warp processes one row at a time in registers; a block of WARPS warps processes chunk_rows rows of one batch element. A
// lane holds VECTORS groups of 8 adjacent elements. X_FLOAT: the residual stream is float32 although the other rows have 16
// bits. CENTRED: subtract the mean (LayerNorm) or not (RMSNorm). BRANCH_MOVED, OUT_MOVED: the rows of branch and out (and
// of their gradients) are in another order than those of x.

#define THREADS (32 * WARPS)
#define VECTORS ((WIDTH + 255) / 256)

#if X_FLOAT
typedef float Stream;
#else
typedef Element Stream;
#endif

// Every field takes 8 bytes. Rows are contiguous, (B, L, WIDTH); gate, shift and scale are (B, WIDTH) with a stride.
struct Params {
    const Stream* x;
    const Element *branch, *gate, *shift, *scale;
    const float* weight;  // (WIDTH)
    Long gate_batch, shift_batch, scale_batch;
    const int *branch_inverse, *out_inverse;  // index of the branch or out row for each row of x, (L) or (B, L)
    Long branch_inverse_batch, out_inverse_batch;
    Stream* x_new;
    Element *normalised, *out;
    float* rstd;  // (B, L)
    const Element* dout;
    const Stream* dx_new;
    Stream* dx;
    Element* dbranch;
    float* sums;                         // (B, chunks, 3, WIDTH): of dout, dout * normalised, dx * branch
    Element *dshift, *dscale, *dgate;    // (B, WIDTH)
    float* dweight;                      // (WIDTH)
    Long num_batch, num_rows, chunk_rows, num_chunks, epsilon;
};

__device__ __forceinline__ void load8(const Element* from, float* to) {
    unpack16(*(const uint4*)from, to);
#if ROW_KIND == 0
    unpack16(*(const uint4*)(from + 4), to + 4);
#endif
}

__device__ __forceinline__ void store8(Element* to, const float* from) {
    *(uint4*)to = pack16(from);
#if ROW_KIND == 0
    *(uint4*)(to + 4) = pack16(from + 4);
#endif
}

#if ROW_KIND != 0
__device__ __forceinline__ void load8(const float* from, float* to) {
    const float4 low = *(const float4*)from, high = *(const float4*)(from + 4);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

__device__ __forceinline__ void store8(float* to, const float* from) {
    *(float4*)to = make_float4(from[0], from[1], from[2], from[3]);
    *(float4*)(to + 4) = make_float4(from[4], from[5], from[6], from[7]);
}
#endif

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
    return value;
}

#define FOR_GROUPS(v, column)                                                                 \
    _Pragma("unroll") for (int v = 0; v < VECTORS; ++v)                                       \
        if (const int column = 8 * (32 * v + (int)(threadIdx.x % 32)); column < WIDTH)

// factor = weight (1 + scale) for 8 columns.
__device__ __forceinline__ void load_factor(const Params& p, Long batch, int column, float* factor) {
    load8(p.scale + batch * p.scale_batch + column, factor);
    float weight[8] = {1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f};
    if (p.weight) load8(p.weight + column, weight);
#pragma unroll
    for (int i = 0; i < 8; ++i) factor[i] = fmaf(weight[i], factor[i], weight[i]);
}

// Offsets of the rows of branch and out that belong to a row of x.
__device__ __forceinline__ Long branch_begin(const Params& p, Long batch, int row) {
#if BRANCH_MOVED
    row = p.branch_inverse[batch * p.branch_inverse_batch + row];
#endif
    return (batch * p.num_rows + row) * WIDTH;
}

__device__ __forceinline__ Long out_begin(const Params& p, Long batch, int row) {
#if OUT_MOVED
    row = p.out_inverse[batch * p.out_inverse_batch + row];
#endif
    return (batch * p.num_rows + row) * WIDTH;
}

extern "C" __global__ void __launch_bounds__(THREADS) norm_forward(const Params p) {
    const Long batch = blockIdx.y;
    const int end = min((blockIdx.x + 1) * p.chunk_rows, p.num_rows);
    for (int row = blockIdx.x * p.chunk_rows + threadIdx.x / 32; row < end; row += WARPS) {
        const Long begin = (batch * p.num_rows + row) * WIDTH;
        const Long from = branch_begin(p, batch, row), to = out_begin(p, batch, row);
        float x[VECTORS][8], sum = 0.f, squares = 0.f;
        FOR_GROUPS(v, column) {
            load8(p.x + begin + column, x[v]);
            if (!p.branch) continue;
            float branch[8], gate[8];
            load8(p.branch + from + column, branch);
            load8(p.gate + batch * p.gate_batch + column, gate);
#pragma unroll
            for (int i = 0; i < 8; ++i) x[v][i] = fmaf(gate[i], branch[i], x[v][i]);
        }
        FOR_GROUPS(v, column) {  // a separate loop, so that no load has to wait for a store
            if (p.branch) store8(p.x_new + begin + column, x[v]);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum += x[v][i];
        }
        const float mean = CENTRED ? warp_sum(sum) / WIDTH : 0.f;
        FOR_GROUPS(v, column) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                x[v][i] -= mean;
                squares = fmaf(x[v][i], x[v][i], squares);
            }
        }
        const float rstd = 1.f / sqrtf(warp_sum(squares) / WIDTH + __uint_as_float((Word)p.epsilon));
        if (threadIdx.x % 32 == 0 && p.rstd) p.rstd[batch * p.num_rows + row] = rstd;
        FOR_GROUPS(v, column) {
#pragma unroll
            for (int i = 0; i < 8; ++i) x[v][i] *= rstd;
            if (p.normalised) store8(p.normalised + begin + column, x[v]);
            float factor[8], shift[8];
            load_factor(p, batch, column, factor);
            load8(p.shift + batch * p.shift_batch + column, shift);
#pragma unroll
            for (int i = 0; i < 8; ++i) shift[i] = fmaf(x[v][i], factor[i], shift[i]);
            store8(p.out + to + column, shift);
        }
    }
}

// Sums the values of all warps of the block in a fixed order.
__device__ __forceinline__ void write_sums(float* shared, const float (&own)[VECTORS][8], float* to) {
    __syncthreads();
    FOR_GROUPS(v, column) {
#pragma unroll
        for (int i = 0; i < 8; ++i) shared[threadIdx.x / 32 * WIDTH + column + i] = own[v][i];
    }
    __syncthreads();
    for (int column = threadIdx.x; column < WIDTH; column += THREADS) {
        float sum = 0.f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) sum += shared[warp * WIDTH + column];
        to[column] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, WIDTH <= 768 ? 3 : 1) norm_backward(const Params p) {
    DYNAMIC_SHARED(memory);
    const Long batch = blockIdx.y;
    const int end = min((blockIdx.x + 1) * p.chunk_rows, p.num_rows);
    float dshift[VECTORS][8], dscale[VECTORS][8], dgate[VECTORS][8];
#pragma unroll
    for (int v = 0; v < VECTORS; ++v)
#pragma unroll
        for (int i = 0; i < 8; ++i) dshift[v][i] = dscale[v][i] = dgate[v][i] = 0.f;
    for (int row = blockIdx.x * p.chunk_rows + threadIdx.x / 32; row < end; row += WARPS) {
        const Long begin = (batch * p.num_rows + row) * WIDTH;
        const Long from = branch_begin(p, batch, row), to = out_begin(p, batch, row);
        float normalised[VECTORS][8], dx[VECTORS][8], dx_new[VECTORS][8], sum = 0.f, product = 0.f;
        const float rstd = p.rstd[batch * p.num_rows + row];
        FOR_GROUPS(v, column) {
            load8(p.dout + to + column, dx[v]);
            load8(p.normalised + begin + column, normalised[v]);
            if (p.dx_new) load8(p.dx_new + begin + column, dx_new[v]);
        }
        FOR_GROUPS(v, column) {
            float factor[8];
            load_factor(p, batch, column, factor);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                dshift[v][i] += dx[v][i];
                dscale[v][i] = fmaf(dx[v][i], normalised[v][i], dscale[v][i]);
                dx[v][i] *= factor[i];
                sum += dx[v][i];
                product = fmaf(dx[v][i], normalised[v][i], product);
            }
        }
        const float mean = CENTRED ? warp_sum(sum) / WIDTH : 0.f, slope = warp_sum(product) / WIDTH;
        FOR_GROUPS(v, column) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                dx[v][i] = rstd * (dx[v][i] - mean - normalised[v][i] * slope);
                if (p.dx_new) dx[v][i] += dx_new[v][i];
            }
            store8(p.dx + begin + column, dx[v]);
            if (!p.branch) continue;
            float branch[8], gate[8];
            load8(p.branch + from + column, branch);
            load8(p.gate + batch * p.gate_batch + column, gate);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                dgate[v][i] = fmaf(dx[v][i], branch[i], dgate[v][i]);
                gate[i] *= dx[v][i];
            }
            store8(p.dbranch + from + column, gate);
        }
    }
    float* sums = p.sums + (batch * p.num_chunks + blockIdx.x) * 3 * WIDTH;
    write_sums((float*)memory, dshift, sums);
    write_sums((float*)memory, dscale, sums + WIDTH);
    if (p.branch) write_sums((float*)memory, dgate, sums + 2 * WIDTH);
}

// Gradients of shift, scale and gate, which all rows of a batch element share, and of the weight. A block processes COLUMNS
// columns of one of the three sums; each thread adds every SLICES-th chunk of one column. For the gradient of the weight, one
// block processes all batch elements.
constexpr int SLICES = THREADS / COLUMNS;

extern "C" __global__ void __launch_bounds__(THREADS) norm_backward_sums(const Params p) {
    DYNAMIC_SHARED(memory);
    float* slices = (float*)memory;  // [SLICES][COLUMNS]
    const int column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, slice = threadIdx.x / COLUMNS, part = blockIdx.z;
    const bool weighted = part == 1 && p.weight;
    if (weighted && blockIdx.y > 0) return;
    const float weight = p.weight ? p.weight[column] : 1.f;
    float dweight = 0.f;
    for (Long batch = blockIdx.y; batch < (weighted ? p.num_batch : blockIdx.y + 1); ++batch) {
        const float* sums = p.sums + (batch * p.num_chunks * 3 + part) * WIDTH + column;
        float sum = 0.f;
#pragma unroll 8
        for (int chunk = slice; chunk < (int)p.num_chunks; chunk += SLICES) sum += sums[(Long)chunk * 3 * WIDTH];
        __syncthreads();
        slices[threadIdx.x] = sum;
        __syncthreads();
        if (slice > 0) continue;
#pragma unroll
        for (int other = 1; other < SLICES; ++other) sum += slices[other * COLUMNS + threadIdx.x];
        const Long at = batch * WIDTH + column;
        (part == 0 ? p.dshift : part == 1 ? p.dscale : p.dgate)[at] = from_float(part == 1 ? weight * sum : sum);
        if (weighted) dweight += fmaf(to_float(p.scale[batch * p.scale_batch + column]), sum, sum);
    }
    if (weighted && slice == 0) p.dweight[column] = dweight;
}
