// Attention over packed sequences: softmax(q·kᵀ / sqrt(size)) · v, head by head. Sequence s has the tokens starts[s] .. starts[s+1], and is asked for the
// queries row_starts[s] .. row_starts[s+1]. Biases are added here, so that the products before need not. Neither scores nor probabilities reach memory.

#define ATTENTION_THREADS 128

struct Attention {
    // [rows, …] with `query_stride` columns a row: a head's queries at head · size.
    const real* query;
    u32 query_stride;
    // [tokens, …] with `key_value_stride` columns a row: a head's keys at head · size, its values at hidden + head · size.
    const real* key_value;
    u32 key_value_stride;
    // [3 · hidden]: of queries, keys and values.
    const float* bias;
    const u32* starts;
    const u32* row_starts;
    u32 heads, size;
    // 1 / sqrt(size)
    float scale;
    // [rows, heads · size]
    real* context;
};

#define ATTENTION_PARAMETERS                                                                                                                              \
    const real *query, u32 query_stride, const real *key_value, u32 key_value_stride, const float *bias, const u32 *starts, const u32 *row_starts, u32 heads, \
        u32 size, float scale, real *context
#define ATTENTION_ARGUMENTS Attention{query, query_stride, key_value, key_value_stride, bias, starts, row_starts, heads, size, scale, context}

// Any head size; `longest` numbers of float32 a warp are behind the queries of a block. A warp has one query, a lane every 32nd key.
__device__ __forceinline__ void attend_plainly(const Attention& a, u32 longest) {
    DYNAMIC_SHARED(shared);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, sequence = blockIdx.x, head = blockIdx.y;
    const u32 row = a.row_starts[sequence] + blockIdx.z * (ATTENTION_THREADS / WARP) + warp;
    if (row >= a.row_starts[sequence + 1]) return;
    const u32 first = a.starts[sequence], length = a.starts[sequence + 1] - first, hidden = a.heads * a.size;
    float* query = (float*)shared + (u64)warp * (a.size + longest);
    float* scores = query + a.size;
    for (u32 i = lane; i < a.size; i += WARP) {
        query[i] = to_float(to_real(to_float(a.query[(u64)row * a.query_stride + head * a.size + i]) + a.bias[head * a.size + i]));
    }
    __syncwarp();
    float largest = -INFINITE;
    for (u32 key = lane; key < length; key += WARP) {
        const real* of_key = a.key_value + (u64)(first + key) * a.key_value_stride + head * a.size;
        const float* of_bias = a.bias + hidden + head * a.size;
        float score = 0.0f;
        for (u32 i = 0; i < a.size; i++) score += query[i] * to_float(to_real(to_float(of_key[i]) + of_bias[i]));
        scores[key] = score * a.scale;
        largest = fmaxf(largest, scores[key]);
    }
    largest = warp_max(largest);
    float sum = 0.0f;
    for (u32 key = lane; key < length; key += WARP) {
        scores[key] = expf(scores[key] - largest);
        sum += scores[key];
    }
    sum = warp_sum(sum);
    __syncwarp();
    for (u32 i = lane; i < a.size; i += WARP) {
        float of_context = 0.0f;
        for (u32 key = 0; key < length; key++) {
            const u64 place = (u64)(first + key) * a.key_value_stride + hidden + head * a.size + i;
            of_context += scores[key] * to_float(to_real(to_float(a.key_value[place]) + a.bias[2 * hidden + head * a.size + i]));
        }
        a.context[(u64)row * hidden + head * a.size + i] = to_real(of_context / sum);
    }
}

KERNEL(attend, ATTENTION_THREADS, ATTENTION_PARAMETERS, u32 longest) { attend_plainly(ATTENTION_ARGUMENTS, longest); }

#if REAL != FLOAT32
// Queries of a block (16 a warp), and keys in shared memory at a time.
#define QUERIES 64
#define KEYS 64
// Behind each row in shared memory, so that its neighbours lie in other banks.
#define GAP 8

#ifdef EMULATED
#include "tensor_cores.h"
#else
#if REAL == BFLOAT16
#define NUMBERS "bf16"
#else
#define NUMBERS "f16"
#endif
// c += a · b for 16 × 16 (rows) and 16 × 8 (columns) of narrow numbers. Of lane 4·g + t: a is at rows g and g + 8, columns 2t and 2t + 8; b at rows 2t and 2t + 8,
// column g; c at rows g and g + 8, columns 2t and 2t + 1.
__device__ __forceinline__ void multiply_tile(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NUMBERS "." NUMBERS ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two 8 × 8 blocks of 16-bit numbers from shared memory, transposed: lane l < 16 names row l. Lane 4·g + t gets rows 2t and 2t + 1 of column g.
__device__ __forceinline__ void load_transposed(u32& b0, u32& b1, const real* row) {
    const u32 place = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(b0), "=r"(b1) : "r"(place));
}
#endif

// Two numbers in a row, with their bias.
__device__ __forceinline__ u32 load_pair(const real* x, const float* bias) {
    const u32 bits = *(const u32*)x;
    return pack(first_of(bits) + bias[0], second_of(bits) + bias[1]);
}

template <int SIZE>
__device__ __forceinline__ void attend_in_tiles(const Attention& a) {
    constexpr int STRIDE = SIZE + GAP, STEPS = SIZE / 16, COLUMNS = SIZE / 8;
    __shared__ __align__(16) real keys[KEYS * STRIDE];
    __shared__ __align__(16) real values[KEYS * STRIDE];
    const u32 sequence = blockIdx.x, head = blockIdx.y, hidden = a.heads * SIZE;
    const u32 end = a.row_starts[sequence + 1], first_row = a.row_starts[sequence] + blockIdx.z * QUERIES;
    if (first_row >= end) return;
    const u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const u32 first = a.starts[sequence], length = a.starts[sequence + 1] - first;
    const u32 row = first_row + threadIdx.x / WARP * 16 + g;

    // Rows beyond the end read its last row; what comes of them is not written.
    u32 query[STEPS][4];
    const real* low = a.query + (u64)(row < end ? row : end - 1) * a.query_stride + head * SIZE;
    const real* high = a.query + (u64)(row + 8 < end ? row + 8 : end - 1) * a.query_stride + head * SIZE;
    const float* query_bias = a.bias + head * SIZE;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const u32 column = step * 16 + t * 2;
        query[step][0] = load_pair(low + column, query_bias + column);
        query[step][1] = load_pair(high + column, query_bias + column);
        query[step][2] = load_pair(low + column + 8, query_bias + column + 8);
        query[step][3] = load_pair(high + column + 8, query_bias + column + 8);
    }
    // exp(x) = 2^(x · log2 e)
    const float scale = a.scale * 1.44269504088896341f;
    float largest[2] = {-INFINITE, -INFINITE}, sum[2] = {0.0f, 0.0f};
    float context[COLUMNS][4];
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
        for (int i = 0; i < 4; i++) context[column][i] = 0.0f;
    }

    for (u32 begin = 0; begin < length; begin += KEYS) {
        __syncthreads();
        for (u32 eight = threadIdx.x; eight < KEYS * COLUMNS; eight += ATTENTION_THREADS) {
            const u32 key = eight / COLUMNS, column = eight % COLUMNS * 8;
            Eight of_key = {}, of_value = {};
            if (begin + key < length) {
                const real* from = a.key_value + (u64)(first + begin + key) * a.key_value_stride + head * SIZE + column;
                const float* bias = a.bias + hidden + head * SIZE + column;
                of_key = load_eight(from);
                of_value = load_eight(from + hidden);
                const Eight key_bias = load_floats(bias), value_bias = load_floats(bias + hidden);
                EACH_OF_EIGHT(i) { of_key.at[i] += key_bias.at[i]; of_value.at[i] += value_bias.at[i]; }
            }
            store_eight(keys + key * STRIDE + column, of_key);
            store_eight(values + key * STRIDE + column, of_value);
        }
        __syncthreads();

        float score[KEYS / 8][4];
#pragma unroll
        for (int part = 0; part < KEYS / 8; part++) {
#pragma unroll
            for (int i = 0; i < 4; i++) score[part][i] = 0.0f;
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                const real* of_key = keys + (part * 8 + g) * STRIDE + step * 16 + t * 2;
                multiply_tile(score[part], query[step], *(const u32*)of_key, *(const u32*)(of_key + 8));
            }
        }
        // Of this thread's two rows: the largest score of the tile, over the four threads that share them.
        float next[2] = {largest[0], largest[1]};
#pragma unroll
        for (int part = 0; part < KEYS / 8; part++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const bool there = begin + part * 8 + t * 2 + i % 2 < length;
                score[part][i] = there ? score[part][i] * scale : -INFINITE;
                next[i / 2] = fmaxf(next[i / 2], score[part][i]);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            next[half] = fmaxf(next[half], __shfl_xor_sync(WHOLE_WARP, next[half], 1));
            next[half] = fmaxf(next[half], __shfl_xor_sync(WHOLE_WARP, next[half], 2));
            const float by = exp2f(largest[half] - next[half]);
            largest[half] = next[half];
            sum[half] *= by;
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                context[column][2 * half] *= by;
                context[column][2 * half + 1] *= by;
            }
        }
#pragma unroll
        for (int part = 0; part < KEYS / 8; part++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                score[part][i] = exp2f(score[part][i] - largest[i / 2]);
                sum[i / 2] += score[part][i];
            }
        }
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            const float(&left)[4] = score[2 * step], (&right)[4] = score[2 * step + 1];
            const u32 probability[4] = {pack(left[0], left[1]), pack(left[2], left[3]), pack(right[0], right[1]), pack(right[2], right[3])};
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                u32 b0, b1;
                load_transposed(b0, b1, values + (step * 16 + lane % 16) * STRIDE + column * 8);
                multiply_tile(context[column], probability, b0, b1);
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(WHOLE_WARP, sum[half], 1);
        sum[half] += __shfl_xor_sync(WHOLE_WARP, sum[half], 2);
        if (row + 8 * half >= end) continue;
        real* out = a.context + (u64)(row + 8 * half) * hidden + head * SIZE + t * 2;
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            *(u32*)(out + column * 8) = pack(context[column][2 * half] / sum[half], context[column][2 * half + 1] / sum[half]);
        }
    }
}

KERNEL(attend_32, ATTENTION_THREADS, ATTENTION_PARAMETERS) { attend_in_tiles<32>(ATTENTION_ARGUMENTS); }
KERNEL(attend_64, ATTENTION_THREADS, ATTENTION_PARAMETERS) { attend_in_tiles<64>(ATTENTION_ARGUMENTS); }
KERNEL(attend_128, ATTENTION_THREADS, ATTENTION_PARAMETERS) { attend_in_tiles<128>(ATTENTION_ARGUMENTS); }
#endif
