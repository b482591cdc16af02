// Puts the splits of a token's head together, in order: a thread four channels. Bound by the bytes
// of the partial results.
struct Sizes {
    u32 first, len, num_splits, num_parts, heads, v_scale;
};

extern "C" __global__ void ENTRY(Global<const u8> sums, Global<const float> partial,
                                 Global<const u32> token_positions, Global<u8> out, Sizes sizes) {
    constexpr u32 VECTORS = HEAD_DIM / 4;
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= sizes.len) return;
    u32 part = i / VECTORS, position = token_positions[sizes.first + part / sizes.heads];
    float all_top = LOWEST, all_mass = 0.0f, all_sum[4] = {};
    for (u32 split = 0; split_start(split) <= position; split++) {
        u64 at = u64(part) * sizes.num_splits + split, scales = u64(sizes.num_parts) * HEAD_DIM + at * 2;
        Merged merged = merge(all_top, all_mass, partial[scales], partial[scales + 1]);
        uint4 words = global_load16(sums, (at * VECTORS + i % VECTORS) * 16);
        float sum[4] = {float_of(words.x), float_of(words.y), float_of(words.z), float_of(words.w)};
#pragma unroll
        for (u32 c = 0; c < 4; c++) all_sum[c] = fmaf(sum[c], merged.share, all_sum[c] * merged.fade);
    }
    float factor = float_of(sizes.v_scale) / all_mass;
    u64 to = (u64(sizes.first) * sizes.heads * VECTORS + i) * 16;
    global_store16(out, to, {bits_of(all_sum[0] * factor), bits_of(all_sum[1] * factor),
                             bits_of(all_sum[2] * factor), bits_of(all_sum[3] * factor)});
}
