#!/usr/bin/env python3
"""More than a thousand malformed inputs, among good documents, to a daemon that runs.

    pip install pyarrow zstandard
    python tests/streams/malformed.py [--times 6] [--seed 1]

They come as files by glob and in watched folders (JSON lines, text with its three rules, Parquet, all compressions), through pushes over HTTP, and
through a named pipe. The daemon may not end; every good document must be in the log, once, and nothing else; every malformed one must be in the
quarantine with its reason and its place, or refused with a 4xx, or be named in the answer to the push. The summary has how many of each kind came to
which reason."""

import collections
import gzip
import json
import os
import socket
import struct
import threading
import zlib

from broken import AS_TEXT, NOT_UTF8, Maker, field_kinds, giant, http_requests, json_kinds, packed_with_checksum, parquet_table, strange_text, text_kinds, without_end, zipped
from packing import COMPRESSIONS, ENDINGS, compress, lines_of, parquet_of
from scene import Client, Documents, Failed, Scene, arguments, main, teacher_tables, until


class Expected:
    """What is to become of what is sent to one corpus."""

    def __init__(self):
        # Identifiers of documents that must be in the log, and of those that may be: their file is broken further on.
        self.good, self.tolerated = collections.Counter(), set()
        # What must be in the quarantine: by part and offset (None: anywhere in it): kind, reason.
        self.bad = {}


class Trial:
    def __init__(self, options, scene):
        self.options, self.scene, self.maker = options, scene, Maker(options)
        self.expected = collections.defaultdict(Expected)
        self.table = collections.Counter()
        self.problems = []

    # Files of documents, good and bad.

    def mix(self, corpus, part, kinds, rule=None, **more):
        """A file with good documents between malformed ones: its bytes. Notes what is to become of each."""
        expected, pieces = self.expected[corpus], []
        chosen = [(kind, *made) for kind, made in kinds] + [None] * (len(kinds) + 3)
        self.maker.random.shuffle(chosen)
        offset = 0
        separator = {None: b"\n", "line": b"\n", "empty-line": b"\n\n"}[rule]
        for entry in chosen:
            if entry is None:
                document = self.maker.document(**more)
                data = document["text"].encode() if rule else without_end(lines_of([document]))
                name = f"{part}@{offset}" + ("" if rule else f"#{document['id']}")
                expected.good[name] += 1
            else:
                kind, make, reason = entry
                data = make()
                expected.bad[part, offset] = (kind, reason)
            pieces.append(data + separator)
            offset += len(pieces[-1])
        return b"".join(pieces)

    def groups(self, kinds, size=8):
        """All kinds, as often as wanted, in groups for a file each."""
        entries = [(kind, made) for kind, made in kinds.items() for _ in range(self.options.times)]
        self.maker.random.shuffle(entries)
        return [entries[at : at + size] for at in range(0, len(entries), size)]

    def text_files(self, corpus, rule):
        return {f"{number:04}.txt": self.mix(corpus, f"{number:04}.txt", group, rule) for number, group in enumerate(self.groups(text_kinds(self.maker)))}

    def line_files(self, corpus, kinds, **more):
        files = {}
        for number, group in enumerate(self.groups(kinds)):
            compression = COMPRESSIONS[number % len(COMPRESSIONS)]
            name = f"{number:04}.jsonl{ENDINGS[compression]}"
            files[name] = compress(self.mix(corpus, name, group, **more), compression)
        return files

    def whole_files(self, corpus):
        """Files that are one document each."""
        files = {}
        kinds = text_kinds(self.maker)
        for number, (kind, (make, reason)) in enumerate((kind, made) for kind, made in kinds.items() for _ in range(self.options.times)):
            files[f"{number:04}.bin"] = make()
            self.expected[corpus].bad[f"{number:04}.bin", 0] = (kind, reason)
            files[f"{number:04}.txt"] = self.maker.text().encode()
            self.expected[corpus].good[f"{number:04}.txt@0"] += 1
        return files

    # Files that are broken themselves.

    def packed_files(self, corpus):
        files = {}
        for kind in ["gzip", "bzip2", "zstd"]:
            for way in ["cut", "flipped", "trailing garbage", "checksum", "header"]:
                for number in range(self.options.times):
                    name = f"{kind}-{way.replace(' ', '-')}-{number}.jsonl"
                    files[name] = self.broken(corpus, name, kind, way)
        others = {
            "gzip: length at the end": lambda data: gzip.compress(data)[:-4] + b"\x01\x02\x03\x04",
            "zstd: window of 256 MiB": lambda data: struct.pack("<IBB", 0xFD2FB528, 0, (28 - 10) << 3) + b"\x01\0\0",
            "xz, which is not read": lambda data: __import__("lzma").compress(data),
            "zip, which is not read": zipped,
        }
        for kind, make in others.items():
            for number in range(self.options.times):
                name = f"{kind.split(':')[0].split(',')[0]}-other-{len(files)}.jsonl"
                documents = [self.maker.document() for _ in range(30)]
                files[name] = make(lines_of(documents))
                known = kind.startswith(("gzip", "zstd"))
                self.expected[corpus].bad[name, None] = (kind, "broken_compression" if known else AS_TEXT)
                if kind.startswith("gzip"):
                    self.expect_lines(corpus, name, lines_of(documents))
        return files

    def broken(self, corpus, name, compression, way):
        plain = lines_of([self.maker.document() for _ in range(self.maker.random.randint(20, 200))])
        data = packed_with_checksum(plain, compression)
        expected = self.expected[corpus]
        # Without its magic it is not seen to be bzip2, and read as text.
        as_text = compression == "bzip2" and way == "header"
        expected.bad[name, None] = (f"{compression}: {way}", AS_TEXT if as_text else "broken_compression")
        if way == "cut":
            data = data[: self.maker.random.randrange(len(data) // 4, len(data) - 9)]
            readable = zlib.decompressobj(31).decompress(data) if compression == "gzip" else b""
            self.expect_lines(corpus, name, readable[: readable.rfind(b"\n") + 1])
            # What comes out before the end of a block is up to the decoder.
            expected.tolerated.add(name)
        elif way == "flipped":
            # Nobody can tell before the checksum at the end: what comes out may be anything.
            at = self.maker.random.randrange(20, len(data) - 12)
            data = data[:at] + bytes([data[at] ^ 1 << self.maker.random.randrange(8)]) + data[at + 1 :]
            expected.tolerated.add(name)
        elif way == "trailing garbage":
            data += b"this does not belong here\n"
            self.expect_lines(corpus, name, plain)
        elif way == "checksum":
            # bzip2's stands at the end of its last byte's bits, zstd's and gzip's at the end (before gzip's length).
            at = {"gzip": -6, "bzip2": -3, "zstd": -2}[compression]
            data = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
            if compression == "gzip":
                self.expect_lines(corpus, name, plain)
            else:
                expected.tolerated.add(name)
        else:
            # Past the magic: gzip's method, bzip2's first block, zstd's reserved bit.
            at, mask = {"gzip": (2, 0x0F), "bzip2": (4, 0xFF), "zstd": (4, 0x08)}[compression]
            data = data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
        return data

    def expect_lines(self, corpus, part, data):
        offset = 0
        for line in data.splitlines(keepends=True):
            self.expected[corpus].good[f"{part}@{offset}#{json.loads(line)['id']}"] += 1
            offset += len(line)

    def tables(self, corpus):
        import pyarrow

        files = {}
        expected = self.expected[corpus]
        rows = lambda: [self.maker.document() for _ in range(40)]
        flip = lambda data, at: data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        cut = lambda data: data[: self.maker.random.randrange(10, len(data) - 1)]
        column = lambda values, kind: parquet_table({"id": pyarrow.array([str(n) for n in range(len(values))]), "text": pyarrow.array(values, kind)})
        whole = {
            "Parquet: cut": lambda: cut(parquet_of(rows())),
            "Parquet: magic at the end": lambda: flip(parquet_of(rows()), -2),
            "Parquet: length of the footer": lambda: parquet_of(rows())[:-8] + struct.pack("<I", 0x7FFFFFF0) + b"PAR1",
            "Parquet: footer of garbage": lambda: (lambda data, size: data[: -8 - size] + self.maker.bytes(size) + data[-8:])(*(lambda data: (data, struct.unpack("<I", data[-8:-4])[0]))(parquet_of(rows()))),
            "Parquet: no text column": lambda: parquet_of([{"id": "a", "body": "nothing"}] * 5),
            "Parquet: text of numbers": lambda: column([1, 2, 3], pyarrow.int64()),
            "Parquet: text of lists": lambda: column([["a"], ["b"]], pyarrow.list_(pyarrow.string())),
            "Parquet: brotli": lambda: parquet_of(rows(), "brotli"),
            "Parquet: encrypted": lambda: parquet_of(rows())[:-4] + b"PARE",
            "Parquet: JSON lines instead": lambda: lines_of(rows()),
            "Parquet: text instead": lambda: self.maker.text().encode(),
        }
        for kind, make in whole.items():
            for number in range(self.options.times):
                name = f"{len(files):04}.parquet"
                files[name] = make()
                expected.bad[name, 0] = (kind, "broken_parquet" if "column" not in kind and "numbers" not in kind and "lists" not in kind else "broken_parquet missing_text")
        for number in range(3 * self.options.times):
            name = f"{len(files):04}.parquet"
            data = parquet_of(rows())
            for _ in range(1 + number % 3):
                data = flip(data, self.maker.random.randrange(4, len(data) - 8))
            files[name] = data
            # Without checksums of pages a flipped byte may be text as well.
            expected.tolerated.add(name)
            self.table["Parquet: flipped bytes", "read, or broken_parquet"] += 1
        for number in range(self.options.times):
            files.update(self.odd_rows(corpus, f"{len(files):04}.parquet"))
            name = f"{len(files):04}.parquet"
            documents = rows()
            files[name] = parquet_of(documents)
            expected.good.update(f"{name}@{row}#{document['id']}" for row, document in enumerate(documents))
        return files

    def odd_rows(self, corpus, name):
        """A table in which some rows cannot be used."""
        import pyarrow

        values, identifiers, expected = [], [], self.expected[corpus]
        for row in range(30):
            document = self.maker.document()
            text, bad = document["text"].encode(), None
            if row % 3 == 1:
                kind = self.maker.random.choice(["null", "NUL byte", *NOT_UTF8])
                text, reason = {"null": (None, "missing_text"), "NUL byte": (text + b"\0", "nul_byte")}.get(kind) or (self.maker.inside(text.decode(), NOT_UTF8[kind]), "not_utf8")
                bad = (f"Parquet: {kind} in a row", reason)
            values.append(text)
            identifiers.append(document["id"])
            if bad:
                expected.bad[name, row] = bad
            else:
                expected.good[f"{name}@{row}#{document['id']}"] += 1
        text = pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())
        return {name: parquet_table({"id": pyarrow.array(identifiers), "text": text})}

    # What is in a watched folder and is no file to be read.

    def oddities(self, folder):
        for number in range(self.options.times):
            (folder / f"dangling-{number}.jsonl").symlink_to(f"nothing-{number}")
            (folder / f"loop-{number}.jsonl").symlink_to(f"loop-{number}.jsonl")
            (folder / f"folder-{number}.jsonl").mkdir()
            (folder / f"empty-{number}.jsonl").touch()
            os.mkfifo(folder / f"pipe-{number}.jsonl")
            (folder / f"hidden-{number}.jsonl.part").write_bytes(b"not yet")
            with open(os.fsencode(folder) + b"/no-utf8-%d-\xff.jsonl" % number, "wb") as file:
                file.write(lines_of([self.maker.document()]))
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(os.path.relpath(folder / f"socket-{number}.jsonl"))
        for kind in ["dangling link", "link to itself", "folder named like a file", "empty file", "named pipe", "unfinished name", "name that is not UTF-8", "socket"]:
            self.table[f"folder: {kind}", "passed over"] += self.options.times

    # Pushes.

    def push_documents(self):
        client = Client(self.scene.socket)
        for corpus, kinds, more in [("pushed", json_kinds(self.maker), {}), ("pushed-field", field_kinds(self.maker), {"lang": "en"})]:
            for number, group in enumerate(self.groups(kinds)):
                self.push_mix(client, corpus, group, f"{corpus}-{number}", more)
        self.push_mix(client, "pushed", [("giant document", (lambda: giant(self.maker), "too_large"))], "giant", {})

    def push_mix(self, client, corpus, group, key, more):
        entries = [(kind, *made) for kind, made in group] + [None] * 4
        self.maker.random.shuffle(entries)
        lines, due = [], []
        for number, entry in enumerate(entries, 1):
            if entry is None or entry[2] == "mostly_unknown":
                document = self.maker.document(**more)
                lines.append(without_end(lines_of([document])))
                if entry is None:
                    self.expected[corpus].good[document["id"]] += 1
                else:
                    # The text is looked at when it is read, not when it is taken.
                    document["text"] = strange_text(self.maker)
                    lines[-1] = without_end(lines_of([document]))
                    self.expected[corpus].bad[document["id"], None] = (entry[0], entry[2])
                continue
            kind, make, reason = entry
            lines.append(make())
            due.append((number, reason))
            self.table[kind, f"named in the answer: {reason}"] += 1
        chunks = self.maker.random.choice([None, 333])
        status, answer, _ = client.push(corpus, b"\n".join(lines), key, chunks=chunks)
        found = [(document["line"], document["reason"]) for document in answer.get("rejected", [])]
        if status != 200 or found != due or answer["accepted"] != len(lines) - len(due):
            self.problems.append(f"push {key}: {status} {answer}, but {due} were to be rejected")

    def push_requests(self):
        """Requests that are malformed themselves: each must get a 4xx, or no answer if it never was a whole one; none may add a document."""
        requests = http_requests(lines_of([self.maker.document()]))
        for name, (request, wanted) in requests.items():
            for _ in range(self.options.times):
                self.request(name, request, wanted)
        self.request("HTTP: chunks without end", None, 413)

    def request(self, name, request, wanted):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(self.scene.socket))
            try:
                if request is None:
                    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
                    connection.sendall(f"POST /v1/corpora/pushed/documents HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
                    for _ in range(20):
                        connection.sendall(chunk)
                else:
                    connection.sendall(request)
                if wanted is None:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # It hung up; what it said can be read.
            answer = b""
            try:
                while piece := connection.recv(65536):
                    answer += piece
                    if b"\r\n\r\n" in answer and answer.startswith(b"HTTP/"):
                        break
            except OSError:
                pass
        status = int(answer.split()[1]) if answer.startswith(b"HTTP/") else None
        self.table[name, f"refused: {status}" if status else "no answer"] += 1
        if status != wanted and not (wanted is None and status in (400, 408)):
            self.problems.append(f"{name}: {status}, not {wanted}: {answer[:300]}")

    def write_pipe(self):
        lines = []
        expected = self.expected["piped"]
        for group in self.groups(json_kinds(self.maker)):
            for kind, (make, reason) in group:
                document = self.maker.document()
                lines += [without_end(lines_of([document])), make()]
                expected.good[document["id"]] += 1
                if reason == "mostly_unknown":
                    lines[-1] = without_end(lines_of([self.maker.document(text=strange_text(self.maker))]))
                expected.bad[len(lines), kind] = (kind, reason)
        with open(self.scene.folder / "piped-pipe", "wb") as pipe:
            pipe.write(b"\n".join(lines) + b"\n")

    # The trial.

    def corpora(self):
        watch = lambda name: {"watch": name, "settle_seconds": 0.5}
        lines = {"format": "jsonl", "id_field": "id"}
        of = {
            "lines": {**watch("lines"), **lines},
            "field": {**watch("field"), **lines},
            "packed": {**watch("packed"), **lines},
            "tables": {**watch("tables"), "format": "parquet", "id_field": "id"},
            "paragraphs": {**watch("paragraphs"), "documents": "empty-line"},
            "text-lines": {**watch("text-lines"), "documents": "line"},
            "whole": {**watch("whole"), "documents": "file"},
            "glob-lines": {"path": "glob-lines/*.jsonl*", **lines},
            "glob-packed": {"path": "glob-packed/*", **lines},
            "glob-paragraphs": {"path": "glob-paragraphs/*.txt"},
            "glob-tables": {"path": "glob-tables/*", "format": "parquet", "id_field": "id"},
            "pushed": {"source": "http", **lines},
            "pushed-field": {"source": "http", **lines},
            "piped": {"source": "pipe", "path": "piped-pipe", **lines},
        }
        language = lambda name: {"language_field": "lang"} if "field" in name else {"language": "en"}
        return [("[[corpus]]", {"name": name, **language(name), **settings}) for name, settings in of.items()]

    def configure(self):
        self.scene.configure([*teacher_tables(self.options.teachers, ["en", "de"]), *self.corpora(), ("[queue]", {"linger_ms": 100}), ("[store]", {"top_k": 4, "sync_interval_ms": 20})])

    def write(self, corpus, files):
        folder = self.scene.folder / corpus
        folder.mkdir(exist_ok=True)
        for name, data in files.items():
            (folder / (name + ".tmp")).write_bytes(data)
            (folder / (name + ".tmp")).rename(folder / name)

    def run(self):
        self.configure()
        os.mkfifo(self.scene.folder / "piped-pipe")
        for corpus in ["lines", "field", "packed", "tables", "paragraphs", "text-lines", "whole"]:
            (self.scene.folder / corpus).mkdir()
        self.oddities(self.scene.folder / "lines")
        kinds = json_kinds(self.maker)
        self.write("glob-lines", self.line_files("glob-lines", kinds))
        self.write("glob-packed", self.packed_files("glob-packed"))
        self.write("glob-paragraphs", self.text_files("glob-paragraphs", "empty-line"))
        self.write("glob-tables", self.tables("glob-tables"))
        self.write("lines", self.line_files("lines", kinds))
        self.scene.start()
        giants = self.mix("lines", "giant.jsonl.gz", [("giant document", (lambda: giant(self.maker), "too_large"))] * 2)
        self.write("lines", {"giant.jsonl.gz": gzip.compress(giants, 1)})
        bomb = self.mix("lines", "bomb.jsonl.zst", [("line of 200 MB in a small file", (lambda: b"a" * 200_000_000, "too_large"))])
        self.write("lines", {"bomb.jsonl.zst": compress(bomb, "zstd")})
        self.write("field", self.line_files("field", field_kinds(self.maker), lang="de"))
        self.write("packed", self.packed_files("packed"))
        self.write("tables", self.tables("tables"))
        self.write("paragraphs", self.text_files("paragraphs", "empty-line"))
        self.write("text-lines", self.text_files("text-lines", "line"))
        self.write("whole", self.whole_files("whole"))
        writer = threading.Thread(target=self.write_pipe)
        writer.start()
        self.push_documents()
        self.push_requests()
        writer.join()
        self.oddities_later()
        good = sum(sum(expected.good.values()) for expected in self.expected.values())
        until("the documents", lambda: self.scene.documents() >= good, seconds=300)
        self.scene.drain(300)
        listed = self.scene.ctl("quarantine", "list")["documents"]
        counted = self.scene.status()["corpora"]["corpora"]
        self.scene.stop()
        self.check(listed, counted)

    def oddities_later(self):
        """A file that is gone before anyone could read it."""
        for number in range(self.options.times):
            path = self.scene.folder / "lines" / f"gone-{number}.jsonl"
            path.write_bytes(lines_of([self.maker.document()]))
            path.unlink()
        self.table["folder: file that is gone", "passed over"] += self.options.times

    def check(self, listed, counted):
        log = Documents(self.scene.records())
        self.problems += log.problems()
        notes = collections.defaultdict(list)
        for note in self.scene.notes():
            notes[note["corpus"]].append(note)
        for of in notes.values():
            of.sort(key=lambda note: note["offset"])
        for corpus, expected in self.expected.items():
            self.check_documents(corpus, expected, log)
            if corpus == "piped":
                self.check_piped(expected, notes[corpus])
            else:
                self.check_notes(corpus, expected, notes[corpus])
        self.check_counts(listed, counted, notes)
        for (kind, outcome), number in sorted(self.table.items()):
            print(f"    {number:5}  {kind:38} {outcome}")
        kinds = {kind for kind, _ in self.table}
        good = sum(sum(expected.good.values()) for expected in self.expected.values())
        print(f"{sum(self.table.values())} malformed inputs of {len(kinds)} kinds, {good} good documents among them, {len(log.spans)} documents in the log, {sum(map(len, notes.values()))} notes in the quarantine")
        print(f"log verify: {self.scene.verify()}")
        if self.problems:
            raise Failed(f"{len(self.problems)} problems; the first:\n" + "\n".join(map(str, self.problems[:20])))

    def check_counts(self, listed, counted, notes):
        """What the status counts, and `ctl quarantine list` lists, is what there is."""
        if len(listed) != sum(map(len, notes.values())):
            self.problems.append(f"ctl quarantine list has {len(listed)} notes")
        for corpus in self.expected:
            of = [source for source in counted if source["name"].split(":")[0] == corpus]
            skipped, quarantined = (sum(source[what] for source in of) for what in ["skipped", "quarantined"])
            # What comes through a pipe is looked at before it is in the inbox, but for its words.
            due = sum(note["reason"] == "mostly_unknown" for note in notes[corpus]) if corpus == "piped" else len(notes[corpus])
            if quarantined != due or skipped != due:
                self.problems.append(f"{corpus}: {quarantined} quarantined, {skipped} skipped, but there are {due} notes")

    def check_documents(self, corpus, expected, log):
        sources = {source for source, _, _ in log.spans if source.split(":")[0] == corpus}
        found = collections.Counter()
        for source in sources:
            for document, _ in log.of(source):
                pushed = corpus.startswith(("pushed", "piped"))
                found[document.split("#")[1] if pushed else document] += 1
        missing = expected.good - found
        more = [document for document in found - expected.good if document.rsplit("@", 1)[0] not in expected.tolerated]
        if missing or more:
            self.problems.append(f"{corpus}: {len(missing)} good documents are missing, {len(more)} others are there: {list(missing)[:3]} {more[:3]}")

    def check_notes(self, corpus, expected, notes):
        found = collections.defaultdict(list)
        for note in notes:
            part, rest = note["document"].rsplit("@", 1)
            offset, _, identifier = rest.partition("#")
            key = (identifier, None) if corpus.startswith("pushed") else (part, int(offset))
            found[key if key in expected.bad else (part, None)].append(note)
        for key, (kind, reasons) in expected.bad.items():
            of = found.pop(key, [])
            reason = of[-1]["reason"] if of else "nothing"
            self.table[kind, f"quarantined: {reason}"] += 1
            if self.is_wrong(key, reasons, [note["reason"] for note in of], expected):
                self.problems.append(f"{corpus} {key}: {kind} should be {reasons}, is {[(note['document'], note['reason'], note['detail']) for note in of[:3]]}")
        for (part, offset), more in found.items():
            if part not in expected.tolerated:
                self.problems.append(f"{corpus} {part}@{offset}: {len(more)} notes that nobody expects: {more[0]['reason']}: {more[0]['detail']}: {more[0]['excerpt'][:80]}")

    @staticmethod
    def is_wrong(key, reasons, found, expected):
        """Whether the notes of an input are not what they should be."""
        if key[1] is None and " " in reasons:
            # What is no text at all falls into lines somehow.
            return not found or not set(found) <= set(reasons.split())
        if key[0] in expected.tolerated:
            # Before the place where it breaks there may be lines that are no documents any more.
            return reasons not in found
        return len(found) != 1 or found[0] not in reasons.split()

    def check_piped(self, expected, notes):
        """Of a pipe the place is not known, but how many there are of each reason."""
        due = collections.Counter(reason for _, reason in expected.bad.values())
        found = collections.Counter(note["reason"] for note in notes)
        for kind, reason in expected.bad.values():
            self.table[kind, f"quarantined: {reason}"] += 1
        if due != found:
            self.problems.append(f"piped: reasons {found}, not {due}")


def trial():
    parser = arguments(__doc__)
    parser.add_argument("--times", type=int, default=6, help="inputs of each kind and way")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with Scene(options, "malformed", []) as scene:
        Trial(options, scene).run()


main(trial)
