"""A daemon that labels and trains for the trials of its control interface: tiny teachers, a corpus that takes documents, both doors open."""

import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BINARY = ROOT / "target/release/mergedistill"
PATIENCE_SECONDS = 120

CONFIGURATION = """
[run]
state_dir = "state"
[[teacher]]
name = "demo-en"
path = "{demo}/teachers/demo-en"
languages = ["en"]
[[teacher]]
name = "demo-en-de"
path = "{demo}/teachers/demo-en-de"
languages = ["en", "de"]
[[corpus]]
name = "en"
language = "en"
path = "{demo}/corpora/en.txt"
rounds = 100000
[[corpus]]
name = "de"
language = "de"
path = "{demo}/corpora/de.txt"
rounds = 100000
[[corpus]]
name = "pushed"
language = "en"
source = "http"
[queue]
batch_tokens = 2048
[store]
segment_bytes = 4194304
max_backlog_bytes = 1048576
retain_bytes = 33554432
[student]
layers = 1
hidden_size = 64
heads = 2
max_sequence_length = 64
dropout = 0.0
[train]
steps = 1000000
batch_examples = 16
warmup_steps = 30
shuffle_examples = 256
checkpoint_every_steps = 500
[evaluate]
holdout_fraction = 0.01
every_steps = 1000
[ops]
http = "127.0.0.1:0"
token_file = "token"
"""


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Daemon:
    """Runs until the block ends."""

    def __init__(self, folder, binary=BINARY):
        self.folder = Path(folder)
        self.token = secrets.token_hex(24)
        (self.folder / "token").write_text(self.token)
        os.chmod(self.folder / "token", 0o600)
        (self.folder / "run.toml").write_text(CONFIGURATION.format(demo=ROOT / "daemon/demo"))
        self.socket = str(self.folder / "state/control.sock")
        self.log = self.folder / "log.txt"
        with open(self.log, "w") as log:
            command = [binary, "run", "--config", self.folder / "run.toml"]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.port = None

    def __enter__(self):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.port is None:
            self.must_live()
            for line in self.log.read_text().splitlines():
                if "live page: http://" in line:
                    self.port = int(line.rsplit(":", 1)[1].rstrip("/"))
            if time.monotonic() > deadline:
                raise SystemExit(f"the daemon does not start\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def must_live(self):
        if self.process.poll() is not None:
            raise SystemExit(f"the daemon has ended with {self.process.returncode}\n{self.log.read_text()[-3000:]}")

    def ask(self, method, path, body=None, door="unix", timeout=PATIENCE_SECONDS):
        """(status, answer): parsed if it is JSON."""
        if door == "unix":
            connection = UnixConnection(self.socket, timeout)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        fields = {"Authorization": f"Bearer {self.token}"}
        if body is not None:
            fields["Content-Type"] = "application/json"
            body = json.dumps(body)
        try:
            connection.request(method, path, body, fields)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = response.getheader("Content-Type") == "application/json" and content
        return response.status, json.loads(content) if is_json else content.decode(errors="replace")

    def status(self):
        """The status, as soon as there is a place for the question."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            status, answer = self.ask("GET", "/v1/status")
            if status == 200:
                return answer
            if time.monotonic() > deadline:
                raise SystemExit(f"no status: {status} {answer}")
            time.sleep(0.05)

    def wait_for_step(self, step):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.status()["train"]["step"] < step:
            self.must_live()
            if time.monotonic() > deadline:
                raise SystemExit(f"training does not get to step {step}\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)

    def resources(self):
        """Resident memory in MiB, descriptors, threads."""
        process = Path(f"/proc/{self.process.pid}")
        fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
        return int(fields["VmRSS"].split()[0]) / 1024, len(os.listdir(process / "fd")), int(fields["Threads"])
