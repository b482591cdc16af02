// x[t, k] in f32 to bf16, each 32 columns in the order that a product pairs its weights' in (`paired`
// in tensor_tile.cuh). Bytes: 6 per element; bound by memory. A large product reads x once per 128
// outputs, so it pays to round it once.
//
// Set in front of this text: HOP (1, 2, 4), IS_WGMMA.
struct Sizes { u32 num_vectors; };

extern "C" __global__ void __launch_bounds__(256)
ENTRY(Global<const u8> x, Global<u8> out, Sizes sizes) {
    u32 at = blockIdx.x * 256 + threadIdx.x;
    if (at >= sizes.num_vectors) return;
    uint4 a = global_load16(x, static_cast<u64>(at) * 32), b = global_load16(x, static_cast<u64>(at) * 32 + 16);
    float v[8] = {float_of(a.x), float_of(a.y), float_of(a.z), float_of(a.w),
                  float_of(b.x), float_of(b.y), float_of(b.z), float_of(b.w)};
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int low = i / HOP * 2 * HOP + i % HOP;
        pairs[i] = pack_bf16x2(v[low], v[low + HOP]);
    }
    if constexpr (IS_WGMMA) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            global_store4(out, static_cast<u64>(at / 4) * 64 + i * 16 + at % 4 * 4, pairs[i]);
    } else {
        global_store16(out, static_cast<u64>(at) * 16, uint4{pairs[0], pairs[1], pairs[2], pairs[3]});
    }
}
