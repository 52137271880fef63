"""FedSRD: fine-tune LLMs together on data that never leaves its owner.

The names below come from `fedsrd.api` and `fedsrd.loop`, when they are first used: importing this package is quick.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fedsrd.api import Run as Run
    from fedsrd.api import compare_methods as compare_methods
    from fedsrd.api import load_recipe as load_recipe
    from fedsrd.api import run as run
    from fedsrd.loop import Aggregator as Aggregator
    from fedsrd.loop import apply as apply
    from fedsrd.loop import decode as decode
    from fedsrd.loop import encode as encode
    from fedsrd.loop import sparsify as sparsify

__all__ = ["Aggregator", "Run", "apply", "compare_methods", "decode", "encode", "load_recipe", "run", "sparsify"]


def __getattr__(name: str) -> Any:
    if name in ("Run", "compare_methods", "load_recipe", "run"):
        from fedsrd import api

        return getattr(api, name)
    if name in __all__:
        from fedsrd import loop

        return getattr(loop, name)
    raise AttributeError(f"module 'fedsrd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
