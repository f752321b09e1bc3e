// The shared memory of the backward pass, and one step of the recurrence out of it.

#define ARRAYS 4  // u, delta, gate, dout
#define SUBTILES (TILE / STEPS)

// Lane 4 g + q has channel g of its warp and quarter q of the states, as the sums over lanes need it.
__device__ __forceinline__ int lane_channel() { return threadIdx.x / 4; }
__device__ __forceinline__ int lane_quarter() { return threadIdx.x % 4; }

// {x, delta, dy, delta} of a channel in a row on the way in, {gradient through the decay, delta, gradient of x, y} on the
// way out. The gaps after every 8 channels and every row keep threads out of each other's banks.
#define CELL_STRIDE (10 * OCTETS + 1)
__device__ __forceinline__ int cell_index(int row, int channel) { return row * CELL_STRIDE + channel / 8 * 10 + channel % 8; }

// This block's batch row from 8 channels on, in arrays of rows. It waits in shared memory: registers are all in use, and to
// find it anew in every tile takes a tenth of all instructions.
struct alignas(16) Arrays {
    const Element *u, *delta, *gate, *dout;
    Element *du, *ddelta, *dgate, *out;
};

struct Backward {
    Tiles tiles;
    float4* cells;       // [TILE][CELL_STRIDE]
    float* warp_sums;    // [WARPS][TILE][TERMS]: dB and dC, where sum_terms looks for them
    float4* totals;      // [4][THREADS]: dskip of 8 channels, then dbias
    float4* quads;       // [2][32]: what make_selectors makes for each lane, where the compiler takes it for variable
    KeptGroup* kept;     // [SUBTILES][STATE_GROUPS][THREADS]: states before every STEPS-th row
    Arrays* arrays;      // [OCTETS]
    Terms* terms;        // [ROW_UNITS]: what each thread fetches
    float** dBC;         // [TERMS / 4]: of four states, in raster row 0
};

__device__ __forceinline__ void place(Backward& shared, uint4* memory) {
    uint4* rest = place_tiles(shared.tiles, memory, ARRAYS);
    shared.cells = (float4*)rest;
    rest += TILE * CELL_STRIDE;
    shared.warp_sums = (float*)rest;
    rest += WARPS * TILE * TERMS / 4;
    shared.totals = (float4*)rest;
    rest += 4 * THREADS;
    shared.quads = (float4*)rest;
    if (ROW_KIND == 0) rest += 64;
    shared.arrays = (Arrays*)rest;
    rest += 4 * OCTETS;
    shared.terms = (Terms*)rest;
    rest += ROW_UNITS;
    shared.dBC = (float**)rest;
    rest += TERMS / 8;
    shared.kept = (KeptGroup*)rest;
}

// Four neighbouring entries of warp_sums, summed over the warps.
__device__ __forceinline__ float4 sum_over_warps(const Backward& shared, int index) {
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        const float4 v = *(const float4*)(shared.warp_sums + warp * TILE * TERMS + index);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    return sum;
}

// Where a lane finds its inputs from a row on, and those of the rows after it at constant distances.
struct Inputs {
    const float4* cells;  // of its channel
    const float* terms;   // of its states
};

__device__ __forceinline__ void step_forward(const Inputs& from, int row, const float (&log2_rate)[THREAD_STATES],
                                             const float (&before)[THREAD_STATES], float (&decay)[THREAD_STATES],
                                             float (&after)[THREAD_STATES]) {
    const float2 cell = *(const float2*)(from.cells + row * CELL_STRIDE);
    float b[THREAD_STATES];
    load_terms(from.terms + row * TERMS, b);
#pragma unroll
    for (int i = 0; i < THREAD_STATES; ++i) {
        decay[i] = exp2_fast(cell.y * log2_rate[i]);
        after[i] = fmaf(decay[i], before[i], cell.x * b[i]);
    }
}
