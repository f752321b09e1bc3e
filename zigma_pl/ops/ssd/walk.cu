// One block walks along a piece of the path of one head (or of SLICE of its channels) in chunks of TOKENS tokens. It holds
// the state, STATES x SLICE, in accumulators that are divided among its warps.
//
// In a chunk that starts with state H, with F[i] the sum of the log decays of tokens 0..i (base 2, F < 0):
//   y[i] = sum over j <= i of (C[i] . B[j]) 2^(F[i] - F[j]) d[j] x[j] + 2^F[i] C[i] H + skip x[i]
//   H'   = 2^F[last] H + sum over j of 2^(F[last] - F[j]) d[j] B[j] x[j]^T

#define WARPS (TOKENS / 16)
#define THREADS (TOKENS * 2)
#define BLOCKS (TOKENS / 16)    // 16 x 16 blocks along the tokens,
#define STATE_BLOCKS (STATES / 16)  // the states,
#define SLICE_BLOCKS (SLICE / 16)   // and the channels
// The blocks of the state that a warp holds: OWN_ROWS x OWN_COLUMNS.
#define SHARING (STATE_BLOCKS < WARPS ? WARPS / STATE_BLOCKS : 1)  // warps per row of blocks
#define OWN_ROWS (STATE_BLOCKS < WARPS ? 1 : STATE_BLOCKS / WARPS)
#define OWN_COLUMNS (SLICE_BLOCKS / SHARING)

#define SLICE_BYTES (TOKENS * SLICE * ITEM_BYTES)
#define TERM_BYTES (TOKENS * STATES * ITEM_BYTES)
#define STATE_BYTES (STATES * SLICE * ITEM_BYTES)
#define SQUARE_BYTES (TOKENS * TOKENS * ITEM_BYTES)

// Every field takes 8 bytes. Strides are in elements; the last axis of rows has stride 1, rows start at 16 bytes.
struct Params {
    const Element *x, *B, *C, *gate, *dout;
    const void* dt;
    Long x_batch, x_row, x_head, B_batch, B_row, B_group, C_batch, C_row, C_group, gate_batch, gate_row, gate_head;
    Long dout_batch, dout_row, dout_head, dt_batch, dt_row, dt_head;
    const float *A, *skip, *bias;  // (H), the last two may be absent
    const int* order;              // absent, (L), or (B, L)
    Long order_batch;
    Element *out, *dx, *dgate;     // (B, L, H, P); all but out may be columns of wider rows
    void* ddt;                     // (B, L, H) like dt, or a float32 part for each slice if there are several
    void* states;                  // states at the start of chunks: (B, H slices, chunks, STATES, SLICE) of items
    void* carries;                 // of parts of pieces: (parts, B, H slices, STATES SLICE) items,
    float* durations;              // and their log decays: (parts, B, H slices)
    float* dBC;                    // (parts, B, L, 2, G, N); one part to which all blocks add unless part_stride > 0
    float* sums;                   // (B, pieces, H slices, 3), or (H, 3) if blocks add: gradients of A, skip and bias
    Long dx_batch, dx_row, dgate_batch, dgate_row, ddt_batch, ddt_row;
    Long parts, part_stride;       // blocks that share a group's B and C, each with its part of dBC
    Long num_batch, num_tokens, num_heads, num_groups, num_chunks, piece_chunks;
    Long carry_parts;              // parts of a piece whose states at the end are computed by separate blocks
    Long log_A;                    // A contains log(-A)
    float* squares;                // each block's part of the mean square of rows of out, or its gradient; see SQUARED
    Long squares_batch, squares_row, squares_part;
};

struct Walk {
    int batch, head, group, slice, piece;
    int begin, end;  // chunks
    Long sequence;   // index among (B, H slices)
    int warp, state_row, state_column;  // first state and channel of the warp's part of the state
    const Element *x, *B, *C;
    const int* order;
    float A, bias;   // A in base 2
};

// One chunk's vectors over the tokens, in shared memory.
struct Vectors {
    float F[TOKENS], rest[TOKENS];  // F in two parts: their differences stay precise beside large decays
    float d[TOKENS], slope[TOKENS]; // step size and its derivative by dt
    float from_start[TOKENS];       // 2^F
    float to_end[TOKENS];           // 2^(F[last] - F)
    float weight[TOKENS];           // to_end d
};

#define ROW_BUFFERS 3  // row indices of this chunk and the next two

struct Common {
    Vectors vectors[2];
    int rows[ROW_BUFFERS][TOKENS];
};

__device__ __forceinline__ float decay_rate(const Params& p, int head) { return p.log_A ? -expf(p.A[head]) : p.A[head]; }

__device__ __forceinline__ void start(const Params& p, Walk& w) {
    const int slices = SLICES;
    w.head = blockIdx.x / slices, w.slice = blockIdx.x % slices;
    w.batch = blockIdx.y, w.piece = blockIdx.z;
    w.group = (int)blockIdx.x / (int)p.parts;
    w.begin = w.piece * (int)p.piece_chunks;
    w.end = min(w.begin + p.piece_chunks, p.num_chunks);
    w.sequence = (Long)w.batch * p.num_heads * slices + blockIdx.x;
    w.warp = __shfl_sync(0xffffffffu, (int)threadIdx.x / 32, 0);  // known to be the same in all lanes
    w.state_row = (SHARING > 1 ? w.warp % STATE_BLOCKS : w.warp * OWN_ROWS) * 16;
    w.state_column = (SHARING > 1 ? w.warp / STATE_BLOCKS * OWN_COLUMNS : 0) * 16;
    w.x = p.x + w.batch * p.x_batch + w.head * p.x_head + w.slice * SLICE;
    w.B = p.B + w.batch * p.B_batch + w.group * p.B_group;
    w.C = p.C + w.batch * p.C_batch + w.group * p.C_group;
    w.order = p.order ? p.order + w.batch * p.order_batch : p.order;
    w.A = decay_rate(p, w.head) * LOG2_E;
    w.bias = BIASED ? p.bias[w.head] : 0.f;
}

// The block of 16 tokens of a warp in its i-th chunk. Later blocks take longer in the forward pass, earlier ones in the
// backward pass: each warp gets all of them in turn.
__device__ __forceinline__ int block_of(const Walk& w, int i) { return (w.warp + i + w.head) % BLOCKS; }

__device__ __forceinline__ const Element* gate_of(const Params& p, const Walk& w) {
    return p.gate + w.batch * p.gate_batch + w.head * p.gate_head + w.slice * SLICE;
}

__device__ __forceinline__ const Element* dout_of(const Params& p, const Walk& w) {
    return p.dout + w.batch * p.dout_batch + w.head * p.dout_head + w.slice * SLICE;
}

// Where the block's channels begin in rows (B, L, H, P) whose samples are `batch` elements apart.
__device__ __forceinline__ Element* own_rows(const Walk& w, Element* rows, Long batch) {
    return rows + w.batch * batch + (w.head * SLICES + w.slice) * SLICE;
}

// The part of a row's mean square that the block's channels contribute, or its gradient.
__device__ __forceinline__ float* square_of(const Params& p, const Walk& w, int row) {
    return p.squares + w.batch * p.squares_batch + row * p.squares_row + blockIdx.x * p.squares_part;
}

// Raster row of a token of a chunk, -1 outside of the sequence.
__device__ __forceinline__ int row_of(const Params& p, const Walk& w, int chunk, int token) {
    const Long step = (Long)chunk * TOKENS + token;
    if (chunk < 0 || step >= p.num_tokens) return -1;
    return w.order ? w.order[step] : (int)step;
}

// The sigmoid of a gate. For 16-bit rows it has an absolute error of 2.5e-4 and takes one special function instead of two.
__device__ __forceinline__ float gate_sigmoid(float x) {
    return ROW_KIND == 0 ? sigmoid(x) : fmaf(tanh_fast(0.5f * x), 0.5f, 0.5f);
}

// ---------------------------------------------------------------------------------------------------- step sizes
#define PER_LANE (TOKENS / 32)
#if ROW_KIND == 0
typedef double Duration;
#else
typedef float Duration;
#endif

__device__ __forceinline__ float read_dt(const Params& p, Long at) {
#if DT_KIND == 0
    return ((const float*)p.dt)[at];
#elif DT_KIND == 1
    return __uint_as_float((Word)((const unsigned short*)p.dt)[at] << 16);
#else
    return half_to_float(((const unsigned short*)p.dt)[at]);
#endif
}

__device__ __forceinline__ void load_steps(const Params& p, const Walk& w, const int* rows, float (&dt)[PER_LANE]) {
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
        const int row = rows[LANE * PER_LANE + i];
        dt[i] = row < 0 ? 0.f : read_dt(p, w.batch * p.dt_batch + row * p.dt_row + w.head * p.dt_head);
    }
}

// Executed by one warp, which holds the chunk's dt.
__device__ __forceinline__ void make_vectors(const Walk& w, const int* rows, const float (&dt)[PER_LANE], Vectors& v) {
    float d[PER_LANE], slope[PER_LANE];
    Duration F[PER_LANE], sum = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
        const bool present = rows[LANE * PER_LANE + i] >= 0;
        d[i] = !present ? 0.f : BIASED ? softplus(dt[i] + w.bias) : dt[i];
        slope[i] = BIASED ? sigmoid(dt[i] + w.bias) : 1.f;
        F[i] = sum += (Duration)(d[i]) * w.A;
    }
    Duration before = sum;
#pragma unroll
    for (int reach = 1; reach < 32; reach *= 2) {
        const Duration other = __shfl_up_sync(0xffffffffu, before, reach);
        if (LANE >= reach) before += other;
    }
    const Duration total = __shfl_sync(0xffffffffu, before, 31);
    before -= sum;
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
        const int at = LANE * PER_LANE + i;
        const Duration f = before + F[i];
        v.F[at] = (float)f, v.rest[at] = (float)(f - (Duration)(float)f);
        v.d[at] = d[i], v.slope[at] = slope[i];
        v.from_start[at] = exp2_fast((float)f);
        v.to_end[at] = exp2_fast((float)(total - f));
        v.weight[at] = v.to_end[at] * d[i];
    }
}

// Decay between two tokens, the later of which comes first here.
__device__ __forceinline__ float decay(float F_later, float rest_later, float F, float rest) {
#if ROW_KIND == 0
    return exp2_fast((F_later - F) + (rest_later - rest));
#else
    return exp2_fast(F_later - F);
#endif
}

// Reads the row indices of the first two chunks.
__device__ __forceinline__ void open_walk(const Params& p, const Walk& w, Common& common, int first, int step) {
    for (int i = threadIdx.x; i < 2 * TOKENS; i += THREADS)
        common.rows[i / TOKENS][i % TOKENS] = row_of(p, w, first + i / TOKENS * step, i % TOKENS);
    __syncthreads();
}

// Makes the vectors of the first chunk, whose rows are being copied in the meantime.
__device__ __forceinline__ void make_first_vectors(const Params& p, const Walk& w, Common& common) {
    if (w.warp != 0) return;
    float dt[PER_LANE];
    load_steps(p, w, common.rows[0], dt);
    make_vectors(w, common.rows[0], dt, common.vectors[0]);
}

// ------------------------------------------------------------------------------------------------------- state
typedef Sum State[OWN_ROWS][OWN_COLUMNS];

#define FOR_STATE(a, b)                        \
    _Pragma("unroll") for (int a = 0; a < OWN_ROWS; ++a) _Pragma("unroll") for (int b = 0; b < OWN_COLUMNS; ++b)

__device__ __forceinline__ void scale_state(State& state, float factor) {
    FOR_STATE(a, b) scale_rows(state[a][b], factor, factor);
}

__device__ __forceinline__ void store_state(const Walk& w, Byte* tile, const State& state) {
    FOR_STATE(a, b) store_sum<SLICE>(tile, w.state_row + a * 16, w.state_column + b * 16, state[a][b]);
}

// state += (scaled terms)^T rows, over the chunk.
__device__ __forceinline__ void add_to_state(
    const Walk& w, State& state, const Byte* terms, const float* factors, const Byte* rows
) {
#pragma unroll 1
    for (int k = 0; k < BLOCKS; ++k) {
        Left left[OWN_ROWS];
#pragma unroll
        for (int a = 0; a < OWN_ROWS; ++a) {
            load_left_turned<STATES>(left[a], terms, k * 16, w.state_row + a * 16);
            scale_inner(left[a], factors + k * 16);
        }
#pragma unroll
        for (int b = 0; b < OWN_COLUMNS; ++b) {
            Right right;
            load_right_turned<SLICE>(right, rows, k * 16, w.state_column + b * 16);
#pragma unroll
            for (int a = 0; a < OWN_ROWS; ++a) multiply_into(state[a][b], left[a], right);
        }
    }
}

__device__ __forceinline__ Long carry_at(const Params& p, const Walk& w, int piece) {
    return piece * p.num_batch * p.num_heads * SLICES + w.sequence;
}

// A thread's share of a carry: 8 items of each 16 x 16 block that its warp holds, as they are in its registers.
#define SHARE (8 / GRANULE)  // in 16 bytes
__device__ __forceinline__ uint4* carry_of(const Params& p, const Walk& w, int part, int a, int b) {
    return (uint4*)p.carries + (carry_at(p, w, part) * (OWN_ROWS * OWN_COLUMNS) + a * OWN_COLUMNS + b) * THREADS * SHARE + threadIdx.x;
}

__device__ __forceinline__ void write_carry(const Params& p, const Walk& w, const State& state, float duration) {
    FOR_STATE(a, b)
#pragma unroll
    for (int i = 0; i < SHARE; ++i) carry_of(p, w, w.piece, a, b)[i * THREADS] = pack_items(state[a][b][0] + i * GRANULE);
    if (threadIdx.x == 0) p.durations[carry_at(p, w, w.piece)] = duration;
}

// The state after parts first, first + step, .. before part `end`.
__device__ __forceinline__ void read_carries(const Params& p, const Walk& w, State& state, int first, int end, int step) {
    FOR_STATE(a, b) clear(state[a][b]);
#pragma unroll 4
    for (int part = first; part != end; part += step) {
        const float factor = exp2_fast(p.durations[carry_at(p, w, part)]);
        FOR_STATE(a, b)
#pragma unroll
        for (int i = 0; i < SHARE; ++i) {
            float items[GRANULE];
            unpack_items(carry_of(p, w, part, a, b)[i * THREADS], items);
            float* to = state[a][b][0] + i * GRANULE;
#pragma unroll
            for (int e = 0; e < GRANULE; ++e) to[e] = fmaf(to[e], factor, items[e]);
        }
    }
}
