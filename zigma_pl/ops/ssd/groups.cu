// Products of whole tiles by the four warps of a block together (wgmma), for GPUs of compute capability 9.0. All tiles are
// 64 x 64 items of 16 bits. A result has the layout of four Sums: warp k holds rows 16 k to 16 k + 15.
//
// A tile is read through a descriptor: address / 16, and the distance / 16 between groups of 8 rows, with the permutation
// of 128-byte rows that `place` has too. Tiles begin at multiples of 1,024 bytes, since the permutation follows addresses.

static_assert(ITEM_BYTES == 2 && TOKENS == 64 && STATES == 64 && SLICE == 64, "tiles of 64 x 64 items of 16 bits");
#define TILE_BLOCKS 4      // blocks of 16 along the inner axis of a product
#define GROUP_OF_ROWS 1024  // bytes

typedef Sum Product[TILE_BLOCKS];

#ifndef EMULATED
#undef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) uint4 name[]

__device__ __forceinline__ Word shared_address(const Byte* at) { return (Word)__cvta_generic_to_shared(at); }

// Makes what this thread has written to shared memory visible to products of all warps, after the next barrier.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Orders earlier accesses to the registers of products before the products that follow.
__device__ __forceinline__ void open_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Keeps the compiler from reading a result before this point.
__device__ __forceinline__ void settle(Sum& sum) {
#pragma unroll
    for (int i = 0; i < 8; ++i) asm volatile("" : "+f"(sum[i / 4][i % 4])::"memory");
}
__device__ __forceinline__ void settle(Product& sums) {
#pragma unroll
    for (int b = 0; b < TILE_BLOCKS; ++b) settle(sums[b]);
}

// Waits for all groups of products of this warp except the last `PENDING` ones.
template <int PENDING>
__device__ __forceinline__ void await_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

#define RESULTS8(s)                                                                                              \
    "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[0][2]), "+f"(s[0][3]), "+f"(s[1][0]), "+f"(s[1][1]), "+f"(s[1][2]), "+f"(s[1][3])
#define RESULTS(s) RESULTS8(s[0]), RESULTS8(s[1]), RESULTS8(s[2]), RESULTS8(s[3])
#define PRODUCT_OF                                                                                                \
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"  \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "

// sums += left right, or = without `add`, over 16 of the inner axis; turned factors have the inner axis along their rows.
template <bool LEFT_TURNED, bool RIGHT_TURNED>
__device__ __forceinline__ void multiply_tiles16(Product& sums, Long left, Long right, bool add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0;\n" PRODUCT_OF "%32, %33, p, 1, 1, %35, %36;}"
                 : RESULTS(sums)
                 : "l"(left), "l"(right), "r"((int)add), "n"((int)LEFT_TURNED), "n"((int)RIGHT_TURNED)
                 : "memory");
}

// The same for 16 columns; neither factor is turned.
__device__ __forceinline__ void multiply_columns16(Sum& sum, Long left, Long right, bool add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, p, 1, 1, 0, 0;}"
                 : RESULTS8(sum) : "l"(left), "l"(right), "r"((int)add) : "memory");
}

// The left factor is in registers, 16 rows per warp; the right one is turned.
__device__ __forceinline__ void multiply_rows16(Product& sums, const Word (&left)[4], Long right) {
    asm volatile(PRODUCT_OF "{%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
                 : RESULTS(sums) : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right) : "memory");
}
#endif

__device__ __forceinline__ Long describe(const Byte* tile) {
    const Long rows_apart = GROUP_OF_ROWS / 16, permuted = 1;
    return (Long)(shared_address(tile) / 16) | rows_apart << 16 | rows_apart << 32 | permuted << 62;
}

// The difference between the descriptors of two blocks of 16 along the inner axis.
template <bool TURNED>
__device__ __forceinline__ Long inner_step() { return (TURNED ? 2 * GROUP_OF_ROWS : 32) / 16; }

template <bool LEFT_TURNED, bool RIGHT_TURNED>
__device__ __forceinline__ void multiply_tiles(Product& sums, const Byte* left, const Byte* right, bool add) {
    const Long a = describe(left), b = describe(right);
#pragma unroll
    for (int k = 0; k < TILE_BLOCKS; ++k)
        multiply_tiles16<LEFT_TURNED, RIGHT_TURNED>(
            sums, a + k * inner_step<LEFT_TURNED>(), b + k * inner_step<RIGHT_TURNED>(), add || k > 0);
}

// sum = 16 columns of the product of left and the transposed right tile.
__device__ __forceinline__ void multiply_columns(Sum& sum, const Byte* left, const Byte* right, int block) {
    const Long a = describe(left), b = describe(right) + block * (2 * GROUP_OF_ROWS / 16);
#pragma unroll
    for (int k = 0; k < TILE_BLOCKS; ++k)
        multiply_columns16(sum, a + k * inner_step<false>(), b + k * inner_step<false>(), k > 0);
}

// sums += left right, with 16 rows per warp of left in registers, and `block` of the inner axis.
__device__ __forceinline__ void multiply_rows(Product& sums, const Left& left, const Byte* right, int block) {
    multiply_rows16(sums, left.w, describe(right) + block * inner_step<true>());
}

__device__ __forceinline__ void multiply_rows(Product& sums, const Left (&left)[TILE_BLOCKS], const Byte* right) {
#pragma unroll
    for (int k = 0; k < TILE_BLOCKS; ++k) multiply_rows(sums, left[k], right, k);
}

__device__ __forceinline__ void scale_product(Product& sums, float low, float high) {
#pragma unroll
    for (int b = 0; b < TILE_BLOCKS; ++b) scale_rows(sums[b], low, high);
}

// The transposed terms of the warp's 16 states times factors of the tokens: the left factor of the state's sum over the
// chunk. No products may be in progress, since the compiler would wait for each of them.
__device__ __forceinline__ void load_terms(
    const Walk& w, Left (&left)[TILE_BLOCKS], const Byte* terms, const float* factors
) {
#pragma unroll
    for (int k = 0; k < TILE_BLOCKS; ++k) {
        load_left_turned<STATES>(left[k], terms, k * 16, w.state_row);
        scale_inner(left[k], factors + k * 16);
    }
}

// ------------------------------------------------------------------------------------------- rows by way of a tile
// 16 rows of a warp, 128 bytes each, as its lanes load and store them: eight lanes move a row.
#define STAGED_ROWS 4
struct Granules { uint4 at[STAGED_ROWS]; };
#define STAGED_ROW(i) (LANE / 8 + i * 4)
#define STAGED_COLUMN (LANE % 8 * 8)

__device__ __forceinline__ void fetch_granules(Granules& to, const Element* from, int stride, const int* rows) {
#pragma unroll
    for (int i = 0; i < STAGED_ROWS; ++i) {
        const int row = max(rows[STAGED_ROW(i)], 0);
        to.at[i] = *(const uint4*)(from + (Long)row * stride + STAGED_COLUMN);
    }
}

// Stores 16 tokens as elements in their rows of a tile that no warp needs any more, and reads them in granules.
__device__ __forceinline__ void pass_through(Granules& to, Byte* tile, int block, const Product& sums) {
#pragma unroll
    for (int b = 0; b < TILE_BLOCKS; ++b) {
        const Word words[4] = {pack_word(sums[b][0]), pack_word(sums[b][0] + 2), pack_word(sums[b][1]), pack_word(sums[b][1] + 2)};
        store_matrices(words, tile + place<SLICE>(block * 16 + (LANE & 15), b * 16 + (LANE >> 4) * 8));
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < STAGED_ROWS; ++i)
        to.at[i] = *(const uint4*)(tile + place<SLICE>(block * 16 + STAGED_ROW(i), STAGED_COLUMN));
    __syncwarp();
}

__device__ __forceinline__ void put_granules(Element* to, int stride, const int* rows, const Granules& from) {
#pragma unroll
    for (int i = 0; i < STAGED_ROWS; ++i) {
        const int row = rows[STAGED_ROW(i)];
        if (row >= 0) *(uint4*)(to + (Long)row * stride + STAGED_COLUMN) = from.at[i];
    }
}

// y silu(gate)
__device__ __forceinline__ void apply_gate(Granules& y, const Granules& gate) {
#pragma unroll
    for (int i = 0; i < STAGED_ROWS; ++i) {
        float values[GRANULE], z[GRANULE];
        unpack16(y.at[i], values);
        unpack16(gate.at[i], z);
#pragma unroll
        for (int e = 0; e < GRANULE; ++e) values[e] *= z[e] * gate_sigmoid(z[e]);
        y.at[i] = pack16(values);
    }
}
