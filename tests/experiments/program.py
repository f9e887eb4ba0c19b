"""What `run` and `downstream` share: calling the program, several calls at a time, files that are whole or not there."""

import concurrent.futures
import os
import subprocess
import sys


def mergedistill(binary, *arguments, **variables):
    """Runs the program; its standard output."""
    call = [str(binary), "--log", "warn", *map(str, arguments)]
    done = subprocess.run(call, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(call)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def at_a_time(jobs, calls):
    """Makes the calls, so many at a time, and prints what each returns. The first that fails ends it, once those that have begun are done."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(call) for call in calls]):
            try:
                print(future.result(), flush=True)
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                if isinstance(error, RuntimeError):
                    sys.exit(str(error))
                raise


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)
