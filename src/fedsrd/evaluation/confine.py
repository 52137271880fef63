"""Runs one program under limits: this file is a script, started by `evaluation.sandbox` in a process of its own.

Before the program runs, the process gives up for good: the network (no sockets), other programs and processes, signals
(seccomp), all files but Python's own and its scratch folder (Landlock), and more than its share of time, memory and
file size (resource limits). Linux on x86-64 and arm64. Only the standard library is imported, and nothing of ours.

Usage: python -I -S confine.py SECONDS MIB SCRATCH < program; the verdict is one line on standard output.
"""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct
import sys

OK = "passed"

# Numbers of system calls: socket, execve, execveat, kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo,
# pidfd_send_signal, ptrace, process_vm_writev, io_uring_setup, unshare, setns, fork, vfork (Linux, asm/unistd.h).
_REFUSED = {
    "x86_64": (41, 59, 322, 62, 200, 234, 129, 297, 424, 101, 311, 425, 272, 308, 57, 58),
    "aarch64": (198, 221, 281, 129, 130, 131, 138, 240, 424, 117, 271, 425, 97, 268),
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE_THREAD = 0x00010000

_LIBC = ctypes.CDLL(None, use_errno=True)


def _refuse_calls() -> None:
    """A seccomp filter: the calls above fail with EPERM, and so does clone without CLONE_THREAD (no new processes).

    clone3 fails with ENOSYS, on which the C library falls back to clone, whose flags a filter can see.
    """
    machine = platform.machine()
    if machine not in _REFUSED:
        raise OSError(errno.ENOSYS, f"no filter for {machine}")
    load, equal, greater, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, deny = 0x7FFF0000, 0x00050000
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, _ARCHITECTURE[machine]),
        (give, 0, 0, 0x80000000),  # another one: the process is killed
        (load, 0, 0, 0),  # the call
        (greater, 0, 1, 0x40000000),  # x32's calls
        (give, 0, 0, deny | errno.EPERM),
        (equal, 0, 1, _CLONE3),
        (give, 0, 0, deny | errno.ENOSYS),
    ]
    for number in _REFUSED[machine]:
        program += [(equal, 0, 1, number), (give, 0, 0, deny | errno.EPERM)]
    program += [
        (equal, 0, 3, _CLONE[machine]),
        (load, 0, 0, 16),  # its first argument: flags
        (any_bit, 1, 0, _CLONE_THREAD),
        (give, 0, 0, deny | errno.EPERM),
        (give, 0, 0, allow),
    ]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _check(_LIBC.prctl(22, 2, ctypes.c_char_p(header), 0, 0))


def _hide_files(scratch: str) -> None:
    """A Landlock ruleset: read Python's own files and a few devices, write below `scratch`, nothing else."""
    version = _LIBC.syscall(444, None, 0, 1)
    _check(version)
    handled = (1 << (16 if version >= 5 else 15 if version >= 3 else 14 if version >= 2 else 13)) - 1
    read = 0b1101  # execute, read a file, list a folder
    rules = struct.pack("Q", handled)
    ruleset = _LIBC.syscall(444, ctypes.c_char_p(rules), len(rules), 0)
    _check(ruleset)
    allowed = dict.fromkeys((sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc/localtime"), read)
    allowed |= {"/dev/null": 0b110, "/dev/urandom": 0b100, scratch: handled}
    for path, rights in allowed.items():
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):
                rights &= 0b110
            rule = struct.pack("=Qi", rights & handled, handle)
            _check(_LIBC.syscall(445, ruleset, 1, ctypes.c_char_p(rule), 0))
            os.close(handle)
    _check(_LIBC.syscall(446, ruleset, 0))
    os.close(ruleset)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _limit(seconds: int, mib: int) -> None:
    for what, bound in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, mib << 20),
        (resource.RLIMIT_FSIZE, 1 << 20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (bound, bound))


def main() -> None:
    """Reads the program, gives everything up, runs it, and says how it went."""
    seconds, mib, scratch = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    program = sys.stdin.read()
    verdict = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    try:
        _check(_LIBC.prctl(38, 1, 0, 0, 0))  # no new privileges, ever
        _limit(seconds, mib)
        _hide_files(scratch)
        _refuse_calls()
    except (OSError, AttributeError) as error:
        os.write(verdict, f"unconfined: {error}\n".encode())
        return
    try:
        exec(compile(program, "<completion>", "exec"), {"__name__": "__main__"})
        said = OK
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    os.write(verdict, said[:300].replace("\n", " ").encode(errors="replace") + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
