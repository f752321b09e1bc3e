// The output, and the state at the end of pieces.

struct Front {  // shared memory of the forward pass
    Common common;
    alignas(16) Byte state[STATE_BYTES];
    Byte x[STAGES][SLICE_BYTES], B[STAGES][TERM_BYTES], C[STAGES][TERM_BYTES];
};
static_assert(sizeof(Front) == FORWARD_BYTES, "Layout.forward_bytes");

__device__ __forceinline__ void copy_inputs(const Params& p, const Walk& w, Front& m, int stage, const int* rows, bool want_C) {
    copy_tile<SLICE>(m.x[stage], w.x, (int)p.x_row * ROW_BYTES, rows, SLICE);
    copy_tile<STATES>(m.B[stage], w.B, (int)p.B_row * ROW_BYTES, rows, NUM_STATES);
    if (want_C) copy_tile<STATES>(m.C[stage], w.C, (int)p.C_row * ROW_BYTES, rows, NUM_STATES);
    close_copies();
}

__device__ __forceinline__ void convert_inputs(Front& m, int stage, bool want_C) {
    convert_tile<SLICE>(m.x[stage]);
    convert_tile<STATES>(m.B[stage]);
    if (want_C) convert_tile<STATES>(m.C[stage]);
}

// S d L + skip for tokens low and low + 8 of the chunk and 16 tokens j; `masked` if some of these come later.
__device__ __forceinline__ void scale_square(Sum& s, const Vectors& v, int low, int j, bool masked, float skip) {
    const float F[2] = {v.F[low], v.F[low + 8]}, rest[2] = {v.rest[low], v.rest[low + 8]};
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int column = j + t * 8 + LANE_COLUMN + e;
            const float column_F = v.F[column], column_rest = v.rest[column], d = v.d[column];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float& a = s[t][r * 2 + e];
                a *= d * decay(F[r], rest[r], column_F, column_rest);
                if (masked) a = column < low + r * 8 ? a : column == low + r * 8 ? a + skip : 0.f;
            }
        }
}

// Multiplies y by silu(gate), if there is a gate, and writes it for 16 tokens of the chunk; with SQUARED, also the part of
// the rows' mean square.
__device__ __forceinline__ void finish_output(
    const Params& p, const Walk& w, const int* rows, const Patch (&gate)[GATED ? SLICE_BLOCKS : 1], Sum (&y)[SLICE_BLOCKS]
) {
    const int stride = (int)p.num_heads * SLICES * SLICE;
    float squares[2] = {0.f, 0.f};
#pragma unroll
    for (int b = 0; b < SLICE_BLOCKS; ++b) {
        if (GATED) {
            Sum z;
            spread(z, gate[b]);
#pragma unroll
            for (int t = 0; t < 2; ++t)
#pragma unroll
                for (int i = 0; i < 4; ++i) y[b][t][i] *= z[t][i] * gate_sigmoid(z[t][i]);
        }
        put(own_rows(w, p.out, p.num_tokens * stride), stride, rows, b * 16, y[b]);
#pragma unroll
        for (int i = 0; i < 8; ++i) squares[i / 2 % 2] = fmaf(y[b][i / 4][i % 4], y[b][i / 4][i % 4], squares[i / 2 % 2]);
    }
    if (!SQUARED) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float sum = quad_sum(squares[half]);
        const int row = rows[LANE_ROW + half * 8];
        if ((LANE & 3) == 0 && row >= 0) *square_of(p, w, row) = sum * (1.f / stride);
    }
}

// y = M x + 2^F C H for 16 tokens of the chunk. Unless it is the last one, its share of the state is added as well.
__device__ __forceinline__ void forward_chunk(
    const Params& p, const Walk& w, const Front& m, int stage, const Vectors& v, const int* rows, int block, State& state,
    bool last
) {
    const Byte *x = m.x[stage], *B = m.B[stage], *C = m.C[stage];
    const int low = block * 16 + LANE_ROW, high = low + 8;
    const float skip = p.skip ? p.skip[w.head] : 0.f;
    Patch gate[GATED ? SLICE_BLOCKS : 1];
    Sum y[SLICE_BLOCKS];
    Left c[STATE_BLOCKS];
#pragma unroll
    for (int n = 0; n < STATE_BLOCKS; ++n) load_left<STATES>(c[n], C, block * 16, n * 16);
#pragma unroll
    for (int b = 0; b < SLICE_BLOCKS; ++b) {
        clear(y[b]);
#pragma unroll
        for (int n = 0; n < STATE_BLOCKS; ++n) {
            Right h;
            load_right_turned<SLICE>(h, m.state, n * 16, b * 16);
            multiply_into(y[b], c[n], h);
        }
        scale_rows(y[b], v.from_start[low], v.from_start[high]);
    }
#pragma unroll 1
    for (int j = 0; j <= block; ++j) {
        Sum s;
        clear(s);
#pragma unroll
        for (int n = 0; n < STATE_BLOCKS; ++n) {
            Right b;
            load_right<STATES>(b, B, j * 16, n * 16);
            multiply_into(s, c[n], b);
        }
        scale_square(s, v, low, j * 16, j == block, skip);
        Left M;
        as_left(M, s);
#pragma unroll
        for (int b = 0; b < SLICE_BLOCKS; ++b) {
            Right right;
            load_right_turned<SLICE>(right, x, j * 16, b * 16);
            multiply_into(y[b], M, right);
        }
    }
    if (GATED)
#pragma unroll
        for (int b = 0; b < SLICE_BLOCKS; ++b) fetch(gate[b], gate_of(p, w), (int)p.gate_row, rows + block * 16, b * 16);
    if (!last) {
        scale_state(state, v.from_start[TOKENS - 1]);
        add_to_state(w, state, B, v.weight, x);
    }
    finish_output(p, w, rows + block * 16, gate, y);
}

__device__ __forceinline__ void write_states(const Params& p, const Walk& w, int chunk, const Byte* tile) {
    uint4* to = (uint4*)((Byte*)p.states + (w.sequence * p.num_chunks + chunk) * STATE_BYTES);
#pragma unroll
    for (int i = 0; i < STATE_BYTES / 16 / THREADS; ++i) {
        const int piece = i * THREADS + threadIdx.x;
        const int row = piece / (SLICE / GRANULE), column = piece % (SLICE / GRANULE) * GRANULE;
        to[piece] = *(const uint4*)(tile + place<SLICE>(row, column));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) ssd_forward(const Params p) {
    DYNAMIC_SHARED(memory);
    if (!p.carries) await_previous_kernel();
    Front& m = *(Front*)memory;
    Walk w;
    start(p, w);
    State state;
    open_walk(p, w, m.common, w.begin, 1);
    copy_inputs(p, w, m, 0, m.common.rows[0], true);
    make_first_vectors(p, w, m.common);
    if (p.carries) await_previous_kernel();  // which computes the carries, after it waited for those before it
    read_carries(p, w, state, 0, w.piece * (int)p.carry_parts, 1);
    store_state(w, m.state, state);
    for (int chunk = w.begin, i = 0; chunk < w.end; ++chunk, ++i) {
        const int stage = STAGES == 2 ? i % 2 : 0;
        const int *rows = m.common.rows[i % ROW_BUFFERS], *next_rows = m.common.rows[(i + 1) % ROW_BUFFERS];
        close_copies();
        await_copies();
        convert_inputs(m, stage, true);
        __syncthreads();
        if (STAGES == 2 && chunk + 1 < w.end) copy_inputs(p, w, m, 1 - stage, next_rows, true);
        float dt[PER_LANE];
        if (w.warp == 0) load_steps(p, w, next_rows, dt);
        int far_row = 0;
        if (threadIdx.x < TOKENS) far_row = row_of(p, w, chunk + 2, threadIdx.x);
        if (GATED && threadIdx.x < TOKENS && next_rows[threadIdx.x] >= 0)
            prefetch(gate_of(p, w) + next_rows[threadIdx.x] * p.gate_row);
        if (KEEPING) write_states(p, w, chunk, m.state);
        forward_chunk(p, w, m, stage, m.common.vectors[i % 2], rows, block_of(w, i), state, chunk + 1 == w.end);
        if (w.warp == 0) make_vectors(w, next_rows, dt, m.common.vectors[1 - i % 2]);
        if (threadIdx.x < TOKENS) m.common.rows[(i + 2) % ROW_BUFFERS][threadIdx.x] = far_row;
        __syncthreads();
        store_state(w, m.state, state);
        if (STAGES == 1 && chunk + 1 < w.end) copy_inputs(p, w, m, 0, next_rows, true);
    }
}

// The state at the end of a part of a piece that starts with 0, and its log decay.
extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) ssd_forward_carries(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    Front& m = *(Front*)memory;
    Walk w;
    start(p, w);
    if (w.piece >= (int)gridDim.z - (int)p.carry_parts) return;  // no piece comes after it
    State state;
    FOR_STATE(a, b) clear(state[a][b]);
    open_walk(p, w, m.common, w.begin, 1);
    copy_inputs(p, w, m, 0, m.common.rows[0], false);
    make_first_vectors(p, w, m.common);
    float duration = 0.f;
    for (int chunk = w.begin, i = 0; chunk < w.end; ++chunk, ++i) {
        const int stage = STAGES == 2 ? i % 2 : 0;
        const int* next_rows = m.common.rows[(i + 1) % ROW_BUFFERS];
        const Vectors& v = m.common.vectors[i % 2];
        close_copies();
        await_copies();
        convert_inputs(m, stage, false);
        __syncthreads();
        if (STAGES == 2 && chunk + 1 < w.end) copy_inputs(p, w, m, 1 - stage, next_rows, false);
        float dt[PER_LANE];
        if (w.warp == 0) load_steps(p, w, next_rows, dt);
        int far_row = 0;
        if (threadIdx.x < TOKENS) far_row = row_of(p, w, chunk + 2, threadIdx.x);
        scale_state(state, v.from_start[TOKENS - 1]);
        add_to_state(w, state, m.B[stage], v.weight, m.x[stage]);
        duration += v.F[TOKENS - 1];
        if (w.warp == 0) make_vectors(w, next_rows, dt, m.common.vectors[1 - i % 2]);
        if (threadIdx.x < TOKENS) m.common.rows[(i + 2) % ROW_BUFFERS][threadIdx.x] = far_row;
        __syncthreads();
        if (STAGES == 1 && chunk + 1 < w.end) copy_inputs(p, w, m, 0, next_rows, false);
    }
    write_carry(p, w, state, duration);
}
