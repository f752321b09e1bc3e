// Steps forward through rows of 16 bits. What enters the states, and sums over them, run on the matrix units.

constexpr int SUMMED = 8;  // rows whose sums over states are taken at once
#define Y_STRIDE (CHANNELS + 4)

// Lane 4 g + q has channel g of its warp and quarter q of the states, as products of matrices have it.
__device__ __forceinline__ int lane_channel() { return threadIdx.x / 4; }
__device__ __forceinline__ int lane_quarter() { return threadIdx.x % 4; }

// Of 16 states, the halves change places in two of four rows: four rows at once then fall into 32 banks.
__device__ __forceinline__ int traded_half(int row) { return STATES == 16 ? (row & 2) * 4 : 0; }

// B of this thread's fetched units as float, [TILE][STATE_GROUPS][16]. Of every four states the second and the third change
// places: a lane then finds its columns of both products of four rows beside each other.
__device__ __forceinline__ void prepare_terms(const Tiles& tiles, int buffer) {
#pragma unroll
    for (int i = 0; i < THREAD_UNITS; ++i) {
        const int unit = i * THREADS + threadIdx.x, state = unit % ROW_UNITS * 8;
        if (state >= STATES) continue;
        float values[8];
        unpack16(tiles.raw_terms[buffer * RAW_UNITS + unit_place(unit)], values);
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            const int quarter = (state + j) / THREAD_STATES, group = (state + j) % THREAD_STATES / 4;
            const int row = unit / ROW_UNITS, column = quarter * 4 ^ traded_half(row);
            *(float4*)(tiles.terms + row * STATES + group * 16 + column) =
                make_float4(values[j], values[j + 2], values[j + 1], values[j + 3]);
        }
    }
}

// delta, and x B of this lane's states, which come from the matrix units with x read to 11 bits. Four rows are the inner axis
// of a product. The factors of two of them are one above the other, 8 channels each: x in the column of its row, zeros beside.
struct Entering {
    float deltas[4], values[THREAD_STATES];
    float x;                     // of this lane's channel in row q of four
    float2 columns[STATE_GROUPS];
    float odd[THREAD_STATES];    // values of the odd row

    __device__ __forceinline__ void read(const Tiles& tiles, const ChannelRows& rows, int first_row, int j) {
        const int q = threadIdx.x % 4, g = threadIdx.x % 32 / 4, row = first_row + j;
        if (j % 4 == 0) {
            read_four(rows.delta, row, deltas);
            x = round_to_11_bits(rows.factors[place_of(row + q, lane_channel())]);
#pragma unroll
            for (int group = 0; group < STATE_GROUPS; ++group)
                columns[group] = *(const float2*)(tiles.terms + (row + q) * STATES + group * 16 + (2 * g ^ traded_half(q)));
        }
        const float above = q == j % 4 ? x : 0.f, below = q == j % 4 + 1 ? x : 0.f;
#pragma unroll
        for (int group = 0; group < STATE_GROUPS; ++group) {
            float *own = values + 4 * group, *next = odd + 4 * group;
            if (j % 2 == 0) {
                float low[4], high[4];
                multiply4(low, above, below, columns[group].x);
                multiply4(high, above, below, columns[group].y);
                own[0] = low[0], own[1] = low[1], own[2] = high[0], own[3] = high[1];
                next[0] = low[2], next[1] = low[3], next[2] = high[2], next[3] = high[3];
            } else
#pragma unroll
                for (int i = 0; i < 4; ++i) own[i] = next[i];
        }
    }
};

// Sums of h C over the states on the matrix units, with h rounded to bfloat16. The factors of two rows are one above the
// other, 8 channels each; the columns are the C of eight rows, all but those of the two rows zero.
struct Outputs {
    Word C[STATE_GROUPS][2];     // of row g of eight, this lane's states
    Word above[STATE_GROUPS][2];
    float sums[4];               // channel g: of row 2 q in 0, of row 2 q + 1 in 3

    __device__ __forceinline__ void begin(const Tiles& tiles, int buffer, int first_row) {
        const int g = threadIdx.x % 32 / 4;
        const Element* terms = (const Element*)(tiles.raw_terms + buffer * RAW_UNITS) + raw_row(first_row) + raw_row(g) + STATES +
                               lane_states();
#pragma unroll
        for (int group = 0; group < STATE_GROUPS; ++group) {
            const uint2 four = *(const uint2*)(terms + 4 * group);
            C[group][0] = as_bfloats(four.x), C[group][1] = as_bfloats(four.y);
        }
    }

    __device__ __forceinline__ void add(const Tiles& tiles, int first_row, int j, const float (&h)[THREAD_STATES]) {
        const bool own = threadIdx.x % 32 / 8 == j / 2;
#pragma unroll
        for (int group = 0; group < STATE_GROUPS; ++group) {
            const Word low = pack_bfloats(h[4 * group], h[4 * group + 1]);
            const Word high = pack_bfloats(h[4 * group + 2], h[4 * group + 3]);
            if (j % 2 == 0)
                above[group][0] = low, above[group][1] = high;
            else {
                const Word rows[4] = {above[group][0], low, above[group][1], high};
                multiply_add16(sums, rows, own ? C[group][0] : 0u, own ? C[group][1] : 0u, j == 1 && group == 0);
            }
        }
    }

    __device__ __forceinline__ void write(float* y_tile, int first_row) const {
        float* y = y_tile + (first_row + 2 * lane_quarter()) * Y_STRIDE + lane_channel();
        y[0] = sums[0], y[Y_STRIDE] = sums[3];
    }
};

// 2^x for x <= 0; number: of the decay among those of a thread. One in eight is found on the multiply-add units, to 5e-6, since
// the special functions are what all wait for.
__device__ __forceinline__ float decay_of(float x, int number) {
    if (number % 8 != 7) return exp2_fast(x);
    const float clamped = fmaxf(x, -126.f), shifted = clamped + 12582912.f, f = clamped - (shifted - 12582912.f);
    float p = 0.00957303f;
    p = fmaf(p, f, 0.05585796f);
    p = fmaf(p, f, 0.24024125f);
    p = fmaf(p, f, 0.69313293f);
    p = fmaf(p, f, 1.f);
    return __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}

__device__ __forceinline__ void keep_states(Kept* to, const float (&h)[THREAD_STATES]) {
#pragma unroll
    for (int i = 0; i < THREAD_STATES; i += 4)
        *(uint2*)(to + i) = make_uint2(pack_bfloats(h[i], h[i + 1]), pack_bfloats(h[i + 2], h[i + 3]));
}
