// The forward recurrence for 16-bit rows. The inputs of the states and the sums over states run on the matrix units.

constexpr int SUMMED = 8;  // rows whose sums over states are computed together
#define Y_STRIDE (CHANNELS + 4)

// Converts the B that this thread fetched to float.
__device__ __forceinline__ void prepare_terms(const Tiles& tiles, int buffer) {
#pragma unroll
    for (int i = 0; i < THREAD_UNITS; ++i) {
        const int unit = i * THREADS + threadIdx.x, state = unit % ROW_UNITS * 8;
        if (state >= STATES) continue;
        float values[8];
        unpack16(*raw_unit(tiles, buffer, unit), values);
        put_B(tiles.terms, unit / ROW_UNITS, state, values);
    }
}

// delta, and the inputs x B of this lane's states.
struct Entering {
    float deltas[4], values[THREAD_STATES];
    float x;                   // of this lane's channel in row q of four
    Columns columns;
    float odd[THREAD_STATES];  // values of the odd row

    __device__ __forceinline__ void read(const Tiles& tiles, const ChannelRows& rows, int first_row, int j) {
        const int q = lane_quarter(), row = first_row + j;
        if (j % 4 == 0) {
            read_four(rows.delta, row, deltas);
            x = round_to_11_bits(rows.factors[place_of(row + q, lane_channel())]);
            read_columns(tiles.terms + row * STATES + columns_place(), columns);
        }
        if (j % 2 == 0)
            enter_two(columns, q == j % 4 ? x : 0.f, q == j % 4 + 1 ? x : 0.f, values, odd);
        else
#pragma unroll
            for (int i = 0; i < THREAD_STATES; ++i) values[i] = odd[i];
    }
};

// Sums of h C over the states on the matrix units, with h rounded to bfloat16. The left factor stacks two rows vertically, 8
// channels each; the columns of the right factor are C of eight rows, zero except for those two.
struct Outputs {
    Word C[STATE_GROUPS][2];     // of this lane's states in row g of eight
    Word above[STATE_GROUPS][2];
    float sums[4];               // of channel g: row 2 q in element 0, row 2 q + 1 in element 3

    __device__ __forceinline__ void begin(const Tiles& tiles, int buffer, int first_row) {
        const int g = threadIdx.x % 32 / 4;
        const Element* rows = (const Element*)(tiles.raw_terms + buffer * RAW_UNITS);
        const Element* terms = rows + raw_row(first_row) + raw_row(g) + STATES + lane_states();
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

// 2^x for x <= 0; number: index of the decay among those of a thread. One in eight is computed on the multiply-add units, with
// an error of 5e-6, since the special function units are the bottleneck.
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
