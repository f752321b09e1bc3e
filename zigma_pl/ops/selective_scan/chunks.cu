// The carries of the chunks of a long sequence, which are computed before the chunks run in parallel: the state after the last
// row of a chunk that starts from zero, or for the backward pass the adjoint before its first row. With S the sum of delta
// between a row and that end of the chunk,
//   state = sum over rows of exp(A S) x B  (x = delta u);  adjoint = sum over rows of exp(A S) dy C.
// Rows are independent of each other. A warp starts at that end of the chunk and skips states that have decayed to nothing, and
// a block stops once this holds for all its channels; `MambaMixer` therefore sorts channels by their decay rates. A lane adds
// four rows of a tile and one of each four states. A block has 16 of the states and one of the pieces into which chunks are
// divided to fill the GPU.

#define ARRAYS 3       // delta, u or dout, gate
#define BLOCK_STATES 16
#define GROUPS 4       // of four states
#define PARTS (STATES / BLOCK_STATES)
#define NEGLIGIBLE (ROW_KIND == 0 ? 28.f : 12.f)  // number of halvings after which a state is below the precision of the rows

// The last axis of the grid, so that all blocks of the first channels, which decay most slowly and take longest, start first.
__device__ __forceinline__ int channel_block() { return blockIdx.z; }

// Lanes that read and sum delta: lane 4 g + q has channel g of its warp.
__device__ __forceinline__ int lane_channel() { return threadIdx.x / 4; }
__device__ __forceinline__ int lane_quarter() { return threadIdx.x % 4; }

// The four rows that a lane adds for all 8 channels of its warp, and its state among each four.
__device__ __forceinline__ int lane_rows() { return mixed_eighth(); }
__device__ __forceinline__ int lane_state() { return mixed_quarter(); }

// Index of B or C of a row in the terms of a tile, for state `state` of the groups from `group` on. Rows are permuted to avoid
// bank conflicts of writes and reads.
__device__ __forceinline__ int term_place(int row, int state, int group) {
    return (row * BLOCK_STATES + state * GROUPS + group) ^ ((row & 4) * 5) ^ (((row >> 3 ^ row >> 1) & 1) * 8);
}

struct Alone {
    Tiles tiles;        // terms are indexed by term_place
    ChannelRows rows;   // delta, then S; x or dy
    float4* log2_rates; // [CHANNELS][4]: of a state of each group
};

__device__ __forceinline__ void place(Alone& shared, uint4* memory) {
    uint4* rest = place_tiles(shared.tiles, memory, ARRAYS);
    rest = place_channel_rows(shared.rows, rest);
    shared.log2_rates = (float4*)rest;
}

// Writes the decay rates to shared memory. Returns, for lane_channel(), the S beyond which group lane_quarter() and the groups
// after it are negligible.
__device__ __forceinline__ float read_rates(const Params& p, const Alone& shared, int part) {
    const int channel = channel_block() * CHANNELS + lane_channel();
    float rate[GROUPS], limit[GROUPS];
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        const int state = part * BLOCK_STATES + group * 4 + lane_quarter();
        const bool exists = channel < p.num_channels && state < p.num_states;
        rate[group] = read_rate(p, channel, state);
        const float lasting = rate[group] < 0.f ? NEGLIGIBLE / -rate[group] : __uint_as_float(0x7f800000u);
        limit[group] = exists ? lasting : -1.f;
        limit[group] = fmaxf(limit[group], __shfl_xor_sync(0xffffffffu, limit[group], 1));
        limit[group] = fmaxf(limit[group], __shfl_xor_sync(0xffffffffu, limit[group], 2));
    }
    shared.log2_rates[threadIdx.x] = make_float4(rate[0], rate[1], rate[2], rate[3]);
    float own = limit[GROUPS - 1];
#pragma unroll
    for (int group = GROUPS - 2; group >= 0; --group)
        if (lane_quarter() <= group) own = fmaxf(own, limit[group]);
    return own;
}

struct TileRange {
    int first, count;
};

__device__ __forceinline__ TileRange tiles_of_piece(const Params& p, int piece) {
    const int begin = piece / p.chunk_pieces * p.chunk_tiles, end = min(begin + p.chunk_tiles, p.num_tiles);
    const int length = (p.chunk_tiles + p.chunk_pieces - 1) / p.chunk_pieces;
    const int first = begin + piece % p.chunk_pieces * length;
    return {first, max(min(first + length, end) - first, 0)};
}

// Indices of a thread's writes and reads, computed only once, since recomputing them for every tile would take a tenth of all
// instructions.
struct Places {
    int octet;   // in rows: the 8 channels that it writes
    int summed;  // in rows: the delta that it sums
    int added;   // in rows: the rows that it adds, in the first channel of its warp
    int rates;   // in log2_rates: the rates of that channel
    int terms;   // in terms: the first of its four rows
};

__device__ __forceinline__ Places own_places() {
    const int first = threadIdx.x / 32 * 8;
    Places places{octet_place(0), place_of(8 * lane_quarter(), lane_channel()), place_of(4 * lane_rows(), first),
                  first * 4 + lane_state(), term_place(4 * lane_rows(), lane_state(), 0)};
    hold(places.octet), hold(places.summed), hold(places.added), hold(places.rates), hold(places.terms);
    return places;
}

// Writes the values that this thread fetched to shared memory for all lanes: delta; x or dy; B or C of this block's states.
template <bool ADJOINT>
__device__ __forceinline__ void spread_tile(const Alone& shared, const Places& places, int buffer, int part,
                                            const float (&bias)[8]) {
    const Tiles& tiles = shared.tiles;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        float delta[8], factor[8], gate[8];
        read_slot(raw_slot(tiles, buffer, ARRAYS, 0, pass), delta);
        read_slot(raw_slot(tiles, buffer, ARRAYS, 1, pass), factor);
        if (ADJOINT && GATED) read_slot(raw_slot(tiles, buffer, ARRAYS, 2, pass), gate);
        make_positive(bias, delta);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (!ADJOINT)
                factor[i] *= delta[i];
            else if (GATED)
                factor[i] *= gate[i] * sigmoid(gate[i]);
        }
        put_octet(shared.rows, places.octet + pass * PASS_ROWS, delta, factor);
    }
#pragma unroll
    for (int i = 0; i < THREAD_UNITS; ++i) {
        const int unit = i * THREADS + threadIdx.x;
        const int state = unit % ROW_UNITS * UNIT_STATES - (ADJOINT ? STATES : 0) - part * BLOCK_STATES;
        if (state < 0 || state >= BLOCK_STATES) continue;
        float values[UNIT_STATES];
        unpack16(*raw_unit(tiles, buffer, unit), values);
        const int at = term_place(unit / ROW_UNITS, 0, state / 4);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float* to = tiles.terms + (at ^ j * GROUPS);
#if ROW_KIND == 0
            *to = values[j];
#else
            *(float2*)to = make_float2(values[j], values[j + 4]);
#endif
        }
    }
}

// Replaces the delta of a tile by S, for rows 8 q to 8 q + 7 of this lane's channel; `passed`: S at the start of the tile.
template <bool ADJOINT>
__device__ __forceinline__ void sum_durations(const ChannelRows& rows, const Places& places, float& passed) {
    const int q = lane_quarter();
    float4* at = (float4*)(rows.delta + places.summed);
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

// Adds a tile to the sums. lasting: bit 4 i + group tells whether channel i of the warp is not negligible in that group or a
// later one.
__device__ __forceinline__ void add_tile(const Alone& shared, const Places& places, Word lasting, float (&sums)[8][GROUPS]) {
    const float* own = shared.rows.delta + places.added;  // the factors follow after CHANNEL_ROWS elements
    const float4* of_state = shared.log2_rates + places.rates;
    float terms[4][GROUPS];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const float4 v = *(const float4*)(shared.tiles.terms + (places.terms ^ term_place(k, 0, 0)));
        terms[k][0] = v.x, terms[k][1] = v.y, terms[k][2] = v.z, terms[k][3] = v.w;
    }
    // Two channels at a time, to hide latency.
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        if (!(lasting & 0x11u << 4 * i)) continue;
        float s[2][4], factor[2][4], rate[2][GROUPS];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const float4 S = *(const float4*)(own + (i + j) * CHANNEL_STRIDE);
            const float4 rates = of_state[4 * (i + j)];
            const float4 x = *(const float4*)(own + CHANNEL_ROWS + (i + j) * CHANNEL_STRIDE);
            s[j][0] = S.x, s[j][1] = S.y, s[j][2] = S.z, s[j][3] = S.w;
            factor[j][0] = x.x, factor[j][1] = x.y, factor[j][2] = x.z, factor[j][3] = x.w;
            rate[j][0] = rates.x, rate[j][1] = rates.y, rate[j][2] = rates.z, rate[j][3] = rates.w;
        }
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            if (!(lasting & 0x11u << (4 * i + group))) break;
#pragma unroll
            for (int k = 0; k < 4; ++k)
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const float term = factor[j][k] * terms[k][group];
                    sums[i + j][group] = fmaf(exp2_fast(s[j][k] * rate[j][group]), term, sums[i + j][group]);
                }
        }
    }
}

// Adds sums[][group] over the lanes that have the same state; returns the sum of channel lane_rows() of the warp.
__device__ __forceinline__ float sum_of_rows(const float (&sums)[8][GROUPS], int group) {
    float four[4], two[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = exchange(sums[i][group], sums[i + 4][group], lane_rows() & 4, 8);
#pragma unroll
    for (int i = 0; i < 2; ++i) two[i] = exchange(four[i], four[i + 2], lane_rows() & 2, 4);
    return exchange(two[0], two[1], lane_rows() & 1, 1);
}

// Writes the carries, and the sum of delta for lane_channel() over all rows, or over enough rows that nothing is left.
__device__ __forceinline__ void write_sums(const Params& p, int piece, int part, const float (&sums)[8][GROUPS],
                                           float duration) {
    const Long first = ((Long)piece * p.num_batch + blockIdx.y) * p.num_channels;
    const int channel = channel_block() * CHANNELS + threadIdx.x / 32 * 8 + lane_rows();
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        const float own = sum_of_rows(sums, group);
        if (channel < p.num_channels)
            p.carries[(first + channel) * STATES + part * BLOCK_STATES + group * 4 + lane_state()] = own;
    }
    const int summed = channel_block() * CHANNELS + lane_channel();
    if (part == 0 && lane_quarter() == 0 && summed < p.num_channels) p.durations[first + summed] = duration;
}

// Adds a range of tiles to sums and duration, starting with the last tile (adjoint: with the first tile).
template <bool ADJOINT>
__device__ __forceinline__ void add_tiles(const Params& p, const Alone& shared, TileRange range, int part,
                                          float (&sums)[8][GROUPS], float& duration) {
    const Tiles& tiles = shared.tiles;
    const int thread = threadIdx.x;
    hold(range.count);
    auto first_step = [&](int step) { return (range.first + (ADJOINT ? step : range.count - 1 - step)) * TILE; };
    read_first_orders(p, tiles, first_step);
    read_parameters(p, tiles);

    const Element* delta = own_channels(p, p.delta, p.delta_strides);
    const Strides& strides = ADJOINT ? p.dout_strides : p.u_strides;
    const Element* rows = own_channels(p, ADJOINT ? p.dout : p.u, strides);
    const Element* gate = own_channels(p, p.gate, p.gate_strides);
    const Terms terms = own_terms(p);
    hold(delta), hold(rows);
    const Places places = own_places();

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
    __syncthreads();
    fetch(0, 0);
    close_copies();
    float bias[8];
    read_octet(tiles.bias, bias);
    const float limit = read_rates(p, shared, part);

    for (int step = 0; step < range.count; ++step) {
        const int buffer = step & 1;
        const int upcoming = thread < TILE ? visited_row(p, first_step(step + 2) + thread) : 0;
        if (step + 1 < range.count) fetch(step + 1, buffer ^ 1);
        const Word lasting = ballot(duration <= limit);
        close_copies();
        await_copies();
        spread_tile<ADJOINT>(shared, places, buffer, part, bias);
        __syncthreads();
        sum_durations<ADJOINT>(shared.rows, places, duration);
        if (thread < TILE) tiles.order[(step + 2 & 3) * TILE + thread] = upcoming;
        __syncwarp();
        add_tile(shared, places, lasting, sums);
        // A block with only a part of the states must sum delta for the other states too.
        if (!any_of_block(duration <= limit) && PARTS == 1) break;
    }
    close_copies();
    await_copies();
}

template <bool ADJOINT>
__device__ __forceinline__ void leave_behind(const Params& p) {
    DYNAMIC_SHARED(memory);
    Alone shared;
    place(shared, memory);
    const int part = blockIdx.x % PARTS, piece = blockIdx.x / PARTS;
    if (piece / p.chunk_pieces == (ADJOINT ? 0 : p.num_chunks - 1)) return;
    const TileRange range = tiles_of_piece(p, piece);
    float sums[8][GROUPS], duration = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) sums[i][group] = 0.f;
    if (range.count) add_tiles<ADJOINT>(p, shared, range, part, sums, duration);
    write_sums(p, piece, part, sums, duration);
}

// Without the launch bounds, the compiler would use too many registers for CHUNK_BLOCKS blocks per multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, CHUNK_BLOCKS) scan_chunk_states(const Params p) {
    await_previous_kernel();
    leave_behind<false>(p);
}

extern "C" __global__ void __launch_bounds__(THREADS, CHUNK_BLOCKS) scan_chunk_adjoints(const Params p) {
    await_previous_kernel();
    leave_behind<true>(p);
}
