// Runs a kernel's blocks one after the other on the CPU: every thread is a fiber, barriers and warp-wide operations
// switch between them. Included before the kernel's source, in place of what the CUDA compiler provides.

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <initializer_list>

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(name) uint4* name = (uint4*)emulated_shared

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct uint2 { unsigned x, y; };
struct dim3 { int x = 0, y = 0, z = 0; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }

struct Barrier {
    int arrived = 0, generation = 0;
};

struct Fiber {
    ucontext_t context;  // where it begins
    jmp_buf place;       // where it waits
    char stack[1 << 16];
    dim3 index;
    bool begun = false, done = false;
};

alignas(16) static char emulated_shared[1 << 18];
static Fiber fibers[1024];
static Barrier warp_barriers[32];
static Barrier block_barrier;
static bool block_vote;
static jmp_buf scheduler;
static Fiber* running;
static void (*entry)();
static dim3 blockIdx, blockDim, gridDim;
static float deposits[32][32][6];  // warp, lane

#define threadIdx (running->index)

// Jumps make no system call, as swapcontext would at every barrier.
inline void back_to_scheduler() {
    if (!_setjmp(running->place)) _longjmp(scheduler, 1);
}

inline void go_on(Fiber& fiber) {
    running = &fiber;
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

inline void wait_at(Barrier& barrier, int size) {
    const int generation = barrier.generation;
    if (++barrier.arrived == size) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
    while (barrier.generation == generation) back_to_scheduler();
}

inline void await_previous_kernel() {}
inline void __syncthreads() { wait_at(block_barrier, blockDim.x); }
inline bool any_of_block(bool vote) {
    if (threadIdx.x == 0) block_vote = false;
    __syncthreads();
    block_vote |= vote;
    __syncthreads();
    const bool any = block_vote;
    __syncthreads();
    return any;
}
inline void meet_warp() { wait_at(warp_barriers[threadIdx.x / 32], 32); }
inline void __syncwarp() { meet_warp(); }

inline float (*deposit(std::initializer_list<float> values))[6] {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (size_t i = 0; i < values.size(); ++i) deposits[warp][lane][i] = values.begin()[i];
    meet_warp();
    return deposits[warp];
}

template <class Number>
inline Number shuffle(Number value, int from) {
    float halves[2] = {};
    memcpy(halves, &value, sizeof value);
    auto all = deposit({halves[0], halves[1]});
    if (from < 0 || from > 31) from = threadIdx.x % 32;
    memcpy(&value, all[from], sizeof value);
    meet_warp();
    return value;
}

template <class Number>
inline Number __shfl_sync(unsigned, Number value, int lane) { return shuffle(value, lane); }
template <class Number>
inline Number __shfl_xor_sync(unsigned, Number value, int mask) { return shuffle(value, (threadIdx.x % 32) ^ mask); }
template <class Number>
inline Number __shfl_up_sync(unsigned, Number value, int reach) { return shuffle(value, threadIdx.x % 32 - reach); }
template <class Number>
inline Number __shfl_down_sync(unsigned, Number value, int reach) { return shuffle(value, threadIdx.x % 32 + reach); }

inline unsigned ballot(bool vote) {
    auto all = deposit({(float)vote});
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= (all[lane][0] != 0 ? 1u : 0u) << lane;
    meet_warp();
    return votes;
}

inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
inline float cut(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

inline void multiply_add(float (&c)[4], const float (&a)[4], float b0, float b1) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    auto all = deposit({cut(a[0]), cut(a[1]), cut(a[2]), cut(a[3]), cut(b0), cut(b1)});
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 8; ++k) {
            const float left = all[row * 4 + k % 4][k / 4 * 2 + i / 2];
            c[i] += left * all[(column + i % 2) * 4 + k % 4][4 + k / 4];
        }
    meet_warp();
}

inline void multiply(float (&c)[4], const float (&a)[4], float b0, float b1) {
    c[0] = c[1] = c[2] = c[3] = 0;
    multiply_add(c, a, b0, b1);
}

inline void multiply4(float (&c)[4], float a0, float a1, float b) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    auto all = deposit({cut(a0), cut(a1), cut(b)});
    for (int i = 0; i < 4; ++i) {
        c[i] = 0;
        for (int k = 0; k < 4; ++k) c[i] += all[row * 4 + k][i / 2] * all[(column + i % 2) * 4 + k][2];
    }
    meet_warp();
}

// Lane 8 i + j passes row j of matrix i; lane 4 g + q gets [g][2 q], [g][2 q + 1] of each matrix or of its transpose.
template <bool TURNED>
inline void load_matrices(unsigned (&to)[4], const char* from) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    auto all = deposit({__uint_as_float(from - emulated_shared)});
    auto item = [&](int matrix, int i, int j) {
        uint16_t bits;
        memcpy(&bits, emulated_shared + __float_as_uint(all[matrix * 8 + i][0]) + 2 * j, 2);
        return (unsigned)bits;
    };
    for (int i = 0; i < 4; ++i)
        to[i] = TURNED ? item(i, column, row) | item(i, column + 1, row) << 16
                       : item(i, row, column) | item(i, row, column + 1) << 16;
    meet_warp();
}

inline float bfloat(unsigned word, int upper) { return __uint_as_float((upper ? word >> 16 : word & 0xffff) << 16); }
inline float half(unsigned word, int upper) {
    const uint16_t bits = upper ? word >> 16 : word & 0xffff;
    _Float16 x;
    memcpy(&x, &bits, 2);
    return x;
}

template <float (*ITEM)(unsigned, int)>
inline void multiply_items(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bool first) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    auto raw = [](unsigned word) { return __uint_as_float(word); };
    auto all = deposit({raw(a[0]), raw(a[1]), raw(a[2]), raw(a[3]), raw(b0), raw(b1)});
    for (int i = 0; i < 4; ++i) {
        if (first) c[i] = 0;
        for (int k = 0; k < 16; ++k) {
            const float left = all[row * 4 + k % 8 / 2][k / 8 * 2 + i / 2];
            const float right = all[(column + i % 2) * 4 + k % 8 / 2][4 + k / 8];
            c[i] += ITEM(__float_as_uint(left), k % 2) * ITEM(__float_as_uint(right), k % 2);
        }
    }
    meet_warp();
}

inline void multiply_add16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bool first) {
    multiply_items<bfloat>(c, a, b0, b1, first);
}
inline void multiply_add16_halves(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bool first) {
    multiply_items<half>(c, a, b0, b1, first);
}

inline unsigned transpose(unsigned two) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    auto all = deposit({__uint_as_float(two)});
    auto entry = [&](int i, int j) { return __float_as_uint(all[i * 4 + j / 2][0]) >> j % 2 * 16 & 0xffff; };
    const unsigned turned = entry(column, row) | entry(column + 1, row) << 16;
    meet_warp();
    return turned;
}

template <class Held>
inline void hold(Held&) {}
template <class Number>
inline Number* as_global(Number* pointer) { return pointer; }
inline float exp2_fast(float x) { return exp2f(x); }
inline float tanh_fast(float x) { return tanhf(x); }
inline float reciprocal(float x) { return 1 / x; }
inline float half_to_float(unsigned bits) { uint16_t h = bits; _Float16 f; memcpy(&f, &h, 2); return f; }
inline unsigned half_bits(float x) { _Float16 f = x; uint16_t h; memcpy(&h, &f, 2); return h; }
inline unsigned bfloat_bits(float x) {
    const unsigned bits = __float_as_uint(x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline unsigned pack_halves(float low, float high) { return half_bits(low) | half_bits(high) << 16; }
inline unsigned pack_bfloats(float low, float high) { return bfloat_bits(low) | bfloat_bits(high) << 16; }

template <int BYTES>
inline void copy_async(void* shared, const void* global, bool present) {
    if (present) memcpy(shared, global, BYTES); else memset(shared, 0, BYTES);
}
inline void close_copies() {}
inline void prefetch(const void*) {}
inline void await_copies() {}
inline void add_global(float* to, float value) { *to += value; }
inline void add_global2(float* to, float2 v) { to[0] += v.x, to[1] += v.y; }
inline void add_global4(float* to, float4 v) { to[0] += v.x, to[1] += v.y, to[2] += v.z, to[3] += v.w; }

static void run_fiber() {
    entry();
    running->done = true;
    while (true) back_to_scheduler();
}

// Shared memory starts as NaN in every block.
static void launch(void (*kernel)(), dim3 grid, int threads, int shared_bytes) {
    entry = kernel;
    blockDim = {threads, 1, 1};
    gridDim = grid;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
                memset(emulated_shared, 0xff, shared_bytes);
                memset(warp_barriers, 0, sizeof warp_barriers);
                block_barrier = {};
                for (int i = 0; i < threads; ++i) {
                    Fiber& fiber = fibers[i];
                    fiber.index = {i, 0, 0};
                    fiber.begun = fiber.done = false;
                    getcontext(&fiber.context);
                    fiber.context.uc_stack.ss_sp = fiber.stack;
                    fiber.context.uc_stack.ss_size = sizeof fiber.stack;
                    makecontext(&fiber.context, run_fiber, 0);
                }
                for (int left = threads; left > 0;) {
                    left = 0;
                    for (int i = 0; i < threads; ++i) {
                        Fiber& fiber = fibers[i];
                        if (fiber.done) continue;
                        go_on(fiber);
                        left += !fiber.done;
                    }
                }
            }
}
