// Softmax attention from many queries to at most 128 keys, and its gradients. All keys and values of one head are in shared
// memory, and a warp has all scores of its 16 queries in registers. TOKENS: number of keys, rounded up to a multiple of 16;
// HEAD_DIM: 32 or 64. Rows are bfloat16 or float16, and so are the factors of all products.

#define ROW_TILES (HEAD_DIM / 16)   // 16 x 16 tiles across a row of queries, keys or values
#define TOKEN_TILES (TOKENS / 16)   // 16 x 16 tiles across the scores of a query
#define TOKEN_BYTES (TOKENS * HEAD_DIM * 2)  // keys or values of one head
#define SCALE (HEAD_DIM == 32 ? 0.17677669529663689f : 0.125f)  // HEAD_DIM^-0.5
#define THREADS (32 * WARPS)
#define WARP ((int)threadIdx.x / 32)

// Every field takes 8 bytes. Strides are in elements, and rows start at multiples of 16 bytes.
struct Params {
    const Element *query, *key, *value, *dout;
    Long query_batch, query_row, query_head, key_batch, key_row, key_head;
    Long value_batch, value_row, value_head, dout_batch, dout_row, dout_head;
    const float* bias;  // (B, T), or null
    Element* out;       // (B, L, H, HEAD_DIM): the output, or the gradient of the queries
    float* norms;       // (B, H, L): log2 of the sum of exp(score) of each query, or null
    Element* dtokens;   // (2, B, T, H, HEAD_DIM): gradients of keys and of values, if there is one part
    float* partials;    // (parts, 2, B, T, H, HEAD_DIM): what each part adds to them otherwise
    Long num_rows, num_tokens, part_rows;
};

#if ROW_KIND == 1
#define multiply16 multiply_add16
#elif defined(EMULATED)
#define multiply16 multiply_add16_halves
#else
// As multiply_add16, with float16 factors.
__device__ __forceinline__ void multiply16(float (&c)[4], const Word (&a)[4], Word b0, Word b1, bool) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

__device__ __forceinline__ void multiply_tile(Sum& sum, const Left& left, const Right& right) {
#pragma unroll
    for (int t = 0; t < 2; ++t) multiply16(sum[t], left.w, right.w[2 * t], right.w[2 * t + 1], false);
}

// Byte offset within the first 16 rows of the address that a lane passes to load_matrices for a left factor, or for a right
// factor stored with its inner axis along the rows; and for a right factor stored with its inner axis along the columns.
__device__ __forceinline__ int left_offset() { return place<HEAD_DIM>(LANE & 15, (LANE >> 4) * 8); }
__device__ __forceinline__ int right_offset() { return place<HEAD_DIM>((LANE & 7) + (LANE >> 4) * 8, (LANE >> 3 & 1) * 8); }

// Address of a tile whose row and column are multiples of 16, in rows of HEAD_DIM items.
__device__ __forceinline__ const Byte* tile_at(const Byte* rows, int offset, int row, int column) {
    return rows + row * (HEAD_DIM * 2) + (offset ^ column * 2);
}

// Packs an accumulator: the left factor of another product.
__device__ __forceinline__ void pack_tile(Left& to, const Sum& sum) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to.w[i] = pack_word(sum[i / 2] + i % 2 * 2);
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Multiplies the bias by log2(e); keys that do not exist get -infinity.
__device__ __forceinline__ void load_bias(const Params& p, float* to) {
    for (int token = threadIdx.x; token < TOKENS; token += THREADS) {
        float bias = __uint_as_float(0xff800000u);
        if (token < (int)p.num_tokens) bias = p.bias ? LOG2_E * p.bias[blockIdx.z * p.num_tokens + token] : 0.f;
        to[token] = bias;
    }
}

// Scores become log2 of exp(score) before normalisation.
__device__ __forceinline__ void add_bias(Sum& sum, const float* bias) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
        const float2 added = *(const float2*)(bias + t * 8 + LANE_COLUMN);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[t][i] = fmaf(sum[t][i], SCALE * LOG2_E, i % 2 ? added.y : added.x);
    }
}
