// Causal attention over the paged cache on tensor cores. Shapes, splits and what is promised as in
// src/attention; the maths of Dao et al., "FlashAttention-2".
//
// A warp has 16 rows of queries: the GROUP query heads of 16 / GROUP tokens of one row and kv head
// (Super: the 16 heads of one token). The warps of a block have neighbouring tokens, and share keys
// and values, which come into shared memory KEYS at a time. Warps of one block never add to one
// another, and a warp walks its keys in tiles at fixed positions, so that a token's bits are the
// same in a block of one warp (decode) and of several, whatever its neighbours are.
//
// q, times log2(e) / sqrt(HEAD_DIM) and the keys' scale, keys, weights of keys and values are bf16
// when they are multiplied (E4M3 is exact in it); scores, their largest, the sums and the weights'
// sum are f32, the values' scale comes last. Splits are put together as `tensor_attention_combine`
// does it.
//
// The order of channels in a score is ours to choose if both operands agree: lane c of a quad takes
// channels 8c .. 8c + 7 of each 32, in 16 bytes. Products with values pair keys, not channels: of
// two keys' words they take the lower halves for one tile of channels and the upper for the next,
// and a lane's 16 bytes of 8 channels serve 8 tiles.
//
// Partial results are the sums, then largest score and sum of weights of each.
//
// A NaN among the values is hidden from the warps that do not see it; where a warp has several
// tokens it reaches those of them before it, for a weight of zero hides none.
//
// Bytes: keys and values once per block (TOKENS tokens), from L2 but for the first. Operations:
// 4 HEAD_DIM a query and key. Bound by mma.sync in prefill (128 rows of queries do 128 FLOP per byte
// from L2), by memory in decode: a block is one warp then, and copies are what it waits for. FP8 is
// decoded once a block, not by every warp: 13 instructions for four codes, twice an mma's time if
// each warp decoded its own fragments.
// A thread of a walk holds two sets of sums (its split's, and all splits'), which takes all 255
// registers and one block of 8 warps an SM; two of 4 would read L2 twice as much, more than it
// gives. There the assembler spills nothing on sm_90a, and up to 24 bytes of a thread elsewhere.
// Copies unrolled by two are at most 16 everywhere, but on sm_90a too.
// Tried on paper: 128 keys a tile need 64 KiB of shared memory, more than a text may declare.
constexpr u32 KEYS = 64, THREADS = WARPS * 32, HEADS = KV_HEADS * GROUP;
constexpr u32 WARP_TOKENS = 16 / GROUP, TOKENS = WARPS * WARP_TOKENS, TILES = HEAD_DIM / 8;
// Bytes of a key in bf16 and as stored, and of a tile of them.
constexpr u32 ROW = HEAD_DIM * 2, STORED = FORMAT == FP8 ? HEAD_DIM : ROW;
constexpr u32 SIDE = KEYS * ROW, STORED_SIDE = KEYS * STORED;
// In bf16 keys and values have places of their own, and come there as they are; in FP8 they are
// decoded to one place, in turn.
constexpr u32 BYTES = FORMAT == FP8 ? SIDE + 2 * STORED_SIDE : 2 * SIDE;
constexpr u32 KEYS_AT = 0, VALUES_AT = FORMAT == FP8 ? 0 : SIDE;
constexpr u32 STORED_KEYS_AT = FORMAT == FP8 ? SIDE : KEYS_AT;
constexpr u32 STORED_VALUES_AT = FORMAT == FP8 ? SIDE + STORED_SIDE : VALUES_AT;
static_assert(16 % GROUP == 0 && HEAD_DIM % 64 == 0, "whole tokens in a warp, whole loads in a head");

struct Sizes {
    u32 first;          // token of the launch
    u32 first_row;      // of several tokens
    u32 tiles_per_row;  // 0: every tile is one token
    u32 table_stride, num_splits;
    u32 num_parts;  // of all tokens, heads and splits of the launch
    u32 q_scale, v_scale;
};

// Where a key's 16 bytes lie among its row's: the eight lanes that load at once meet in no bank. Of
// keys those are four loads of two neighbouring keys, of values two of every other of eight keys.
__device__ __forceinline__ u32 key_place(u32 key, u32 chunk) { return key * ROW + (chunk ^ (key & 1) * 4) * 16; }
__device__ __forceinline__ u32 value_place(u32 key, u32 chunk) { return key * ROW + (chunk ^ (key / 2 & 3) * 2) * 16; }

// Starts the copies of a tile of keys or values, zeros from `end` on.
template <bool IS_VALUES>
__device__ __forceinline__ void start_side(Shared memory, Global<const u8> pool, Global<const u32> tables, u32 table,
                                           u32 kv_head, u32 start, u32 end) {
    constexpr u32 CHUNKS = STORED / 16, COPIES = KEYS * CHUNKS / THREADS;
#pragma unroll 4
    for (u32 i = 0; i < COPIES; i++) {
        u32 copy = i * THREADS + threadIdx.x, key = copy / CHUNKS, chunk = copy % CHUNKS, position = start + key;
        u64 at = 0;
        if (position < end) {
            u64 slot = u64(tables[table + position / BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE;
            at = (slot * KV_HEADS + kv_head) * STORED + chunk * 16;
        }
        u32 to;
        if constexpr (FORMAT == FP8) to = (IS_VALUES ? STORED_VALUES_AT : STORED_KEYS_AT) + copy * 16;
        else to = IS_VALUES ? VALUES_AT + value_place(key, chunk) : KEYS_AT + key_place(key, chunk);
        cp_async16(memory, to, pool, at, position < end);
    }
    cp_async_commit();
}

// Two E4M3 codes, in the upper bytes of two halves, as bf16. An exponent of 4 bits is one of 8 whose
// bias is 120 too large.
__device__ __forceinline__ u32 decode2(u32 codes) {
    return mul_bf16x2((codes & 0x80008000u) | (codes >> 4 & 0x07f007f0u), 0x7b807b80u);
}

// A tile of FP8 in bf16.
template <bool IS_VALUES> __device__ __forceinline__ void decode_side(Shared memory) {
    constexpr u32 CHUNKS = STORED / 16, COPIES = KEYS * CHUNKS / THREADS;
#pragma unroll 1
    for (u32 i = 0; i < COPIES; i++) {
        u32 copy = i * THREADS + threadIdx.x, key = copy / CHUNKS, chunk = copy % CHUNKS * 2;
        uint4 stored = shared_load16(memory, (IS_VALUES ? STORED_VALUES_AT : STORED_KEYS_AT) + copy * 16);
        u32 codes[4] = {stored.x, stored.y, stored.z, stored.w}, numbers[8];
#pragma unroll
        for (u32 word = 0; word < 4; word++) {
            u32 low = decode2(pick_bytes(codes[word], 0, 0x1404)), high = decode2(pick_bytes(codes[word], 0, 0x3424));
            u32 nan = (codes[word] & 0x7f7f7f7fu) + 0x01010101u & 0x80808080u;
            if (nan) {  // no number has that code
                low |= (nan & 0x80u ? 0x7fffu : 0) | (nan & 0x8000u ? 0x7fff0000u : 0);
                high |= (nan & 0x800000u ? 0x7fffu : 0) | (nan & 0x80000000u ? 0x7fff0000u : 0);
            }
            numbers[word * 2] = low, numbers[word * 2 + 1] = high;
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 to = IS_VALUES ? value_place(key, chunk + half) : key_place(key, chunk + half);
            u32* n = numbers + half * 4;
            shared_store16(memory, (IS_VALUES ? VALUES_AT : KEYS_AT) + to, {n[0], n[1], n[2], n[3]});
        }
    }
}

// Of all four lanes of a quad.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, float_of(shuffle_xor(bits_of(x), 1)));
    return fmaxf(x, float_of(shuffle_xor(bits_of(x), 2)));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += float_of(shuffle_xor(bits_of(x), 1));
    return x + float_of(shuffle_xor(bits_of(x), 2));
}

extern "C" __global__ void __launch_bounds__(THREADS)
ENTRY(Global<const u8> q, Global<const u8> keys, Global<const u8> values, Global<const u32> token_rows,
      Global<const u32> token_positions, Global<const u32> row_tokens, Global<const u32> tables, Global<u8> out,
      Sizes sizes) {
    SHARED(memory, BYTES);
    u32 kv_head = blockIdx.y, token = sizes.first + blockIdx.x, count = 1;
    if (sizes.tiles_per_row) {
        // The last tokens of a row have most to do, so they come first.
        u32 row = sizes.first_row + blockIdx.x / sizes.tiles_per_row;
        u32 at = (sizes.tiles_per_row - 1 - blockIdx.x % sizes.tiles_per_row) * TOKENS;
        u32 begin = row_tokens[row], len = row_tokens[row + 1] - begin;
        if (at >= len) return;
        token = begin + at;
        count = len - at < TOKENS ? len - at : TOKENS;
    }
    u32 position = token_positions[token], context = position + count;
    u32 table = token_rows[token] * sizes.table_stride;
    u32 split = IS_SPLIT ? blockIdx.z : 0, begin = split_start(split), next = split_start(split + 1);
    if (begin >= context) return;
    u32 end = IS_SPLIT && next < context ? next : context;

    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, lane_g = lane / 4, lane_c = lane % 4;
    // The lane's two rows of queries: which token's each is, the last position that it sees. Rows
    // past the tile repeat its last token and are never stored.
    u32 last[2];
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        u32 of = warp * WARP_TOKENS + (lane_g + r * 8) / GROUP;
        last[r] = position + (of < count ? of : count - 1);
    }
    // The same for all lanes: what the warp's first and last token see; whether it has any.
    bool is_warp = warp * WARP_TOKENS < count;
    u32 warp_first = position + warp * WARP_TOKENS, warp_last = warp_first + WARP_TOKENS - 1;
    warp_last = warp_last < context ? warp_last : context - 1;

    u32 x[HEAD_DIM / 32][2][4];
    float q_scale = float_of(sizes.q_scale);
#pragma unroll
    for (u32 part = 0; part < HEAD_DIM / 32; part++)
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            u32 head = kv_head * GROUP + (lane_g + r * 8) % GROUP, query = (token + last[r] - position) * HEADS + head;
            u64 at = (u64(query) * HEAD_DIM + part * 32 + lane_c * 8) * 4;
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                uint4 v = global_load16(q, at + half * 16);
                x[part][half][r] = pack_bf16x2(float_of(v.x) * q_scale, float_of(v.y) * q_scale);
                x[part][half][2 + r] = pack_bf16x2(float_of(v.z) * q_scale, float_of(v.w) * q_scale);
            }
        }

    // Of the split: largest score, the lane's part of the sum of weights, weighted values.
    float top[2] = {LOWEST, LOWEST}, mass[2] = {}, sum[TILES][4] = {};
    // Of all splits so far.
    float all_top[2] = {LOWEST, LOWEST}, all_mass[2] = {}, all_sum[TILES][4] = {};

    start_side<false>(memory, keys, tables, table, kv_head, begin, end);
    for (u32 start = begin; start < end; start += KEYS) {
        bool is_seen = is_warp && start <= warp_last;
        cp_async_wait<0>();
        __syncthreads();  // the keys are there, and nobody needs the last values
        start_side<true>(memory, values, tables, table, kv_head, start, end);
        if constexpr (FORMAT == FP8) {
            decode_side<false>(memory);
            __syncthreads();
        }
        u32 weights[KEYS / 16][4];
        if (is_seen) {
            float score[KEYS / 8][4] = {};
#pragma unroll
            for (u32 part = 0; part < HEAD_DIM / 32; part++)
#pragma unroll
                for (u32 tile = 0; tile < KEYS / 8; tile++) {
                    uint4 k = shared_load16(memory, KEYS_AT + key_place(tile * 8 + lane_g, part * 4 + lane_c));
                    u32(&a)[2][4] = x[part];
                    mma_m16n8k16(score[tile], a[0][0], a[0][1], a[0][2], a[0][3], k.x, k.y);
                    mma_m16n8k16(score[tile], a[1][0], a[1][1], a[1][2], a[1][3], k.z, k.w);
                }
            if (start + KEYS - 1 > warp_first) {
#pragma unroll
                for (u32 tile = 0; tile < KEYS / 8; tile++)
#pragma unroll
                    for (u32 h = 0; h < 4; h++)
                        if (start + tile * 8 + lane_c * 2 + h % 2 > last[h / 2]) score[tile][h] = LOWEST;
            }
            float fade[2];
#pragma unroll
            for (u32 r = 0; r < 2; r++) {
                float highest = top[r];
#pragma unroll
                for (u32 tile = 0; tile < KEYS / 8; tile++)
                    highest = fmaxf(highest, fmaxf(score[tile][r * 2], score[tile][r * 2 + 1]));
                highest = quad_max(highest);
                fade[r] = power_of_2(top[r] - highest);
                top[r] = highest;
                float more = 0.0f;
#pragma unroll
                for (u32 tile = 0; tile < KEYS / 8; tile++) {
                    float w0 = power_of_2(score[tile][r * 2] - highest);
                    float w1 = power_of_2(score[tile][r * 2 + 1] - highest);
                    more += w0;
                    more += w1;
                    weights[tile / 2][tile % 2 * 2 + r] = pack_bf16x2(w0, w1);
                }
                mass[r] = fmaf(mass[r], fade[r], more);
            }
#pragma unroll
            for (u32 tile = 0; tile < TILES; tile++)
#pragma unroll
                for (u32 h = 0; h < 4; h++) sum[tile][h] *= fade[h / 2];
        }
        cp_async_wait<0>();
        __syncthreads();  // the values are there, and nobody needs the keys
        if (start + KEYS < end) start_side<false>(memory, keys, tables, table, kv_head, start + KEYS, end);
        if constexpr (FORMAT == FP8) {
            decode_side<true>(memory);
            __syncthreads();
        }
        if (is_seen) {
#pragma unroll
            for (u32 step = 0; step < KEYS / 16; step++)
#pragma unroll
                for (u32 part = 0; part < HEAD_DIM / 64; part++) {
                    u32 v[4][4];
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        u32 key = step * 16 + i / 2 * 8 + lane_c * 2 + i % 2;
                        uint4 words = shared_load16(memory, VALUES_AT + value_place(key, part * 8 + lane_g));
                        if (start + key > warp_last) words = {0, 0, 0, 0};  // a weight of zero hides no NaN
                        v[i][0] = words.x, v[i][1] = words.y, v[i][2] = words.z, v[i][3] = words.w;
                    }
                    u32(&a)[4] = weights[step];
#pragma unroll
                    for (u32 word = 0; word < 4; word++) {
                        u32 tile = part * 8 + word * 2;
                        mma_m16n8k16(sum[tile], a[0], a[1], a[2], a[3], pick_bytes(v[0][word], v[1][word], 0x5410),
                                     pick_bytes(v[2][word], v[3][word], 0x5410));
                        mma_m16n8k16(sum[tile + 1], a[0], a[1], a[2], a[3], pick_bytes(v[0][word], v[1][word], 0x7632),
                                     pick_bytes(v[2][word], v[3][word], 0x7632));
                    }
                }
        }
        if constexpr (!IS_SPLIT) {
            if (start + KEYS == next || start + KEYS >= end) {
#pragma unroll
                for (u32 r = 0; r < 2; r++) {
                    float of_quad = quad_sum(mass[r]);
                    if (begin <= last[r]) {
                        Merged merged = merge(all_top[r], all_mass[r], top[r], of_quad);
#pragma unroll
                        for (u32 tile = 0; tile < TILES; tile++)
#pragma unroll
                            for (u32 h = r * 2; h < r * 2 + 2; h++)
                                all_sum[tile][h] = fmaf(sum[tile][h], merged.share, all_sum[tile][h] * merged.fade);
                    }
                    top[r] = LOWEST, mass[r] = 0.0f;
                }
#pragma unroll
                for (u32 tile = 0; tile < TILES; tile++)
#pragma unroll
                    for (u32 h = 0; h < 4; h++) sum[tile][h] = 0.0f;
                begin = next;
                next = split_start(++split + 1);
            }
        }
    }

    // A lane's channels: 16 neighbours of each 64, the 8 of an even column of the tiles, then the 8
    // of an odd one.
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        float factor = 1.0f, of_quad = IS_SPLIT ? quad_sum(mass[r]) : 0.0f;
        u32 row = lane_g + r * 8, of = warp * WARP_TOKENS + row / GROUP;
        if (of >= count) continue;
        u64 place = u64(token + of) * HEADS + kv_head * GROUP + row % GROUP;
        if constexpr (IS_SPLIT) {
            // Tokens count from the launch's first, as the partial results do.
            place = (place - u64(sizes.first) * HEADS) * sizes.num_splits + blockIdx.z;
            if (lane_c == 0) {
                u64 at = (u64(sizes.num_parts) * HEAD_DIM + place * 2) * 4;
                global_store4(out, at, bits_of(top[r]));
                global_store4(out, at + 4, bits_of(of_quad));
            }
        } else {
            factor = float_of(sizes.v_scale) / all_mass[r];
        }
#pragma unroll
        for (u32 part = 0; part < HEAD_DIM / 64; part++)
#pragma unroll
            for (u32 half = 0; half < 4; half++) {
                u32 words[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 tile = part * 8 + half % 2 * 4 + i, h = r * 2 + half / 2;
                    words[i] = bits_of(IS_SPLIT ? sum[tile][h] : all_sum[tile][h] * factor);
                }
                u64 at = place * HEAD_DIM + part * 64 + lane_c * 16 + half * 4;
                global_store16(out, at * 4, {words[0], words[1], words[2], words[3]});
            }
    }
}
