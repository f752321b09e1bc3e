// Depthwise causal convolution along the visit order, and its gradients. A thread iterates over the steps of a chunk for
// VECTOR adjacent channels. It copies GROUP rows at a time to slots of its own in shared memory while it processes the
// previous GROUP rows, and keeps the rows within reach of the TAPS taps in registers, so that each row is read once per chunk.
// VECTOR is 1 if rows cannot be read in larger words.

#define REACH (TAPS - 1)
#define BEFORE 8  // entries of `order` before the chunk: at least REACH, and a multiple of 4
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
    int first;      // first channel of the thread
    int num_steps;  // of the chunk
    float weight[TAPS][VECTOR], bias[VECTOR];  // times SCALE
};

// The activation of a sum and the derivative, given the sum times SCALE; the derivative is returned divided by SCALE. For
// 16-bit rows, silu takes one special function instead of two, with an error of 2.5e-4 of the sum.
#if !SILU
#define SCALE 1.f
__device__ __forceinline__ float activation(float sum) { return sum; }
__device__ __forceinline__ float derivative(float sum) { return 1.f; }
#elif ROW_KIND == 0
#define SCALE 1.f
__device__ __forceinline__ float activation(float sum) { return sum * sigmoid(sum); }
__device__ __forceinline__ float derivative(float sum) {
    const float s = sigmoid(sum);
    return s * fmaf(sum, 1.f - s, 1.f);
}
#else
#define SCALE 0.5f
__device__ __forceinline__ float activation(float half) { return fmaf(half, tanh_fast(half), half); }
__device__ __forceinline__ float derivative(float half) {
    const float t = tanh_fast(half), twice = 1.f + t;
    return fmaf(twice, fmaf(half, -t, half), twice);
}
#endif

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

// Returns false for a thread without channels. Sets order[i] to the raster row of step begin + i, i >= -BEFORE, or to -1 for
// steps outside of the sequence and from end + num_after on.
__device__ __forceinline__ bool open_chunk(const Params& p, Channels& c, int* order, int num_after) {
    c.first = (blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    const int begin = blockIdx.y * p.chunk_rows, end = min(begin + p.chunk_rows, p.num_rows);
    const int last = min(end + num_after, (int)p.num_rows);
    c.num_steps = end - begin;
    for (int i = (int)threadIdx.x - BEFORE; i < c.num_steps + BEFORE + 2 * GROUP; i += THREADS) {
        const int step = begin + i;
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
        c.bias[i] = p.bias ? SCALE * c.bias[i] : 0.f;
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) c.weight[tap][i] = SCALE * weights[i * TAPS + tap];
    }
    __syncthreads();
    return exists;
}

// Raster rows of this thread's channels, in global memory.
template <class Number>
struct Rows {
    Number* first;
    Word stride;  // bytes

    __device__ __forceinline__ Rows(Number* array, Long batch_stride, Long row_stride, int channel)
        : first(array + blockIdx.z * batch_stride + channel), stride((Word)row_stride * ROW_BYTES) {}

    __device__ __forceinline__ Packed* at(int row) const {
        return (Packed*)((Byte*)first + (unsigned long long)(Word)row * stride);
    }

    __device__ __forceinline__ Packed load(int row) const { return row < 0 ? nothing() : *at(row); }

    // Starts to copy GROUP rows to the slots of this thread.
    __device__ __forceinline__ void fetch(Packed* slots, const int (&rows)[GROUP]) const {
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
#if VECTOR == 1
            slots[i * THREADS] = load(rows[i]);
#else
            copy_async<sizeof(Packed)>(slots + i * THREADS, at(max(rows[i], 0)), rows[i] >= 0);
#endif
        }
    }
};

__device__ __forceinline__ void read_order(const int* order, int (&rows)[GROUP]) {
#pragma unroll
    for (int i = 0; i < GROUP; i += 4) {
        const uint4 v = *(const uint4*)(order + i);
        rows[i] = v.x, rows[i + 1] = v.y, rows[i + 2] = v.z, rows[i + 3] = v.w;
    }
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
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    Packed* slots = (Packed*)memory + threadIdx.x;
    int* order = (int*)((Packed*)memory + SLOTS) + BEFORE;
    Channels c;
    if (!open_chunk(p, c, order, 0)) return;
    const Rows<const Element> x(p.x, p.x_batch, p.x_row, c.first);
    const Rows<Element> out(p.out, p.num_rows * p.num_channels, p.num_channels, c.first);
    int rows[GROUP];
    read_order(order, rows);
    x.fetch(slots, rows);
    close_copies();
    float window[REACH + GROUP][VECTOR];
#pragma unroll
    for (int i = 0; i < REACH; ++i) unpack(x.load(order[i - REACH]), window[i]);
    for (int step = 0; step < c.num_steps; step += GROUP) {
        Packed* current = slots + step / GROUP % 2 * (GROUP * THREADS);
        int next[GROUP];
        read_order(order + step + GROUP, next);
        x.fetch(slots + (step / GROUP + 1) % 2 * (GROUP * THREADS), next);
        close_copies();
        await_copies();
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            float result[VECTOR];
            unpack(current[i * THREADS], window[REACH + i]);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) result[j] = activation(convolve(c, window, i, j));
            if (rows[i] >= 0) *out.at(rows[i]) = pack(result);
            rows[i] = next[i];
        }
        shift<GROUP>(window);
    }
}

// Gradients of the rows of a chunk, which also depend on the REACH sums after the chunk, and the chunk's contribution to the
// gradients of weight and bias.
extern "C" __global__ void __launch_bounds__(THREADS) conv_backward(const Params p) {
    await_previous_kernel();
    DYNAMIC_SHARED(memory);
    Packed* slots = (Packed*)memory + threadIdx.x;  // of x, then of dout
    int* order = (int*)((Packed*)memory + 2 * SLOTS) + BEFORE;
    Channels c;
    if (!open_chunk(p, c, order, REACH)) return;
    const Rows<const Element> x(p.x, p.x_batch, p.x_row, c.first), dout(p.dout, p.dout_batch, p.dout_row, c.first);
    const Rows<Element> dx(p.dx, p.dx_batch, p.dx_row, c.first);
    int rows[REACH + GROUP], next[GROUP];
    read_order(order, next);
    x.fetch(slots, next);
    dout.fetch(slots + SLOTS, next);
    close_copies();
    float window[REACH + GROUP][VECTOR], dsum[REACH + GROUP][VECTOR];  // dsum: gradients of the sums, divided by SCALE
    float dweight[TAPS][VECTOR], dbias[VECTOR];
#pragma unroll
    for (int j = 0; j < VECTOR; ++j) {
        dbias[j] = 0.f;
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) dweight[tap][j] = 0.f;
#pragma unroll
        for (int i = 0; i < REACH; ++i) dsum[i][j] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < REACH; ++i) {
        unpack(x.load(order[i - REACH]), window[i]);
        rows[i] = -1;  // belongs to another chunk
    }
    for (int step = 0; step < c.num_steps + REACH; step += GROUP) {
        Packed* current = slots + step / GROUP % 2 * (GROUP * THREADS);
        Packed* other = slots + (step / GROUP + 1) % 2 * (GROUP * THREADS);
#pragma unroll
        for (int i = 0; i < GROUP; ++i) rows[REACH + i] = step + i < c.num_steps ? next[i] : -1;
        read_order(order + step + GROUP, next);
        x.fetch(other, next);
        dout.fetch(other + SLOTS, next);
        close_copies();
        await_copies();
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            unpack(current[i * THREADS], window[REACH + i]);
            unpack(current[SLOTS + i * THREADS], dsum[REACH + i]);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) dsum[REACH + i][j] *= derivative(convolve(c, window, i, j));
            if (rows[REACH + i] >= 0)  // otherwise counted in the next chunk
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) {
                    const float gradient = dsum[REACH + i][j];
                    dbias[j] += gradient;
#pragma unroll
                    for (int tap = 0; tap < TAPS; ++tap) dweight[tap][j] = fmaf(gradient, window[i + tap][j], dweight[tap][j]);
                }
            if (rows[i] < 0) continue;
            float result[VECTOR];  // the gradients of all sums that depend on this row are known
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                result[j] = c.weight[0][j] * dsum[REACH + i][j];
#pragma unroll
                for (int tap = 1; tap < TAPS; ++tap)
                    result[j] = fmaf(c.weight[tap][j], dsum[REACH + i - tap][j], result[j]);
            }
            *dx.at(rows[i]) = pack(result);
        }
        shift<GROUP>(window);
        shift<GROUP>(dsum);
#pragma unroll
        for (int i = 0; i < REACH; ++i) rows[i] = rows[i + GROUP];
    }
    const Long part = (Long)blockIdx.z * ((p.num_rows + p.chunk_rows - 1) / p.chunk_rows) + blockIdx.y;
#pragma unroll
    for (int j = 0; j < VECTOR; ++j) {
        p.dbias[part * p.part_stride + c.first + j] = SCALE * dbias[j];
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap)
            p.dweight[part * p.part_stride + (c.first + j) * TAPS + tap] = SCALE * dweight[tap][j];
    }
}
