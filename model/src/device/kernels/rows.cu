// Embedding, LayerNorm and activation: what stands between matrix products. A warp has a row at a time, a lane eight columns; a row's numbers wait in shared
// memory (float32) between its passes. Columns are a multiple of eight.

#define ROWS_PER_BLOCK 4
#define ROW_THREADS (ROWS_PER_BLOCK * WARP)

// As in the configuration of a model.
#define GELU 0
#define GELU_TANH 1
#define RELU 2
#define SILU 3

__device__ __forceinline__ float activate(u32 kind, float x) {
    switch (kind) {
        case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case RELU: return fmaxf(x, 0.0f);
        default: return x / (1.0f + expf(-x));
    }
}

// LayerNorm of the row that this warp has put into `row`: (x − mean) / sqrt(variance + epsilon) · weight + bias. Where they are asked for, the row without weight and bias, and
// 1 / sqrt(variance + epsilon), are saved.
__device__ __forceinline__ void norm_row(const float* row, u32 columns, float sum, const float* weight, const float* bias, float epsilon, real* out,
                                         real* normalised = nullptr, float* saved_scale = nullptr) {
    const u32 lane = threadIdx.x % WARP;
    const float mean = warp_sum(sum) / columns;
    float squares = 0.0f;
    for (u32 column = lane * 8; column < columns; column += WARP * 8) {
        const Eight x = load_floats(row + column);
        EACH_OF_EIGHT(i) { const float apart = x.at[i] - mean; squares += apart * apart; }
    }
    const float scale = rsqrtf(warp_sum(squares) / columns + epsilon);
    for (u32 column = lane * 8; column < columns; column += WARP * 8) {
        const Eight x = load_floats(row + column), by = load_floats(weight + column), more = load_floats(bias + column);
        Eight y, z;
        EACH_OF_EIGHT(i) {
            z.at[i] = (x.at[i] - mean) * scale;
            y.at[i] = z.at[i] * by.at[i] + more.at[i];
        }
        store_eight(out + column, y);
        if (normalised) store_eight(normalised + column, z);
    }
    if (saved_scale && lane == 0) *saved_scale = scale;
}

// out[row] = LayerNorm(word[id] + type[t] + position[p]); `types` may be null: all 0. The tables are of `real`.
KERNEL(embed, ROW_THREADS, const u32* ids, const u32* positions, const u8* types, const real* word, const real* position, const real* token_type,
       const float* weight, const float* bias, float epsilon, u32 rows, u32 columns, real* out) {
    DYNAMIC_SHARED(shared);
    const u32 lane = threadIdx.x % WARP, number = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP;
    if (number >= rows) return;
    float* row = (float*)shared + (u64)(threadIdx.x / WARP) * columns;
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
    norm_row(row, columns, sum, weight, bias, epsilon, out + (u64)number * columns);
}

// out[row] = LayerNorm(dense[row] + dense_bias + residual[at[row]]); `at` may be null: the row itself.
KERNEL(add_norm, ROW_THREADS, const real* dense, const float* dense_bias, const real* residual, const u32* at, const float* weight, const float* bias,
       float epsilon, u32 rows, u32 columns, real* out) {
    DYNAMIC_SHARED(shared);
    const u32 lane = threadIdx.x % WARP, number = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP;
    if (number >= rows) return;
    float* row = (float*)shared + (u64)(threadIdx.x / WARP) * columns;
    const real* of_dense = dense + (u64)number * columns;
    const real* of_residual = residual + (u64)(at ? at[number] : number) * columns;
    float sum = 0.0f;
    for (u32 column = lane * 8; column < columns; column += WARP * 8) {
        const Eight a = load_eight(of_dense + column), b = load_floats(dense_bias + column), c = load_eight(of_residual + column);
        Eight x;
        EACH_OF_EIGHT(i) { x.at[i] = a.at[i] + b.at[i] + c.at[i]; sum += x.at[i]; }
        store_floats(row + column, x);
    }
    norm_row(row, columns, sum, weight, bias, epsilon, out + (u64)number * columns);
}

// out[row] = LayerNorm(act(dense[row] + dense_bias)).
KERNEL(activate_norm, ROW_THREADS, const real* dense, const float* dense_bias, u32 kind, const float* weight, const float* bias, float epsilon, u32 rows,
       u32 columns, real* out) {
    DYNAMIC_SHARED(shared);
    const u32 lane = threadIdx.x % WARP, number = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP;
    if (number >= rows) return;
    float* row = (float*)shared + (u64)(threadIdx.x / WARP) * columns;
    const real* of_dense = dense + (u64)number * columns;
    float sum = 0.0f;
    for (u32 column = lane * 8; column < columns; column += WARP * 8) {
        const Eight a = load_eight(of_dense + column), b = load_floats(dense_bias + column);
        Eight x;
        EACH_OF_EIGHT(i) { x.at[i] = activate(kind, a.at[i] + b.at[i]); sum += x.at[i]; }
        store_floats(row + column, x);
    }
    norm_row(row, columns, sum, weight, bias, epsilon, out + (u64)number * columns);
}

#define ELEMENT_THREADS 256

// x = act(x + bias), or x + bias where `kind` is none of the activations.
#define NO_ACTIVATION 4
KERNEL(add_bias, ELEMENT_THREADS, real* x, const float* bias, u32 kind, u32 rows, u32 columns) {
    const u32 per_row = columns / 8, eights = rows * per_row;
    for (u32 eight = blockIdx.x * blockDim.x + threadIdx.x; eight < eights; eight += gridDim.x * blockDim.x) {
        const Eight of_bias = load_floats(bias + eight % per_row * 8);
        Eight of_x = load_eight(x + (u64)eight * 8);
        EACH_OF_EIGHT(i) {
            const float sum = of_x.at[i] + of_bias.at[i];
            of_x.at[i] = kind == NO_ACTIVATION ? sum : activate(kind, sum);
        }
        store_eight(x + (u64)eight * 8, of_x);
    }
}

// out[row] = x[at[row]].
KERNEL(gather, ELEMENT_THREADS, const real* x, const u32* at, u32 rows, u32 columns, real* out) {
    const u32 per_row = columns / 8, eights = rows * per_row;
    for (u32 eight = blockIdx.x * blockDim.x + threadIdx.x; eight < eights; eight += gridDim.x * blockDim.x) {
        const u32 row = eight / per_row, column = eight % per_row * 8;
        store_eight(out + (u64)eight * 8, load_eight(x + (u64)at[row] * columns + column));
    }
}

// float32 to `real`, eight by eight.
KERNEL(narrow, ELEMENT_THREADS, const float* x, u64 count, real* out) {
    for (u64 eight = (u64)blockIdx.x * blockDim.x + threadIdx.x; eight < count / 8; eight += (u64)gridDim.x * blockDim.x) {
        store_eight(out + eight * 8, load_floats(x + eight * 8));
    }
}
