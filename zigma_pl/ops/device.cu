// Shared by all kernels: number formats of rows, fast elementary functions, asynchronous copies, warp matrix products.
// Compiled at run time; ROW_KIND is 0 for float32 rows, 1 for bfloat16, 2 for float16. Needs compute capability 8.0.

typedef unsigned int Word;
typedef char Byte;
typedef long long Long;

#if ROW_KIND == 0
#define ROW_BYTES 4
typedef float Element;
#else
#define ROW_BYTES 2
typedef unsigned short Element;
#endif

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

#ifndef EMULATED  // the emulation in the tests defines these in plain C++
#define DYNAMIC_SHARED(name) extern __shared__ uint4 name[]

// Waits until the previous kernel of the stream has ended, since this one may start earlier (nvrtc.early_launches), and lets the
// next one start. Every kernel calls this before it reads what the previous kernel wrote, and before it writes.
__device__ __forceinline__ void await_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Makes the compiler keep x in a register instead of recomputing it at every use.
__device__ __forceinline__ void hold(int& x) { asm volatile("" : "+r"(x)); }
template <class Number>
__device__ __forceinline__ void hold(const Number*& x) { asm volatile("" : "+l"(x)); }

// Tells the compiler that a pointer read from shared memory points to global memory.
template <class Number>
__device__ __forceinline__ Number* as_global(Number* pointer) {
    __builtin_assume(__isGlobal(pointer));
    return pointer;
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float tanh_fast(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float half_to_float(Word bits) {
    float y;
    asm("{.reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h;}" : "=f"(y) : "r"(bits));
    return y;
}

__device__ __forceinline__ Word pack_halves(float low, float high) {
    Word packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

__device__ __forceinline__ Word pack_bfloats(float low, float high) {
    Word packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// Copies BYTES (4, 8 or 16) bytes to shared memory asynchronously, or writes zeros if `present` is false.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool present) {
    const Word to = (Word)__cvta_generic_to_shared(shared);
    const int from_bytes = present ? BYTES : 0;
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(from_bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(BYTES), "r"(from_bytes)
                     : "memory");
}

__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups of copies of this thread except the last one.
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

// c (16 x 8) += a (16 x 8) b (8 x 8) over a warp; a and b are read with 11 bits (tf32). Lane 4 g + q holds
// a[0..3] = A[g][q], A[g + 8][q], A[g][q + 4], A[g + 8][q + 4];  b[0..1] = B[q][g], B[q + 4][g];
// c[0..3] = C[g][2 q], C[g][2 q + 1], C[g + 8][2 q], C[g + 8][2 q + 1].
__device__ __forceinline__ void multiply_add(float (&c)[4], const float (&a)[4], float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// c = a b, which needs no registers for zeros.
__device__ __forceinline__ void multiply(float (&c)[4], const float (&a)[4], float b0, float b1) {
    asm("{.reg .f32 zero; mov.f32 zero, 0f00000000;\n"
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {zero,zero,zero,zero};}"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// c = a b in which a has four columns, with the same precision: a0, a1 = A[g][q], A[g + 8][q];  b = B[q][g].
__device__ __forceinline__ void multiply4(float (&c)[4], float a0, float a1, float b) {
    asm("{.reg .f32 zero; mov.f32 zero, 0f00000000;\n"
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {zero,zero,zero,zero};}"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(b)));
}

// c (16 x 8) += a (16 x 16) b (16 x 8), or = if first, with bfloat16 factors, two per word. Lane 4 g + q holds
// a[0..3] = A[g][2 q..], A[g + 8][2 q..], A[g][2 q + 8..], A[g + 8][2 q + 8..];  b0, b1 = B[2 q..][g], B[2 q + 8..][g].
__device__ __forceinline__ void multiply_add16(float (&c)[4], const Word (&a)[4], Word b0, Word b1, bool first) {
    if (first)
        asm("{.reg .f32 zero; mov.f32 zero, 0f00000000;\n"
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{zero,zero,zero,zero};}"
            : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Transposes an 8 x 8 matrix of 16-bit numbers; lane 4 g + q holds [g][2 q] and [g][2 q + 1].
__device__ __forceinline__ Word transpose(Word two) {
    Word turned;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(two));
    return turned;
}

// Returns whether any thread of the block votes true; also a barrier.
__device__ __forceinline__ bool any_of_block(bool vote) { return __syncthreads_or(vote); }

__device__ __forceinline__ Word ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }

__device__ __forceinline__ void add_global(float* to, float value) { atomicAdd(to, value); }

__device__ __forceinline__ void add_global4(float* to, float4 v) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
#else
    atomicAdd(to, v.x), atomicAdd(to + 1, v.y), atomicAdd(to + 2, v.z), atomicAdd(to + 3, v.w);
#endif
}
#endif  // EMULATED

// Adds half a unit of the 11th bit, so that truncation by the matrix units becomes rounding, without bias.
__device__ __forceinline__ float round_to_11_bits(float x) { return __uint_as_float(__float_as_uint(x) + 0x1000u); }

// The bits of x that the matrix units read, and the remainder.
__device__ __forceinline__ float cut_to_11_bits(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }
__device__ __forceinline__ float trailing_bits(float x) { return x - cut_to_11_bits(x); }

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + exp2_fast(-LOG2_E * x)); }

// log(1 + exp(x)) for all x: log1p(e) = e P(e) on [0, 1], P fitted with a relative error of 3e-8, or 8e-6 for 16-bit rows.
__device__ __forceinline__ float softplus(float x) {
    const float e = exp2_fast(-LOG2_E * fabsf(x));
#if ROW_KIND == 0
    float p = 0.0052309827871f;
    p = fmaf(p, e, -0.029498375952f);
    p = fmaf(p, e, 0.078214772046f);
    p = fmaf(p, e, -0.13662296533f);
    p = fmaf(p, e, 0.19105559587f);
    p = fmaf(p, e, -0.24842867255f);
    p = fmaf(p, e, 0.33319082856f);
    p = fmaf(p, e, -0.49999493360f);
    p = fmaf(p, e, 0.99999994040f);
#else
    float p = -0.0238691515772f;
    p = fmaf(p, e, 0.101222284469f);
    p = fmaf(p, e, -0.210048689633f);
    p = fmaf(p, e, 0.325206680119f);
    p = fmaf(p, e, -0.499361364691f);
    p = fmaf(p, e, 0.999991598167f);
#endif
    return fmaf(p, e, fmaxf(x, 0.f));
}

#if ROW_KIND == 0
__device__ __forceinline__ float to_float(Element x) { return x; }
__device__ __forceinline__ Element from_float(float x) { return x; }
#elif ROW_KIND == 1
__device__ __forceinline__ float to_float(Element x) { return __uint_as_float((Word)x << 16); }
__device__ __forceinline__ Element from_float(float x) { return (Element)pack_bfloats(x, 0.f); }
#else
__device__ __forceinline__ float to_float(Element x) { return half_to_float(x); }
__device__ __forceinline__ Element from_float(float x) { return (Element)pack_halves(x, 0.f); }
#endif

// Converts the two elements of a word (one for float32) to float.
__device__ __forceinline__ void unpack_word(Word word, float* out) {
#if ROW_KIND == 0
    out[0] = __uint_as_float(word);
#elif ROW_KIND == 1
    out[0] = __uint_as_float(word << 16);
    out[1] = __uint_as_float(word & 0xffff0000u);
#else
    out[0] = half_to_float(word & 0xffffu);
    out[1] = half_to_float(word >> 16);
#endif
}

__device__ __forceinline__ Word pack_word(const float* in) {
#if ROW_KIND == 0
    return __float_as_uint(in[0]);
#elif ROW_KIND == 1
    return pack_bfloats(in[0], in[1]);
#else
    return pack_halves(in[0], in[1]);
#endif
}

// Converts the two 16-bit elements of a word to bfloat16 for the matrix units.
#if ROW_KIND == 1
__device__ __forceinline__ Word as_bfloats(Word two) { return two; }
#elif ROW_KIND == 2
__device__ __forceinline__ Word as_bfloats(Word two) {
    return pack_bfloats(half_to_float(two & 0xffffu), half_to_float(two >> 16));
}
#endif

#define WORD_ELEMENTS (4 / ROW_BYTES)

__device__ __forceinline__ void unpack16(uint4 raw, float* out) {
    unpack_word(raw.x, out);
    unpack_word(raw.y, out + WORD_ELEMENTS);
    unpack_word(raw.z, out + 2 * WORD_ELEMENTS);
    unpack_word(raw.w, out + 3 * WORD_ELEMENTS);
}

__device__ __forceinline__ uint4 pack16(const float* in) {
    return make_uint4(pack_word(in), pack_word(in + WORD_ELEMENTS), pack_word(in + 2 * WORD_ELEMENTS),
                      pack_word(in + 3 * WORD_ELEMENTS));
}
