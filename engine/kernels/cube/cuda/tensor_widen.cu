// A weight matrix of FP8 or NVFP4 in bf16, its columns in their order, for a library that multiplies
// bf16 alone. Exact: the matrix's own scale stays out and follows the weights in f32, and after it a
// zero, as the library reads its two factors. Bytes: 3 per weight of FP8, 2.56 of NVFP4; bound by memory.
//
// Set in front of this text: FORMAT (FP8, NVFP4).
struct Sizes { u32 num_vectors; };  // 16 bytes of codes each

constexpr int WORDS = FORMAT == FP8 ? 2 : 4;  // of bf16, per word of codes

extern "C" __global__ void __launch_bounds__(256)
ENTRY(Global<const u8> words, Global<const u8> block_scales, Global<const float> scales, Global<u8> out,
      Sizes sizes) {
    u32 at = blockIdx.x * 256 + threadIdx.x;
    u64 bytes = static_cast<u64>(WORDS) * 16;
    if (at == 0) {
        global_store4(out, sizes.num_vectors * bytes, bits_of(scales[0]));
        global_store4(out, sizes.num_vectors * bytes + 4, 0);
    }
    if (at >= sizes.num_vectors) return;
    uint4 v = global_load16(words, static_cast<u64>(at) * 16);
    u32 codes[4] = {v.x, v.y, v.z, v.w};
    if constexpr (FORMAT == FP8) {
        u32 pairs[8];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 even, odd;
            decode_fp8(codes[i], even, odd);
            even = mul_bf16x2(even, 0x7b807b80), odd = mul_bf16x2(odd, 0x7b807b80);  // 2^120
            pairs[2 * i] = pick_bytes(even, odd, 0x5410), pairs[2 * i + 1] = pick_bytes(even, odd, 0x7632);
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
            global_store16(out, at * bytes + i * 16,
                           uint4{pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]});
    } else {
        u32 scale[2];
        decode_scales(block_scales[static_cast<u64>(at) * 2] | block_scales[static_cast<u64>(at) * 2 + 1] << 16, 0,
                      scale);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 w[4];
            decode_nvfp4(codes[i], w);
#pragma unroll
            for (int j = 0; j < 4; j++) w[j] = mul_bf16x2(mul_bf16x2(w[j], scale[i / 2]), 0x43004300);  // 2^7
            global_store16(out, at * bytes + i * 16,
                           uint4{pick_bytes(w[0], w[1], 0x5410), pick_bytes(w[2], w[3], 0x5410),
                                 pick_bytes(w[0], w[1], 0x7632), pick_bytes(w[2], w[3], 0x7632)});
        }
    }
}
