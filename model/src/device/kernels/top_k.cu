// The labelling head: from a row's logits to its top k, the log-sum-exp, and the gold token's logit. A block has a row.

#define TOP_K_THREADS 256
// Candidates for the top k that are sorted in shared memory.
#define CANDIDATES 4096

// Orders numbers as unsigned ones; −0 and 0 are equal.
__device__ __forceinline__ u32 ordered(float x) {
    const u32 bits = __float_as_uint(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float of_ordered(u32 bits) { return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits); }

// Sorts `count` numbers (a power of two) in shared memory, the largest first.
template <typename T>
__device__ __forceinline__ void sort_descending(T* numbers, u32 count) {
    for (u32 width = 2; width <= count; width *= 2) {
        for (u32 apart = width / 2; apart > 0; apart /= 2) {
            __syncthreads();
            for (u32 i = threadIdx.x; i < count / 2; i += TOP_K_THREADS) {
                const u32 low = i / apart * apart * 2 + i % apart, high = low + apart;
                const bool descending = (low & width) == 0;
                const T a = numbers[low], b = numbers[high];
                if ((a < b) == descending) { numbers[low] = b; numbers[high] = a; }
            }
        }
    }
    __syncthreads();
}

// The sum over the block of what each thread counted.
__device__ __forceinline__ u32 block_count(u32 mine, u32* counter) {
    __syncthreads();
    if (threadIdx.x == 0) *counter = 0;
    __syncthreads();
    if (mine) atomicAdd(counter, mine);
    __syncthreads();
    return *counter;
}

// The largest number for which at least `wanted` of the words satisfy `reaches(word, number)`, found bit by bit: the way out when there are too many candidates.
template <typename Reaches>
__device__ __forceinline__ u32 bisect(u32 words, u32 wanted, u32* counter, const Reaches& reaches) {
    u32 found = 0;
    for (int bit = 31; bit >= 0; bit--) {
        const u32 trial = found | 1u << bit;
        u32 mine = 0;
        for (u32 word = threadIdx.x; word < words; word += TOP_K_THREADS) mine += reaches(word, trial);
        if (block_count(mine, counter) >= wanted) found = trial;
    }
    return found;
}

// Best labels of each thread: with GROUPS of them for each, a bound for the k-th best of all words is the k-th best of these.
template <int GROUPS>
__device__ __forceinline__ void top_k_of_row(const float* logits, const float* bias, u32 gold, u32 vocabulary, u32 words, u32 k, u32* top_ids,
                                             float* top_logits, float* log_sum_exp, float* gold_logit, u32* not_finite) {
    DYNAMIC_SHARED(shared);
    u64* candidates = (u64*)shared;
    u32* best = (u32*)(candidates + CANDIDATES);
    float* largest = (float*)(best + GROUPS * TOP_K_THREADS);
    double* sums = (double*)(largest + TOP_K_THREADS);
    u32* counter = (u32*)(sums + TOP_K_THREADS);

    float maximum = -INFINITE, sum = 0.0f;
    u32 of_group[GROUPS];
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        of_group[group] = 0;
    }
    for (u32 first = 0; first < vocabulary; first += 4 * GROUPS * TOP_K_THREADS) {
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const u32 word = first + 4 * (group * TOP_K_THREADS + threadIdx.x);
            if (word >= vocabulary) continue;
            const Four four = load_logits(logits, bias, word, vocabulary);
            const float largest_here = largest_of(four);
            if (largest_here > maximum) {
                sum *= expf(maximum - largest_here);
                maximum = largest_here;
            }
            EACH_OF_FOUR(i) {
                const float logit = four.at[i];
                if (word + i < vocabulary && !(fabsf(logit) < INFINITE)) atomicMin(not_finite, word + i);
                sum += expf(logit - maximum);
                if (word + i < words) {
                    const u32 key = ordered(logit);
                    of_group[group] = key > of_group[group] ? key : of_group[group];
                }
                if (word + i == gold) *gold_logit = logit;
            }
        }
    }
#pragma unroll
    for (int group = 0; group < GROUPS; group++) best[group * TOP_K_THREADS + threadIdx.x] = of_group[group];
    largest[threadIdx.x] = maximum;
    __syncthreads();
    float of_all = -INFINITE;
    for (u32 i = 0; i < TOP_K_THREADS; i++) of_all = fmaxf(of_all, largest[i]);
    sums[threadIdx.x] = sum > 0.0f ? (double)sum * exp((double)(maximum - of_all)) : 0.0;
    for (u32 half = TOP_K_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *log_sum_exp = (float)((double)of_all + log(sums[0]));

    sort_descending(best, GROUPS * TOP_K_THREADS);
    const u32 bound = best[k - 1];
    auto key_of = [&](u32 word) { return ordered(logits[word] + bias[word]); };
    auto gather = [&](const auto& wanted) {
        __syncthreads();
        if (threadIdx.x == 0) *counter = 0;
        __syncthreads();
        for (u32 first = 4 * threadIdx.x; first < words; first += 4 * TOP_K_THREADS) {
            const Four four = load_logits(logits, bias, first, vocabulary);
            EACH_OF_FOUR(i) {
                const u32 word = first + i, key = ordered(four.at[i]);
                if (word >= words || !wanted(word, key)) continue;
                const u32 place = atomicAdd(counter, 1u);
                if (place < CANDIDATES) candidates[place] = (u64)key << 32 | (u64)(~word);
            }
        }
        __syncthreads();
        return *counter;
    };
    u32 count = gather([&](u32, u32 key) { return key >= bound; });
    if (count > CANDIDATES) {
        // The k-th best logit, and of the words that have it the last one that is wanted.
        const u32 least = bisect(words, k, counter, [&](u32 word, u32 trial) { return key_of(word) >= trial; });
        u32 mine = 0;
        for (u32 word = threadIdx.x; word < words; word += TOP_K_THREADS) mine += key_of(word) > least;
        const u32 equal = k - block_count(mine, counter);
        const u32 last = ~bisect(words, equal, counter, [&](u32 word, u32 trial) { return key_of(word) == least && ~word >= trial; });
        count = gather([&](u32 word, u32 key) { return key > least || (key == least && word <= last); });
    }
    u32 size = 2;
    while (size < count) size *= 2;
    for (u32 i = count + threadIdx.x; i < size; i += TOP_K_THREADS) candidates[i] = 0;
    sort_descending(candidates, size);
    for (u32 i = threadIdx.x; i < k; i += TOP_K_THREADS) {
        top_ids[i] = ~(u32)candidates[i];
        top_logits[i] = of_ordered((u32)(candidates[i] >> 32));
    }
}

// logits [rows, stride] without the bias; words ≤ vocabulary ≤ stride. Only `words` can be among the top k; all of the vocabulary counts in the log-sum-exp.
// `not_finite` becomes the lowest token whose logit is not finite in any row, if that is lower.
#define TOP_K(NAME, GROUPS)                                                                                                                                  \
    KERNEL(NAME, TOP_K_THREADS, const float* logits, u32 stride, const float* bias, const u32* golds, u32 vocabulary, u32 words, u32 k, u32* top_ids,      \
           float* top_logits, float* log_sum_exp, float* gold_logits, u32* not_finite) {                                                                   \
        const u64 row = blockIdx.x;                                                                                                                        \
        top_k_of_row<GROUPS>(logits + row * stride, bias, golds[row], vocabulary, words, k, top_ids + row * k, top_logits + row * k, log_sum_exp + row, \
                             gold_logits + row, not_finite);                                                                                               \
    }
TOP_K(top_128, 1)
TOP_K(top_1024, 8)
