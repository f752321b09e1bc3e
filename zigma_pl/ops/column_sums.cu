// Sums over the rows of a matrix, in a fixed order. A block adds chunk_rows rows of 32 * VECTOR adjacent columns: each warp
// every WARPS-th of them, GROUP at a time, then all warps together. With FINAL = 0, it reads rows and writes float sums; with
// FINAL = 1, it adds such sums.

#define COLUMNS (32 * VECTOR)

#if FINAL
typedef float Input;
typedef Element Output;
__device__ __forceinline__ Output result(float sum) { return from_float(sum); }
#else
typedef Element Input;
typedef float Output;
__device__ __forceinline__ Output result(float sum) { return sum; }
#endif

#if VECTOR > 1
typedef uint4 Packed;  // VECTOR adjacent numbers
__device__ __forceinline__ Packed nothing() { return make_uint4(0, 0, 0, 0); }
__device__ __forceinline__ void unpack(Packed packed, float* to) { unpack16(packed, to); }
#else
typedef Input Packed;
__device__ __forceinline__ Packed nothing() { return 0; }
#if FINAL
__device__ __forceinline__ void unpack(Packed packed, float* to) { to[0] = packed; }
#else
__device__ __forceinline__ void unpack(Packed packed, float* to) { to[0] = to_float(packed); }
#endif
#endif

// Every field takes 8 bytes.
struct Params {
    const Input* rows;
    Output* sums;  // of each chunk of rows
    Long row_stride, num_rows, num_columns, chunk_rows;
};

extern "C" __global__ void __launch_bounds__(32 * WARPS) column_sums(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    float* of_warps = (float*)memory;
    const Long first = (Long)blockIdx.x * COLUMNS;
    const int warp = threadIdx.x / 32, own = threadIdx.x % 32 * VECTOR;
    const Long begin = blockIdx.y * p.chunk_rows, end = min(begin + p.chunk_rows, p.num_rows);
    const Input* columns = p.rows + first + own;
    float sums[VECTOR] = {};
    if (first + own < p.num_columns)
        for (Long row = begin + warp; row < end; row += GROUP * WARPS) {
            Packed group[GROUP];
#pragma unroll
            for (int i = 0; i < GROUP; ++i) {
                const Long next = row + i * WARPS;
                group[i] = next < end ? *(const Packed*)(columns + next * p.row_stride) : nothing();
            }
#pragma unroll
            for (int i = 0; i < GROUP; ++i) {
                float values[VECTOR];
                unpack(group[i], values);
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) sums[j] += values[j];
            }
        }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) of_warps[warp * COLUMNS + own + i] = sums[i];
    __syncthreads();
    for (int i = threadIdx.x; i < COLUMNS && first + i < p.num_columns; i += 32 * WARPS) {
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) sum += of_warps[w * COLUMNS + i];
        p.sums[blockIdx.y * p.num_columns + first + i] = result(sum);
    }
}
