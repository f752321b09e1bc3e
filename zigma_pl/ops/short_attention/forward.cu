// The forward pass of attention to few keys.

// Queries and outputs pass through registers only: lane 4 g + q holds the 16-byte granules q, q + 4, ... of rows g and g + 8.
// Their words are in the order of a product's operands if the words of keys and values are transposed: within 64 bytes, word
// 4 i + j is stored at 4 j + i.
__device__ __forceinline__ void load_transposed(Byte* tile, const Element* from, Long stride, int num_tokens) {
    for (int i = threadIdx.x; i < TOKENS * (HEAD_DIM / 32); i += THREADS) {
        const int token = i / (HEAD_DIM / 32), column = i % (HEAD_DIM / 32) * 32;
        uint4 w[4] = {};
        if (token < num_tokens) {
#pragma unroll
            for (int j = 0; j < 4; ++j) w[j] = ((const uint4*)(from + token * stride + column))[j];
        }
        *(uint4*)(tile + place<HEAD_DIM>(token, column)) = make_uint4(w[0].x, w[1].x, w[2].x, w[3].x);
        *(uint4*)(tile + place<HEAD_DIM>(token, column + 8)) = make_uint4(w[0].y, w[1].y, w[2].y, w[3].y);
        *(uint4*)(tile + place<HEAD_DIM>(token, column + 16)) = make_uint4(w[0].z, w[1].z, w[2].z, w[3].z);
        *(uint4*)(tile + place<HEAD_DIM>(token, column + 24)) = make_uint4(w[0].w, w[1].w, w[2].w, w[3].w);
    }
}

struct Rows { uint4 at[HEAD_DIM / 32][2]; };  // granule q + 4 i of rows g and g + 8

__device__ __forceinline__ void fetch_rows(Rows& to, const Element* from, Long stride, int row, int end) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int at = row + LANE_ROW + half * 8;
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 32; ++i)
            to.at[i][half] = at < end ? *(const uint4*)(from + at * stride + i * 32 + LANE_COLUMN * 4) : make_uint4(0, 0, 0, 0);
    }
}

__device__ __forceinline__ void store_rows(Element* to, Long stride, int row, int end, const Sum (&sums)[ROW_TILES]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int at = row + LANE_ROW + half * 8;
        if (at >= end) continue;
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 32; ++i)
            *(uint4*)(to + at * stride + i * 32 + LANE_COLUMN * 4) =
                make_uint4(pack_word(sums[2 * i][0] + half * 2), pack_word(sums[2 * i][1] + half * 2),
                           pack_word(sums[2 * i + 1][0] + half * 2), pack_word(sums[2 * i + 1][1] + half * 2));
    }
}

// A block processes part_rows queries of one head; each of its warps takes every WARPS-th 16 of them.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) short_attention_forward(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    Byte *keys = (Byte*)memory, *values = keys + TOKEN_BYTES;
    float* bias = (float*)(values + TOKEN_BYTES);
    const Long head = blockIdx.y, batch = blockIdx.z, out_row = (Long)gridDim.y * HEAD_DIM;
    const Element* query = p.query + batch * p.query_batch + head * p.query_head;
    Element* out = p.out + batch * p.num_rows * out_row + head * HEAD_DIM;
    float* norms = p.norms ? p.norms + (batch * gridDim.y + head) * p.num_rows : nullptr;
    const int begin = blockIdx.x * p.part_rows, end = min(begin + p.part_rows, p.num_rows);
    Rows next;
    fetch_rows(next, query, p.query_row, begin + 16 * WARP, end);
    load_transposed(keys, p.key + batch * p.key_batch + head * p.key_head, p.key_row, p.num_tokens);
    load_transposed(values, p.value + batch * p.value_batch + head * p.value_head, p.value_row, p.num_tokens);
    load_bias(p, bias);
    __syncthreads();
    for (int row = begin + 16 * WARP; row < end; row += 16 * WARPS) {
        const Rows rows = next;
        fetch_rows(next, query, p.query_row, row + 16 * WARPS, end);
        Sum scores[TOKEN_TILES];
#pragma unroll
        for (int b = 0; b < TOKEN_TILES; ++b) clear(scores[b]);
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i) {
            const uint4 low = rows.at[i / 2][0], high = rows.at[i / 2][1];
            const Left left = i % 2 ? Left{low.z, high.z, low.w, high.w} : Left{low.x, high.x, low.y, high.y};
#pragma unroll
            for (int b = 0; b < TOKEN_TILES; ++b) {
                Right right;
                load_matrices<false>(right.w, tile_at(keys, right_offset(), b * 16, i * 16));
                multiply_tile(scores[b], left, right);
            }
        }
        float most[2] = {-3e38f, -3e38f}, total[2] = {0.f, 0.f};  // of rows LANE_ROW and LANE_ROW + 8
#pragma unroll
        for (int b = 0; b < TOKEN_TILES; ++b) {
            add_bias(scores[b], bias + b * 16);
#pragma unroll
            for (int i = 0; i < 8; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], scores[b][i / 4][i % 4]);
        }
        most[0] = quad_max(most[0]), most[1] = quad_max(most[1]);
        Sum sums[ROW_TILES];
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i) clear(sums[i]);
#pragma unroll
        for (int b = 0; b < TOKEN_TILES; ++b) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float& weight = scores[b][i / 4][i % 4];
                weight = exp2_fast(weight - most[i / 2 % 2]);
                total[i / 2 % 2] += weight;
            }
            Left left;
            pack_tile(left, scores[b]);
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i) {
                Right right;
                load_matrices<true>(right.w, tile_at(values, left_offset(), b * 16, i * 16));
                multiply_tile(sums[i], left, right);
            }
        }
        total[0] = quad_sum(total[0]), total[1] = quad_sum(total[1]);
        const float low = 1.f / total[0], high = 1.f / total[1];
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i) scale_rows(sums[i], low, high);
        store_rows(out, out_row, row, end, sums);
        if (norms && LANE_COLUMN < 4) {  // one lane for each row
            const int half = LANE_COLUMN / 2, at = row + LANE_ROW + half * 8;
            if (at < end) norms[at] = half ? most[1] + log2f(total[1]) : most[0] + log2f(total[0]);
        }
    }
}
