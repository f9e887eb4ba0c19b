"""Compares exported students with transformers: loading without a word, logits within 1e-3, equal token ids. A cut student is
compared with the whole one's logits.

    cargo run -p trainer --example export_parity -- OUT TEXT TEACHER...
    python tests/export_parity.py OUT
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer


CASES = ["plain", "factorised", "plain-cut", "factorised-cut"]


class Mismatch(Exception):
    pass


def main():
    out = pathlib.Path(sys.argv[1])
    missing = [name for name in CASES if not (out / name).is_dir()]
    require(not missing, f"{out} lacks the cases {missing}")
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        check(folder)


def require(condition, message):
    """An assertion that `python -O` does not leave out."""
    if not condition:
        raise Mismatch(message)


def check(folder):
    model, loading = AutoModelForMaskedLM.from_pretrained(folder / "student", output_loading_info=True)
    surprises = {what: list(keys) for what, keys in loading.items() if keys}
    require(not surprises, f"{folder}: {surprises}")

    case = load_file(folder / "case.safetensors")
    lengths = case["lengths"].tolist()
    sequences = case["token_ids"].long().split(lengths)
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True)
    with torch.no_grad():
        logits = model.eval()(input_ids=padded, attention_mask=mask).logits[mask.bool()][case["masked_rows"].long()]
    require(logits.numel() > 0, f"{folder}: no logits")
    require(logits.shape == case["logits"].shape, f"{folder}: {logits.shape} and {case['logits'].shape}")
    difference = (logits - case["logits"]).abs().max().item()
    # Written so that NaN fails.
    require(difference < 1e-3, f"{folder}: logits differ by {difference}")

    ids = json.loads((folder / "ids.json").read_text())
    require(ids["ids"] and ids["lines"], f"{folder}: no token ids to compare")
    for name, expected in ids["ids"].items():
        tokenizer = AutoTokenizer.from_pretrained(folder / "student" / name)
        got = tokenizer(ids["lines"], add_special_tokens=False)["input_ids"]
        require(got == expected, f"{folder}: token ids of {name or 'the union'}")
        whole = tokenizer(ids["lines"][0])["input_ids"]
        special = [tokenizer.cls_token_id, *expected[0], tokenizer.sep_token_id]
        require(whole == special, f"{folder}: special tokens of {name or 'the union'}")
    scale = case["logits"].abs().max().item()
    print(f"{folder.name}: {type(model).__name__}, {logits.shape[0]} positions × {logits.shape[1]} logits up to {scale:.1f} "
          f"differ by at most {difference:.1e}; {len(ids['lines'])} lines, {len(ids['ids'])} tokenizers: equal ids")


if __name__ == "__main__":
    main()
