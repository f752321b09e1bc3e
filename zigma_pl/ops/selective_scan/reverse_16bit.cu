// The backward recurrence for 16-bit rows. Sums over lanes run on the matrix units with operands rounded to bfloat16, the
// precision of the rows; the state, its gradient and the carry stay float32.

// Corrects the mean loss from truncating operands to 11 bits.
#define CUT 1.00035f

// Index of dB and dC of a row in warp_sums, permuted so that accesses to four rows with 8 states each use all 32 banks.
__device__ __forceinline__ int term_sum_index(int row, int column) {
    return row * TERMS + (column ^ ((row & 1) * 2) ^ ((row & 2) * 8));
}

// Four adjacent sums over the channels of the block; columns are those of B, then of C.
__device__ __forceinline__ float4 sum_terms(const Backward& shared, int row, int column) {
    const bool odd = row & 1;
    const float4 v = sum_over_warps(shared, term_sum_index(row, column) ^ (odd ? 2 : 0));
    return make_float4(odd ? v.z : v.x, odd ? v.w : v.y, odd ? v.x : v.z, odd ? v.y : v.w);
}

// Byte offsets of a lane's reads and writes relative to the first row. They are computed only once, since recomputing them
// for every STEPS rows would take a tenth of all instructions.
struct Lane {
    int cell;         // in cells: its channel
    int columns;      // in terms: its columns of B
    int C;            // in terms: C of its states
    int raw_terms;    // in raw_terms: B of its states in row g
    int channels;     // in cells: dy (even g) or x (odd g) of row g / 2, channel 2 q
    int term_sums[4]; // in warp_sums, row q: dC and dB of state g, dC and dB of state g + 8
    int rows;         // in cells: distance from row 0 to row 2 q
};

template <class Number>
__device__ __forceinline__ Number* at_byte(Number* array, int offset) { return (Number*)((Byte*)array + offset); }

#define ROW_CELLS (CELL_STRIDE * 16)  // bytes of a row in cells

// Addresses of a lane's inputs in one row; those of the following rows are at constant distances.
struct Inputs {
    const float4* cells;   // of its channel
    const float* columns;  // of B
    const float* C;        // of its states
};

__device__ __forceinline__ Inputs inputs_from(const Backward& shared, const Lane& lane, int row) {
    const float* terms = shared.tiles.terms;
    return {at_byte(shared.cells, lane.cell + row * ROW_CELLS), at_byte(terms, lane.columns + row * (STATES * 4)),
            at_byte(terms, lane.C + row * (STATES * 4))};
}

// Converts the B and C that this thread fetched to float, with C of all rows after B.
__device__ __forceinline__ void prepare_terms(const Tiles& tiles, int buffer) {
#pragma unroll
    for (int i = 0; i < THREAD_UNITS; ++i) {
        const int unit = i * THREADS + threadIdx.x, row = unit / ROW_UNITS, state = unit % ROW_UNITS * 8;
        float values[8];
        unpack16(*raw_unit(tiles, buffer, unit), values);
        if (state < STATES) {
            put_B(tiles.terms, row, state, values);
        } else {
            float4* to = (float4*)(tiles.terms + (TILE + row) * STATES + state - STATES);
            to[0] = make_float4(values[0], values[1], values[2], values[3]);
            to[1] = make_float4(values[4], values[5], values[6], values[7]);
        }
    }
}

// x, rounded to the 11 bits that the matrix units read.
__device__ __forceinline__ float entering_x(float x) { return cut_to_11_bits(round_to_11_bits(x)); }

// Computes the states of the STEPS rows that follow the state h[0].
__device__ __forceinline__ void walk_rows(const Inputs& from, const float (&log2_rate)[THREAD_STATES],
                                          float (&decay)[STEPS][THREAD_STATES], float (&h)[STEPS + 1][THREAD_STATES]) {
    const int q = lane_quarter();
    Columns columns;
#pragma unroll
    for (int j = 0; j < STEPS; j += 2) {
        if (j % 4 == 0) read_columns(from.columns + j * STATES, columns);
        float delta[2], x[2], entering[2][THREAD_STATES];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const float2 cell = *(const float2*)(from.cells + (j + k) * CELL_STRIDE);
            x[k] = q == (j + k) % 4 ? cell.x : 0.f, delta[k] = cell.y;
        }
        enter_two(columns, x[0], x[1], entering[0], entering[1]);
#pragma unroll
        for (int k = 0; k < 2; ++k)
#pragma unroll
            for (int i = 0; i < THREAD_STATES; ++i) {
                decay[j + k][i] = exp2_fast(delta[k] * log2_rate[i]);
                h[j + k + 1][i] = fmaf(decay[j + k][i], h[j + k][i], entering[k][i]);
            }
    }
}

__device__ __forceinline__ Lane prepare_sums(const Backward& shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    Lane places;
    places.cell = cell_index(0, lane_channel()) * 16;
    places.columns = columns_place() * 4;
    places.C = (TILE * STATES + lane_states()) * 4;
    places.raw_terms = (raw_row(g % STEPS) + lane_states()) * ROW_BYTES;
    places.channels = cell_index(g / 2, warp * 8 + 2 * q) * 16 + (g % 2 ? 0 : 8);
    places.rows = 2 * q * ROW_CELLS;
    hold(places.cell), hold(places.columns), hold(places.C), hold(places.raw_terms), hold(places.channels), hold(places.rows);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const int state = g / 2 * THREAD_STATES + g % 2 + k / 2 * 2;
        places.term_sums[k] = (warp * TILE * TERMS + term_sum_index(q, (k % 2 ? 0 : STATES) + state)) * 4;
        hold(places.term_sums[k]);
    }
    return places;
}

// The factors of a lane in the sums over the STEPS rows from first_row on.
struct Factors {
    Word C[STATE_GROUPS][2], B[STATE_GROUPS][2];  // of its states in row g
    Word channels[(STEPS + 3) / 4];               // of rows 4 k + g / 2, channels 2 q and 2 q + 1: dy for even g, x for odd
};

__device__ __forceinline__ void read_factors(const Backward& shared, const Lane& lane, int buffer, int first_row,
                                             Factors& factors) {
    const Element* terms = at_byte((const Element*)shared.tiles.raw_terms,
                                   lane.raw_terms + buffer * RAW_UNITS * 16 + raw_row(first_row) * ROW_BYTES);
#pragma unroll
    for (int group = 0; group < STATE_GROUPS; ++group) {
        const uint2 B = *(const uint2*)(terms + 4 * group), C = *(const uint2*)(terms + STATES + 4 * group);
        factors.B[group][0] = as_bfloats(B.x), factors.B[group][1] = as_bfloats(B.y);
        factors.C[group][0] = as_bfloats(C.x), factors.C[group][1] = as_bfloats(C.y);
    }
    const float* channels = at_byte((const float*)shared.cells, lane.channels + first_row * ROW_CELLS);
#pragma unroll
    for (int k = 0; k < (STEPS + 3) / 4; ++k) {
        const float* first = at_byte(channels, 4 * k * ROW_CELLS);
        factors.channels[k] = pack_bfloats(first[0], first[4]);
    }
}

// Sums over lanes, accumulated from row to row.
struct LaneSums {
    float terms[STATE_GROUPS][4];  // states g, g + 8 of a group; columns 2 q, 2 q + 1: dC, dB of row q of four
    float y[4], dx[4];             // of this lane's channel: row 2 q in element 0, row 2 q + 1 in element 3
    Word below[STATE_GROUPS][4];   // h and g of the following, odd row
    float through[4];              // of row 4 q + {0, 2, 1, 3}, q < STEPS / 4
};

// Adds row j, with states h and their gradients g_state. The factors for y and dx stack two rows vertically.
__device__ __forceinline__ void add_row(LaneSums& sums, const Factors& factors, int j, const float (&h)[THREAD_STATES],
                                        const float (&g_state)[THREAD_STATES]) {
    const int g = threadIdx.x % 32 / 4;
    const bool own = g / 2 == j / 2;
    const Word channels = factors.channels[j / 4];
    const Word dy = g == j % 4 * 2 ? channels : 0, x = g == j % 4 * 2 + 1 ? channels : 0;
#pragma unroll
    for (int group = 0; group < STATE_GROUPS; ++group) {
        const float* v = h + 4 * group;
        const float* w = g_state + 4 * group;
        const Word h_low = pack_bfloats(v[0], v[1]), h_high = pack_bfloats(v[2], v[3]);
        const Word g_low = pack_bfloats(w[0], w[1]), g_high = pack_bfloats(w[2], w[3]);
        const Word turned[4] = {transpose(h_low), transpose(h_high), transpose(g_low), transpose(g_high)};
        multiply_add16(sums.terms[group], turned, dy, x, j % 4 == 3);
        Word* below = sums.below[group];
        if (j % 2)
            below[0] = h_low, below[1] = h_high, below[2] = g_low, below[3] = g_high;
        else {
            const Word hs[4] = {h_low, below[0], h_high, below[1]}, gs[4] = {g_low, below[2], g_high, below[3]};
            const bool first = j == STEPS - 2 && group == 0;
            multiply_add16(sums.y, hs, own ? factors.C[group][0] : 0, own ? factors.C[group][1] : 0, first);
            multiply_add16(sums.dx, gs, own ? factors.B[group][0] : 0, own ? factors.B[group][1] : 0, first);
        }
    }
}

// Sums the gradients through the decay of four rows over the quads; first_row: index of the first row among the STEPS.
__device__ __forceinline__ void add_through(LaneSums& sums, const float (&through)[4], int first_row) {
    const int g = threadIdx.x % 32 / 4, m = first_row / 4 * 2;
    const float even = g == m ? 1.f : 0.f, odd = g == m + 1 ? 1.f : 0.f;
    if (first_row + 4 == STEPS)
        multiply(sums.through, through, even, odd);
    else
        multiply_add(sums.through, through, even, odd);
}

// Writes dB and dC of the four rows from row j of the STEPS on; places: addresses for the first row.
__device__ __forceinline__ void write_term_sums(float* const (&places)[4], const LaneSums& sums, int j) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int group = 0; group < STATE_GROUPS; ++group) places[k][j * TERMS + group * 4] = sums.terms[group][k];
}

// Writes the gradients of x and through the decay, and y, to the cells, in place of the inputs.
__device__ __forceinline__ void write_state_sums(const Backward& shared, const Lane& lane, const LaneSums& sums,
                                                 int first_row) {
    const int q = lane_quarter();
    if (q < STEPS / 2) {
        float4* pair = at_byte(shared.cells, lane.cell + first_row * ROW_CELLS + lane.rows);
        *(float2*)&pair[0].z = make_float2(sums.dx[0], sums.y[0]);
        *(float2*)&pair[CELL_STRIDE].z = make_float2(sums.dx[3], sums.y[3]);
    }
    if (q >= STEPS / 4) return;
    float4* own = at_byte(shared.cells, lane.cell + first_row * ROW_CELLS + 2 * lane.rows);
#pragma unroll
    for (int k = 0; k < 4; ++k) own[k * CELL_STRIDE].x = CUT * sums.through[k % 2 * 2 + k / 2];
}

// Runs the backward recurrence over the STEPS rows from first_row on, given the state before them.
__device__ __forceinline__ void go_back(const Backward& shared, const Lane& lane, int buffer, int first_row,
                                        const float (&before)[THREAD_STATES], const float (&log2_rate)[THREAD_STATES],
                                        float (&carry)[THREAD_STATES], float (&dA)[THREAD_STATES]) {
    const Inputs inputs = inputs_from(shared, lane, first_row);
    float* places[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) places[k] = at_byte(shared.warp_sums, lane.term_sums[k] + first_row * (TERMS * 4));
    float h[STEPS + 1][THREAD_STATES], decay[STEPS][THREAD_STATES], through_decay[4];
    Factors factors;
    LaneSums sums;
    read_factors(shared, lane, buffer, first_row, factors);
#pragma unroll
    for (int i = 0; i < THREAD_STATES; ++i) h[0][i] = before[i];
    walk_rows(inputs, log2_rate, decay, h);
#pragma unroll
    for (int j = STEPS - 1; j >= 0; --j) {
        const float2 cell = *(const float2*)&inputs.cells[j * CELL_STRIDE].z;  // {dy, delta}
        float c[THREAD_STATES], g[THREAD_STATES];
        load_terms(inputs.C + j * STATES, c);
        through_decay[j % 4] = 0.f;
#pragma unroll
        for (int i = 0; i < THREAD_STATES; ++i) {
            g[i] = fmaf(c[i], cell.x, carry[i]);
            carry[i] = g[i] * decay[j][i];
            const float through = carry[i] * h[j][i];
            through_decay[j % 4] = fmaf(through, log2_rate[i], through_decay[j % 4]);
            dA[i] = fmaf(through, cell.y, dA[i]);
        }
        add_row(sums, factors, j, h[j + 1], g);
        if (j % 4 == 0) {
            add_through(sums, through_decay, j);
            write_term_sums(places, sums, j);
        }
    }
    write_state_sums(shared, lane, sums, first_row);
}
