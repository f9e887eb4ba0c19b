"""A Chromium without a window, driven over the pipes of the DevTools protocol: nothing but Python's standard library and Debian's `chromium`."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time

PATIENCE_SECONDS = 60
# Chromium reads commands from descriptor 3 and writes answers to 4.
COMMAND = 'exec "$@" 3<&"$READ_END" 4>&"$WRITE_END"'


class BrowserError(Exception):
    pass


def find():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    sys.exit("no Chromium found: apt-get install chromium")


def high(descriptor):
    """The same pipe under a number that is neither 3 nor 4."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(descriptor)
    return moved


class Browser:
    """One process with one profile of its own, which goes with it."""

    def __init__(self, folder):
        read_end, self.commands = map(high, os.pipe())
        self.answers, write_end = map(high, os.pipe())
        options = [
            "--headless=new", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--disable-default-apps", "--no-proxy-server", "--hide-scrollbars", "--force-color-profile=srgb",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]  # fmt: skip
        environment = {**os.environ, "READ_END": str(read_end), "WRITE_END": str(write_end)}
        self.log = open(f"{folder}.log", "w+")
        self.process = subprocess.Popen(
            ["bash", "-c", COMMAND, "bash", find(), *options], env=environment, pass_fds=(read_end, write_end),
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        os.close(read_end)
        os.close(write_end)
        self.buffer = b""
        self.next_id = 0
        # By their numbers, the answers that are waited for.
        self.results = {}
        self.listeners = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.send("Browser.close")
        except (BrowserError, OSError):
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
        self.log.close()

    def post(self, method, parameters=None, session=None):
        """Sends a command without waiting for its answer."""
        self.next_id += 1
        message = {"id": self.next_id, "method": method, "params": parameters or {}}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.commands, data) :]
        return self.next_id

    def send(self, method, parameters=None, session=None):
        """Sends a command and returns its result; events that come meanwhile are handed to their listeners."""
        number = self.post(method, parameters, session)
        self.results[number] = None
        limit = time.monotonic() + PATIENCE_SECONDS
        # A listener may send commands of its own, and then gets this answer too.
        while self.results[number] is None:
            message = self.receive(limit - time.monotonic())
            if message is None:
                raise BrowserError(f"{method}: no answer from Chromium")
            self.dispatch(message)
        answer = self.results.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait(self, seconds):
        """Handles events for some time."""
        limit = time.monotonic() + seconds
        while (left := limit - time.monotonic()) > 0:
            message = self.receive(left)
            if message is not None:
                self.dispatch(message)

    def dispatch(self, message):
        if message.get("id") in self.results:
            self.results[message["id"]] = message
        listener = self.listeners.get((message.get("sessionId"), message.get("method")))
        if listener:
            listener(message["params"])

    def receive(self, seconds):
        limit = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0, limit - time.monotonic()))
            if not ready:
                return None
            data = os.read(self.answers, 1 << 20)
            if not data:
                self.log.seek(0)
                raise BrowserError(f"Chromium has ended:\n{self.log.read()[-2000:]}")
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)


class Page:
    """A tab. What it logs, requests and violates is kept."""

    def __init__(self, browser, width=1280, height=900, dark=False, still=True):
        self.browser = browser
        target = browser.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        self.session = browser.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self.messages, self.requests = [], []
        self.patch = None
        for name in ("Page", "Runtime", "Network", "Log", "Audits", "Accessibility"):
            self.send(f"{name}.enable")
        self.on("Runtime.consoleAPICalled", lambda event: self.note_console(event))
        self.on("Runtime.exceptionThrown", lambda event: self.messages.append(("exception", json.dumps(event)[:800])))
        self.on("Log.entryAdded", lambda event: self.note_log(event["entry"]))
        self.on("Audits.issueAdded", lambda event: self.note_issue(event["issue"]))
        self.on("Network.requestWillBeSent", lambda event: self.requests.append(event["request"]["url"]))
        self.resize(width, height)
        self.prefer(dark, still)

    def send(self, method, parameters=None):
        return self.browser.send(method, parameters, self.session)

    def on(self, event, listener):
        self.browser.listeners[self.session, event] = listener

    def note_console(self, event):
        if event["type"] in ("error", "warning", "assert"):
            self.messages.append((event["type"], " ".join(str(value.get("value", value)) for value in event["args"])))

    def note_log(self, entry):
        if entry["level"] in ("error", "warning"):
            self.messages.append((entry["source"], f"{entry['text']} {entry.get('url', '')}"))

    def note_issue(self, issue):
        if "ContentSecurityPolicy" in issue["code"]:
            self.messages.append(("policy", json.dumps(issue)[:800]))

    def resize(self, width, height=900, phone=False):
        self.send(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone},
        )

    def prefer(self, dark, still=True):
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.send("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url):
        self.send("Page.navigate", {"url": url})
        self.until("the page is loaded", "document.readyState === 'complete'")

    def reload(self):
        self.evaluate("window.isOld = true")
        self.send("Page.reload")
        self.until("the page is loaded again", "!window.isOld && document.readyState === 'complete'")

    def evaluate(self, expression):
        answer = self.send("Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True})
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def until(self, what, expression, seconds=PATIENCE_SECONDS):
        """Evaluates an expression again and again until it is true; returns what it then is."""
        limit = time.monotonic() + seconds
        last = None
        while time.monotonic() < limit:
            try:
                last = self.evaluate(expression)
                if last:
                    return last
            except BrowserError as error:
                # A page that is being left cannot be asked; one that is being built has not all there is to ask about.
                last = error
            self.browser.wait(0.05)
        raise BrowserError(f"waited too long until {what}: {expression}\nlast: {last}")

    def press(self, key, shift=False):
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
        event = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "modifiers": 8 if shift else 0}
        if key == "Enter":
            event["text"] = "\r"
        self.send("Input.dispatchKeyEvent", {"type": "keyDown", **event})
        self.send("Input.dispatchKeyEvent", {"type": "keyUp", **event})

    def write(self, text):
        self.send("Input.insertText", {"text": text})

    def patch_status(self, patch):
        """Changes what the page is told of the daemon: `patch` gets the status and may change it. `None`: nothing any more."""
        self.patch = patch
        if patch is None:
            self.send("Fetch.disable")
            return
        self.on("Fetch.requestPaused", self.answer_patched)
        pattern = {"urlPattern": "*/v1/status", "requestStage": "Response"}
        self.send("Fetch.enable", {"patterns": [pattern]})

    def answer_patched(self, event):
        request = {"requestId": event["requestId"]}
        if event.get("responseStatusCode") != 200 or self.patch is None:
            self.browser.post("Fetch.continueRequest", request, self.session)
            return
        body = self.send("Fetch.getResponseBody", request)
        text = base64.b64decode(body["body"]) if body["base64Encoded"] else body["body"]
        status = json.loads(text)
        self.patch(status)
        answer = {
            **request, "responseCode": 200, "responseHeaders": event["responseHeaders"],
            "body": base64.b64encode(json.dumps(status).encode()).decode(),
        }  # fmt: skip
        self.browser.post("Fetch.fulfillRequest", answer, self.session)

    def answer_once(self, pattern, media_type, text):
        """The next request of this pattern gets this answer instead of the server's."""

        def answer(event):
            body = base64.b64encode(text.encode()).decode()
            headers = [{"name": "Content-Type", "value": media_type}]
            answer = {"requestId": event["requestId"], "responseCode": 200, "responseHeaders": headers, "body": body}
            self.browser.post("Fetch.fulfillRequest", answer, self.session)
            self.browser.post("Fetch.disable", None, self.session)

        self.on("Fetch.requestPaused", answer)
        self.send("Fetch.enable", {"patterns": [{"urlPattern": pattern}]})

    def screenshot(self, path, height=None):
        """A picture of the page, or of its first `height` pixels."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.send("Page.captureScreenshot", options)["data"]))
