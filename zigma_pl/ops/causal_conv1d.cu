// Depthwise causal convolution along the visit order, and its gradients. A thread iterates over the steps of a chunk for
// VECTOR adjacent channels and keeps the rows within reach of the TAPS taps in registers, so that each row is read once per
// chunk. VECTOR is 1 if rows cannot be read in larger words.

#define GROUP 4  // steps whose rows are loaded together while the previous group is processed
#define REACH (TAPS - 1)

// Every field takes 8 bytes. Strides are in elements; the last axis of rows has stride 1.
struct Params {
    const Element *x, *dout;
    Long x_batch, x_row, dout_batch, dout_row, dx_batch, dx_row;
    const float *weight, *bias;    // (E, TAPS), (E)
    const int* order;
    Element *out, *dx;             // out: contiguous (B, L, E)
    float *dweight, *dbias;        // (E, TAPS), (E) for each chunk of each batch element, part_stride apart
    Long num_rows, num_channels, chunk_rows, silu, part_stride;
};

#if VECTOR * ROW_BYTES == 16
typedef uint4 Packed;
#elif VECTOR * ROW_BYTES == 8
typedef uint2 Packed;
#else
typedef Element Packed;
#endif

__device__ __forceinline__ void unpack(Packed packed, float* out) {
#if VECTOR * ROW_BYTES == 16
    unpack16(packed, out);
#elif VECTOR * ROW_BYTES == 8
    unpack_word(packed.x, out);
    unpack_word(packed.y, out + WORD_ELEMENTS);
#else
    out[0] = to_float(packed);
#endif
}

__device__ __forceinline__ Packed pack(const float* in) {
#if VECTOR * ROW_BYTES == 16
    return pack16(in);
#elif VECTOR * ROW_BYTES == 8
    return make_uint2(pack_word(in), pack_word(in + WORD_ELEMENTS));
#else
    return from_float(in[0]);
#endif
}

__device__ __forceinline__ Packed nothing() {
    const float zeros[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
    return pack(zeros);
}

struct Channels {
    int first;  // first channel of the thread
    int begin, end;  // steps of the chunk
    float weight[TAPS][VECTOR], bias[VECTOR];
};

// Reads adjacent parameters, four at a time if they are aligned: short chunks read about as many parameters as row elements.
template <int COUNT>
__device__ __forceinline__ void read_parameters(const float* from, float (&to)[COUNT]) {
    if (COUNT % 4 == 0 && (Long)from % 16 == 0) {
#pragma unroll
        for (int i = 0; i < COUNT / 4 * 4; i += 4) {
            const float4 v = *(const float4*)(from + i);
            to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) to[i] = from[i];
    }
}

// Returns false for a thread without channels. Sets order[i] to the raster row of step begin - REACH + i, or -1 outside.
__device__ __forceinline__ bool open_chunk(const Params& p, Channels& c, int* order) {
    c.first = (blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    c.begin = blockIdx.y * p.chunk_rows;
    c.end = min(c.begin + p.chunk_rows, p.num_rows);
    const int num_steps = c.end - c.begin + 2 * REACH + 2 * GROUP;
    for (int i = threadIdx.x; i < num_steps; i += THREADS) {
        const int step = c.begin - REACH + i;
        order[i] = step < 0 || step >= p.num_rows ? -1 : p.order ? p.order[step] : step;
    }
    __syncthreads();
    if (c.first >= p.num_channels) return false;
    float weights[VECTOR * TAPS];
    read_parameters(p.weight + c.first * TAPS, weights);
    if (p.bias)
        read_parameters(p.bias + c.first, c.bias);
    else
        for (int i = 0; i < VECTOR; ++i) c.bias[i] = 0.f;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i)
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) c.weight[tap][i] = weights[i * TAPS + tap];
    return true;
}

__device__ __forceinline__ Packed load_row(const Element* base, Long row_stride, int row) {
    return row < 0 ? nothing() : *(const Packed*)(base + row * row_stride);
}

template <int COUNT>
__device__ __forceinline__ void shift(float (&window)[REACH + COUNT][VECTOR]) {
#pragma unroll
    for (int i = 0; i < REACH; ++i)
#pragma unroll
        for (int j = 0; j < VECTOR; ++j) window[i][j] = window[i + COUNT][j];
}

__device__ __forceinline__ float convolve(const Channels& c, const float (&window)[REACH + GROUP][VECTOR], int step, int i) {
    float sum = c.bias[i];
#pragma unroll
    for (int tap = 0; tap < TAPS; ++tap) sum = fmaf(c.weight[tap][i], window[step + tap][i], sum);
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) conv_forward(const Params p) {
    DYNAMIC_SHARED(memory);
    int* order = (int*)memory;
    Channels c;
    if (!open_chunk(p, c, order)) return;
    const Element* x = p.x + blockIdx.z * p.x_batch + c.first;
    Element* out = p.out + (Long)blockIdx.z * p.num_rows * p.num_channels + c.first;
    float window[REACH + GROUP][VECTOR];
#pragma unroll
    for (int i = 0; i < REACH; ++i) unpack(load_row(x, p.x_row, order[i]), window[i]);
    Packed next[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; ++i) next[i] = load_row(x, p.x_row, order[REACH + i]);
    for (int step = 0; step < c.end - c.begin; step += GROUP) {
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            unpack(next[i], window[REACH + i]);
            const int ahead = step + GROUP + i;
            next[i] = load_row(x, p.x_row, ahead < c.end - c.begin ? order[REACH + ahead] : -1);
        }
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            float result[VECTOR];
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                result[j] = convolve(c, window, i, j);
                if (p.silu) result[j] *= sigmoid(result[j]);
            }
            if (step + i < c.end - c.begin)
                *(Packed*)(out + (Long)order[REACH + step + i] * p.num_channels) = pack(result);
        }
        shift<GROUP>(window);
    }
}

// Gradients of the rows of a chunk, which also depend on the REACH sums after the chunk, and the chunk's contribution to the
// gradients of weight and bias.
extern "C" __global__ void __launch_bounds__(THREADS) conv_backward(const Params p) {
    DYNAMIC_SHARED(memory);
    int* order = (int*)memory;
    Channels c;
    if (!open_chunk(p, c, order)) return;
    const Element* x = p.x + blockIdx.z * p.x_batch + c.first;
    const Element* dout = p.dout + blockIdx.z * p.dout_batch + c.first;
    Element* dx = p.dx + blockIdx.z * p.dx_batch + c.first;
    float window[REACH + GROUP][VECTOR], dsum[REACH + GROUP][VECTOR], dweight[TAPS][VECTOR], dbias[VECTOR];
#pragma unroll
    for (int j = 0; j < VECTOR; ++j) {
        dbias[j] = 0.f;
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) dweight[tap][j] = 0.f;
#pragma unroll
        for (int i = 0; i < REACH; ++i) dsum[i][j] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < REACH; ++i) unpack(load_row(x, p.x_row, order[i]), window[i]);
    Packed next_x[GROUP], next_dout[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
        next_x[i] = load_row(x, p.x_row, order[REACH + i]);
        next_dout[i] = load_row(dout, p.dout_row, order[REACH + i]);
    }
    const int num_steps = c.end - c.begin;
    for (int step = 0; step < num_steps + REACH; step += GROUP) {
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            unpack(next_x[i], window[REACH + i]);
            unpack(next_dout[i], dsum[REACH + i]);
            const bool more = step + GROUP + i < num_steps + REACH;
            const int row = more ? order[REACH + step + GROUP + i] : -1;
            next_x[i] = load_row(x, p.x_row, row);
            next_dout[i] = load_row(dout, p.dout_row, row);
        }
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            const bool own = step + i < num_steps;
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                float& gradient = dsum[REACH + i][j];
                if (p.silu) {
                    const float sum = convolve(c, window, i, j), s = sigmoid(sum);
                    gradient *= s * fmaf(sum, 1.f - s, 1.f);
                }
                const float counted = own ? gradient : 0.f;
                dbias[j] += counted;
#pragma unroll
                for (int tap = 0; tap < TAPS; ++tap) dweight[tap][j] = fmaf(counted, window[i + tap][j], dweight[tap][j]);
            }
            const int done = step + i - REACH;  // the gradients of all sums that depend on this row are known
            if (done < 0 || done >= num_steps) continue;
            float result[VECTOR];
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                result[j] = 0.f;
#pragma unroll
                for (int tap = 0; tap < TAPS; ++tap)
                    result[j] = fmaf(c.weight[tap][j], dsum[REACH + i - tap][j], result[j]);
            }
            *(Packed*)(dx + (Long)order[REACH + done] * p.dx_row) = pack(result);
        }
        shift<GROUP>(window);
        shift<GROUP>(dsum);
    }
    const Long part = (Long)blockIdx.z * ((p.num_rows + p.chunk_rows - 1) / p.chunk_rows) + blockIdx.y;
#pragma unroll
    for (int j = 0; j < VECTOR; ++j) {
        p.dbias[part * p.part_stride + c.first + j] = dbias[j];
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap)
            p.dweight[part * p.part_stride + (c.first + j) * TAPS + tap] = dweight[tap][j];
    }
}
