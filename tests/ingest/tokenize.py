"""Tokenising alone with `tokenizers` from Python on one thread: the work that `mergedistill bench ingest` does besides reading, segmenting and masking.

    python tokenize.py --teacher DIR [--teacher DIR ...] --text FILE ... [--repeat N]

Every document (they lie between empty lines) is tokenised with the tokenizer of every teacher, once with `encode`, once with `encode_batch` and once
with `encode_batch_fast`, which leaves the offsets out. Prints the median of each in seconds, and the figures of the fastest.
"""

import os

# Before `tokenizers` is loaded: no threads of its own.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import argparse
import json
import re
import statistics
import time

import tokenizers


def documents(paths):
    for path in paths:
        with open(path, encoding="utf-8", newline="") as file:
            yield from (document for document in re.split(r"\n[ \t\r]*\n", file.read()) if document.strip())


def load(folder):
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


WAYS = {
    "encode": lambda tokenizer, texts: sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts),
    "encode_batch": lambda tokenizer, texts: sum(map(len, tokenizer.encode_batch(texts, add_special_tokens=False))),
    "encode_batch_fast": lambda tokenizer, texts: sum(map(len, tokenizer.encode_batch_fast(texts, add_special_tokens=False))),
}


def timed(way, tokenizers_of_teachers, texts):
    start = time.perf_counter()
    tokens = sum(way(tokenizer, texts) for tokenizer in tokenizers_of_teachers)
    return time.perf_counter() - start, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", action="append", required=True)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    teachers = [load(folder) for folder in options.teacher]
    texts = list(documents(options.text))
    size = sum(len(text.encode()) for text in texts)
    seconds = {name: [] for name in WAYS}
    for _ in range(options.repeat):
        for name, way in WAYS.items():
            took, tokens = timed(way, teachers, texts)
            seconds[name].append(took)
    medians = {name: statistics.median(took) for name, took in seconds.items()}
    fastest = min(medians, key=medians.get)
    took = medians[fastest]
    figures = {
        "version": tokenizers.__version__,
        "documents": len(texts),
        "bytes": size,
        "tokens": tokens,
        "way": fastest,
        "seconds": took,
        "mb_per_second": size / 1e6 / took,
        "tokens_per_second": tokens / took,
        "seconds_by_way": medians,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
