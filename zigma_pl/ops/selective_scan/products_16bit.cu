// The inputs of the states, x B, for 16-bit rows, computed on the matrix units with x read with 11 bits. Four rows form the
// inner axis of a product. Its left factor stacks two of them vertically, 8 channels each: x in the column of its row, zeros
// elsewhere. Lane 4 g + q has channel g of its warp and quarter q of the states, the layout of matrix products.

__device__ __forceinline__ int lane_channel() { return threadIdx.x / 4; }
__device__ __forceinline__ int lane_quarter() { return threadIdx.x % 4; }

// With 16 states, the halves are swapped in two of four rows, so that accesses to four rows use all 32 banks.
__device__ __forceinline__ int traded_half(int row) { return STATES == 16 ? (row & 2) * 4 : 0; }

// Writes 8 states of B of a row, from `state` on, to terms: [TILE][STATE_GROUPS][16]. In each group of four states the second
// and the third are swapped, so that a lane's columns for both products of four rows are adjacent.
__device__ __forceinline__ void put_B(float* terms, int row, int state, const float (&values)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
        const int quarter = (state + j) / THREAD_STATES, group = (state + j) % THREAD_STATES / 4;
        *(float4*)(terms + row * STATES + group * 16 + (quarter * 4 ^ traded_half(row))) =
            make_float4(values[j], values[j + 2], values[j + 1], values[j + 3]);
    }
}

// Index of this lane's columns for rows 0 to 3 in the terms written by put_B.
__device__ __forceinline__ int columns_place() {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    return q * STATES + (2 * g ^ traded_half(q));
}

typedef float2 Columns[STATE_GROUPS];

__device__ __forceinline__ void read_columns(const float* from, Columns& columns) {
#pragma unroll
    for (int group = 0; group < STATE_GROUPS; ++group) columns[group] = *(const float2*)(from + group * 16);
}

// x B of this lane's states in two rows; x of a row is passed by the lanes whose lane_quarter() is its index among four rows,
// and zero by all others.
__device__ __forceinline__ void enter_two(const Columns& columns, float x, float next_x, float (&entering)[THREAD_STATES],
                                          float (&next)[THREAD_STATES]) {
#pragma unroll
    for (int group = 0; group < STATE_GROUPS; ++group) {
        float low[4], high[4];
        multiply4(low, x, next_x, columns[group].x);
        multiply4(high, x, next_x, columns[group].y);
        float *to = entering + 4 * group, *next_to = next + 4 * group;
        to[0] = low[0], to[1] = low[1], to[2] = high[0], to[3] = high[1];
        next_to[0] = low[2], next_to[1] = low[3], next_to[2] = high[2], next_to[3] = high[3];
    }
}
