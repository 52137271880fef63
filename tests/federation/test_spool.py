"""Decoded updates beyond the memory limit lie in a file, and nobody downstream can tell."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from toy import build, config_of

from fedsrd import methods
from fedsrd.core.lora import LoraModule, table_of, tensor_name
from fedsrd.core.tensors import Draw, GlobalState, SparseTensor
from fedsrd.errors import FederationError
from fedsrd.federation import spool as spools
from fedsrd.federation.spool import Spool
from fedsrd.methods import Contribution, ServerContext


def delta(seed):
    rng = np.random.default_rng(seed)
    made = {}
    for module in ("m", "n"):
        B = torch.from_numpy(rng.standard_normal((30, 4)).astype(np.float32))
        A = torch.from_numpy(rng.standard_normal((4, 20)).astype(np.float32))
        name = tensor_name(module, "A")
        made[tensor_name(module, "B")] = SparseTensor.from_mask(B, torch.from_numpy(rng.random(B.shape) < 0.2))
        made[name] = SparseTensor.from_draw(A, name, Draw(seed, 0.3))
    made["whole"] = SparseTensor.from_dense(torch.ones(2, 3))
    made["none"] = SparseTensor((2, 3), torch.empty(0, dtype=torch.int64), torch.empty(0))
    return made


def same(found, expected):
    assert list(found) == list(expected)
    for name, sparse in expected.items():
        got = found[name]
        assert (got.shape, got.draw, got.count) == (sparse.shape, sparse.draw, sparse.count)
        assert torch.equal(got.values, sparse.values)
        assert (got.positions is None) == (sparse.positions is None)
        if sparse.positions is not None:
            assert torch.equal(got.positions, sparse.positions)
    assert found.get(tensor_name("other", "B")) is None


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
        kept[-1][tensor_name("m", "B")].values.add_(1)
        same(kept[-1], delta(7))


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("round_number", [1, 2])
def test_a_method_makes_the_same_of_spooled_updates(name, round_number):
    method = build(name)
    rng = np.random.default_rng(0)
    table = method.state_table(table_of(LoraModule(module, 30, 20, 4) for module in ("m", "n")))
    state = GlobalState(
        {spec.name: torch.from_numpy(rng.standard_normal(spec.shape).astype(np.float32)) for spec in table.specs}
    )
    updates = []
    for seed in range(3):
        made = delta(seed)
        # What a method replicates besides the model's tensors travels whole.
        updates.append({n: made.get(n, SparseTensor.from_dense(t * (1 + seed))) for n, t in state.tensors.items()})
    context = ServerContext(round_number, 5, 3, optimizer=config_of(method).optimizer)

    def broadcast(deltas):
        shares = zip(deltas, (0.2, 0.3, 0.5), strict=True)
        contributions = [Contribution(f"c{place}", one, weight) for place, (one, weight) in enumerate(shares)]
        return method.server_update(state, contributions, context)

    expected, expected_memory = broadcast(updates)
    with Spool(memory=0) as spool:
        found, memory = broadcast([spool.keep(update) for update in updates])
    same(found, expected)
    assert list(memory) == list(expected_memory)
    assert all(torch.equal(memory[key], tensor) for key, tensor in expected_memory.items())


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
