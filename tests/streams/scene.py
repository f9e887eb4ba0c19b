"""A daemon in a folder of its own, what is pushed to it, and what its log holds: what all trials share.

A trial is a script that prints a summary and exits with 1 if something is not as it should be. Paths are arguments; the defaults are the
demo's teachers and texts, and the release build."""

import argparse
import collections
import http.client
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "daemon" / "demo"
# What the demo's teachers are called, and what they know.
TEACHERS = {"demo-en": ["en"], "demo-es": ["es"], "demo-en-de": ["en", "de"]}
PATIENCE_SECONDS = 120


class Failed(Exception):
    """Something is not as it should be."""


def arguments(description):
    """A parser with the arguments that all trials take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=REPOSITORY / "target/release/mergedistill", help="the daemon (default: the release build)")
    parser.add_argument("--teachers", type=pathlib.Path, default=DEMO / "teachers", help=f"folder with the teachers {', '.join(TEACHERS)}")
    parser.add_argument("--text", type=pathlib.Path, default=DEMO / "corpora", help="folder with en.txt, de.txt and es.txt: documents between empty lines")
    parser.add_argument("--folder", type=pathlib.Path, help="where it works (default: a temporary folder, removed when all went well)")
    return parser


def toml(tables):
    """Text of a configuration: a list of (header, settings)."""
    # JSON's strings, numbers, booleans and lists of them are TOML's as well.
    lines = []
    for header, settings in tables:
        lines.append(header)
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


def teacher_tables(folder, languages, **settings):
    """The demo's teachers that know one of `languages`."""
    known = {name: [language for language in of if language in languages] for name, of in TEACHERS.items()}
    return [("[[teacher]]", {"name": name, "path": str((folder / name).resolve()), "languages": of, **settings}) for name, of in known.items() if of]


def texts(folder, language, bytes_limit=None):
    """Documents of a language: what stands between empty lines."""
    text = (folder / f"{language}.txt").read_text(encoding="utf-8")
    documents = [part.strip("\r\n") for part in re.split(r"\n[ \t\r]*\n", text) if part.strip()]
    size, kept = 0, []
    for document in documents:
        size += len(document.encode()) + 2
        if bytes_limit and size > bytes_limit:
            break
        kept.append(document)
    return kept


def until(what, condition, seconds=PATIENCE_SECONDS, interval=0.05):
    """Asks again and again until `condition` gives something true."""
    limit = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > limit:
            raise Failed(f"waited longer than {seconds} s for {what}")
        time.sleep(interval)


class Scene:
    """A folder with a configuration, its state and its daemon."""

    def __init__(self, options, name, tables):
        self.binary = options.binary.resolve()
        if not self.binary.exists():
            raise Failed(f"{self.binary} is not there: cargo build --release, or --binary")
        root = options.folder or pathlib.Path(tempfile.gettempdir())
        root.mkdir(parents=True, exist_ok=True)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"mergedistill-{name}-", dir=root))
        self.state = self.folder / "state"
        self.log = self.state / "log"
        self.config = self.folder / "trial.toml"
        self.errors = self.folder / "stderr"
        self.socket = self.state / "control.sock"
        self.process = None
        self.configure(tables)

    def configure(self, tables, state="state"):
        self.config.write_text(toml([("[run]", {"state_dir": state}), *tables]), encoding="utf-8")

    def __enter__(self):
        return self

    def __exit__(self, kind, _error, _trace):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if kind is None:
            shutil.rmtree(self.folder)
        else:
            print(f"left for a look: {self.folder}", file=sys.stderr)

    def start(self, ready=True, **streams):
        """Starts the daemon; with `ready`, waits until it answers."""
        with open(self.errors, "ab") as errors:
            streams.setdefault("stdin", subprocess.DEVNULL)
            self.process = subprocess.Popen(
                [self.binary, "run", "--config", self.config], stdout=subprocess.DEVNULL, stderr=errors, **streams
            )
        if ready:
            until("the daemon", self.answers)
        return self.process

    def answers(self):
        self.alive()
        try:
            return self.status()
        except OSError:
            return None

    def alive(self):
        """The daemon must run."""
        code = self.process.poll()
        if code is not None:
            raise Failed(f"the daemon ended by itself with {code}:\n{self.last_words()}")
        return True

    def last_words(self):
        return self.errors.read_text(encoding="utf-8", errors="replace")[-3000:]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, expected=0):
        """Has the daemon drain and end."""
        self.process.send_signal(signal.SIGTERM)
        self.finish(expected)

    def finish(self, expected=0, seconds=PATIENCE_SECONDS):
        """Waits for the daemon to end."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"the daemon did not end within {seconds} s:\n{self.last_words()}") from None
        if code != expected:
            raise Failed(f"the daemon ended with {code}, not {expected}:\n{self.last_words()}")

    def tool(self, *command):
        """Runs the binary; returns what it printed."""
        output = subprocess.run([self.binary, *map(str, command)], capture_output=True, encoding="utf-8")
        if output.returncode != 0:
            raise Failed(f"`mergedistill {' '.join(map(str, command))}` ended with {output.returncode}: {output.stderr[-2000:]}")
        return output.stdout

    def ctl(self, *command):
        return json.loads(self.tool("ctl", "--json", "--socket", self.socket, *command))

    def status(self):
        return Client(self.socket).get("/v1/status")

    def documents(self):
        """Documents that were read since the daemon was started, by all sources."""
        self.alive()
        return sum(source["documents"] for source in self.status()["corpora"]["corpora"])

    def drain(self, seconds=PATIENCE_SECONDS):
        """Waits until nothing is left to read, and all that was read is durable in the log."""

        def drained():
            self.alive()
            # The status is as of a moment ago in part, so the counts are taken from the metrics, and after it.
            if any(source["state"] == "reading" for source in self.status()["corpora"]["corpora"]):
                return False
            read, written = self.metric("mergedistill_stage_items_in_total"), self.metric("mergedistill_stage_items_out_total")
            durable, appended = (self.metric(f"mergedistill_log_{what}_sequence")[()] for what in ["durable", "appended"])
            return read["ingest",] == written["log",] and durable == appended

        until("everything to be in the log", drained, seconds, 0.1)

    def address(self):
        """Host and port of the daemon's loopback port."""
        return self.last_words().rsplit("live page: http://", 1)[1].split()[0]

    def log_stat(self):
        return json.loads(self.tool("log", "stat", self.log, "--json"))

    def verify(self):
        """The log must be whole; returns how many entries it has."""
        return json.loads(self.tool("log", "verify", self.log, "--json"))

    def records(self, first=0):
        """The records from entry `first` on, without tokens and labels."""
        command = [self.binary, "log", "dump", self.log, "--json", "--from", str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as dump:
            for line in dump.stdout:
                head, _, _ = line.partition(',"copies":')
                yield json.loads(head + "}")
            error = dump.stderr.read()
        if dump.returncode != 0:
            raise Failed(f"log dump: {error[-2000:]}")

    def notes(self):
        """The quarantine, read from its folder."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.state.glob("quarantine/*/*.json"))]

    def metric(self, name):
        """A metric by its labels, as {(value, …): number}."""
        found = {}
        for line in Client(self.socket).text("/metrics").splitlines():
            head, _, value = line.rpartition(" ")
            if head == name or head.startswith(name + "{"):
                labels = [part.split('"')[1] for part in head[len(name) + 1 : -1].split(",") if '"' in part]
                found[tuple(labels)] = float(value)
        return found


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Client:
    """A client of the control socket, or of the loopback port if it is given host and port."""

    def __init__(self, door, timeout=PATIENCE_SECONDS):
        self.door, self.timeout = door, timeout

    def connection(self):
        if isinstance(self.door, str):
            return http.client.HTTPConnection(self.door, timeout=self.timeout)
        return UnixConnection(self.door, self.timeout)

    def text(self, path):
        connection = self.connection()
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def get(self, path):
        return json.loads(self.text(path))

    def push(self, corpus, body, key=None, kind="application/jsonl", chunks=None, headers=None):
        """Sends documents: status, answer and Retry-After. `chunks`: bytes of a chunk, if it is to be sent in chunks. An OSError: nobody knows."""
        headers = {"Content-Type": kind, **(headers or {})}
        if key is not None:
            headers["Idempotency-Key"] = key
        if chunks:
            data = (body[at : at + chunks] for at in range(0, len(body), chunks))
        else:
            data = body
        connection = self.connection()
        try:
            connection.request("POST", f"/v1/corpora/{corpus}/documents", data, headers, encode_chunked=bool(chunks))
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null"), response.getheader("Retry-After")
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()


class Documents:
    """The documents of a log: each with the spans that were made of it, by (source, document, round)."""

    def __init__(self, records):
        self.spans = collections.defaultdict(list)
        self.records = 0
        for record in records:
            self.records += 1
            self.spans[record["source"], record["document"], record["round"]].append(tuple(record["span"]))

    def problems(self):
        """Documents whose spans overlap, leave gaps, or come twice or out of order."""
        found = []
        for document, spans in self.spans.items():
            at = 0
            for first, end in spans:
                if first != at or end <= first:
                    found.append(f"{document}: spans {spans[:8]}")
                    break
                at = end
        return found

    def of(self, source):
        """The documents of a source: {(identifier, round): bytes covered}."""
        return {(document, turn): spans[-1][1] for (name, document, turn), spans in self.spans.items() if name == source}

    def identifiers(self, source):
        """How often each identifier that documents give themselves is in a source: {(id, round): number}."""
        return collections.Counter((document.split("#", 1)[-1], turn) for document, turn in self.of(source))


def main(trial):
    """Runs a trial; exits with 1 if it failed."""
    begun = time.monotonic()
    try:
        trial()
    except Failed as failed:
        print(f"FAILED: {failed}", file=sys.stderr)
        sys.exit(1)
    print(f"all as it should be, in {time.monotonic() - begun:.0f} s")
