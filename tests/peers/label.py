"""Teacher labelling with transformers: text in, top-k logits + log-sum-exp at masked positions out; prints tokens/s.

    python label.py --teacher DIR --text FILE [--threads N] [--mode naive|tuned|compiled]
    python label.py --teacher DIR --examples DUMP [...]

`compiled` is what a BERT gains besides: sequences one behind the other without padding, flash attention within each, one projection
for queries, keys and values, torch.compile.

With --examples it labels what `mergedistill bench label --dump DUMP` labelled, the same tokens and masks, and compares the labels:
`max_difference` is the largest one among top-k logits and log-sum-exps, `ids_equal` whether the top-k ids are the same, leaving aside
swaps among logits that differ by less than 0.001.
"""

import argparse, json, os, resource, statistics, sys, time
import numpy as np, torch
from transformers import AutoTokenizer, BertForMaskedLM

p = argparse.ArgumentParser()
p.add_argument("--teacher", required=True); p.add_argument("--text"); p.add_argument("--examples")
p.add_argument("--threads", type=int, default=1); p.add_argument("--max-length", type=int, default=128)
p.add_argument("--top-k", type=int, default=8); p.add_argument("--limit-tokens", type=int, default=60_000)
p.add_argument("--batch-tokens", type=int, default=4096); p.add_argument("--batch-examples", type=int, default=32)
p.add_argument("--mode", choices=["naive", "tuned", "compiled"], default="tuned"); p.add_argument("--repeat", type=int, default=5)
p.add_argument("--device", default="cpu"); p.add_argument("--dtype", default="float32"); p.add_argument("--seed", type=int, default=0)
a = p.parse_args()
if (a.text is None) == (a.examples is None):
    p.error("give either --text or --examples")
if a.mode != "naive" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:  # glibc would hand large buffers back at every step: page faults
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"})
torch.set_num_threads(a.threads)
dtype = getattr(torch, a.dtype)
model = BertForMaskedLM.from_pretrained(a.teacher, dtype=dtype).to(a.device).eval()
SWAP = 1e-3  # ids of logits that are as close as this may change places


def pack(tok):
    """Sequences: the lines of a document packed greedily up to max_length."""
    examples, total = [], 0
    for document in open(a.text, encoding="utf-8").read().split("\n\n"):
        current = []
        for ids in tok(document.split("\n"), add_special_tokens=False)["input_ids"]:
            for i in range(0, len(ids), a.max_length - 2):
                piece = ids[i:i + a.max_length - 2]
                if len(current) + len(piece) > a.max_length - 2:
                    examples.append([tok.cls_token_id, *current, tok.sep_token_id]); total += len(current) + 2; current = []
                current = current + piece
        if current:
            examples.append([tok.cls_token_id, *current, tok.sep_token_id]); total += len(current) + 2
        if total >= a.limit_tokens:
            break
    return examples


def mask(tok, rng, ids):
    """15 % of the tokens: 80 % become [MASK], 10 % a random token, 10 % stay."""
    ids = np.array(ids); inner = np.arange(1, len(ids) - 1)
    at = inner[rng.random(len(inner)) < 0.15]
    if len(at) == 0: at = inner[:1]
    ids = ids.copy(); r = rng.random(len(at))
    ids[at[r < 0.8]] = tok.mask_token_id
    swap = at[r >= 0.9]; ids[swap] = rng.integers(5, len(tok), len(swap))
    return ids, at, None


def load(path):
    """The masked copies of a dump, each with the labels that it came with."""
    copies = []
    for line in open(path, encoding="utf-8"):
        copy = json.loads(line)
        labels = copy["top_ids"], copy["top_logits"], copy["log_sum_exp"]
        copies.append((np.array(copy["token_ids"]), np.array(copy["masked_positions"]), [torch.tensor(column) for column in labels]))
    return copies


tok = AutoTokenizer.from_pretrained(a.teacher)
PAD, rng = tok.pad_token_id, np.random.default_rng(a.seed)
data = load(a.examples) if a.examples else [mask(tok, rng, ids) for ids in pack(tok)]
top_k = data[0][2][0].shape[1] if a.examples else a.top_k


def batches():
    if a.mode == "naive":
        for i in range(0, len(data), a.batch_examples):
            yield data[i:i + a.batch_examples]
    else:
        batch = []
        for e in sorted(data, key=lambda e: len(e[0])):
            if batch and len(e[0]) * (len(batch) + 1) > a.batch_tokens:
                yield batch; batch = []
            batch.append(e)
        yield batch


class Comparison:
    """How far the dump's labels are from ours."""

    def __init__(self):
        self.max_difference, self.ids_equal = 0.0, True

    def add(self, batch, logits, top, lse):
        # The rows are in the order of the batch: sequence by sequence, positions ascending.
        ids, theirs, their_lse = (torch.cat([labels[column] for _, _, labels in batch]) for column in range(3))
        for difference in (theirs - top.values.cpu(), their_lse - lse.cpu()):
            # Not max(a, b), which could hide a NaN.
            self.max_difference = float(torch.cat([difference.abs().flatten(), torch.tensor([self.max_difference])]).max())
        distinct = bool((ids.sort(-1).values.diff(dim=-1) != 0).all())
        own = logits.float().cpu().gather(-1, ids)  # our logits of the dump's ids, rank by rank
        self.ids_equal = self.ids_equal and distinct and bool(((own - top.values.cpu()).abs() < SWAP).all())

    def fields(self):
        return {"max_difference": self.max_difference, "ids_equal": self.ids_equal}


def attend(q, k, v, starts, longest):
    """Within each sequence; `[tokens, heads, size]`."""
    if q.is_cuda:
        from torch.nn.attention.varlen import varlen_attn
        return varlen_attn(q, k, v, starts, starts, longest, longest)
    parts = [[x[None, begin:end].transpose(1, 2) for x in (q, k, v)] for begin, end in zip(starts[:-1], starts[1:])]
    return torch.cat([torch.nn.functional.scaled_dot_product_attention(*part).transpose(1, 2)[0] for part in parts])


class Packed:
    """The same weights on sequences without padding: `ids`, `positions` [tokens], `starts` [sequences + 1], `rows` [masked]."""

    def __init__(self, bert):
        self.embeddings, self.heads = bert.embeddings, bert.config.num_attention_heads
        self.layers = []
        for layer in bert.encoder.layer:
            maps = [layer.attention.self.query, layer.attention.self.key, layer.attention.self.value]
            self.layers.append((layer, torch.cat([m.weight for m in maps]), torch.cat([m.bias for m in maps])))
        self.forward = torch.compile(self.plain, dynamic=True) if a.device != "cpu" else self.plain

    def plain(self, ids, positions, starts, longest, rows):
        e, linear = self.embeddings, torch.nn.functional.linear
        x = e.LayerNorm(e.word_embeddings(ids) + e.position_embeddings(positions) + e.token_type_embeddings.weight[0])
        for layer, weight, bias in self.layers:
            q, k, v = linear(x, weight, bias).view(len(x), 3, self.heads, -1).unbind(1)
            attention = layer.attention.output
            x = attention.LayerNorm(attention.dense(attend(q, k, v, starts, longest).reshape(x.shape)) + x)
            inner = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(x))
            x = layer.output.LayerNorm(layer.output.dense(inner) + x)
        return x[rows]

    def hidden(self, batch):
        lengths = [len(ids) for ids, _, _ in batch]
        starts = np.cumsum([0, *lengths])
        rows = np.concatenate([at + start for (_, at, _), start in zip(batch, starts)])
        positions = np.concatenate([np.arange(length) for length in lengths])
        arrays = np.concatenate([ids for ids, _, _ in batch]), positions, starts.astype(np.int32), rows
        ids, positions, starts, rows = (torch.from_numpy(array).to(a.device, non_blocking=True) for array in arrays)
        return self.forward(ids, positions, starts, max(lengths), rows)


packed = Packed(model.bert) if a.mode == "compiled" else None


@torch.inference_mode()
def run(comparison=None):
    positions = 0
    for b in batches():
        if packed:
            logits = model.cls(packed.hidden(b))
            top = logits.float().topk(top_k, -1); lse = logits.float().logsumexp(-1)
            top.values.cpu(), top.indices.cpu(), lse.cpu(); positions += len(lse)
            if comparison: comparison.add(b, logits, top, lse)
            continue
        n = max(len(i) for i, _, _ in b)
        ids = torch.full((len(b), n), PAD); keep = torch.zeros((len(b), n), dtype=torch.long); sel = torch.zeros((len(b), n), dtype=torch.bool)
        for r, (i, at, _) in enumerate(b):
            ids[r, :len(i)] = torch.from_numpy(i); keep[r, :len(i)] = 1; sel[r, at] = True
        ids, keep, sel = ids.to(a.device), keep.to(a.device), sel.to(a.device)
        if a.mode == "naive":
            logits = model(input_ids=ids, attention_mask=keep).logits[sel]
        else:
            logits = model.cls(model.bert(input_ids=ids, attention_mask=None if bool(keep.all()) else keep)[0][sel])
        top = logits.float().topk(top_k, -1); lse = logits.float().logsumexp(-1)
        top.values.cpu(), top.indices.cpu(), lse.cpu(); positions += len(lse)
        if comparison: comparison.add(b, logits, top, lse)
    if a.device != "cpu": torch.cuda.synchronize()
    return positions


comparison = Comparison() if a.examples else None
run(comparison)  # warms up
times = []
for _ in range(a.repeat):
    t = time.perf_counter(); positions = run(); times.append(time.perf_counter() - t)
tokens = sum(len(i) for i, _, _ in data); s = statistics.median(times)
print(json.dumps({"peer": "transformers", "mode": a.mode, "threads": a.threads, "device": a.device, "dtype": a.dtype, "tokens": tokens,
                  "masked_positions": positions, "seconds": round(s, 4), "tokens_per_second": round(tokens / s, 1),
                  "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                  **(comparison.fields() if comparison else {})}))
