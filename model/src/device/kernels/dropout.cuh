// Dropout whose masks are a function of (stream, step, site, row, part, column), bit for bit those of the processor (model/src/fused/dropout.rs): a value has 16 bits
// of a Philox block. Column 128·g + 64·h + 16·w + i is half h of word w of block 16·g + i.

struct Mask {
    u32 key0, key1, step;
    // site << 16 | step, bits 32 to 47
    u32 last;
    u32 row_offset;
    // Values are dropped if their bits are below it; 0: none.
    u32 threshold;
    // The number that each row has in its batch; null: its own.
    const u32* numbers;

    __device__ __forceinline__ u32 number(u32 row) const { return row_offset + (numbers ? numbers[row] : row); }
    __device__ __forceinline__ float scale() const { return 65536.0f / (float)(65536u - threshold); }
};

#define MASK_PARAMETERS u32 key0, u32 key1, u32 step, u32 last, u32 row_offset, u32 threshold, const u32 *numbers
#define MASK_ARGUMENTS Mask{key0, key1, step, last, row_offset, threshold, numbers}

struct Words { u32 at[4]; };

// Philox4x32-10.
__device__ __forceinline__ Words philox(u32 a, u32 b, u32 c, u32 d, u32 key0, u32 key1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 first = 0xD2511F53ull * a, second = 0xCD9E8D57ull * c;
        a = (u32)(second >> 32) ^ b ^ key0;
        b = (u32)second;
        c = (u32)(first >> 32) ^ d ^ key1;
        d = (u32)first;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return Words{{a, b, c, d}};
}

// Whether the value at `column` of `part` is dropped.
__device__ __forceinline__ bool is_dropped(const Mask& mask, u32 number, u32 part, u32 column) {
    const Words words = philox((part << 16) + column / 128 * 16 + column % 16, number, mask.step, mask.last, mask.key0, mask.key1);
    const u32 word = column % 64 / 16 == 0 ? words.at[0] : column % 64 / 16 == 1 ? words.at[1] : column % 64 / 16 == 2 ? words.at[2] : words.at[3];
    return (column / 64 % 2 ? word >> 16 : word & 0xffff) < mask.threshold;
}

// Of the 256 columns from `first` on, a multiple of 256, which of this lane's eight (first + 8 · lane ..) are dropped, a bit each. All lanes of the warp take part: a
// lane makes one block, which serves eight columns, and a vote hands out the bits.
__device__ __forceinline__ u32 dropped_of_eight(const Mask& mask, u32 number, u32 part, u32 first) {
    const u32 lane = threadIdx.x % WARP;
    const Words words = philox((part << 16) + first / 8 + lane, number, mask.step, mask.last, mask.key0, mask.key1);
    u32 mine = 0;
#pragma unroll
    for (u32 place = 0; place < 8; place++) {
        const u32 half = place / 4, word = words.at[place % 4];
        const u32 votes = __ballot_sync(WHOLE_WARP, (half ? word >> 16 : word & 0xffff) < mask.threshold);
        if (lane % 16 / 2 == place) mine = votes >> (lane / 16 * 16 + lane % 2 * 8) & 0xff;
    }
    return mine;
}

__device__ __forceinline__ void drop_eight(Eight& x, u32 dropped, float scale) { EACH_OF_EIGHT(i) x.at[i] = dropped >> i & 1 ? 0.0f : x.at[i] * scale; }
