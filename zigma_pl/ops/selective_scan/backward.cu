// Gradients of the scan. A block walks tiles from the last to the first, and in each goes back STEPS rows at a time with
// their states and decays in registers, recomputed from the state before them. That is one that the forward pass kept, or
// (float32 rows) found first by a walk from the one state that was kept for the tile. With g the gradient of the state, carried backwards, and a the decay of a step:
//   g += C dy;  dC = sum over channels of h dy;  dB = sum over channels of g x;  dx = g . B  (x = delta u);
//   g a h[k-1] is the gradient of delta A, from which those of delta and A follow;  g a is carried on.
// All sums over lanes run on the matrix units, as products with matrices of zeros and ones.

#define ARRAYS 4  // u, delta, gate, dout
#define SUBTILES (TILE / STEPS)
#if ROW_KIND == 0
#define ROUNDING 1.f
#else
#define ROUNDING 1.00035f  // operands are cut to 11 bits: makes up for the mean of what is cut off
#endif

// Lane 4 g + q has channel g of its warp and quarter q of the states, as the sums over lanes need it.
__device__ __forceinline__ int lane_channel() { return threadIdx.x / 4; }
__device__ __forceinline__ int lane_quarter() { return threadIdx.x % 4; }

// {x, delta, dy, -} of a channel in a row on the way in, {gradient of x, delta, gradient through the decay, y} on the way
// out. The 16 bytes after every 8 channels keep the threads that fill and empty the cells out of each other's banks.
#define CELL_STRIDE (9 * OCTETS)
__device__ __forceinline__ int cell_index(int row, int channel) { return row * CELL_STRIDE + channel / 8 * 9 + channel % 8; }

struct Backward {
    Tiles tiles;
    float4* cells;       // [TILE][OCTETS][9]
    float* warp_sums;    // [WARPS][TILE][TERMS]: dB and dC
    float4* totals;      // [4][THREADS]: dskip of 8 channels, then dbias
    float4* quads;       // [2][32]: what make_selectors makes for each lane, where the compiler takes it for variable
    KeptGroup* kept;     // [SUBTILES][STATE_GROUPS][THREADS]: states before every STEPS-th row
};

__device__ __forceinline__ void place(Backward& shared, uint4* memory) {
    uint4* rest = place_tiles(shared.tiles, memory, ARRAYS);
    shared.cells = (float4*)rest;
    rest += TILE * CELL_STRIDE;
    shared.warp_sums = (float*)rest;
    rest += WARPS * TILE * TERMS / 4;
    shared.totals = (float4*)rest;
    rest += 4 * THREADS;
    shared.quads = (float4*)rest;
    rest += 64;
    shared.kept = (KeptGroup*)rest;
}

__device__ __forceinline__ void spread_cells(const Params& p, const Backward& shared, int buffer) {
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
        float u[8], delta[8], gate[8], dy[8];
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 0, pass), u);
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 1, pass), delta);
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 3, pass), dy);
        make_positive(p, shared.tiles, delta);
        if (GATED) {
            read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 2, pass), gate);
#pragma unroll
            for (int i = 0; i < 8; ++i) dy[i] *= gate[i] * sigmoid(gate[i]);
        }
        float4* cells = shared.cells + cell_index(row_of_thread(pass), octet_of_thread() * 8);
#pragma unroll
        for (int i = 0; i < 8; ++i) cells[i] = make_float4(delta[i] * u[i], delta[i], dy[i], 0.f);
    }
}

// What remains per element once the sums over states are known.
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
        float u[8], dy[8], gate[8], du[8], ddelta[8];
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 0, pass), u);
        read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 3, pass), dy);
        if (GATED) read_slot(raw_slot(shared.tiles, buffer, ARRAYS, 2, pass), gate);
        const float4* cells = shared.cells + cell_index(row_of_thread(pass), octet_of_thread() * 8);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float4 cell = cells[i];
            if (GATED) {
                const float s = sigmoid(gate[i]), dout = dy[i], silu = gate[i] * s;
                dy[i] = dout * silu;
                gate[i] = dout * fmaf(skip[i], u[i], cell.w) * fmaf(silu, 1.f - s, s);
            }
            du[i] = fmaf(cell.x, cell.y, dy[i] * skip[i]);
            ddelta[i] = fmaf(cell.z, LN_2, cell.x * u[i]);
            if (BIASED) ddelta[i] *= 1.f - exp2_fast(-LOG2_E * cell.y);  // softplus' = 1 - exp(-softplus)
            dskip[i] = fmaf(dy[i], u[i], dskip[i]);
            dbias[i] += ddelta[i];
        }
        const Long offset = output_offset(p, row);
        write_octet(p, p.du + offset, du);
        write_octet(p, p.ddelta + offset, ddelta);
        if (GATED) write_octet(p, p.dgate + offset, gate);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        totals[i * THREADS] = make_float4(dskip[4 * i], dskip[4 * i + 1], dskip[4 * i + 2], dskip[4 * i + 3]);
        totals[(2 + i) * THREADS] = make_float4(dbias[4 * i], dbias[4 * i + 1], dbias[4 * i + 2], dbias[4 * i + 3]);
    }
}

// Sums dB and dC over the warps and adds them to (or, deterministic, puts them where only this block writes) dBC.
__device__ __forceinline__ void write_term_gradients(const Params& p, const Backward& shared, const int* order) {
    constexpr int quads = TILE * TERMS / 4;  // of four states
#pragma unroll
    for (int i = 0; i < quads / THREADS; ++i) {
        const int quad = i * THREADS + threadIdx.x;
        const int row = order[quad / (TERMS / 4)], column = quad % (TERMS / 4) * 4, state = column % STATES;
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) {
            const float4 v = ((const float4*)shared.warp_sums)[warp * quads + quad];
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        const float scale = ROUNDING * ROUNDING;  // rounded twice
        sum.x *= scale, sum.y *= scale, sum.z *= scale, sum.w *= scale;
        if (row < 0 || state >= p.num_states) continue;
        const int block = p.deterministic ? blockIdx.x * (int)p.num_batch : 0;
        float* to = p.dBC + ((Long)(block + blockIdx.y) * (int)p.num_rows + row) * (int)(2 * p.num_states) +
                    (column < STATES ? 0 : (int)p.num_states) + state;
        if (!p.deterministic && p.num_states % 4 == 0) {
            add_global4(to, sum);
            continue;
        }
        const float values[4] = {sum.x, sum.y, sum.z, sum.w};
        for (int j = 0; j < 4 && state + j < p.num_states; ++j) {
            if (p.deterministic)
                to[j] = values[j];
            else
                add_global(to + j, values[j]);
        }
    }
}

// Constant factors of the sums over lanes, see multiply_add; g = lane / 4, q = lane % 4.
struct Selectors {
    float quad[2][4];  // left factors that keep the lanes of a quad apart: rows 0 to 7, rows 8 to 15
    float column[8];   // right factors that bring the sum over a quad to a column: 1 where g is the column
};

__device__ __forceinline__ void make_quads(const Backward& shared) {
    const int lane = threadIdx.x, g = lane / 4, q = lane % 4;
    const float low = g == q ? 1.f : 0.f, high = g == q + 4 ? 1.f : 0.f;
    if (lane >= 32) return;
    shared.quads[lane] = make_float4(low, 0.f, high, 0.f);
    shared.quads[32 + lane] = make_float4(0.f, low, 0.f, high);
}

// The quads come out of shared memory because constants would be put together anew for every product.
__device__ __forceinline__ void make_selectors(const Backward& shared, Selectors& selectors) {
    const int lane = threadIdx.x % 32;
    const float4 first = shared.quads[lane], second = shared.quads[32 + lane];
    selectors.quad[0][0] = first.x, selectors.quad[0][1] = first.y, selectors.quad[0][2] = first.z;
    selectors.quad[1][0] = second.x, selectors.quad[1][1] = second.y, selectors.quad[1][2] = second.z;
    selectors.quad[0][3] = first.w, selectors.quad[1][3] = second.w;
#pragma unroll
    for (int i = 0; i < 8; ++i) selectors.column[i] = lane / 4 == i ? 1.f : 0.f;
}

// Sums the four values over the quads; call 0 starts a product, the others add to it. Those of call m reach the lanes with q = m: product[0] = sum of v[0],
// product[2] = of v[1], product[1] = of v[2], product[3] = of v[3].
__device__ __forceinline__ void sum_over_quads(float (&product)[4], const float (&v)[4], const Selectors& selectors, int m) {
    if (m == 0)
        multiply(product, v, selectors.column[2 * m], selectors.column[2 * m + 1]);
    else
        multiply_add(product, v, selectors.column[2 * m], selectors.column[2 * m + 1]);
#if ROW_KIND == 0
    const float rest[4] = {trailing_bits(v[0]), trailing_bits(v[1]), trailing_bits(v[2]), trailing_bits(v[3])};
    multiply_add(product, rest, selectors.column[2 * m], selectors.column[2 * m + 1]);
#endif
}

// Turns four values of each lane so that they can be summed over the channels of the warp, which sum_over_quads does:
// row 4 i + q of the product has v[i] of lanes q of all quads, as columns.
__device__ __forceinline__ void turn(float (&product)[4], const float (&v)[4], const Selectors& selectors) {
    multiply(product, selectors.quad[0], v[0], v[1]);
    multiply_add(product, selectors.quad[1], v[2], v[3]);
#if ROW_KIND == 0
    multiply_add(product, selectors.quad[0], trailing_bits(v[0]), trailing_bits(v[1]));
    multiply_add(product, selectors.quad[1], trailing_bits(v[2]), trailing_bits(v[3]));
#endif
}

// Sums over channels come in the sequence (later row, earlier row if they share a product; B, C; groups of four of a
// thread's states). Lane q of a quad has number q of four; this is where in warp_sums it belongs.
__device__ __forceinline__ int channel_sum_offset() {
    const int lane = threadIdx.x % 32, number = lane % 4, q = lane / 4 % 4, i = lane / 16;
    const int row = STATE_GROUPS == 1 ? 1 - number / 2 : 0, is_C = number / STATE_GROUPS % 2, group = number % STATE_GROUPS;
    return (threadIdx.x / 32 * TILE + row) * TERMS + is_C * STATES + q * THREAD_STATES + group * 4 + i;
}

// Writes the sums that four calls of turn and sum_over_quads collected.
__device__ __forceinline__ void write_channel_sums(const float (&product)[4], float* to) {
    to[0] = product[0] + product[2];
    to[2] = product[1] + product[3];
}

__device__ __forceinline__ void step_forward(const Backward& shared, int row, const float (&log2_rate)[THREAD_STATES],
                                             const float (&before)[THREAD_STATES], float (&decay)[THREAD_STATES],
                                             float (&after)[THREAD_STATES]) {
    const float2 cell = *(const float2*)(shared.cells + cell_index(row, lane_channel()));
    float b[THREAD_STATES];
    load_terms(shared.tiles.terms + row * TERMS + lane_states(), b);
#pragma unroll
    for (int i = 0; i < THREAD_STATES; ++i) {
        decay[i] = exp2_fast(cell.y * log2_rate[i]);
        after[i] = fmaf(decay[i], before[i], cell.x * b[i]);
    }
}

// Adds the turned products of row first_row + j to sums over channels, and writes those that are complete.
__device__ __forceinline__ void sum_turned(const float (&turned)[2 * STATE_GROUPS][4], float (&channel_sums)[4],
                                           float* lane_sums, int first_row, int j, const Selectors& selectors) {
#pragma unroll
    for (int k = 0; k < 2 * STATE_GROUPS; ++k) {
        // With one group of states, two rows share a product, the later one first.
        const int number = (STATE_GROUPS == 1 ? (1 - j % 2) * 2 : 0) + k;
        sum_over_quads(channel_sums, turned[k], selectors, number % 4);
        if (number % 4 == 3) write_channel_sums(channel_sums, lane_sums + (first_row + j) * TERMS + number / 4 * STATES);
    }
}

// Writes the gradients of x and through the decay, and y, of four rows, over what the cells held.
__device__ __forceinline__ void write_state_sums(const Backward& shared, const float (&sums)[4], int first_row) {
    const int q = lane_quarter(), part = q == 0 ? 0 : q + 1;
    float* to = (float*)(shared.cells + cell_index(first_row, lane_channel())) + part;
    if (q == 3) return;
#pragma unroll
    for (int k = 0; k < 4; ++k) to[k * CELL_STRIDE * 4] = ROUNDING * sums[k % 2 * 2 + k / 2];
}

// Steps back through the STEPS rows from first_row on, the state before them given.
__device__ __forceinline__ void go_back(const Backward& shared, int first_row, const float (&before)[THREAD_STATES],
                                        const float (&log2_rate)[THREAD_STATES],
                                        float (&carry)[THREAD_STATES], float (&dA)[THREAD_STATES]) {
    float h[STEPS + 1][THREAD_STATES], decay[STEPS][THREAD_STATES];
#pragma unroll
    for (int i = 0; i < THREAD_STATES; ++i) h[0][i] = before[i];
#pragma unroll
    for (int j = 0; j < STEPS; ++j) step_forward(shared, first_row + j, log2_rate, h[j], decay[j], h[j + 1]);
    float* lane_sums = shared.warp_sums + channel_sum_offset();
    float dx[4], through_decay[4], y[4], state_sums[4], turned[2 * STATE_GROUPS][4], channel_sums[4];
    Selectors selectors;
    make_selectors(shared, selectors);
#pragma unroll
    for (int j = STEPS - 1; j >= 0; --j) {
        const int row = first_row + j;
        const float4 cell = shared.cells[cell_index(row, lane_channel())];
        const float* terms = shared.tiles.terms + row * TERMS + lane_states();
        float b[THREAD_STATES], c[THREAD_STATES], dB[THREAD_STATES], dC[THREAD_STATES];
        load_terms(terms, b);
        load_terms(terms + STATES, c);
        dx[j % 4] = through_decay[j % 4] = y[j % 4] = 0.f;
#pragma unroll
        for (int i = 0; i < THREAD_STATES; ++i) {
            const float g = fmaf(c[i], cell.z, carry[i]);
            carry[i] = g * decay[j][i];
            const float through = carry[i] * h[j][i];
            y[j % 4] = fmaf(c[i], h[j + 1][i], y[j % 4]);
            dx[j % 4] = fmaf(g, b[i], dx[j % 4]);
            through_decay[j % 4] = fmaf(through, log2_rate[i], through_decay[j % 4]);
            dA[i] = fmaf(through, cell.y, dA[i]);
            dB[i] = g * cell.x;
            dC[i] = h[j + 1][i] * cell.z;
        }
        // The products of the row before are summed now, so that they had time to arrive.
        if (j < STEPS - 1) sum_turned(turned, channel_sums, lane_sums, first_row, j + 1, selectors);
#pragma unroll
        for (int k = 0; k < 2 * STATE_GROUPS; ++k) {
            const float* v = k < STATE_GROUPS ? dB + 4 * k : dC + 4 * (k - STATE_GROUPS);
            const float four[4] = {v[0], v[1], v[2], v[3]};
            turn(turned[k], four, selectors);
        }
        if (j % 4 == 0) {
            sum_over_quads(state_sums, dx, selectors, 0);
            sum_over_quads(state_sums, through_decay, selectors, 1);
            sum_over_quads(state_sums, y, selectors, 2);
        }
        if (j % 4 == 3 && j < STEPS - 1) write_state_sums(shared, state_sums, row + 1);
    }
    sum_turned(turned, channel_sums, lane_sums, first_row, 0, selectors);
    write_state_sums(shared, state_sums, first_row);
}

__device__ __forceinline__ KeptGroup* kept_slot(const Backward& shared, int subtile, int group) {
    return shared.kept + (subtile * STATE_GROUPS + group) * THREADS + threadIdx.x;
}

// Starts to copy what the forward pass kept of a tile into the slots of this thread.
__device__ __forceinline__ void fetch_kept(const Params& p, const Backward& shared, int tile) {
    const Kept* from = states_at(p, p.states, ((Long)blockIdx.y * p.num_tiles + tile) * TILE_KEPT);
    const bool exists = from;
#pragma unroll
    for (int k = 0; k < TILE_KEPT; ++k)
#pragma unroll
        for (int group = 0; group < STATE_GROUPS; ++group) {
            const Kept* source = exists ? from + (Long)(k * (int)p.num_channels) * STATES + group * 4 : p.states;
            copy_async<sizeof(KeptGroup)>(kept_slot(shared, k, group), source, exists);
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

#if KEEP == TILE
// Fills the slots of all subtiles from that of the first.
__device__ __forceinline__ void walk_ahead(const Backward& shared, const float (&log2_rate)[THREAD_STATES]) {
    float h[THREAD_STATES], decay[THREAD_STATES];
    read_kept(shared, 0, h);
#pragma unroll 1
    for (int subtile = 1; subtile < SUBTILES; ++subtile) {
#pragma unroll
        for (int j = 0; j < STEPS; ++j) step_forward(shared, (subtile - 1) * STEPS + j, log2_rate, h, decay, h);
#pragma unroll
        for (int group = 0; group < STATE_GROUPS; ++group)
            *kept_slot(shared, subtile, group) =
                make_uint4(__float_as_uint(h[4 * group]), __float_as_uint(h[4 * group + 1]),
                           __float_as_uint(h[4 * group + 2]), __float_as_uint(h[4 * group + 3]));
    }
}
#endif

// One step of the adjoint alone.
__device__ __forceinline__ void carry_back(const Backward& shared, int row, const float (&log2_rate)[THREAD_STATES],
                                           float (&carry)[THREAD_STATES], float& duration) {
    const float4 cell = shared.cells[cell_index(row, lane_channel())];
    float c[THREAD_STATES];
    load_terms(shared.tiles.terms + row * TERMS + STATES + lane_states(), c);
#pragma unroll
    for (int i = 0; i < THREAD_STATES; ++i)
        carry[i] = exp2_fast(cell.y * log2_rate[i]) * fmaf(c[i], cell.z, carry[i]);
    duration += cell.y;
}

// Both totals of the block's rows, per channel.
__device__ __forceinline__ void write_totals(const Params& p, const Backward& shared, Long part) {
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * CHANNELS; i += THREADS) {
        const int channel = i % CHANNELS, of_bias = i / CHANNELS;
        float sum = 0.f;
        for (int thread = channel / 8; thread < THREADS; thread += OCTETS)
            sum += ((const float*)(shared.totals + (2 * of_bias + channel % 8 / 4) * THREADS + thread))[channel % 4];
        const Long global = blockIdx.x * CHANNELS + channel;
        if (global < p.num_channels) (of_bias ? p.dbias : p.dskip)[part * p.num_channels + global] = sum;
    }
}

// ADJOINT_ONLY: stop at the adjoint that the chunk's rows alone send to the chunk before, and keep the sum of delta.
template <bool ADJOINT_ONLY>
__device__ __forceinline__ void walk_back(const Params& p) {
    DYNAMIC_SHARED(memory);
    Backward shared;
    place(shared, memory);
    const Tiles& tiles = shared.tiles;
    const int thread = threadIdx.x, batch = blockIdx.y, chunk = blockIdx.z;
    if (ADJOINT_ONLY && chunk == 0) return;
    const int first = chunk * p.chunk_tiles;
    const int last = min((Long)first + p.chunk_tiles, p.num_tiles) - 1;

    const Element* u = p.u + batch * p.u_batch;
    const Element* delta = p.delta + batch * p.delta_batch;
    const Element* gate = p.gate + batch * p.gate_batch;
    const Element* dout = p.dout + batch * p.dout_batch;
    const Element* B = p.B + batch * p.B_batch;
    const Element* C = p.C + batch * p.C_batch;
    float log2_rate[THREAD_STATES], carry[THREAD_STATES], dA[THREAD_STATES], duration = 0.f;
    read_parameters(p, tiles);
    make_quads(shared);
    read_decay_rates(p, log2_rate);
    const Long carry_index = (Long)chunk * p.num_batch + batch;
    load_states(ADJOINT_ONLY ? nullptr : states_at(p, p.carries, carry_index), carry);
#pragma unroll
    for (int i = 0; i < THREAD_STATES; ++i) dA[i] = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) shared.totals[i * THREADS + thread] = make_float4(0.f, 0.f, 0.f, 0.f);

    auto fetch = [&](int tile, int buffer) {
        const int* order = tiles.order + ((last - tile) & 3) * TILE;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            const int row = order[row_of_thread(pass)];
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 0, pass), row, u, p.u_row);
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 1, pass), row, delta, p.delta_row);
            if (GATED) fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 2, pass), row, gate, p.gate_row);
            fetch_row(p, raw_slot(tiles, buffer, ARRAYS, 3, pass), row, dout, p.dout_row);
        }
        fetch_terms(p, tiles, order, buffer, B, C);
    };
    for (int row = thread; row < 2 * TILE; row += THREADS)
        tiles.order[row] = visited_row(p, last - row / TILE, row % TILE);
    __syncthreads();
    fetch(last, 0);
    if (!ADJOINT_ONLY) fetch_kept(p, shared, last);
    close_copies();

    for (int tile = last; tile >= first; --tile) {
        const int buffer = (last - tile) & 1;
        const int* order = tiles.order + ((last - tile) & 3) * TILE;
        const int upcoming = thread < TILE ? visited_row(p, tile - 2, thread) : 0;
        if (tile > first) fetch(tile - 1, buffer ^ 1);
        close_copies();
        await_copies();
        spread_terms(tiles, buffer);
        spread_cells(p, shared, buffer);
        __syncthreads();
        if (ADJOINT_ONLY) {
#pragma unroll 8
            for (int row = TILE - 1; row >= 0; --row) carry_back(shared, row, log2_rate, carry, duration);
        } else {
#if KEEP == TILE
            walk_ahead(shared, log2_rate);
#endif
#pragma unroll 1
            for (int subtile = SUBTILES - 1; subtile >= 0; --subtile) {
                float h[THREAD_STATES];
                read_kept(shared, subtile, h);
                go_back(shared, subtile * STEPS, h, log2_rate, carry, dA);
            }
            if (tile > first) fetch_kept(p, shared, tile - 1);
            close_copies();
        }
        if (thread < TILE) tiles.order[((last - tile + 2) & 3) * TILE + thread] = upcoming;
        __syncthreads();
        if (!ADJOINT_ONLY) {
            write_gradients(p, shared, order, buffer);
            write_term_gradients(p, shared, order);
        }
    }
    const int channel = blockIdx.x * CHANNELS + lane_channel();
    if (ADJOINT_ONLY) {
        store_states(states_at(p, p.carries, carry_index), carry);
        if (lane_quarter() == 0 && channel < p.num_channels)
            p.durations[carry_index * p.num_channels + channel] = duration;
        return;
    }
    const Long part = (Long)batch * p.num_chunks + chunk;
#pragma unroll
    for (int i = 0; i < THREAD_STATES; ++i)
        if (channel < p.num_channels && lane_states() + i < p.num_states)
            p.dA[(part * p.num_channels + channel) * p.num_states + lane_states() + i] = dA[i];
    write_totals(p, shared, part);
}

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) scan_backward(const Params p) { walk_back<false>(p); }

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) scan_chunk_adjoints(const Params p) {
    walk_back<true>(p);
}
