// y[t, n] = x[t, k] w[n, k]^T on Hopper's warpgroup products (sm_90a), for many tokens.
//
// As tensor_product.cu, but a block is two warpgroups, each 64 outputs of all TOKENS (128) tokens:
// weights go from their stage through the decoder into the registers of operand a, x is read from
// shared memory by the tensor cores themselves. Two blocks share an SM: while one decodes, the
// other's products run. mma.sync stops at some 60 % of what wgmma does.
//
// A group of 32 columns is two products of 16. In the first, lane c's columns 8c .. 8c + 7 give
// their first two pairs, in the second the others; x lies in that order (`paired`, 16 and more).
//
// Order of a sum: columns ascend by 16, one slice. The tensor cores' own order within is not that of
// mma.sync: a row's bits are the same whatever the other rows, but not those of tensor_product.cu.
__device__ __forceinline__ void multiply(Shared memory, u32 stage, u32 is_odd, float (&sum)[TILES_N][TILES_T][4]) {
    u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    u32 w[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 scales[2];
        load_scales(memory, stage, row + i * 8, 0, is_odd, lane % 4, scales);
        load_weights(memory, stage, row + i * 8, 0, lane % 4, scales[0], w[i]);
    }
    wgmma_fence();
#pragma unroll
    for (int half = 0; half < 4; half += 2) {
        u64 x = wgmma_operand(memory, stage + X_START + half * 16 * TOKENS, 16 * TOKENS, 128);
        wgmma_m64n128k16(sum[0], w[0][half], w[1][half], w[0][half + 1], w[1][half + 1], x);
    }
    wgmma_commit();
    wgmma_wait();
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
ENTRY(Global<const u8> x, Global<const u8> words, Global<const u8> block_scales, Global<const float> scales,
      Global<const float> bias, Global<const u32> sorted, Global<const u32> offsets, Global<u8> out, Sizes sizes) {
    SHARED(memory, STAGE * STAGES);
    Part part = WORK == DENSE ? dense_part(sizes) : expert_part(sizes, offsets, memory);
    if (part.expert == NONE) return;
    Copies copies = find_copies(part, sizes, sorted, 0);
    u32 num_steps = (sizes.k + STEP - 1) / STEP, next = 0;
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++, next++)
        if (next < num_steps) start_stage(memory, stage * STAGE, next, copies, sizes, x, words, block_scales);
        else cp_async_commit();

    float sum[TILES_N][TILES_T][4] = {};
    u32 here = 0, there = (STAGES - 1) * STAGE;
    for (u32 step = 0; step < num_steps; step++, next++) {
        cp_async_wait<STAGES - 2>();
        fence_async_proxy();
        __syncthreads();
        if (next < num_steps) start_stage(memory, there, next, copies, sizes, x, words, block_scales);
        else cp_async_commit();
        multiply(memory, here, step % 2, sum);
        here = here + STAGE < STAGE * STAGES ? here + STAGE : 0;
        there = there + STAGE < STAGE * STAGES ? there + STAGE : 0;
    }
    cp_async_wait<0>();
    store(part, sizes, sum, scales, bias, sorted, out);
}
