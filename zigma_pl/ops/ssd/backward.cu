// All gradients, in a walk along the path in reverse. With R the gradient of the state at the end of a chunk, g that of
// y, L[i][j] = 2^(F[i] - F[j]), S = C B^T and W = g x^T, both for j <= i:
//   dx[j] = sum of S L d[j] g[i] + weight[j] B[j] R + skip g[j]
//   dB[j] = sum of W L d[j] C[i] + weight[j] R x[j]
//   dC[i] = sum of W L d[j] B[j] + 2^F[i] H g[i]
//   R'    = 2^F[last] R + sum of 2^F[i] C[i] g[i]^T
// The gradient of the log decay of token k is the sum of all contributions that pass from tokens before k to tokens from k
// on: of Z = S W L d for j < k <= i, of 2^F[i] g[i] C[i] H for i >= k, of weight[j] x[j] B[j] R for j < k, and of the state
// that passes the whole chunk. Sums over rows and columns of one and the same Z cancel exactly up to float32 rounding.

struct Sums {  // over the chunk's tokens; each warp writes its own part of `later` and `through`
    float later[WARPS][TOKENS];  // sum over j < i of Z[i][j]
    float earlier[TOKENS];       // sum over i > j of Z[i][j] / d[j]
    float own[TOKENS];           // S W at i = j
    float from_state[TOKENS];    // 2^F[i] g[i] C[i] H
    float to_state[TOKENS];      // to_end[j] x[j] B[j] R
    float through[WARPS];        // R H
};

struct Back {  // shared memory of the backward pass
    Common common;
    Sums sums;
    float skips[WARPS];
    alignas(16) Byte R[STATE_BYTES > SLICE_BYTES ? STATE_BYTES : SLICE_BYTES];  // later also y of the chunk
    Byte H[STATE_BYTES], x[SLICE_BYTES], g[SLICE_BYTES], B[TERM_BYTES], C[TERM_BYTES], M[SQUARE_BYTES], W[SQUARE_BYTES];
};
static_assert(sizeof(Back) == BACKWARD_BYTES, "Layout.backward_bytes");

// Reads a granule of a tile, or writes it, 16 bytes of items.
__device__ __forceinline__ void read_granule(const Byte* from, float* values) {
    const uint4 raw = *(const uint4*)from;
    const Word w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#if ROW_KIND == 0
        values[i] = __uint_as_float(w[i]);
#else
        values[2 * i] = low_item(w[i]), values[2 * i + 1] = high_item(w[i]);
#endif
}

__device__ __forceinline__ void write_granule(Byte* to, const float* values) {
    Word w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#if ROW_KIND == 0
        w[i] = __float_as_uint(values[i]);
#else
        w[i] = pack_bfloats(values[2 * i], values[2 * i + 1]);
#endif
    *(uint4*)to = make_uint4(w[0], w[1], w[2], w[3]);
}

// Stores g = dout silu(gate) of a chunk.
__device__ __forceinline__ void make_adjoints(const Params& p, const Walk& w, Byte* g, const int* rows) {
    constexpr int count = TOKENS / COPY_STEP(SLICE);
    const int first = threadIdx.x / (SLICE / GRANULE), column = threadIdx.x % (SLICE / GRANULE) * GRANULE;
    const Element *dout = dout_of(p, w) + column, *gate = gate_of(p, w) + column;
    uint4 douts[count], gates[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
        const Long row = rows[first + i * COPY_STEP(SLICE)];
        douts[i] = gates[i] = make_uint4(0, 0, 0, 0);
        if (row < 0) continue;
        douts[i] = *(const uint4*)(dout + row * p.dout_row);
        if (GATED) gates[i] = *(const uint4*)(gate + row * p.gate_row);
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
        float values[GRANULE], z[GRANULE];
        unpack16(douts[i], values);
        unpack16(gates[i], z);
#pragma unroll
        for (int e = 0; e < GRANULE; ++e)
            if (GATED) values[e] *= z[e] * sigmoid(z[e]);
        write_granule(g + place<SLICE>(first, column) + i * COPY_STEP(SLICE) * SLICE * ITEM_BYTES, values);
    }
}

__device__ __forceinline__ const Byte* state_of(const Params& p, const Walk& w, int chunk) {
    return (const Byte*)p.states + (w.sequence * p.num_chunks + chunk) * STATE_BYTES;
}

__device__ __forceinline__ void copy_terms(const Params& p, const Walk& w, Back& m, int chunk, const int* rows) {
    copy_tile<STATES>(m.C, w.C, (int)p.C_row * ROW_BYTES, rows, (int)p.num_states);
    copy_tile<STATES>(m.B, w.B, (int)p.B_row * ROW_BYTES, rows, (int)p.num_states);
    copy_tile<SLICE>(m.x, w.x, (int)p.x_row * ROW_BYTES, rows, SLICE);
    copy_state(m.H, state_of(p, w, chunk));
    close_copies();
}

// Starts loading the rows and the state of a chunk into the second-level cache.
__device__ __forceinline__ void prefetch_chunk(const Params& p, const Walk& w, int chunk, const int* rows) {
    const Long row = rows[threadIdx.x % TOKENS];
    if (row >= 0 && threadIdx.x < TOKENS) prefetch(w.x + row * p.x_row);
    if (row >= 0 && threadIdx.x < TOKENS) prefetch(dout_of(p, w) + row * p.dout_row);
    if (GATED && row >= 0 && threadIdx.x >= TOKENS) prefetch(gate_of(p, w) + row * p.gate_row);
    for (int at = threadIdx.x * 128; at < STATE_BYTES; at += THREADS * 128) prefetch(state_of(p, w, chunk) + at);
}

// Sums over the rows that the lanes of a column hold: z[t][e] belongs to column 8 t + LANE_COLUMN + e.
__device__ __forceinline__ void sum_columns(const float (&z)[2][2], float* sums) {
    const int t = LANE >> 2 & 1, e = LANE >> 3 & 1;  // what a lane keeps
    const float first = (t ? z[1][0] : z[0][0]) + __shfl_xor_sync(0xffffffffu, t ? z[0][0] : z[1][0], 4);
    const float second = (t ? z[1][1] : z[0][1]) + __shfl_xor_sync(0xffffffffu, t ? z[0][1] : z[1][1], 4);
    float sum = (e ? second : first) + __shfl_xor_sync(0xffffffffu, e ? first : second, 8);
    sum += __shfl_xor_sync(0xffffffffu, sum, 16);
    if (LANE < 16) sums[t * 8 + LANE_COLUMN + e] = sum;
}

// Multiplies S and W of tokens j = low, low + 8 and 16 tokens i by L d, and sums over Z; `masked` if some i are not later.
__device__ __forceinline__ void scale_squares(
    Sum& s, Sum& q, const Vectors& v, int low, int i, bool masked, float skip, float (&earlier)[2], float (&own)[2],
    float (&z)[2][2], float& dskip
) {
    const float F[2] = {v.F[low], v.F[low + 8]}, rest[2] = {v.rest[low], v.rest[low + 8]};
    const float d[2] = {v.d[low], v.d[low + 8]};
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int column = i + t * 8 + LANE_COLUMN + e;
            const float column_F = v.F[column], column_rest = v.rest[column];
            z[t][e] = 0.f;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float &a = s[t][r * 2 + e], &c = q[t][r * 2 + e];
                float factor = decay(column_F, column_rest, F[r], rest[r]), passed = a * c * factor;
                if (masked) {
                    const int token = low + r * 8;
                    if (column == token) own[r] += a * c, dskip += c;
                    factor = column < token ? 0.f : factor;
                    passed = column > token ? passed : 0.f;
                }
                earlier[r] += passed;
                z[t][e] = fmaf(passed, d[r], z[t][e]);
                factor *= d[r];
                a *= factor, c *= factor;
                if (masked && column == low + r * 8) a += skip;
            }
        }
}

// Computes S L d + skip and W L d for 16 tokens j, transposed, and the sums over Z.
__device__ __forceinline__ void make_squares(
    const Walk& w, Back& m, const Vectors& v, int block, float skip, float& dskip
) {
    Left b[STATE_BLOCKS], x[SLICE_BLOCKS];
#pragma unroll
    for (int n = 0; n < STATE_BLOCKS; ++n) load_left<STATES>(b[n], m.B, block * 16, n * 16);
#pragma unroll
    for (int n = 0; n < SLICE_BLOCKS; ++n) load_left<SLICE>(x[n], m.x, block * 16, n * 16);
    const int low = block * 16 + LANE_ROW;
    float earlier[2] = {0.f, 0.f}, own[2] = {0.f, 0.f};
    for (int i = LANE; i < block * 16; i += 32) m.sums.later[w.warp][i] = 0.f;
#pragma unroll 1
    for (int i = block; i < BLOCKS; ++i) {
        Sum s, q;
        clear(s), clear(q);
#pragma unroll
        for (int n = 0; n < STATE_BLOCKS; ++n) {
            Right c;
            load_right<STATES>(c, m.C, i * 16, n * 16);
            multiply_into(s, b[n], c);
        }
#pragma unroll
        for (int n = 0; n < SLICE_BLOCKS; ++n) {
            Right g;
            load_right<SLICE>(g, m.g, i * 16, n * 16);
            multiply_into(q, x[n], g);
        }
        float z[2][2];
        if (i == block)
            scale_squares(s, q, v, low, i * 16, true, skip, earlier, own, z, dskip);
        else
            scale_squares(s, q, v, low, i * 16, false, skip, earlier, own, z, dskip);
        store_sum<TOKENS>(m.M, block * 16, i * 16, s);
        store_sum<TOKENS>(m.W, block * 16, i * 16, q);
        sum_columns(z, m.sums.later[w.warp] + i * 16);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        earlier[r] = quad_sum(earlier[r]), own[r] = quad_sum(own[r]);
        if ((LANE & 3) == 0) m.sums.earlier[low + r * 8] = earlier[r], m.sums.own[low + r * 8] = own[r];
    }
    __syncwarp();
}

// dx of 16 tokens j.
__device__ __forceinline__ void make_dx(
    const Params& p, const Walk& w, Back& m, const Vectors& v, int block, const int* rows
) {
    const int low = block * 16 + LANE_ROW, high = low + 8;
    Sum dx[SLICE_BLOCKS];
    float to_low = 0.f, to_high = 0.f;
#pragma unroll
    for (int b = 0; b < SLICE_BLOCKS; ++b) clear(dx[b]);
#pragma unroll
    for (int n = 0; n < STATE_BLOCKS; ++n) {
        Left left;
        load_left<STATES>(left, m.B, block * 16, n * 16);
#pragma unroll
        for (int b = 0; b < SLICE_BLOCKS; ++b) {
            Right right;
            load_right_turned<SLICE>(right, m.R, n * 16, b * 16);
            multiply_into(dx[b], left, right);
        }
    }
#pragma unroll
    for (int b = 0; b < SLICE_BLOCKS; ++b) {
        scale_rows(dx[b], v.to_end[low], v.to_end[high]);
        dot_rows<SLICE>(dx[b], m.x, block * 16, b * 16, to_low, to_high);
        scale_rows(dx[b], v.d[low], v.d[high]);
    }
    to_low = quad_sum(to_low), to_high = quad_sum(to_high);
    if ((LANE & 3) == 0) m.sums.to_state[low] = to_low, m.sums.to_state[high] = to_high;
#pragma unroll 1
    for (int k = block; k < BLOCKS; ++k) {
        Left left;
        load_left<TOKENS>(left, m.M, block * 16, k * 16);
#pragma unroll
        for (int b = 0; b < SLICE_BLOCKS; ++b) {
            Right right;
            load_right_turned<SLICE>(right, m.g, k * 16, b * 16);
            multiply_into(dx[b], left, right);
        }
    }
#pragma unroll
    for (int b = 0; b < SLICE_BLOCKS; ++b)
        put(own_rows(p, w, p.dx), own_stride(p), rows + block * 16, b * 16, dx[b]);
}

// Writes or adds 16 tokens of dB (which = 0) or dC (1).
__device__ __forceinline__ void write_term(
    const Params& p, const Walk& w, const int* rows, int which, const Sum (&terms)[STATE_BLOCKS]
) {
    const int columns = (int)(p.num_groups * p.num_states), num_states = (int)p.num_states;
    const int part = (w.head % (int)(p.num_heads / p.num_groups)) * SLICES + w.slice;
    float* to = p.dBC + part * p.part_stride + w.group * num_states + LANE_COLUMN;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = rows[LANE_ROW + half * 8];
        if (row < 0) continue;
        float* at = to + ((w.batch * p.num_tokens + row) * 2 + which) * columns;
#pragma unroll
        for (int n = 0; n < STATE_BLOCKS; ++n)
#pragma unroll
            for (int t = 0; t < 2; ++t) {
                if (n * 16 + t * 8 >= num_states) continue;
                const float2 two = make_float2(terms[n][t][half * 2], terms[n][t][half * 2 + 1]);
                if (ADDING)
                    add_global2(at + n * 16 + t * 8, two);
                else
                    *(float2*)(at + n * 16 + t * 8) = two;
            }
    }
}

// terms += rows (TOKENS x SLICE, 16 of them) times the transposed state.
__device__ __forceinline__ void multiply_state(Sum (&terms)[STATE_BLOCKS], const Byte* rows, int block, const Byte* state) {
#pragma unroll
    for (int n = 0; n < STATE_BLOCKS; ++n) clear(terms[n]);
#pragma unroll
    for (int k = 0; k < SLICE_BLOCKS; ++k) {
        Left left;
        load_left<SLICE>(left, rows, block * 16, k * 16);
#pragma unroll
        for (int n = 0; n < STATE_BLOCKS; ++n) {
            Right right;
            load_right<SLICE>(right, state, n * 16, k * 16);
            multiply_into(terms[n], left, right);
        }
    }
}

// dB of 16 tokens j.
__device__ __forceinline__ void make_dB(
    const Params& p, const Walk& w, Back& m, const Vectors& v, int block, const int* rows
) {
    Sum dB[STATE_BLOCKS];
    multiply_state(dB, m.x, block, m.R);
#pragma unroll
    for (int n = 0; n < STATE_BLOCKS; ++n)
        scale_rows(dB[n], v.weight[block * 16 + LANE_ROW], v.weight[block * 16 + LANE_ROW + 8]);
#pragma unroll 1
    for (int k = block; k < BLOCKS; ++k) {
        Left left;
        load_left<TOKENS>(left, m.W, block * 16, k * 16);
#pragma unroll
        for (int n = 0; n < STATE_BLOCKS; ++n) {
            Right right;
            load_right_turned<STATES>(right, m.C, k * 16, n * 16);
            multiply_into(dB[n], left, right);
        }
    }
    write_term(p, w, rows + block * 16, 0, dB);
}

// dC of 16 tokens i.
__device__ __forceinline__ void make_dC(
    const Params& p, const Walk& w, Back& m, const Vectors& v, int block, const int* rows
) {
    const int low = block * 16 + LANE_ROW, high = low + 8;
    Sum dC[STATE_BLOCKS];
    float from_low = 0.f, from_high = 0.f;
    multiply_state(dC, m.g, block, m.H);
#pragma unroll
    for (int n = 0; n < STATE_BLOCKS; ++n) {
        scale_rows(dC[n], v.from_start[low], v.from_start[high]);
        dot_rows<STATES>(dC[n], m.C, block * 16, n * 16, from_low, from_high);
    }
    from_low = quad_sum(from_low), from_high = quad_sum(from_high);
    if ((LANE & 3) == 0) m.sums.from_state[low] = from_low, m.sums.from_state[high] = from_high;
#pragma unroll 1
    for (int k = 0; k <= block; ++k) {
        Left left;
        load_left_turned<TOKENS>(left, m.W, k * 16, block * 16);
#pragma unroll
        for (int n = 0; n < STATE_BLOCKS; ++n) {
            Right right;
            load_right_turned<STATES>(right, m.B, k * 16, n * 16);
            multiply_into(dC[n], left, right);
        }
    }
    write_term(p, w, rows + block * 16, 1, dC);
}

// dgate of 16 tokens i, for which y is computed again. y passes through the tile of R, which is not needed any more.
__device__ __forceinline__ void make_dgate(
    const Params& p, const Walk& w, Back& m, const Vectors& v, int block, const int* rows
) {
    constexpr int step = 32 / (SLICE / GRANULE), count = 16 / step;  // rows at a time
    const int first = block * 16 + LANE / (SLICE / GRANULE), column = LANE % (SLICE / GRANULE) * GRANULE;
    uint4 gates[count], douts[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
        const Long row = max(rows[first + i * step], 0);
        gates[i] = *(const uint4*)(gate_of(p, w) + row * p.gate_row + column);
        douts[i] = *(const uint4*)(dout_of(p, w) + row * p.dout_row + column);
    }
    Sum y[SLICE_BLOCKS];
#pragma unroll
    for (int b = 0; b < SLICE_BLOCKS; ++b) clear(y[b]);
#pragma unroll
    for (int n = 0; n < STATE_BLOCKS; ++n) {
        Left left;
        load_left<STATES>(left, m.C, block * 16, n * 16);
#pragma unroll
        for (int b = 0; b < SLICE_BLOCKS; ++b) {
            Right right;
            load_right_turned<SLICE>(right, m.H, n * 16, b * 16);
            multiply_into(y[b], left, right);
        }
    }
#pragma unroll
    for (int b = 0; b < SLICE_BLOCKS; ++b)
        scale_rows(y[b], v.from_start[block * 16 + LANE_ROW], v.from_start[block * 16 + LANE_ROW + 8]);
#pragma unroll 1
    for (int k = 0; k <= block; ++k) {
        Left left;
        load_left_turned<TOKENS>(left, m.M, k * 16, block * 16);
#pragma unroll
        for (int b = 0; b < SLICE_BLOCKS; ++b) {
            Right right;
            load_right_turned<SLICE>(right, m.x, k * 16, b * 16);
            multiply_into(y[b], left, right);
        }
    }
#pragma unroll
    for (int b = 0; b < SLICE_BLOCKS; ++b) store_sum<SLICE>(m.R, block * 16, b * 16, y[b]);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < count; ++i) {
        float values[GRANULE], z[GRANULE], o[GRANULE];
        read_granule(m.R + place<SLICE>(first + i * step, column), values);
        unpack16(gates[i], z);
        unpack16(douts[i], o);
#pragma unroll
        for (int e = 0; e < GRANULE; ++e) {
            const float s = sigmoid(z[e]);
            values[e] *= o[e] * s * fmaf(z[e], 1.f - s, 1.f);
        }
        const Long row = rows[first + i * step];
        if (row >= 0) *(uint4*)(own_rows(p, w, p.dgate) + row * own_stride(p) + column) = pack16(values);
    }
}

// Executed by one warp: the gradients of a chunk's step sizes from its sums; adds to those of A and of the bias.
__device__ __forceinline__ void finish_steps(
    const Params& p, const Walk& w, const Sums& s, const Vectors& v, const int* rows, float A, float& dA, float& dbias
) {
    float later[PER_LANE], earlier[PER_LANE], behind = 0.f, ahead = 0.f, through = 0.f;
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
        const int at = LANE * PER_LANE + i;
        float sum = 0.f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) sum += s.later[warp][at];
        later[i] = sum - v.d[at] * s.earlier[at] + s.from_state[at];
        earlier[i] = v.d[at] * s.to_state[at];
        behind += later[i], ahead += earlier[i];
    }
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) through += s.through[warp];
    through *= v.from_start[TOKENS - 1];
    float from_here = behind, to_here = ahead;  // sums over the lanes from this one on, and up to it
#pragma unroll
    for (int reach = 1; reach < 32; reach *= 2) {
        const float right = __shfl_down_sync(0xffffffffu, from_here, reach);
        const float left = __shfl_up_sync(0xffffffffu, to_here, reach);
        if (LANE + reach < 32) from_here += right;
        if (LANE >= reach) to_here += left;
    }
    to_here = __shfl_up_sync(0xffffffffu, to_here, 1);
    if (LANE == 0) to_here = 0.f;
    const float after = __shfl_down_sync(0xffffffffu, from_here, 1);
    from_here = LANE == 31 ? 0.f : after;
    float passing[PER_LANE];
#pragma unroll
    for (int i = PER_LANE - 1; i >= 0; --i) passing[i] = through + (from_here += later[i]);
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
        const int at = LANE * PER_LANE + i, row = rows[at];
        passing[i] += to_here;
        to_here += earlier[i];
        const float dd = (s.to_state[at] + s.earlier[at] + s.own[at] + A * passing[i]) * v.slope[at];
        if (row < 0) continue;
        dA = fmaf(v.d[at], passing[i], dA);
        dbias += dd;
        const Long to = (w.batch * p.num_tokens + row) * p.num_heads + w.head;
        if (SLICES > 1)
            ((float*)p.ddt)[w.slice * p.num_batch * p.num_tokens * p.num_heads + to] = dd;
        else
#if DT_KIND == 0
            ((float*)p.ddt)[to] = dd;
#elif DT_KIND == 1
            ((unsigned short*)p.ddt)[to] = (unsigned short)pack_bfloats(dd, 0.f);
#else
            ((unsigned short*)p.ddt)[to] = (unsigned short)pack_halves(dd, 0.f);
#endif
    }
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) ssd_backward(const Params p) {
    DYNAMIC_SHARED(memory);
    Back& m = *(Back*)memory;
    Walk w;
    start(p, w);
    const float A = p.A[w.head], skip = p.skip ? p.skip[w.head] : 0.f;
    float dA = 0.f, dbias = 0.f, dskip = 0.f;
    State R;
    read_carries(p, w, R, gridDim.z - 1, -1);
    open_walk(p, w, m.common, w.end - 1, -1);
    store_state(w, m.R, R);
    copy_terms(p, w, m, w.end - 1, m.common.rows[0]);
    for (int chunk = w.end - 1, i = 0; chunk >= w.begin; --chunk, ++i) {
        const int *rows = m.common.rows[i % ROW_BUFFERS], *next_rows = m.common.rows[(i + 1) % ROW_BUFFERS];
        const Vectors& v = m.common.vectors[i % 2];
        const int block = (w.warp + i + w.head) % BLOCKS;
        make_adjoints(p, w, m.g, rows);
        close_copies();
        await_copies();
        convert_tile<SLICE>(m.x);
        convert_tile<STATES>(m.B);
        convert_tile<STATES>(m.C);
        __syncthreads();
        float dt[PER_LANE];
        if (w.warp == 0) load_steps(p, w, next_rows, dt);
        int far_row = 0;
        if (threadIdx.x < TOKENS) far_row = row_of(p, w, chunk - 2, threadIdx.x);
        if (PREFETCH && chunk > w.begin) prefetch_chunk(p, w, chunk - 1, next_rows);
        make_squares(w, m, v, block, skip, dskip);
        make_dx(p, w, m, v, block, rows);
        make_dB(p, w, m, v, block, rows);
        __syncthreads();
        make_dC(p, w, m, v, block, rows);
        if (GATED) make_dgate(p, w, m, v, block, rows);
        float through = 0.f;
        FOR_STATE(a, b) {
            Sum H;
            read_sum<SLICE>(H, m.H, w.state_row + a * 16, w.state_column + b * 16);
#pragma unroll
            for (int e = 0; e < 8; ++e) through = fmaf(H[e / 4][e % 4], R[a][b][e / 4][e % 4], through);
        }
        through = warp_sum(through);
        if (LANE == 0) m.sums.through[w.warp] = through;
        scale_state(R, v.from_start[TOKENS - 1]);
        add_to_state(w, R, m.C, v.from_start, m.g);
        if (w.warp == 0) make_vectors(w, next_rows, dt, m.common.vectors[1 - i % 2]);
        if (threadIdx.x < TOKENS) m.common.rows[(i + 2) % ROW_BUFFERS][threadIdx.x] = far_row;
        __syncthreads();
        store_state(w, m.R, R);
        if (chunk > w.begin) copy_terms(p, w, m, chunk - 1, next_rows);
        if (w.warp == 0) finish_steps(p, w, m.sums, v, rows, A, dA, dbias);
    }
    dA = warp_sum(dA), dbias = warp_sum(dbias), dskip = warp_sum(dskip);
    if (LANE == 0) m.skips[w.warp] = dskip;
    __syncthreads();
    if (threadIdx.x > 0) return;
    float* sums = p.sums + ((w.batch * gridDim.z + w.piece) * p.num_heads * SLICES + blockIdx.x) * 3;
    dskip = 0.f;
    for (int warp = 0; warp < WARPS; ++warp) dskip += m.skips[warp];
    sums[0] = dA, sums[1] = dskip, sums[2] = dbias;
}

// The gradient of the state at the start of a piece that ends with 0, and the piece's log decay.
extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) ssd_backward_carries(const Params p) {
    DYNAMIC_SHARED(memory);
    Back& m = *(Back*)memory;
    Walk w;
    start(p, w);
    State R;
    FOR_STATE(a, b) clear(R[a][b]);
    open_walk(p, w, m.common, w.end - 1, -1);
    float duration = 0.f;
    for (int chunk = w.end - 1, i = 0; chunk >= w.begin; --chunk, ++i) {
        const int *rows = m.common.rows[i % ROW_BUFFERS], *next_rows = m.common.rows[(i + 1) % ROW_BUFFERS];
        const Vectors& v = m.common.vectors[i % 2];
        copy_tile<STATES>(m.C, w.C, (int)p.C_row * ROW_BYTES, rows, (int)p.num_states);
        close_copies();
        make_adjoints(p, w, m.g, rows);
        close_copies();
        await_copies();
        convert_tile<STATES>(m.C);
        __syncthreads();
        float dt[PER_LANE];
        if (w.warp == 0) load_steps(p, w, next_rows, dt);
        int far_row = 0;
        if (threadIdx.x < TOKENS) far_row = row_of(p, w, chunk - 2, threadIdx.x);
        scale_state(R, v.from_start[TOKENS - 1]);
        add_to_state(w, R, m.C, v.from_start, m.g);
        duration += v.F[TOKENS - 1];
        if (w.warp == 0) make_vectors(w, next_rows, dt, m.common.vectors[1 - i % 2]);
        if (threadIdx.x < TOKENS) m.common.rows[(i + 2) % ROW_BUFFERS][threadIdx.x] = far_row;
        __syncthreads();
    }
    write_carry(p, w, R, duration);
}
