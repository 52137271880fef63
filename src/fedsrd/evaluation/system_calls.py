"""The system calls that a judged program may make: an allow-list, compiled by libseccomp.

What is not here answers ENOSYS, as a kernel without the call would, on which the C library and Python fall back where
they can. Namespaces already hide files, processes and the network (`evaluation.confine`); this list keeps programs from
the parts of the kernel that namespaces do not cover, and from most of its code.
"""

import errno
import os

from fedsrd.errors import EvaluationError

_FREE = """
brk mmap munmap mremap mprotect madvise membarrier
read pread64 readv preadv write pwrite64 writev lseek close close_range dup dup2 dup3 pipe pipe2
open openat stat fstat lstat newfstatat statx access faccessat faccessat2 getdents64 readlink readlinkat
getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 truncate ftruncate fsync fdatasync
umask chmod fchmod fchmodat utimensat
poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2
getsockopt getsockname recvfrom
clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times
rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall alarm setitimer getitimer pause
futex set_robust_list set_tid_address rseq arch_prctl sched_yield
execve exit exit_group getrandom getrusage getrlimit uname sysinfo
getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid
"""
"""Without conditions on their arguments. `execve`: bubblewrap starts Python with it, and whatever a program starts
instead of itself is confined as it was and does not know the nonce."""

_FCNTL = (0, 1, 2, 3, 5, 6, 7, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_GETLK, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC: none that sends signals."""
_O_ASYNC = 0o20000
_IOCTL = (0x5401, 0x5413, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONBIO, FIONCLEX, FIOCLEX."""
_CLONE_THREAD = 0x00010000
_CLONE_REFUSED = 0x7E02F000
"""CLONE_NEW* (namespaces), CLONE_PIDFD, CLONE_PTRACE, CLONE_VFORK, CLONE_PARENT."""
_PR_SET_NAME = 15
_AF_UNIX = _SOCK_STREAM = 1


def compiled(user: int) -> bytes:
    """The filter as the kernel takes it (classic BPF).

    Args:
        user: who the sandbox's first process becomes; 0 where it is that user already.

    Raises:
        EvaluationError: libseccomp or its bindings are missing; what to install.
    """
    try:
        import pyseccomp
    except ImportError as error:
        raise EvaluationError(f"{error}; install the bindings with: pip install 'fedsrd[evaluate]'") from None
    except RuntimeError as error:
        raise EvaluationError(
            f"{error}; install the system's package of that name (Debian, Ubuntu: libseccomp2; Fedora: libseccomp)"
        ) from None

    def equal(argument: int, value: int) -> pyseccomp.Arg:
        return pyseccomp.Arg(argument, pyseccomp.EQ, value)

    def masked(argument: int, mask: int, value: int) -> pyseccomp.Arg:
        return pyseccomp.Arg(argument, pyseccomp.MASKED_EQ, mask, value)

    conditions: list[tuple[str, tuple[pyseccomp.Arg, ...]]] = [
        *((name, ()) for name in _FREE.split()),
        # Threads, no processes. clone3 hides its flags from filters; without it the C library takes clone.
        ("clone", (masked(0, _CLONE_THREAD | _CLONE_REFUSED, _CLONE_THREAD),)),
        *(("fcntl", (equal(1, command),)) for command in _FCNTL),
        ("fcntl", (equal(1, 4), masked(2, _O_ASYNC, 0))),  # F_SETFL
        *(("ioctl", (equal(1, request),)) for request in _IOCTL),
        # On itself alone.
        ("prlimit64", (equal(0, 0),)),
        ("sched_getaffinity", (equal(0, 0),)),
        ("prctl", (equal(0, _PR_SET_NAME),)),
        # asyncio wakes itself through a pair of sockets; nothing is ever sent to an address.
        ("socketpair", (equal(0, _AF_UNIX), masked(1, 0xF, _SOCK_STREAM))),
        ("sendto", (equal(4, 0),)),
    ]
    if user:
        same = tuple(equal(argument, user) for argument in range(3))
        conditions += [("setgroups", (equal(0, 0),)), ("setresgid", same), ("setresuid", same)]
    chosen = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    for name, arguments in conditions:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        if number >= 0:  # below: this architecture, or a library older than the call, does not have it
            chosen.add_rule(pyseccomp.ALLOW, number, *arguments)
    for name in ("listxattr", "llistxattr", "flistxattr"):  # shutil copies on when it hears that there are none
        chosen.add_rule(pyseccomp.ERRNO(errno.ENOTSUP), name)
    with os.fdopen(os.memfd_create("filter"), "w+b") as file:
        chosen.export_bpf(file)
        file.seek(0)
        return file.read()
