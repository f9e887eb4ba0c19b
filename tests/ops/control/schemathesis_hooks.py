"""What generated requests may not do to the machine that the trial runs on."""

import os
import re

import schemathesis

FOLDER = os.environ["CONTROL_TRIAL_FOLDER"]


def inside(path):
    """A path that is absolute leads into the folder of the trial; what is no such path stays as it is."""
    if not isinstance(path, str) or not path.startswith("/"):
        return path
    return f"{FOLDER}/students/" + re.sub(r"[^A-Za-z0-9]", "_", path)[:40]


@schemathesis.hook
def map_body(context, body):
    """The daemon writes students where a request says."""
    if isinstance(body, dict) and "out" in body:
        return {**body, "out": inside(body["out"])}
    return body


@schemathesis.serializer("application/jsonl", "application/x-ndjson")
def as_it_is(context, value):
    """Documents are generated as text, and sent as that."""
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else str(value).encode()
