// Copies gradients of B and C, as write_term in gradients.cu adds them, to 16-bit rows in the order of the states. A thread
// copies GROUP times four states.

// Every field takes 8 bytes.
struct Params {
    const float4* terms;  // (num_rows, 4 row_quads)
    Element* to;
    Long row_stride, num_rows, row_quads;
};

extern "C" __global__ void __launch_bounds__(THREADS) copy_terms(const Params p) {
    await_previous_kernel();
    const Word num_quads = p.num_rows * p.row_quads, row_quads = p.row_quads;
    const Word first = blockIdx.x * (GROUP * THREADS) + threadIdx.x;
    float4 group[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; ++i)
        if (const Word quad = first + i * THREADS; quad < num_quads) group[i] = p.terms[quad];
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
        const Word quad = first + i * THREADS, column = quad % row_quads;
        if (quad >= num_quads) continue;
        Element* to = p.to + quad / row_quads * p.row_stride + column / 4 * 16 + column % 4 * 2;
        const float low[2] = {group[i].x, group[i].y}, high[2] = {group[i].z, group[i].w};
        *(Word*)to = pack_word(low);
        *(Word*)(to + 8) = pack_word(high);
    }
}
