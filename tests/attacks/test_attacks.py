"""Every program of this folder must be refused, quickly and within the adapter's own size."""

import importlib
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import forge
import pytest

HERE = Path(__file__).parent
PROGRAMS = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("forge", "test_attacks"))


@pytest.mark.parametrize("name", PROGRAMS)
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


def test_they_are_programs():
    done = subprocess.run(
        [sys.executable, HERE / "position_past_the_end.py"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "refused: positions" in done.stdout


def test_the_forge_can_make_good_payloads():
    """Else a refusal would prove nothing."""
    body = forge.tensors(forge.NOT, forge.NOT, forge.WHOLE, forge.NOT) + forge.floats(1.0, 2.0)
    with pytest.raises(AssertionError, match="the payload was taken"):
        forge.refused(forge.forge(body), "")
