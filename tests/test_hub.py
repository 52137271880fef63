"""Whether the hub is there is found out before anybody waits for it."""

import socket
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from fedsrd import hub
from fedsrd.data.local import load_local
from fedsrd.errors import DataError, ModelError
from fedsrd.planning.architecture import architecture
from fedsrd.training import loading


class Client:
    """In the place of huggingface_hub's client: what is asked comes to this end."""

    def __init__(self, error=None, seconds=0.0, connects=False):
        self.error, self.seconds, self.connects, self.asked = error, seconds, connects, 0

    def head(self, url, timeout, extensions, **_):
        self.asked += 1
        if self.connects:
            extensions["trace"]("connection.connect_tcp.complete", {})
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error


def error_named(name):
    return type(name, (Exception,), {})("no way there")


@pytest.fixture
def online(monkeypatch, tmp_path):
    """The network is wanted, the cache is empty, and `use` says who answers."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv(hub.TIMEOUT, raising=False)
    hub.forget()

    def use(**how):
        client = Client(**how)
        monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)
        return client

    yield use
    hub.forget()


def test_no_connection_is_found_out_once_and_remembered(online):
    client = online(error=error_named("ConnectError"))
    assert hub.out_of_reach("org/model") == hub.out_of_reach("org/other") == "no way there"
    assert client.asked == 1


@pytest.mark.parametrize("name", ["ReadTimeout", "RemoteProtocolError", "ValueError"])
def test_who_has_a_connection_and_no_answer_may_be_slow(online, name):
    online(error=error_named(name))
    assert hub.out_of_reach("org/model") == ""


def test_a_handshake_that_takes_long_is_no_reason_to_give_up_and_a_refused_certificate_is(online):
    online(error=error_named("ConnectTimeout"), connects=True)
    assert hub.out_of_reach("org/model") == ""
    hub.forget()
    online(error=error_named("ConnectError"), connects=True)
    assert hub.out_of_reach("org/model") == "no way there"


def test_silence_ends_after_the_seconds_that_the_user_wants_and_is_not_silent(online, monkeypatch, capsys):
    monkeypatch.setattr(hub, "SILENT", 0.1)
    monkeypatch.setenv(hub.TIMEOUT, "1")
    online(seconds=20)
    began = time.monotonic()
    assert hub.out_of_reach("org/\x1bmodel") == "no connection within 1 s"
    assert time.monotonic() - began < 5
    assert capsys.readouterr().err == "Asking huggingface.co for org/\N{REPLACEMENT CHARACTER}model\n"


def test_a_slow_link_that_has_a_connection_is_used(online, monkeypatch):
    monkeypatch.setenv(hub.TIMEOUT, "1")
    online(seconds=20, connects=True)
    assert hub.out_of_reach("org/model") == ""


def test_nothing_is_asked_where_the_user_is_offline(online, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    client = online(error=error_named("ConnectError"))
    assert hub.out_of_reach("org/model") == ""
    assert client.asked == 0


def test_a_real_client_tells_a_server_that_is_silent_from_one_that_is_not_there(online, monkeypatch):
    monkeypatch.setenv(hub.TIMEOUT, "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.out_of_reach("org/model") == ""
        hub.forget()
    assert hub.out_of_reach("org/model") != ""


@pytest.mark.parametrize(
    "load",
    [
        lambda name: loading.empty_model(name),
        lambda name: loading.load_tokenizer(name),
        lambda name: loading.commit_of(name),
        lambda name: architecture(name, 4, "all-linear"),
    ],
)
def test_a_model_that_cannot_be_asked_for_ends_at_once_in_what_to_do(online, load):
    online(error=error_named("ConnectError"))
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"huggingface.co cannot be reached \(no way there\).*hf download org/model"):
        load("org/model")
    # Without the question, huggingface_hub sleeps 23 seconds.
    assert time.monotonic() - began < 15


def test_so_it_is_where_the_user_is_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        architecture("org/model", 4, "all-linear")


def test_a_data_set_of_the_hub_ends_at_once_too(online):
    online(error=error_named("ConnectError"))
    began = time.monotonic()
    with pytest.raises(DataError, match=r"org/set.*huggingface.co cannot be reached \(no way there\)"):
        load_local("org/set", columns={}, template=None)
    assert time.monotonic() - began < 15
