#!/usr/bin/env python3
"""Documents in = documents in the log: every source, with every format and compression that it takes.

    pip install pyarrow zstandard
    python tests/streams/counts.py [--text FOLDER] [--kilobytes N]

Real text of three languages goes through files by glob, a watched folder, a followed file that is rotated, pushes over the control socket and
over TCP, standard input, and named pipes. Each corpus's documents are counted here, from the text alone, and compared with those that the log
holds: how many there are, how many bytes of each are covered, and where they have identifiers, which. No document may be there twice, and
its spans must follow one another."""

import collections
import itertools
import os
import subprocess
import threading

from packing import COMPRESSIONS, ENDINGS, ID_FIELD, LANGUAGE_FIELD, compress, lines_of, parquet_of, text_of
from scene import Client, Documents, Failed, Scene, arguments, main, teacher_tables, texts, until

LANGUAGES = ["en", "de", "es"]
RULES = ["empty-line", "line", "file"]
TOKEN = "a-token-of-some-length"
# Files of a corpus.
PARTS = 3
# Documents of a corpus in which each is a file.
FILES = 12
SETTINGS = [("[queue]", {"linger_ms": 100}), ("[store]", {"top_k": 4, "sync_interval_ms": 20})]


class Corpus:
    """A corpus of the trial: its form, and the documents that it is to have."""

    def __init__(self, name, form, compression="none", field=False):
        self.name, self.form, self.compression, self.field = name, form, compression, field
        self.language = LANGUAGES[sum(map(ord, name)) % len(LANGUAGES)]
        self.origin = {}
        # By source: how many bytes each document has, or which identifier besides.
        self.expected = collections.defaultdict(collections.Counter)

    def table(self):
        rule = self.form if self.form in RULES else None
        settings = {"name": self.name, **self.origin, "format": "text" if rule else self.form}
        settings.update({"language_field": LANGUAGE_FIELD} if self.field else {"language": self.language})
        settings.update({"documents": rule} if rule else {"id_field": ID_FIELD})
        return "[[corpus]]", settings

    def files(self, documents, parts=PARTS):
        """The documents as files, which are expected from now on: their contents."""
        if self.field:
            chosen = [(language, text) for group in itertools.zip_longest(*(documents[language] for language in LANGUAGES)) for language, text in zip(LANGUAGES, group) if text]
        else:
            chosen = [(self.language, text) for text in documents[self.language]]
        if self.form == "file":
            groups = [[document] for document in chosen[:FILES]]
        else:
            groups = [chosen[part::parts] for part in range(parts)]
        return [self.pack(group, number) for number, group in enumerate(groups)]

    def pack(self, group, number):
        if self.form in RULES:
            documents = [text for _, text in group]
            if self.form == "line":
                documents = [line for text in documents for line in text.split("\n") if line.strip()]
            self.expected[self.name].update(len(text.encode()) for text in documents)
            return compress(text_of(documents, self.form), self.compression)
        rows = []
        for index, (language, text) in enumerate(group):
            row = {ID_FIELD: f"{number}-{index}", "text": text, **({LANGUAGE_FIELD: language} if self.field else {})}
            source = f"{self.name}:{language}" if self.field else self.name
            self.expected[source][f"{number}-{index}", len(text.encode())] += 1
            rows.append(row)
        return parquet_of(rows, self.compression) if self.form == "parquet" else compress(lines_of(rows), self.compression)

    def total(self):
        return sum(sum(counter.values()) for counter in self.expected.values())

    def found(self, log):
        """What the log holds of it, in the form of `expected`."""
        found = collections.defaultdict(collections.Counter)
        for source in self.expected:
            for (document, _), covered in log.of(source).items():
                key = covered if self.form in RULES else (document.split("#", 1)[-1], covered)
                found[source][key] += 1
        return found


def check(scene, corpora, results):
    """The log must hold what is expected, and nothing else."""
    log = Documents(scene.records())
    problems = log.problems()
    skips = scene.log_stat()["skips"]
    for corpus in corpora:
        found = corpus.found(log)
        number = sum(sum(counter.values()) for counter in found.values())
        results.append((corpus.name, corpus.form, corpus.compression, corpus.total(), number))
        for source, expected in corpus.expected.items():
            if found[source] != expected:
                missing, more = expected - found[source], found[source] - expected
                problems.append(f"{source}: {sum(missing.values())} missing, {sum(more.values())} too many, e.g. {list(missing)[:3]} {list(more)[:3]}")
    known = {source for corpus in corpora for source in corpus.expected}
    problems += [f"documents of an unknown source {source}" for source in {source for source, _, _ in log.spans} - known]
    if problems:
        raise Failed(f"{len(problems)} problems, {skips} skips; the first:\n" + "\n".join(problems[:10]))
    scene.verify()
    return skips


def wait_and_check(scene, corpora, results):
    """Waits until the log has everything, stops the daemon, and checks."""
    expected = sum(corpus.total() for corpus in corpora)
    until(f"{expected} documents", lambda: scene.documents() >= expected, interval=0.2)
    scene.drain()
    scene.stop()
    check(scene, corpora, results)


def scene(options, name, corpora, more=()):
    teachers = teacher_tables(options.teachers, LANGUAGES)
    return Scene(options, name, [*teachers, *(corpus.table() for corpus in corpora), *SETTINGS, *more])


def in_files(prefix):
    """Corpora of everything that can be a file."""
    corpora = [Corpus(f"{prefix}-{form}-{compression}", form, compression) for form in [*RULES, "jsonl"] for compression in COMPRESSIONS]
    corpora += [Corpus(f"{prefix}-jsonl-{compression}-field", "jsonl", compression, field=True) for compression in COMPRESSIONS]
    corpora += [Corpus(f"{prefix}-parquet-{compression}", "parquet", compression) for compression in ["none", "snappy", "gzip", "lz4", "zstd"]]
    corpora.append(Corpus(f"{prefix}-parquet-zstd-field", "parquet", "zstd", field=True))
    return corpora


def write_files(corpus, folder, documents, rename):
    ending = ENDINGS.get(corpus.compression, "") if corpus.form != "parquet" else ""
    for number, data in enumerate(corpus.files(documents)):
        path = folder / f"{number:03}.{corpus.form}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if rename:
            partial = path.with_name(path.name + ".tmp")
            partial.write_bytes(data)
            partial.rename(path)
        else:
            path.write_bytes(data)


def wikipedia(corpus, folder, documents):
    """Writes what WikiExtractor writes with --json: folders AA, AB, … of files wiki_00, wiki_01, …"""
    for number, data in enumerate(corpus.files(documents, parts=6)):
        path = folder / ["AA", "AB"][number // 3] / f"wiki_{number % 3:02}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = data.decode().splitlines()
        path.write_text("".join(row[:-1] + f', "url": "https://example.org/wiki?curid={number}", "title": "A title"}}\n' for row in rows), encoding="utf-8")


def glob(options, documents, results):
    corpora = in_files("glob")
    wiki = Corpus("glob-wikiextractor", "jsonl")
    for corpus in corpora:
        corpus.origin = {"path": f"{corpus.name}/*"}
    wiki.origin = {"path": "glob-wikiextractor/*/wiki_*"}
    with scene(options, "glob", [*corpora, wiki]) as it:
        for corpus in corpora:
            write_files(corpus, it.folder / corpus.name, documents, rename=False)
        wikipedia(wiki, it.folder / wiki.name, documents)
        it.start(ready=False)
        it.finish()
        check(it, [*corpora, wiki], results)


def watch(options, documents, results):
    corpora = in_files("watch")
    wiki = Corpus("watch-wikiextractor", "jsonl")
    for corpus in [*corpora, wiki]:
        corpus.origin = {"watch": corpus.name, "settle_seconds": 1.0}
    with scene(options, "watch", [*corpora, wiki]) as it:
        # Some files are there before, others come while it runs; of those some are renamed in, others written in place.
        for corpus in [*corpora, wiki]:
            (it.folder / corpus.name).mkdir()
        for corpus in corpora[::3]:
            write_files(corpus, it.folder / corpus.name, documents, rename=False)
        it.start()
        for index, corpus in enumerate(corpora):
            if index % 3:
                write_files(corpus, it.folder / corpus.name / "later", documents, rename=index % 3 == 1)
        wikipedia(wiki, it.folder / wiki.name, documents)
        wait_and_check(it, [*corpora, wiki], results)


def follow(options, documents, results):
    corpora = [Corpus(f"follow-{form}", form) for form in ["empty-line", "line", "jsonl"]] + [Corpus("follow-jsonl-field", "jsonl", field=True)]
    for corpus in corpora:
        corpus.origin = {"follow": f"logs/{corpus.name}/app.log", "settle_seconds": 0.3, "poll_seconds": 1.0}

    def grow(it, corpus):
        """Appends in pieces that end anywhere; rotates after each part."""
        folder = it.folder / "logs" / corpus.name
        path = folder / "app.log"
        for number, data in enumerate(corpus.files(documents)):
            for older in range(number - 1, 0, -1):
                (folder / f"app.log.{older}").rename(folder / f"app.log.{older + 1}")
            if number:
                # What was rotated away before anyone followed it is not read, as if it were older.
                until("the first file to be followed", lambda: (it.state / "feeds" / f"{corpus.name}.jsonl").stat().st_size)
                path.rename(folder / "app.log.1")
            with open(path, "ab", buffering=0) as file:
                for at in range(0, len(data), 7001):
                    file.write(data[at : at + 7001])
                if corpus.form == "empty-line":
                    file.write(b"\n")  # The last document of a file that grows ends with an empty line.

    with scene(options, "follow", corpora) as it:
        for corpus in corpora:
            (it.folder / "logs" / corpus.name).mkdir(parents=True)
        it.start()
        run_all([lambda corpus=corpus: grow(it, corpus) for corpus in corpora])
        wait_and_check(it, corpora, results)


def http(options, documents, results):
    corpora = [Corpus(f"http-{form}", form) for form in [*RULES, "jsonl"]]
    corpora += [Corpus("http-jsonl-field", "jsonl", field=True), Corpus("http-jsonl-chunks", "jsonl"), Corpus("http-jsonl-tcp", "jsonl")]
    for corpus in corpora:
        corpus.origin = {"source": "http"}

    def push(it, corpus):
        client = Client(it.address() if corpus.name.endswith("tcp") else it.socket)
        kind = "text/plain; charset=utf-8" if corpus.form in RULES else "application/x-ndjson"
        before = corpus.total()
        for number, body in enumerate(corpus.files(documents)):
            # Every second request is sent twice, with its key: it counts once.
            for _ in range(1 + number % 2):
                chunks = 1000 if corpus.name.endswith("chunks") else None
                status, answer, _ = client.push(corpus.name, body, f"{corpus.name}-{number}", kind, chunks, {"Authorization": f"Bearer {TOKEN}"})
                if status != 200 or answer["rejected_total"]:
                    raise Failed(f"{corpus.name}: {status} {answer}")
                before += answer["accepted"]
        if before != corpus.total():
            raise Failed(f"{corpus.name}: {before} documents were accepted, {corpus.total()} sent")

    with scene(options, "http", corpora, [("[ops]", {"token_file": "token"})]) as it:
        (it.folder / "token").write_text(TOKEN)
        it.start()
        run_all([lambda corpus=corpus: push(it, corpus) for corpus in corpora])
        wait_and_check(it, corpora, results)


def stdin(options, documents, results):
    for form, field in [("empty-line", False), ("line", False), ("file", False), ("jsonl", False), ("jsonl", True)]:
        corpus = Corpus(f"stdin-{form}{'-field' * field}", form, field=field)
        corpus.origin = {"source": "stdin"}
        with scene(options, "stdin", [corpus]) as it:
            if form == "file":
                # There is one document: all that comes.
                data = corpus.pack([("", "\n".join(documents[corpus.language]))], 0)
            else:
                data = corpus.files(documents, parts=1)[0]
            it.start(ready=False, stdin=subprocess.PIPE)
            for at in range(0, len(data), 9973):
                it.process.stdin.write(data[at : at + 9973])
                it.process.stdin.flush()
            it.process.stdin.close()
            it.finish()
            check(it, [corpus], results)


def pipe(options, documents, results):
    corpora = [Corpus(f"pipe-{form}", form) for form in [*RULES, "jsonl"]] + [Corpus("pipe-jsonl-field", "jsonl", field=True)]
    for corpus in corpora:
        corpus.origin = {"source": "pipe", "path": corpus.name}

    def feed(it, corpus):
        for data in corpus.files(documents):
            known = it.status()["inboxes"][corpus.name]["documents"]
            with open(it.folder / corpus.name, "wb", buffering=0) as file:
                # Another writer may come before the daemon has seen that this one left: an empty line ends the document for sure.
                file.write(data + b"\n" * (corpus.form == "empty-line"))
            # Where the end of the input is the end of a document, the next one waits until the daemon has seen that end.
            if corpus.form == "file":
                until("a document", lambda: it.status()["inboxes"][corpus.name]["documents"] > known)

    with scene(options, "pipe", corpora) as it:
        for corpus in corpora:
            os.mkfifo(it.folder / corpus.name)
        it.start()
        run_all([lambda corpus=corpus: feed(it, corpus) for corpus in corpora])
        wait_and_check(it, corpora, results)


def run_all(works):
    """Runs functions side by side; the first failure counts."""
    failures = []

    def run(work):
        try:
            work()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise Failed(str(failures[0])) from failures[0]


SOURCES = {"glob": glob, "watch": watch, "follow": follow, "http": http, "stdin": stdin, "pipe": pipe}


def trial():
    parser = arguments(__doc__)
    parser.add_argument("--kilobytes", type=int, default=200, help="of text of each language, at most")
    parser.add_argument("--sources", default=",".join(SOURCES), help="those to try")
    options = parser.parse_args()
    documents = {language: texts(options.text, language, 1000 * options.kilobytes) for language in LANGUAGES}
    print("text: " + ", ".join(f"{language} {len(of)} documents, {sum(len(text.encode()) for text in of)} bytes" for language, of in documents.items()))
    for source in options.sources.split(","):
        results = []
        SOURCES[source](options, documents, results)
        print(f"{source}: {len(results)} corpora, {sum(result[3] for result in results)} documents in, {sum(result[4] for result in results)} in the log")
        for name, form, compression, expected, found in results:
            print(f"    {name:28} {form:10} {compression:7} {expected:6} in {found:6} in the log")


main(trial)
