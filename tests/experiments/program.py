"""What `run` and `downstream` share: calling the program, several calls at a time, files that are whole or not there, and what results are known by."""

import concurrent.futures
import fcntl
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading

CHILDREN = set()
BROKEN_OFF = threading.Event()


def mergedistill(binary, *arguments, **variables):
    """Runs the program; its standard output. A signal to us does not reach it: it would end in good order, and what it had done by then would look like all of it."""
    call = [str(binary), "--log", "warn", *map(str, arguments)]
    process = subprocess.Popen(call, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    CHILDREN.add(process)
    if BROKEN_OFF.is_set():
        process.kill()
    out, errors = process.communicate()
    CHILDREN.discard(process)
    if BROKEN_OFF.is_set():
        raise RuntimeError("broken off")
    if process.returncode:
        raise RuntimeError(f"{' '.join(call)}: exit code {process.returncode}\n{errors}")
    return out


def at_a_time(jobs, calls):
    """Makes the calls, so many at a time, and prints what each returns. The first that fails ends it, once those that have begun are done; a signal ends those too."""

    def end(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            for future in concurrent.futures.as_completed([pool.submit(call) for call in calls]):
                print(future.result(), flush=True)
        except RuntimeError as error:
            pool.shutdown(wait=True, cancel_futures=True)
            sys.exit(str(error))
        except BaseException:
            BROKEN_OFF.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(CHILDREN):
                process.kill()
            raise


def alone_in(folder):
    """Holds `folder` until the process ends: two of us would remove each other's files."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / "lock", "w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{folder} is in use; wait for the other process, or give another --work")
    return lock


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)


def fingerprint(*parts):
    """Of whatever JSON can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def digest(files):
    """Of files, by their names and contents."""
    return fingerprint(*[[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in sorted(files)])


@functools.cache
def digest_of_folder(folder):
    """Of the files in a folder, as a teacher has them."""
    return digest(file for file in folder.iterdir() if file.is_file())
