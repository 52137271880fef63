"""Who a site is: a signing key of its own, and the proof that it holds it.

A recipe binds a client's name to a public key (Ed25519, RFC 8032). The server greets every node with a number that is
used once; a node that wants a bound name signs that number together with the run, its own node id and what it says.
So a proof is worth nothing in another run, later, for another node, or for another answer.
"""

import base64
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedsrd.errors import IdentityError
from fedsrd.recipe import KEY_PREFIX, key_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_STATEMENT = b"fedsrd-hello-3\0"
_OPEN_TO_OTHERS = stat.S_IRWXO


@dataclass(frozen=True)
class SiteKey:
    """A site's private key.

    Attributes:
        public: the other half, as a recipe says it: "ed25519:" and 32 bytes in base64.
    """

    public: str
    _private: "Ed25519PrivateKey"

    def sign(self, statement: bytes) -> str:
        """The signature: 64 bytes in base64."""
        return base64.b64encode(self._private.sign(statement)).decode()


def statement(federation: str, nonce: str, node: int, name: str, held: int, digest: str) -> bytes:
    """What is signed: the run, the greeting's number, whom it was for, and the answer."""
    said = json.dumps([federation, nonce, node, name, held, digest], separators=(",", ":"), ensure_ascii=True)
    return _STATEMENT + said.encode()


def is_signed(key: str, signature: str, said: bytes) -> bool:
    """Whether the holder of this public key has signed it. `signature` may be anything."""
    _needed()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key_bytes(key)).verify(base64.b64decode(signature, validate=True), said)
    except (InvalidSignature, ValueError):
        return False
    return True


def create(path: Path) -> SiteKey:
    """Makes a key and writes it: PKCS #8 in PEM, readable by its owner alone.

    Raises:
        IdentityError: there is something at `path` already, or it cannot be written. Nothing was written.
    """
    _needed()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        # O_EXCL: neither a file that is there nor a link is followed.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise IdentityError(f"{path} exists: a key is never overwritten; choose another name, or see --show") from None
    except (OSError, ValueError) as error:
        raise IdentityError(f"{path}: cannot be written: {error}") from None
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise IdentityError(f"{path}: cannot be written: {error.strerror}") from None
    return _site_key(private)


def load(path: Path) -> SiteKey:
    """Reads a key of `create`, or of `openssl genpkey -algorithm ed25519`. Messages name the file without its folder:
    the server gets them.

    Raises:
        IdentityError: there is none, others than its owner and group may use it, or it is no Ed25519 key.
    """
    _needed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = stream.read(1 << 16)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise IdentityError(f"the key {path.name} cannot be read: {reason}; `fedsrd key FILE` makes one") from None
    if os.name == "posix" and mode & _OPEN_TO_OTHERS:
        raise IdentityError(
            f"the key {path.name} is open to every user of the machine (mode {stat.S_IMODE(mode):04o}): chmod 600 "
            f"{path.name}, and make a new key if somebody may have read it"
        )
    try:
        private = serialization.load_pem_private_key(text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise IdentityError(
            f"the key {path.name} is no Ed25519 key in PEM without a password; `fedsrd key FILE` makes one"
        )
    return _site_key(private)


def _site_key(private: "Ed25519PrivateKey") -> SiteKey:
    return SiteKey(KEY_PREFIX + base64.b64encode(private.public_key().public_bytes_raw()).decode(), private)


def _needed() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise IdentityError('keys need the package cryptography: pip install "fedsrd[flower]"') from None


def unbound_names(roster: Sequence[str], keys: Mapping[str, str]) -> str | None:
    """A warning of the names that anybody may take; None where there are none."""
    if keys and set(roster) <= keys.keys():
        return None
    names = [name for name in roster if name not in keys]
    which = ", ".join([*names[:8], *(["..."] if len(names) > 8 else [])]) or "all clients"
    return (
        f"no key binds these names to a site, so that whichever SuperNode is first has them: {which} "
        "(`fedsrd key` makes keys; their public halves go into the recipe)"
    )
