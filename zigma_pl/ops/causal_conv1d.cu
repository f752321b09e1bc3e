// Depthwise causal convolution along the visit order, and its gradients. A thread iterates over the steps of a chunk for
// VECTOR adjacent channels. It copies GROUP rows at a time to slots of its own in shared memory while it processes the
// previous GROUP rows, and keeps the rows within reach of the TAPS taps in registers, so that each row is read once per chunk.
// VECTOR is 1 if rows cannot be read in larger words.

#define REACH (TAPS - 1)
#define SLOTS (2 * GROUP * THREADS)  // for one array of rows

// Every field takes 8 bytes. Strides are in elements; the last axis of rows has stride 1.
struct Params {
    const Element *x, *dout;
    Long x_batch, x_row, dout_batch, dout_row, dx_batch, dx_row;
    const float *weight, *bias;    // (E, TAPS), (E)
    const int* order;
    Element *out, *dx;             // out: contiguous (B, L, E)
    float *dweight, *dbias;        // (E, TAPS), (E) for each chunk of each batch element, part_stride apart
    Long num_rows, num_channels, chunk_rows, part_stride;
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

// Returns false for a thread without channels. Sets order[i] to the raster row of step begin - REACH + i, or -1 for steps
// outside of the sequence and from end + num_after on.
__device__ __forceinline__ bool open_chunk(const Params& p, Channels& c, int* order, int num_after) {
    c.first = (blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    c.begin = blockIdx.y * p.chunk_rows;
    c.end = min(c.begin + p.chunk_rows, p.num_rows);
    const int num_steps = c.end - c.begin + 2 * REACH + 2 * GROUP, last = min(c.end + num_after, (int)p.num_rows);
    for (int i = threadIdx.x; i < num_steps; i += THREADS) {
        const int step = c.begin - REACH + i;
        order[i] = step < 0 || step >= last ? -1 : p.order ? p.order[step] : step;
    }
    const bool exists = c.first < p.num_channels;
    float weights[VECTOR * TAPS];
    if (exists) {  // before the barrier, so that these loads and those of the order overlap
        read_parameters(p.weight + c.first * TAPS, weights);
        if (p.bias) read_parameters(p.bias + c.first, c.bias);
    }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        if (!p.bias) c.bias[i] = 0.f;
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) c.weight[tap][i] = weights[i * TAPS + tap];
    }
    __syncthreads();
    return exists;
}

__device__ __forceinline__ Packed load_row(const Element* base, Long row_stride, int row) {
    return row < 0 ? nothing() : *(const Packed*)(base + row * row_stride);
}

// Rows of one array on their way to this thread.
struct Rows {
    const Element* first;  // this thread's channels in raster row 0
    Long stride;
    Packed* slots;         // [2][GROUP][THREADS]

    // Starts to copy the rows of GROUP steps.
    __device__ __forceinline__ void fetch(const int* order, int step) const {
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            const int row = order[REACH + step + i];
            const Packed* from = (const Packed*)(first + max(row, 0) * stride);
#if VECTOR == 1
            *slot(step, i) = row < 0 ? nothing() : *from;
#else
            copy_async<sizeof(Packed)>(slot(step, i), from, row >= 0);
#endif
        }
    }

    __device__ __forceinline__ Packed* slot(int step, int i) const {
        return slots + (step / GROUP % 2 * GROUP + i) * THREADS + threadIdx.x;
    }
};

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

// For 16-bit rows it has an absolute error of 2.5e-4 and takes one special function instead of two.
__device__ __forceinline__ float fast_sigmoid(float x) {
    return ROW_KIND == 0 || !FAST ? sigmoid(x) : fmaf(tanh_fast(0.5f * x), 0.5f, 0.5f);
}

extern "C" __global__ void __launch_bounds__(THREADS) conv_forward(const Params p) {
    DYNAMIC_SHARED(memory);
    Packed* slots = (Packed*)memory;
    int* order = (int*)(slots + SLOTS);
    Channels c;
    if (!open_chunk(p, c, order, 0)) return;
    const Rows x = {p.x + blockIdx.z * p.x_batch + c.first, p.x_row, slots};
    Element* out = p.out + (Long)blockIdx.z * p.num_rows * p.num_channels + c.first;
    x.fetch(order, 0);
    close_copies();
    float window[REACH + GROUP][VECTOR];
#pragma unroll
    for (int i = 0; i < REACH; ++i) unpack(load_row(x.first, x.stride, order[i]), window[i]);
    for (int step = 0; step < c.end - c.begin; step += GROUP) {
        if (step + GROUP < c.end - c.begin) x.fetch(order, step + GROUP);
        close_copies();
        await_copies();
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            const int row = order[REACH + step + i];
            if (row < 0) break;
            float result[VECTOR];
            unpack(*x.slot(step, i), window[REACH + i]);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                result[j] = convolve(c, window, i, j);
                if (SILU) result[j] *= fast_sigmoid(result[j]);
            }
            *(Packed*)(out + (Long)row * p.num_channels) = pack(result);
        }
        shift<GROUP>(window);
    }
}

// Gradients of the rows of a chunk, which also depend on the REACH sums after the chunk, and the chunk's contribution to the
// gradients of weight and bias.
extern "C" __global__ void __launch_bounds__(THREADS) conv_backward(const Params p) {
    DYNAMIC_SHARED(memory);
    Packed* slots = (Packed*)memory;
    int* order = (int*)(slots + 2 * SLOTS);
    Channels c;
    if (!open_chunk(p, c, order, REACH)) return;
    const Rows x = {p.x + blockIdx.z * p.x_batch + c.first, p.x_row, slots};
    const Rows dout = {p.dout + blockIdx.z * p.dout_batch + c.first, p.dout_row, slots + SLOTS};
    Element* dx = p.dx + blockIdx.z * p.dx_batch + c.first;
    x.fetch(order, 0);
    dout.fetch(order, 0);
    close_copies();
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
    for (int i = 0; i < REACH; ++i) unpack(load_row(x.first, x.stride, order[i]), window[i]);
    const int num_steps = c.end - c.begin;
    for (int step = 0; step < num_steps + REACH; step += GROUP) {
        if (step + GROUP < num_steps + REACH) {
            x.fetch(order, step + GROUP);
            dout.fetch(order, step + GROUP);
        }
        close_copies();
        await_copies();
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            unpack(*x.slot(step, i), window[REACH + i]);
            unpack(*dout.slot(step, i), dsum[REACH + i]);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                float& gradient = dsum[REACH + i][j];
                if (SILU) {
                    const float sum = convolve(c, window, i, j), s = fast_sigmoid(sum);
                    gradient *= s * fmaf(sum, 1.f - s, 1.f);
                }
            }
            if (step + i < num_steps)  // the sums after the chunk count in the next one
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) {
                    const float gradient = dsum[REACH + i][j];
                    dbias[j] += gradient;
#pragma unroll
                    for (int tap = 0; tap < TAPS; ++tap) dweight[tap][j] = fmaf(gradient, window[i + tap][j], dweight[tap][j]);
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
