// Codes of weights into bf16 in registers, two at a time.

// Four FP8 codes as two registers of bf16, times 2^-120: the code's exponent and fraction where
// those of bf16 end, the sign where it belongs. The codes for NaN read as 480.
__device__ __forceinline__ void decode_fp8(u32 codes, u32& even, u32& odd) {
    even = (codes << 8 & 0x80008000) | (codes << 4 & 0x07f007f0);
    odd = (codes & 0x80008000) | (codes >> 4 & 0x07f007f0);
}

// The E4M3 block scales of this lane's part of two groups, times 2^119, each in both halves of a
// register: bytes h and 2 + h of their word, where h is 0 for the first two lanes of a quad.
__device__ __forceinline__ void decode_scales(u32 word, u32 h, u32 (&scales)[2]) {
    u32 codes = pick_bytes(word, 0, 0x2404 + h * 0x1010);  // each in the upper byte of a half
    u32 both = (codes & 0x80008000) | (codes >> 4 & 0x07f007f0);  // times 2^-120
    both = mul_bf16x2(mul_bf16x2(both, 0x7b807b80), 0x7b007b00);  // 2^120, 2^119
    scales[0] = pick_bytes(both, both, 0x1010);
    scales[1] = pick_bytes(both, both, 0x3232);
}

// Eight E2M1 codes as four registers of bf16, times 2^-126: in each the codes i and i + 4.
// Code s e e m; of bf16 the sign, the lowest two bits of the exponent and the highest of the fraction,
// which is the code's value times 2^-126. With a scale's 2^119, 2^-7 remains, and whoever stores makes
// it good. E2M1 times E4M3 has six bits: exact in bf16. Instructions are what binds this format on an
// H200, so the first two are spread by a multiplication each, which takes one less than shifts do.
__device__ __forceinline__ void decode_nvfp4(u32 codes, u32 (&w)[4]) {
    w[0] = (codes & 0x000f000f) * 0x1040 & 0x81c081c0;
    w[1] = (codes & 0x00f000f0) * 0x0104 & 0x81c081c0;
    w[2] = (codes << 4 & 0x80008000) | (codes >> 2 & 0x01c001c0);
    w[3] = (codes & 0x80008000) | (codes >> 6 & 0x01c001c0);
}
