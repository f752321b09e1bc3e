// RMSNorm with a weight, and its gradients, in one pass over the rows each. A row consists of num_groups parts of WIDTH
// elements, which are normalised separately; a block processes part blockIdx.y of chunk_rows rows.

#define BACKWARD_RESIDENT (WIDTH <= 1536 && ROW_KIND != 0 ? 4 : 2)  // blocks per multiprocessor

// Every field takes 8 bytes. Rows are contiguous, (num_rows, num_groups, WIDTH).
struct Params {
    const Element *x, *dout;
    const float* weight;  // (num_groups, WIDTH)
    Element *out, *dx;
    float* rstd;     // (num_rows, num_groups), null in inference
    float* sums;     // (num_chunks, num_groups, WIDTH), of dout * normalised
    float* dweight;  // (num_groups, WIDTH)
    Long num_rows, num_groups, chunk_rows, num_chunks, epsilon;
};

// The weight of this part, rounded to the type of the rows, in shared memory.
__device__ __forceinline__ void load_weight(const Params& p, float* to) {
    FOR_COLUMNS(column) {
        float weight[4];
        unpack4(*(const float4*)(p.weight + blockIdx.y * WIDTH + column), weight);
#pragma unroll
        for (int i = 0; i < 4; ++i) weight[i] = to_float(from_float(weight[i]));
        store4(to + column, weight);
    }
    __syncthreads();
}

__device__ __forceinline__ void load_row(const Element* from, Four (&to)[VECTORS]) {
    FOR_GROUPS(v, column) to[v] = *(const Four*)(from + column);
}

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_forward(const Params p) {
    DYNAMIC_SHARED(memory);
    float* weights = (float*)memory;
    const int end = min((blockIdx.x + 1) * p.chunk_rows, p.num_rows);
    int row = blockIdx.x * p.chunk_rows + threadIdx.x / 32;
    Four next[VECTORS];
    if (row < end) load_row(p.x + (row * p.num_groups + blockIdx.y) * WIDTH, next);  // at the same time as the weight
    load_weight(p, weights);
    for (; row < end; row += WARPS) {
        const Long part = row * p.num_groups + blockIdx.y, next_part = part + WARPS * p.num_groups;
        Four raw[VECTORS];
        float squares = 0.f;
        FOR_GROUPS(v, column) {
            float x[4];
            raw[v] = next[v];
            unpack4(raw[v], x);
#pragma unroll
            for (int i = 0; i < 4; ++i) squares = fmaf(x[i], x[i], squares);
        }
        if (row + WARPS < end) load_row(p.x + next_part * WIDTH, next);
        const float rstd = reciprocal_root(warp_sum(squares) / WIDTH, (Word)p.epsilon);
        if (threadIdx.x % 32 == 0 && p.rstd) p.rstd[part] = rstd;
        FOR_GROUPS(v, column) {
            float x[4], weight[4];
            hold(raw[v]);
            unpack4(raw[v], x);
            unpack4(*(const float4*)(weights + column), weight);
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] *= rstd * weight[i];
            store4(p.out + part * WIDTH + column, x);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_RESIDENT) rms_norm_backward(const Params p) {
    DYNAMIC_SHARED(memory);
    float* weights = (float*)memory;
    const int end = min((blockIdx.x + 1) * p.chunk_rows, p.num_rows);
    float dweight[VECTORS][4] = {};
    load_weight(p, weights);
    for (int row = blockIdx.x * p.chunk_rows + threadIdx.x / 32; row < end; row += WARPS) {
        const Long part = row * p.num_groups + blockIdx.y;
        Four rows[VECTORS], douts[VECTORS];
        load_row(p.x + part * WIDTH, rows);
        load_row(p.dout + part * WIDTH, douts);
        const float rstd = p.rstd[part];
        float product = 0.f;
        FOR_GROUPS(v, column) {
            float x[4], dout[4], weight[4];
            unpack4(rows[v], x);
            unpack4(douts[v], dout);
            unpack4(*(const float4*)(weights + column), weight);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float slope = dout[i] * x[i];
                dweight[v][i] = fmaf(slope, rstd, dweight[v][i]);
                product = fmaf(slope, weight[i], product);
            }
        }
        const float slope = warp_sum(product) / WIDTH * rstd * rstd;
        FOR_GROUPS(v, column) {
            float x[4], dx[4], weight[4];
            hold(rows[v]), hold(douts[v]);
            unpack4(rows[v], x);
            unpack4(douts[v], dx);
            unpack4(*(const float4*)(weights + column), weight);
#pragma unroll
            for (int i = 0; i < 4; ++i) dx[i] = rstd * fmaf(dx[i], weight[i], -slope * x[i]);
            store4(p.dx + part * WIDTH + column, dx);
        }
    }
    write_sums((float*)memory, dweight, p.sums + (blockIdx.x * p.num_groups + blockIdx.y) * WIDTH);
}

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_backward_sums(const Params p) {
    DYNAMIC_SHARED(memory);
    const Long width = p.num_groups * WIDTH;
    const int column = blockIdx.x * COLUMNS + 4 * (threadIdx.x % COLUMN_THREADS);
    const auto load = [&](int row, float* values) { unpack4(*(const float4*)(p.sums + row * width + column), values); };
    float sum[4];
    sum_rows((float*)memory, column < width ? (int)p.num_chunks : 0, load, sum);
    if (threadIdx.x < COLUMN_THREADS && column < width) store4(p.dweight + column, sum);
}
