// Gradients of x, B, C and the gate, each for 16 tokens of a chunk.

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
        put(own_rows(w, p.dx, p.dx_batch), (int)p.dx_row, rows + block * 16, b * 16, dx[b]);
}

// Writes or adds 16 tokens of dB (which = 0) or dC (1). Additions change the order of every 16 states, so that a lane adds
// its four with one instruction: state 8 t + 2 q + e is at 4 q + 2 t + e.
__device__ __forceinline__ void write_term(
    const Params& p, const Walk& w, const int* rows, int which, const Sum (&terms)[STATE_BLOCKS]
) {
    const int columns = (int)p.num_groups * NUM_STATES;
    const int part = (int)blockIdx.x - w.group * (int)p.parts;
    float* to = p.dBC + part * p.part_stride + (w.batch * p.num_tokens * 2 + which) * columns + w.group * NUM_STATES + LANE_COLUMN;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = rows[LANE_ROW + half * 8];
        if (row < 0) continue;
        float* at = to + (Long)row * (2 * columns);
#pragma unroll
        for (int n = 0; n < STATE_BLOCKS; ++n) {
            if (ADDING && NUM_STATES % 16 == 0) {
                const float *first = terms[n][0] + half * 2, *second = terms[n][1] + half * 2;
                if (n * 16 < NUM_STATES)
                    add_global4(at + n * 16 + LANE_COLUMN, make_float4(first[0], first[1], second[0], second[1]));
                continue;
            }
#pragma unroll
            for (int t = 0; t < 2; ++t) {
                if (n * 16 + t * 8 >= NUM_STATES) continue;
                const float2 two = make_float2(terms[n][t][half * 2], terms[n][t][half * 2 + 1]);
                if (ADDING)
                    add_global2(at + n * 16 + t * 8, two);
                else
                    *(float2*)(at + n * 16 + t * 8) = two;
            }
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

// Columns of 16 tokens as a lane loads and stores them for dgate.
#define GATE_STEP (32 / (SLICE / GRANULE))  // rows at a time
struct GateRows { uint4 at[16 / GATE_STEP]; };

// Reads dout silu'(gate), which is in the memory of dgate, see store_adjoints.
__device__ __forceinline__ void fetch_factors(const Params& p, const Walk& w, int block, const int* rows, GateRows& to) {
    const int first = block * 16 + LANE / (SLICE / GRANULE), column = LANE % (SLICE / GRANULE) * GRANULE;
#pragma unroll
    for (int i = 0; i < 16 / GATE_STEP; ++i) {
        const int row = max(rows[first + i * GATE_STEP], 0);
        to.at[i] = *(const uint4*)(own_rows(w, p.dgate, p.dgate_batch) + column + (Long)row * (int)p.dgate_row);
    }
}

// Writes dgate of 16 tokens i from y, which passes through the tile of R, which is not needed any more.
__device__ __forceinline__ void finish_dgate(
    const Params& p, const Walk& w, Back& m, int block, const int* rows, const GateRows& factors,
    const Sum (&y)[SLICE_BLOCKS]
) {
    const int first = block * 16 + LANE / (SLICE / GRANULE), column = LANE % (SLICE / GRANULE) * GRANULE;
#pragma unroll
    for (int b = 0; b < SLICE_BLOCKS; ++b) store_sum<SLICE>(m.R, block * 16, b * 16, y[b]);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 / GATE_STEP; ++i) {
        float values[GRANULE], f[GRANULE];
        unpack_items(*(const uint4*)(m.R + place<SLICE>(first + i * GATE_STEP, column)), values);
        unpack16(factors.at[i], f);
#pragma unroll
        for (int e = 0; e < GRANULE; ++e) values[e] *= f[e];
        const int row = rows[first + i * GATE_STEP];
        if (row >= 0) *(uint4*)(own_rows(w, p.dgate, p.dgate_batch) + column + (Long)row * (int)p.dgate_row) = pack16(values);
    }
}

// dgate of 16 tokens i, for which y is computed again.
__device__ __forceinline__ void make_dgate(
    const Params& p, const Walk& w, Back& m, const Vectors& v, int block, const int* rows
) {
    GateRows factors;
    fetch_factors(p, w, block, rows, factors);
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
    finish_dgate(p, w, m, block, rows, factors, y);
}
