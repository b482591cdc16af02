// What the kernels on tensor cores share: how a block is cut, where things lie in shared memory, the
// decoding of weights in registers, which part is a block's, its copies and its stores.
//
// Set in front of this text: FORMAT (BF16, FP8, NVFP4), UNIT (MMA, WGMMA), TOKENS, WARPS_N, WARPS_T,
// TILES_N (of 16 outputs, of a warp), GROUPS, STAGES, IS_X_F32, MODE (one slice, all slices, one of
// them to a partial), WORK (dense, up, down).
constexpr int THREADS = WARPS_N * WARPS_T * 32;
constexpr int ROWS = WARPS_N * TILES_N * 16;
constexpr int TILES_T = TOKENS / WARPS_T / 8;
constexpr int STEP = GROUPS * 32;

// Bytes of a group of 32 columns, of a row of a stage, of a stage.
constexpr int W_GROUP = FORMAT == BF16 ? 64 : FORMAT == FP8 ? 32 : 16;
constexpr int X_GROUP = IS_X_F32 ? 128 : 64;
constexpr int W_ROW = W_GROUP * GROUPS;
constexpr int X_ROW = X_GROUP * GROUPS;
// Block scales come in words, which two groups share.
constexpr int SCALE_WORDS = (GROUPS + 1) / 2;
constexpr int SCALE_ROW = FORMAT == NVFP4 ? 4 * SCALE_WORDS : 0;
constexpr int X_START = ROWS * W_ROW;
constexpr int SCALE_START = X_START + TOKENS * X_ROW;
constexpr int STAGE = SCALE_START + ROWS * SCALE_ROW;
constexpr int X_COPIES = (TOKENS * X_ROW / 16 + THREADS - 1) / THREADS;
// A pair's columns are this far apart.
constexpr int HOP = FORMAT == BF16 ? 1 : FORMAT == FP8 ? 2 : 4;
constexpr u32 NONE = 0xffffffff;

struct Sizes {
    u32 tokens;  // dense: rows of x; experts: pairs
    u32 n, k;
    u32 num_slices, slice_steps;
    u32 flags;  // 1: bias; 2: max(y, 0)^2
    u32 top_k, num_experts;
    u32 order;  // up: of its outputs, see `paired`
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

// The eight weights of row `row` in this lane's part of a group, as four pairs.
__device__ __forceinline__ void load_weights(Shared memory, u32 stage, u32 row, u32 group, u32 lane_c,
                                             u32 scale, u32 (&w)[4]) {
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
        decode_nvfp4(shared_load4(memory, at), w);
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = mul_bf16x2(w[i], scale);
    }
}

// The scales of a row's groups `group` and `group + 1`; in a stage of one group, whose word of scales
// is for two, `is_odd` says which comes first.
__device__ __forceinline__ void load_scales(Shared memory, u32 stage, u32 row, u32 group, u32 is_odd,
                                            u32 lane_c, u32 (&scales)[2]) {
    if constexpr (FORMAT == NVFP4) {
        decode_scales(shared_load4(memory, stage + SCALE_START + row * SCALE_ROW + group / 2 * 4), lane_c / 2, scales);
        if (GROUPS == 1 && is_odd) scales[0] = scales[1];
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

// Which token's 16 bytes a copy brings, and from where in its row of a stage. For wgmma eight lanes
// take eight tokens, which lie side by side there.
__device__ __forceinline__ u32 copy_token(u32 copy) {
    return UNIT == WGMMA ? copy / 32 * 8 + copy % 8 : copy / (X_ROW / 16);
}
__device__ __forceinline__ u32 copy_byte(u32 copy) {
    return UNIT == WGMMA ? copy % 32 / 8 * 16 : copy % (X_ROW / 16) * 16;
}

// Where they go. For wgmma (GROUPS is 1): core matrices of eight tokens by 16 bytes, those of the
// same 16 bytes one after the other.
__device__ __forceinline__ u32 x_place(u32 token, u32 byte) {
    if constexpr (UNIT == WGMMA) return byte * TOKENS + token * 16;
    u32 swap = IS_X_F32 ? (token & 1) * 16 : 0;
    return place<X_GROUP>(token, byte / X_GROUP) + (byte % X_GROUP ^ swap);
}

// The copies that a thread makes for every stage, and where they come from for the next one.
constexpr int W_COPIES = (ROWS * W_ROW / 16 + THREADS - 1) / THREADS;
constexpr int SCALE_COPIES = (ROWS * SCALE_WORDS + THREADS - 1) / THREADS;
struct Copies {
    u64 w[W_COPIES], x[X_COPIES], scales[SCALE_COPIES];
    bool is_w[W_COPIES], is_x[X_COPIES], is_scale[SCALE_COPIES];
};

__device__ __forceinline__ Copies find_copies(const Part& part, const Sizes& sizes, Global<const u32> sorted,
                                              u32 step) {
    Copies copies;
    u64 matrix = static_cast<u64>(part.expert) * sizes.n;
    u32 row_bytes = sizes.k / 32 * W_GROUP + sizes.k % 32 * W_GROUP / 32;
#pragma unroll
    for (int i = 0; i < W_COPIES; i++) {
        u32 copy = i * THREADS + threadIdx.x, row = part.first_row + copy / (W_ROW / 16);
        copies.is_w[i] = copy < ROWS * W_ROW / 16 && row < sizes.n;
        copies.w[i] = (matrix + row) * row_bytes + step * W_ROW + copy % (W_ROW / 16) * 16;
    }
#pragma unroll
    for (int i = 0; i < X_COPIES; i++) {
        u32 copy = i * THREADS + threadIdx.x, token = copy_token(copy), row = part.first + token;
        copies.is_x[i] = token < part.num;
        if (WORK == UP && copies.is_x[i]) row = sorted[row] / sizes.top_k;
        copies.x[i] = static_cast<u64>(row) * (sizes.k * (IS_X_F32 ? 4 : 2)) + step * X_ROW + copy_byte(copy);
    }
#pragma unroll
    for (int i = 0; i < SCALE_COPIES; i++) {
        u32 copy = i * THREADS + threadIdx.x, row = part.first_row + copy / SCALE_WORDS;
        copies.is_scale[i] = copy < ROWS * SCALE_WORDS && row < sizes.n;
        copies.scales[i] = (matrix + row) * (sizes.k / 16) + copy % SCALE_WORDS * 4;
    }
    return copies;
}

// Starts the copies of stage number `step`. All of a thread's copies of a kind come from the same
// bytes of a stage's rows, and go to rows whose groups are moved alike.
__device__ __forceinline__ void start_stage(Shared memory, u32 stage, u32 step, Copies& copies,
                                            const Sizes& sizes, Global<const u8> x, Global<const u8> words,
                                            Global<const u8> block_scales) {
    u32 first = threadIdx.x;
    {
        u32 row = first / (W_ROW / 16), byte = first % (W_ROW / 16) * 16;
        u32 to = stage + place<W_GROUP>(row, byte / W_GROUP) + byte % W_GROUP;
        bool is_inside = step * W_ROW + byte < sizes.k / 32 * W_GROUP + sizes.k % 32 * W_GROUP / 32;
#pragma unroll
        for (int i = 0; i < W_COPIES; i++) {
            if (ROWS * W_ROW / 16 % THREADS == 0 || first + i * THREADS < ROWS * W_ROW / 16)
                cp_async16(memory, to + i * THREADS * 16, words, copies.w[i], is_inside && copies.is_w[i]);
            copies.w[i] += W_ROW;
        }
    }
    {
        u32 byte = copy_byte(first), to = stage + X_START + x_place(copy_token(first), byte);
        // Of wgmma a pass of all threads is a quarter of the bytes of its tokens.
        constexpr u32 PASS = UNIT == WGMMA ? THREADS * 4 : THREADS * 16;
        bool is_inside = step * X_ROW + byte < sizes.k * (IS_X_F32 ? 4 : 2);
#pragma unroll
        for (int i = 0; i < X_COPIES; i++) {
            if (TOKENS * X_ROW / 16 % THREADS == 0 || first + i * THREADS < TOKENS * X_ROW / 16)
                cp_async16(memory, to + i * PASS, x, copies.x[i], is_inside && copies.is_x[i]);
            copies.x[i] += X_ROW;
        }
    }
    if constexpr (FORMAT == NVFP4) {
        u32 word = step * GROUPS / 2 * 4;
        bool is_inside = word + first % SCALE_WORDS * 4 < sizes.k / 16;
#pragma unroll
        for (int i = 0; i < SCALE_COPIES; i++) {
            u32 copy = first + i * THREADS;
            if (ROWS * SCALE_WORDS % THREADS == 0 || copy < ROWS * SCALE_WORDS)
                cp_async4(memory, stage + SCALE_START + copy * 4, block_scales, copies.scales[i] + word,
                          is_inside && copies.is_scale[i]);
        }
    }
    cp_async_commit();
}

// A column's place among 32 of a row of x in bf16, for a product whose pairs lie `hop` apart: for
// mma lane by lane, pairs in order; for wgmma (16) pair by pair, lanes in order.
__device__ __forceinline__ u32 paired(u32 column, u32 order) {
    u32 hop = order % 16, in_eight = column % 8;
    u32 pair = in_eight / (2 * hop) * hop + in_eight % hop, half = in_eight / hop % 2, lane = column % 32 / 8;
    return order < 16 ? lane * 8 + pair * 2 + half : pair * 8 + lane * 2 + half;
}

// Dense and down: f32 [.., n]. Up: bf16 in the order that the down product wants, by place in the
// sorted list.
__device__ __forceinline__ void store(const Part& part, const Sizes& sizes, float (&sum)[TILES_N][TILES_T][4],
                                      Global<const float> scales, Global<const float> bias,
                                      Global<const u32> sorted, Global<u8> out) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float scale = 1.0f;
    if constexpr (MODE != PARTIAL && FORMAT != BF16) scale = scales[part.expert] * (FORMAT == NVFP4 ? 128.0f : 1.0f);
#pragma unroll
    for (int tile = 0; tile < TILES_T; tile++)
#pragma unroll
        for (int i = 0; i < 4 * TILES_N; i++) {
            u32 token = warp / WARPS_N * (TILES_T * 8) + tile * 8 + lane % 4 * 2 + (i & 1);
            u32 row = part.first_row + warp % WARPS_N * (16 * TILES_N) + lane / 4 + i / 2 * 8;
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
                u32 at = row / 32 * 32 + paired(row, sizes.order);
                global_store2(out, (place * sizes.n + at) * 2,
                              static_cast<u16>(pack_bf16x2(value, 0.0f)));
            } else {
                if constexpr (WORK == DOWN) place = sorted[place];
                global_store4(out, (place * sizes.n + row) * 4, bits_of(value));
            }
        }
}

