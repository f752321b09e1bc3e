// Copies between rows in global memory and tiles in shared memory or registers.

// A thread copies the same granule of rows that are COPY_STEP(WIDTH) apart.
#define COPY_STEP(WIDTH) (THREADS / (WIDTH / GRANULE))

// Byte offset of a thread's granule `row` rows after its first one, at `offset`. Granules repeat every eight rows.
template <int WIDTH>
__device__ __forceinline__ int granule_at(int offset, int first, int row, int column) {
    return COPY_STEP(WIDTH) % 8 == 0 ? offset + row * WIDTH * ITEM_BYTES : place<WIDTH>(first + row, column);
}

// Starts copies of a chunk's rows; columns >= width become zero. `stride` in bytes.
template <int WIDTH>
__device__ __forceinline__ void copy_tile(Byte* tile, const Element* from, int stride, const int* rows, int width) {
    const int first = threadIdx.x / (WIDTH / GRANULE), column = threadIdx.x % (WIDTH / GRANULE) * GRANULE;
    const Byte* source = (const Byte*)(from + (column < width ? column : 0));
    const int offset = place<WIDTH>(first, column);
    int sources[TOKENS / COPY_STEP(WIDTH)];  // read first: the compiler keeps the order of reads and copies
#pragma unroll
    for (int i = 0; i < TOKENS / COPY_STEP(WIDTH); ++i) sources[i] = rows[first + i * COPY_STEP(WIDTH)];
#pragma unroll
    for (int row = 0; row < TOKENS; row += COPY_STEP(WIDTH)) {
        const int at = sources[row / COPY_STEP(WIDTH)];
        copy_async<16>(tile + granule_at<WIDTH>(offset, first, row, column), source + (Long)max(at, 0) * stride, at >= 0 && column < width);
    }
}

// Starts the copy of a stored state.
__device__ __forceinline__ void copy_state(Byte* tile, const Byte* from) {
    const int first = threadIdx.x / (SLICE / GRANULE), column = threadIdx.x % (SLICE / GRANULE) * GRANULE;
    const int offset = place<SLICE>(first, column);
#pragma unroll
    for (int row = 0; row < STATES; row += COPY_STEP(SLICE))
        copy_async<16>(tile + granule_at<SLICE>(offset, first, row, column), from + threadIdx.x * 16 + row * SLICE * ITEM_BYTES, true);
}

// Converts what this thread has copied to items, before the barrier.
template <int WIDTH>
__device__ __forceinline__ void convert_tile(Byte* tile) {
#if ROW_KIND == 2
    const int first = threadIdx.x / (WIDTH / GRANULE), column = threadIdx.x % (WIDTH / GRANULE) * GRANULE;
#pragma unroll
    for (int row = 0; row < TOKENS; row += COPY_STEP(WIDTH)) {
        uint4* at = (uint4*)(tile + place<WIDTH>(first + row, column));
        const uint4 halves = *at;
        *at = make_uint4(as_bfloats(halves.x), as_bfloats(halves.y), as_bfloats(halves.z), as_bfloats(halves.w));
    }
#endif
}

// 16 x 16 elements of rows in global memory, as one lane loads and stores them; row < 0 is absent.
#if ROW_KIND == 0
struct Patch { float2 at[4]; };

__device__ __forceinline__ void fetch(Patch& to, const Element* from, int stride, const int* rows, int column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = rows[LANE_ROW + i % 2 * 8];
        to.at[i] = row < 0 ? make_float2(0.f, 0.f)
                           : *(const float2*)(from + (Long)row * stride + column + i / 2 * 8 + LANE_COLUMN);
    }
}

__device__ __forceinline__ void spread(Sum& to, const Patch& from) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i / 2][i % 2 * 2] = from.at[i].x, to[i / 2][i % 2 * 2 + 1] = from.at[i].y;
}

__device__ __forceinline__ void put(Element* to, int stride, const int* rows, int column, const Sum& sum) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = rows[LANE_ROW + i % 2 * 8];
        if (row >= 0)
            *(float2*)(to + (Long)row * stride + column + i / 2 * 8 + LANE_COLUMN) =
                make_float2(sum[i / 2][i % 2 * 2], sum[i / 2][i % 2 * 2 + 1]);
    }
}
#else
struct Patch { uint4 at; };

// Lane 4 g + q moves 16 bytes: columns 8 (q % 2).. of row g + 8 (q / 2).
__device__ __forceinline__ void fetch(Patch& to, const Element* from, int stride, const int* rows, int column) {
    const int row = rows[LANE_ROW + (LANE >> 1 & 1) * 8];
    to.at = row < 0 ? make_uint4(0, 0, 0, 0) : *(const uint4*)(from + (Long)row * stride + column + (LANE & 1) * 8);
}

__device__ __forceinline__ void spread(Sum& to, const Patch& from) {
    Word w[4] = {from.at.x, from.at.y, from.at.z, from.at.w};
    exchange(w);
    unpack_word(w[0], to[0]), unpack_word(w[1], to[1]), unpack_word(w[2], to[0] + 2), unpack_word(w[3], to[1] + 2);
}

__device__ __forceinline__ void put(Element* to, int stride, const int* rows, int column, const Sum& sum) {
    Word w[4] = {pack_word(sum[0]), pack_word(sum[1]), pack_word(sum[0] + 2), pack_word(sum[1] + 2)};
    exchange(w);
    const int row = rows[LANE_ROW + (LANE >> 1 & 1) * 8];
    if (row >= 0) *(uint4*)(to + (Long)row * stride + column + (LANE & 1) * 8) = make_uint4(w[0], w[1], w[2], w[3]);
}
#endif
