// The recurrence along the visit order, and the kernel that lets chunks of a long path run side by side.

#define ARRAYS 3  // u, delta, gate
constexpr int UNROLLED = STATES == 16 ? TILE / 4 : 1;
#define PAIR_STRIDE (10 * OCTETS)
#define Y_STRIDE (CHANNELS + 8)

// Bits of the lane: channel 0, quarter 0, channel 1, channel 2, quarter 1. Neighbouring lanes then read the same B and C,
// and lanes two apart the same pair, which lets both reads take half as many passes over shared memory.
__device__ __forceinline__ int lane_channel() { return threadIdx.x / 32 * 8 + (threadIdx.x & 1) + (threadIdx.x >> 1 & 6); }
__device__ __forceinline__ int lane_quarter() { return (threadIdx.x >> 1 & 1) + (threadIdx.x >> 3 & 2); }

// {delta, delta * u} of a channel in a row. The 16 bytes after every 8 channels keep the threads that fill the pairs out
// of each other's banks.
__device__ __forceinline__ int pair_index(int row, int channel) { return row * PAIR_STRIDE + channel / 8 * 10 + channel % 8; }

__device__ __forceinline__ void spread_pairs(const Params& p, const Tiles& tiles, int buffer, float2* pairs) {
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        float u[8], delta[8];
        read_slot(raw_slot(tiles, buffer, ARRAYS, 0, pass), u);
        read_slot(raw_slot(tiles, buffer, ARRAYS, 1, pass), delta);
        make_positive(p, tiles, delta);
#pragma unroll
        for (int i = 0; i < 8; i += 2)
            *(float4*)(pairs + pair_index(row_of_thread(pass), octet_of_thread() * 8) + i) =
                make_float4(delta[i], delta[i] * u[i], delta[i + 1], delta[i + 1] * u[i + 1]);
    }
}

// Sums over the four lanes that share a channel, for four rows at once; each lane returns that of the row lane_quarter().
__device__ __forceinline__ float sum_over_states(const float (&v)[4]) {
    const bool upper = threadIdx.x & 16, odd = threadIdx.x & 2;
    const float send0 = upper ? v[0] : v[2], send1 = upper ? v[1] : v[3];
    const float even_row = (upper ? v[2] : v[0]) + __shfl_xor_sync(0xffffffffu, send0, 16);
    const float odd_row = (upper ? v[3] : v[1]) + __shfl_xor_sync(0xffffffffu, send1, 16);
    return (odd ? odd_row : even_row) + __shfl_xor_sync(0xffffffffu, odd ? even_row : odd_row, 2);
}

__device__ __forceinline__ void write_y(float* y_tile, int first_row, const float (&partial)[4]) {
    y_tile[(first_row + lane_quarter()) * Y_STRIDE + lane_channel()] = sum_over_states(partial);
}

__device__ __forceinline__ void write_outputs(const Params& p, const Tiles& tiles, const int* order, int buffer,
                                              const float* y_tile) {
    float skip[8];
    read_octet(tiles.skip, skip);
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        const int row = order[row_of_thread(pass)];
        if (row < 0) continue;
        const float4* y = (const float4*)(y_tile + row_of_thread(pass) * Y_STRIDE + octet_of_thread() * 8);
        const float4 low = y[0], high = y[1];
        float u[8], gate[8], out[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        read_slot(raw_slot(tiles, buffer, ARRAYS, 0, pass), u);
#pragma unroll
        for (int i = 0; i < 8; ++i) out[i] = fmaf(skip[i], u[i], out[i]);
        if (GATED) {
            read_slot(raw_slot(tiles, buffer, ARRAYS, 2, pass), gate);
#pragma unroll
            for (int i = 0; i < 8; ++i) out[i] *= gate[i] * sigmoid(gate[i]);
        }
        write_octet(p, p.out + output_offset(p, row), out);
    }
}

__device__ __forceinline__ void keep_states(Kept* to, const float (&h)[THREAD_STATES]) {
#if ROW_KIND == 0
    store_states(to, h);
#else
#pragma unroll
    for (int i = 0; i < THREAD_STATES; i += 4)
        *(uint2*)(to + i) = make_uint2(pack_bfloats(h[i], h[i + 1]), pack_bfloats(h[i + 2], h[i + 3]));
#endif
}

// STATES_ONLY: stop at the state that the chunk's rows alone leave behind, and keep the sum of delta.
template <bool STATES_ONLY>
__device__ __forceinline__ void scan_tiles(const Params& p) {
    DYNAMIC_SHARED(memory);
    Tiles tiles;
    uint4* rest = place_tiles(tiles, memory, ARRAYS);
    float2* pairs = (float2*)rest;
    float* y_tile = (float*)(rest + TILE * PAIR_STRIDE / 2);
    const int thread = threadIdx.x, batch = blockIdx.y, chunk = blockIdx.z;
    const int first = chunk * p.chunk_tiles;
    const int end = min((Long)first + p.chunk_tiles, p.num_tiles);
    if (STATES_ONLY && chunk + 1 == p.num_chunks) return;

    const Element* u = p.u + batch * p.u_batch;
    const Element* delta = p.delta + batch * p.delta_batch;
    const Element* gate = p.gate + batch * p.gate_batch;
    const Element* B = p.B + batch * p.B_batch;
    const Element* C = p.C + batch * p.C_batch;
    float log2_rate[THREAD_STATES], h[THREAD_STATES], duration = 0.f;
    read_parameters(p, tiles);
    read_decay_rates(p, log2_rate);
    if (STATES_ONLY)
        load_states(nullptr, h);
    else
        chain_carries(p, false, log2_rate, h);

    auto fetch = [&](int tile, int buffer) {
        const int* order = tiles.order + ((tile - first) & 3) * TILE;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            const int row = order[row_of_thread(pass)];
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 0, pass), row, u, p.u_row);
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 1, pass), row, delta, p.delta_row);
            if (!STATES_ONLY && GATED) fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 2, pass), row, gate, p.gate_row);
        }
        fetch_terms(p, tiles, order, buffer, B, C);
    };
    for (int row = thread; row < 2 * TILE; row += THREADS) tiles.order[row] = visited_row(p, first, row);
    __syncthreads();
    fetch(first, 0);
    close_copies();

    for (int tile = first; tile < end; ++tile) {
        const int buffer = (tile - first) & 1;
        const int* order = tiles.order + ((tile - first) & 3) * TILE;
        const int upcoming = thread < TILE ? visited_row(p, tile + 2, thread) : 0;
        if (tile + 1 < end) fetch(tile + 1, buffer ^ 1);
        close_copies();
        await_copies();
        spread_terms(tiles, buffer);
        spread_pairs(p, tiles, buffer, pairs);
        Kept* kept = STATES_ONLY ? nullptr : states_at(p, p.states, ((Long)batch * p.num_tiles + tile) * TILE_KEPT);
        __syncthreads();
        float before[4];
#pragma unroll UNROLLED
        for (int block = 0; block < TILE; block += 4) {
            if (KEEPING && !STATES_ONLY && block % KEEP == 0 && kept) {
                keep_states(kept, h);
                kept += (Long)(int)p.num_channels * STATES;
            }
            float y[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float2 pair = pairs[pair_index(block + j, lane_channel())];
                const float* terms = tiles.terms + (block + j) * TERMS + lane_states();
                float b[THREAD_STATES], c[THREAD_STATES];
                load_terms(terms, b);
                if (!STATES_ONLY) load_terms(terms + STATES, c);
                y[j] = 0.f;
#pragma unroll
                for (int i = 0; i < THREAD_STATES; ++i) {
                    h[i] = fmaf(exp2_fast(pair.x * log2_rate[i]), h[i], pair.y * b[i]);
                    if (!STATES_ONLY) y[j] = fmaf(h[i], c[i], y[j]);
                }
                if (STATES_ONLY) duration += pair.x;
            }
            // The four rows before are summed now, so that the exchange between lanes overlaps with these.
            if (!STATES_ONLY && block > 0) write_y(y_tile, block - 4, before);
#pragma unroll
            for (int j = 0; j < 4; ++j) before[j] = y[j];
        }
        if (!STATES_ONLY) write_y(y_tile, TILE - 4, before);
        if (thread < TILE) tiles.order[((tile - first + 2) & 3) * TILE + thread] = upcoming;
        __syncthreads();
        if (!STATES_ONLY) write_outputs(p, tiles, order, buffer, y_tile);
    }
    if (STATES_ONLY) leave_behind(p, h, duration);
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) scan_forward(const Params p) { scan_tiles<false>(p); }

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) scan_chunk_states(const Params p) { scan_tiles<true>(p); }
