"""Decoded updates beyond the memory limit lie in a file, and nobody downstream can tell."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fedsrd import methods
from fedsrd.core.factors import Draw, LoraPair, Slot, SparseTensor
from fedsrd.errors import FederationError
from fedsrd.federation import spool as spools
from fedsrd.federation.spool import Spool
from fedsrd.methods import ServerStep


def delta(seed):
    rng = np.random.default_rng(seed)
    made = {}
    for module in ("m", "n"):
        B = torch.from_numpy(rng.standard_normal((30, 4)).astype(np.float32))
        A = torch.from_numpy(rng.standard_normal((4, 20)).astype(np.float32))
        made[Slot(module, "B")] = SparseTensor.from_mask(B, torch.from_numpy(rng.random(B.shape) < 0.2))
        made[Slot(module, "A")] = SparseTensor.from_draw(A, Slot(module, "A"), Draw(seed, 0.3))
    made[Slot("whole", "A")] = SparseTensor.from_dense(torch.ones(2, 3))
    made[Slot("none", "A")] = SparseTensor((2, 3), torch.empty(0, dtype=torch.int64), torch.empty(0))
    return made


def same(found, expected):
    assert list(found) == list(expected)
    for slot, sparse in expected.items():
        got = found[slot]
        assert (got.shape, got.draw, got.count) == (sparse.shape, sparse.draw, sparse.count)
        assert torch.equal(got.values, sparse.values)
        assert (got.positions is None) == (sparse.positions is None)
        if sparse.positions is not None:
            assert torch.equal(got.positions, sparse.positions)
    assert found.get(Slot("other", "B")) is None


def test_what_is_kept_comes_back():
    with Spool(memory=1500) as spool:
        kept = [spool.keep(delta(seed)) for seed in range(8)]
        assert kept[0].__class__ is dict  # the first one fits
        assert kept[-1].__class__ is not dict
        for seed, found in enumerate(kept):
            same(found, delta(seed))
        # Side by side, as the server reads.
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda seed: same(kept[seed], delta(seed)), [*range(8)] * 5))
        kept[-1][Slot("m", "B")].values.add_(1)
        same(kept[-1], delta(7))


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("round_number", [1, 2])
def test_a_method_makes_the_same_of_spooled_updates(name, round_number):
    method = methods.get(name)(methods.get(name).Options())
    rng = np.random.default_rng(0)
    state = {
        module: LoraPair(
            torch.from_numpy(rng.standard_normal((30, 4)).astype(np.float32)),
            torch.from_numpy(rng.standard_normal((4, 20)).astype(np.float32)),
        )
        for module in ("m", "n")
    }
    updates = [{slot: s for slot, s in delta(seed).items() if slot.module in state} for seed in range(3)]
    expected = method.server_update(state, updates, [0.2, 0.3, 0.5], ServerStep(round_number, 5))
    with Spool(memory=0) as spool:
        kept = [spool.keep(update) for update in updates]
        found = method.server_update(state, kept, [0.2, 0.3, 0.5], ServerStep(round_number, 5))
    same(found, expected)


def test_the_file_has_no_name_and_goes_away(tmp_path, monkeypatch):
    monkeypatch.setattr(spools.tempfile, "tempdir", str(tmp_path))
    with Spool(memory=0) as spool:
        spool.keep(delta(0))
        assert list(tmp_path.iterdir()) == []
        file = spool._file.fileno()
        os.fstat(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_a_full_disk_says_where(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spools.tempfile, "TemporaryFile", full)
    with (
        Spool(memory=0) as spool,
        pytest.raises(FederationError, match=r"cannot be written to .*: No space left on device; .*\$TMPDIR"),
    ):
        spool.keep(delta(0))
