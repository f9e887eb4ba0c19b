// What all kernels use. Compiled three times: REAL = FLOAT32, BFLOAT16 and FLOAT16 (the narrow ones with sums in float32). Nothing is included on a device, so
// that the run-time compiler needs no headers; EMULATED is the processor (tests/gpu/emulator).

#define FLOAT32 0
#define BFLOAT16 1
#define FLOAT16 2

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;

#define WARP 32
#define WHOLE_WARP 0xffffffffu

#ifndef EMULATED
// THREADS is the size of its blocks.
#define KERNEL(NAME, THREADS, ...) extern "C" __global__ void __launch_bounds__(THREADS) NAME(__VA_ARGS__)
extern __shared__ __align__(16) u8 dynamic_shared[];
#define DYNAMIC_SHARED(NAME) u8* NAME = dynamic_shared
#define INFINITE __int_as_float(0x7f800000)
#endif

// Of narrow numbers: to the nearest, ties to even, and two of them in 32 bits, the first one low.
#if REAL == BFLOAT16
struct real { unsigned short bits; };

__device__ __forceinline__ float to_float(real x) { return __uint_as_float((u32)x.bits << 16); }

__device__ __forceinline__ real to_real(float x) {
    real rounded;
#ifdef EMULATED
    u32 bits = __float_as_uint(x);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    rounded.bits = is_nan ? 0x7fff : (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
#endif
    return rounded;
}

__device__ __forceinline__ float first_of(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float second_of(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
#elif REAL == FLOAT16
struct real { unsigned short bits; };

__device__ __forceinline__ float to_float(real x) {
#ifdef EMULATED
    return emulator::of_half(x.bits);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
#endif
}

__device__ __forceinline__ real to_real(float x) {
    real rounded;
#ifdef EMULATED
    rounded.bits = emulator::to_half(x);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
#endif
    return rounded;
}

__device__ __forceinline__ float first_of(u32 pair) { return to_float(real{(unsigned short)pair}); }
__device__ __forceinline__ float second_of(u32 pair) { return to_float(real{(unsigned short)(pair >> 16)}); }
#else
typedef float real;

__device__ __forceinline__ float to_float(real x) { return x; }
__device__ __forceinline__ real to_real(float x) { return x; }
#endif

// Eight numbers in a row: what a thread reads or writes at a time. Their place is a multiple of eight.
struct Eight { float at[8]; };
#define EACH_OF_EIGHT(I) _Pragma("unroll") for (int I = 0; I < 8; I++)

__device__ __forceinline__ Eight load_floats(const float* from) {
    Eight out;
    const float4 low = ((const float4*)from)[0], high = ((const float4*)from)[1];
    out.at[0] = low.x; out.at[1] = low.y; out.at[2] = low.z; out.at[3] = low.w;
    out.at[4] = high.x; out.at[5] = high.y; out.at[6] = high.z; out.at[7] = high.w;
    return out;
}

__device__ __forceinline__ void store_floats(float* to, const Eight& x) {
    ((float4*)to)[0] = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]);
    ((float4*)to)[1] = make_float4(x.at[4], x.at[5], x.at[6], x.at[7]);
}

#if REAL != FLOAT32
__device__ __forceinline__ u32 pack(float first, float second) {
#ifdef EMULATED
    return (u32)to_real(first).bits | (u32)to_real(second).bits << 16;
#else
    u32 pair;
#if REAL == BFLOAT16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#endif
    return pair;
#endif
}

__device__ __forceinline__ Eight load_eight(const real* from) {
    const uint4 bits = *(const uint4*)from;
    const u32 pairs[4] = {bits.x, bits.y, bits.z, bits.w};
    Eight out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out.at[2 * i] = first_of(pairs[i]);
        out.at[2 * i + 1] = second_of(pairs[i]);
    }
    return out;
}

__device__ __forceinline__ void store_eight(real* to, const Eight& x) {
    *(uint4*)to = make_uint4(pack(x.at[0], x.at[1]), pack(x.at[2], x.at[3]), pack(x.at[4], x.at[5]), pack(x.at[6], x.at[7]));
}
#else
__device__ __forceinline__ Eight load_eight(const real* from) { return load_floats(from); }
__device__ __forceinline__ void store_eight(real* to, const Eight& x) { store_floats(to, x); }
#endif

struct Four { float at[4]; };
#define EACH_OF_FOUR(I) _Pragma("unroll") for (int I = 0; I < 4; I++)

// The logits of four words from `word` on, a multiple of four. Words from `vocabulary` on have −∞; the row goes on until the next multiple of four.
__device__ __forceinline__ Four load_logits(const float* row, const float* bias, u32 word, u32 vocabulary) {
    const float4 x = *(const float4*)(row + word);
    Four out = {{x.x, x.y, x.z, x.w}};
    if (word + 4 <= vocabulary) {
        const float4 b = *(const float4*)(bias + word);
        out.at[0] += b.x; out.at[1] += b.y; out.at[2] += b.z; out.at[3] += b.w;
    } else {
        EACH_OF_FOUR(i) out.at[i] = word + i < vocabulary ? out.at[i] + bias[word + i] : -INFINITE;
    }
    return out;
}

__device__ __forceinline__ float largest_of(const Four& x) { return fmaxf(fmaxf(x.at[0], x.at[1]), fmaxf(x.at[2], x.at[3])); }

#if REAL != FLOAT32
__device__ __forceinline__ void store_four(real* to, const Four& x) { *(uint2*)to = make_uint2(pack(x.at[0], x.at[1]), pack(x.at[2], x.at[3])); }
#else
__device__ __forceinline__ void store_four(real* to, const Four& x) { *(float4*)to = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]); }
#endif

__device__ __forceinline__ float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, step));
    return x;
}
