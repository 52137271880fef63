"""What a program that a model wrote can do: compute, and nothing else."""

import sys
from pathlib import Path

import pytest

from fedsrd.errors import EvaluationError
from fedsrd.evaluation import confine, sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are run on Linux only")

FORBIDDEN = {
    "reads a file of the user": "open(os.path.expanduser('~/.profile')).read()",
    "reads the password file": "open('/etc/passwd').read()",
    "lists the home folder": "os.listdir(HOME)",
    "writes outside": "open('/tmp/fedsrd-was-here', 'w')",
    "writes beside its folder": "open('../verdict', 'w').write('passed')",
    "removes its folder's parent": "shutil.rmtree('..')",
    "opens a socket": "socket.create_connection(('127.0.0.1', 9))",
    "opens a local socket": "socket.socket(socket.AF_UNIX)",
    "asks a name": "socket.getaddrinfo('example.org', 80); socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "starts a program": "subprocess.run(['/bin/true'], check=True)",
    "starts a shell": "assert os.system('true') == 0",
    "forks": "os.fork()",
    "replaces itself": "os.execv('/bin/true', ['true'])",
    "signals its parent": "os.kill(os.getppid(), 0)",
    "takes memory": "bytearray(3 << 30)",
    "fills the disk": "f = open('big', 'wb')\nfor _ in range(10): f.write(bytes(1 << 20)); f.flush()",
    "calls fork directly": "import ctypes; assert ctypes.CDLL(None).syscall(57) > 0",
    "leaves early as if all were well": "sys.exit(0)",
    "leaves at once": "os._exit(0)",
    "says passed on standard output": "print('passed'); sys.stdout.flush(); assert False",
    "fails": "assert 1 + 1 == 3",
    "is no program": "def f(:",
    "recurses for ever": "def f(): f()\nf()",
}
PREAMBLE = "import os, sys, socket, subprocess, shutil\nHOME = '/root' if os.getuid() == 0 else '/home'\n"


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_program_cannot(name):
    verdict = sandbox.run(PREAMBLE + FORBIDDEN[name], seconds=5)
    assert not verdict.passed
    assert verdict.reason
    assert not Path("/tmp/fedsrd-was-here").exists()


@pytest.mark.parametrize(
    "program",
    [
        "import math, heapq, re, itertools, collections, random, decimal\nassert math.gcd(4, 6) == 2",
        "open('mine', 'w').write('a')\nassert open('mine').read() == 'a'",
        "import threading\nt = threading.Thread(target=print)\nt.start(); t.join()",
        "print('much ' * 1000)",
        "if __name__ == '__main__':\n    x = 1\nassert x == 1",
    ],
)
def test_a_program_can(program):
    assert sandbox.run(program) == sandbox.Verdict(True, "passed")


@pytest.mark.parametrize(("program", "reason"), [("while True: pass", "2 s"), ("import time; time.sleep(60)", "2 s")])
def test_time_is_limited(program, reason):
    verdict = sandbox.run(program, seconds=2)
    assert not verdict.passed
    assert reason in verdict.reason


def test_where_it_cannot_be_confined_nothing_runs(monkeypatch, tmp_path):
    # The same script without Landlock: what a kernel before 5.13 answers.
    broken = tmp_path / "confine.py"
    text = Path(confine.__file__).read_text().replace("_LIBC.syscall(444, None, 0, 1)", "_LIBC.syscall(9999)")
    broken.write_text(text)
    monkeypatch.setattr(confine, "__file__", str(broken))
    with pytest.raises(EvaluationError, match="cannot be run here under limits.*Landlock"):
        sandbox.run("open('mine', 'w')")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EvaluationError, match="darwin"):
        sandbox.check()
