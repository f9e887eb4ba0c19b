// The loss at masked positions and its gradient to the logits (trainer/src/loss.rs has the formulas). A block has a position.

#define LOSS_THREADS 256
#define ENTRIES 1024

__device__ __forceinline__ double block_sum(double mine, double* sums) {
    __syncthreads();
    sums[threadIdx.x] = mine;
    for (u32 half = LOSS_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();
    return sums[0];
}

// Orders logits, of equal ones the lower word first, as one number; what is not a number is below all.
__device__ __forceinline__ u64 rank(float logit, u32 word) { return logit == logit ? (u64)ordered(logit) << 32 | (u64)(~word) : 0; }

// logits [positions, stride] without the bias are overwritten. Position p has the teacher's tokens ids[starts[p] .. starts[p + 1]], each once, at most ENTRIES, with their
// probabilities; `tails` and `more_of_gold` are mass outside them, and on the gold token besides. losses [positions, 2]: distillation, gold label; found [positions, 3]: whether
// the gold token has the highest logit, the token that has, and its probability's bits. `gradient` [positions, stride] may be null, and, of float32, the logits' own place.
KERNEL(distil, LOSS_THREADS, float* logits, u32 stride, const float* bias, u32 vocabulary, const u32* golds, const u32* starts, const u32* ids,
       const float* probabilities, const float* tails, const float* more_of_gold, const float* weights, const float* lambdas, double* losses, u32* found,
       real* gradient) {
    __shared__ float of_entry[ENTRIES];
    __shared__ double sums[LOSS_THREADS];
    __shared__ u64 ranks[LOSS_THREADS];
    const u64 position = blockIdx.x;
    float* x = logits + position * stride;
    const u32 first = starts[position], count = starts[position + 1] - first, gold = golds[position];
    const u32* entry_ids = ids + first;
    const float* p = probabilities + first;

    const float of_gold = x[gold] + bias[gold];
    u64 best = 0;
    for (u32 entry = threadIdx.x; entry < count; entry += LOSS_THREADS) {
        of_entry[entry] = x[entry_ids[entry]] + bias[entry_ids[entry]];
        const u64 here = rank(of_entry[entry], entry_ids[entry]);
        best = here > best ? here : best;
    }
    __syncthreads();
    for (u32 entry = threadIdx.x; entry < count; entry += LOSS_THREADS) x[entry_ids[entry]] = -INFINITE;
    __syncthreads();

    // All others. The largest is finite, so that a position of nothing but −∞ has sum 0 and not NaN; what is not a number is found in the sum.
    float largest = -3.402823466e38f, sum = 0.0f;
    for (u32 word = 4 * threadIdx.x; word < vocabulary; word += 4 * LOSS_THREADS) {
        const Four four = load_logits(x, bias, word, vocabulary);
        const float largest_here = largest_of(four);
        if (largest_here > largest) {
            sum *= expf(largest - largest_here);
            largest = largest_here;
        }
        EACH_OF_FOUR(i) {
            sum += expf(four.at[i] - largest);
            const u64 here = word + i < vocabulary ? rank(four.at[i], word + i) : 0;
            best = here > best ? here : best;
        }
    }
    ranks[threadIdx.x] = best;
    sums[threadIdx.x] = (double)largest;
    for (u32 half = LOSS_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        const u32 other = threadIdx.x + half;
        ranks[threadIdx.x] = ranks[other] > ranks[threadIdx.x] ? ranks[other] : ranks[threadIdx.x];
        sums[threadIdx.x] = sums[other] > sums[threadIdx.x] ? sums[other] : sums[threadIdx.x];
    }
    __syncthreads();
    best = ranks[0];
    const double of_others = sums[0];
    const double others = of_others + log(block_sum((double)sum * exp((double)largest - of_others), sums));

    double top = others;
    for (u32 entry = 0; entry < count; entry++) top = (double)of_entry[entry] > top ? (double)of_entry[entry] : top;
    double total = 0.0, mass = 0.0;
    for (u32 entry = threadIdx.x; entry < count; entry += LOSS_THREADS) {
        total += exp((double)of_entry[entry] - top);
        mass += (double)p[entry];
    }
    const double z = top + log(block_sum(total, sums) + exp(others - top));
    mass = block_sum(mass, sums);
    double distillation = 0.0;
    for (u32 entry = threadIdx.x; entry < count; entry += LOSS_THREADS) distillation += (double)p[entry] * (z - (double)of_entry[entry]);
    distillation = block_sum(distillation, sums);

    // The bucket has no place where the teacher's tokens are the whole vocabulary.
    const double tail = count < vocabulary ? (double)tails[position] : 0.0, more = (double)more_of_gold[position];
    const double lambda = (double)lambdas[position], weight = (double)weights[position], of_label = z - (double)of_gold;
    if (tail != 0.0) distillation += tail * (z - others);
    if (more != 0.0) distillation += more * of_label;
    if (threadIdx.x == 0) {
        losses[2 * position] = distillation;
        losses[2 * position + 1] = of_label;
        const u32 word = ~(u32)best;
        found[3 * position] = word == gold && of_gold == of_gold;
        found[3 * position + 1] = best == 0 ? 0 : word;
        found[3 * position + 2] = __float_as_uint((float)exp((double)of_ordered((u32)(best >> 32)) - z));
    }
    if (!gradient) return;

    const float full = (float)(weight * (lambda * (mass + tail + more) + 1.0 - lambda)), of_tail = (float)(weight * lambda * tail);
    const float of_z = (float)z, of_z_tail = (float)others, at_gold = (float)(weight * (1.0 - lambda + lambda * more));
    real* g = gradient + position * stride;
    auto plain = [&](float logit) {
        const float whole = full * expf(logit - of_z);
        return of_tail == 0.0f ? whole : whole - of_tail * expf(logit - of_z_tail);
    };
    // Behind the vocabulary, where logits are −∞, it is 0: products go on until the stride.
    for (u32 word = 4 * threadIdx.x; word < stride; word += 4 * LOSS_THREADS) {
        Four four = load_logits(x, bias, word, vocabulary);
        EACH_OF_FOUR(i) four.at[i] = plain(four.at[i]);
        store_four(g + word, four);
    }
    __syncthreads();
    // Again where a label adds something: the gold token, unless it is one of the teacher's.
    bool mine = false;
    for (u32 entry = threadIdx.x; entry < count; entry += LOSS_THREADS) {
        const float here = (float)((double)full * exp((double)of_entry[entry] - z) - weight * lambda * (double)p[entry]);
        const bool is_gold = entry_ids[entry] == gold;
        mine |= is_gold;
        g[entry_ids[entry]] = to_real(is_gold ? here - at_gold : here);
    }
    if (block_sum(mine ? 1.0 : 0.0, sums) == 0.0 && threadIdx.x == 0) g[gold] = to_real(plain(of_gold) - at_gold);
}
