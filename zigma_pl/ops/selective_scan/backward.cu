// Gradients of the scan. A block processes tiles from the last to the first, and each tile in reverse, STEPS rows at a time.
// The states and decays of these rows are recomputed in registers from the state before them, which the forward pass stored
// or which is recomputed from a stored state. With g the gradient of the state and a the decay of a step:
//   g += C dy;  dC = sum over channels of h dy;  dB = sum over channels of g x;  dx = g . B  (x = delta u);
//   g a h[k-1] is the gradient of delta A, from which those of delta and A follow;  g a is carried to the previous step.

__device__ __forceinline__ int channel_block() { return blockIdx.x; }

__device__ __forceinline__ void spread_cells(const Params& p, const Backward& shared, int buffer, int first_step) {
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        float u[8], delta[8], gate[8], dy[8];
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 0, pass), u);
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 1, pass), delta);
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 3, pass), dy);
        make_positive(shared.tiles, delta);
        if (GATED) {
            read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 2, pass), gate);
#pragma unroll
            for (int i = 0; i < 8; ++i) dy[i] *= gate[i] * sigmoid(gate[i]);
        }
        float4* cells = shared.cells + cell_index(row_of_thread(pass), octet_of_thread() * 8);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float decay = decaying(p, delta[i], first_step + row_of_thread(pass));
            cells[i] = make_float4(entering_x(delta[i] * u[i]), decay, dy[i], delta[i]);
        }
    }
}

// Computes the gradients per element from the sums over states.
__device__ __forceinline__ void write_gradients(const Params& p, const Backward& shared, const int* order, int buffer) {
    float skip[8], dskip[8], dbias[8];
    read_octet(shared.tiles.skip, skip);
    float4* totals = shared.totals + threadIdx.x;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float4 s = totals[i * THREADS], b = totals[(2 + i) * THREADS];
        dskip[4 * i] = s.x, dskip[4 * i + 1] = s.y, dskip[4 * i + 2] = s.z, dskip[4 * i + 3] = s.w;
        dbias[4 * i] = b.x, dbias[4 * i + 1] = b.y, dbias[4 * i + 2] = b.z, dbias[4 * i + 3] = b.w;
    }
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        const int row = order[row_of_thread(pass)];
        if (row < 0) continue;
        float u[8], delta[8], dy[8], gate[8], du[8], ddelta[8], out[8];
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 0, pass), u);
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 3, pass), dy);
        if (GATED) read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 2, pass), gate);
        if (RESTARTS) {  // the cells do not have all of them
            read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 1, pass), delta);
            make_positive(shared.tiles, delta);
        }
        const float4* cells = shared.cells + cell_index(row_of_thread(pass), octet_of_thread() * 8);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float4 cell = cells[i];
            if (!RESTARTS) delta[i] = cell.y;
            const float y = fmaf(skip[i], u[i], cell.w);
            if (GATED) {
                const float s = sigmoid(gate[i]), dout = dy[i], silu = gate[i] * s;
                dy[i] = dout * silu;
                out[i] = y * silu;
                gate[i] = dout * y * fmaf(silu, 1.f - s, s);
            } else
                out[i] = y;
            du[i] = fmaf(cell.z, delta[i], dy[i] * skip[i]);
            ddelta[i] = fmaf(cell.x, LN_2, cell.z * u[i]);
            if (BIASED) ddelta[i] *= 1.f - exp2_fast(-LOG2_E * delta[i]);  // softplus' = 1 - exp(-softplus)
            dskip[i] = fmaf(dy[i], u[i], dskip[i]);
            dbias[i] += ddelta[i];
        }
        const Arrays& to = shared.arrays[octet_of_thread()];
        write_octet(p, row_at(as_global(to.du), row, p.num_channels), du);
        write_octet(p, row_at(as_global(to.ddelta), row, p.num_channels), ddelta);
        if (GATED) write_octet(p, row_at(as_global(to.dgate), row, p.dgate_strides.row), gate);
        if (p.out) write_octet(p, row_at(as_global(to.out), row, p.num_channels), out);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        totals[i * THREADS] = make_float4(dskip[4 * i], dskip[4 * i + 1], dskip[4 * i + 2], dskip[4 * i + 3]);
        totals[(2 + i) * THREADS] = make_float4(dbias[4 * i], dbias[4 * i + 1], dbias[4 * i + 2], dbias[4 * i + 3]);
    }
}

// Address for dB or dC of four states in raster row 0; for deterministic sums, in a part to which only this block writes.
__device__ __forceinline__ float* own_term_gradients(const Params& p, int quad) {
    const int column = quad * 4, block = p.deterministic ? channel_block() * p.num_batch : 0;
    return p.dBC + (Long)(block + blockIdx.y) * p.num_rows * (2 * p.num_states) + (column < STATES ? 0 : p.num_states) +
           column % STATES;
}

// Sums dB and dC over the warps and adds them to dBC, or for deterministic sums stores them there.
__device__ __forceinline__ void write_term_gradients(const Params& p, const Backward& shared, const int* order) {
    constexpr int quads = TERMS / 4, rows = THREADS / quads;  // groups of four states; rows that are written at a time
    const int first_row = threadIdx.x / quads, column = threadIdx.x % quads * 4, state = column % STATES;
    const int num_states = p.num_states;
    if (state >= num_states) return;
    float* base = as_global(shared.dBC[threadIdx.x % quads]);
#pragma unroll
    for (int i = 0; i < TILE / rows; ++i) {
        const int row = order[first_row + i * rows];
        const float4 sum = sum_terms(shared, first_row + i * rows, column);
        if (row < 0) continue;
        float* to = row_at(base, row, 2 * num_states);
        if (num_states % 4 != 0) {
            const float values[4] = {sum.x, sum.y, sum.z, sum.w};
            for (int j = 0; j < 4 && state + j < num_states; ++j) {
                if (p.deterministic)
                    to[j] = values[j];
                else
                    add_global(to + j, values[j]);
            }
        } else if (p.deterministic)
            *(float4*)to = sum;
        else
            add_global4(to, sum);
    }
}

__device__ __forceinline__ KeptGroup* kept_slot(const Backward& shared, int subtile, int group) {
    return shared.kept + (subtile * STATE_GROUPS + group) * THREADS + threadIdx.x;
}

// Starts to copy the stored states of a tile to the slots of this thread; kept: stored states of this block's batch element.
__device__ __forceinline__ void fetch_kept(const Params& p, const Backward& shared, const Kept* kept, int tile) {
    const int channel = channel_block() * CHANNELS + lane_channel(), stride = p.num_channels * STATES;
    const bool exists = channel < p.num_channels;
    const Kept* from = row_at(kept, tile * TILE_KEPT, stride) + (exists ? channel * STATES + lane_states() : 0);
#pragma unroll
    for (int k = 0; k < TILE_KEPT; ++k)
#pragma unroll
        for (int group = 0; group < STATE_GROUPS; ++group) {
            KeptGroup* slot = kept_slot(shared, k * (KEEP / STEPS), group);
            copy_async<sizeof(KeptGroup)>(slot, row_at(from, k, stride) + group * 4, exists);
        }
}

__device__ __forceinline__ void read_kept(const Backward& shared, int subtile, float (&h)[THREAD_STATES]) {
#pragma unroll
    for (int group = 0; group < STATE_GROUPS; ++group) {
        const KeptGroup v = *kept_slot(shared, subtile, group);
        float* to = h + 4 * group;
#if ROW_KIND == 0
        to[0] = __uint_as_float(v.x), to[1] = __uint_as_float(v.y);
        to[2] = __uint_as_float(v.z), to[3] = __uint_as_float(v.w);
#else
        to[0] = __uint_as_float(v.x << 16), to[1] = __uint_as_float(v.x & 0xffff0000u);
        to[2] = __uint_as_float(v.y << 16), to[3] = __uint_as_float(v.y & 0xffff0000u);
#endif
    }
}

__device__ __forceinline__ KeptGroup pack_kept(const float* h) {
#if ROW_KIND == 0
    return make_uint4(__float_as_uint(h[0]), __float_as_uint(h[1]), __float_as_uint(h[2]), __float_as_uint(h[3]));
#else
    return make_uint2(pack_bfloats(h[0], h[1]), pack_bfloats(h[2], h[3]));
#endif
}

constexpr int WALKED = STATES == 16 ? SUBTILES - 1 : 1;  // subtiles whose loads overlap

// Recomputes the states of subtiles for which the forward pass stored none, and writes them to the slots.
__device__ __forceinline__ void walk_ahead(const Backward& shared, const Lane& lane, const float (&log2_rate)[THREAD_STATES]) {
    float h[STEPS + 1][THREAD_STATES], decay[STEPS][THREAD_STATES];
    auto walk = [&](int subtile) {
        if (subtile % (KEEP / STEPS) == 0)
            read_kept(shared, subtile, h[0]);
        else
#pragma unroll
            for (int i = 0; i < THREAD_STATES; ++i) h[0][i] = h[STEPS][i];
        walk_rows(inputs_from(shared, lane, subtile * STEPS), log2_rate, decay, h);
#pragma unroll
        for (int group = 0; group < STATE_GROUPS; ++group)
            *kept_slot(shared, subtile + 1, group) = pack_kept(h[STEPS] + 4 * group);
    };
#pragma unroll WALKED
    for (int subtile = 0; subtile < SUBTILES - 1; ++subtile)
        if ((subtile + 1) % (KEEP / STEPS) != 0) walk(subtile);
}

// Writes dskip and dbias, summed over the block's rows, per channel.
__device__ __forceinline__ void write_totals(const Params& p, const Backward& shared, Long part) {
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * CHANNELS; i += THREADS) {
        const int channel = i % CHANNELS, of_bias = i / CHANNELS;
        float sum = 0.f;
        for (int thread = channel / 8; thread < THREADS; thread += OCTETS)
            sum += ((const float*)(shared.totals + (2 * of_bias + channel % 8 / 4) * THREADS + thread))[channel % 4];
        const Long global = channel_block() * CHANNELS + channel;
        if (global < p.num_channels) (of_bias ? p.dbias : p.dskip)[part * p.part_stride + global] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) scan_backward(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    Backward shared;
    place(shared, memory);
    const Tiles& tiles = shared.tiles;
    const int thread = threadIdx.x, batch = blockIdx.y, chunk = blockIdx.z;
    const int first = chunk * p.chunk_tiles;
    int num_tiles = min(p.chunk_tiles, p.num_tiles - first);
    hold(num_tiles);
    const int last = first + num_tiles - 1;

    if (thread < OCTETS)
        shared.arrays[thread] = {own_channels(p, p.u, p.u_strides),
                                 own_channels(p, p.delta, p.delta_strides),
                                 own_channels(p, p.gate, p.gate_strides),
                                 own_channels(p, p.dout, p.dout_strides),
                                 own_results(p, p.du),
                                 own_results(p, p.ddelta),
                                 own_channels(p, p.dgate, p.dgate_strides),
                                 own_results(p, p.out)};
    if (thread < ROW_UNITS) shared.terms[thread] = own_terms(p);
    if (thread < TERMS / 4) shared.dBC[thread] = own_term_gradients(p, thread);
    const Kept* kept = p.states + (Long)batch * p.num_tiles * TILE_KEPT * p.num_channels * STATES;
    float log2_rate[THREAD_STATES], carry[THREAD_STATES], dA[THREAD_STATES];
    read_parameters(p, tiles);
    const Lane lane = prepare_sums(shared);
    read_decay_rates(p, log2_rate);
#pragma unroll
    for (int i = 0; i < THREAD_STATES; ++i) dA[i] = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) shared.totals[i * THREADS + thread] = make_float4(0.f, 0.f, 0.f, 0.f);

    auto fetch = [&](int step, int buffer) {
        const int* order = tiles.order + (step & 3) * TILE;
        const Arrays& from = shared.arrays[octet_of_thread()];
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            const int row = order[row_of_thread(pass)];
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 0, pass), row, from.u, p.u_strides);
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 1, pass), row, from.delta, p.delta_strides);
            if (GATED) fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 2, pass), row, from.gate, p.gate_strides);
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 3, pass), row, from.dout, p.dout_strides);
        }
        fetch_terms(p, tiles, order, buffer, shared.terms[thread % ROW_UNITS]);
    };
    read_first_orders(p, tiles, [&](int step) { return (last - step) * TILE; });
    __syncthreads();
    fetch(0, 0);
    fetch_kept(p, shared, kept, last);
    close_copies();
    chain_carries(p, true, log2_rate, carry);

    for (int step = 0; step < num_tiles; ++step) {
        const int buffer = step & 1;
        const int* order = tiles.order + (step & 3) * TILE;
        const int upcoming = thread < TILE ? visited_row(p, (last - step - 2) * TILE + thread) : 0;
        if (step + 1 < num_tiles) fetch(step + 1, buffer ^ 1);
        close_copies();
        await_copies();
        prepare_terms(tiles, buffer);
        spread_cells(p, shared, buffer, (last - step) * TILE);
        __syncthreads();
        if (KEEP > STEPS) walk_ahead(shared, lane, log2_rate);
#pragma unroll 1
        for (int subtile = SUBTILES - 1; subtile >= 0; --subtile) {
            float h[THREAD_STATES];
            read_kept(shared, subtile, h);
            go_back(shared, lane, buffer, subtile * STEPS, h, log2_rate, carry, dA);
        }
        if (step + 1 < num_tiles) fetch_kept(p, shared, kept, last - step - 1);
        close_copies();
        if (thread < TILE) tiles.order[(step + 2 & 3) * TILE + thread] = upcoming;
        __syncthreads();
        write_gradients(p, shared, order, buffer);
        write_term_gradients(p, shared, order);
    }
    const int channel = channel_block() * CHANNELS + lane_channel();
    const Long part = (Long)batch * p.num_chunks + chunk;
#pragma unroll
    for (int i = 0; i < THREAD_STATES; ++i)
        if (channel < p.num_channels && lane_states() + i < p.num_states)
            p.dA[part * p.part_stride + channel * p.num_states + lane_states() + i] =
                LOG_A ? LN_2 * log2_rate[i] * dA[i] : dA[i];
    write_totals(p, shared, part);
}
