// Attention in training. Forward: as in attention.cu, with dropout of the probabilities, and with each row's log-sum-exp, in units of log 2. Backward: with P the probabilities, M
// their mask, O the context, D = Σ dO · O of a row and head,
//     dV = (P · M)ᵀ dO,   dS = P · (M · (dO Vᵀ) − D),   dQ = dS K / sqrt(size),   dK = dSᵀ Q / sqrt(size).
// One pass has queries by block and gives dQ, the other keys and gives dK and dV: no sum depends on who comes first.

#define LOG2_E 1.44269504088896341f

struct AttentionGradients {
    // [rows, heads · size]
    const real* of_context;
    // [rows, heads]
    const float* log_sum_exp;
    const float* dots;
    // [rows, heads · size]
    real* of_query;
    // [tokens, 2 · heads · size]: of keys, then of values.
    real* of_key_value;
};

#define GRADIENT_PARAMETERS const real *of_context, const float *log_sum_exp, const float *dots, real *of_query, real *of_key_value
#define GRADIENT_ARGUMENTS AttentionGradients{of_context, log_sum_exp, dots, of_query, of_key_value}

// dots[row, head] = Σ of_context · context.
KERNEL(attention_dots, ELEMENT_THREADS, const real* of_context, const real* context, u32 rows, u32 heads, u32 size, float* dots) {
    for (u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x; at < (u64)rows * heads; at += (u64)gridDim.x * blockDim.x) {
        float sum = 0.0f;
        for (u32 i = 0; i < size; i += 8) {
            const Eight a = load_eight(of_context + at * size + i), b = load_eight(context + at * size + i);
            EACH_OF_EIGHT(j) sum += a.at[j] * b.at[j];
        }
        dots[at] = sum;
    }
}

// A head's query, key (which = 1) or value (which = 2) with its bias.
__device__ __forceinline__ float query_at(const Attention& a, u32 row, u32 head, u32 i) {
    return to_float(to_real(to_float(a.query[(u64)row * a.query_stride + head * a.size + i]) + a.bias[head * a.size + i]));
}
__device__ __forceinline__ float key_value_at(const Attention& a, u32 token, u32 head, u32 i, u32 which) {
    const u32 hidden = a.heads * a.size;
    const u64 place = (u64)token * a.key_value_stride + (which - 1) * hidden + head * a.size + i;
    return to_float(to_real(to_float(a.key_value[place]) + a.bias[which * hidden + head * a.size + i]));
}

// Any head size; a warp has a query, a lane every 32nd key. `longest` as in attend.
KERNEL(attend_training, ATTENTION_THREADS, ATTENTION_PARAMETERS, u32 longest, float* log_sum_exp, MASK_PARAMETERS) {
    DYNAMIC_SHARED(shared);
    const Attention a = ATTENTION_ARGUMENTS;
    const Mask mask = MASK_ARGUMENTS;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, sequence = blockIdx.x, head = blockIdx.y;
    const u32 row = row_starts[sequence] + blockIdx.z * (ATTENTION_THREADS / WARP) + warp;
    if (row >= row_starts[sequence + 1]) return;
    const u32 first = starts[sequence], length = starts[sequence + 1] - first;
    float* of_query = (float*)shared + (u64)warp * (size + longest);
    float* scores = of_query + size;
    for (u32 i = lane; i < size; i += WARP) of_query[i] = query_at(a, row, head, i);
    __syncwarp();
    float largest = -INFINITE;
    for (u32 key = lane; key < length; key += WARP) {
        float score = 0.0f;
        for (u32 i = 0; i < size; i++) score += of_query[i] * key_value_at(a, first + key, head, i, 1);
        scores[key] = score * scale;
        largest = fmaxf(largest, scores[key]);
    }
    largest = warp_max(largest);
    float sum = 0.0f;
    for (u32 key = lane; key < length; key += WARP) {
        scores[key] = expf(scores[key] - largest);
        sum += scores[key];
        if (threshold) scores[key] = is_dropped(mask, mask.number(row), head, key) ? 0.0f : scores[key] * mask.scale();
    }
    sum = warp_sum(sum);
    __syncwarp();
    for (u32 i = lane; i < size; i += WARP) {
        float of_context = 0.0f;
        for (u32 key = 0; key < length; key++) of_context += scores[key] * key_value_at(a, first + key, head, i, 2);
        context[((u64)row * heads + head) * size + i] = to_real(of_context / sum);
    }
    if (lane == 0) log_sum_exp[(u64)row * heads + head] = (largest + logf(sum)) * LOG2_E;
}

// P · M and dS of a query and a key. All lanes of a warp call it and get the same; each reads every 32nd of the `size` numbers of both and of their gradients.
struct Pair { float masked, of_score; };
template <typename Query, typename Dense, typename Key, typename Value>
__device__ __forceinline__ Pair pair_of(const Attention& a, const Mask& mask, const AttentionGradients& of, u32 row, u32 head, u32 key, const Query& query,
                                        const Dense& dense, const Key& of_key, const Value& of_value) {
    float score = 0.0f, of_probability = 0.0f;
    for (u32 i = threadIdx.x % WARP; i < a.size; i += WARP) {
        score += query(i) * of_key(i);
        of_probability += dense(i) * of_value(i);
    }
    score = warp_sum(score);
    of_probability = warp_sum(of_probability);
    const u64 at = (u64)row * a.heads + head;
    const float probability = exp2f(score * a.scale * LOG2_E - of.log_sum_exp[at]);
    float kept = 1.0f;
    if (mask.threshold) kept = is_dropped(mask, mask.number(row), head, key) ? 0.0f : mask.scale();
    return Pair{probability * kept, probability * (of_probability * kept - of.dots[at]) * a.scale};
}

// Any head size: dQ, with a query a warp; behind the query and its gradient's context are `longest` numbers.
KERNEL(attend_queries, ATTENTION_THREADS, ATTENTION_PARAMETERS, u32 longest, GRADIENT_PARAMETERS, MASK_PARAMETERS) {
    DYNAMIC_SHARED(shared);
    const Attention a = ATTENTION_ARGUMENTS;
    const Mask mask = MASK_ARGUMENTS;
    const AttentionGradients of = GRADIENT_ARGUMENTS;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, sequence = blockIdx.x, head = blockIdx.y;
    const u32 row = row_starts[sequence] + blockIdx.z * (ATTENTION_THREADS / WARP) + warp;
    if (row >= row_starts[sequence + 1]) return;
    const u32 first = starts[sequence], length = starts[sequence + 1] - first;
    float* of_row = (float*)shared + (u64)warp * (2 * size + longest);
    float *dense = of_row + size, *of_scores = dense + size;
    for (u32 i = lane; i < size; i += WARP) {
        of_row[i] = query_at(a, row, head, i);
        dense[i] = to_float(of_context[((u64)row * heads + head) * size + i]);
    }
    for (u32 key = 0; key < length; key++) {
        // A lane reads what it has written itself.
        const Pair pair = pair_of(
            a, mask, of, row, head, key, [&](u32 i) { return of_row[i]; }, [&](u32 i) { return dense[i]; },
            [&](u32 i) { return key_value_at(a, first + key, head, i, 1); }, [&](u32 i) { return key_value_at(a, first + key, head, i, 2); });
        if (lane == 0) of_scores[key] = pair.of_score;
    }
    __syncwarp();
    for (u32 i = lane; i < size; i += WARP) {
        float sum = 0.0f;
        for (u32 key = 0; key < length; key++) sum += of_scores[key] * key_value_at(a, first + key, head, i, 1);
        of_query[((u64)row * heads + head) * size + i] = to_real(sum);
    }
}

// Any head size: dK and dV, with a key a warp; behind its key and value are twice `longest` numbers.
KERNEL(attend_keys, ATTENTION_THREADS, ATTENTION_PARAMETERS, u32 longest, GRADIENT_PARAMETERS, MASK_PARAMETERS) {
    DYNAMIC_SHARED(shared);
    const Attention a = ATTENTION_ARGUMENTS;
    const Mask mask = MASK_ARGUMENTS;
    const AttentionGradients of = GRADIENT_ARGUMENTS;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, sequence = blockIdx.x, head = blockIdx.y;
    const u32 key = blockIdx.z * (ATTENTION_THREADS / WARP) + warp, first = starts[sequence];
    if (first + key >= starts[sequence + 1]) return;
    const u32 first_row = row_starts[sequence], rows = row_starts[sequence + 1] - first_row, hidden = heads * size;
    float* of_key = (float*)shared + (u64)warp * (2 * size + 2 * longest);
    float *of_value = of_key + size, *of_scores = of_value + size, *masked = of_scores + longest;
    for (u32 i = lane; i < size; i += WARP) {
        of_key[i] = key_value_at(a, first + key, head, i, 1);
        of_value[i] = key_value_at(a, first + key, head, i, 2);
    }
    auto dense_at = [&](u32 row, u32 i) { return to_float(of_context[((u64)row * heads + head) * size + i]); };
    for (u32 row = 0; row < rows; row++) {
        // A lane reads what it has written itself.
        const Pair pair = pair_of(
            a, mask, of, first_row + row, head, key, [&](u32 i) { return query_at(a, first_row + row, head, i); },
            [&](u32 i) { return dense_at(first_row + row, i); }, [&](u32 i) { return of_key[i]; }, [&](u32 i) { return of_value[i]; });
        if (lane == 0) {
            of_scores[row] = pair.of_score;
            masked[row] = pair.masked;
        }
    }
    __syncwarp();
    for (u32 i = lane; i < size; i += WARP) {
        float key_sum = 0.0f, value_sum = 0.0f;
        for (u32 row = 0; row < rows; row++) {
            key_sum += of_scores[row] * query_at(a, first_row + row, head, i);
            value_sum += masked[row] * dense_at(first_row + row, i);
        }
        real* out = of_key_value + (u64)(first + key) * 2 * hidden + head * size + i;
        out[0] = to_real(key_sum);
        out[hidden] = to_real(value_sum);
    }
}

#if REAL != FLOAT32
// Which of the probabilities of 64 queries from `first_row` on (`end`: behind the last one) and of the 64 keys from `begin` on are dropped: bit i of [query][w] is that of
// key begin + 16 · w + i.
__device__ __forceinline__ void drop_tile(const Mask& mask, u32 head, u32 first_row, u32 end, u32 begin, unsigned short (*dropped)[4]) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (u32 two = warp; two < QUERIES / 2; two += ATTENTION_THREADS / WARP) {
        const u32 query = 2 * two + lane / 16, row = first_row + query < end ? first_row + query : end - 1;
        const u32 block = (head << 16) + begin / 128 * 16 + lane % 16;
        const Words words = philox(block, mask.number(row), mask.step, mask.last, mask.key0, mask.key1);
#pragma unroll
        for (u32 w = 0; w < 4; w++) {
            const u32 bits = begin / 64 % 2 ? words.at[w] >> 16 : words.at[w] & 0xffff;
            const u32 votes = __ballot_sync(WHOLE_WARP, bits < mask.threshold);
            if (lane % 16 == 0) dropped[query][w] = (unsigned short)(votes >> (lane / 16 * 16));
        }
    }
}

// 64 rows of a head, with their bias unless that is null, to shared memory; rows from `count` on are 0.
template <int SIZE>
__device__ __forceinline__ void load_tile(real* to, const real* from, u32 stride, const float* bias, u32 count) {
    constexpr int STRIDE = SIZE + GAP, COLUMNS = SIZE / 8;
    for (u32 eight = threadIdx.x; eight < KEYS * COLUMNS; eight += ATTENTION_THREADS) {
        const u32 row = eight / COLUMNS, column = eight % COLUMNS * 8;
        Eight x = {};
        if (row < count) {
            x = load_eight(from + (u64)row * stride + column);
            if (bias) {
                const Eight b = load_floats(bias + column);
                EACH_OF_EIGHT(i) x.at[i] += b.at[i];
            }
        }
        store_eight(to + row * STRIDE + column, x);
    }
}

// A warp's 16 rows of a tile as left factor.
template <int SIZE>
__device__ __forceinline__ void load_left(u32 (&left)[SIZE / 16][4], const real* rows) {
    constexpr int STRIDE = SIZE + GAP;
    const u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int step = 0; step < SIZE / 16; step++) {
        const real* at = rows + g * STRIDE + step * 16 + t * 2;
        left[step][0] = *(const u32*)at;
        left[step][1] = *(const u32*)(at + 8 * STRIDE);
        left[step][2] = *(const u32*)(at + 8);
        left[step][3] = *(const u32*)(at + 8 * STRIDE + 8);
    }
}

// out [16, 64] = left [16, SIZE] · rowsᵀ of a tile.
template <int SIZE>
__device__ __forceinline__ void multiply_rows(float (&out)[KEYS / 8][4], const u32 (&left)[SIZE / 16][4], const real* rows) {
    constexpr int STRIDE = SIZE + GAP;
    const u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int part = 0; part < KEYS / 8; part++) {
#pragma unroll
        for (int i = 0; i < 4; i++) out[part][i] = 0.0f;
#pragma unroll
        for (int step = 0; step < SIZE / 16; step++) {
            const real* at = rows + (part * 8 + g) * STRIDE + step * 16 + t * 2;
            multiply_tile(out[part], left[step], *(const u32*)at, *(const u32*)(at + 8));
        }
    }
}

// out [16, SIZE] += left [16, 64] · rows of a tile.
template <int SIZE>
__device__ __forceinline__ void multiply_columns(float (&out)[SIZE / 8][4], const float (&left)[KEYS / 8][4], const real* rows) {
    constexpr int STRIDE = SIZE + GAP;
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        const float(&low)[4] = left[2 * step], (&high)[4] = left[2 * step + 1];
        const u32 of_left[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]), pack(high[2], high[3])};
#pragma unroll
        for (int column = 0; column < SIZE / 8; column++) {
            u32 b0, b1;
            load_transposed(b0, b1, rows + (step * 16 + lane % 16) * STRIDE + column * 8);
            multiply_tile(out[column], of_left, b0, b1);
        }
    }
}

template <int SIZE>
__device__ __forceinline__ void clear_tile(float (&out)[SIZE / 8][4]) {
#pragma unroll
    for (int column = 0; column < SIZE / 8; column++) {
#pragma unroll
        for (int i = 0; i < 4; i++) out[column][i] = 0.0f;
    }
}

// Two of a thread's rows, where they are below `end`, times `by`.
template <int SIZE>
__device__ __forceinline__ void store_rows(real* to, u32 stride, const float (&from)[SIZE / 8][4], u32 row, u32 end, const float (&by)[2]) {
    const u32 t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (row + 8 * half >= end) continue;
        real* out = to + (u64)(row + 8 * half) * stride + t * 2;
#pragma unroll
        for (int column = 0; column < SIZE / 8; column++) {
            *(u32*)(out + column * 8) = pack(from[column][2 * half] * by[half], from[column][2 * half + 1] * by[half]);
        }
    }
}

template <int SIZE>
__device__ __forceinline__ void attend_in_tiles_training(const Attention& a, const Mask& mask, float* log_sum_exp) {
    constexpr int STRIDE = SIZE + GAP;
    __shared__ __align__(16) real keys[KEYS * STRIDE];
    __shared__ __align__(16) real values[KEYS * STRIDE];
    __shared__ unsigned short dropped[QUERIES][4];
    const u32 sequence = blockIdx.x, head = blockIdx.y, hidden = a.heads * SIZE;
    const u32 end = a.row_starts[sequence + 1], first_row = a.row_starts[sequence] + blockIdx.z * QUERIES;
    if (first_row >= end) return;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const u32 first = a.starts[sequence], length = a.starts[sequence + 1] - first, row = first_row + warp * 16 + g;
    // They wait for a moment where keys will be.
    load_tile<SIZE>(keys, a.query + (u64)first_row * a.query_stride + head * SIZE, a.query_stride, a.bias + head * SIZE, end - first_row);
    __syncthreads();
    u32 query[SIZE / 16][4];
    load_left<SIZE>(query, keys + warp * 16 * STRIDE);
    const float scale = a.scale * LOG2_E, kept = mask.threshold ? mask.scale() : 1.0f;
    float largest[2] = {-INFINITE, -INFINITE}, sum[2] = {0.0f, 0.0f}, context[SIZE / 8][4], score[KEYS / 8][4];
    clear_tile<SIZE>(context);
    for (u32 begin = 0; begin < length; begin += KEYS) {
        __syncthreads();
        const real* from = a.key_value + (u64)(first + begin) * a.key_value_stride + head * SIZE;
        load_tile<SIZE>(keys, from, a.key_value_stride, a.bias + hidden + head * SIZE, length - begin);
        load_tile<SIZE>(values, from + hidden, a.key_value_stride, a.bias + 2 * hidden + head * SIZE, length - begin);
        if (mask.threshold) drop_tile(mask, head, first_row, end, begin, dropped);
        __syncthreads();
        multiply_rows<SIZE>(score, query, keys);
        float next[2] = {largest[0], largest[1]};
#pragma unroll
        for (int part = 0; part < KEYS / 8; part++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                score[part][i] = begin + part * 8 + t * 2 + i % 2 < length ? score[part][i] * scale : -INFINITE;
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
            for (int column = 0; column < SIZE / 8; column++) {
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
                if (mask.threshold && dropped[warp * 16 + g + 8 * (i / 2)][part / 2] >> (part % 2 * 8 + t * 2 + i % 2) & 1) score[part][i] = 0.0f;
            }
        }
        multiply_columns<SIZE>(context, score, values);
    }
    float by[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(WHOLE_WARP, sum[half], 1);
        sum[half] += __shfl_xor_sync(WHOLE_WARP, sum[half], 2);
        by[half] = kept / sum[half];
        if (t == 0 && row + 8 * half < end) log_sum_exp[(u64)(row + 8 * half) * a.heads + head] = largest[half] + log2f(sum[half]);
    }
    store_rows<SIZE>(a.context + head * SIZE, hidden, context, row, end, by);
}

template <int SIZE>
__device__ __forceinline__ void attend_queries_in_tiles(const Attention& a, const Mask& mask, const AttentionGradients& of) {
    constexpr int STRIDE = SIZE + GAP;
    __shared__ __align__(16) real keys[KEYS * STRIDE];
    __shared__ __align__(16) real values[KEYS * STRIDE];
    __shared__ unsigned short dropped[QUERIES][4];
    const u32 sequence = blockIdx.x, head = blockIdx.y, hidden = a.heads * SIZE;
    const u32 end = a.row_starts[sequence + 1], first_row = a.row_starts[sequence] + blockIdx.z * QUERIES;
    if (first_row >= end) return;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const u32 first = a.starts[sequence], length = a.starts[sequence + 1] - first, row = first_row + warp * 16 + g;
    // Both wait for a moment where keys and values will be.
    load_tile<SIZE>(keys, a.query + (u64)first_row * a.query_stride + head * SIZE, a.query_stride, a.bias + head * SIZE, end - first_row);
    load_tile<SIZE>(values, of.of_context + (u64)first_row * hidden + head * SIZE, hidden, nullptr, end - first_row);
    __syncthreads();
    u32 query[SIZE / 16][4], of_context[SIZE / 16][4];
    load_left<SIZE>(query, keys + warp * 16 * STRIDE);
    load_left<SIZE>(of_context, values + warp * 16 * STRIDE);
    const float scale = a.scale * LOG2_E, kept = mask.threshold ? mask.scale() : 1.0f;
    float normaliser[2], dot[2], of_query[SIZE / 8][4], score[KEYS / 8][4], of_score[KEYS / 8][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u64 at = (u64)(row + 8 * half < end ? row + 8 * half : end - 1) * a.heads + head;
        normaliser[half] = of.log_sum_exp[at];
        dot[half] = of.dots[at];
    }
    clear_tile<SIZE>(of_query);
    for (u32 begin = 0; begin < length; begin += KEYS) {
        __syncthreads();
        const real* from = a.key_value + (u64)(first + begin) * a.key_value_stride + head * SIZE;
        load_tile<SIZE>(keys, from, a.key_value_stride, a.bias + hidden + head * SIZE, length - begin);
        load_tile<SIZE>(values, from + hidden, a.key_value_stride, a.bias + 2 * hidden + head * SIZE, length - begin);
        if (mask.threshold) drop_tile(mask, head, first_row, end, begin, dropped);
        __syncthreads();
        multiply_rows<SIZE>(score, query, keys);
        multiply_rows<SIZE>(of_score, of_context, values);
#pragma unroll
        for (int part = 0; part < KEYS / 8; part++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const bool there = begin + part * 8 + t * 2 + i % 2 < length;
                const float probability = there ? exp2f(score[part][i] * scale - normaliser[i / 2]) : 0.0f;
                float of_probability = of_score[part][i] * kept;
                if (mask.threshold && dropped[warp * 16 + g + 8 * (i / 2)][part / 2] >> (part % 2 * 8 + t * 2 + i % 2) & 1) of_probability = 0.0f;
                of_score[part][i] = probability * (of_probability - dot[i / 2]);
            }
        }
        multiply_columns<SIZE>(of_query, of_score, keys);
    }
    const float by[2] = {a.scale, a.scale};
    store_rows<SIZE>(of.of_query + head * SIZE, hidden, of_query, row, end, by);
}

template <int SIZE>
__device__ __forceinline__ void attend_keys_in_tiles(const Attention& a, const Mask& mask, const AttentionGradients& of) {
    constexpr int STRIDE = SIZE + GAP;
    __shared__ __align__(16) real queries[QUERIES * STRIDE];
    __shared__ __align__(16) real contexts[QUERIES * STRIDE];
    __shared__ unsigned short dropped[QUERIES][4];
    __shared__ float normalisers[QUERIES], dots[QUERIES];
    const u32 sequence = blockIdx.x, head = blockIdx.y, hidden = a.heads * SIZE, begin = blockIdx.z * KEYS;
    const u32 first = a.starts[sequence], length = a.starts[sequence + 1] - first;
    if (begin >= length) return;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, key = begin + warp * 16 + g;
    const u32 end = a.row_starts[sequence + 1];
    const real* from = a.key_value + (u64)(first + begin) * a.key_value_stride + head * SIZE;
    load_tile<SIZE>(queries, from, a.key_value_stride, a.bias + hidden + head * SIZE, length - begin);
    load_tile<SIZE>(contexts, from + hidden, a.key_value_stride, a.bias + 2 * hidden + head * SIZE, length - begin);
    __syncthreads();
    u32 of_this[SIZE / 16][4], value[SIZE / 16][4];
    load_left<SIZE>(of_this, queries + warp * 16 * STRIDE);
    load_left<SIZE>(value, contexts + warp * 16 * STRIDE);
    const float scale = a.scale * LOG2_E, kept = mask.threshold ? mask.scale() : 1.0f;
    float of_key[SIZE / 8][4], of_value[SIZE / 8][4], score[KEYS / 8][4], of_score[KEYS / 8][4];
    clear_tile<SIZE>(of_key);
    clear_tile<SIZE>(of_value);
    for (u32 first_row = a.row_starts[sequence]; first_row < end; first_row += QUERIES) {
        __syncthreads();
        load_tile<SIZE>(queries, a.query + (u64)first_row * a.query_stride + head * SIZE, a.query_stride, a.bias + head * SIZE, end - first_row);
        load_tile<SIZE>(contexts, of.of_context + (u64)first_row * hidden + head * SIZE, hidden, nullptr, end - first_row);
        if (mask.threshold) drop_tile(mask, head, first_row, end, begin, dropped);
        for (u32 query = threadIdx.x; query < QUERIES; query += ATTENTION_THREADS) {
            const u64 at = (u64)(first_row + query < end ? first_row + query : end - 1) * a.heads + head;
            normalisers[query] = of.log_sum_exp[at];
            dots[query] = of.dots[at];
        }
        __syncthreads();
        multiply_rows<SIZE>(score, of_this, queries);
        multiply_rows<SIZE>(of_score, value, contexts);
#pragma unroll
        for (int part = 0; part < QUERIES / 8; part++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 query = part * 8 + t * 2 + i % 2;
                const bool there = first_row + query < end && key + 8 * (i / 2) < length;
                const float probability = there ? exp2f(score[part][i] * scale - normalisers[query]) : 0.0f;
                float by = kept;
                if (mask.threshold && dropped[query][warp] >> (g + 8 * (i / 2)) & 1) by = 0.0f;
                score[part][i] = probability * by;
                of_score[part][i] = probability * (of_score[part][i] * by - dots[query]);
            }
        }
        multiply_columns<SIZE>(of_value, score, contexts);
        multiply_columns<SIZE>(of_key, of_score, queries);
    }
    const float by_scale[2] = {a.scale, a.scale}, by_one[2] = {1.0f, 1.0f};
    real* out = of.of_key_value + (u64)first * 2 * hidden + head * SIZE;
    store_rows<SIZE>(out, 2 * hidden, of_key, key, length, by_scale);
    store_rows<SIZE>(out + hidden, 2 * hidden, of_value, key, length, by_one);
}

#define ATTENTION_TRAINING(SIZE)                                                                                               \
    KERNEL(attend_##SIZE##_training, ATTENTION_THREADS, ATTENTION_PARAMETERS, float* log_sum_exp, MASK_PARAMETERS) {             \
        attend_in_tiles_training<SIZE>(ATTENTION_ARGUMENTS, MASK_ARGUMENTS, log_sum_exp);                                        \
    }                                                                                                                            \
    KERNEL(attend_##SIZE##_queries, ATTENTION_THREADS, ATTENTION_PARAMETERS, GRADIENT_PARAMETERS, MASK_PARAMETERS) {             \
        attend_queries_in_tiles<SIZE>(ATTENTION_ARGUMENTS, MASK_ARGUMENTS, GRADIENT_ARGUMENTS);                                  \
    }                                                                                                                            \
    KERNEL(attend_##SIZE##_keys, ATTENTION_THREADS, ATTENTION_PARAMETERS, GRADIENT_PARAMETERS, MASK_PARAMETERS) {                \
        attend_keys_in_tiles<SIZE>(ATTENTION_ARGUMENTS, MASK_ARGUMENTS, GRADIENT_ARGUMENTS);                                     \
    }
ATTENTION_TRAINING(32)
ATTENTION_TRAINING(64)
ATTENTION_TRAINING(128)
#endif
