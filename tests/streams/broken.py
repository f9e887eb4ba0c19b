"""Malformed documents and files, kind by kind; every one follows from the seed."""

import io
import json
import random

from packing import compress, lines_of
from scene import texts

DOCUMENT_LIMIT_BYTES = 8 << 20
REQUEST_LIMIT_BYTES = 16 << 20
# Nobody teaches it.
OTHER_LANGUAGE = "xx"


class Maker:
    """Good and malformed documents; every one follows from the seed."""

    def __init__(self, options):
        self.random = random.Random(options.seed)
        self.words = " ".join(texts(options.text, "en")).split()
        self.count = 0

    def text(self):
        first = self.random.randrange(len(self.words))
        return " ".join((self.words + self.words)[first : first + self.random.randint(10, 60)])

    def identifier(self):
        self.count += 1
        return f"d{self.count}"

    def document(self, **more):
        return {"id": self.identifier(), "text": self.text(), **more}

    def bytes(self, number):
        return self.random.randbytes(number)

    def inside(self, text, broken):
        """`text` with bytes put into it."""
        data = text.encode()
        at = data.index(b" ", self.random.randrange(len(data) // 2))
        return data[:at] + broken + data[at:]


def strange_text(maker):
    """Words that no tokenizer of the demo covers (Deseret)."""
    letter = lambda: chr(0x10400 + maker.random.randrange(80))
    return " ".join("".join(letter() for _ in range(4)) for _ in range(20))


def without_end(line):
    return line.rstrip(b"\n")


# What bytes that are no text at all come to, line by line.
AS_TEXT = "not_utf8 nul_byte malformed_json"

# Bytes that are not UTF-8, wherever they stand.
NOT_UTF8 = {
    "UTF-8: lone continuation byte": b"\x80",
    "UTF-8: overlong form": b"\xc0\xaf",
    "UTF-8: surrogate": b"\xed\xa0\x80",
    "UTF-8: beyond U+10FFFF": b"\xf4\x90\x80\x80",
    "UTF-8: cut character": b"\xe2\x82 ",
    "UTF-8: byte 0xFF": b"\xff\xfe\xff",
    "Latin-1": "é à ü".encode("latin-1"),
}


def json_kinds(maker):
    """Lines that are no good JSON documents: kind → (a function that makes one, its reason)."""
    line = lambda **fields: without_end(lines_of([{**maker.document(), **fields}]))
    whole = lambda: without_end(lines_of([maker.document()])).decode()
    kinds = {kind: (lambda broken=broken: maker.inside(whole(), broken), "not_utf8") for kind, broken in NOT_UTF8.items()}
    syntax = {
        "JSON: cut": lambda: whole()[: maker.random.randrange(5, 40)],
        "JSON: no closing brace": lambda: whole()[:-1],
        "JSON: comma at the end": lambda: whole()[:-1] + ",}",
        "JSON: single quotes": lambda: "{'id': 'x', 'text': '" + maker.text().replace("'", "") + "'}",
        "JSON: no quotes": lambda: "{id: 1, text: nothing}",
        "JSON: two objects": lambda: whole() + whole(),
        "JSON: rest behind the object": lambda: whole() + " and more",
        "JSON: NaN": lambda: whole()[:-1] + ', "score": NaN}',
        "JSON: control character in a string": lambda: whole().replace(" ", "\x01", 3).replace('": "', '": "\x02'),
        "JSON: bad escape": lambda: whole()[:-2] + '\\x41"}',
        "JSON: field twice": lambda: whole()[:-1] + ', "text": "again"}',
        "JSON: lone surrogate": lambda: whole()[:-2] + ' \\ud800"}',
        "JSON: nested 100,000 deep, not closed": lambda: whole()[:-1] + ', "more": ' + '{"a":' * 100_000,
        "JSON: not an object (list)": lambda: "[" + whole() + "]",
        "JSON: not an object (string)": lambda: json.dumps(maker.text()),
        "JSON: not an object (number)": lambda: str(maker.random.random()),
        "JSON: not an object (null)": lambda: "null",
        "JSON: plain text": lambda: maker.text(),
    }
    kinds.update({kind: (lambda make=make: make().encode(), "malformed_json") for kind, make in syntax.items()})
    kinds["NUL byte"] = (lambda: maker.inside(whole(), b"\0"), "nul_byte")
    kinds["NUL, escaped"] = (lambda: line(text=maker.text() + "\0"), "nul_byte")
    kinds["UTF-16"] = (lambda: whole().encode("utf-16-le").replace(b"\n", b""), "nul_byte")
    for name, value in {"number": 7, "null": None, "list": ["a", "b"], "object": {"text": "a"}, "truth value": True}.items():
        kinds[f"JSON: text is a {name}"] = (lambda value=value: line(text=value), "missing_text")
    kinds["JSON: text nested 200 deep"] = (lambda: ('{"text":' * 200 + whole() + "}" * 200).encode(), "missing_text")
    kinds["JSON: no text"] = (lambda: b'{"id": "x", "body": "nothing here"}', "missing_text")
    kinds["JSON: empty object"] = (lambda: b"{}", "missing_text")
    kinds["only [UNK]"] = (lambda: line(text=strange_text(maker)), "mostly_unknown")
    kinds["empty text"] = (lambda: line(text=""), "no_text")
    kinds["white space alone"] = (lambda: line(text=" \n\t "), "no_text")
    return kinds


def field_kinds(maker):
    """Lines whose language is no good."""
    line = lambda **fields: without_end(lines_of([{**maker.document(), **fields}]))
    return {
        "language: unknown": (lambda: line(lang=OTHER_LANGUAGE), "unknown_language"),
        "language: empty": (lambda: line(lang=""), "unknown_language"),
        "language: upper case": (lambda: line(lang="EN"), "unknown_language"),
        "language: missing": (lambda: line(), "missing_language"),
        "language: number": (lambda: line(lang=1), "missing_language"),
        "language: null": (lambda: line(lang=None), "missing_language"),
        "language: list": (lambda: line(lang=["en"]), "missing_language"),
    }


def text_kinds(maker):
    """Texts of one line that are no good."""
    kinds = {kind: (lambda broken=broken: maker.inside(maker.text(), broken), "not_utf8") for kind, broken in NOT_UTF8.items()}
    kinds["NUL byte"] = (lambda: maker.inside(maker.text(), b"\0"), "nul_byte")
    kinds["UTF-16"] = (lambda: b"\xff\xfe" + maker.text().encode("utf-16-le"), "nul_byte")
    kinds["UTF-32"] = (lambda: maker.text().encode("utf-32-be"), "nul_byte")
    kinds["binary"] = (lambda: b"\x89PNG" + bytes(byte for byte in maker.bytes(500) if byte not in b"\0\r\n") + b"\xff", "not_utf8")
    kinds["only [UNK]"] = (lambda: strange_text(maker).encode(), "mostly_unknown")
    return kinds


def giant(maker):
    """A JSON line beyond the limit."""
    return without_end(lines_of([maker.document(text=maker.text() + " " + "word " * (DOCUMENT_LIMIT_BYTES // 5))]))


def packed_with_checksum(data, compression):
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(write_checksum=True).compress(data)
    return compress(data, compression)


def zipped(data):
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", data)
    return file.getvalue()


def parquet_table(columns):
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def http_requests(body):
    """Requests that are malformed themselves: kind → (bytes, status that is due; None: there need be no answer)."""
    path = "/v1/corpora/pushed/documents"
    head = lambda *fields, path=path, method="POST": "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()
    kind, length = "Content-Type: application/jsonl", f"Content-Length: {len(body)}"
    chunked = "Transfer-Encoding: chunked"
    return {
        "HTTP: no Content-Type": (head(length) + body, 415),
        "HTTP: Content-Type application/json": (head("Content-Type: application/json", length) + body, 415),
        "HTTP: Content-Type of a form": (head("Content-Type: multipart/form-data; boundary=x", length) + body, 415),
        "HTTP: charset UTF-16": (head("Content-Type: text/plain; charset=utf-16", length) + body, 415),
        "HTTP: compressed": (head(kind, length, "Content-Encoding: gzip") + body, 415),
        "HTTP: announced too large": (head(kind, f"Content-Length: {REQUEST_LIMIT_BYTES + 1}"), 413),
        "HTTP: unknown corpus": (head(kind, length, path="/v1/corpora/nobody/documents") + body, 404),
        "HTTP: path that is not UTF-8": (head(kind, length, path="/v1/corpora/%ff%fe/documents") + body, 400),
        "HTTP: broken percent encoding": (head(kind, length, path="/v1/corpora/a%2/documents") + body, 400),
        "HTTP: method PUT": (head(kind, length, method="PUT") + body, 405),
        "HTTP: key too long": (head(kind, length, "Idempotency-Key: " + "k" * 300) + body, 400),
        "HTTP: two keys": (head(kind, length, "Idempotency-Key: a", "Idempotency-Key: b") + body, 400),
        "HTTP: empty key": (head(kind, length, "Idempotency-Key: ") + body, 400),
        "HTTP: key with control characters": (head(kind, length, "Idempotency-Key: a\tb") + body, 400),
        "HTTP: chunk size that is no number": (head(kind, chunked) + b"zz\r\n" + body + b"\r\n0\r\n\r\n", 400),
        "HTTP: chunk size too large": (head(kind, chunked) + b"fffffffffffffffff\r\n" + body, 400),
        "HTTP: chunk without its end": (head(kind, chunked) + b"5\r\n" + body[:9] + b"\r\n0\r\n\r\n", 400),
        "HTTP: negative length": (head(kind, "Content-Length: -5") + body, 400),
        "HTTP: length that is no number": (head(kind, "Content-Length: many") + body, 400),
        "HTTP: two lengths": (head(kind, length, "Content-Length: 3") + body, 400),
        "HTTP: no HTTP at all": (b"\x16\x03\x01\x02\x00hello\r\n\r\n", 400),
        "HTTP: header too large": (head(kind, length, "X-Large: " + "x" * 100_000) + body, 431),
        "HTTP: too many headers": (head(kind, length, *(f"X-{n}: 1" for n in range(300))) + body, 431),
        "HTTP: half sent, then closed": (head(kind, length) + body[: len(body) // 2], None),
        "HTTP: chunks, then closed": (head(kind, chunked) + b"%x\r\n" % len(body) + body + b"\r\n", None),
        "HTTP: head not ended": (head(kind, length)[:-2], None),
    }
