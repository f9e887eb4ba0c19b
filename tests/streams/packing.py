"""Documents as files: formats and compressions."""

import bz2
import gzip
import io
import json

LANGUAGE_FIELD, ID_FIELD = "lang", "id"
COMPRESSIONS = ["none", "gzip", "bzip2", "zstd"]
ENDINGS = {"none": "", "gzip": ".gz", "bzip2": ".bz2", "zstd": ".zst"}


def compress(data, compression):
    """Bytes as the compression has them."""
    if compression == "gzip":
        return gzip.compress(data, mtime=0)
    if compression == "bzip2":
        return bz2.compress(data)
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    return data


def lines_of(documents):
    """Documents (dictionaries with text, id and perhaps lang) as JSON lines."""
    return b"".join(json.dumps(document, ensure_ascii=False).encode() + b"\n" for document in documents)


def parquet_of(documents, compression="snappy", row_group=50):
    """Documents as a Parquet file, a column for each of their keys."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(documents)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression=compression, row_group_size=row_group)
    return file.getvalue()


def text_of(documents, rule):
    """Texts as a text file. With the rule `file` there can be one alone."""
    separator = "\n\n" if rule == "empty-line" else "\n"
    return separator.join(documents).encode() + b"\n"
