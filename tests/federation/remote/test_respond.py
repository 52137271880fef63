"""What a site tells the server of its mistakes: what is wrong, without how its disk looks."""

import json

import pytest

from fedsrd.errors import DataError, FederationError, FedSRDError, PayloadError
from fedsrd.federation.remote import header, respond
from fedsrd.federation.remote.respond import respond as answer


class Runtime:
    strict = True


def hello():
    return header.pack(header.Hello(federation="f" * 16, names=["a"], node=7, nonce="0" * 32))


@pytest.mark.parametrize(
    "data", ["/srv/ward 3/secret/data.toml", "~/ward 3/secret/data.toml", "../ward 3/secret/data.toml"]
)
def test_errors_come_without_folders(data):
    with pytest.raises(DataError, match="data.toml: cannot be read as TOML") as caught:
        answer(hello(), {"client": "a", "data": data}, Runtime(), 7)
    assert "secret" not in str(caught.value)
    assert "ward 3" not in str(caught.value)
    # For the site's own log.
    assert "secret/data.toml" in str(caught.value.__cause__)


def test_a_disk_that_fails_is_told_without_a_path(monkeypatch):
    def broken(*_):
        raise PermissionError(13, "Permission denied", "/home/ann/state")

    monkeypatch.setattr(respond, "Replica", broken)
    with pytest.raises(FederationError, match="^the site's disk: Permission denied$"):
        answer(hello(), {"client": "a"}, Runtime(), 7)


def test_a_module_of_methods_that_is_not_there_is_told_without_its_folder():
    with pytest.raises(FedSRDError) as caught:
        answer(hello(), {"client": "a", "import": "/home/ann/secret ward/methods.py"}, Runtime(), 7)
    assert "methods.py" in str(caught.value)
    assert "ann" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**400])
def test_a_seed_that_is_none_is_refused(seed):
    job = {"method": {"name": "fedavg"}, "seed": seed, "uplink": {}}
    order = {"kind": "finalize", "federation": "0" * 16, "name": "a", "reset": False, "job": job, "sync": {}}
    with pytest.raises(PayloadError, match="wrong at"):
        answer(header.Envelope(json.dumps(order)), {"client": "a"}, Runtime(), 7)
