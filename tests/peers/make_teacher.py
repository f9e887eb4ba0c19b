"""Writes a teacher of BERT-base's shape (12 × 768, 12 heads, 30,000 words): its speed is that of a real one, its words come from a text.

    python make_teacher.py OUT --text FILE

The weights are random (a fixed seed), float32 safetensors. The vocabulary is a WordPiece one trained on the text; what it lacks to
30,000 words is filled up with [unused0], [unused1], ...
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM

WORDS = 30_000
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vocabulary(text):
    """WORDS words by id, the special ones first."""
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train([text], vocab_size=WORDS, min_frequency=2, special_tokens=SPECIAL, show_progress=False)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    return words + [f"[unused{number}]" for number in range(WORDS - len(words))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", required=True)
    arguments = parser.parse_args()
    words = vocabulary(arguments.text)
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=WORDS, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072))
    model.save_pretrained(arguments.out)
    (arguments.out / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (arguments.out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    print(f"{arguments.out}: {len(words)} words, {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
