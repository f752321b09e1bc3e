// Shared by the kernels of norms. A warp processes one row of WIDTH elements at a time in registers; a block has WARPS warps.
// A lane holds VECTORS groups of 4 adjacent elements, so that each load or store of a warp is contiguous in memory, for
// elements of 2 and of 4 bytes.

#define THREADS (32 * WARPS)
#define VECTORS ((WIDTH + 127) / 128)

// Loops over the columns of a lane, or over those of a thread if the block processes one row together.
#define FOR_GROUPS(v, column)                                                                 \
    _Pragma("unroll") for (int v = 0; v < VECTORS; ++v)                                       \
        if (const int column = 4 * (32 * v + (int)(threadIdx.x % 32)); column < WIDTH)
#define FOR_COLUMNS(column)                                                                   \
    _Pragma("unroll") for (int first = 0; first < WIDTH; first += 4 * THREADS)                \
        if (const int column = first + 4 * threadIdx.x; column < WIDTH)

#if ROW_KIND == 0
typedef float4 Four;  // 4 elements as in memory
#else
typedef uint2 Four;

__device__ __forceinline__ void unpack4(uint2 raw, float* to) {
    unpack_word(raw.x, to);
    unpack_word(raw.y, to + 2);
}

__device__ __forceinline__ void store4(Element* to, const float* from) {
    *(uint2*)to = make_uint2(pack_word(from), pack_word(from + 2));
}
#endif

__device__ __forceinline__ void unpack4(float4 raw, float* to) {
    to[0] = raw.x, to[1] = raw.y, to[2] = raw.z, to[3] = raw.w;
}

__device__ __forceinline__ void store4(float* to, const float* from) {
    *(float4*)to = make_float4(from[0], from[1], from[2], from[3]);
}

// Keeps the compiler from storing numbers unpacked, which take twice the registers, until they are unpacked once more.
#ifndef EMULATED
#if ROW_KIND == 0
__device__ __forceinline__ void hold(float4& x) { asm volatile("" : "+f"(x.x), "+f"(x.y), "+f"(x.z), "+f"(x.w)); }
#else
__device__ __forceinline__ void hold(uint2& x) { asm volatile("" : "+r"(x.x), "+r"(x.y)); }
#endif
#endif

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
    return value;
}

__device__ __forceinline__ float reciprocal_root(float mean, Word epsilon) {
    return 1.f / sqrtf(mean + __uint_as_float(epsilon));
}

// Sums the values of all warps of the block in a fixed order; shared has room for WARPS rows.
__device__ __forceinline__ void write_sums(float* shared, const float (&own)[VECTORS][4], float* to) {
    __syncthreads();
    FOR_GROUPS(v, column) store4(shared + threadIdx.x / 32 * WIDTH + column, own[v]);
    __syncthreads();
    FOR_COLUMNS(column) {
        float sum[4] = {};
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) {
            float values[4];
            unpack4(*(const float4*)(shared + warp * WIDTH + column), values);
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[i] += values[i];
        }
        store4(to + column, sum);
    }
}

// Sums what the blocks wrote, again in a fixed order: a block processes COLUMNS columns; each thread adds every SLICES-th of
// num_rows rows of 4 columns, as load(row, float[4]) returns them, and the threads of slice 0 get the sums.
#define COLUMN_THREADS (COLUMNS / 4)
#define SLICES (THREADS / COLUMN_THREADS)

template <class Load>
__device__ __forceinline__ void sum_rows(float* slices, int num_rows, const Load& load, float (&sum)[4]) {
    sum[0] = sum[1] = sum[2] = sum[3] = 0.f;
#pragma unroll 8
    for (int row = threadIdx.x / COLUMN_THREADS; row < num_rows; row += SLICES) {
        float values[4];
        load(row, values);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += values[i];
    }
    store4(slices + 4 * threadIdx.x, sum);
    __syncthreads();
    if (threadIdx.x >= COLUMN_THREADS) return;
#pragma unroll
    for (int slice = 1; slice < SLICES; ++slice)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += slices[slice * COLUMNS + 4 * threadIdx.x + i];
}
