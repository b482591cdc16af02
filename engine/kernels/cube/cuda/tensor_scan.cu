// The Mamba-2 recurrence over long rows on tensor cores: chunk by chunk (model-spec 2.5), the state
// of one head in the registers of one block. Shapes as in src/scan.
//
// Chunks lie on a grid of absolute positions, CHUNK apart, so a row's result does not depend on
// where on that grid its prompt was cut: a chunk's result depends on its tokens and the state before
// it, which the pool keeps as it is. With l the running sum of a * dt inside a chunk, i and j tokens
// of it, S the state before it:
//
//     y[i] = sum_{j <= i} exp(l[i] - l[j]) (C[i].B[j]) dt[j] x[j]  +  exp(l[i]) S C[i]  +  D x[i]
//     S    = exp(l[last]) S + sum_j exp(l[last] - l[j]) dt[j] x[j] outer B[j]
//
// x, B, C, dt * x, the weighted C.B and, for y alone, S are rounded to bf16 before they are
// multiplied. Sums, decays, dt and S itself are f32. Where the pool keeps halves, S is rounded to them at
// the end of every chunk, whether or not a step ends there: up or down at random, as src/scan/rounding.rs
// does after every token.
//
// Four warps. For y a warp has 16 tokens, for S 16 channels. The order of columns in a sum is ours
// to choose if both operands agree: lane c of a quad takes columns 4c .. 4c + 3 of each 16, so that
// C comes from memory in 16 bytes and B and S from shared memory in 8. Products that make S pair
// tokens, not columns: of the two tokens' words they take the lower halves for one tile of columns
// and the upper for the next, which leaves a lane with four neighbouring columns of S.
//
// Bytes of a token and head: 256 of x twice (once per use, the second from cache), 1024 of B and C
// from L2 (16 heads share them), 256 of y. Operations: 49 k a token and head, 3/4 of it in mma; 16
// heads make C.B each for themselves, a third of the work: sharing it would take another launch
// and its bytes. Bound for one row by the latency of loads and barriers (one block a multiprocessor),
// for several by L2.
// Tried on paper: 128 tokens a chunk need 64 KiB of shared memory, more than a text may declare;
// three bf16 products for one in f32's precision need twice the shared memory.
constexpr u32 CHUNK = 64, TOKENS = 16, THREADS = 128;
constexpr u32 INNER = HEADS * HEAD_DIM, CONV_DIM = INNER + 2 * GROUPS * STATE;
constexpr u32 PROJECTED = INNER + CONV_DIM + HEADS;
// Words from one row of a shared array to the next: lanes then meet in no bank.
constexpr u32 PITCH_B = STATE / 2 + 8, PITCH_X = HEAD_DIM + 8;
constexpr u32 B = 0, S = B + CHUNK * PITCH_B * 4, X = S + HEAD_DIM * PITCH_B * 4;
constexpr u32 STEP = X + CHUNK / 2 * PITCH_X * 4, DECAY = STEP + CHUNK * 4, BYTES = DECAY + CHUNK * 4;
static_assert(HEAD_DIM == 64 && STATE == 128, "four warps of 16 channels, columns in 8 groups of 16");

struct Sizes {
    u32 short_tokens;  // a row's or a last chunk's, which the recurrence token by token takes
    u32 is_limited, min, max;
    u32 noise;         // a mixer's, where states are kept in halves
};

__device__ __forceinline__ float load_shared(Shared memory, u32 byte) { return float_of(shared_load4(memory, byte)); }

// Spreads every bit over all.
__device__ __forceinline__ u32 scramble(u32 x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// Rounds to a number that half has, by 13 bits of noise.
__device__ __forceinline__ float round_to_half(float value, u32 noise) {
    u32 bits = bits_of(value), size = bits & 0x7fffffffu;
    u32 held = size < 0x477fe000u ? size : 0x477fe000u;
    // Below 2^-14, where half has fewer bits.
    float offset = held < 0x38800000u ? 1.0f / 16384.0f : 0.0f;
    float cut = float_of((bits_of(float_of(held) + offset) + noise) & 0xffffe000u) - offset;
    return size > 0x7f800000u ? value : float_of(bits_of(cut) | (bits & 0x80000000u));
}

// softplus, held to its limits; a NaN stays one.
__device__ __forceinline__ float time_step(float raw, Sizes sizes) {
    float dt = (raw > 0.0f ? raw : 0.0f) + log1pf(expf(-fabsf(raw)));
    if (sizes.is_limited) {
        float min = float_of(sizes.min), max = float_of(sizes.max);
        dt = dt < min ? min : dt > max ? max : dt;
    }
    return dt;
}

// dt of the chunk's tokens and l; 0 and the last l past its end. By the first warp.
__device__ __forceinline__ void steps(Shared memory, Global<const float> projected, u64 at, u32 num, float a,
                                      float bias, Sizes sizes) {
    u32 lane = threadIdx.x;
    float dt[2], sum[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 token = 2 * lane + i;
        dt[i] = token < num ? time_step(projected[at + u64(token) * PROJECTED] + bias, sizes) : 0.0f;
    }
    sum[0] = a * dt[0];
    sum[1] = sum[0] + a * dt[1];
    float before = sum[1];  // of this lane and those below
#pragma unroll
    for (u32 by = 1; by < 32; by *= 2) {
        float below = float_of(shuffle_up(bits_of(before), by));
        if (lane >= by) before += below;
    }
    before = float_of(shuffle_up(bits_of(before), 1));
    if (lane == 0) before = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        shared_store4(memory, STEP + (2 * lane + i) * 4, bits_of(dt[i]));
        shared_store4(memory, DECAY + (2 * lane + i) * 4, bits_of(before + sum[i]));
    }
}

// Four floats of a token, 0 past the chunk's end.
__device__ __forceinline__ void load4(float (&v)[4], Global<const u8> xbc, u64 at, bool is_valid) {
    uint4 words = {0, 0, 0, 0};
    if (is_valid) words = global_load16(xbc, at * 4);
    v[0] = float_of(words.x), v[1] = float_of(words.y), v[2] = float_of(words.z), v[3] = float_of(words.w);
}

extern "C" __global__ void __launch_bounds__(THREADS)
ENTRY(Global<const u8> xbc, Global<const float> xbc_floats, Global<const float> projected, Global<const float> rates, Global<const float> skips,
      Global<const float> biases, Global<const u32> row_tokens, Global<const u32> row_starts,
      Global<const u32> row_slots, Global<u32> pool, Global<float> out, Sizes sizes) {
    SHARED(memory, BYTES);
    u32 head = blockIdx.x, row = blockIdx.y;
    u32 first = row_tokens[row], count = row_tokens[row + 1] - first, start = row_starts[row];
    if (count <= sizes.short_tokens) return;
    u32 end = start + count, tail = end / CHUNK * CHUNK;
    tail = tail > start ? tail : start;
    if (end - tail <= sizes.short_tokens) end = tail;

    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, lane_g = lane / 4, lane_c = lane % 4;
    u32 group = head / (HEADS / GROUPS);
    u32 x_column = head * HEAD_DIM, b_column = INNER + group * STATE, c_column = b_column + GROUPS * STATE;
    float a = rates[head], skip = skips[head], bias = biases[head];

    // state[2q][h] and [2q + 1][h]: channel 16 warp + lane_g (+ 8 for h of 2 and 3), columns
    // 16q + 4 lane_c + 2 (h % 2), and the one after it.
    float state[16][4];
    u64 state_at = (u64(row_slots[row]) * HEADS + head) * HEAD_DIM + warp * 16 + lane_g;
#pragma unroll
    for (u32 q = 0; q < 8; q++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u64 at = (state_at + half * 8) * STATE + q * 16 + lane_c * 4;
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                state[2 * q + i % 2][half * 2 + i / 2] =
                    IS_HALF ? unpack_f16(pool[(at + i) / 2], i % 2) : float_of(pool[at + i]);
        }

    for (u32 position = start; position < end;) {
        u32 num = (position / CHUNK + 1) * CHUNK - position;
        if (num > end - position) num = end - position;
        u64 token0 = first + (position - start);
        position += num;

        if (warp == 0)
            steps(memory, projected, token0 * PROJECTED + INNER + CONV_DIM + head, num, a, bias, sizes);
        // The state, as y sees it.
#pragma unroll
        for (u32 q = 0; q < 8; q++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 at = S + ((warp * 16 + lane_g + half * 8) * PITCH_B + q * 8 + lane_c * 2) * 4;
                shared_store4(memory, at, pack_bf16x2(state[2 * q][half * 2], state[2 * q + 1][half * 2]));
                shared_store4(memory, at + 4, pack_bf16x2(state[2 * q][half * 2 + 1], state[2 * q + 1][half * 2 + 1]));
            }
#pragma unroll
        for (u32 i = 0; i < CHUNK * STATE / 4 / THREADS; i++) {
            u32 token = (i * THREADS + threadIdx.x) / (STATE / 4), column = threadIdx.x % (STATE / 4) * 4;
            float v[4];
            load4(v, xbc, (token0 + token) * CONV_DIM + b_column + column, token < num);
            u32 at = B + (token * PITCH_B + column / 2) * 4;
            shared_store4(memory, at, pack_bf16x2(v[0], v[1]));
            shared_store4(memory, at + 4, pack_bf16x2(v[2], v[3]));
        }
        // C of this warp's tokens, in the fragments of an operand a.
        u32 c[8][4];
#pragma unroll
        for (u32 q = 0; q < 8; q++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 token = warp * 16 + lane_g + half * 8;
                float v[4];
                load4(v, xbc, (token0 + token) * CONV_DIM + c_column + q * 16 + lane_c * 4, token < num);
                c[q][half] = pack_bf16x2(v[0], v[1]);
                c[q][2 + half] = pack_bf16x2(v[2], v[3]);
            }
        // x, asked for before the barrier that dt waits for.
        constexpr u32 PAIRS = CHUNK / 2 * HEAD_DIM / 4 / THREADS;
        float x[PAIRS][2][4];
#pragma unroll
        for (u32 i = 0; i < PAIRS; i++)
#pragma unroll
            for (u32 k = 0; k < 2; k++) {
                u32 token = (i * THREADS + threadIdx.x) / (HEAD_DIM / 4) * 2 + k;
                u32 channel = threadIdx.x % (HEAD_DIM / 4) * 4;
                load4(x[i][k], xbc, (token0 + token) * CONV_DIM + x_column + channel, token < num);
            }
        __syncthreads();  // dt is there
        // dt * x, two tokens to a word.
#pragma unroll
        for (u32 i = 0; i < PAIRS; i++) {
            u32 token = (i * THREADS + threadIdx.x) / (HEAD_DIM / 4) * 2, channel = threadIdx.x % (HEAD_DIM / 4) * 4;
            float dt_low = load_shared(memory, STEP + token * 4), dt_high = load_shared(memory, STEP + token * 4 + 4);
#pragma unroll
            for (u32 k = 0; k < 4; k++)
                shared_store4(memory, X + (token / 2 * PITCH_X + channel + k) * 4,
                              pack_bf16x2(dt_low * x[i][0][k], dt_high * x[i][1][k]));
        }
        __syncthreads();

        // What the state before the chunk gives to y.
        float y[8][4] = {};
#pragma unroll
        for (u32 q = 0; q < 8; q++)
#pragma unroll
            for (u32 tile = 0; tile < 8; tile++) {
                uint2 s = shared_load8(memory, S + ((tile * 8 + lane_g) * PITCH_B + q * 8 + lane_c * 2) * 4);
                mma_m16n8k16(y[tile], c[q][0], c[q][1], c[q][2], c[q][3], s.x, s.y);
            }
        u32 token_i = warp * 16 + lane_g;
        float l[2] = {load_shared(memory, DECAY + token_i * 4), load_shared(memory, DECAY + (token_i + 8) * 4)};
#pragma unroll
        for (u32 tile = 0; tile < 8; tile++)
#pragma unroll
            for (u32 h = 0; h < 4; h++) y[tile][h] *= expf(l[h / 2]);

        // What the chunk's tokens up to each give to it.
        for (u32 block = 0; block <= warp; block++) {
            float weight[2][4] = {};
#pragma unroll
            for (u32 q = 0; q < 8; q++)
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    u32 token = block * 16 + half * 8 + lane_g;
                    uint2 b = shared_load8(memory, B + (token * PITCH_B + q * 8 + lane_c * 2) * 4);
                    mma_m16n8k16(weight[half], c[q][0], c[q][1], c[q][2], c[q][3], b.x, b.y);
                }
#pragma unroll
            for (u32 half = 0; half < 2; half++)
#pragma unroll
                for (u32 h = 0; h < 4; h++) {
                    u32 token_j = block * 16 + half * 8 + lane_c * 2 + h % 2;
                    float l_j = load_shared(memory, DECAY + token_j * 4);
                    // Not for later tokens, whose exponent is large.
                    bool is_seen = token_j <= token_i + h / 2 * 8;
                    weight[half][h] = is_seen ? weight[half][h] * expf(l[h / 2] - l_j) : 0.0f;
                }
            u32 p0 = pack_bf16x2(weight[0][0], weight[0][1]), p1 = pack_bf16x2(weight[0][2], weight[0][3]);
            u32 p2 = pack_bf16x2(weight[1][0], weight[1][1]), p3 = pack_bf16x2(weight[1][2], weight[1][3]);
#pragma unroll
            for (u32 tile = 0; tile < 8; tile++) {
                u32 at = X + ((block * 8 + lane_c) * PITCH_X + tile * 8 + lane_g) * 4;
                mma_m16n8k16(y[tile], p0, p1, p2, p3, shared_load4(memory, at), shared_load4(memory, at + 4 * PITCH_X * 4));
            }
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 token = token_i + half * 8;
            if (token < num) {
                u64 from = (token0 + token) * CONV_DIM + x_column, to = (token0 + token) * INNER + x_column;
#pragma unroll
                for (u32 tile = 0; tile < 8; tile++)
#pragma unroll
                    for (u32 k = 0; k < 2; k++) {
                        u32 channel = tile * 8 + lane_c * 2 + k;
                        out[to + channel] = y[tile][half * 2 + k] + skip * xbc_floats[from + channel];
                    }
            }
        }

        // The state after the chunk.
        float last = load_shared(memory, DECAY + (CHUNK - 1) * 4), decay = expf(last);
#pragma unroll
        for (u32 tile = 0; tile < 16; tile++)
#pragma unroll
            for (u32 h = 0; h < 4; h++) state[tile][h] *= decay;
#pragma unroll
        for (u32 k = 0; k < CHUNK / TOKENS; k++) {
            u32 x[4];
#pragma unroll
            for (u32 part = 0; part < 4; part++) {
                // Tokens 2c and 2c + 1, or 8 later; channel g, or 8 later.
                u32 token = k * 16 + part / 2 * 8 + lane_c * 2, channel = warp * 16 + part % 2 * 8 + lane_g;
                float v[2];
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    v[i] = 0.0f;
                    if (token + i < num) {
                        float dt = load_shared(memory, STEP + (token + i) * 4);
                        float to_end = expf(last - load_shared(memory, DECAY + (token + i) * 4));
                        u64 at = (token0 + token + i) * CONV_DIM + x_column + channel;
                        v[i] = to_end * dt * xbc_floats[at];
                    }
                }
                x[part] = pack_bf16x2(v[0], v[1]);
            }
#pragma unroll
            for (u32 q = 0; q < 8; q++) {
                u32 b[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 token = k * 16 + i / 2 * 8 + lane_c * 2 + i % 2;
                    b[i] = shared_load4(memory, B + (token * PITCH_B + q * 8 + lane_g) * 4);
                }
                mma_m16n8k16(state[2 * q], x[0], x[1], x[2], x[3], pick_bytes(b[0], b[1], 0x5410),
                             pick_bytes(b[2], b[3], 0x5410));
                mma_m16n8k16(state[2 * q + 1], x[0], x[1], x[2], x[3], pick_bytes(b[0], b[1], 0x7632),
                             pick_bytes(b[2], b[3], 0x7632));
            }
        }
        __syncthreads();  // before the next chunk's tokens come
        if (IS_HALF) {
            // Made anew in every chunk: there is no register to keep a part of it in.
            u32 key = scramble(scramble(sizes.noise + head) + scramble(position - 1));
            u32 word = key + (warp * 16 + lane_g) * (STATE / 2) + lane_c * 2;
#pragma unroll
            for (u32 q = 0; q < 8; q++)
#pragma unroll
                for (u32 h = 0; h < 4; h++) {
                    u32 noise = scramble(word + h / 2 * 8 * (STATE / 2) + q * 8 + h % 2);
                    state[2 * q][h] = round_to_half(state[2 * q][h], noise >> 3 & 0x1fff);
                    state[2 * q + 1][h] = round_to_half(state[2 * q + 1][h], noise >> 19);
                }
        }
    }

    // Asked for again: no register is free to keep it in.
    state_at = (u64(row_slots[row]) * HEADS + head) * HEAD_DIM + warp * 16 + lane_g;
#pragma unroll
    for (u32 q = 0; q < 8; q++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u64 at = (state_at + half * 8) * STATE + q * 16 + lane_c * 4;
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                float low = state[2 * q][half * 2 + i], high = state[2 * q + 1][half * 2 + i];
                if (IS_HALF) {
                    pool[at / 2 + i] = pack_f16x2(low, high);
                } else {
                    pool[at + 2 * i] = bits_of(low);
                    pool[at + 2 * i + 1] = bits_of(high);
                }
            }
        }
}
