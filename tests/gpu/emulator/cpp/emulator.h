// CUDA's kernels on the processor: a block's threads are coroutines that run until they meet at a barrier, so what kernels say of barriers, shuffles and shared
// memory is executed as it stands. For tests: slow, one block at a time, and the same result every time.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace emulator {

struct Place { unsigned x, y, z; };

// Waits until all threads of the block, or of the warp, that have not ended are here.
void block_barrier();
void warp_barrier();
// A place of 64 bits for each lane of this thread's warp.
uint64_t* lanes();
unsigned lane();
unsigned char* dynamic_shared();

typedef void (*Call)(void** arguments);
struct Registration {
    Registration(const char* precision, const char* name, unsigned threads, Call call);
};

template <typename T>
T exchange(T value, unsigned from) {
    static_assert(sizeof(T) <= 8, "a lane has 64 bits");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    lanes()[lane()] = bits;
    warp_barrier();
    const uint64_t other = lanes()[from % 32];
    warp_barrier();
    T out;
    memcpy(&out, &other, sizeof(T));
    return out;
}

// float16, to the nearest, ties to even.
inline float of_half(unsigned short bits) {
    const int exponent = bits >> 10 & 31, rest = bits & 1023;
    const float size = exponent == 31 ? (rest ? NAN : INFINITY) : exponent == 0 ? ldexpf(rest, -24) : ldexpf(1024 + rest, exponent - 25);
    return bits >> 15 ? -size : size;
}

inline unsigned short to_half(float x) {
    if (x != x) return 0x7fff;
    const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
    const float size = fabsf(x);
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent;
    frexpf(size, &exponent);
    // Below the smallest normal number, 2^-14, the distance stays that of there.
    if (size == 0.0f || exponent < -13) exponent = -13;
    const unsigned units = (unsigned)nearbyintf(ldexpf(size, 11 - exponent));
    return sign | (unsigned short)(((exponent + 13) << 10) + units);
}

template <typename Function, Function function>
struct Unpack;
template <typename... Arguments, void (*function)(Arguments...)>
struct Unpack<void (*)(Arguments...), function> {
    template <std::size_t... at>
    static void with(void** arguments, std::index_sequence<at...>) {
        function(*(typename std::remove_const<Arguments>::type*)arguments[at]...);
    }
    static void call(void** arguments) { with(arguments, std::index_sequence_for<Arguments...>()); }
};

}  // namespace emulator

extern emulator::Place threadIdx, blockIdx, blockDim, gridDim;

#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(BYTES) __attribute__((aligned(BYTES)))
#define INFINITE INFINITY
#define DYNAMIC_SHARED(NAME) unsigned char* NAME = emulator::dynamic_shared()
#define KERNEL(NAME, THREADS, ...)                                                                                                      \
    static void NAME(__VA_ARGS__);                                                                                                      \
    static const emulator::Registration registration_of_##NAME(PRECISION, #NAME, THREADS, &emulator::Unpack<decltype(&NAME), &NAME>::call); \
    static void NAME(__VA_ARGS__)

// Only at multiples of 16 bytes, as on a device (see build.rs).
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
static inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

static inline void __syncthreads() { emulator::block_barrier(); }
static inline void __syncwarp() { emulator::warp_barrier(); }
template <typename T>
T __shfl_xor_sync(unsigned, T x, unsigned apart) { return emulator::exchange(x, emulator::lane() ^ apart); }
template <typename T>
T __shfl_sync(unsigned, T x, unsigned from) { return emulator::exchange(x, from); }

// The lowest bit that is set, from 1 on; 0: none is.
static inline int __ffs(int bits) { return __builtin_ffs(bits); }

// Bit l: what lane l says.
static inline unsigned __ballot_sync(unsigned, bool here) {
    unsigned votes = 0;
    emulator::lanes()[emulator::lane()] = here;
    emulator::warp_barrier();
    for (unsigned lane = 0; lane < 32; lane++) votes |= (unsigned)(emulator::lanes()[lane] & 1) << lane;
    emulator::warp_barrier();
    return votes;
}

template <typename T>
T atomicAdd(T* at, T by) { const T before = *at; *at += by; return before; }
static inline unsigned atomicMin(unsigned* at, unsigned with) { const unsigned before = *at; *at = with < before ? with : before; return before; }
