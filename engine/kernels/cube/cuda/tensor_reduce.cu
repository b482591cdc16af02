// y[t, n] = epilogue(scale * sum over slices of partial[slice, t, n] + bias), slices in ascending
// order. The partials lie in L2: 4 bytes per slice and output.
struct Sizes { u32 num, n, num_slices, flags; };  // 1: bias; 2: max(y, 0)^2

extern "C" __global__ void __launch_bounds__(256)
ENTRY(Global<const float> partial, Global<const float> scales, Global<const float> bias, Global<u8> out,
      Sizes sizes) {
    u32 at = blockIdx.x * 256 + threadIdx.x;
    if (at >= sizes.num) return;
    float value = 0.0f;
#pragma unroll 4
    for (u32 slice = 0; slice < sizes.num_slices; slice++)
        value += partial[static_cast<u64>(slice) * sizes.num + at];
    if constexpr (FORMAT != BF16) value *= scales[0] * (FORMAT == NVFP4 ? 128.0f : 1.0f);
    if (sizes.flags & 1) value += bias[at % sizes.n];
    if (sizes.flags & 2) value = value <= 0.0f ? 0.0f : value * value;  // NaN stays
    global_store4(out, static_cast<u64>(at) * 4, bits_of(value));
}
