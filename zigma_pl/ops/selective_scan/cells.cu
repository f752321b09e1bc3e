// The shared memory of the backward pass.

#define ARRAYS 4  // u, delta, gate, dout
#define SUBTILES (TILE / STEPS)

// A cell contains {x, delta, dy, delta} of a channel in a row as input, and {gradient through the decay, delta, gradient of x,
// y} as output. The gaps after every 8 channels and every row avoid bank conflicts.
#define CELL_STRIDE (10 * OCTETS + 1)
__device__ __forceinline__ int cell_index(int row, int channel) { return row * CELL_STRIDE + channel / 8 * 10 + channel % 8; }

// Addresses of 8 channels in raster row 0 of this block's batch element, in all arrays of rows. They are in shared memory since
// all registers are in use, and recomputing them for every tile would take a tenth of all instructions.
struct alignas(16) Arrays {
    const Element *u, *delta, *gate, *dout;
    Element *du, *ddelta, *dgate, *out;
    Long gap[2];  // avoids bank conflicts between octets
};

struct Backward {
    Tiles tiles;
    float4* cells;       // [TILE][CELL_STRIDE]
    float* warp_sums;    // [WARPS][TILE][TERMS]: dB and dC, in the layout of sum_terms
    float4* totals;      // [4][THREADS]: dskip of 8 channels, then dbias
    float4* quads;       // [2][32]: constants of make_selectors for each lane, which the compiler thus treats as variables
    KeptGroup* kept;     // [SUBTILES][STATE_GROUPS][THREADS]: states before every STEPS-th row
    Arrays* arrays;      // [OCTETS]
    Terms* terms;        // [ROW_UNITS]: states that each thread fetches
    float** dBC;         // [TERMS / 4]: address of four states in raster row 0
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
    rest += sizeof(Arrays) / 16 * OCTETS;
    shared.terms = (Terms*)rest;
    rest += ROW_UNITS;
    shared.dBC = (float**)rest;
    rest += TERMS / 8;
    shared.kept = (KeptGroup*)rest;
}

// Four adjacent entries of warp_sums, summed over the warps.
__device__ __forceinline__ float4 sum_over_warps(const Backward& shared, int index) {
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        const float4 v = *(const float4*)(shared.warp_sums + warp * TILE * TERMS + index);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    return sum;
}
