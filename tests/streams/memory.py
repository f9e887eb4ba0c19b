#!/usr/bin/env python3
"""Memory stays bounded, and the producers are slowed down, while the trainer is paused.

    python tests/streams/memory.py [--gigabytes 5] [--part refuse|consume] [--plot memory.svg]

Nothing is trained, and teachers lend their tokenizers alone, so that reading is what is measured.

`refuse`: the log may be 1 MiB ahead of the trainer, and the inbox holds 64 MiB. Clients that do not wait offer so many GB over HTTP, a writer
stands at a named pipe, and files lie in a watched folder. The daemon must answer 503 with Retry-After, leave the pipe alone, and take no more memory
than --bound-mib. Then it is started again with room, and everything that was accepted must be in the log, once.

`consume`: with room for all of it, so many GB are read: files of a watched folder (removed when they were read), pushes by clients that wait when
they are told to, and a pipe. All of it must be in the log, within the same bound, and the memory may not grow with what was read. Tokenising
takes its time; with --duplicates the documents come again and again and are skipped, so that many GB go through sources, inboxes and the log in minutes."""

import json
import os
import pathlib
import threading
import time

from packing import lines_of
from scene import Client, Documents, Failed, Scene, arguments, main, teacher_tables, texts

MIB = 1 << 20
BACKLOG_BYTES = MIB
# What was under way when the backlog was reached still comes.
LOG_BYTES = 8 * MIB
REQUEST_BYTES = 8 * MIB
FILE_BYTES = 64 * MIB
DOCUMENT_WORDS = 600
# Texts that are remembered with --duplicates: more than there are different ones.
DUPLICATES = 10_000
# Of a part of the stream, how much more than in the part before it the memory may be at most.
GROWTH = 1.25


class Block:
    """JSON lines of a megabyte or so: the same documents again and again."""

    def __init__(self, folder, size_bytes):
        documents, size = [], 0
        words = " ".join(texts(folder, "en")).split()
        while size < size_bytes:
            # Each begins elsewhere, so that no two are alike.
            first = len(documents) % len(words)
            text = " ".join((words[first:] + words * 2)[:DOCUMENT_WORDS])
            documents.append({"id": len(documents), "text": text})
            size += len(json.dumps(documents[-1], ensure_ascii=False).encode()) + 1
        self.bytes, self.documents = lines_of(documents), len(documents)


class Memory(threading.Thread):
    """Looks at the daemon's memory all the time."""

    def __init__(self, pid, progress):
        super().__init__(daemon=True)
        self.path, self.progress = f"/proc/{pid}/status", progress
        # Bytes so far, resident KiB.
        self.samples = []
        self.ending = threading.Event()
        self.peak_kib = 0

    def run(self):
        while not self.ending.wait(0.1):
            try:
                fields = dict(line.split(":", 1) for line in open(self.path, encoding="utf-8"))
                self.samples.append((self.progress(), int(fields["VmRSS"].split()[0])))
                self.peak_kib = int(fields["VmHWM"].split()[0])
            except (OSError, KeyError):
                return

    def end(self):
        self.ending.set()
        self.join()

    def show(self, parts=10):
        """The largest resident size in each part of the stream. In MiB."""
        end = max(progress for progress, _ in self.samples) or 1
        largest = [0.0] * parts
        for progress, resident in self.samples:
            part = min(parts - 1, int(parts * progress / end))
            largest[part] = max(largest[part], resident / 1024)
        print("largest resident size in each tenth of the stream, MiB: " + " ".join(f"{size:.0f}" for size in largest) + f"; peak {self.peak_kib / 1024:.0f}")
        return largest


class Offer:
    """What is offered to the daemon, and what it takes."""

    def __init__(self, options, scene, gigabytes):
        self.scene, self.total = scene, int(gigabytes * 1e9)
        self.small, self.large = Block(options.text, MIB), Block(options.text, REQUEST_BYTES - MIB)
        self.lock = threading.Lock()
        self.offered = self.taken = self.documents = self.answers = self.refused = self.without_retry = self.requests = self.piped = 0
        self.failure = None
        self.ending = threading.Event()

    def add(self, **numbers):
        with self.lock:
            for name, number in numbers.items():
                setattr(self, name, getattr(self, name) + number)

    def taken_of(self, block):
        self.add(taken=len(block.bytes), documents=block.documents)

    def start(self, *works):
        def run(work):
            try:
                work()
            except Exception as failure:
                self.failure = failure

        threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        return threads

    def check(self):
        self.scene.alive()
        if self.failure:
            raise self.failure

    def push(self, corpus, bytes_share, patient):
        """Pushes until so many bytes were offered (impatient), or were taken (patient)."""
        client, done, key = Client(self.scene.socket), 0, None
        while done < bytes_share and not self.ending.is_set():
            if key is None:
                self.add(requests=1)
                key = f"{threading.get_ident()}-{self.requests}"
            status, answer, retry_after = client.push(corpus, self.large.bytes, key)
            self.add(offered=len(self.large.bytes), answers=1)
            if not patient or status == 200:
                done += len(self.large.bytes)
            if status == 200:
                key = None
                self.taken_of(self.large)
                continue
            if status != 503 or not answer["error"]["code"] in ("busy", "inbox_full"):
                raise Failed(f"push: {status} {answer}")
            self.add(refused=1, without_retry=retry_after is None)
            if patient:
                time.sleep(int(retry_after or 1))

    def write_pipe(self, path, bytes_share):
        with open(path, "wb", buffering=0) as pipe:
            done = 0
            while done < bytes_share and not self.ending.is_set():
                data = memoryview(self.small.bytes)
                try:
                    while data:
                        written = pipe.write(data[:65536])
                        self.add(offered=written, taken=written, piped=written)
                        data = data[written:]
                except BrokenPipeError:
                    return  # The daemon stops.
                self.add(documents=self.small.documents)
                done += len(self.small.bytes)

    def write_files(self, folder, bytes_share, most=2):
        """Files come in as others are read; those that were read go."""
        manifest = self.scene.state / "feeds" / f"{folder.name}.jsonl"
        number, repeat = 0, FILE_BYTES // len(self.large.bytes)
        while number * repeat * len(self.large.bytes) < bytes_share and not self.ending.is_set():
            finished = [json.loads(line)["name"] for line in manifest.read_text().splitlines() if '"finished"' in line] if manifest.exists() else []
            for name in finished[:-1]:
                (folder / name).unlink(missing_ok=True)
            if len(list(folder.iterdir())) >= most:
                time.sleep(0.2)
                continue
            path = folder / f"{number:05}.jsonl"
            with open(path.with_suffix(".tmp"), "wb") as file:
                for _ in range(repeat):
                    file.write(self.large.bytes)
            path.with_suffix(".tmp").rename(path)
            number += 1
            for _ in range(repeat):
                self.taken_of(self.large)
            self.add(offered=repeat * len(self.large.bytes))


def tables(options, backlog_bytes, inbox_bytes):
    lines = {"language": "en", "format": "jsonl", "id_field": "id", "deduplicate": DUPLICATES if options.duplicates else 0}
    return [
        *teacher_tables(options.teachers, ["en"], labels=False)[:1],
        ("[[corpus]]", {"name": "watched", "watch": "watched", **lines}),
        ("[[corpus]]", {"name": "pushed", "source": "http", **lines}),
        ("[[corpus]]", {"name": "piped", "source": "pipe", "path": "pipe", **lines}),
        ("[queue]", {"inbox_bytes": inbox_bytes}),
        ("[store]", {"max_backlog_bytes": backlog_bytes, "segment_bytes": 32 * MIB}),
        ("[student]", {"layers": 2, "hidden_size": 64, "heads": 2}),
        ("[train]", {"schedule": "trunk"}),
        ("[evaluate]", {"holdout_fraction": 0.0}),
    ]


def begin(options, scene, *settings):
    scene.configure(tables(options, *settings))
    if not (scene.folder / "pipe").exists():
        os.mkfifo(scene.folder / "pipe")
        (scene.folder / "watched").mkdir()
    scene.start()
    scene.ctl("pause", "trainer")


def judge(options, scene, memory, baseline_kib):
    print(f"resident before the stream {baseline_kib / 1024:.0f} MiB; bound {options.bound_mib} MiB")
    largest = memory.show()
    if memory.peak_kib > options.bound_mib * 1024:
        raise Failed(f"the daemon took {memory.peak_kib / 1024:.0f} MiB, more than {options.bound_mib}")
    return largest


def resident_kib(scene):
    return next(int(line.split()[1]) for line in open(f"/proc/{scene.process.pid}/status", encoding="utf-8") if line.startswith("VmRSS"))


def documents(scene):
    return int(sum(scene.metric("mergedistill_ingest_documents_total").values()))


def refuse(options):
    with Scene(options, "memory-refuse", []) as scene:
        begin(options, scene, BACKLOG_BYTES, 64 * MIB)
        offer = Offer(options, scene, options.gigabytes)
        baseline, begun = resident_kib(scene), time.monotonic()
        memory = Memory(scene.process.pid, lambda: offer.offered)
        memory.start()
        clients = 6
        pipe = offer.start(lambda: offer.write_pipe(scene.folder / "pipe", offer.total))
        offer.start(lambda: offer.write_files(scene.folder / "watched", FILE_BYTES))
        pushing = offer.start(*[lambda: offer.push("pushed", offer.total / clients, patient=False)] * clients)
        while any(thread.is_alive() for thread in pushing):
            offer.check()
            time.sleep(0.5)
        offer.check()
        offer.ending.set()
        seconds = time.monotonic() - begun
        status, log = scene.status(), scene.metric("mergedistill_log_size_bytes")[()]
        memory.end()
        print(f"refuse: {offer.offered / 1e9:.2f} GB offered in {seconds:.0f} s: {offer.answers} pushes answered, {offer.refused} of them 503 ({offer.without_retry} without Retry-After)")
        print(f"    log {log / 1e6:.1f} MB; inboxes: " + ", ".join(f"{name} {inbox['unread_bytes'] / 1e6:.0f} MB" for name, inbox in status["inboxes"].items() if inbox["documents"]))
        judge(options, scene, memory, baseline)
        if log > LOG_BYTES:
            raise Failed(f"the log has {log:.0f} bytes, although it may be {BACKLOG_BYTES} ahead of the trainer")
        if not offer.refused or offer.without_retry:
            raise Failed("somebody was to be refused, with Retry-After")
        scene.stop()
        # With room everything goes on.
        begin(options, scene, 1 << 40, 1024 * MIB)
        pipe[0].join(60)
        offer.check()
        scene.drain(900)
        scene.stop()
        log = Documents(scene.records())
        found = {source: len(log.of(source)) for source in ["watched", "pushed", "piped"]}
        # What a pipe had delivered and nobody had made durable is lost when the daemon ends: see kill.py.
        due = offer.documents - offer.piped // len(offer.small.bytes) * offer.small.documents
        print(f"    accepted {due} documents (pipe not counted), in the log {found['watched'] + found['pushed']}; {found['piped']} came through the pipe; {len(log.problems())} not once")
        if log.problems() or found["watched"] + found["pushed"] != due:
            raise Failed(f"{due} documents were accepted, {found} are in the log; {log.problems()[:3]}")
        scene.verify()


def consume(options):
    with Scene(options, "memory-consume", []) as scene:
        begin(options, scene, 1 << 40, 64 * MIB)
        offer = Offer(options, scene, options.gigabytes)
        baseline, begun = resident_kib(scene), time.monotonic()
        size_bytes = len(offer.large.bytes) / offer.large.documents
        state = {"bytes": 0.0}
        memory = Memory(scene.process.pid, lambda: state["bytes"])
        memory.start()
        share = offer.total / 4
        works = offer.start(
            lambda: offer.write_files(scene.folder / "watched", 2 * share),
            lambda: offer.push("pushed", share / 2, patient=True),
            lambda: offer.push("pushed", share / 2, patient=True),
            lambda: offer.write_pipe(scene.folder / "pipe", share),
        )
        told = 0
        while any(work.is_alive() for work in works) or documents(scene) < offer.documents:
            offer.check()
            state["bytes"] = size_bytes * documents(scene)
            if state["bytes"] // 5e8 > told:
                told = state["bytes"] // 5e8
                print(f"    {state['bytes'] / 1e9:.1f} GB read after {time.monotonic() - begun:.0f} s, resident {resident_kib(scene) / 1024:.0f} MiB", flush=True)
            time.sleep(0.5)
            if time.monotonic() - begun > options.limit_seconds:
                offer.ending.set()
        scene.drain(600)
        seconds = time.monotonic() - begun
        read, step = documents(scene), scene.status()["train"]["step"]
        memory.end()
        scene.stop()
        stat = scene.log_stat()
        print(f"consume: {offer.taken / 1e9:.2f} GB sent, all read in {seconds:.0f} s ({offer.taken / 1e6 / seconds:.1f} MB/s); {offer.refused} of {offer.answers} pushes were told to wait")
        print(f"    {read} documents of {offer.documents}; log {stat['bytes'] / 1e9:.2f} GB, {stat['records']} records, {stat['skips']} skips; the trainer made {step} steps")
        if read != offer.documents:
            raise Failed(f"{offer.documents} documents were sent, {read} read")
        largest = judge(options, scene, memory, baseline)
        if options.plot:
            plot(options.plot, memory.samples, options.bound_mib)
        if max(largest[5:]) > GROWTH * max(largest[:5]):
            raise Failed(f"the second half took {max(largest[5:]):.0f} MiB, the first {max(largest[:5]):.0f}")


def plot(path, samples, bound_mib):
    """Resident size over what was read, as an SVG."""
    width, height, left, top = 900, 300, 70, 40
    end, ceiling = samples[-1][0] or 1, 1.1 * bound_mib
    at = lambda read, mib: f"{left + width * read / end:.1f},{top + height * (1 - mib / ceiling):.1f}"
    step = max(1, len(samples) // 1500)
    curve = " ".join(at(read, kib / 1024) for read, kib in samples[::step])
    parts = [f'<polyline points="{curve}" fill="none" stroke="#1b9e77"/>', f'<polyline points="{at(0, bound_mib)} {at(end, bound_mib)}" stroke="#d95f02" stroke-dasharray="6 4"/>']
    parts.append(f'<text x="{left}" y="22" font-size="14">Resident memory of the daemon (MiB) over bytes read; dashed: the bound</text>')
    for mib in range(0, int(ceiling), 100):
        x, y = at(0, mib).split(",")
        parts.append(f'<text x="{float(x) - 8}" y="{float(y) + 4}" font-size="12" text-anchor="end">{mib}</text><polyline points="{x},{y} {at(end, mib)}" stroke="#eee"/>')
    for tenth in range(0, 11, 2):
        x = left + width * tenth / 10
        parts.append(f'<text x="{x}" y="{top + height + 18}" font-size="12" text-anchor="middle">{end * tenth / 1e10:.1f} GB</text>')
    size = f'width="{width + left + 40}" height="{height + top + 40}"'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif"><rect {size} fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n", encoding="utf-8")


def trial():
    parser = arguments(__doc__)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--part", choices=["refuse", "consume"], help="one of them alone")
    parser.add_argument("--bound-mib", type=int, default=512, help="of memory that the daemon may take")
    parser.add_argument("--duplicates", action="store_true", help="skip documents that come again: all but a few, so that hardly anything is tokenised")
    parser.add_argument("--limit-seconds", type=float, default=3600, help="`consume` offers nothing more after this time")
    parser.add_argument("--plot", type=pathlib.Path, help="where `consume` writes a plot")
    options = parser.parse_args()
    for part in [refuse, consume]:
        if options.part in (None, part.__name__):
            part(options)


main(trial)
