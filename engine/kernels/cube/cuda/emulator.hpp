// Runs the kernel texts of this folder on a processor, unchanged, and stricter than a GPU would.
//
// Every thread of a block is a fiber; warps take turns in an order drawn from a seed, and a thread
// stops only where the block or its warp must meet. Blocks run one after the other.
//
// Found and fatal: an access outside a buffer or off its alignment; shared memory that was never
// written, or is read or written by two threads without a barrier between (words of four bytes);
// a cp.async whose target is touched before its thread has waited for it and, by others, before a
// barrier after that; copies in flight at a thread's end; a wgmma of what no proxy fence made
// visible, or of what is overwritten before it is waited for; a barrier or warp operation that not
// all threads reach; more static shared memory than 48 KiB.
//
// Not modelled: time, banks, the order in which tensor cores add up (here: f64, then one rounding),
// blocks that run at once, registers.
#pragma once
#define EMULATED
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <type_traits>
#include <vector>

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
struct uint2 { u32 x, y; };
struct uint3 { u32 x, y, z; };
struct uint4 { u32 x, y, z, w; };

inline uint3 threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace emulator {

constexpr u32 MAX_SHARED_BYTES = 48 * 1024;
constexpr u32 NOBODY = ~0u, MANY = ~1u;

[[noreturn]] inline void fail(const char* what, u64 at = 0, u64 of = 0) {
    std::fprintf(stderr, "emulator: %s (%llu of %llu), block (%u, %u, %u) thread %u\n", what, at, of,
                 blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
    std::exit(3);
}

// A word of shared memory: who touched it last, and in which stretch between two barriers.
struct Word {
    u32 value = 0;
    u32 writer = NOBODY, write_block_epoch = 0, write_warp_epoch = 0;
    u32 reader = NOBODY, read_block_epoch = 0, read_warp_epoch = 0;
    bool is_in_flight = false, is_unfenced = false;
};

struct Copy { u32 word; u32 value; };
using Group = std::vector<Copy>;
// A wgmma under way: what it was given.
struct Product { float* d; u32 a[4]; u64 b; bool is_committed; };

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool is_done = false;
    const u32* waits_for = nullptr;  // an epoch that must pass `seen`
    u32 seen = 0;
    Group open;
    std::deque<Group> groups;
    std::vector<u32> unfenced;  // words it wrote that wgmma may not see yet
    std::vector<Product> products;
    u32 in[8], out[4];  // of the warp operation under way
};

struct Warp {
    u32 epoch = 0, num_arrived = 0;
    const void* operation = nullptr;
};

struct Block {
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<Word> shared;
    std::map<const void*, u32> arrays;
    u32 epoch = 0, num_arrived = 0, num_done = 0, current = 0;
    ucontext_t scheduler;
    std::function<void()> body;
};
inline Block* block;

inline Thread& me() { return block->threads[block->current]; }
inline Warp& my_warp() { return block->warps[block->current / 32]; }

inline void wait_for(const u32& epoch, u32 seen) {
    Thread& thread = me();
    thread.waits_for = &epoch;
    thread.seen = seen;
    swapcontext(&thread.context, &block->scheduler);
}

// The last lane to arrive computes for all: `compute(lanes)`.
template <class F> void warp_operation(const void* operation, F compute) {
    Warp& warp = my_warp();
    if (warp.num_arrived == 0) warp.operation = operation;
    if (warp.operation != operation) fail("lanes of a warp meet at different operations");
    u32 seen = warp.epoch;
    if (++warp.num_arrived == 32) {
        compute(&block->threads[block->current / 32 * 32]);
        warp.num_arrived = 0;
        warp.epoch++;
    } else {
        wait_for(warp.epoch, seen);
    }
}

// Whether what thread `by` did in these epochs is ordered before the current thread now.
inline bool is_ordered(u32 by, u32 block_epoch, u32 warp_epoch) {
    if (by == NOBODY || by == block->current || block_epoch != block->epoch) return true;
    return by != MANY && by / 32 == block->current / 32 && warp_epoch != my_warp().epoch;
}

inline u32 read_word(u32 at) {
    Word& word = block->shared[at];
    if (word.is_in_flight) fail("shared memory read while a copy to it is in flight", at * 4);
    if (word.writer == NOBODY) fail("shared memory read before it was written", at * 4);
    if (!is_ordered(word.writer, word.write_block_epoch, word.write_warp_epoch))
        fail("shared memory read without a barrier after its write", at * 4);
    bool is_fresh = word.read_block_epoch != block->epoch || word.reader == NOBODY;
    bool is_same_warp = !is_fresh && word.reader != MANY && word.reader / 32 == block->current / 32;
    // Lanes of one warp count as the latest of them; its warp epoch is what matters.
    word.reader = is_fresh || is_same_warp ? block->current : MANY;
    if (is_same_warp && word.read_warp_epoch == my_warp().epoch && word.reader != block->current)
        word.reader = MANY;
    word.read_block_epoch = block->epoch;
    word.read_warp_epoch = my_warp().epoch;
    return word.value;
}

inline void claim_word(u32 at) {
    Word& word = block->shared[at];
    if (word.is_in_flight) fail("shared memory written while a copy to it is in flight", at * 4);
    if (!is_ordered(word.writer, word.write_block_epoch, word.write_warp_epoch))
        fail("shared memory written twice without a barrier between", at * 4);
    if (!is_ordered(word.reader, word.read_block_epoch, word.read_warp_epoch))
        fail("shared memory written without a barrier after its read", at * 4);
    word.writer = block->current;
    word.write_block_epoch = block->epoch;
    word.write_warp_epoch = my_warp().epoch;
    word.is_unfenced = true;
    me().unfenced.push_back(at);
}

inline void write_word(u32 at, u32 value) {
    claim_word(at);
    block->shared[at].value = value;
}

struct SharedArray {
    u32 start, bytes;
    u32 word(u32 byte, u32 size) const {
        if (byte % size != 0) fail("shared memory off its alignment", byte, size);
        if (byte + size > bytes) fail("outside a shared array", byte + size, bytes);
        return (start + byte) / 4;
    }
};

inline SharedArray shared_array(const void* key, u32 bytes) {
    auto found = block->arrays.find(key);
    if (found == block->arrays.end()) {
        u32 start = static_cast<u32>(block->shared.size() * 4);
        if (start + bytes > MAX_SHARED_BYTES) fail("static shared memory", start + bytes, MAX_SHARED_BYTES);
        block->shared.resize((start + bytes + 127) / 128 * 32);
        found = block->arrays.emplace(key, start).first;
    }
    return {found->second, bytes};
}

inline void enter() {
    block->body();
    Thread& thread = me();
    if (!thread.open.empty()) fail("copies without a commit at a thread's end");
    for (const Group& group : thread.groups)
        if (!group.empty()) fail("copies in flight at a thread's end");
    if (!thread.products.empty()) fail("products under way at a thread's end");
    thread.is_done = true;
    block->num_done++;
    swapcontext(&thread.context, &block->scheduler);
}

// Runs one block to its end; `seed` draws the order of warps and lanes.
inline void run_block(u32 num_threads, std::function<void()> body, u64& seed) {
    Block now;
    block = &now;
    now.body = std::move(body);
    now.threads.resize(num_threads);
    now.warps.resize((num_threads + 31) / 32);
    constexpr size_t STACK_BYTES = 64 * 1024;
    for (Thread& thread : now.threads) {
        thread.stack = std::make_unique<char[]>(STACK_BYTES);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = STACK_BYTES;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, enter, 0);
    }
    u32 num_idle_turns = 0;
    while (now.num_done < num_threads) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        u32 draw = static_cast<u32>(seed >> 33);
        // A warp at random, then each in turn, so that none starves and idle means stuck.
        u32 num_warps = static_cast<u32>(now.warps.size());
        u32 warp = (num_idle_turns ? num_idle_turns : draw) % num_warps;
        bool has_run = false;
        for (u32 lane = 0; lane < 32; lane++) {
            u32 at = warp * 32 + (draw & 1 ? 31 - lane : lane);
            if (at >= num_threads) continue;
            Thread& thread = now.threads[at];
            if (thread.is_done || (thread.waits_for && *thread.waits_for == thread.seen)) continue;
            thread.waits_for = nullptr;
            now.current = at;
            threadIdx = {at, 0, 0};
            has_run = true;
            swapcontext(&now.scheduler, &thread.context);
        }
        num_idle_turns = has_run ? 0 : num_idle_turns + 1;
        if (num_idle_turns > 2 * num_warps) fail("threads wait for others that never come", now.num_done, num_threads);
    }
}

// Device memory of one buffer.
struct Memory {
    std::vector<u32> words;  // aligned for 16-byte vectors by the allocator
    size_t bytes = 0;
    u8* data() { return reinterpret_cast<u8*>(words.data()); }
};

inline float bf16_value(u32 half) {
    u32 bits = half << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline u32 bf16_bits(float value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    if (std::isnan(value)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace emulator

// A pointer that knows its buffer.
template <class T> struct Global {
    T* start = nullptr;
    size_t len = 0;
    Global() = default;
    explicit Global(emulator::Memory& memory)
        : start(reinterpret_cast<T*>(memory.data())), len(memory.bytes / sizeof(T)) {}
    T& operator[](u64 at) const {
        if (at >= len) emulator::fail("outside a buffer", at, len);
        return start[at];
    }
    T* wide(u64 byte, u64 size) const {
        static_assert(sizeof(T) == 1);
        if (byte % size != 0) emulator::fail("device memory off its alignment", byte, size);
        if (byte + size > len) emulator::fail("outside a buffer", byte + size, len);
        return start + byte;
    }
};
using Shared = emulator::SharedArray;
#define SHARED(name, bytes)       \
    static const char name##_key = 0; \
    Shared name = emulator::shared_array(&name##_key, bytes)

inline void __syncthreads() {
    using namespace emulator;
    u32 seen = block->epoch;
    if (++block->num_arrived == block->threads.size()) {
        block->num_arrived = 0;
        block->epoch++;
    } else {
        wait_for(block->epoch, seen);
    }
}
inline void __syncwarp() {
    static const char key = 0;
    emulator::warp_operation(&key, [](emulator::Thread*) {});
}

inline uint4 global_load16(Global<const u8> from, u64 byte) {
    uint4 v;
    std::memcpy(&v, from.wide(byte, 16), 16);
    return v;
}
inline void global_store16(Global<u8> to, u64 byte, uint4 v) { std::memcpy(to.wide(byte, 16), &v, 16); }
inline void global_store4(Global<u8> to, u64 byte, u32 v) { std::memcpy(to.wide(byte, 4), &v, 4); }
inline void global_store2(Global<u8> to, u64 byte, u16 v) { std::memcpy(to.wide(byte, 2), &v, 2); }

inline u32 shared_load4(Shared from, u32 byte) { return emulator::read_word(from.word(byte, 4)); }
inline uint2 shared_load8(Shared from, u32 byte) {
    u32 at = from.word(byte, 8);
    return {emulator::read_word(at), emulator::read_word(at + 1)};
}
inline uint4 shared_load16(Shared from, u32 byte) {
    u32 at = from.word(byte, 16);
    return {emulator::read_word(at), emulator::read_word(at + 1), emulator::read_word(at + 2),
            emulator::read_word(at + 3)};
}
inline void shared_store4(Shared to, u32 byte, u32 v) { emulator::write_word(to.word(byte, 4), v); }
inline void shared_store16(Shared to, u32 byte, uint4 v) {
    u32 at = to.word(byte, 16), values[4] = {v.x, v.y, v.z, v.w};
    for (u32 i = 0; i < 4; i++) emulator::write_word(at + i, values[i]);
}

namespace emulator {
inline void cp_async(SharedArray to, u32 byte, Global<const u8> from, u64 at, bool is_valid, u32 size) {
    u32 word = to.word(byte, size), values[4] = {0, 0, 0, 0};
    if (is_valid) std::memcpy(values, from.wide(at, size), size);
    for (u32 i = 0; i < size / 4; i++) {
        claim_word(word + i);
        block->shared[word + i].is_in_flight = true;
        me().open.push_back({word + i, values[i]});
    }
}
}  // namespace emulator
inline void cp_async16(Shared to, u32 byte, Global<const u8> from, u64 at, bool is_valid) {
    emulator::cp_async(to, byte, from, at, is_valid, 16);
}
inline void cp_async4(Shared to, u32 byte, Global<const u8> from, u64 at, bool is_valid) {
    emulator::cp_async(to, byte, from, at, is_valid, 4);
}
inline void cp_async_commit() {
    emulator::Thread& thread = emulator::me();
    thread.groups.push_back(std::move(thread.open));
    thread.open.clear();
}
template <int NUM> void cp_async_wait() {
    using namespace emulator;
    Thread& thread = me();
    while (thread.groups.size() > NUM) {
        for (const Copy& copy : thread.groups.front()) {
            block->shared[copy.word].is_in_flight = false;
            write_word(copy.word, copy.value);
        }
        thread.groups.pop_front();
    }
}

inline float float_of(u32 bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline u32 bits_of(float value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline u32 pack_bf16x2(float low, float high) {
    return emulator::bf16_bits(low) | emulator::bf16_bits(high) << 16;
}
inline float unpack_f16(u32 word, u32 index) {
    u32 half = word >> index * 16 & 0xffff, exponent = half >> 10 & 31, fraction = half & 0x3ff;
    float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                 : exponent == 0 ? std::ldexp(float(fraction), -24)
                                 : std::ldexp(float(fraction | 0x400), int(exponent) - 25);
    return half & 0x8000 ? -size : size;
}
inline u32 pack_f16x2(float low, float high) {
    auto bits = [](float value) -> u32 {
        u32 sign = std::signbit(value) ? 0x8000 : 0;
        if (std::isnan(value)) return 0x7fff;
        float size = std::fabs(value);
        int exponent = 0;
        std::frexp(size, &exponent);
        // Steps of 2^-24 below 2^-14, of the eleventh bit above.
        int last = std::max(exponent, -13) - 11;
        float fraction = std::ldexp(size, -last);
        if (fraction != std::floor(fraction) || size > 65504.0f)
            emulator::fail("not a half", bits_of(value), 0);
        u32 steps = u32(fraction);
        return sign | (size < 6.103515625e-05f ? steps : u32(last + 25) << 10 | (steps & 0x3ff));
    };
    return bits(low) | bits(high) << 16;
}
inline u32 mul_bf16x2(u32 a, u32 b) {
    // The f32 product of two bf16 numbers is exact, or beyond what bf16 holds.
    float low = emulator::bf16_value(a & 0xffff) * emulator::bf16_value(b & 0xffff);
    float high = emulator::bf16_value(a >> 16) * emulator::bf16_value(b >> 16);
    return pack_bf16x2(low, high);
}
inline float power_of_2(float x) {
    float y = std::exp2(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}
inline u32 pick_bytes(u32 a, u32 b, u32 select) {
    u64 bytes = static_cast<u64>(b) << 32 | a;
    u32 result = 0;
    for (u32 i = 0; i < 4; i++) {
        u32 picked = select >> (4 * i) & 15, byte = static_cast<u32>(bytes >> (picked % 8 * 8)) & 0xff;
        if (picked >= 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << (8 * i);
    }
    return result;
}

inline void mma_m16n8k16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    using namespace emulator;
    static const char key = 0;
    Thread& thread = me();
    u32 in[6] = {a0, a1, a2, a3, b0, b1};
    std::memcpy(thread.in, in, sizeof in);
    std::memcpy(thread.out, d, 16);
    warp_operation(&key, [](Thread* lanes) {
        // PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
        float a[16][16], b[8][16];
        for (u32 lane = 0; lane < 32; lane++) {
            u32 group = lane >> 2, in_group = lane & 3;
            for (u32 i = 0; i < 8; i++) {
                u32 row = (i / 2) % 2 == 0 ? group : group + 8;
                u32 column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
                a[row][column] = bf16_value(lanes[lane].in[i / 2] >> (i % 2 * 16) & 0xffff);
            }
            for (u32 i = 0; i < 4; i++) {
                u32 row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
                b[group][row] = bf16_value(lanes[lane].in[4 + i / 2] >> (i % 2 * 16) & 0xffff);
            }
        }
        for (u32 lane = 0; lane < 32; lane++) {
            u32 group = lane >> 2, in_group = lane & 3;
            for (u32 i = 0; i < 4; i++) {
                u32 row = i < 2 ? group : group + 8, column = in_group * 2 + (i & 1);
                double sum = float_of(lanes[lane].out[i]);
                for (u32 k = 0; k < 16; k++)
                    sum += static_cast<double>(a[row][k]) * static_cast<double>(b[column][k]);
                lanes[lane].out[i] = bits_of(static_cast<float>(sum));
            }
        }
    });
    std::memcpy(d, thread.out, 16);
}

// -- Hopper --------------------------------------------------------------------------------------

inline void fence_async_proxy() {
    for (u32 at : emulator::me().unfenced)
        if (emulator::block->shared[at].writer == emulator::block->current) emulator::block->shared[at].is_unfenced = false;
    emulator::me().unfenced.clear();
}
inline u32 shared_address(Shared from, u32 byte) { return from.start + byte; }
inline void wgmma_fence() {}
inline void wgmma_m64n128k16(float (&d)[16][4], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
    emulator::me().products.push_back({&d[0][0], {a0, a1, a2, a3}, b, false});
}
inline void wgmma_commit() {
    for (emulator::Product& product : emulator::me().products) product.is_committed = true;
}
// Only now are the products made: what became of shared memory meanwhile shows.
inline void wgmma_wait() {
    using namespace emulator;
    static const char key = 0;
    warp_operation(&key, [](Thread* lanes) {
        for (size_t at = 0; at < lanes[0].products.size(); at++) {
            u64 b = lanes[0].products[at].b;
            u32 start = (b & 0x3fff) << 4, leading = (b >> 16 & 0x3fff) << 4, stride = (b >> 32 & 0x3fff) << 4;
            if (b >> 46 != 0) fail("only operands without swizzle are emulated");
            for (u32 lane = 0; lane < 32; lane++) {
                if (lanes[lane].products.size() != lanes[0].products.size() || lanes[lane].products[at].b != b)
                    fail("lanes of a warp make different products");
                if (!lanes[lane].products[at].is_committed) fail("products without a commit");
            }
            float a[16][16];
            for (u32 lane = 0; lane < 32; lane++)
                for (u32 i = 0; i < 8; i++) {
                    u32 half = lanes[lane].products[at].a[i / 2] >> (i % 2 * 16) & 0xffff;
                    a[(lane >> 2) + i / 2 % 2 * 8][(lane & 3) * 2 + (i & 1) + i / 4 * 8] = bf16_value(half);
                }
            for (u32 column = 0; column < 128; column++) {
                float values[16];
                for (u32 k = 0; k < 16; k += 2) {
                    // PTX ISA, "Strides": core matrices of 8 by 16 bytes.
                    u32 byte = start + column / 8 * stride + column % 8 * 16 + k / 8 * leading + k % 8 * 2;
                    if (block->shared[byte / 4].is_unfenced) fail("a product reads what no proxy fence let it see", byte);
                    u32 pair = read_word(byte / 4);
                    values[k] = bf16_value(pair & 0xffff);
                    values[k + 1] = bf16_value(pair >> 16);
                }
                for (u32 row = 0; row < 16; row++) {
                    u32 lane = row % 8 * 4 + column % 8 / 2, i = row / 8 * 2 + column % 2;
                    float& d = lanes[lane].products[at].d[column / 8 * 4 + i];
                    double sum = d;
                    for (u32 k = 0; k < 16; k++)
                        sum += static_cast<double>(a[row][k]) * static_cast<double>(values[k]);
                    d = static_cast<float>(sum);
                }
            }
        }
        for (u32 lane = 0; lane < 32; lane++) lanes[lane].products.clear();
    });
}

inline u32 shuffle_up(u32 value, u32 by) {
    using namespace emulator;
    static const char key = 0;
    Thread& thread = me();
    thread.in[0] = value;
    thread.in[1] = by;
    warp_operation(&key, [](Thread* lanes) {
        for (u32 lane = 0; lane < 32; lane++)
            lanes[lane].out[0] = lanes[lane < lanes[lane].in[1] ? lane : lane - lanes[lane].in[1]].in[0];
    });
    return thread.out[0];
}

inline u32 shuffle_xor(u32 value, u32 by) {
    using namespace emulator;
    static const char key = 0;
    Thread& thread = me();
    thread.in[0] = value;
    thread.in[1] = by;
    warp_operation(&key, [](Thread* lanes) {
        for (u32 lane = 0; lane < 32; lane++) lanes[lane].out[0] = lanes[lane ^ lanes[lane].in[1]].in[0];
    });
    return thread.out[0];
}

// -- the program around the kernels ----------------------------------------------------------------

namespace emulator {

// Reads a launch from the file: kernel number, grid, threads, seed, sizes, buffers.
struct Launch {
    u32 kernel = 0, threads = 0, seed = 0;
    uint3 grid = {0, 0, 0};
    std::vector<u32> sizes;
    std::vector<Memory> memories;

    static u32 word(std::FILE* file) {
        u32 value;
        if (std::fread(&value, 4, 1, file) != 1) std::exit(4);
        return value;
    }
    explicit Launch(std::FILE* file) {
        kernel = word(file);
        grid.x = word(file), grid.y = word(file), grid.z = word(file);
        threads = word(file), seed = word(file);
        sizes.resize(word(file));
        for (u32& size : sizes) size = word(file);
        memories.resize(word(file));
        for (Memory& memory : memories) {
            memory.bytes = word(file);
            memory.words.resize((memory.bytes + 3) / 4 + 4);
            if (std::fread(memory.data(), 1, memory.bytes, file) != memory.bytes) std::exit(4);
        }
    }
    // Writes what the buffers hold now.
    void finish(std::FILE* file) {
        for (Memory& memory : memories) std::fwrite(memory.data(), 1, memory.bytes, file);
    }
};


template <class T> struct Argument;
template <class T> struct Argument<Global<T>> {
    static Global<T> of(Launch& launch, size_t at) { return Global<T>(launch.memories.at(at)); }
};
// Sizes: the last argument, passed by value.
template <class T> struct Argument {
    static T of(Launch& launch, size_t) {
        T sizes;
        static_assert(std::is_trivially_copyable_v<T>);
        if (launch.sizes.size() * 4 < sizeof(T)) fail("too few sizes", launch.sizes.size() * 4, sizeof(T));
        std::memcpy(&sizes, launch.sizes.data(), sizeof(T));
        return sizes;
    }
};

template <class... P, size_t... I>
void run(void (*kernel)(P...), Launch& launch, std::index_sequence<I...>) {
    u64 seed = launch.seed;
    gridDim = launch.grid;
    blockDim = {launch.threads, 1, 1};
    for (u32 z = 0; z < gridDim.z; z++)
        for (u32 y = 0; y < gridDim.y; y++)
            for (u32 x = 0; x < gridDim.x; x++) {
                blockIdx = {x, y, z};
                run_block(launch.threads, [&] { kernel(Argument<P>::of(launch, I)...); }, seed);
            }
}
template <class... P> void run(void (*kernel)(P...), Launch& launch) {
    run(kernel, launch, std::index_sequence_for<P...>());
}

}  // namespace emulator
