"""What transformers makes of a teacher and a text: token ids, and top-8 logits, log-sum-exp and gold logit at masked positions.

    python teacher_parity.py TEACHER_DIR TEXT_FILE OUT.safetensors [--masked 600] [--seed 0]
    cargo run -p model --example teacher_parity -- TEACHER_DIR OUT.safetensors

The file holds, as arrays one after another:
    texts (bytes), text_lengths; text_ids, text_offsets (bytes), text_token_counts   the tokenizer's output, a text each
    token_ids, lengths                                                               sequences as the model sees them, masks in
    masked_rows, gold_ids, top_ids, top_logits, log_sum_exp, gold_logits             one entry per masked position
"""

import argparse

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

TOP_K = 8


def tokenise(tokenizer, texts):
    """Token ids of each text without special tokens, and their offsets in bytes."""
    ids, offsets, counts = [], [], []
    for text in texts:
        encoding = tokenizer._tokenizer.encode(text, add_special_tokens=False)
        assert encoding.ids == tokenizer(text, add_special_tokens=False)["input_ids"], text
        byte_of = np.cumsum([0] + [len(c.encode()) for c in text])
        ids.extend(encoding.ids)
        offsets.extend((byte_of[first], byte_of[end]) for first, end in encoding.offsets)
        counts.append(len(encoding.ids))
    return ids, offsets, counts


def mask_sequences(tokenizer, texts, longest, rate, wanted, rng):
    """Sequences [CLS] … [SEP] of many lengths, with about `rate` of their tokens masked, until `wanted` masks are there."""
    special = set(tokenizer.all_special_ids)
    ordinary = np.array([i for i in range(len(tokenizer)) if i not in special])
    sequences, masked = [], 0
    while masked < wanted:
        before = masked
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            first = 0
            while first < len(ids) and masked < wanted:
                length = int(rng.integers(1, longest - 1))
                piece = np.array([tokenizer.cls_token_id, *ids[first : first + length], tokenizer.sep_token_id])
                first += length
                may = np.array([i for i in range(1, len(piece) - 1) if piece[i] not in special])
                if len(may) == 0:
                    continue
                at = may[rng.random(len(may)) < rate]
                at = at if len(at) else may[:1]
                gold = piece[at].copy()
                draw = rng.random(len(at))
                piece[at[draw < 0.8]] = tokenizer.mask_token_id
                swapped = at[draw >= 0.9]
                piece[swapped] = rng.choice(ordinary, len(swapped))
                sequences.append((piece, at, gold))
                masked += len(at)
        assert masked > before, "the texts have no tokens to mask"
    return sequences


@torch.inference_mode()
def label(model, sequences, words):
    """Rows of the packed batch, gold ids and outputs; the top 8 are among the tokenizer's words alone."""
    rows, gold_ids, top_ids, top_logits, log_sum_exp, gold_logits = [], [], [], [], [], []
    first_row = 0
    for piece, at, gold in sequences:
        logits = model(input_ids=torch.from_numpy(piece)[None]).logits[0, at]
        top = logits[:, :words].topk(TOP_K, -1)
        rows.extend(first_row + at)
        gold_ids.extend(gold)
        top_ids.append(top.indices.numpy())
        top_logits.append(top.values.numpy())
        log_sum_exp.append(logits.logsumexp(-1).numpy())
        gold_logits.append(logits.gather(-1, torch.from_numpy(gold)[:, None])[:, 0].numpy())
        first_row += len(piece)
    return {
        "masked_rows": np.array(rows, np.int32),
        "gold_ids": np.array(gold_ids, np.int32),
        "top_ids": np.concatenate(top_ids).astype(np.int32),
        "top_logits": np.concatenate(top_logits).astype(np.float32),
        "log_sum_exp": np.concatenate(log_sum_exp).astype(np.float32),
        "gold_logits": np.concatenate(gold_logits).astype(np.float32),
    }


def expectation(tokenizer, model, texts, *, wanted, seed, rate=0.15):
    """All arrays of the file."""
    model = model.float().eval()
    ids, offsets, counts = tokenise(tokenizer, texts)
    longest = model.config.max_position_embeddings
    sequences = mask_sequences(tokenizer, texts, longest, rate, wanted, np.random.default_rng(seed))
    texts = [text.encode() for text in texts]
    return {
        "texts": np.frombuffer(b"".join(texts), np.uint8),
        "text_lengths": np.array([len(text) for text in texts], np.int32),
        "text_ids": np.array(ids, np.int32),
        "text_offsets": np.array(offsets, np.int32).reshape(-1, 2),
        "text_token_counts": np.array(counts, np.int32),
        "token_ids": np.concatenate([piece for piece, _, _ in sequences]).astype(np.int32),
        "lengths": np.array([len(piece) for piece, _, _ in sequences], np.int32),
    } | label(model, sequences, max(tokenizer.get_vocab().values()) + 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--masked", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    tokenizer._tokenizer.no_truncation()
    tokenizer._tokenizer.no_padding()
    model = AutoModelForMaskedLM.from_pretrained(arguments.teacher, dtype=torch.float32)
    with open(arguments.text, encoding="utf-8", newline="") as file:
        texts = [text for text in file.read().split("\n") if text]
    arrays = expectation(tokenizer, model, texts, wanted=arguments.masked, seed=arguments.seed)
    save_file(arrays, arguments.out)
    print(f"{len(texts)} texts, {len(arrays['lengths'])} sequences, {len(arrays['gold_ids'])} masked positions")


if __name__ == "__main__":
    main()
