// The walk of the backward pass, see adjoints.cu, and the gradient of the state at the start of pieces.

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
    return x;
}

// Puts the product of the gradient of the state after a chunk with the state before it among the chunk's sums.
__device__ __forceinline__ void sum_through(const Walk& w, Back& m, const State& R) {
    float through = 0.f;
    FOR_STATE(a, b) {
        Sum H;
        read_sum<SLICE>(H, m.H, w.state_row + a * 16, w.state_column + b * 16);
#pragma unroll
        for (int e = 0; e < 8; ++e) through = fmaf(H[e / 4][e % 4], R[a][b][e / 4][e % 4], through);
    }
    through = warp_sum(through);
    if (LANE == 0) m.sums.through[w.warp] = through;
}

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) ssd_backward(const Params p) {
    DYNAMIC_SHARED(memory);
    if (!p.carries) await_previous_kernel();
    Back& m = *(Back*)memory;
    Walk w;
    start(p, w);
    const float A = decay_rate(p, w.head), skip = p.skip ? p.skip[w.head] : 0.f;
    float dA = 0.f, dbias = 0.f, dskip = 0.f;
    State R;
    open_walk(p, w, m.common, w.end - 1, -1);
    copy_terms(p, w, m, w.end - 1, m.common.rows[0]);
    make_first_vectors(p, w, m.common);
    if (p.carries) await_previous_kernel();  // see ssd_forward
    read_carries(p, w, R, gridDim.z * (int)p.carry_parts - 1, (w.piece + 1) * (int)p.carry_parts - 1, -1);
    store_state(w, m.R, R);
    Adjoints adjoints;
    fetch_adjoints(p, w, m.common.rows[0], adjoints);
    for (int chunk = w.end - 1, i = 0; chunk >= w.begin; --chunk, ++i) {
        const int *rows = m.common.rows[i % ROW_BUFFERS], *next_rows = m.common.rows[(i + 1) % ROW_BUFFERS];
        const Vectors& v = m.common.vectors[i % 2];
        const int block = block_of(w, i);
        store_adjoints(p, w, adjoints, m.g, rows, true);
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
        make_squares(w, m, v, block, skip, dskip);
        make_dx(p, w, m, v, block, rows);
        make_dB(p, w, m, v, block, rows);
        __syncthreads();
        make_dC(p, w, m, v, block, rows);
        if (GATED) make_dgate(p, w, m, v, block, rows);
        sum_through(w, m, R);
        scale_state(R, v.from_start[TOKENS - 1]);
        add_to_state(w, R, m.C, v.from_start, m.g);
        fetch_adjoints(p, w, next_rows, adjoints);  // they arrive during the end of this chunk
        if (w.warp == 0) make_vectors(w, next_rows, dt, m.common.vectors[1 - i % 2]);
        if (threadIdx.x < TOKENS) m.common.rows[(i + 2) % ROW_BUFFERS][threadIdx.x] = far_row;
        __syncthreads();
        store_state(w, m.R, R);
        if (chunk > w.begin) copy_terms(p, w, m, chunk - 1, next_rows);
        if (w.warp == 0) finish_steps(p, w, m.sums, v, rows, A, dA, dbias);
    }
    dA = warp_sum(p.log_A ? dA * A : dA), dbias = warp_sum(dbias), dskip = warp_sum(dskip);
    if (LANE == 0) m.skips[w.warp] = dskip;
    __syncthreads();
    if (threadIdx.x != 0) return;
    const Long at = ADDING ? w.head : (w.batch * gridDim.z + w.piece) * p.num_heads * SLICES + blockIdx.x;
    float* sums = p.sums + at * 3;
    dskip = 0.f;
    for (int warp = 0; warp < WARPS; ++warp) dskip += m.skips[warp];
    if (ADDING)
        add_global(sums, dA), add_global(sums + 1, dskip), add_global(sums + 2, dbias);
    else
        sums[0] = dA, sums[1] = dskip, sums[2] = dbias;
}

// The gradient of the state at the start of a part of a piece that ends with 0, and its log decay.
extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) ssd_backward_carries(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    Back& m = *(Back*)memory;
    Walk w;
    start(p, w);
    if (w.piece < (int)p.carry_parts) return;  // no piece comes before it
    State R;
    FOR_STATE(a, b) clear(R[a][b]);
    open_walk(p, w, m.common, w.end - 1, -1);
    Adjoints adjoints;
    fetch_adjoints(p, w, m.common.rows[0], adjoints);
    copy_tile<STATES>(m.C, w.C, (int)p.C_row * ROW_BYTES, m.common.rows[0], NUM_STATES);
    close_copies();
    make_first_vectors(p, w, m.common);
    float duration = 0.f;
    for (int chunk = w.end - 1, i = 0; chunk >= w.begin; --chunk, ++i) {
        const int *rows = m.common.rows[i % ROW_BUFFERS], *next_rows = m.common.rows[(i + 1) % ROW_BUFFERS];
        const Vectors& v = m.common.vectors[i % 2];
        Byte *C = i % 2 ? m.B : m.C, *next_C = i % 2 ? m.C : m.B;
        store_adjoints(p, w, adjoints, m.g, rows, false);
        close_copies();
        await_copies();
        convert_tile<STATES>(C);
        __syncthreads();
        if (chunk > w.begin) {
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
    }
    write_carry(p, w, R, duration);
}
