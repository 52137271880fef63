"""FedSRD on Flower: the app (`server_app`, `client_app`), and what other Flower projects take (`FedSRD`, `fedsrd_mod`).

Needs `pip install fedsrd[flower]`.
"""

from typing import Any

__all__ = ["FedSRD", "fedsrd_mod"]


def __getattr__(name: str) -> Any:
    # The server needs no client code and the client no server's; both are slow to import.
    if name == "FedSRD":
        from fedsrd.flower.strategy import FedSRD

        return FedSRD
    if name == "fedsrd_mod":
        from fedsrd.flower.mod import fedsrd_mod

        return fedsrd_mod
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
