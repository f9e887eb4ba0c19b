// Training: the rows' operations with dropout and with what their backward passes need, those backward passes, sums over rows, and the optimiser.

// A row of `rows`, by a warp.
#define ROW_OF_WARP                                                                              \
    DYNAMIC_SHARED(shared);                                                                      \
    const u32 lane = threadIdx.x % WARP, number = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP; \
    if (number >= rows) return;                                                                  \
    float* row = (float*)shared + (u64)(threadIdx.x / WARP) * columns

// As embed; saves (x − mean) / deviation and 1 / deviation.
KERNEL(embed_saving, ROW_THREADS, const u32* ids, const u32* positions, const u8* types, const real* word, const real* position, const real* token_type,
       const float* weight, const float* bias, float epsilon, u32 rows, u32 columns, real* out, real* normalised, float* scales) {
    ROW_OF_WARP;
    const real* of_word = word + (u64)ids[number] * columns;
    const real* of_position = position + (u64)positions[number] * columns;
    const real* of_type = token_type + (u64)(types ? types[number] : 0) * columns;
    float sum = 0.0f;
    for (u32 column = lane * 8; column < columns; column += WARP * 8) {
        const Eight a = load_eight(of_word + column), b = load_eight(of_type + column), c = load_eight(of_position + column);
        Eight x;
        EACH_OF_EIGHT(i) { x.at[i] = a.at[i] + b.at[i] + c.at[i]; sum += x.at[i]; }
        store_floats(row + column, x);
    }
    norm_row(row, columns, sum, weight, bias, epsilon, out + (u64)number * columns, normalised + (u64)number * columns, scales + number);
}

// As add_norm, of dropout(dense + dense_bias).
KERNEL(add_norm_saving, ROW_THREADS, const real* dense, const float* dense_bias, const real* residual, const u32* at, const float* weight, const float* bias,
       float epsilon, u32 rows, u32 columns, real* out, real* normalised, float* scales, MASK_PARAMETERS) {
    ROW_OF_WARP;
    const Mask mask = MASK_ARGUMENTS;
    const real* of_dense = dense + (u64)number * columns;
    const real* of_residual = residual + (u64)(at ? at[number] : number) * columns;
    float sum = 0.0f;
    for (u32 first = 0; first < columns; first += WARP * 8) {
        const u32 column = first + lane * 8;
        const u32 dropped = threshold ? dropped_of_eight(mask, mask.number(number), 0, first) : 0;
        if (column >= columns) continue;
        Eight a = load_eight(of_dense + column);
        const Eight b = load_floats(dense_bias + column), c = load_eight(of_residual + column);
        EACH_OF_EIGHT(i) a.at[i] += b.at[i];
        if (threshold) drop_eight(a, dropped, mask.scale());
        EACH_OF_EIGHT(i) { a.at[i] += c.at[i]; sum += a.at[i]; }
        store_floats(row + column, a);
    }
    norm_row(row, columns, sum, weight, bias, epsilon, out + (u64)number * columns, normalised + (u64)number * columns, scales + number);
}

// As activate_norm; dense becomes dense + dense_bias.
KERNEL(activate_norm_saving, ROW_THREADS, real* dense, const float* dense_bias, u32 kind, const float* weight, const float* bias, float epsilon, u32 rows,
       u32 columns, real* out, real* normalised, float* scales) {
    ROW_OF_WARP;
    real* of_dense = dense + (u64)number * columns;
    float sum = 0.0f;
    for (u32 column = lane * 8; column < columns; column += WARP * 8) {
        Eight x = load_eight(of_dense + column);
        const Eight b = load_floats(dense_bias + column);
        EACH_OF_EIGHT(i) x.at[i] += b.at[i];
        store_eight(of_dense + column, x);
        EACH_OF_EIGHT(i) { x.at[i] = activate(kind, x.at[i]); sum += x.at[i]; }
        store_floats(row + column, x);
    }
    norm_row(row, columns, sum, weight, bias, epsilon, out + (u64)number * columns, normalised + (u64)number * columns, scales + number);
}

// x = dropout(x).
KERNEL(drop, ROW_THREADS, real* x, u32 rows, u32 columns, MASK_PARAMETERS) {
    const u32 lane = threadIdx.x % WARP, number = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP;
    if (number >= rows) return;
    const Mask mask = MASK_ARGUMENTS;
    real* row = x + (u64)number * columns;
    for (u32 first = 0; first < columns; first += WARP * 8) {
        const u32 column = first + lane * 8, dropped = dropped_of_eight(mask, mask.number(number), 0, first);
        if (column >= columns) continue;
        Eight values = load_eight(row + column);
        drop_eight(values, dropped, mask.scale());
        store_eight(row + column, values);
    }
}

// From dL/dy of y = normalised · weight + bias, in `flow`, to dL/d(what was normalised), in its place, and its dropout, in `dense` unless that is null:
// dx = (g − mean(g) − normalised · mean(g · normalised)) · scale, with g = dy · weight.
KERNEL(norm_backward, ROW_THREADS, real* flow, const real* normalised, const float* scales, const float* weight, u32 rows, u32 columns, real* dense,
       MASK_PARAMETERS) {
    ROW_OF_WARP;
    const Mask mask = MASK_ARGUMENTS;
    real* of_flow = flow + (u64)number * columns;
    const real* of_normalised = normalised + (u64)number * columns;
    float sum = 0.0f, product = 0.0f;
    for (u32 column = lane * 8; column < columns; column += WARP * 8) {
        Eight g = load_eight(of_flow + column);
        const Eight by = load_floats(weight + column), x = load_eight(of_normalised + column);
        EACH_OF_EIGHT(i) { g.at[i] *= by.at[i]; sum += g.at[i]; product += g.at[i] * x.at[i]; }
        store_floats(row + column, g);
    }
    const float mean = warp_sum(sum) / columns, along = warp_sum(product) / columns, scale = scales[number];
    for (u32 first = 0; first < columns; first += WARP * 8) {
        const u32 column = first + lane * 8;
        const u32 dropped = dense && threshold ? dropped_of_eight(mask, mask.number(number), 0, first) : 0;
        if (column >= columns) continue;
        Eight g = load_floats(row + column);
        const Eight x = load_eight(of_normalised + column);
        EACH_OF_EIGHT(i) g.at[i] = (g.at[i] - mean - x.at[i] * along) * scale;
        store_eight(of_flow + column, g);
        if (!dense) continue;
        if (threshold) drop_eight(g, dropped, mask.scale());
        store_eight(dense + (u64)number * columns + column, g);
    }
}

// act'(x)
__device__ __forceinline__ float derivative(u32 kind, float x) {
    switch (kind) {
        case GELU: return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * 0.39894228040143268f * expf(-0.5f * x * x);
        case GELU_TANH: {
            const float t = tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x));
            return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.79788456080286536f * (1.0f + 3.0f * 0.044715f * x * x);
        }
        case RELU: return x > 0.0f ? 1.0f : 0.0f;
        default: {
            const float s = 1.0f / (1.0f + expf(-x));
            return s * (1.0f + x * (1.0f - s));
        }
    }
}

// before = x + bias, after = act(before); x is where `before` goes.
KERNEL(activate_saving, ELEMENT_THREADS, real* x, const float* bias, u32 kind, u32 rows, u32 columns, real* after) {
    const u32 per_row = columns / 8, eights = rows * per_row;
    for (u32 eight = blockIdx.x * blockDim.x + threadIdx.x; eight < eights; eight += gridDim.x * blockDim.x) {
        const Eight of_bias = load_floats(bias + eight % per_row * 8);
        Eight of_x = load_eight(x + (u64)eight * 8);
        EACH_OF_EIGHT(i) of_x.at[i] += of_bias.at[i];
        store_eight(x + (u64)eight * 8, of_x);
        EACH_OF_EIGHT(i) of_x.at[i] = activate(kind, of_x.at[i]);
        store_eight(after + (u64)eight * 8, of_x);
    }
}

// gradient *= act'(before); after = act(before), unless that is null.
KERNEL(activate_backward, ELEMENT_THREADS, const real* before, u32 kind, u32 rows, u32 columns, real* gradient, real* after) {
    const u32 per_row = columns / 8, eights = rows * per_row;
    for (u32 eight = blockIdx.x * blockDim.x + threadIdx.x; eight < eights; eight += gridDim.x * blockDim.x) {
        const Eight x = load_eight(before + (u64)eight * 8);
        Eight of_gradient = load_eight(gradient + (u64)eight * 8), y;
        EACH_OF_EIGHT(i) { of_gradient.at[i] *= derivative(kind, x.at[i]); y.at[i] = activate(kind, x.at[i]); }
        store_eight(gradient + (u64)eight * 8, of_gradient);
        if (after) store_eight(after + (u64)eight * 8, y);
    }
}

// out[at[row]] = x[row]; rows that are not in the list stay.
KERNEL(spread, ELEMENT_THREADS, const real* x, const u32* at, u32 rows, u32 columns, real* out) {
    const u32 per_row = columns / 8, eights = rows * per_row;
    for (u32 eight = blockIdx.x * blockDim.x + threadIdx.x; eight < eights; eight += gridDim.x * blockDim.x) {
        const u32 row = eight / per_row, column = eight % per_row * 8;
        store_eight(out + (u64)at[row] * columns + column, load_eight(x + (u64)eight * 8));
    }
}

// Zeros, 16 bytes at a time.
KERNEL(clear, ELEMENT_THREADS, uint4* at, u64 count) {
    for (u64 place = (u64)blockIdx.x * blockDim.x + threadIdx.x; place < count; place += (u64)gridDim.x * blockDim.x) at[place] = uint4{0, 0, 0, 0};
}

// Sums over rows, in two steps, so that they do not depend on who comes first. First: partial[block][column] = Σ a[row][column] (· b[row][column], unless b is null), over
// `rows_per_block` rows; of those rows alone whose type is `type`, unless `types` is null. A warp has every fourth row, a lane eight columns.
#define SUM_THREADS 128
KERNEL(sum_rows, SUM_THREADS, const real* a, const real* b, const u8* types, u32 type, u32 rows, u32 columns, u32 rows_per_block, float* partial) {
    __shared__ __align__(16) float sums[SUM_THREADS / WARP][WARP * 8];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, column = blockIdx.x * WARP * 8 + lane * 8;
    const u32 first = blockIdx.y * rows_per_block, end = first + rows_per_block < rows ? first + rows_per_block : rows;
    Eight sum = {};
    if (column < columns) {
        for (u32 row = first + warp; row < end; row += SUM_THREADS / WARP) {
            if (types && types[row] != type) continue;
            const Eight x = load_eight(a + (u64)row * columns + column);
            if (b) {
                const Eight y = load_eight(b + (u64)row * columns + column);
                EACH_OF_EIGHT(i) sum.at[i] += x.at[i] * y.at[i];
            } else {
                EACH_OF_EIGHT(i) sum.at[i] += x.at[i];
            }
        }
    }
    store_floats(&sums[warp][lane * 8], sum);
    __syncthreads();
    for (u32 at = threadIdx.x; at < WARP * 8; at += SUM_THREADS) {
        float whole = 0.0f;
        for (u32 other = 0; other < SUM_THREADS / WARP; other++) whole += sums[other][at];
        if (blockIdx.x * WARP * 8 + at < columns) partial[(u64)blockIdx.y * columns + blockIdx.x * WARP * 8 + at] = whole;
    }
}

// Second: sum[column] += Σ partial[block][column], for the first `count` columns.
KERNEL(add_partials, ELEMENT_THREADS, const float* partial, u32 blocks, u32 columns, u32 count, float* sum) {
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= count) return;
    float whole = 0.0f;
    for (u32 block = 0; block < blocks; block++) whole += partial[(u64)block * columns + column];
    sum[column] += whole;
}

// The gradient of an embedding, in a fixed order. A group has the rows order[i], for i in starts[group] .. starts[group + 1]; their sum is added to row targets[group] of the
// table, or, if that has the bit PART, is a row of `parts`. A warp has a group, and 256 of its columns.
#define PART 0x80000000u
KERNEL(scatter, ROW_THREADS, const real* rows, const u32* order, const u32* starts, const u32* targets, u32 groups, u32 columns, float* table, float* parts) {
    const u32 lane = threadIdx.x % WARP, group = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP, column = (blockIdx.y * WARP + lane) * 8;
    if (group >= groups || column >= columns) return;
    const u32 target = targets[group];
    float* to = (target & PART ? parts : table) + (u64)(target & ~PART) * columns + column;
    Eight sum = {};
    for (u32 at = starts[group]; at < starts[group + 1]; at++) {
        const Eight x = load_eight(rows + (u64)order[at] * columns + column);
        EACH_OF_EIGHT(i) sum.at[i] += x.at[i];
    }
    if (!(target & PART)) {
        const Eight before = load_floats(to);
        EACH_OF_EIGHT(i) sum.at[i] += before.at[i];
    }
    store_floats(to, sum);
}

// The groups that were cut into parts: table[targets[group]] += Σ parts[i], for i in starts[group] .. starts[group + 1].
KERNEL(scatter_parts, ROW_THREADS, const float* parts, const u32* starts, const u32* targets, u32 groups, u32 columns, float* table) {
    const u32 lane = threadIdx.x % WARP, group = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP, column = (blockIdx.y * WARP + lane) * 8;
    if (group >= groups || column >= columns) return;
    float* to = table + (u64)targets[group] * columns + column;
    Eight sum = load_floats(to);
    for (u32 at = starts[group]; at < starts[group + 1]; at++) {
        const Eight x = load_floats(parts + (u64)at * columns + column);
        EACH_OF_EIGHT(i) sum.at[i] += x.at[i];
    }
    store_floats(to, sum);
}

// partial[block] = Σ x², in double precision.
#define SQUARE_THREADS 256
KERNEL(sum_squares, SQUARE_THREADS, const float* x, u64 count, double* partial) {
    __shared__ double sums[SQUARE_THREADS];
    double sum = 0.0;
    for (u64 at = (u64)blockIdx.x * SQUARE_THREADS + threadIdx.x; at < count; at += (u64)gridDim.x * SQUARE_THREADS) sum += (double)x[at] * x[at];
    sums[threadIdx.x] = sum;
    for (u32 half = SQUARE_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = sums[0];
}

// AdamW on `count` numbers, a multiple of eight; the gradient is 0 afterwards, and `narrow` holds the new numbers as `real`, unless it is null.
KERNEL(adamw, ELEMENT_THREADS, float* x, float* gradient, float* first, float* second, real* narrow, u64 count, float gradient_scale, float keep, float step_size,
       float second_correction, float of_first, float keep_second, float of_second, float epsilon) {
    for (u64 eight = (u64)blockIdx.x * blockDim.x + threadIdx.x; eight < count / 8; eight += (u64)gridDim.x * blockDim.x) {
        Eight value = load_floats(x + eight * 8), m = load_floats(first + eight * 8), v = load_floats(second + eight * 8);
        const Eight g = load_floats(gradient + eight * 8);
        EACH_OF_EIGHT(i) {
            const float scaled = g.at[i] * gradient_scale;
            m.at[i] += (scaled - m.at[i]) * of_first;
            v.at[i] = v.at[i] * keep_second + scaled * scaled * of_second;
            value.at[i] = value.at[i] * keep - step_size * m.at[i] / (sqrtf(v.at[i]) * second_correction + epsilon);
        }
        store_floats(x + eight * 8, value);
        store_floats(first + eight * 8, m);
        store_floats(second + eight * 8, v);
        store_floats(gradient + eight * 8, Eight{});
        if (narrow) store_eight(narrow + eight * 8, value);
    }
}
