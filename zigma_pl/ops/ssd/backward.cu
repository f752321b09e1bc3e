// The walk of the backward pass, see adjoints.cu, and the gradient of the state at the start of pieces.

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) ssd_backward(const Params p) {
    DYNAMIC_SHARED(memory);
    Back& m = *(Back*)memory;
    Walk w;
    start(p, w);
    const float A = p.A[w.head], skip = p.skip ? p.skip[w.head] : 0.f;
    float dA = 0.f, dbias = 0.f, dskip = 0.f;
    State R;
    read_carries(p, w, R, gridDim.z * (int)p.carry_parts - 1, (w.piece + 1) * (int)p.carry_parts - 1, -1);
    open_walk(p, w, m.common, w.end - 1, -1);
    store_state(w, m.R, R);
    copy_terms(p, w, m, w.end - 1, m.common.rows[0]);
    clear_squares(m);
    Adjoints adjoints;
    if (EARLY) fetch_adjoints(p, w, m.common.rows[0], adjoints);
    for (int chunk = w.end - 1, i = 0; chunk >= w.begin; --chunk, ++i) {
        const int *rows = m.common.rows[i % ROW_BUFFERS], *next_rows = m.common.rows[(i + 1) % ROW_BUFFERS];
        const Vectors& v = m.common.vectors[i % 2];
        const int block = block_of(w, i);
        if (!EARLY) fetch_adjoints(p, w, rows, adjoints);
        store_adjoints(p, w, adjoints, m.g, rows, GATE_FACTORS);
        close_copies();
        await_copies();
        convert_tile<SLICE>(m.x);
        convert_tile<STATES>(m.B);
        convert_tile<STATES>(m.C);
        publish();
        __syncthreads();
        float dt[PER_LANE];
        if (w.warp == SERIAL_WARP) load_steps(p, w, next_rows, dt);
        int far_row = 0;
        if (threadIdx.x < TOKENS) far_row = row_of(p, w, chunk - 2, threadIdx.x);
        if (PREFETCH && chunk > w.begin) prefetch_chunk(p, w, chunk - 1, next_rows);
        before_squares(p, w, m, v, block, rows, skip, dskip);
        after_squares(p, w, m, v, block, rows, R);
        if (EARLY) fetch_adjoints(p, w, next_rows, adjoints);
        if (w.warp == SERIAL_WARP) make_vectors(w, next_rows, dt, m.common.vectors[1 - i % 2]);
        if (threadIdx.x < TOKENS) m.common.rows[(i + 2) % ROW_BUFFERS][threadIdx.x] = far_row;
        __syncthreads();
        store_state(w, m.R, R);
        if (chunk > w.begin) copy_terms(p, w, m, chunk - 1, next_rows);
        if (w.warp == SERIAL_WARP) finish_steps(p, w, m.sums, v, rows, A, dA, dbias);
    }
    dA = warp_sum(dA), dbias = warp_sum(dbias), dskip = warp_sum(dskip);
    if (LANE == 0) m.skips[w.warp] = dskip;
    __syncthreads();
    if (threadIdx.x != SERIAL_WARP * 32) return;
    float* sums = p.sums + ((w.batch * gridDim.z + w.piece) * p.num_heads * SLICES + blockIdx.x) * 3;
    dskip = 0.f;
    for (int warp = 0; warp < WARPS; ++warp) dskip += m.skips[warp];
    sums[0] = dA, sums[1] = dskip, sums[2] = dbias;
}

// The gradient of the state at the start of a part of a piece that ends with 0, and its log decay.
extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) ssd_backward_carries(const Params p) {
    DYNAMIC_SHARED(memory);
    Back& m = *(Back*)memory;
    Walk w;
    start(p, w);
    if (w.piece < (int)p.carry_parts) return;  // no piece comes before it
    State R;
    FOR_STATE(a, b) clear(R[a][b]);
    open_walk(p, w, m.common, w.end - 1, -1);
    Adjoints adjoints;
    if (EARLY) fetch_adjoints(p, w, m.common.rows[0], adjoints);
    copy_tile<STATES>(m.C, w.C, (int)p.C_row * ROW_BYTES, m.common.rows[0], NUM_STATES);
    close_copies();
    float duration = 0.f;
    for (int chunk = w.end - 1, i = 0; chunk >= w.begin; --chunk, ++i) {
        const int *rows = m.common.rows[i % ROW_BUFFERS], *next_rows = m.common.rows[(i + 1) % ROW_BUFFERS];
        const Vectors& v = m.common.vectors[i % 2];
        Byte *C = EARLY && i % 2 ? m.B : m.C, *next_C = EARLY && i % 2 == 0 ? m.B : m.C;
        if (!EARLY) fetch_adjoints(p, w, rows, adjoints);
        store_adjoints(p, w, adjoints, m.g, rows, false);
        close_copies();
        await_copies();
        convert_tile<STATES>(C);
        __syncthreads();
        if (EARLY && chunk > w.begin) {
            copy_tile<STATES>(next_C, w.C, (int)p.C_row * ROW_BYTES, next_rows, NUM_STATES);
            close_copies();
            fetch_adjoints(p, w, next_rows, adjoints);
        }
        float dt[PER_LANE];
        if (w.warp == 0) load_steps(p, w, next_rows, dt);
        int far_row = 0;
        if (threadIdx.x < TOKENS) far_row = row_of(p, w, chunk - 2, threadIdx.x);
        scale_state(R, v.from_start[TOKENS - 1]);
        add_to_state(w, R, C, v.from_start, m.g);
        duration += v.F[TOKENS - 1];
        if (w.warp == 0) make_vectors(w, next_rows, dt, m.common.vectors[1 - i % 2]);
        if (threadIdx.x < TOKENS) m.common.rows[(i + 2) % ROW_BUFFERS][threadIdx.x] = far_row;
        __syncthreads();
        if (!EARLY && chunk > w.begin) {
            copy_tile<STATES>(m.C, w.C, (int)p.C_row * ROW_BYTES, next_rows, NUM_STATES);
            close_copies();
        }
    }
    write_carry(p, w, R, duration);
}
