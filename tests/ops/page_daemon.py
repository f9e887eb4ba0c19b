"""The daemon whose live page is tested: the demo's teachers and texts, a student that is trained without end, and a port that stays."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 120
TOKEN = "a-token-of-this-test-alone"

CONFIGURATION = """
[[teacher]]
name = "demo-en"
path = "{demo}/teachers/demo-en"
languages = ["en"]
[[teacher]]
name = "demo-es"
path = "{demo}/teachers/demo-es"
languages = ["es"]
[[teacher]]
name = "demo-en-de"
path = "{demo}/teachers/demo-en-de"
languages = ["en", "de"]
[[corpus]]
name = "en"
language = "en"
path = "{demo}/corpora/en.txt"
rounds = 1000000
[[corpus]]
name = "de"
language = "de"
path = "{demo}/corpora/de.txt"
rounds = 1000000
[[corpus]]
name = "es"
language = "es"
path = "{demo}/corpora/es.txt"
rounds = 1000000
[queue]
batch_tokens = 1024
[store]
max_backlog_bytes = 1048576
[student]
layers = 1
hidden_size = 16
heads = 2
max_sequence_length = 32
[train]
steps = 100000
batch_examples = 8
warmup_steps = 10
shuffle_examples = 64
checkpoint_every_steps = 50
[evaluate]
holdout_fraction = 0.05
every_steps = 25
max_examples = 16
[ops]
http = "127.0.0.1:{port}"
"""


def get(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
        return json.load(answer)


class Daemon:
    def __init__(self, folder, binary):
        # A build that goes on meanwhile must not change it.
        self.binary = Path(shutil.copy(binary, folder / "mergedistill"))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None
        (folder / "token").write_text(TOKEN)
        (folder / "token").chmod(0o600)

    def start(self, with_token=True):
        text = CONFIGURATION.format(demo=ROOT / "daemon/demo", port=self.port)
        (self.folder / "test.toml").write_text(text + ('token_file = "token"\n' if with_token else ""))
        self.log = open(self.folder / "daemon.log", "a+")
        self.process = subprocess.Popen(
            [self.binary, "run", "--config", self.folder / "test.toml"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def status(self):
        return get(self.url + "/v1/status")

    def wait(self, what, condition):
        limit = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < limit:
            try:
                if condition(self.status()):
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            if self.process.poll() is not None:
                self.log.seek(0)
                sys.exit(f"the daemon has ended: {self.log.read()[-3000:]}")
            time.sleep(0.1)
        sys.exit(f"waited too long for {what}")

    def stop(self, how=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE_SECONDS)
