// y[t, n] = x[t, k] w[n, k]^T on tensor cores, weights decoded in registers: bf16, FP8, NVFP4.
//
// A block makes ROWS outputs of TOKENS tokens. Weights are mma's operand a (16 rows), tokens its
// operand b (8 columns), so that few tokens waste little. Stages of STEP columns of both come into
// shared memory by cp.async, STAGES - 1 of them in flight.
//
// Order of a sum. Columns go in groups of 32; lane c of a quad takes columns 8c .. 8c + 7 of each,
// as one load, and feeds them to two mma: which columns meet in one mma is ours to choose, as long
// as both operands choose alike. Groups ascend within a slice (`slice_steps` stages), slices are
// added up in ascending order. Neither depends on TOKENS, GROUPS or MODE: a row's result is the
// same bits in every configuration of one format, given the same slices.
//
// Pairs: decoding is cheapest if the two halves of a register are not neighbours. FP8 takes
// columns (0, 2) (1, 3) (4, 6) (5, 7) of each 8, NVFP4 (0, 4) (1, 5) (2, 6) (3, 7); x in bf16
// (tensor_round.cu) lies in that order already, x in f32 is paired when it is rounded.
//
// Bytes: w once per TOKENS tokens, x once per ROWS outputs. Bound by w up to about 64 tokens, by
// the tensor cores' rate past that (mma.sync reaches some 60 % of a Hopper's), NVFP4 with few tokens
// by the instructions that decode it: 510 for 32 by 128 weights of a warp on sm_90a, which is 4.2
// TB/s of an H200's 4.8. They were 683 before copies kept their addresses and scales were decoded
// two at a time. A layout made for extraction at load would save about 96 more; not done, weights
// stay as the checkpoint has them.
//
// Tiles of 128 tokens without slices: the assembler fits them into 128 registers, for two blocks an
// SM, and spills up to 16 bytes of a thread, outside the products. FP8's tile of 64 tokens spills 4
// on sm_80.
// Adds a stage's products.
__device__ __forceinline__ void multiply(Shared memory, u32 stage, u32 is_odd, float (&sum)[TILES_N][TILES_T][4]) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 lane_g = lane / 4, lane_c = lane % 4;
    u32 row = warp % WARPS_N * (16 * TILES_N) + lane_g, token = warp / WARPS_N * (TILES_T * 8) + lane_g;
    u32 scales[2 * TILES_N][2];
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        u32 w[2 * TILES_N][4];
#pragma unroll
        for (int i = 0; i < 2 * TILES_N; i++) {
            if (group % 2 == 0) load_scales(memory, stage, row + i * 8, group, is_odd, lane_c, scales[i]);
            load_weights(memory, stage, row + i * 8, group, lane_c, scales[i][group % 2], w[i]);
        }
#pragma unroll
        for (int tile = 0; tile < TILES_T; tile++) {
            u32 x[4];
            load_inputs(memory, stage, token + tile * 8, group, lane_c, x);
#pragma unroll
            for (int half = 0; half < 4; half += 2)
#pragma unroll
                for (int m = 0; m < TILES_N; m++)
                    mma_m16n8k16(sum[m][tile], w[m * 2][half], w[m * 2 + 1][half], w[m * 2][half + 1],
                                 w[m * 2 + 1][half + 1], x[half], x[half + 1]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
ENTRY(Global<const u8> x, Global<const u8> words, Global<const u8> block_scales, Global<const float> scales,
      Global<const float> bias, Global<const u32> sorted, Global<const u32> offsets, Global<u8> out, Sizes sizes) {
    SHARED(memory, STAGE * STAGES);
    Part part = WORK == DENSE ? dense_part(sizes) : expert_part(sizes, offsets, memory);
    if (part.expert == NONE) return;

    u32 num_steps = (sizes.k + STEP - 1) / STEP, step = 0;
    if constexpr (MODE == PARTIAL) {
        step = part.slice * sizes.slice_steps;
        num_steps = num_steps < step + sizes.slice_steps ? num_steps : step + sizes.slice_steps;
    }
    Copies copies = find_copies(part, sizes, sorted, step);
    u32 next = step;
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++, next++)
        if (next < num_steps) start_stage(memory, stage * STAGE, next, copies, sizes, x, words, block_scales);
        else cp_async_commit();

    float sum[TILES_N][TILES_T][4] = {};
    float total[TILES_N][TILES_T][4] = {};  // of ALL_SLICES
    u32 slice_end = step + sizes.slice_steps, here = 0, there = (STAGES - 1) * STAGE;
    for (; step < num_steps; step++, next++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (next < num_steps) start_stage(memory, there, next, copies, sizes, x, words, block_scales);
        else cp_async_commit();
        multiply(memory, here, GROUPS == 1 ? step % 2 : 0, sum);
        here = here + STAGE < STAGE * STAGES ? here + STAGE : 0;
        there = there + STAGE < STAGE * STAGES ? there + STAGE : 0;
        if constexpr (MODE == ALL_SLICES)
            if (step + 1 == slice_end || step + 1 == num_steps) {
                slice_end += sizes.slice_steps;
#pragma unroll
                for (int i = 0; i < 4 * TILES_N * TILES_T; i++) {
                    float& slice_sum = sum[i / (4 * TILES_T)][i / 4 % TILES_T][i % 4];
                    total[i / (4 * TILES_T)][i / 4 % TILES_T][i % 4] += slice_sum;
                    slice_sum = 0.0f;
                }
            }
    }
    cp_async_wait<0>();
    if constexpr (MODE == ALL_SLICES) store(part, sizes, total, scales, bias, sorted, out);
    else store(part, sizes, sum, scales, bias, sorted, out);
}
