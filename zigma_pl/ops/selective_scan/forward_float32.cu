// The forward recurrence for float32 rows.

constexpr int SUMMED = 4;  // rows whose sums over states are computed together
#define Y_STRIDE (CHANNELS + 8)

__device__ __forceinline__ int lane_channel() { return threadIdx.x / 32 * 8 + mixed_eighth(); }
__device__ __forceinline__ int lane_quarter() { return mixed_quarter(); }

// Sums over the four lanes that share a channel, for four rows at once; each lane returns the sum of row lane_quarter().
__device__ __forceinline__ float sum_over_states(const float (&v)[4]) {
    const bool upper = threadIdx.x & 16, odd = threadIdx.x & 2;
    return exchange(exchange(v[0], v[2], upper, 16), exchange(v[1], v[3], upper, 16), odd, 2);
}

__device__ __forceinline__ void prepare_terms(const Tiles& tiles, int buffer) { spread_terms(tiles, buffer); }

// delta, and the inputs x B of this lane's states.
struct Entering {
    float deltas[4], x[4], values[THREAD_STATES];

    __device__ __forceinline__ void read(const Tiles& tiles, const ChannelRows& rows, int first_row, int j) {
        if (j % 4 == 0) {
            read_four(rows.delta, first_row + j, deltas);
            read_four(rows.factors, first_row + j, x);
        }
        load_terms(tiles.terms + (first_row + j) * TERMS + lane_states(), values);
#pragma unroll
        for (int i = 0; i < THREAD_STATES; ++i) values[i] *= x[j % 4];
    }
};

// Sums of h C over the states: first over those of a lane, then over the four lanes that share a channel.
struct Outputs {
    float partial[4];

    __device__ __forceinline__ void begin(const Tiles& tiles, int buffer, int first_row) {}

    __device__ __forceinline__ void add(const Tiles& tiles, int first_row, int j, const float (&h)[THREAD_STATES]) {
        float c[THREAD_STATES];
        load_terms(tiles.terms + (first_row + j) * TERMS + STATES + lane_states(), c);
        partial[j] = 0.f;
#pragma unroll
        for (int i = 0; i < THREAD_STATES; ++i) partial[j] = fmaf(h[i], c[i], partial[j]);
    }

    __device__ __forceinline__ void write(float* y_tile, int first_row) const {
        y_tile[(first_row + lane_quarter()) * Y_STRIDE + lane_channel()] = sum_over_states(partial);
    }
};

__device__ __forceinline__ float decay_of(float x, int number) { return exp2_fast(x); }

__device__ __forceinline__ void keep_states(Kept* to, const float (&h)[THREAD_STATES]) {
#pragma unroll
    for (int i = 0; i < THREAD_STATES; i += 4) *(float4*)(to + i) = make_float4(h[i], h[i + 1], h[i + 2], h[i + 3]);
}
