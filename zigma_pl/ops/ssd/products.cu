// The two halves of the work on a chunk in the backward pass. Between them, a barrier completes the products of its tokens
// with each other in shared memory.

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

#if !WARPGROUPS
__device__ __forceinline__ void clear_squares(Back& m) {}  // what is not written is not read

__device__ __forceinline__ void before_squares(
    const Params& p, const Walk& w, Back& m, const Vectors& v, int block, const int* rows, float skip, float& dskip
) {
    make_squares(w, m, v, block, skip, dskip);
    make_dx(p, w, m, v, block, rows);
    make_dB(p, w, m, v, block, rows);
    __syncthreads();
}

__device__ __forceinline__ void after_squares(
    const Params& p, const Walk& w, Back& m, const Vectors& v, int block, const int* rows, State& R
) {
    make_dC(p, w, m, v, block, rows);
    if (GATED) make_dgate(p, w, m, v, block, rows);
    sum_through(w, m, R);
    scale_state(R, v.from_start[TOKENS - 1]);
    add_to_state(w, R, m.C, v.from_start, m.g);
}
#else
// Clears the tiles of the squares: products read them whole, of which only blocks with i >= j are written.
__device__ __forceinline__ void clear_squares(Back& m) {
    for (int at = threadIdx.x * 16; at < SQUARE_BYTES; at += THREADS * 16)
        *(uint4*)(m.M + at) = *(uint4*)(m.W + at) = make_uint4(0, 0, 0, 0);
}

// dx and dB, with S L d + skip and W L d of the warp's tokens j as left factors and, transposed, in tiles.
__device__ __forceinline__ void before_squares(
    const Params& p, const Walk& w, Back& m, const Vectors& v, int block, const int* rows, float skip, float& dskip
) {
    const int low = block * 16 + LANE_ROW, high = low + 8;
    Product dx, dB;
    open_products();
    multiply_tiles<false, true>(dx, m.B, m.R, false);
    close_products();
    multiply_tiles<false, false>(dB, m.x, m.R, false);
    close_products();
    for (int i = LANE; i < block * 16; i += 32) m.sums.later[w.warp][i] = 0.f;
    await_products<1>();
    settle(dx);
    float to_low = 0.f, to_high = 0.f;
    scale_product(dx, v.to_end[low], v.to_end[high]);
#pragma unroll
    for (int b = 0; b < SLICE_BLOCKS; ++b) dot_rows<SLICE>(dx[b], m.x, block * 16, b * 16, to_low, to_high);
    scale_product(dx, v.d[low], v.d[high]);
    to_low = quad_sum(to_low), to_high = quad_sum(to_high);
    if ((LANE & 3) == 0) m.sums.to_state[low] = to_low, m.sums.to_state[high] = to_high;
    await_products<0>();
    settle(dB);
    scale_product(dB, v.weight[low], v.weight[high]);
    float earlier[2] = {0.f, 0.f}, own[2] = {0.f, 0.f};
#pragma unroll 1
    for (int i = 0; i < BLOCKS; ++i) {
        Sum s, q;
        open_products();
        multiply_columns(s, m.B, m.C, i);
        multiply_columns(q, m.x, m.g, i);
        close_products();
        await_products<0>();
        settle(s), settle(q), settle(dx), settle(dB);
        if (i < block) {
            clear(s), clear(q);
        } else {
            finish_square(w, m, v, block, i, skip, s, q, earlier, own, dskip);
        }
        Left M, W;
        as_left(M, s), as_left(W, q);
        open_products();
        multiply_rows(dx, M, m.g, i);
        close_products();
        multiply_rows(dB, W, m.C, i);
        close_products();
    }
    store_token_sums(m, block, earlier, own);
    await_products<1>();
    settle(dx);
#if !STAGED
#pragma unroll
    for (int b = 0; b < SLICE_BLOCKS; ++b) put(own_rows(p, w, p.dx), own_stride(p), rows + block * 16, b * 16, dx[b]);
#endif
    await_products<0>();
    settle(dB);
    write_term(p, w, rows + block * 16, 0, dB);
    publish();
    __syncthreads();
#if STAGED
    Granules staged;
    pass_through(staged, m.R, block, dx);
    put_granules(own_rows(p, w, p.dx), own_stride(p), rows + block * 16, staged);
#endif
}

// dC, dgate and the gradient of the state before the chunk.
__device__ __forceinline__ void after_squares(
    const Params& p, const Walk& w, Back& m, const Vectors& v, int block, const int* rows, State& R
) {
    const int low = block * 16 + LANE_ROW, high = low + 8;
    Product dC, y;
    open_products();
    multiply_tiles<false, false>(dC, m.g, m.H, false);
    if (GATED) multiply_tiles<false, true>(y, m.C, m.H, false);
    close_products();
    sum_through(w, m, R);
    await_products<0>();
    settle(dC);
    float from_low = 0.f, from_high = 0.f;
    scale_product(dC, v.from_start[low], v.from_start[high]);
#pragma unroll
    for (int n = 0; n < STATE_BLOCKS; ++n) dot_rows<STATES>(dC[n], m.C, block * 16, n * 16, from_low, from_high);
    if (GATED) settle(y), scale_product(y, v.from_start[low], v.from_start[high]);
    scale_state(R, v.from_start[TOKENS - 1]);
    Left terms[TILE_BLOCKS];
    load_terms(w, terms, m.C, v.from_start);
    open_products();
    multiply_tiles<true, true>(dC, m.W, m.B, true);
    close_products();
    if (GATED) multiply_tiles<true, true>(y, m.M, m.x, true);
    close_products();
    multiply_rows(R[0], terms, m.g);
    close_products();
    from_low = quad_sum(from_low), from_high = quad_sum(from_high);
    if ((LANE & 3) == 0) m.sums.from_state[low] = from_low, m.sums.from_state[high] = from_high;
    await_products<2>();
    settle(dC);
    write_term(p, w, rows + block * 16, 1, dC);
    if (GATED) {
        GateRows from;
        fetch_gates(p, w, block, rows, from);
        await_products<1>();
        settle(y);
        finish_dgate(p, w, m, block, rows, from, y);
    }
    await_products<0>();
    settle(R[0]);
}
#endif
