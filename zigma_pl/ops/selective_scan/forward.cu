// The recurrence along the visit order. The chunks of a long sequence run in parallel; see chunks.cu.

#define ARRAYS 3  // u, delta, gate
constexpr int UNROLLED = STATES == 16 ? TILE / SUMMED : 1;

__device__ __forceinline__ int channel_block() { return blockIdx.x; }

__device__ __forceinline__ void spread_rows(const Params& p, const Tiles& tiles, const ChannelRows& rows, int buffer,
                                            int first_step) {
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        float u[8], delta[8];
        read_slot(raw_slot(tiles, buffer, ARRAYS, 0, pass), u);
        read_slot(raw_slot(tiles, buffer, ARRAYS, 1, pass), delta);
        make_positive(tiles, delta);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            u[i] *= delta[i];
            delta[i] = decaying(p, delta[i], first_step + row_of_thread(pass));
        }
        put_octet(rows, octet_place(pass), delta, u);
    }
}

__device__ __forceinline__ void write_outputs(const Params& p, const Tiles& tiles, const int* order, int buffer,
                                              const float* y_tile, Element* own_out) {
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
        write_octet(p, row_at(own_out, row, p.num_channels), out);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) scan_forward(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    Tiles tiles;
    uint4* rest = place_tiles(tiles, memory, ARRAYS);
    ChannelRows rows;
    float* y_tile = (float*)place_channel_rows(rows, rest);
    const int thread = threadIdx.x, batch = blockIdx.y, chunk = blockIdx.z;
    const int first = chunk * p.chunk_tiles;
    int num_tiles = min(p.chunk_tiles, p.num_tiles - first);
    hold(num_tiles);

    const Element* u = own_channels(p, p.u, p.u_strides);
    const Element* delta = own_channels(p, p.delta, p.delta_strides);
    const Element* gate = own_channels(p, p.gate, p.gate_strides);
    const Terms terms = own_terms(p);
    Element* out = own_results(p, p.out);
    read_first_orders(p, tiles, [&](int step) { return (first + step) * TILE; });
    read_parameters(p, tiles);

    auto fetch = [&](int step, int buffer) {
        const int* order = tiles.order + (step & 3) * TILE;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            const int row = order[row_of_thread(pass)];
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 0, pass), row, u, p.u_strides);
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 1, pass), row, delta, p.delta_strides);
            if (GATED) fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 2, pass), row, gate, p.gate_strides);
        }
        fetch_terms(p, tiles, order, buffer, terms);
    };
    __syncthreads();
    fetch(0, 0);
    close_copies();
    float log2_rate[THREAD_STATES], h[THREAD_STATES];
    read_decay_rates(p, log2_rate);
    chain_carries(p, false, log2_rate, h);

    Kept* kept = states_at(p, p.states, ((Long)batch * p.num_tiles + first) * TILE_KEPT);
    const bool keeps = kept;
    const Long kept_row = (Long)p.num_channels * STATES;

    for (int step = 0; step < num_tiles; ++step) {
        const int buffer = step & 1;
        const int* order = tiles.order + (step & 3) * TILE;
        const int upcoming = thread < TILE ? visited_row(p, (first + step + 2) * TILE + thread) : 0;
        if (step + 1 < num_tiles) fetch(step + 1, buffer ^ 1);
        close_copies();
        await_copies();
        prepare_terms(tiles, buffer);
        spread_rows(p, tiles, rows, buffer, (first + step) * TILE);
        __syncthreads();
        Entering entering;
        Outputs before, outputs;
#pragma unroll UNROLLED
        for (int block = 0; block < TILE; block += SUMMED) {
            if (KEEPING && block % KEEP == 0) {
                if (keeps) keep_states(kept, h);
                kept += kept_row;
            }
            outputs.begin(tiles, buffer, block);
#pragma unroll
            for (int j = 0; j < SUMMED; ++j) {
                entering.read(tiles, rows, block, j);
#pragma unroll
                for (int i = 0; i < THREAD_STATES; ++i) {
                    const float decay = decay_of(entering.deltas[j % 4] * log2_rate[i], j * THREAD_STATES + i);
                    h[i] = fmaf(decay, h[i], entering.values[i]);
                }
                outputs.add(tiles, block, j, h);
            }
            // The previous rows are summed only now, so that the exchange between lanes overlaps with the current ones.
            if (block > 0) before.write(y_tile, block - SUMMED);
            before = outputs;
        }
        before.write(y_tile, TILE - SUMMED);
        if (thread < TILE) tiles.order[(step + 2 & 3) * TILE + thread] = upcoming;
        __syncthreads();
        write_outputs(p, tiles, order, buffer, y_tile, out);
    }
}
