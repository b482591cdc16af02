// Where contexts are cut, and how the parts are put together: the same bits wherever it is done.
// The products are written as calls, so that no compiler fuses them here and not there.

// Below every score; finite, so that differences of two are.
constexpr float LOWEST = -1e30f;

// The first position of a split, or of none.
__device__ __forceinline__ u32 split_start(u32 split) {
    constexpr u32 FIRST_OF_256 = SECOND / 64, FIRST_OF_512 = FIRST_OF_256 + (THIRD - SECOND) / 256;
    if (split >= FIRST_OF_512) return THIRD + (split - FIRST_OF_512) * 512;
    if (split >= FIRST_OF_256) return SECOND + (split - FIRST_OF_256) * 256;
    return split * 64;
}

// What the sums of those before and of this one are to be multiplied by.
struct Merged {
    float fade, share;
};

// Adds a split of that largest score and sum of weights to those before it.
__device__ __forceinline__ Merged merge(float& all_top, float& all_mass, float top, float mass) {
    float highest = top > all_top ? top : all_top;
    float fade = power_of_2(all_top - highest), share = power_of_2(top - highest);
    all_top = highest;
    all_mass = fmaf(mass, share, all_mass * fade);
    return {fade, share};
}
