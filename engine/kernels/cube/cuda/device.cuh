// What the kernel texts of this folder use of the machine: inline PTX here, functions in
// emulator.hpp where the same text runs on a processor. Texts name no instruction themselves.
#ifndef EMULATED
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// Device memory; the emulator checks every access against its buffer.
template <class T> using Global = T*;
// Shared memory, addressed in bytes; the emulator looks for races in it.
using Shared = u8*;
#define SHARED(name, bytes) __shared__ __align__(128) u8 name[bytes]

// -- memory --------------------------------------------------------------------------------------

__device__ __forceinline__ uint4 global_load16(Global<const u8> from, u64 byte) {
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from + byte));
    return v;
}
__device__ __forceinline__ void global_store16(Global<u8> to, u64 byte, uint4 v) {
    *reinterpret_cast<uint4*>(to + byte) = v;
}
__device__ __forceinline__ void global_store4(Global<u8> to, u64 byte, u32 v) {
    *reinterpret_cast<u32*>(to + byte) = v;
}
__device__ __forceinline__ void global_store2(Global<u8> to, u64 byte, u16 v) {
    *reinterpret_cast<u16*>(to + byte) = v;
}

__device__ __forceinline__ uint4 shared_load16(Shared from, u32 byte) {
    return *reinterpret_cast<const uint4*>(from + byte);
}
__device__ __forceinline__ uint2 shared_load8(Shared from, u32 byte) {
    return *reinterpret_cast<const uint2*>(from + byte);
}
__device__ __forceinline__ u32 shared_load4(Shared from, u32 byte) {
    return *reinterpret_cast<const u32*>(from + byte);
}
__device__ __forceinline__ void shared_store4(Shared to, u32 byte, u32 v) {
    *reinterpret_cast<u32*>(to + byte) = v;
}
__device__ __forceinline__ void shared_store16(Shared to, u32 byte, uint4 v) {
    *reinterpret_cast<uint4*>(to + byte) = v;
}

// A copy of 16 bytes past the registers, or of 16 zeros, wherever `at` is. L2 fetches the whole
// line of 128.
__device__ __forceinline__ void cp_async16(Shared to, u32 byte, Global<const u8> from, u64 at,
                                           bool is_valid) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(to + byte));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :: "r"(address), "l"(from + at), "r"(is_valid ? 16 : 0) : "memory");
}
// Of 4 bytes.
__device__ __forceinline__ void cp_async4(Shared to, u32 byte, Global<const u8> from, u64 at,
                                          bool is_valid) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(to + byte));
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 4, %2;"
                 :: "r"(address), "l"(from + at), "r"(is_valid ? 4 : 0) : "memory");
}
// Closes the group of this thread's copies since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all of this thread's groups but the newest NUM.
template <int NUM> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(NUM) : "memory");
}

// -- arithmetic ----------------------------------------------------------------------------------

__device__ __forceinline__ float float_of(u32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ u32 bits_of(float value) { return __float_as_uint(value); }

// Two floats rounded to bf16, to nearest even; `low` in the lower half.
__device__ __forceinline__ u32 pack_bf16x2(float low, float high) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
// The half in the lower or upper half of a word.
__device__ __forceinline__ float unpack_f16(u32 word, u32 index) {
    float d;
    asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(static_cast<u16>(word >> index * 16)));
    return d;
}
// Two floats that half has; `low` in the lower half.
__device__ __forceinline__ u32 pack_f16x2(float low, float high) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
// Both halves: a * b rounded to bf16. Subnormal operands keep their value.
__device__ __forceinline__ u32 mul_bf16x2(u32 a, u32 b) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));
    return d;
}
// 2^x to two units in the last place, 0 for what would be subnormal.
__device__ __forceinline__ float power_of_2(float x) {
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}
// Bytes of {b, a} (b the upper four) picked by the nibbles of `select`.
__device__ __forceinline__ u32 pick_bytes(u32 a, u32 b, u32 select) { return __byte_perm(a, b, select); }

// d[16, 8] += a[16, 16] b[16, 8] by a warp, in the fragments of mma.m16n8k16.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0,
                                             u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The value of the lane `by` below, of its own where there is none. By the whole warp.
__device__ __forceinline__ u32 shuffle_up(u32 value, u32 by) {
    return __shfl_up_sync(0xffffffffu, value, by);
}
// The value of the lane whose number differs in the bits of `by`. By the whole warp.
__device__ __forceinline__ u32 shuffle_xor(u32 value, u32 by) {
    return __shfl_xor_sync(0xffffffffu, value, by);
}
#endif
