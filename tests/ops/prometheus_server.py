"""A Prometheus server of its own, with the rules of ops/prometheus, that scrapes one daemon."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

OPS = Path(__file__).resolve().parents[2] / "ops/prometheus"
PATIENCE_SECONDS = 120


def get(url):
    """The body of an answer, or the end of the program."""
    # Neither server is asked through a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=30) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error} {error.read().decode()}")


def wait_for(what, condition):
    """Asks again and again until `condition` gives something true."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < limit:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    sys.exit(f"waited too long for {what}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Prometheus:
    """A server of its own, with the example configuration at another pace."""

    def __init__(self, folder, target, interval_seconds=1):
        for file in ("alerts.yml", "prometheus.yml"):
            shutil.copy(OPS / file, folder)
        configuration = folder / "prometheus.yml"
        text = configuration.read_text().replace("127.0.0.1:8477", target)
        text = re.sub(r"_interval: \d+s", f"_interval: {interval_seconds}s", text)
        configuration.write_text(text)
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        self.log = open(folder / "prometheus.log", "w+")
        command = ["prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}"]
        self.process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=self.log)
        wait_for("Prometheus", self.is_ready)

    def is_ready(self):
        if self.process.poll() is not None:
            self.log.seek(0)
            sys.exit(f"Prometheus ended:\n{self.log.read()}")
        try:
            return "Ready" in get(f"{self.url}/-/ready")
        except (OSError, SystemExit):
            return False

    def api(self, path, **parameters):
        """Data of an answer of the HTTP API; neither errors nor warnings are taken."""
        answer = json.loads(get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))
        if answer["status"] != "success" or answer.get("warnings"):
            sys.exit(f"{path} {parameters}: {answer}")
        return answer["data"]

    def value(self, query):
        """The value of the first series that answers `query` now; None if there is none."""
        result = self.api("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None

    def samples(self, metric, seconds):
        """{unix time of the scrape: value} of the one series `metric`, as scraped in the last `seconds`."""
        (result,) = self.api("query", query=f"{metric}[{int(seconds) + 1}s]")["result"]
        return {float(time): float(value) for time, value in result["values"]}

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)
