// What enters the states in rows of 16 bits: x B, which comes from the matrix units with x read to 11 bits. Four rows are the
// inner axis of a product. Its left factor has two of them one above the other, 8 channels each: x in the column of its row,
// zeros beside. Lane 4 g + q has channel g of its warp and quarter q of the states, as products of matrices have it.

__device__ __forceinline__ int lane_channel() { return threadIdx.x / 4; }
__device__ __forceinline__ int lane_quarter() { return threadIdx.x % 4; }

// Of 16 states, the halves change places in two of four rows: four rows at once then fall into 32 banks.
__device__ __forceinline__ int traded_half(int row) { return STATES == 16 ? (row & 2) * 4 : 0; }

// Puts 8 states of B of a row, from `state` on, into terms: [TILE][STATE_GROUPS][16]. Of every four states the second and the
// third change places: a lane then finds its columns of both products of four rows beside each other.
__device__ __forceinline__ void put_B(float* terms, int row, int state, const float (&values)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
        const int quarter = (state + j) / THREAD_STATES, group = (state + j) % THREAD_STATES / 4;
        *(float4*)(terms + row * STATES + group * 16 + (quarter * 4 ^ traded_half(row))) =
            make_float4(values[j], values[j + 2], values[j + 1], values[j + 3]);
    }
}

// Where this lane's columns of the four rows from row 0 on are in what put_B fills.
__device__ __forceinline__ int columns_place() {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    return q * STATES + (2 * g ^ traded_half(q));
}

typedef float2 Columns[STATE_GROUPS];

__device__ __forceinline__ void read_columns(const float* from, Columns& columns) {
#pragma unroll
    for (int group = 0; group < STATE_GROUPS; ++group) columns[group] = *(const float2*)(from + group * 16);
}

// x B of this lane's states in two rows: x of a row where lane_quarter() is its number among four, zero elsewhere.
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
