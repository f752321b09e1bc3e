// Tiles in shared memory and the operands of warp matrix products. Items of tiles are bfloat16, for which products have
// 16 x 16 x 16 steps, or float32 for float32 rows, whose products are sums of three with 11-bit factors.

#if ROW_KIND == 0
#define ITEM_BYTES 4
#define WORDS 8  // 32-bit registers of a fragment
#else
#define ITEM_BYTES 2
#define WORDS 4
#endif
#define GRANULE (16 / ITEM_BYTES)  // items in 16 bytes
#define LANE ((int)threadIdx.x & 31)
#define LANE_ROW (LANE >> 2)       // a lane holds rows LANE_ROW and LANE_ROW + 8 of an accumulator,
#define LANE_COLUMN ((LANE & 3) * 2)  // and columns LANE_COLUMN, LANE_COLUMN + 1 of both of its halves

#ifndef EMULATED
// Loads four 8 x 8 matrices of 16-bit items; lane 8 i + j passes the address of row j of matrix i.
template <bool TURNED>
__device__ __forceinline__ void load_matrices(Word (&to)[4], const Byte* from) {
    const Word address = (Word)__cvta_generic_to_shared(from);
    if (TURNED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address) : "memory");
}

// Starts loading a line of 128 bytes into the second-level cache.
__device__ __forceinline__ void prefetch(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

__device__ __forceinline__ void add_global2(float* to, float2 v) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(v.x), "f"(v.y) : "memory");
#else
    atomicAdd(to, v.x), atomicAdd(to + 1, v.y);
#endif
}
#endif

// Byte offset of an item. Granules of 16 bytes are permuted within a row, so that eight rows have them in different banks.
template <int WIDTH>
__device__ __forceinline__ int place(int row, int column) {
    const int turn = WIDTH / GRANULE >= 8 ? row & 7 : row >> 1 & 3;
    return row * (WIDTH * ITEM_BYTES) + ((column / GRANULE ^ turn) << 4) + column % GRANULE * ITEM_BYTES;
}

// 16 x 16 numbers: the left or the right factor of a product.
struct Left { Word w[WORDS]; };
struct Right { Word w[WORDS]; };
typedef float Sum[2][4];  // 16 x 16 accumulator: columns 0-7 and 8-15

__device__ __forceinline__ void clear(Sum& sum) {
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[t][i] = 0.f;
}

// Multiplies rows LANE_ROW and LANE_ROW + 8 by two factors.
__device__ __forceinline__ void scale_rows(Sum& sum, float low, float high) {
#pragma unroll
    for (int t = 0; t < 2; ++t) sum[t][0] *= low, sum[t][1] *= low, sum[t][2] *= high, sum[t][3] *= high;
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

#if ROW_KIND == 0
__device__ __forceinline__ Word read_word(const Byte* at) { return *(const Word*)at; }

// Lane 4 g + q holds for each half h of the inner axis: [g][2 q], [g + 8][2 q], [g][2 q + 1], [g + 8][2 q + 1].
template <int WIDTH>
__device__ __forceinline__ void load_left(Left& to, const Byte* tile, int row, int inner) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
        to.w[i] = read_word(tile + place<WIDTH>(row + LANE_ROW + i % 2 * 8, inner + i / 4 * 8 + LANE_COLUMN + i / 2 % 2));
}

template <int WIDTH>
__device__ __forceinline__ void load_left_turned(Left& to, const Byte* tile, int inner, int row) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
        to.w[i] = read_word(tile + place<WIDTH>(inner + i / 4 * 8 + LANE_COLUMN + i / 2 % 2, row + LANE_ROW + i % 2 * 8));
}

// Lane 4 g + q holds for each half t of the columns and each half h of the inner axis: [2 q][g], [2 q + 1][g].
template <int WIDTH>
__device__ __forceinline__ void load_right(Right& to, const Byte* tile, int column, int inner) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
        to.w[i] = read_word(tile + place<WIDTH>(column + i / 4 * 8 + LANE_ROW, inner + i / 2 % 2 * 8 + LANE_COLUMN + i % 2));
}

template <int WIDTH>
__device__ __forceinline__ void load_right_turned(Right& to, const Byte* tile, int inner, int column) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
        to.w[i] = read_word(tile + place<WIDTH>(inner + i / 2 % 2 * 8 + LANE_COLUMN + i % 2, column + i / 4 * 8 + LANE_ROW));
}

__device__ __forceinline__ void as_left(Left& to, const Sum& sum) {
#pragma unroll
    for (int i = 0; i < 8; ++i) to.w[i] = __float_as_uint(sum[i / 4][i % 2 * 2 + i / 2 % 2]);
}

__device__ __forceinline__ void scale_inner(Left& left, const float* factors) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
        left.w[i] = __float_as_uint(__uint_as_float(left.w[i]) * factors[i / 4 * 8 + LANE_COLUMN + i / 2 % 2]);
}

__device__ __forceinline__ void multiply_into(Sum& sum, const Left& left, const Right& right) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float large[4], small[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float a = __uint_as_float(left.w[half * 4 + i]);
            large[i] = cut_to_11_bits(a), small[i] = trailing_bits(a);
        }
#pragma unroll
        for (int t = 0; t < 2; ++t) {
            const float b0 = __uint_as_float(right.w[t * 4 + half * 2]), b1 = __uint_as_float(right.w[t * 4 + half * 2 + 1]);
            multiply_add(sum[t], small, cut_to_11_bits(b0), cut_to_11_bits(b1));
            multiply_add(sum[t], large, trailing_bits(b0), trailing_bits(b1));
            multiply_add(sum[t], large, cut_to_11_bits(b0), cut_to_11_bits(b1));
        }
    }
}

__device__ __forceinline__ void read_items(const Byte* at, float& first, float& second) {
    const float2 two = *(const float2*)at;
    first = two.x, second = two.y;
}
__device__ __forceinline__ void write_items(Byte* at, float first, float second) { *(float2*)at = make_float2(first, second); }
#else
template <int WIDTH>
__device__ __forceinline__ void load_left(Left& to, const Byte* tile, int row, int inner) {
    load_matrices<false>(to.w, tile + place<WIDTH>(row + (LANE & 15), inner + (LANE >> 4) * 8));
}

template <int WIDTH>
__device__ __forceinline__ void load_left_turned(Left& to, const Byte* tile, int inner, int row) {
    load_matrices<true>(to.w, tile + place<WIDTH>(inner + (LANE & 7) + (LANE >> 4) * 8, row + (LANE >> 3 & 1) * 8));
}

template <int WIDTH>
__device__ __forceinline__ void load_right(Right& to, const Byte* tile, int column, int inner) {
    load_matrices<false>(to.w, tile + place<WIDTH>(column + (LANE & 7) + (LANE >> 4) * 8, inner + (LANE >> 3 & 1) * 8));
}

template <int WIDTH>
__device__ __forceinline__ void load_right_turned(Right& to, const Byte* tile, int inner, int column) {
    load_matrices<true>(to.w, tile + place<WIDTH>(inner + (LANE & 15), column + (LANE >> 4) * 8));
}

__device__ __forceinline__ void as_left(Left& to, const Sum& sum) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to.w[i] = pack_bfloats(sum[i / 2][i % 2 * 2], sum[i / 2][i % 2 * 2 + 1]);
}

__device__ __forceinline__ float low_item(Word two) { return __uint_as_float(two << 16); }
__device__ __forceinline__ float high_item(Word two) { return __uint_as_float(two & 0xffff0000u); }

// Multiplies the columns of a left factor, the inner axis, by 16 factors.
__device__ __forceinline__ void scale_inner(Left& left, const float* factors) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float2 f = *(const float2*)(factors + half * 8 + LANE_COLUMN);
#pragma unroll
        for (int i = half * 2; i < half * 2 + 2; ++i)
            left.w[i] = pack_bfloats(low_item(left.w[i]) * f.x, high_item(left.w[i]) * f.y);
    }
}

__device__ __forceinline__ void multiply_into(Sum& sum, const Left& left, const Right& right) {
#pragma unroll
    for (int t = 0; t < 2; ++t) multiply_add16(sum[t], left.w, right.w[2 * t], right.w[2 * t + 1], false);
}

// Transposes 4 x 4 words among the four lanes that share rows.
__device__ __forceinline__ void exchange(Word (&w)[4]) {
    const bool odd = LANE & 1, upper = LANE & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const Word other = __shfl_xor_sync(0xffffffffu, odd ? w[i] : w[i + 1], 1);
        if (odd) w[i] = other; else w[i + 1] = other;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const Word other = __shfl_xor_sync(0xffffffffu, upper ? w[i] : w[i + 2], 2);
        if (upper) w[i] = other; else w[i + 2] = other;
    }
}

__device__ __forceinline__ void read_items(const Byte* at, float& first, float& second) {
    const Word two = *(const Word*)at;
    first = low_item(two), second = high_item(two);
}
__device__ __forceinline__ void write_items(Byte* at, float first, float second) { *(Word*)at = pack_bfloats(first, second); }
#endif

// Converts a granule of items.
__device__ __forceinline__ void unpack_items(uint4 raw, float* values) {
    const Word w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#if ROW_KIND == 0
        values[i] = __uint_as_float(w[i]);
#else
        values[2 * i] = low_item(w[i]), values[2 * i + 1] = high_item(w[i]);
#endif
}

__device__ __forceinline__ uint4 pack_items(const float* values) {
    Word w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#if ROW_KIND == 0
        w[i] = __float_as_uint(values[i]);
#else
        w[i] = pack_bfloats(values[2 * i], values[2 * i + 1]);
#endif
    return make_uint4(w[0], w[1], w[2], w[3]);
}

template <int WIDTH>
__device__ __forceinline__ void store_sum(Byte* tile, int row, int column, const Sum& sum) {
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            write_items(tile + place<WIDTH>(row + LANE_ROW + half * 8, column + t * 8 + LANE_COLUMN), sum[t][half * 2],
                        sum[t][half * 2 + 1]);
}

template <int WIDTH>
__device__ __forceinline__ void read_sum(Sum& sum, const Byte* tile, int row, int column) {
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            read_items(tile + place<WIDTH>(row + LANE_ROW + half * 8, column + t * 8 + LANE_COLUMN), sum[t][half * 2],
                       sum[t][half * 2 + 1]);
}

// Adds the products of a sum's rows with those of a tile to `low` (row LANE_ROW) and `high` (row LANE_ROW + 8).
template <int WIDTH>
__device__ __forceinline__ void dot_rows(const Sum& sum, const Byte* tile, int row, int column, float& low, float& high) {
    Sum other;
    read_sum<WIDTH>(other, tile, row, column);
#pragma unroll
    for (int t = 0; t < 2; ++t) {
        low = fmaf(sum[t][0], other[t][0], fmaf(sum[t][1], other[t][1], low));
        high = fmaf(sum[t][2], other[t][2], fmaf(sum[t][3], other[t][3], high));
    }
}
