#!/usr/bin/env python3
"""Every document exactly once, whenever the daemon is killed.

    pip install pyarrow zstandard
    python tests/streams/kill.py [--kills 100] [--seed 1]

One daemon reads all sources at once: files by glob (plain, gzip, zstd, Parquet; two rounds), two watched folders (one with the language in a field),
a followed file that is rotated, an inbox that clients push to, one whose documents are large and alike (so that files of the inbox fill up and are
removed), a named pipe and standard input. It labels with three teachers and trains a small student. It is killed with SIGKILL at random
moments and started again; files appear, grow and are rotated meanwhile, whether it runs or not. Clients send again, with the same idempotency key, whatever
they have no answer to; they also break off in the middle, and send again what was taken.

At the end everything is read, and each document must be in the log once per round: its spans follow one another, and none is there twice. What
pipe and standard input lose is counted apart: a kill may cost what was read and not yet durable, at most 1 MiB (and what was left in the pipe)."""

import collections
import errno
import json
import os
import random
import subprocess
import threading
import time

from packing import compress, lines_of, parquet_of
from scene import Client, Documents, Failed, Scene, arguments, main, teacher_tables, texts

LANGUAGES = ["en", "de", "es"]
ROUNDS = 2
# A kill costs a pipe what was read and not durable, and what its buffer holds.
PIPE_LOSS_BYTES = (1 << 20) + (64 << 10)
CLIENTS = 4
BULK_TEXT_BYTES = 64 << 10


class Words:
    """Documents made of the words of real texts, each with an identifier of its own."""

    def __init__(self, folder, seed):
        self.random = random.Random(seed)
        self.words = {language: " ".join(texts(folder, language)).split() for language in LANGUAGES}

    def text(self, language):
        words = self.words[language]
        first = self.random.randrange(len(words))
        return " ".join((words + words)[first : first + self.random.randint(8, 120)])

    def document(self, identifier, language, **more):
        return {"id": identifier, **more, "text": self.text(language)}


class Producer(threading.Thread):
    """Brings forth documents until it is told to stop. `expected`: how often each is to be in the log, by source and round."""

    def __init__(self, options, scene, name, seed):
        super().__init__(name=name, daemon=True)
        self.scene, self.folder, self.stopping, self.failure = scene, scene.folder / name, threading.Event(), None
        self.words = Words(options.text, seed)
        self.random = self.words.random
        self.expected = collections.defaultdict(collections.Counter)
        self.count = 0

    def run(self):
        try:
            while not self.stopping.is_set():
                self.step()
        except Exception as failure:
            self.failure = failure

    def documents(self, most, language, source=None, **more):
        """The next documents, which are expected from now on."""
        made = []
        for _ in range(self.random.randint(1, most)):
            identifier = f"{self.name}-{self.count}"
            self.count += 1
            made.append(self.words.document(identifier, language, **more))
            self.expected[source or self.name][identifier, 0] += 1
        return made

    def pause(self, seconds):
        self.stopping.wait(self.random.uniform(0, 2 * seconds))


class Watched(Producer):
    """Files come into a folder: renamed in, or written in place."""

    def table(self):
        return {"language": "en", "watch": self.name, "settle_seconds": 1.0, "poll_seconds": 2.0}

    def lines(self):
        return lines_of(self.documents(25, "en"))

    def step(self):
        data, path = self.lines(), self.folder / f"{self.count:08}.jsonl"
        if self.random.random() < 0.5:
            partial = path.with_suffix(".tmp")
            partial.write_bytes(compress(data, self.random.choice(["none", "gzip", "zstd"])))
            partial.rename(path)
        else:
            with open(path, "wb", buffering=0) as file:
                for at in range(0, len(data), 1000):
                    file.write(data[at : at + 1000])
        self.pause(0.3)


class Mixed(Watched):
    """The language is in a field."""

    files = 0

    def table(self):
        return {"language_field": "lang", "watch": self.name, "settle_seconds": 1.0, "poll_seconds": 2.0}

    def lines(self):
        self.files += 1
        documents = [document for language in LANGUAGES for document in self.documents(8, language, f"{self.name}:{language}", lang=language)]
        self.random.shuffle(documents)
        return lines_of(documents)


class Followed(Producer):
    """A file grows, and is rotated now and then; lines are written in two pieces."""

    rotations = 0

    def table(self):
        return {"language": "de", "follow": f"{self.name}/app.log", "settle_seconds": 0.3, "poll_seconds": 2.0}

    def step(self):
        path = self.folder / "app.log"
        with open(path, "ab", buffering=0) as file:
            for document in self.documents(5, "de"):
                line = lines_of([document])
                cut = self.random.randrange(1, len(line))
                file.write(line[:cut])
                file.write(line[cut:])
        # What was rotated away before anyone followed it is not read, as if it were older.
        manifest = self.scene.state / "feeds" / f"{self.name}.jsonl"
        if self.random.random() < 0.03 and (self.rotations or (manifest.exists() and manifest.stat().st_size)):
            self.rotations += 1
            for number in range(self.rotations - 1, 0, -1):
                path.with_name(f"app.log.{number}").rename(path.with_name(f"app.log.{number + 1}"))
            path.rename(path.with_name("app.log.1"))
        self.pause(0.08)


class Pushed(Producer):
    """A client that sends each request again until it knows that its documents are durable."""

    requests = retries = broken = again = 0

    def __init__(self, options, scene, corpus, name, seed):
        super().__init__(options, scene, name, seed)
        self.corpus, self.client = corpus, Client(scene.socket, timeout=20)

    def step(self):
        self.send(lines_of(self.documents(12, "en", self.corpus)))
        self.pause(0.12)

    def send(self, body):
        key, chance = f"{self.name}/{self.requests}", self.random.random()
        self.requests += 1
        if chance < 0.1:
            self.break_off(body, key)
        while True:
            try:
                status, answer, _ = self.client.push(self.corpus, body, key, chunks=self.random.choice([None, 700]))
            except OSError:
                status, answer = None, None
            if status == 200:
                if answer["rejected_total"]:
                    raise Failed(f"{self.name}: {answer}")
                if chance < 0.2 and not answer["duplicate"]:
                    chance, self.again = 1.0, self.again + 1
                    continue
                return
            if status not in (None, 408, 503):
                raise Failed(f"{self.name}: {status} {answer}")
            self.retries += 1
            # Until the daemon is there again; an answer must come even when the trial is about to end.
            time.sleep(0.05)

    def break_off(self, body, key):
        """Sends a part of the request, and leaves."""
        connection = self.client.connection()
        try:
            connection.connect()
            head = f"POST /v1/corpora/{self.corpus}/documents HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/jsonl\r\nIdempotency-Key: {key}\r\n"
            request = (head + f"Content-Length: {len(body)}\r\n\r\n").encode() + body
            # Sometimes all of it: then the answer has nobody to hear it.
            connection.sock.sendall(request[: self.random.choice([len(request) - 1, len(request), self.random.randrange(len(request))])])
            self.broken += 1
        except OSError:
            pass
        finally:
            connection.close()


class Bulk(Pushed):
    """Large documents with one text: all but the first are skipped as duplicates, which costs nothing."""

    def step(self):
        text = (self.words.text("es") + " ") * (1 + BULK_TEXT_BYTES // 50)
        self.text = getattr(self, "text", text[:BULK_TEXT_BYTES])
        self.send(b"".join(json.dumps({"id": f"{self.name}-{self.requests}-{number}", "text": self.text}, ensure_ascii=False).encode() + b"\n" for number in range(40)))
        self.count += 40
        self.pause(0.9)


class Piped(Producer):
    """Writes to a pipe while somebody reads it. A line that could not be written to its end is written again."""

    language = "en"

    def __init__(self, options, scene, name, seed):
        super().__init__(options, scene, name, seed)
        self.descriptor, self.sizes, self.refused = None, {}, 0

    def table(self):
        return {"language": self.language, "source": "pipe", "path": f"{self.name}-pipe"}

    def open(self):
        return os.open(self.scene.folder / f"{self.name}-pipe", os.O_WRONLY | os.O_NONBLOCK)

    def step(self):
        for document in self.documents(10, self.language):
            line = lines_of([document])
            self.sizes[document["id"]] = len(line)
            while not self.write(line):
                if self.stopping.wait(0.02):
                    # Nobody has read it, and nobody will.
                    del self.expected[self.name][document["id"], 0]
                    break
        self.pause(0.15)

    def write(self, line):
        try:
            if self.descriptor is None:
                self.descriptor = self.open()
                os.set_blocking(self.descriptor, True)
            while line:
                line = line[os.write(self.descriptor, line) :]
            return True
        except (BrokenPipeError, FileNotFoundError, BlockingIOError) as error:
            self.refused += 1
            self.lost(error)
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.EBADF):
                raise
            self.lost(error)
        return False

    def lost(self, _error):
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.descriptor = None


class StandardInput(Piped):
    """As a pipe; each daemon that is started has a new one."""

    language = "de"
    offered = None

    def table(self):
        return {"language": self.language, "source": "stdin"}

    def offer(self, process):
        self.offered = process

    def open(self):
        process, self.offered = self.offered, None
        try:
            return os.dup(process.stdin.fileno())
        except (AttributeError, ValueError):
            raise BlockingIOError("there is no daemon, or it was killed just now") from None


class Files(Producer):
    """Files that are there from the beginning."""

    def run(self):
        pass

    def write(self, number):
        self.folder.mkdir()
        for part in range(number):
            documents = self.documents(60, "en") + self.documents(60, "en")
            if self.name == "tables":
                (self.folder / f"{part:03}.parquet").write_bytes(parquet_of(documents, row_group=20))
            else:
                packed = ["none", "gzip", "zstd"][part % 3]
                (self.folder / f"{part:03}.jsonl").write_bytes(compress(lines_of(documents), packed))
        for identifier, _ in list(self.expected[self.name]):
            for turn in range(1, ROUNDS):
                self.expected[self.name][identifier, turn] += 1

    def table(self):
        return {"language": "en", "path": f"{self.name}/*", "rounds": ROUNDS}


class Trial:
    def __init__(self, options, scene):
        self.options, self.scene = options, scene
        self.random = random.Random(options.seed)
        seed = lambda: self.random.getrandbits(32)
        self.watched = [kind(options, scene, name, seed()) for kind, name in [(Watched, "watched"), (Mixed, "mixed"), (Followed, "followed")]]
        self.piped = [Piped(options, scene, "piped", seed()), StandardInput(options, scene, "standard-input", seed())]
        self.files = [Files(options, scene, name, seed()) for name in ["files", "tables"]]
        self.clients = [Pushed(options, scene, "pushed", f"client-{number}", seed()) for number in range(CLIENTS)]
        self.bulk = Bulk(options, scene, "bulk", "bulk-client", seed())
        self.producers = [*self.watched, *self.piped, *self.files, *self.clients, self.bulk]

    def tables(self):
        of = {producer.name: producer.table() for producer in [*self.watched, *self.piped, *self.files]}
        of["pushed"] = {"language": "en", "source": "http"}
        of["bulk"] = {"language": "es", "source": "http", "deduplicate": 1}
        form = {name: "parquet" if name == "tables" else "jsonl" for name in of}
        corpora = [("[[corpus]]", {"name": name, **table, "format": form[name], "id_field": "id"}) for name, table in of.items()]
        return [
            *teacher_tables(self.options.teachers, LANGUAGES),
            *corpora,
            ("[sampling]", {"alpha": 0.3}),
            ("[queue]", {"batch_tokens": 1024, "linger_ms": 100}),
            ("[store]", {"top_k": 4, "sync_interval_ms": 50, "max_sequence_length": 64, "segment_bytes": 4 << 20}),
            ("[student]", {"layers": 1, "hidden_size": 16, "heads": 2, "max_sequence_length": 64}),
            ("[train]", {"schedule": "trunk", "batch_examples": 8, "shuffle_examples": 256, "warmup_steps": 2, "checkpoint_every_steps": 100}),
            ("[evaluate]", {"every_steps": 100_000, "holdout_fraction": 0.01}),
        ]

    def prepare(self):
        self.scene.configure(self.tables())
        for producer in self.watched:
            producer.folder.mkdir()
        for producer in self.files:
            producer.write(self.options.files)
        os.mkfifo(self.scene.folder / "piped-pipe")

    def start(self, ready=False):
        process = self.scene.start(ready, stdin=subprocess.PIPE)
        self.piped[1].offer(process)

    def kill_often(self):
        begun = time.monotonic()
        for number in range(1, self.options.kills + 1):
            self.start()
            time.sleep(self.random.uniform(0.05, self.options.seconds))
            self.scene.alive()
            self.scene.kill()
            self.scene.process.stdin.close()
            for producer in self.producers:
                if producer.failure:
                    raise producer.failure
            if number % 10 == 0 or number == self.options.kills:
                entries = self.scene.verify()["entries"]
                print(f"{number} kills, {time.monotonic() - begun:.0f} s, {entries} entries in the log", flush=True)

    def run(self):
        self.prepare()
        for producer in self.producers:
            producer.start()
        self.kill_often()
        self.start(ready=True)
        for producer in self.producers:
            producer.stopping.set()
        for producer in self.producers:
            producer.join(120)
            if producer.is_alive():
                raise Failed(f"{producer.name} does not end")
            if producer.failure:
                raise producer.failure
        for producer in self.piped:
            producer.lost(None)
        self.scene.process.stdin.close()
        # A rotated file ends, and a file written in place is complete, a moment after nothing was written to it.
        time.sleep(3)
        self.scene.drain(600)
        self.removed = not (self.scene.state / "inbox/bulk/00000000000000000000.jsonl").exists()
        self.scene.stop()
        self.check()

    def check(self):
        log = Documents(self.scene.records())
        problems = log.problems()
        expected = collections.defaultdict(collections.Counter)
        for producer in self.producers:
            for source, counter in producer.expected.items():
                expected[source] += counter
        pipes = {producer.name: producer for producer in self.piped}
        print(f"{'source':18} {'documents':>9} {'missing':>8} {'twice':>6} {'others':>7}")
        for source, counter in sorted(expected.items()):
            found = log.identifiers(source)
            missing, more = counter - found, found - counter
            twice = sum(number > 1 for number in found.values())
            print(f"{source:18} {sum(counter.values()):9} {sum(missing.values()):8} {twice:6} {sum(more.values()) - twice:7}")
            if source in pipes:
                lost = sum(pipes[source].sizes[identifier] for identifier, _ in missing)
                print(f"{'':18} {lost} bytes lost, {lost / max(1, self.options.kills):.0f} a kill")
                if lost > self.options.kills * PIPE_LOSS_BYTES or more:
                    problems.append(f"{source}: {lost} bytes lost, {sum(more.values())} too many")
            elif missing or more:
                problems.append(f"{source}: missing {list(missing)[:5]}, too many {list(more)[:5]}")
        self.check_skips(log, problems)
        clients = [*self.clients, self.bulk]
        counts = {what: sum(getattr(client, what) for client in clients) for what in ["requests", "retries", "broken", "again"]}
        print(f"clients: {counts['requests']} requests, sent again {counts['retries']} times without an answer and {counts['again']} times after one, broken off {counts['broken']} times")
        print(f"rotations: {self.watched[2].rotations}; the first file of the bulk inbox was {'' if self.removed else 'not '}removed")
        print(f"log verify: {self.scene.verify()}")
        if problems:
            raise Failed(f"{len(problems)} problems; the first:\n" + "\n".join(problems[:10]))

    def check_skips(self, log, problems):
        """Skips in the log are duplicates, and ends of files behind a source's own documents: no other document was skipped."""
        labelled = len(log.of("bulk"))
        # Of the sources of a file, all but the one of its last document pass over its end.
        due = (self.bulk.count - labelled) + (len(LANGUAGES) - 1) * self.watched[1].files
        skips = self.scene.log_stat()["skips"]
        print(f"{'bulk':18} {self.bulk.count:9} documents, of which {self.bulk.count - labelled} are duplicates; {skips} skips in the log, {due} are due")
        if labelled != 1 or skips != due:
            problems.append(f"{skips} skips, not {due}; {labelled} of the bulk documents are labelled, not 1")
        torn = [note for note in self.scene.notes()]
        print(f"quarantine: {len(torn)} notes, of lines of which a kill took a part: {collections.Counter((note['corpus'], note['reason']) for note in torn)}")
        problems += [f"quarantined: {note}" for note in torn if note["corpus"] not in ("piped", "standard-input")]


def trial():
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3.0, help="a daemon runs for so long, at most, before it is killed")
    parser.add_argument("--files", type=int, default=60, help="files of each corpus by glob")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.kills} kills")
    with Scene(options, "kill", []) as scene:
        Trial(options, scene).run()


main(trial)
