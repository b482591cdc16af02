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
// the tensor cores' rate past that (mma.sync reaches some 60 % of a Hopper's).
//
// Set in front of this text: FORMAT (BF16, FP8, NVFP4), TOKENS, WARPS_N, WARPS_T, GROUPS, STAGES,
// IS_X_F32, MODE (one slice, all slices, one of them to a partial), WORK (dense, up, down).
constexpr int THREADS = WARPS_N * WARPS_T * 32;
constexpr int ROWS = WARPS_N * 32;
constexpr int TILES_T = TOKENS / WARPS_T / 8;
constexpr int STEP = GROUPS * 32;

// Bytes of a group of 32 columns, of a row of a stage, of a stage.
constexpr int W_GROUP = FORMAT == BF16 ? 64 : FORMAT == FP8 ? 32 : 16;
constexpr int X_GROUP = IS_X_F32 ? 128 : 64;
constexpr int W_ROW = W_GROUP * GROUPS;
constexpr int X_ROW = X_GROUP * GROUPS;
constexpr int SCALE_ROW = FORMAT == NVFP4 ? 2 * GROUPS : 0;
constexpr int SCALE_WORDS = FORMAT == NVFP4 ? SCALE_ROW / 4 : 1;
constexpr int X_START = ROWS * W_ROW;
constexpr int SCALE_START = X_START + TOKENS * X_ROW;
constexpr int STAGE = SCALE_START + ROWS * SCALE_ROW;
constexpr int X_COPIES = (TOKENS * X_ROW / 16 + THREADS - 1) / THREADS;
constexpr u32 NONE = 0xffffffff;

struct Sizes {
    u32 tokens;  // dense: rows of x; experts: pairs
    u32 n, k;
    u32 num_slices, slice_steps;
    u32 flags;  // 1: bias; 2: max(y, 0)^2; 4, 8: see store
    u32 top_k, num_experts;
};

// A group's place in its row of shared memory, so that the rows that a load reads at once lie in
// different banks.
template <int GROUP> __device__ __forceinline__ u32 place(u32 row, u32 group) {
    constexpr u32 ROW = GROUP * GROUPS;
    constexpr u32 ROWS_ABREAST = ROW < 128 ? 128 / ROW : 1;
    constexpr u32 MOST = 128 / GROUP;
    constexpr u32 SHIFTS = MOST < GROUPS ? MOST : GROUPS;
    return row * ROW + (group ^ (row / ROWS_ABREAST % SHIFTS)) * GROUP;
}

// Four FP8 codes as two registers of bf16, times 2^-120: the code's exponent and fraction where
// those of bf16 end, the sign where it belongs. The codes for NaN read as 480.
__device__ __forceinline__ void decode_fp8(u32 codes, u32& even, u32& odd) {
    even = (codes << 8 & 0x80008000) | (codes << 4 & 0x07f007f0);
    odd = (codes & 0x80008000) | (codes >> 4 & 0x07f007f0);
}

// An E4M3 block scale, times 2^119, in both halves of a register. The place it comes from: byte
// `at` of `scales`.
__device__ __forceinline__ u32 decode_scale(u32 scales, u32 at) {
    u32 code = scales >> (at * 8) & 0xff;
    float value = float_of((code & 0x80) << 24 | (code & 0x7f) << 20);
    u32 bits = bits_of(value * float_of(0x7b800000) * float_of(0x7b000000));  // 2^120, 2^119
    return (bits >> 16) | (bits & 0xffff0000);
}

// The eight weights of row `row` in this lane's part of a group.
__device__ __forceinline__ void load_weights(Shared memory, u32 stage, u32 row, u32 group, u32 lane_c,
                                             u32 scales, u32 (&w)[4]) {
    u32 at = stage + place<W_GROUP>(row, group) + lane_c * (W_GROUP / 4);
    if constexpr (FORMAT == BF16) {
        uint4 words = shared_load16(memory, at);
        w[0] = words.x, w[1] = words.y, w[2] = words.z, w[3] = words.w;
    } else if constexpr (FORMAT == FP8) {
        uint2 words = shared_load8(memory, at);
        decode_fp8(words.x, w[0], w[1]);
        decode_fp8(words.y, w[2], w[3]);
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = mul_bf16x2(w[i], 0x7b807b80);  // 2^120
    } else {
        // Code s e e m; of bf16 the lowest two bits of the exponent and the highest of the
        // fraction, which is the code's value times 2^-126. With the scale's 2^119, 2^-7 remains,
        // and store() makes it good. E2M1 times E4M3 has six bits: exact in bf16.
        u32 codes = shared_load4(memory, at);
        u32 scale = decode_scale(scales, group % 2 * 2 + lane_c / 2);
        w[0] = (codes << 12 & 0x80008000) | (codes << 6 & 0x01c001c0);
        w[1] = (codes << 8 & 0x80008000) | (codes << 2 & 0x01c001c0);
        w[2] = (codes << 4 & 0x80008000) | (codes >> 2 & 0x01c001c0);
        w[3] = (codes & 0x80008000) | (codes >> 6 & 0x01c001c0);
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = mul_bf16x2(w[i], scale);
    }
}

// The eight inputs of a token in this lane's part of a group, in the order of the weights' pairs.
__device__ __forceinline__ void load_inputs(Shared memory, u32 stage, u32 token, u32 group, u32 lane_c,
                                            u32 (&x)[4]) {
    u32 at = stage + X_START + place<X_GROUP>(token, group);
    if constexpr (IS_X_F32) {
        // Two vectors of four; neighbouring tokens keep them the other way round.
        u32 first = token & 1;
        uint4 a = shared_load16(memory, at + lane_c * 32 + first * 16);
        uint4 b = shared_load16(memory, at + lane_c * 32 + (first ^ 1) * 16);
        float v[8] = {float_of(a.x), float_of(a.y), float_of(a.z), float_of(a.w),
                      float_of(b.x), float_of(b.y), float_of(b.z), float_of(b.w)};
        constexpr int HOP = FORMAT == BF16 ? 1 : FORMAT == FP8 ? 2 : 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int low = i / HOP * 2 * HOP + i % HOP;
            x[i] = pack_bf16x2(v[low], v[low + HOP]);
        }
    } else {
        uint4 words = shared_load16(memory, at + lane_c * 16);
        x[0] = words.x, x[1] = words.y, x[2] = words.z, x[3] = words.w;
    }
}

// What a block works on.
struct Part {
    u32 first_row, slice;
    u32 first, num;  // positions: tokens, or places in the sorted list of pairs
    u32 expert;      // NONE: nothing to do
};

__device__ __forceinline__ Part dense_part(const Sizes& sizes) {
    // Bands of token tiles, so that what runs at once shares weights and inputs in L2.
    constexpr u32 BAND = 8;
    u32 tiles_n = (sizes.n + ROWS - 1) / ROWS, tiles_t = (sizes.tokens + TOKENS - 1) / TOKENS;
    u32 band = blockIdx.x / (BAND * tiles_n), in_band = blockIdx.x % (BAND * tiles_n);
    u32 left = tiles_t - band * BAND, height = left < BAND ? left : BAND;
    u32 first = (band * BAND + in_band % height) * TOKENS;
    u32 num = sizes.tokens - first;
    return {in_band / height * ROWS, blockIdx.y, first, num < TOKENS ? num : TOKENS, 0};
}

__device__ __forceinline__ u32 count_tiles(Global<const u32> offsets, u32 expert) {
    return (offsets[expert + 1] - offsets[expert] + TOKENS - 1) / TOKENS;
}

// The block's tile of tokens among those of all experts: nobody but the device knows how many
// tokens an expert has.
__device__ __forceinline__ Part expert_part(const Sizes& sizes, Global<const u32> offsets, Shared memory) {
    u32 tiles_n = (sizes.n + ROWS - 1) / ROWS, wanted = blockIdx.x / tiles_n;
    u32 each = (sizes.num_experts + THREADS - 1) / THREADS, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 start = threadIdx.x * each, end = start + each < sizes.num_experts ? start + each : sizes.num_experts;
    u32 mine = 0;
    for (u32 e = start; e < end; e++) mine += count_tiles(offsets, e);
    u32 upto = mine;
#pragma unroll
    for (u32 by = 1; by < 32; by *= 2) {
        u32 below = shuffle_up(upto, by);
        if (lane >= by) upto += below;
    }
    if (lane == 31) shared_store4(memory, 16 + warp * 4, upto);
    if (threadIdx.x == 0) shared_store4(memory, 0, NONE);
    __syncthreads();
    u32 at = upto - mine;
    for (u32 w = 0; w < warp; w++) at += shared_load4(memory, 16 + w * 4);
    if (wanted >= at && wanted < at + mine) {
        u32 e = start;
        for (u32 tiles = count_tiles(offsets, e); wanted >= at + tiles; tiles = count_tiles(offsets, e)) {
            at += tiles;
            e++;
        }
        u32 first = offsets[e] + (wanted - at) * TOKENS, num = offsets[e + 1] - first;
        shared_store4(memory, 0, e);
        shared_store4(memory, 4, first);
        shared_store4(memory, 8, num < TOKENS ? num : TOKENS);
    }
    __syncthreads();
    Part part = {blockIdx.x % tiles_n * ROWS, 0, 0, 0, shared_load4(memory, 0)};
    if (part.expert != NONE) part.first = shared_load4(memory, 4), part.num = shared_load4(memory, 8);
    __syncthreads();  // the pipeline takes the memory
    return part;
}

// The row of x of each copy that this thread makes.
struct Rows { u32 of[X_COPIES]; };

__device__ __forceinline__ Rows find_rows(const Part& part, const Sizes& sizes, Global<const u32> sorted) {
    Rows rows;
#pragma unroll
    for (int i = 0; i < X_COPIES; i++) {
        u32 token = (threadIdx.x + i * THREADS) / (X_ROW / 16);
        rows.of[i] = token >= part.num ? NONE : part.first + token;
        if (WORK == UP && rows.of[i] != NONE) rows.of[i] = sorted[rows.of[i]] / sizes.top_k;
    }
    return rows;
}

// Starts the copies of stage number `step`.
__device__ __forceinline__ void start_stage(Shared memory, u32 stage, u32 step, const Part& part,
                                            const Rows& rows, const Sizes& sizes, Global<const u8> x,
                                            Global<const u8> words, Global<const u8> block_scales) {
    u64 matrix = static_cast<u64>(part.expert) * sizes.n;
    u32 row_bytes = sizes.k / 32 * W_GROUP + sizes.k % 32 * W_GROUP / 32;
#pragma unroll
    for (int i = 0; i < ROWS * W_ROW / 16; i += THREADS) {
        u32 copy = i + threadIdx.x, row = copy / (W_ROW / 16), at = copy % (W_ROW / 16) * 16;
        if (ROWS * W_ROW / 16 % THREADS != 0 && copy >= ROWS * W_ROW / 16) break;
        u32 from = step * W_ROW + at;
        bool is_valid = part.first_row + row < sizes.n && from < row_bytes;
        cp_async16(memory, stage + place<W_GROUP>(row, at / W_GROUP) + at % W_GROUP, words,
                   (matrix + part.first_row + row) * row_bytes + from, is_valid);
    }
    u32 x_bytes = sizes.k * (IS_X_F32 ? 4 : 2);
#pragma unroll
    for (int i = 0; i < X_COPIES; i++) {
        u32 copy = i * THREADS + threadIdx.x, token = copy / (X_ROW / 16), at = copy % (X_ROW / 16) * 16;
        if (TOKENS * X_ROW / 16 % THREADS != 0 && copy >= TOKENS * X_ROW / 16) break;
        u32 from = step * X_ROW + at;
        u32 swap = IS_X_F32 ? (token & 1) * 16 : 0;
        cp_async16(memory, stage + X_START + place<X_GROUP>(token, at / X_GROUP) + (at % X_GROUP ^ swap), x,
                   static_cast<u64>(rows.of[i]) * x_bytes + from, rows.of[i] != NONE && from < x_bytes);
    }
    if constexpr (FORMAT == NVFP4) {
        u32 scale_bytes = sizes.k / 16;
#pragma unroll
        for (int i = 0; i < ROWS * SCALE_WORDS; i += THREADS) {
            u32 copy = i + threadIdx.x, row = copy / SCALE_WORDS, at = copy % SCALE_WORDS * 4;
            if (ROWS * SCALE_WORDS % THREADS != 0 && copy >= ROWS * SCALE_WORDS) break;
            u32 from = step * SCALE_ROW + at;
            bool is_valid = part.first_row + row < sizes.n && from < scale_bytes;
            cp_async4(memory, stage + SCALE_START + copy * 4, block_scales,
                      (matrix + part.first_row + row) * scale_bytes + from, is_valid);
        }
    }
    cp_async_commit();
}

// Adds a stage's products.
__device__ __forceinline__ void multiply(Shared memory, u32 stage, float (&sum)[2][TILES_T][4]) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 lane_g = lane / 4, lane_c = lane % 4;
    u32 row = warp % WARPS_N * 32 + lane_g, token = warp / WARPS_N * (TILES_T * 8) + lane_g;
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        u32 w[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 scales = 0;
            if constexpr (FORMAT == NVFP4)
                scales = shared_load4(memory, stage + SCALE_START + (row + i * 8) * SCALE_ROW + group / 2 * 4);
            load_weights(memory, stage, row + i * 8, group, lane_c, scales, w[i]);
        }
#pragma unroll
        for (int tile = 0; tile < TILES_T; tile++) {
            u32 x[4];
            load_inputs(memory, stage, token + tile * 8, group, lane_c, x);
#pragma unroll
            for (int half = 0; half < 4; half += 2)
#pragma unroll
                for (int m = 0; m < 2; m++)
                    mma_m16n8k16(sum[m][tile], w[m * 2][half], w[m * 2 + 1][half], w[m * 2][half + 1],
                                 w[m * 2 + 1][half + 1], x[half], x[half + 1]);
        }
    }
}

// Dense and down: f32 [.., n]. Up: bf16 in the order of pairs that the down product reads (flag 4:
// FP8's, flag 8: NVFP4's), by place in the sorted list.
__device__ __forceinline__ void store(const Part& part, const Sizes& sizes, float (&sum)[2][TILES_T][4],
                                      Global<const float> scales, Global<const float> bias,
                                      Global<const u32> sorted, Global<u8> out) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float scale = 1.0f;
    if constexpr (MODE != PARTIAL && FORMAT != BF16) scale = scales[part.expert] * (FORMAT == NVFP4 ? 128.0f : 1.0f);
#pragma unroll
    for (int tile = 0; tile < TILES_T; tile++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 token = warp / WARPS_N * (TILES_T * 8) + tile * 8 + lane % 4 * 2 + (i & 1);
            u32 row = part.first_row + warp % WARPS_N * 32 + lane / 4 + i / 2 * 8;
            if (token >= part.num || row >= sizes.n) continue;
            float value = sum[i / 4][tile][i % 4];
            u64 place = part.first + token;
            if constexpr (MODE == PARTIAL) {
                place += static_cast<u64>(part.slice) * sizes.tokens;
            } else {
                if constexpr (FORMAT != BF16) value *= scale;
                if (sizes.flags & 1) value += bias[row];
                if (sizes.flags & 2) value = value <= 0.0f ? 0.0f : value * value;  // NaN stays
            }
            if constexpr (WORK == UP) {
                u32 at = row % 8;
                if (sizes.flags & 4) at = (at & 4) | (at & 1) << 1 | (at & 2) >> 1;
                if (sizes.flags & 8) at = (at & 3) << 1 | at >> 2;
                global_store2(out, (place * sizes.n + row / 8 * 8 + at) * 2,
                              static_cast<u16>(pack_bf16x2(value, 0.0f)));
            } else {
                if constexpr (WORK == DOWN) place = sorted[place];
                global_store4(out, (place * sizes.n + row) * 4, bits_of(value));
            }
        }
}

extern "C" __global__ void __launch_bounds__(THREADS)
ENTRY(Global<const u8> x, Global<const u8> words, Global<const u8> block_scales, Global<const float> scales,
      Global<const float> bias, Global<const u32> sorted, Global<const u32> offsets, Global<u8> out, Sizes sizes) {
    SHARED(memory, STAGE * STAGES);
    Part part = WORK == DENSE ? dense_part(sizes) : expert_part(sizes, offsets, memory);
    if (part.expert == NONE) return;
    Rows rows = find_rows(part, sizes, sorted);

    u32 num_steps = (sizes.k + STEP - 1) / STEP, step = 0;
    if constexpr (MODE == PARTIAL) {
        step = part.slice * sizes.slice_steps;
        num_steps = num_steps < step + sizes.slice_steps ? num_steps : step + sizes.slice_steps;
    }
    u32 next = step;
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++, next++)
        if (next < num_steps) start_stage(memory, stage * STAGE, next, part, rows, sizes, x, words, block_scales);
        else cp_async_commit();

    float sum[2][TILES_T][4] = {};
    float total[2][TILES_T][4] = {};  // of ALL_SLICES
    u32 slice_end = step + sizes.slice_steps, here = 0, there = (STAGES - 1) * STAGE;
    for (; step < num_steps; step++, next++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (next < num_steps) start_stage(memory, there, next, part, rows, sizes, x, words, block_scales);
        else cp_async_commit();
        multiply(memory, here, sum);
        here = here + STAGE < STAGE * STAGES ? here + STAGE : 0;
        there = there + STAGE < STAGE * STAGES ? there + STAGE : 0;
        if constexpr (MODE == ALL_SLICES)
            if (step + 1 == slice_end || step + 1 == num_steps) {
                slice_end += sizes.slice_steps;
#pragma unroll
                for (int i = 0; i < 8 * TILES_T; i++) {
                    float& part_sum = sum[i / (4 * TILES_T)][i / 4 % TILES_T][i % 4];
                    total[i / (4 * TILES_T)][i / 4 % TILES_T][i % 4] += part_sum;
                    part_sum = 0.0f;
                }
            }
    }
    cp_async_wait<0>();
    if constexpr (MODE == ALL_SLICES) store(part, sizes, total, scales, bias, sorted, out);
    else store(part, sizes, sum, scales, bias, sorted, out);
}
