// Residual sum, normalisation over the width, and adaptive scale and shift in one pass over the rows; and the gradients.
// A block processes chunk_rows rows of one batch element. X_FLOAT: the residual stream is float32 although the other rows
// have 16 bits. CENTRED: subtract the mean (LayerNorm) or not (RMSNorm). BRANCH_MOVED, OUT_MOVED: the rows of branch and out
// (and of their gradients) are in another order than those of x. BRANCH_SCALED: each row of branch is multiplied by
// 1 / sqrt(mean square + branch_epsilon), where mean squares are given, as num_squares parts per row.

#if X_FLOAT
typedef float Stream;
typedef float4 StreamFour;
#else
typedef Element Stream;
typedef Four StreamFour;
#endif

// Blocks per multiprocessor, which limit the registers of a thread.
#define FORWARD_RESIDENT (WIDTH <= 768 && ROW_KIND != 0 ? 5 : WIDTH <= 1152 ? 3 : 2)
#define BACKWARD_RESIDENT (WIDTH <= 768 && ROW_KIND != 0 ? 3 : 2)

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
    const float* squares;  // (B, L, num_squares), and their gradient (B, L), which is the same for all parts of a row
    float* dsquares;
    Long num_squares, branch_epsilon;
};

// Index of the row of branch, and offset of the row of out, that belong to a row of x.
__device__ __forceinline__ Long branch_row(const Params& p, Long batch, int row) {
#if BRANCH_MOVED
    row = p.branch_inverse[batch * p.branch_inverse_batch + row];
#endif
    return batch * p.num_rows + row;
}

// A lane's share of the mean square of a row of branch, and the factor of the row. Up to 64 parts are not added before the
// factor is needed, so that a warp does not wait for them earlier.
__device__ __forceinline__ float2 load_squares(const Params& p, Long branch_row) {
    float2 squares = make_float2(0.f, 0.f);
#if BRANCH_SCALED
    const float* from = p.squares + branch_row * p.num_squares;
    const int lane = threadIdx.x % 32, count = (int)p.num_squares;
    if (lane < count) squares.x = from[lane];
    if (lane + 32 < count) squares.y = from[lane + 32];
#pragma unroll 1
    for (int k = lane + 64; k < count; k += 32) squares.x += from[k];
#endif
    return squares;
}

__device__ __forceinline__ float branch_scale(const Params& p, float2 squares) {
    return BRANCH_SCALED ? reciprocal_root(warp_sum(squares.x + squares.y), (Word)p.branch_epsilon) : 1.f;
}

__device__ __forceinline__ Long out_begin(const Params& p, Long batch, int row) {
#if OUT_MOVED
    row = p.out_inverse[batch * p.out_inverse_batch + row];
#endif
    return (batch * p.num_rows + row) * WIDTH;
}

// The vectors of the batch element of this block, which all its rows share, in shared memory: factor = weight (1 + scale).
__device__ __forceinline__ void load_vector(const Element* from, float* to) {
    FOR_COLUMNS(column) {
        float vector[4];
        unpack4(*(const Four*)(from + column), vector);
        store4(to + column, vector);
    }
}

__device__ __forceinline__ void load_factor(const Params& p, Long batch, float* to) {
    FOR_COLUMNS(column) {
        float factor[4], weight[4] = {1.f, 1.f, 1.f, 1.f};
        unpack4(*(const Four*)(p.scale + batch * p.scale_batch + column), factor);
        if (p.weight) unpack4(*(const float4*)(p.weight + column), weight);
#pragma unroll
        for (int i = 0; i < 4; ++i) factor[i] = fmaf(weight[i], factor[i], weight[i]);
        store4(to + column, factor);
    }
}

__device__ __forceinline__ void load_inputs(const Params& p, Long batch, int row, StreamFour (&x)[VECTORS],
                                            Four (&branch)[VECTORS], float2& squares) {
    const Long begin = (batch * p.num_rows + row) * WIDTH, from = branch_row(p, batch, row);
    FOR_GROUPS(v, column) {
        x[v] = *(const StreamFour*)(p.x + begin + column);
        if (p.branch) branch[v] = *(const Four*)(p.branch + from * WIDTH + column);
    }
    squares = load_squares(p, from);
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_RESIDENT) norm_forward(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    float *factors = (float*)memory, *shifts = factors + WIDTH, *gates = shifts + WIDTH;
    const Long batch = blockIdx.y;
    const int end = min((blockIdx.x + 1) * p.chunk_rows, p.num_rows);
    int row = blockIdx.x * p.chunk_rows + threadIdx.x / 32;
    StreamFour next_x[VECTORS];
    Four next_branch[VECTORS];
    float2 next_squares;
    if (row < end) load_inputs(p, batch, row, next_x, next_branch, next_squares);  // at the same time as the vectors
    load_factor(p, batch, factors);
    load_vector(p.shift + batch * p.shift_batch, shifts);
    if (p.branch) load_vector(p.gate + batch * p.gate_batch, gates);
    __syncthreads();
    for (; row < end; row += WARPS) {
        const Long begin = (batch * p.num_rows + row) * WIDTH, to = out_begin(p, batch, row);
        const float scaling = branch_scale(p, next_squares);
        float x[VECTORS][4], sum = 0.f, squares = 0.f;
        FOR_GROUPS(v, column) unpack4(next_x[v], x[v]);
        if (p.branch) FOR_GROUPS(v, column) {
            float branch[4], gate[4];
            unpack4(next_branch[v], branch);
            unpack4(*(const float4*)(gates + column), gate);
#pragma unroll
            for (int i = 0; i < 4; ++i) x[v][i] = fmaf(gate[i], branch[i] * scaling, x[v][i]);
            store4(p.x_new + begin + column, x[v]);
        }
        if (row + WARPS < end) load_inputs(p, batch, row + WARPS, next_x, next_branch, next_squares);
        FOR_GROUPS(v, column) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sum += x[v][i];
        }
        const float mean = CENTRED ? warp_sum(sum) / WIDTH : 0.f;
        FOR_GROUPS(v, column) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x[v][i] -= mean;
                squares = fmaf(x[v][i], x[v][i], squares);
            }
        }
        const float rstd = reciprocal_root(warp_sum(squares) / WIDTH, (Word)p.epsilon);
        if (threadIdx.x % 32 == 0 && p.rstd) p.rstd[batch * p.num_rows + row] = rstd;
        FOR_GROUPS(v, column) {
            float factor[4], out[4];
            unpack4(*(const float4*)(factors + column), factor);
            unpack4(*(const float4*)(shifts + column), out);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x[v][i] *= rstd;
                out[i] = fmaf(x[v][i], factor[i], out[i]);
            }
            if (p.normalised) store4(p.normalised + begin + column, x[v]);
            store4(p.out + to + column, out);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_RESIDENT) norm_backward(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    float *factors = (float*)memory, *gates = factors + WIDTH;
    const Long batch = blockIdx.y;
    const int end = min((blockIdx.x + 1) * p.chunk_rows, p.num_rows);
    load_factor(p, batch, factors);
    if (p.branch) load_vector(p.gate + batch * p.gate_batch, gates);
    __syncthreads();
    float dshift[VECTORS][4] = {}, dscale[VECTORS][4] = {}, dgate[VECTORS][4] = {};
    for (int row = blockIdx.x * p.chunk_rows + threadIdx.x / 32; row < end; row += WARPS) {
        const Long begin = (batch * p.num_rows + row) * WIDTH;
        const Long from = branch_row(p, batch, row), to = out_begin(p, batch, row);
        const float2 squares = load_squares(p, from);
        const float rstd = p.rstd[batch * p.num_rows + row];
        Four douts[VECTORS], kept[VECTORS], branches[VECTORS];
        StreamFour dx_new[VECTORS];
        FOR_GROUPS(v, column) {
            douts[v] = *(const Four*)(p.dout + to + column);
            kept[v] = *(const Four*)(p.normalised + begin + column);
        }
        FOR_GROUPS(v, column) {
            dx_new[v] = p.dx_new ? *(const StreamFour*)(p.dx_new + begin + column) : StreamFour{};
            if (p.branch) branches[v] = *(const Four*)(p.branch + from * WIDTH + column);
        }
        float dx[VECTORS][4], sum = 0.f, product = 0.f;
        FOR_GROUPS(v, column) {
            float dout[4], normalised[4], factor[4];
            unpack4(douts[v], dout);
            unpack4(kept[v], normalised);
            unpack4(*(const float4*)(factors + column), factor);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                dshift[v][i] += dout[i];
                dscale[v][i] = fmaf(dout[i], normalised[i], dscale[v][i]);
                sum = fmaf(dout[i], factor[i], sum);
                product = fmaf(dout[i] * factor[i], normalised[i], product);
            }
        }
        const float mean = CENTRED ? warp_sum(sum) / WIDTH : 0.f, slope = warp_sum(product) / WIDTH;
        FOR_GROUPS(v, column) {
            float dout[4], normalised[4], factor[4];
            hold(douts[v]), hold(kept[v]);
            unpack4(douts[v], dout);
            unpack4(kept[v], normalised);
            unpack4(*(const float4*)(factors + column), factor);
            unpack4(dx_new[v], dx[v]);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                dx[v][i] = fmaf(rstd, fmaf(dout[i], factor[i], -fmaf(normalised[i], slope, mean)), dx[v][i]);
            store4(p.dx + begin + column, dx[v]);
        }
        if (!p.branch) continue;
        const float scaling = branch_scale(p, squares);
        float dscaling = 0.f;
        FOR_GROUPS(v, column) {
            float branch[4], gate[4];
            unpack4(branches[v], branch);
            unpack4(*(const float4*)(gates + column), gate);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                gate[i] *= dx[v][i];
                dscaling = fmaf(gate[i], branch[i], dscaling);
                dgate[v][i] = fmaf(dx[v][i], branch[i] * scaling, dgate[v][i]);
                gate[i] *= scaling;
            }
            store4(p.dbranch + from * WIDTH + column, gate);
        }
        if (BRANCH_SCALED) dscaling = warp_sum(dscaling);
        if (BRANCH_SCALED && threadIdx.x % 32 == 0) p.dsquares[from] = -0.5f * scaling * scaling * scaling * dscaling;
    }
    float* sums = p.sums + (batch * p.num_chunks + blockIdx.x) * 3 * WIDTH;
    write_sums((float*)memory, dshift, sums);
    write_sums((float*)memory, dscale, sums + WIDTH);
    if (p.branch) write_sums((float*)memory, dgate, sums + 2 * WIDTH);
}

// Gradients of shift, scale and gate (blockIdx.z 1 to 3), which all rows of a batch element share, and of the weight (0),
// which all rows share. The latter takes longest and starts first.
extern "C" __global__ void __launch_bounds__(THREADS) norm_backward_sums(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    const bool weighted = blockIdx.z == 0;
    const int column = blockIdx.x * COLUMNS + 4 * (threadIdx.x % COLUMN_THREADS), part = weighted ? 1 : blockIdx.z - 1;
    if (weighted && (!p.weight || blockIdx.y > 0)) return;
    const int num_chunks = p.num_chunks, num_rows = weighted ? num_chunks * (int)p.num_batch : num_chunks;
    const float* sums = p.sums + (blockIdx.y * p.num_chunks * 3 + part) * WIDTH + column;
    const auto load = [&](int row, float* values) {
        unpack4(*(const float4*)(sums + (Long)row * 3 * WIDTH), values);
        if (!weighted) return;
        float scale[4];
        unpack4(*(const Four*)(p.scale + row / num_chunks * p.scale_batch + column), scale);
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] = fmaf(scale[i], values[i], values[i]);
    };
    float sum[4];
    sum_rows((float*)memory, column < WIDTH ? num_rows : 0, load, sum);
    if (threadIdx.x >= COLUMN_THREADS || column >= WIDTH) return;
    if (weighted) return store4(p.dweight + column, sum);
    if (part == 1 && p.weight) {
        float weight[4];
        unpack4(*(const float4*)(p.weight + column), weight);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] *= weight[i];
    }
    store4((part == 0 ? p.dshift : part == 1 ? p.dscale : p.dgate) + blockIdx.y * (Long)WIDTH + column, sum);
}
