"""What pyarrow, and datasets where it is installed, read from `log export --parquet`, beside `log dump --json`.

    pip install pyarrow datasets
    python tests/parity/parquet_parity.py LOG [--binary target/release/mergedistill] [--teacher NAME] [--language LANGUAGE]

Every row must be the copy that `log dump` prints, to the bit. Prints the file's schema; exit code 1 at the first difference.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

OF_RECORD = ("seq", "source", "document", "language", "round", "held_out")
OF_COPY = ("teacher", "token_ids", "masked_positions", "gold_ids", "top_ids")
FLOATS = ("top_logits", "log_sum_exp", "gold_logits")


def dumped(options):
    """The rows that are wanted, made from `log dump`."""
    dump = subprocess.Popen([options.binary, "log", "dump", "--json", str(options.log)], stdout=subprocess.PIPE)
    for line in dump.stdout:
        record = json.loads(line)
        if options.language not in (None, record["language"]):
            continue
        for copy in record["copies"]:
            if options.teacher not in (None, copy["teacher"]):
                continue
            row = {name: record[name] for name in OF_RECORD} | {name: copy[name] for name in (*OF_COPY, *FLOATS)}
            row["span_first"], row["span_end"] = record["span"]
            row["text"] = record.get("text")
            row["top_k"] = len(copy["top_ids"][0]) if copy["top_ids"] else None
            yield row
    if dump.wait():
        sys.exit(f"log dump: exit code {dump.returncode}")


def exported(path):
    """The rows that pyarrow reads."""
    for batch in pq.ParquetFile(path).iter_batches(1000):
        yield from batch.to_pylist()


def differences(wanted, found):
    if set(wanted) != set(found):
        yield f"columns {sorted(set(wanted) ^ set(found))}"
    for name in wanted:
        if name == "top_k" and wanted["top_ids"] == []:
            continue  # The dump does not tell it.
        if name in FLOATS and wanted[name] is not None and found[name] is not None:
            same = np.array_equal(np.array(wanted[name], np.float32), np.array(found[name], np.float32))
        else:
            same = wanted[name] == found[name]
        if not same:
            yield f"{name}: {wanted[name]} in the dump, {found[name]} in the file"


def compare(what, options, rows):
    count = 0
    for wanted, found in zip(dumped(options), rows, strict=True):
        for difference in differences(wanted, found):
            sys.exit(f"{what}, row {count}, record {wanted['seq']}: {difference}")
        count += 1
    print(f"{what}: {count} rows equal those of log dump")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--binary", default="target/release/mergedistill")
    parser.add_argument("--teacher")
    parser.add_argument("--language")
    options = parser.parse_args()
    filters = [f"--{name}={value}" for name in ("teacher", "language") if (value := getattr(options, name))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.parquet"
        subprocess.run([options.binary, "log", "export", str(options.log), "--parquet", str(path), *filters], check=True)
        print(pq.read_schema(path).remove_metadata())
        identity = json.loads(pq.read_schema(path).metadata[b"mergedistill.identity"])
        print("teachers:", ", ".join(teacher["name"] for teacher in identity["teachers"]))
        compare("pyarrow", options, exported(path))
        try:
            import datasets
        except ImportError:
            print("datasets is not installed; left out")
            return
        compare("datasets", options, datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=folder))


if __name__ == "__main__":
    main()
