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

// Elements of dout and of the gate that a thread reads for g of a chunk. With SQUARED, also those of out, with the factor
// by which they contribute to dout through the mean square of their row.
#define ADJOINT_ROWS (TOKENS / COPY_STEP(SLICE))
struct Adjoints {
    uint4 douts[ADJOINT_ROWS], gates[ADJOINT_ROWS], outs[SQUARED ? ADJOINT_ROWS : 1];
    float factors[SQUARED ? ADJOINT_ROWS : 1];
};

__device__ __forceinline__ void fetch_adjoints(const Params& p, const Walk& w, const int* rows, Adjoints& to) {
    const int first = threadIdx.x / (SLICE / GRANULE), column = threadIdx.x % (SLICE / GRANULE) * GRANULE;
    const int out_row = (int)p.num_heads * SLICES * SLICE;
    const float slope = 2.f / out_row;
    const Element *dout = dout_of(p, w) + column, *gate = gate_of(p, w) + column;
    const Element* out = own_rows(w, p.out, p.num_tokens * out_row) + column;
#pragma unroll
    for (int i = 0; i < ADJOINT_ROWS; ++i) {
        const int row = rows[first + i * COPY_STEP(SLICE)];
        to.douts[i] = to.gates[i] = make_uint4(0, 0, 0, 0);
        if (SQUARED) to.outs[i] = make_uint4(0, 0, 0, 0), to.factors[i] = 0.f;
        if (row < 0) continue;
        if (SQUARED) to.outs[i] = *(const uint4*)(out + (Long)row * out_row), to.factors[i] = *square_of(p, w, row) * slope;
        to.douts[i] = *(const uint4*)(dout + (Long)row * (int)p.dout_row);
        if (GATED) to.gates[i] = *(const uint4*)(gate + (Long)row * (int)p.gate_row);
    }
}

// Stores g = dout silu(gate) of a chunk; with `factors`, also dout silu'(gate) in the memory of dgate, which is y times
// that.
__device__ __forceinline__ void store_adjoints(
    const Params& p, const Walk& w, const Adjoints& from, Byte* g, const int* rows, bool factors
) {
    const int first = threadIdx.x / (SLICE / GRANULE), column = threadIdx.x % (SLICE / GRANULE) * GRANULE;
#pragma unroll
    for (int i = 0; i < ADJOINT_ROWS; ++i) {
        float values[GRANULE], z[GRANULE];
        unpack16(from.douts[i], values);
        if (SQUARED) {
            unpack16(from.outs[i], z);
#pragma unroll
            for (int e = 0; e < GRANULE; ++e) values[e] = fmaf(z[e], from.factors[i], values[e]);
        }
        unpack16(from.gates[i], z);
        if (GATED && factors) {
            float slopes[GRANULE];
#pragma unroll
            for (int e = 0; e < GRANULE; ++e) {
                const float s = gate_sigmoid(z[e]), scaled = values[e] * s;
                values[e] = scaled * z[e];
                slopes[e] = scaled * fmaf(z[e], 1.f - s, 1.f);
            }
            const int row = rows[first + i * COPY_STEP(SLICE)];
            if (row >= 0) *(uint4*)(own_rows(w, p.dgate, p.dgate_batch) + column + (Long)row * (int)p.dgate_row) = pack16(slopes);
        } else if (GATED) {
#pragma unroll
            for (int e = 0; e < GRANULE; ++e) values[e] *= z[e] * gate_sigmoid(z[e]);
        }
        *(uint4*)(g + place<SLICE>(first, column) + i * COPY_STEP(SLICE) * SLICE * ITEM_BYTES) = pack_items(values);
    }
}

__device__ __forceinline__ const Byte* state_of(const Params& p, const Walk& w, int chunk) {
    return (const Byte*)p.states + (w.sequence * p.num_chunks + chunk) * STATE_BYTES;
}

__device__ __forceinline__ void copy_terms(const Params& p, const Walk& w, Back& m, int chunk, const int* rows) {
    copy_tile<STATES>(m.C, w.C, (int)p.C_row * ROW_BYTES, rows, NUM_STATES);
    copy_tile<STATES>(m.B, w.B, (int)p.B_row * ROW_BYTES, rows, NUM_STATES);
    copy_tile<SLICE>(m.x, w.x, (int)p.x_row * ROW_BYTES, rows, SLICE);
    copy_state(m.H, state_of(p, w, chunk));
    close_copies();
}
