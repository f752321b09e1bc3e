// The backward pass of attention to few keys. In each step, every warp computes the weights of 16 queries, their gradients and
// that of the queries; then one half of the warps adds to the gradient of the values, and the other to that of the keys. The
// output is not read: the product of a row with its gradient is the sum of weights times their gradients.

#define STEP_ROWS (16 * WARPS)
#define QUERY_BYTES (STEP_ROWS * HEAD_DIM * 2)
#define WEIGHT_STRIDE (TOKENS * 2 + 16)  // bytes; an odd multiple of 16, so that eight rows are in different banks
#define WEIGHT_BYTES (STEP_ROWS * WEIGHT_STRIDE)
#define COLUMNS (HEAD_DIM / (WARPS / 2))  // of the gradient of keys or values, per warp: 8 or 16

// Starts the copies of a warp's 16 rows; rows from `end` on become zero.
__device__ __forceinline__ void copy_rows(Byte* tile, const Element* from, Long stride, int row, int end) {
    const int first = LANE / (HEAD_DIM / 8), column = LANE % (HEAD_DIM / 8) * 8;
    const Element* source = from + (row + first) * stride + column;
#pragma unroll
    for (int i = 0; i < 16; i += 256 / HEAD_DIM) {
        const bool present = row + first + i < end;
        copy_async<16>(tile + place<HEAD_DIM>(16 * WARP + first + i, column), present ? source : from, present);
        source += 256 / HEAD_DIM * stride;
    }
}

__device__ __forceinline__ void copy_tokens(Byte* tile, const Element* from, Long stride, int num_tokens) {
    for (int i = threadIdx.x; i < TOKENS * (HEAD_DIM / 8); i += THREADS) {
        const int token = i / (HEAD_DIM / 8), column = i % (HEAD_DIM / 8) * 8;
        const bool present = token < num_tokens;
        const Element* source = from + (present ? token : 0) * stride + column;
        copy_async<16>(tile + place<HEAD_DIM>(token, column), source, present);
    }
}

// Rows that do not exist get +infinity, which makes their weights zero.
__device__ __forceinline__ void load_norms(float (&to)[2], const float* norms, int row, int end) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int at = row + LANE_ROW + half * 8;
        to[half] = at < end ? norms[at] : __uint_as_float(0x7f800000u);
    }
}

// Products of a warp's 16 rows with all keys or values.
__device__ __forceinline__ void score(Sum (&sums)[TOKEN_TILES], const Byte* rows, const Byte* tokens) {
#pragma unroll
    for (int b = 0; b < TOKEN_TILES; ++b) clear(sums[b]);
#pragma unroll
    for (int i = 0; i < ROW_TILES; ++i) {
        Left left;
        load_matrices<false>(left.w, tile_at(rows, left_offset(), 16 * WARP, i * 16));
#pragma unroll
        for (int b = 0; b < TOKEN_TILES; ++b) {
            Right right;
            load_matrices<false>(right.w, tile_at(tokens, right_offset(), b * 16, i * 16));
            multiply_tile(sums[b], left, right);
        }
    }
}

// Stores a tile of a warp's weights, or of their gradients.
__device__ __forceinline__ void store_weights(Byte* to, int token, const Left& tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        *(Word*)(to + (16 * WARP + LANE_ROW + i % 2 * 8) * WEIGHT_STRIDE + (token + i / 2 * 8 + LANE_COLUMN) * 2) = tile.w[i];
}

// Reads it again: registers are too few to keep all weights.
__device__ __forceinline__ void read_weights(Left& to, const Byte* from, int token) {
    load_matrices<false>(to.w, from + (16 * WARP + (LANE & 15)) * WEIGHT_STRIDE + token * 2 + (LANE >> 4) * 16);
}

// Stores 16 x 16 elements with 16 bytes per lane.
__device__ __forceinline__ void store_tile(Element* to, Long stride, int row, int end, const Sum& sum) {
    Word w[4] = {pack_word(sum[0]), pack_word(sum[1]), pack_word(sum[0] + 2), pack_word(sum[1] + 2)};
    exchange(w);
    const int at = row + LANE_ROW + (LANE >> 1 & 1) * 8;
    if (at < end) *(uint4*)(to + at * stride + (LANE & 1) * 8) = make_uint4(w[0], w[1], w[2], w[3]);
}

typedef float TokenSums[TOKEN_TILES][COLUMNS / 8][4];

// Adds the products of all keys' weights, or of their gradients, with COLUMNS columns of the rows of queries.
__device__ __forceinline__ void gather(TokenSums& sums, const Byte* weights, const Byte* rows, int column) {
    const Byte* from = weights + ((LANE & 7) + (LANE >> 4) * 8) * WEIGHT_STRIDE + (LANE >> 3 & 1) * 16;
#pragma unroll 2
    for (int row = 0; row < STEP_ROWS; row += 16) {
        Right right;
        load_matrices<true>(right.w, tile_at(rows, left_offset(), row, column & ~15));
        if (COLUMNS == 8 && column & 8) right.w[0] = right.w[2], right.w[1] = right.w[3];
#pragma unroll
        for (int b = 0; b < TOKEN_TILES; ++b) {
            Word left[4];
            load_matrices<true>(left, from + row * WEIGHT_STRIDE + b * 32);
#pragma unroll
            for (int i = 0; i < COLUMNS / 8; ++i)
                multiply16(sums[b][i], left, right.w[i * 2], right.w[i * 2 + 1], false);
        }
    }
}

__device__ __forceinline__ void store_token_sums(const Params& p, const TokenSums& sums, bool of_values, int column) {
    const Long size = (Long)gridDim.z * p.num_tokens * gridDim.y * HEAD_DIM, row_size = (Long)gridDim.y * HEAD_DIM;
    const Long begin = of_values * size + blockIdx.z * p.num_tokens * row_size + blockIdx.y * HEAD_DIM + column + LANE_COLUMN;
#pragma unroll
    for (int b = 0; b < TOKEN_TILES; ++b)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int token = b * 16 + LANE_ROW + half * 8;
            if (token >= (int)p.num_tokens) continue;
#pragma unroll
            for (int i = 0; i < COLUMNS / 8; ++i) {
                const Long at = begin + token * row_size + i * 8;
                const float scale = of_values ? 1.f : SCALE;
                const float two[2] = {scale * sums[b][i][half * 2], scale * sums[b][i][half * 2 + 1]};
                if (p.partials) *(float2*)(p.partials + blockIdx.x * 2 * size + at) = make_float2(two[0], two[1]);
                else *(Word*)(p.dtokens + at) = pack_word(two);
            }
        }
}

// A block processes part_rows queries of one head, a multiple of STEP_ROWS.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) short_attention_backward(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    Byte *keys = (Byte*)memory, *values = keys + TOKEN_BYTES, *queries = values + TOKEN_BYTES;
    Byte *douts = queries + 2 * QUERY_BYTES, *weights = douts + QUERY_BYTES, *dscores = weights + WEIGHT_BYTES;
    float* bias = (float*)(dscores + WEIGHT_BYTES);
    const Long head = blockIdx.y, batch = blockIdx.z, out_row = (Long)gridDim.y * HEAD_DIM;
    const Element* query = p.query + batch * p.query_batch + head * p.query_head;
    const Element* dout = p.dout + batch * p.dout_batch + head * p.dout_head;
    Element* dquery = p.out + batch * p.num_rows * out_row + head * HEAD_DIM;
    const float* norms = p.norms + (batch * gridDim.y + head) * p.num_rows;
    const int begin = blockIdx.x * p.part_rows, end = min(begin + p.part_rows, p.num_rows);
    const bool of_values = WARP < WARPS / 2;
    const int column = WARP % (WARPS / 2) * COLUMNS;
    TokenSums token_sums;
#pragma unroll
    for (int b = 0; b < TOKEN_TILES; ++b)
#pragma unroll
        for (int i = 0; i < COLUMNS / 8; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) token_sums[b][i][j] = 0.f;
    int row = begin + 16 * WARP;
    float norm[2];  // of rows LANE_ROW and LANE_ROW + 8
    copy_rows(queries, query, p.query_row, row, end);
    load_norms(norm, norms, row, end);
    copy_tokens(keys, p.key + batch * p.key_batch + head * p.key_head, p.key_row, p.num_tokens);
    copy_tokens(values, p.value + batch * p.value_batch + head * p.value_head, p.value_row, p.num_tokens);
    load_bias(p, bias);
    close_copies();
    close_copies();  // an empty group, so that all copies are awaited
    await_copies();
    __syncthreads();
    for (int stage = 0; row - 16 * WARP < end; row += STEP_ROWS, stage ^= 1) {
        const Byte* rows = queries + stage * QUERY_BYTES;
        copy_rows(douts, dout, p.dout_row, row, end);
        close_copies();
        await_copies();  // the queries
        __syncwarp();
        Sum sums[TOKEN_TILES];
        score(sums, rows, keys);
#pragma unroll
        for (int b = 0; b < TOKEN_TILES; ++b) {
            add_bias(sums[b], bias + b * 16);
#pragma unroll
            for (int i = 0; i < 8; ++i) sums[b][i / 4][i % 4] = exp2_fast(sums[b][i / 4][i % 4] - norm[i / 2 % 2]);
            Left weight;
            pack_tile(weight, sums[b]);
            store_weights(weights, b * 16, weight);
        }
        close_copies();
        await_copies();  // the gradients of the outputs
        __syncwarp();
        score(sums, douts, values);
        Left dscore[TOKEN_TILES];
        float mean[2] = {0.f, 0.f};  // of the gradients of the weights, weighted
#pragma unroll
        for (int b = 0; b < TOKEN_TILES; ++b) {
            Left weight;
            read_weights(weight, weights, b * 16);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float two[2];
                unpack_word(weight.w[i], two);
                mean[i % 2] = fmaf(two[0], sums[b][i / 2][i % 2 * 2], fmaf(two[1], sums[b][i / 2][i % 2 * 2 + 1], mean[i % 2]));
            }
        }
        mean[0] = quad_sum(mean[0]), mean[1] = quad_sum(mean[1]);
#pragma unroll
        for (int b = 0; b < TOKEN_TILES; ++b) {
            Left weight;
            read_weights(weight, weights, b * 16);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float two[2];
                unpack_word(weight.w[i], two);
                two[0] *= sums[b][i / 2][i % 2 * 2] - mean[i % 2], two[1] *= sums[b][i / 2][i % 2 * 2 + 1] - mean[i % 2];
                dscore[b].w[i] = pack_word(two);
            }
            store_weights(dscores, b * 16, dscore[b]);
        }
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i) {
            Sum sum;
            clear(sum);
#pragma unroll
            for (int b = 0; b < TOKEN_TILES; ++b) {
                Right right;
                load_matrices<true>(right.w, tile_at(keys, left_offset(), b * 16, i * 16));
                multiply_tile(sum, dscore[b], right);
            }
            scale_rows(sum, SCALE, SCALE);
            store_tile(dquery + i * 16, out_row, row, end, sum);
        }
        __syncthreads();
        copy_rows(queries + (stage ^ 1) * QUERY_BYTES, query, p.query_row, row + STEP_ROWS, end);
        close_copies();
        load_norms(norm, norms, row + STEP_ROWS, end);
        const int next = row + STEP_ROWS + (LANE & 15);
        if (next < end) prefetch(dout + next * p.dout_row);
        gather(token_sums, of_values ? weights : dscores, of_values ? douts : rows, column);
        __syncthreads();
    }
    store_token_sums(p, token_sums, of_values, column);
}
