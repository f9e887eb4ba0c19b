// A sampled tail: of a row's k labels the last ones are drawn from the words beyond the first ones, systematically, with probabilities proportional to their own. What is
// drawn, and what it counts, is said where the processor does it (the teacher's `head/tail.rs`). A block has a row, of which the best k are known already.

#define TAIL_THREADS 256
// Words whose masses are added up by one warp. A line has a number for each tile.
#define TILE_WORDS 512
// A share of the whole mass that sums of float32 numbers do not resolve.
#define NEGLIGIBLE (1.0 / (1 << 22))
#define NOBODY 0xffffffffu

__device__ __forceinline__ double warp_sum_of_doubles(double x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, step);
    return x;
}

// The words of one row, and how much of its mass each has: exp(logit − largest).
struct Masses {
    const float* logits;
    const float* bias;
    float largest;
    u32 words;

    __device__ __forceinline__ double at(u32 word) const { return word < words ? (double)expf(logits[word] + bias[word] - largest) : 0.0; }
};

// The word at `share` (0 to 1) of what a tile has without the `exact` ids; NOBODY when rounding leaves none. All lanes of a warp call it and get the same.
__device__ __forceinline__ u32 find_word(const Masses& masses, u32 first, double share, const u32* exact_ids, u32 exact) {
    const u32 lane = threadIdx.x % WARP;
    double mine[TILE_WORDS / WARP];
    double sum = 0.0;
#pragma unroll
    for (int part = 0; part < TILE_WORDS / WARP; part++) {
        const u32 word = first + part * WARP + lane;
        mine[part] = masses.at(word);
        for (u32 i = 0; i < exact; i++) {
            if (exact_ids[i] == word) mine[part] = 0.0;
        }
        sum += mine[part];
    }
    const double point = share * warp_sum_of_doubles(sum);
    double before = 0.0;
    u32 found = NOBODY;
#pragma unroll
    for (int part = 0; part < TILE_WORDS / WARP; part++) {
        // Up to and with this lane's word.
        double until = mine[part];
        for (int step = 1; step < WARP; step *= 2) {
            const double lower = __shfl_sync(WHOLE_WARP, until, (lane - step) % WARP);
            if (lane >= (u32)step) until += lower;
        }
        // Whatever rounding says, a word without mass is not drawn.
        const u32 beyond = __ballot_sync(WHOLE_WARP, mine[part] > 0.0 && before + until > point);
        if (found == NOBODY && beyond) found = first + part * WARP + (u32)__ffs((int)beyond) - 1;
        before += __shfl_sync(WHOLE_WARP, until, WARP - 1);
    }
    return found;
}

// logits [rows, stride] without the bias; top_ids and top_logits [rows, k] hold the best k of the first `words`, and get what was drawn in place of the last ones.
// uniforms [rows] are within 0 and 1. Shared memory: a double for each tile, a double and two u32 for each of the k.
KERNEL(draw_tail, TAIL_THREADS, const float* logits, u32 stride, const float* bias, u32 words, u32 k, u32 samples, const double* uniforms, const float* log_sum_exp,
       u32* top_ids, float* top_logits) {
    DYNAMIC_SHARED(shared);
    const u64 row = blockIdx.x;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, tiles = (words + TILE_WORDS - 1) / TILE_WORDS;
    double* line = (double*)shared;
    double* shares = line + tiles;
    u32* hits = (u32*)(shares + k);
    u32* drawn = hits + k;
    __shared__ u32 exact, draws;
    __shared__ double weight;
    u32* ids = top_ids + row * k;
    float* best = top_logits + row * k;
    const Masses masses = {logits + row * stride, bias, best[0], words};

    for (u32 tile = warp; tile < tiles; tile += TAIL_THREADS / WARP) {
        double sum = 0.0;
        for (u32 word = tile * TILE_WORDS + lane; word < (tile + 1) * TILE_WORDS; word += WARP) sum += masses.at(word);
        sum = warp_sum_of_doubles(sum);
        if (lane == 0) line[tile] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double rest = 0.0, of_best = 0.0;
        for (u32 tile = 0; tile < tiles; tile++) rest += line[tile];
        for (u32 i = 0; i < k; i++) of_best += (double)expf(best[i] - masses.largest);
        exact = k - samples;
        if (rest - of_best <= exp((double)(log_sum_exp[row] - masses.largest)) * NEGLIGIBLE) exact = k;
        for (u32 i = 0; i < exact; i++) {
            const double mass = (double)expf(best[i] - masses.largest);
            double* left = line + ids[i] / TILE_WORDS;
            *left = *left > mass ? *left - mass : 0.0;
            rest -= mass;
        }
        // Who would be drawn for certain is kept as it is.
        for (; exact < k; exact++) {
            const double mass = (double)expf(best[exact] - masses.largest);
            if (mass * (k - exact) < rest) break;
            double* left = line + ids[exact] / TILE_WORDS;
            *left = *left > mass ? *left - mass : 0.0;
            rest -= mass;
        }
        double length = 0.0;
        for (u32 tile = 0; tile < tiles; tile++) length += line[tile];
        draws = k - exact;
        weight = draws ? length / draws : 0.0;
        if (!(weight > 0.0)) draws = 0;
        u32 placed = 0;
        double before = 0.0;
        for (u32 tile = 0; tile < tiles && placed < draws; tile++) {
            for (; placed < draws; placed++) {
                const double point = (uniforms[row] + placed) * weight;
                if (point >= before + line[tile]) break;
                hits[placed] = tile;
                shares[placed] = (point - before) / line[tile];
            }
            before += line[tile];
        }
        for (; placed < draws; placed++) hits[placed] = NOBODY;
    }
    __syncthreads();
    for (u32 draw = warp; draw < draws; draw += TAIL_THREADS / WARP) {
        const u32 found = hits[draw] == NOBODY ? NOBODY : find_word(masses, hits[draw] * TILE_WORDS, shares[draw], ids, exact);
        if (lane == 0) drawn[draw] = found;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        // Points go up, and so do words. Rounding lost a point, or let two fall on one word: then the best k stand.
        bool all = true;
        for (u32 i = 0; i < draws; i++) all = all && drawn[i] != NOBODY && (i == 0 || drawn[i] > drawn[i - 1]);
        const float logit = (float)((double)masses.largest + log(weight));
        for (u32 i = 0; all && i < draws; i++) {
            ids[exact + i] = drawn[i];
            best[exact + i] = logit;
        }
    }
}
