"""How long until something shows?"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Result


def run(quick: bool) -> Result:
    """Seconds of `fedsrd --help`, and until the first line of `fedsrd run` with warm caches."""
    result = Result("Start-up, warm caches", ["what", "seconds (least of 3)", "limit"])
    command = [sys.executable, "-m", "fedsrd.cli"]
    helps = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([*command, "--help"], check=True, stdout=subprocess.DEVNULL)
        helps.append(time.perf_counter() - began)
    result.rows.append(["fedsrd --help", min(helps), "0.5"])
    if not quick:
        firsts = []
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                process = subprocess.Popen(
                    [*command, "run", "--out", str(Path(folder, "run"))], stdout=subprocess.PIPE, text=True
                )
                assert process.stdout is not None
                # The first line names the run; the second is progress.
                process.stdout.readline()
                process.stdout.readline()
                firsts.append(time.perf_counter() - began)
                process.kill()
                process.wait()
        result.rows.append(["fedsrd run, first progress line", min(firsts), "5"])
    return result
