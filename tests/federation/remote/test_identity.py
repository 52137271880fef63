"""A site's key: made once, for its owner's eyes, and what it signs proves one answer to one greeting."""

import json
import os
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedsrd import recipe as recipes
from fedsrd.cli import app
from fedsrd.errors import IdentityError, PayloadError, RecipeError
from fedsrd.federation.remote import header, identity
from fedsrd.federation.remote.header import Envelope
from fedsrd.federation.remote.respond import respond

KEY = "ed25519:" + "A" * 43 + "="
NONCE = "5" * 32


@pytest.fixture
def keyed(tmp_path):
    """A site's settings with a key, and the key."""
    key = identity.create(tmp_path / "site.key")
    return {"client": "ward-a", "state": str(tmp_path), "key": str(tmp_path / "site.key")}, key


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path):
    file = tmp_path / "site.key"
    before = os.umask(0)
    try:
        made = CliRunner().invoke(app, ["key", str(file)])
    finally:
        os.umask(before)
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    line = made.stdout.strip()
    assert identity.load(file).public == line
    assert CliRunner().invoke(app, ["key", str(file), "--show"]).stdout.strip() == line
    text = file.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in (file, tmp_path / "link"):
        refused = CliRunner().invoke(app, ["key", str(taken)])
        assert isinstance(refused.exception, IdentityError)
        assert "never overwritten" in str(refused.exception)
    assert file.read_bytes() == text
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(IdentityError, match="cannot be written"):
        identity.create(tmp_path / "no" / "folder.key")
    assert recipes.ClientSection(name="x", key=line).key == line


def test_a_key_of_openssl_is_taken(tmp_path):
    file = tmp_path / "site.key"
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(file)]
    subprocess.run(command, check=True, timeout=30)
    file.chmod(0o600)
    said = identity.statement("0" * 16, NONCE, 3, "ward-a", -1, "")
    key = identity.load(file)
    assert identity.is_signed(key.public, key.sign(said), said)


def test_a_key_that_others_can_read_or_that_is_none_is_refused_without_its_folder(tmp_path):
    file = tmp_path / "site.key"
    with pytest.raises(IdentityError, match="site.key cannot be read: No such file") as missing:
        identity.load(file)
    identity.create(file)
    file.chmod(0o604)
    with pytest.raises(IdentityError, match=r"open to every user of the machine \(mode 0604\): chmod 600") as opened:
        identity.load(file)
    other = tmp_path / "other.key"
    found = []
    for command in (
        ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-out", str(other)],
        ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:x", "-out", str(other)],
        ["sh", "-c", f"echo nothing > {other}"],
        ["sh", "-c", f": > {other}"],
    ):
        subprocess.run(command, check=True, timeout=30, capture_output=True)
        other.chmod(0o600)
        with pytest.raises(IdentityError, match="is no Ed25519 key in PEM without a password") as none:
            identity.load(other)
        found.append(none)
    for error in (missing, opened, *found):
        assert str(tmp_path) not in str(error.value)


FIELDS = st.tuples(
    st.sampled_from(["0" * 16, "1" * 16]),
    st.sampled_from(["0" * 32, "1" * 32]),
    st.integers(0, 11),
    st.sampled_from(["a", "b", "a1", "ab"]),
    st.integers(-1, 11),
    st.sampled_from(["", "0" * 64]),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return identity.create(folder / "one"), identity.create(folder / "other")


@given(one=FIELDS, other=FIELDS, noise=st.text(max_size=90))
def test_a_signature_is_of_one_statement_by_one_key(pair, one, other, noise):
    key, stranger = pair
    signature = key.sign(identity.statement(*one))
    for said in (one, other):
        assert identity.is_signed(key.public, signature, identity.statement(*said)) == (said == one)
    assert not identity.is_signed(stranger.public, signature, identity.statement(*one))
    assert not identity.is_signed(key.public, noise, identity.statement(*one))


class Nothing:
    strict = knows_model = True


def hello(node=7, nonce=NONCE):
    return header.pack(header.Hello(federation="0" * 16, names=["ward-a"], node=node, nonce=nonce))


def test_a_site_with_a_key_signs_what_it_answers(keyed):
    settings, key = keyed
    said, _ = header.unpack(respond(hello(), settings, Nothing(), 7).message, header.HelloReply)
    assert said.key == key.public
    statement = identity.statement("0" * 16, NONCE, 7, "ward-a", -1, "")
    assert identity.is_signed(key.public, said.signature, statement)


def test_a_site_signs_for_no_other_node(keyed):
    """Else whoever may start a run could have a signature made, and show it to another run's server."""
    with pytest.raises(PayloadError, match="a greeting for node 8: this is 7, and signs for itself alone"):
        respond(hello(node=8), keyed[0], Nothing(), 7)


def test_a_site_with_a_bad_key_says_so_and_does_not_go_on_without(keyed):
    settings, _ = keyed
    with pytest.raises(IdentityError, match="cannot be read"):
        respond(hello(), {**settings, "key": settings["key"] + ".old"}, Nothing(), 7)


@pytest.mark.parametrize("nonce", ["", "5" * 31, "g" * 32, "5" * 33])
def test_a_greeting_without_a_proper_number_is_refused(nonce):
    text = json.dumps({"kind": "hello", "federation": "0" * 16, "names": [], "node": 1, "nonce": nonce})
    with pytest.raises(PayloadError, match="nonce"):
        header.unpack(Envelope(text), header.Hello)


@pytest.mark.parametrize(
    "key",
    ["", "ed25519:", KEY[:-1], KEY + "=", KEY.replace("ed", "ec"), KEY[:-2] + "B=", KEY + "\n", "ed25519:" + "é" * 44],
)
def test_a_public_key_that_is_none_is_named_in_the_recipe(key, tiny_recipe):
    tiny_recipe["clients"][1]["key"] = key
    with pytest.raises(RecipeError, match=r"clients.1.key"):
        recipes.parse(tiny_recipe)


def test_keys_are_kept_with_a_run_and_may_change_between_its_parts(tiny_recipe, tmp_path):
    from fedsrd.runs.folder import RunFolder

    plain = recipes.parse(tiny_recipe)
    tiny_recipe["clients"][0]["key"] = KEY
    bound = recipes.parse(tiny_recipe)
    folder = RunFolder(tmp_path / "run")
    folder.create(bound, {})
    assert folder.stored_recipe().clients[0].key == KEY
    folder.check_resumable(plain)
    tiny_recipe["clients"][1]["key"] = KEY
    with pytest.raises(RecipeError, match="'left' and 'right' have one key"):
        recipes.parse(tiny_recipe)
