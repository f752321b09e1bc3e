// Layout of a block of the scan, and copies of rows from global to shared memory. Sizes are set at compile time:
//   STATES           N padded to 16, 32 or 64; padding states have A = B = C = 0
//   WARPS, TILE      warps per block; rows in shared memory at a time
//   STEPS            rows whose states the backward pass holds in registers
//   KEEP             rows between states that the forward pass stores: a multiple of STEPS that divides TILE
//   GATED, BIASED    1: there is a gate; there is a bias, and softplus is applied to delta
//   LOG_A            1: p.A is log(-A), and dA its gradient
//   RESTARTS         1: the state starts from zero at every p.restart_every-th row, not only at the first
//   ALIGNED          1: rows can be copied 8 channels (B and C: 16 bytes) at a time; 0: element by element
// A block processes rows in visit order for CHANNELS channels of one batch element. Four lanes share a channel, each with
// THREAD_STATES of its states.
// Rows and channels beyond the end are read as zeros, so that they contribute zero everywhere.

#define THREADS (32 * WARPS)
#define THREAD_STATES (STATES / 4)
#define CHANNELS (8 * WARPS)
#define OCTETS WARPS                          // groups of 8 channels in a row
#define PASS_ROWS (THREADS / OCTETS)          // 32: rows that the threads cover with 8 channels each
#define PASSES (TILE / PASS_ROWS)
#define QUADS (ROW_BYTES / 2)                 // 16-byte words in 8 channels
#define TERMS (2 * STATES)                    // B, then C of a row
#define UNIT_STATES (16 / ROW_BYTES)          // states of B or C that are copied at a time
#define ROW_UNITS (TERMS / UNIT_STATES)
#define UNITS (TILE * ROW_UNITS)
#define THREAD_UNITS (UNITS / THREADS)
// With 16 states in 16 bits, a gap after every two rows avoids bank conflicts when a warp reads four states each of eight rows.
#define PAIR_GAP (ROW_UNITS == 4 ? 2 : 0)
#define RAW_UNITS (UNITS + TILE / 2 * PAIR_GAP)

// Type of the states that the forward pass stores: bfloat16 for 16-bit rows.
#if ROW_KIND == 0
typedef float Kept;
typedef uint4 KeptGroup;  // of four states
#else
typedef unsigned short Kept;
typedef uint2 KeptGroup;
#endif
#define TILE_KEPT (TILE / KEEP)
#define STATE_GROUPS (THREAD_STATES / 4)

// An int stored in 8 bytes.
struct alignas(8) Count {
    int value;
    __device__ __forceinline__ operator int() const { return value; }
};

// Strides of an array of rows, in elements; the last axis has stride 1.
struct Strides {
    Long batch;
    Count row;
};

// Every field takes 8 bytes.
struct Params {
    const Element *u, *delta, *gate, *dout, *B, *C;
    Strides u_strides, delta_strides, gate_strides, dout_strides, B_strides, C_strides;
    const float *A, *skip, *bias;
    const int* order;
    Element *out, *du, *ddelta;               // contiguous; out in the backward pass: null if it is not requested
    Element* dgate;
    Strides dgate_strides;
    Kept* states;                             // (B, tiles, TILE / KEEP, E, STATES): before every KEEP-th row; null: not stored
    float* carries;                           // (pieces of all chunks, B, E, STATES): see chunks.cu; null with one chunk
    float* durations;                         // (pieces of all chunks, B, E): sum of delta
    float* dBC;                               // (B, L, 2, N), zeros; deterministic: (channel blocks, B, L, 2, N)
    float *dA, *dskip, *dbias;                // (E, N), (E), (E) for each batch element and chunk, part_stride apart
    Long part_stride;
    Count num_batch, num_rows, num_channels, num_states, num_tiles, chunk_tiles, num_chunks, chunk_pieces, deterministic;
    Count restart_every;
};

struct Tiles {
    uint4* raw;           // [2][arrays][QUADS][PASSES][THREADS]: 8 channels of a row each, as in global memory
    uint4* raw_terms;     // [2][RAW_UNITS]
    float* terms;         // [TILE][TERMS]
    int* order;           // [4][TILE], three in use: raster rows of this tile and the next two; -1 past the end
    float *skip, *bias;   // [CHANNELS]
};

__device__ __forceinline__ uint4* place_tiles(Tiles& tiles, uint4* memory, int arrays) {
    tiles.raw = memory;
    memory += 2 * arrays * QUADS * PASSES * THREADS;
    tiles.raw_terms = memory;
    memory += 2 * RAW_UNITS;
    tiles.terms = (float*)memory;
    memory += TILE * TERMS / 4;
    tiles.skip = (float*)memory;
    tiles.bias = tiles.skip + CHANNELS;
    memory += CHANNELS / 2;
    tiles.order = (int*)memory;
    return memory + TILE;
}

// A tile of a quantity in channel-major layout, so that a thread reads four rows at once. The gaps after every channel and
// every 8 channels avoid bank conflicts of writes and reads.
#define CHANNEL_STRIDE (TILE + 4)
#define CHANNEL_ROWS (CHANNELS * CHANNEL_STRIDE + OCTETS * 8)
__device__ __forceinline__ int place_of(int row, int channel) { return channel * CHANNEL_STRIDE + channel / 8 * 8 + row; }

struct ChannelRows {
    float* delta;
    float* factors;  // factors of B in the input of the state, or of C in the input of its adjoint
};

__device__ __forceinline__ uint4* place_channel_rows(ChannelRows& rows, uint4* memory) {
    rows.delta = (float*)memory;
    rows.factors = rows.delta + CHANNEL_ROWS;
    return memory + CHANNEL_ROWS / 2;
}

// Arranges the lanes of a warp as 8 by 4: adjacent lanes share the quarter, lanes two apart share the eighth, so that reads
// indexed by either take half as many passes over shared memory. Bits of the lane, from the lowest: eighth 0, quarter 0,
// eighth 1, eighth 2, quarter 1.
__device__ __forceinline__ int mixed_eighth() { return (threadIdx.x & 1) | (threadIdx.x >> 1 & 6); }
__device__ __forceinline__ int mixed_quarter() { return (threadIdx.x >> 1 & 1) | (threadIdx.x >> 3 & 2); }

// Sums two values over a pair of lanes (lane index xor `mask`); one lane returns the sum of `high`, the other that of `low`.
__device__ __forceinline__ float exchange(float low, float high, bool wants_high, int mask) {
    return (wants_high ? high : low) + __shfl_xor_sync(0xffffffffu, wants_high ? low : high, mask);
}

// Index of the group of CHANNELS channels that a block processes.
__device__ __forceinline__ int channel_block();
__device__ __forceinline__ int octet_of_thread() { return threadIdx.x % OCTETS; }
__device__ __forceinline__ int row_of_thread(int pass) { return pass * PASS_ROWS + threadIdx.x / OCTETS; }
__device__ __forceinline__ int first_channel() { return channel_block() * CHANNELS + octet_of_thread() * 8; }

// Copies per-channel parameters to shared memory, with zeros for channels that do not exist.
__device__ __forceinline__ void read_parameters(const Params& p, const Tiles& tiles) {
    const int i = threadIdx.x;
    if (i < CHANNELS) {
        const int channel = channel_block() * CHANNELS + i;
        const bool exists = channel < p.num_channels;
        tiles.skip[i] = p.skip && exists ? p.skip[channel] : 0.f;
        tiles.bias[i] = p.bias && exists ? p.bias[channel] : 0.f;
    }
}

__device__ __forceinline__ void read_octet(const float* parameters, float (&out)[8]) {
    const float4 low = ((const float4*)parameters)[2 * octet_of_thread()];
    const float4 high = ((const float4*)parameters)[2 * octet_of_thread() + 1];
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
}

// The raster row that is visited in a step; -1 beyond either end.
__device__ __forceinline__ int visited_row(const Params& p, int step) {
    if (step < 0 || step >= p.num_rows) return -1;
    return p.order ? p.order[step] : step;
}

// first_step(i): first step of the tile that is processed as number i.
template <class Step>
__device__ __forceinline__ void read_first_orders(const Params& p, const Tiles& tiles, const Step& first_step) {
    static_assert(2 * TILE <= THREADS, "each thread reads one row");
    const int row = threadIdx.x;
    if (row < 2 * TILE) tiles.order[row] = visited_row(p, first_step(row / TILE) + row % TILE);
}

// The slot of a thread for its 8 channels of an array: slot[quad * PASSES * THREADS].
__device__ __forceinline__ uint4* raw_slot(const Tiles& tiles, int buffer, int arrays, int array, int pass) {
    return tiles.raw + ((buffer * arrays + array) * QUADS * PASSES + pass) * THREADS + threadIdx.x;
}

// The delta by which the states decay: so large before a row that starts from zero that nothing is left of them.
__device__ __forceinline__ float decaying(const Params& p, float delta, int step) {
    return RESTARTS && step % p.restart_every == 0 ? 1e30f : delta;
}

// Address of row `row` in an array, given raster row 0, with few instructions.
template <class Number>
__device__ __forceinline__ Number* row_at(Number* first, int row, int stride) {
    return (Number*)((Byte*)first + (unsigned long long)((Word)row * (Word)sizeof(Number)) * (Word)stride);
}

__device__ __forceinline__ bool has_channels(const Params& p) { return first_channel() < p.num_channels; }

// Address of this thread's 8 channels in raster row 0 of this block's batch element; any valid address if they do not exist.
template <class Number>
__device__ __forceinline__ Number* own_channels(const Params& p, Number* array, const Strides& strides) {
    return array + blockIdx.y * strides.batch + (has_channels(p) ? first_channel() : 0);
}

// first: what own_channels returned.
__device__ __forceinline__ void fetch_row(const Params& p, uint4* slot, int row, const Element* first, const Strides& strides) {
    const Element* source = row_at(first, max(row, 0), strides.row);
#if ALIGNED
#pragma unroll
    for (int quad = 0; quad < QUADS; ++quad)
        copy_async<16>(slot + quad * PASSES * THREADS, source + quad * (16 / ROW_BYTES), row >= 0 && has_channels(p));
#else
    for (int quad = 0; quad < QUADS; ++quad) {
        Element* to = (Element*)(slot + quad * PASSES * THREADS);
        for (int i = 0; i < 16 / ROW_BYTES; ++i) {
            const int offset = quad * (16 / ROW_BYTES) + i;
            to[i] = row >= 0 && first_channel() + offset < p.num_channels ? source[offset] : (Element)0;
        }
    }
#endif
}

// The states of B or C that a thread fetches, in every UNIT_ROWS-th row.
constexpr int UNIT_ROWS = THREADS / ROW_UNITS;
struct alignas(16) Terms {
    const Element* first;  // in raster row 0 of this block's batch element; any valid address if they do not exist
    int stride, state;
};

__device__ __forceinline__ uint4* raw_unit(const Tiles& tiles, int buffer, int unit) {
    return tiles.raw_terms + buffer * RAW_UNITS + unit + unit / (2 * ROW_UNITS) * PAIR_GAP;
}

// Index of B of a row in a buffer of raw_terms, in elements; C follows after STATES elements.
__device__ __forceinline__ int raw_row(int row) { return row * TERMS + row / 2 * (PAIR_GAP * UNIT_STATES); }

__device__ __forceinline__ Terms own_terms(const Params& p) {
    const int column = threadIdx.x % ROW_UNITS * UNIT_STATES, state = column % STATES;
    const Element* array = column < STATES ? p.B + blockIdx.y * p.B_strides.batch : p.C + blockIdx.y * p.C_strides.batch;
    return {array + (state < p.num_states ? state : 0), column < STATES ? p.B_strides.row : p.C_strides.row, state};
}

__device__ __forceinline__ void fetch_terms(const Params& p, const Tiles& tiles, const int* order, int buffer,
                                            const Terms& own) {
#pragma unroll
    for (int i = 0; i < THREAD_UNITS; ++i) {
        const int row = order[i * UNIT_ROWS + threadIdx.x / ROW_UNITS];
        const Element* source = row_at(own.first, max(row, 0), own.stride);
        uint4* to = raw_unit(tiles, buffer, i * THREADS + threadIdx.x);
#if ALIGNED
        copy_async<16>(to, source, row >= 0 && own.state < p.num_states);
#else
        for (int j = 0; j < UNIT_STATES; ++j)
            ((Element*)to)[j] = row >= 0 && own.state + j < p.num_states ? source[j] : (Element)0;
#endif
    }
}

// Converts the B and C that this thread fetched to float.
__device__ __forceinline__ void spread_terms(const Tiles& tiles, int buffer) {
#pragma unroll
    for (int i = 0; i < THREAD_UNITS; ++i) {
        const int unit = i * THREADS + threadIdx.x;
        float values[UNIT_STATES];
        unpack16(*raw_unit(tiles, buffer, unit), values);
#pragma unroll
        for (int j = 0; j < UNIT_STATES; j += 4)
            *(float4*)(tiles.terms + unit * UNIT_STATES + j) =
                make_float4(values[j], values[j + 1], values[j + 2], values[j + 3]);
    }
}

__device__ __forceinline__ void read_slot(const uint4* slot, float (&out)[8]) {
#pragma unroll
    for (int quad = 0; quad < QUADS; ++quad) unpack16(slot[quad * PASSES * THREADS], out + quad * (16 / ROW_BYTES));
}

// Address of this thread's 8 channels in raster row 0 of a contiguous (B, L, E) tensor.
__device__ __forceinline__ Element* own_results(const Params& p, Element* results) {
    return results + (Long)blockIdx.y * p.num_rows * p.num_channels + first_channel();
}

__device__ __forceinline__ void write_octet(const Params& p, Element* to, const float (&values)[8]) {
#if ALIGNED
    if (!has_channels(p)) return;
#pragma unroll
    for (int quad = 0; quad < QUADS; ++quad) ((uint4*)to)[quad] = pack16(values + quad * (16 / ROW_BYTES));
#else
    for (int i = 0; i < 8; ++i)
        if (first_channel() + i < p.num_channels) to[i] = from_float(values[i]);
#endif
}

__device__ __forceinline__ void make_positive(const float (&bias)[8], float (&delta)[8]) {
    if (!BIASED) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) delta[i] = softplus(delta[i] + bias[i]);
}

__device__ __forceinline__ void make_positive(const Tiles& tiles, float (&delta)[8]) {
    float bias[8];
    read_octet(tiles.bias, bias);
    make_positive(bias, delta);
}

// The channel of the block and the quarter of its states that belong to this thread; they differ between the two passes.
__device__ __forceinline__ int lane_channel();
__device__ __forceinline__ int lane_quarter();
__device__ __forceinline__ int lane_states() { return lane_quarter() * THREAD_STATES; }

// A log2(e) of a state, zero for a state that does not exist.
__device__ __forceinline__ float read_rate(const Params& p, int channel, int state) {
    if (channel >= p.num_channels || state >= p.num_states) return 0.f;
    const float given = p.A[channel * p.num_states + state];
    return LOG2_E * (LOG_A ? -exp2_fast(LOG2_E * given) : given);
}

__device__ __forceinline__ void read_decay_rates(const Params& p, float (&log2_rate)[THREAD_STATES]) {
    const int channel = channel_block() * CHANNELS + lane_channel();
#pragma unroll
    for (int i = 0; i < THREAD_STATES; ++i) log2_rate[i] = read_rate(p, channel, lane_states() + i);
}

// Address of this thread's states in a (..., E, STATES) tensor; null for a channel that does not exist.
template <class Number>
__device__ __forceinline__ Number* states_at(const Params& p, Number* base, Long index) {
    const int channel = channel_block() * CHANNELS + lane_channel();
    if (!base || channel >= p.num_channels) return nullptr;
    return base + (index * p.num_channels + channel) * STATES + lane_states();
}

__device__ __forceinline__ void load_states(const float* from, float (&states)[THREAD_STATES]) {
#pragma unroll
    for (int i = 0; i < THREAD_STATES; i += 4) {
        const float4 v = from ? *(const float4*)(from + i) : make_float4(0.f, 0.f, 0.f, 0.f);
        states[i] = v.x, states[i + 1] = v.y, states[i + 2] = v.z, states[i + 3] = v.w;
    }
}

// Computes the state at the start of this block's chunk (reversed: the adjoint at its end) by combining the carries of all
// pieces before (reversed: after) it.
__device__ __forceinline__ void chain_carries(const Params& p, bool reversed, const float (&log2_rate)[THREAD_STATES],
                                              float (&carry)[THREAD_STATES]) {
    load_states(nullptr, carry);
    const int channel = channel_block() * CHANNELS + lane_channel();
    if (!p.carries || channel >= p.num_channels) return;
    const int last = p.num_chunks * p.chunk_pieces - 1;
    const int num_chained = (reversed ? p.num_chunks - 1 - (int)blockIdx.z : (int)blockIdx.z) * p.chunk_pieces;
    const Long piece = (Long)p.num_batch * p.num_channels, next = reversed ? -piece : piece;
    const Long at = (reversed ? last * piece : 0) + (Long)blockIdx.y * p.num_channels + channel;
    const float *duration_of = p.durations + at, *states_of = p.carries + at * STATES + lane_states();
    constexpr int AT_ONCE = 32 / THREAD_STATES;  // number of pieces whose loads overlap
    for (int first = 0; first < num_chained; first += AT_ONCE) {
        float duration[AT_ONCE], own[AT_ONCE][THREAD_STATES];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const bool exists = first + i < num_chained;
            duration[i] = exists ? *duration_of : 0.f;
            load_states(exists ? states_of : nullptr, own[i]);
            duration_of += next, states_of += next * STATES;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
#pragma unroll
            for (int j = 0; j < THREAD_STATES; ++j)
                carry[j] = fmaf(exp2_fast(duration[i] * log2_rate[j]), carry[j], own[i][j]);
    }
}

// Index at which this thread writes 8 channels of its row.
__device__ __forceinline__ int octet_place(int pass) { return place_of(row_of_thread(pass), octet_of_thread() * 8); }

__device__ __forceinline__ void put_octet(const ChannelRows& rows, int place, const float (&delta)[8],
                                          const float (&factors)[8]) {
    float* to = rows.delta + place;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        to[i * CHANNEL_STRIDE] = delta[i];
        to[CHANNEL_ROWS + i * CHANNEL_STRIDE] = factors[i];
    }
}

// Reads four rows of this lane's channel.
__device__ __forceinline__ void read_four(const float* by_channel, int first_row, float (&out)[4]) {
    const float4 v = *(const float4*)(by_channel + place_of(first_row, lane_channel()));
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}

__device__ __forceinline__ void load_terms(const float* from, float (&out)[THREAD_STATES]) {
#pragma unroll
    for (int i = 0; i < THREAD_STATES; i += 4) {
        const float4 v = *(const float4*)(from + i);
        out[i] = v.x, out[i + 1] = v.y, out[i + 2] = v.z, out[i + 3] = v.w;
    }
}
