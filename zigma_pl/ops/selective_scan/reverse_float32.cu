// The backward recurrence for float32 rows. All sums over lanes run on the matrix units, as products with matrices of zeros and
// ones, each twice: with the bits of a float32 that the units read, and with the remainder.

// Constant factors of the sums over lanes, see multiply_add; g = lane / 4, q = lane % 4.
struct Selectors {
    float quad[2][4];  // left factors that separate the lanes of a quad: rows 0 to 7, rows 8 to 15
    float column[8];   // right factors that move the sum over a quad to a column: 1 if g is the column
};

struct Lane {};

// Lane 4 g + q has channel g of its warp and quarter q of the states.
__device__ __forceinline__ int lane_channel() { return threadIdx.x / 4; }
__device__ __forceinline__ int lane_quarter() { return threadIdx.x % 4; }

// Addresses of a lane's inputs in one row; those of the following rows are at constant distances.
struct Inputs {
    const float4* cells;  // of its channel
    const float* terms;   // B of its states; C follows after STATES elements
};

__device__ __forceinline__ Inputs inputs_from(const Backward& shared, const Lane&, int row) {
    return {shared.cells + cell_index(row, lane_channel()), shared.tiles.terms + row * TERMS + lane_states()};
}

__device__ __forceinline__ void prepare_terms(const Tiles& tiles, int buffer) { spread_terms(tiles, buffer); }

__device__ __forceinline__ float entering_x(float x) { return x; }

// Computes the states of the STEPS rows that follow the state h[0].
__device__ __forceinline__ void walk_rows(const Inputs& from, const float (&log2_rate)[THREAD_STATES],
                                          float (&decay)[STEPS][THREAD_STATES], float (&h)[STEPS + 1][THREAD_STATES]) {
#pragma unroll
    for (int j = 0; j < STEPS; ++j) {
        const float2 cell = *(const float2*)(from.cells + j * CELL_STRIDE);
        float b[THREAD_STATES];
        load_terms(from.terms + j * TERMS, b);
#pragma unroll
        for (int i = 0; i < THREAD_STATES; ++i) {
            decay[j][i] = exp2_fast(cell.y * log2_rate[i]);
            h[j + 1][i] = fmaf(decay[j][i], h[j][i], cell.x * b[i]);
        }
    }
}

__device__ __forceinline__ Lane prepare_sums(const Backward& shared) {
    const int lane = threadIdx.x, g = lane / 4, q = lane % 4;
    const float low = g == q ? 1.f : 0.f, high = g == q + 4 ? 1.f : 0.f;
    if (lane >= 32) return {};
    shared.quads[lane] = make_float4(low, 0.f, high, 0.f);
    shared.quads[32 + lane] = make_float4(0.f, low, 0.f, high);
    return {};
}

// The quads are read from shared memory because the compiler would recompute constants for every product.
__device__ __forceinline__ void make_selectors(const Backward& shared, Selectors& selectors) {
    const int lane = threadIdx.x % 32;
    const float4 first = shared.quads[lane], second = shared.quads[32 + lane];
    selectors.quad[0][0] = first.x, selectors.quad[0][1] = first.y, selectors.quad[0][2] = first.z;
    selectors.quad[1][0] = second.x, selectors.quad[1][1] = second.y, selectors.quad[1][2] = second.z;
    selectors.quad[0][3] = first.w, selectors.quad[1][3] = second.w;
#pragma unroll
    for (int i = 0; i < 8; ++i) selectors.column[i] = lane / 4 == i ? 1.f : 0.f;
}

// Sums the four values over the quads; call 0 starts a product, the others add to it. The sums of call m are in the lanes with
// q = m: product[0] = sum of v[0], product[2] = of v[1], product[1] = of v[2], product[3] = of v[3].
__device__ __forceinline__ void sum_over_quads(float (&product)[4], const float (&v)[4], const Selectors& selectors, int m) {
    if (m == 0)
        multiply(product, v, selectors.column[2 * m], selectors.column[2 * m + 1]);
    else
        multiply_add(product, v, selectors.column[2 * m], selectors.column[2 * m + 1]);
    const float rest[4] = {trailing_bits(v[0]), trailing_bits(v[1]), trailing_bits(v[2]), trailing_bits(v[3])};
    multiply_add(product, rest, selectors.column[2 * m], selectors.column[2 * m + 1]);
}

// Transposes four values of each lane so that sum_over_quads sums them over the channels of the warp: row 4 i + q of the
// product contains v[i] of lanes q of all quads, as columns.
__device__ __forceinline__ void turn(float (&product)[4], const float (&v)[4], const Selectors& selectors) {
    multiply(product, selectors.quad[0], v[0], v[1]);
    multiply_add(product, selectors.quad[1], v[2], v[3]);
    multiply_add(product, selectors.quad[0], trailing_bits(v[0]), trailing_bits(v[1]));
    multiply_add(product, selectors.quad[1], trailing_bits(v[2]), trailing_bits(v[3]));
}

// Sums over channels are ordered by (later row, earlier row if they share a product; B, C; groups of four of a thread's
// states). Lane q of a quad has the sum with index q of four; this is its index in warp_sums.
__device__ __forceinline__ int channel_sum_offset() {
    const int lane = threadIdx.x % 32, number = lane % 4, q = lane / 4 % 4, i = lane / 16;
    const int row = STATE_GROUPS == 1 ? 1 - number / 2 : 0, is_C = number / STATE_GROUPS % 2, group = number % STATE_GROUPS;
    return (threadIdx.x / 32 * TILE + row) * TERMS + is_C * STATES + q * THREAD_STATES + group * 4 + i;
}

// Writes the sums from four calls of turn and sum_over_quads.
__device__ __forceinline__ void write_channel_sums(const float (&product)[4], float* to) {
    to[0] = product[0] + product[2];
    to[2] = product[1] + product[3];
}

// Adds the transposed values of row first_row + j to the sums over channels, and writes the sums that are complete.
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

// Writes the gradients of x and through the decay, and y, of four rows to the cells, in place of the inputs.
__device__ __forceinline__ void write_state_sums(const Backward& shared, const float (&sums)[4], int first_row) {
    const int q = lane_quarter(), part = q == 2 ? 3 : 2 - 2 * q;
    float* to = (float*)(shared.cells + cell_index(first_row, lane_channel())) + part;
    if (q == 3) return;
#pragma unroll
    for (int k = 0; k < 4; ++k) to[k * CELL_STRIDE * 4] = sums[k % 2 * 2 + k / 2];
}

// Runs the backward recurrence over the STEPS rows from first_row on, given the state before them.
__device__ __forceinline__ void go_back(const Backward& shared, const Lane& lane, int, int first_row,
                                        const float (&before)[THREAD_STATES], const float (&log2_rate)[THREAD_STATES],
                                        float (&carry)[THREAD_STATES], float (&dA)[THREAD_STATES]) {
    const Inputs inputs = inputs_from(shared, lane, first_row);
    float h[STEPS + 1][THREAD_STATES], decay[STEPS][THREAD_STATES];
#pragma unroll
    for (int i = 0; i < THREAD_STATES; ++i) h[0][i] = before[i];
    walk_rows(inputs, log2_rate, decay, h);
    float* lane_sums = shared.warp_sums + channel_sum_offset();
    float dx[4], through_decay[4], y[4], state_sums[4], turned[2 * STATE_GROUPS][4], channel_sums[4];
    Selectors selectors;
    make_selectors(shared, selectors);
#pragma unroll
    for (int j = STEPS - 1; j >= 0; --j) {
        const int row = first_row + j;
        const float4 cell = inputs.cells[j * CELL_STRIDE];
        const float* terms = inputs.terms + j * TERMS;
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
        // The products of the previous row are summed only now, to hide their latency.
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

// Four adjacent sums over the channels of the block; columns are those of B, then of C.
__device__ __forceinline__ float4 sum_terms(const Backward& shared, int row, int column) {
    return sum_over_warps(shared, row * TERMS + column);
}
