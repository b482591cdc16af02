// y[t, n] = sum over a token's experts, ids ascending, of weight * pairs[t * top_k + slot, n]. An id
// that is not below num_experts belongs to another device and adds nothing. Bytes: 4 per pair and
// output.
constexpr u32 MAX_TOP_K = 64;
struct Sizes { u32 n, top_k, num_experts; };

extern "C" __global__ void __launch_bounds__(256)
ENTRY(Global<const float> pairs, Global<const u32> experts, Global<const float> weights, Global<u8> out,
      Sizes sizes) {
    SHARED(order, MAX_TOP_K * 4);
    u64 first = static_cast<u64>(blockIdx.y) * sizes.top_k;
    if (threadIdx.x < sizes.top_k) {
        u32 mine = experts[first + threadIdx.x], rank = 0;
        for (u32 slot = 0; slot < sizes.top_k; slot++) {
            u32 other = experts[first + slot];
            rank += other < mine || (other == mine && slot < threadIdx.x);
        }
        shared_store4(order, rank * 4, mine < sizes.num_experts ? threadIdx.x : ~0u);
    }
    __syncthreads();
    u32 at = blockIdx.x * 256 + threadIdx.x;
    if (at >= sizes.n) return;
    float sum = 0.0f;
    for (u32 rank = 0; rank < sizes.top_k; rank++) {
        u32 slot = shared_load4(order, rank * 4);
        if (slot == ~0u) break;  // so are all that follow
        sum += weights[first + slot] * pairs[(first + slot) * sizes.n + at];
    }
    global_store4(out, (static_cast<u64>(blockIdx.y) * sizes.n + at) * 4, bits_of(sum));
}
