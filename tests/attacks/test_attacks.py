"""Every program of this folder must be refused, quickly and within the adapter's own size."""

import importlib
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import forge
import forge_server
import pytest

HERE = Path(__file__).parent
SHARED = ("forge", "forge_server", "test_attacks")
PROGRAMS = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in SHARED)
SERVERS = [name for name in PROGRAMS if name.startswith("server_")]


@pytest.mark.parametrize("name", sorted(set(PROGRAMS) - set(SERVERS)))
def test_the_attack_is_refused(name):
    attack = importlib.import_module(name)
    table = getattr(attack, "TABLE", forge.TABLE)
    payload = attack.payload()
    tracemalloc.start()
    began = time.perf_counter()
    forge.refused(payload, attack.MESSAGE, table)
    seconds = time.perf_counter() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000, f"{name} made the reader allocate {peak} bytes"
    assert seconds < 1


MEASURED = """
import importlib, resource, sys
import forge_server, torch
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

for name in sys.argv[1:]:
    attack = importlib.import_module(name)
    forge_server.client("flora")
    before = peak()
    forge_server.refused(attack.strike, attack.MESSAGE)
    print(name, peak() - before)
"""


def test_the_servers_attacks_are_refused():
    """In a process of its own, because torch's memory is seen from outside only: 64 MiB for messages of at most 3 MB to
    a client with a few hundred numbers.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *SERVERS], cwd=HERE, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    taken = {name: int(kib) for name, kib in map(str.split, done.stdout.splitlines())}
    assert list(taken) == SERVERS
    assert {name: kib for name, kib in taken.items() if kib >= 64 << 10} == {}


def test_they_are_programs():
    for name, refusal in (("position_past_the_end", "positions"), ("server_changes_a_base_that_stays", "a snapshot")):
        done = subprocess.run(
            [sys.executable, HERE / f"{name}.py"], capture_output=True, text=True, check=True, timeout=60
        )
        assert f"refused: {refusal}" in done.stdout


def test_the_forge_can_make_good_payloads():
    """Else a refusal would prove nothing."""
    body = forge.tensors(forge.NOT, forge.NOT, forge.WHOLE, forge.NOT) + forge.floats(1.0, 2.0)
    with pytest.raises(AssertionError, match="the payload was taken"):
        forge.refused(forge.forge(body), "")


def test_the_forge_has_a_client_that_takes_a_start():
    from fedsrd.core.tensors import GlobalState, initial_tensors
    from fedsrd.federation.messages import Start, Sync

    good = forge_server.start()
    good = Start(good.payload, GlobalState(initial_tensors(forge_server.TABLE, 0)).digest)
    with pytest.raises(AssertionError, match="the message was taken"):
        forge_server.refused(lambda: forge_server.client("fedavg", version=None).sync(Sync(good)), "")
