// The products of a chunk's tokens with each other, and the gradients of its step sizes.

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

// Scales the products of the warp's tokens j with the tokens of block i, stores them as tiles, and sums over Z.
__device__ __forceinline__ void finish_square(
    const Walk& w, Back& m, const Vectors& v, int block, int i, float skip, Sum& s, Sum& q, float (&earlier)[2],
    float (&own)[2], float& dskip
) {
    const int low = block * 16 + LANE_ROW;
    float z[2][2];
    if (i == block)
        scale_squares(s, q, v, low, i * 16, true, skip, earlier, own, z, dskip);
    else
        scale_squares(s, q, v, low, i * 16, false, skip, earlier, own, z, dskip);
    store_sum<TOKENS>(m.M, block * 16, i * 16, s);
    store_sum<TOKENS>(m.W, block * 16, i * 16, q);
    sum_columns(z, m.sums.later[w.warp] + i * 16);
}

// Stores the sums over Z that belong to the warp's tokens j.
__device__ __forceinline__ void store_token_sums(Back& m, int block, float (&earlier)[2], float (&own)[2]) {
    const int low = block * 16 + LANE_ROW;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        earlier[r] = quad_sum(earlier[r]), own[r] = quad_sum(own[r]);
        if ((LANE & 3) == 0) m.sums.earlier[low + r * 8] = earlier[r], m.sums.own[low + r * 8] = own[r];
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
        finish_square(w, m, v, block, i, skip, s, q, earlier, own, dskip);
    }
    store_token_sums(m, block, earlier, own);
    __syncwarp();
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
        const Long to = w.batch * p.ddt_batch + row * p.ddt_row + w.head;
        if (SLICES > 1)
            ((float*)p.ddt)[w.slice * p.num_batch * p.ddt_batch + to] = dd;
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
