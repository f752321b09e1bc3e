// The shared memory of the backward pass.

#define ARRAYS 4  // u, delta, gate, dout
#define SUBTILES (TILE / STEPS)

// {x, delta, dy, delta} of a channel in a row on the way in, {gradient through the decay, delta, gradient of x, y} on the
// way out. The gaps after every 8 channels and every row keep threads out of each other's banks.
#define CELL_STRIDE (10 * OCTETS + 1)
__device__ __forceinline__ int cell_index(int row, int channel) { return row * CELL_STRIDE + channel / 8 * 10 + channel % 8; }

// This block's batch row from 8 channels on, in arrays of rows. It waits in shared memory: registers are all in use, and to
// find it anew in every tile takes a tenth of all instructions.
struct alignas(16) Arrays {
    const Element *u, *delta, *gate, *dout;
    Element *du, *ddelta, *dgate, *out;
    Long gap[2];  // keeps what the OCTETS read out of each other's banks
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
    rest += sizeof(Arrays) / 16 * OCTETS;
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
