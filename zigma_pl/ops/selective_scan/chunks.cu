// What the rows of each chunk of a long path leave behind by themselves, before chunks are walked side by side: the state
// after the last row, or for the backward pass the adjoint before the first one. With S the sum of delta between a row and
// that end,
//   state = sum over rows of exp(A S) x B  (x = delta u);  adjoint = sum over rows of exp(A S) dy C.
// No row depends on another, so that a warp walks away from that end and leaves out what has decayed to nothing.
// Lane 4 g + q adds up rows 4 g to 4 g + 3 of a tile and, of each four states, state q. A block has 16 of the states, and one
// of the pieces into which chunks are cut where more blocks find room.

#define ARRAYS 3       // delta, u or dout, gate
#define BLOCK_STATES 16
#define GROUPS 4       // of four states
#define PARTS (STATES / BLOCK_STATES)
#define NEGLIGIBLE (ROW_KIND == 0 ? 28.f : 16.f)  // halvings after which nothing is left

__device__ __forceinline__ int lane_channel() { return threadIdx.x / 4; }
__device__ __forceinline__ int lane_quarter() { return threadIdx.x % 4; }

struct Alone {
    Tiles tiles;        // terms: [TILE][4][GROUPS], four states of different groups beside each other
    ChannelRows rows;   // delta, then S; x or dy
    float4* log2_rates; // [CHANNELS][4]: of state q of each group
    float4* limits;     // [CHANNELS]: S beyond which nothing is left of a group and those after it
};

__device__ __forceinline__ void place(Alone& shared, uint4* memory) {
    uint4* rest = place_tiles(shared.tiles, memory, ARRAYS);
    rest = place_channel_rows(shared.rows, rest);
    shared.log2_rates = (float4*)rest;
    rest += CHANNELS * 4;
    shared.limits = (float4*)rest;
}

__device__ __forceinline__ void read_rates(const Params& p, const Alone& shared, int part) {
    const int channel = blockIdx.x * CHANNELS + lane_channel();
    float rate[GROUPS], limit[GROUPS];
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        const int state = part * BLOCK_STATES + group * 4 + lane_quarter();
        const bool exists = channel < p.num_channels && state < p.num_states;
        rate[group] = exists ? p.A[channel * p.num_states + state] * LOG2_E : 0.f;
        const float lasting = rate[group] < 0.f ? NEGLIGIBLE / -rate[group] : __uint_as_float(0x7f800000u);
        limit[group] = exists ? lasting : -1.f;
        limit[group] = fmaxf(limit[group], __shfl_xor_sync(0xffffffffu, limit[group], 1));
        limit[group] = fmaxf(limit[group], __shfl_xor_sync(0xffffffffu, limit[group], 2));
    }
#pragma unroll
    for (int group = GROUPS - 2; group >= 0; --group) limit[group] = fmaxf(limit[group], limit[group + 1]);
    shared.log2_rates[threadIdx.x] = make_float4(rate[0], rate[1], rate[2], rate[3]);
    if (lane_quarter() == 0) shared.limits[lane_channel()] = make_float4(limit[0], limit[1], limit[2], limit[3]);
}

template <bool ADJOINT>
__device__ __forceinline__ void spread_factors(const Params& p, const Alone& shared, int buffer) {
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        float delta[8], factor[8], gate[8];
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 0, pass), delta);
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 1, pass), factor);
        make_positive(p, shared.tiles, delta);
        if (ADJOINT && GATED) read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 2, pass), gate);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (!ADJOINT)
                factor[i] *= delta[i];
            else if (GATED)
                factor[i] *= gate[i] * sigmoid(gate[i]);
        }
        put_octet(shared.rows, pass, delta, factor);
    }
}

// B (or C) of this block's states, from what this thread fetched.
template <bool ADJOINT>
__device__ __forceinline__ void spread_part(const Tiles& tiles, int buffer, int part) {
#pragma unroll
    for (int i = 0; i < THREAD_UNITS; ++i) {
        const int unit = i * THREADS + threadIdx.x;
        const int state = unit % ROW_UNITS * UNIT_STATES - (ADJOINT ? STATES : 0) - part * BLOCK_STATES;
        if (state < 0 || state >= BLOCK_STATES) continue;
        float values[UNIT_STATES];
        unpack16(tiles.raw_terms[buffer * UNITS + unit], values);
        float* to = tiles.terms + unit / ROW_UNITS * BLOCK_STATES + state / 4;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#if ROW_KIND == 0
            to[j * GROUPS] = values[j];
#else
            *(float2*)(to + j * GROUPS) = make_float2(values[j], values[j + 4]);
#endif
        }
    }
}

// Turns the delta of a tile into S, for the rows 8 q to 8 q + 7 of this lane's channel; `passed`: S where the tile begins.
template <bool ADJOINT>
__device__ __forceinline__ void sum_durations(const Alone& shared, float& passed) {
    const int q = lane_quarter();
    float4* at = (float4*)(shared.rows.delta + place_of(8 * q, lane_channel()));
    const float4 low = at[0], high = at[1];
    float s[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}, sum = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int row = ADJOINT ? i : 7 - i;
        const float own = s[row];
        if (!ADJOINT) s[row] = sum;
        sum += own;
        if (ADJOINT) s[row] = sum;
    }
    const float beside = __shfl_xor_sync(0xffffffffu, sum, 1), two = sum + beside;
    const float others = __shfl_xor_sync(0xffffffffu, two, 2);
    const bool after_one = (q & 1) == (ADJOINT ? 1 : 0), after_two = (q >> 1) == (ADJOINT ? 1 : 0);
    const float before = passed + (after_one ? beside : 0.f) + (after_two ? others : 0.f);
    at[0] = make_float4(s[0] + before, s[1] + before, s[2] + before, s[3] + before);
    at[1] = make_float4(s[4] + before, s[5] + before, s[6] + before, s[7] + before);
    passed += two + others;
}

template <bool ADJOINT>
__device__ __forceinline__ void add_tile(const Alone& shared, float (&sums)[8][GROUPS]) {
    const int first = threadIdx.x / 32 * 8, g = threadIdx.x % 32 / 4, q = lane_quarter();
    const float nearest = shared.rows.delta[place_of(ADJOINT ? 0 : TILE - 1, lane_channel())];
    const Word lasting = ballot(nearest <= ((const float*)shared.limits)[threadIdx.x]);  // bit 4 i + group
    const float* own = shared.rows.delta + place_of(4 * g, first);  // its factors are CHANNEL_ROWS further on
    const float4* of_state = shared.log2_rates + first * 4 + q;
    float terms[4][GROUPS];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const float4 v = *(const float4*)(shared.tiles.terms + (4 * g + k) * BLOCK_STATES + q * GROUPS);
        terms[k][0] = v.x, terms[k][1] = v.y, terms[k][2] = v.z, terms[k][3] = v.w;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (!(lasting & 1u << 4 * i)) continue;
        const float4 rates = of_state[4 * i];
        const float4 S = *(const float4*)(own + i * CHANNEL_STRIDE);
        const float4 x = *(const float4*)(own + CHANNEL_ROWS + i * CHANNEL_STRIDE);
        const float rate[GROUPS] = {rates.x, rates.y, rates.z, rates.w};
        const float s[4] = {S.x, S.y, S.z, S.w}, factor[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            if (!(lasting & 1u << (4 * i + group))) break;
#pragma unroll
            for (int k = 0; k < 4; ++k)
                sums[i][group] = fmaf(exp2_fast(s[k] * rate[group]), factor[k] * terms[k][group], sums[i][group]);
        }
    }
}

// Adds up over the rows of the lanes, and writes what is left of lane_channel().
__device__ __forceinline__ void write_sums(const Params& p, int piece, int part, const float (&sums)[8][GROUPS],
                                           float duration) {
    const int g = threadIdx.x % 32 / 4, channel = blockIdx.x * CHANNELS + lane_channel();
    float own[GROUPS];
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            float sum = sums[i][group];
#pragma unroll
            for (int mask = 4; mask < 32; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
            if (g == i) own[group] = sum;
        }
    if (channel >= p.num_channels) return;
    const Long at = ((Long)piece * p.num_batch + blockIdx.y) * p.num_channels + channel;
#pragma unroll
    for (int group = 0; group < GROUPS; ++group)
        p.carries[at * STATES + part * BLOCK_STATES + group * 4 + lane_quarter()] = own[group];
    if (part == 0 && lane_quarter() == 0) p.durations[at] = duration;
}

template <bool ADJOINT>
__device__ __forceinline__ void leave_behind(const Params& p) {
    DYNAMIC_SHARED(memory);
    Alone shared;
    place(shared, memory);
    const Tiles& tiles = shared.tiles;
    const int thread = threadIdx.x, batch = blockIdx.y, part = blockIdx.z % PARTS, piece = blockIdx.z / PARTS;
    const int chunk = piece / p.chunk_pieces, piece_tiles = (p.chunk_tiles + p.chunk_pieces - 1) / p.chunk_pieces;
    if (chunk == (ADJOINT ? 0 : p.num_chunks - 1)) return;
    const int first = chunk * p.chunk_tiles + piece % p.chunk_pieces * piece_tiles;
    const int end = min(min((chunk + 1) * p.chunk_tiles, p.num_tiles), first + piece_tiles);
    int num_tiles = max(end - first, 0);
    hold(num_tiles);
    auto first_step = [&](int step) { return (ADJOINT ? first + step : first + num_tiles - 1 - step) * TILE; };

    const Element* delta = own_channels(p, p.delta, p.delta_strides);
    const Strides& strides = ADJOINT ? p.dout_strides : p.u_strides;
    const Element* rows = own_channels(p, ADJOINT ? p.dout : p.u, strides);
    const Element* gate = own_channels(p, p.gate, p.gate_strides);
    const Terms terms = own_terms(p);
    read_parameters(p, tiles);
    read_rates(p, shared, part);
    float sums[8][GROUPS], duration = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) sums[i][group] = 0.f;

    auto fetch = [&](int step, int buffer) {
        const int* order = tiles.order + (step & 3) * TILE;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            const int row = order[row_of_thread(pass)];
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 0, pass), row, delta, p.delta_strides);
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 1, pass), row, rows, strides);
            if (ADJOINT && GATED) fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 2, pass), row, gate, p.gate_strides);
        }
        fetch_terms(p, tiles, order, buffer, terms);
    };
    for (int row = thread; row < 2 * TILE; row += THREADS)
        tiles.order[row] = visited_row(p, first_step(row / TILE) + row % TILE);
    __syncthreads();
    fetch(0, 0);
    close_copies();

    for (int step = 0; step < num_tiles; ++step) {
        const int buffer = step & 1;
        const int upcoming = thread < TILE ? visited_row(p, first_step(step + 2) + thread) : 0;
        if (step + 1 < num_tiles) fetch(step + 1, buffer ^ 1);
        close_copies();
        await_copies();
        spread_part<ADJOINT>(tiles, buffer, part);
        spread_factors<ADJOINT>(p, shared, buffer);
        __syncthreads();
        sum_durations<ADJOINT>(shared, duration);
        if (thread < TILE) tiles.order[(step + 2 & 3) * TILE + thread] = upcoming;
        __syncwarp();
        add_tile<ADJOINT>(shared, sums);
        __syncthreads();
    }
    write_sums(p, piece, part, sums, duration);
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) scan_chunk_states(const Params p) {
    leave_behind<false>(p);
}

// Left to itself, the compiler takes more registers than CHUNK_BLOCKS blocks find.
extern "C" __global__ void __launch_bounds__(THREADS, CHUNK_BLOCKS) scan_chunk_adjoints(const Params p) {
    leave_behind<true>(p);
}
