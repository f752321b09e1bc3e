// Products of matrices of one shape and one factor per column, and their gradients, with sums over rows in a fixed order. A
// block processes chunk_rows rows of WIDTH = 128 adjacent columns of matrix blockIdx.z: each warp every WARPS-th of them, GROUP
// at a time, each lane 4 columns.

struct Tensors {  // matrices are contiguous, (num_rows, num_columns)
    const float *matrix, *factors;
    Element* products;
    const Element* dproducts;
    float* dmatrix;
};

// Every field takes 8 bytes.
struct Params {
    Tensors tensors[MATRICES];
    float* sums;  // (num_chunks, MATRICES, num_columns), of dproducts * matrix over each chunk of rows
    Long num_rows, num_columns, chunk_rows;
};

// Calls load(g, i) for GROUP rows of this warp, so that all are read at the same time, then process(g, i) for each of them, and
// so on; g < GROUP, and i is the index of this lane's first element.
template <class Load, class Process>
__device__ __forceinline__ void for_rows(const Params& p, int column, const Load& load, const Process& process) {
    const int begin = blockIdx.y * p.chunk_rows, end = min(begin + p.chunk_rows, p.num_rows);
    for (int first = begin + threadIdx.x / 32; first < end; first += GROUP * WARPS) {
#pragma unroll
        for (int g = 0; g < GROUP; ++g)
            if (const int row = first + g * WARPS; row < end) load(g, row * p.num_columns + column);
#pragma unroll
        for (int g = 0; g < GROUP; ++g)
            if (const int row = first + g * WARPS; row < end) process(g, row * p.num_columns + column);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) scale_columns(const Params p) {
    await_previous_kernel();
    const int column = blockIdx.x * WIDTH + threadIdx.x % 32 * 4;
    const Tensors t = p.tensors[blockIdx.z];
    float4 raw[GROUP];
    float factors[4];
    unpack4(*(const float4*)(t.factors + column), factors);
    const auto load = [&](int g, Long i) { raw[g] = *(const float4*)(t.matrix + i); };
    for_rows(p, column, load, [&](int g, Long i) {
        float values[4];
        unpack4(raw[g], values);
#pragma unroll
        for (int j = 0; j < 4; ++j) values[j] *= factors[j];
        store4(t.products + i, values);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) scale_columns_backward(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    const int column = blockIdx.x * WIDTH + threadIdx.x % 32 * 4;
    const Tensors t = p.tensors[blockIdx.z];
    float4 raw[GROUP];
    Four raw_slopes[GROUP];
    float factors[4], sums[1][4] = {};
    unpack4(*(const float4*)(t.factors + column), factors);
    const auto load = [&](int g, Long i) {
        raw[g] = *(const float4*)(t.matrix + i);
        raw_slopes[g] = *(const Four*)(t.dproducts + i);
    };
    for_rows(p, column, load, [&](int g, Long i) {
        float values[4], slopes[4];
        unpack4(raw[g], values);
        unpack4(raw_slopes[g], slopes);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            sums[0][j] = fmaf(slopes[j], values[j], sums[0][j]);
            slopes[j] *= factors[j];
        }
        store4(t.dmatrix + i, slopes);
    });
    write_sums((float*)memory, sums, p.sums + (blockIdx.y * MATRICES + blockIdx.z) * p.num_columns + blockIdx.x * WIDTH);
}
