"""Compares the token ids of a log's copies with those that transformers' AutoTokenizer gives their texts.

    [store] keep_text = true, in a run with the tokenizer as a teacher (labels = false will do)
    python tests/parity/tokenizer_parity.py MERGEDISTILL LOG TEACHER=FOLDER...
"""

import json
import subprocess
import sys

from transformers import AutoTokenizer


def main():
    program, log, *teachers = sys.argv[1:]
    tokenizers = {}
    for teacher in teachers:
        name, folder = teacher.split("=", 1)
        tokenizers[name] = AutoTokenizer.from_pretrained(folder)
    dump = subprocess.Popen([program, "log", "dump", log, "--json"], stdout=subprocess.PIPE, text=True)
    compared = dict.fromkeys(tokenizers, 0)
    for line in dump.stdout:
        record = json.loads(line)
        for copy in record["copies"]:
            tokenizer = tokenizers.get(copy["teacher"])
            if tokenizer is None:
                continue
            ids = copy["token_ids"]
            for position, gold in zip(copy["masked_positions"], copy["gold_ids"], strict=True):
                ids[position] = gold
            expected = tokenizer(record["text"])["input_ids"]
            if ids != expected:
                sys.exit(f"record {record['seq']}, {copy['teacher']}: {ids} instead of {expected}")
            compared[copy["teacher"]] += len(ids)
    if dump.wait() != 0 or not all(compared.values()):
        sys.exit(f"not everything could be compared: {compared} tokens")
    print(f"equal ids: {compared} tokens")


if __name__ == "__main__":
    main()
