"""Federated methods, one file each, all of the interface in `method`. Importing this package registers every one.

A file that is put into this folder is found by itself; one that lies elsewhere is loaded by `--import` of the command
line, or by the entry points `fedsrd.methods` of an installed package.
"""

import importlib
import pkgutil
from importlib.metadata import entry_points

from fedsrd.core.server_optimizer import ServerOptimizer, ServerOptimizerOptions
from fedsrd.methods.method import (
    Aggregate,
    ClientContext,
    Contribution,
    Method,
    MethodOptions,
    MethodState,
    RoundContext,
    ServerContext,
)
from fedsrd.methods.registry import get, names, register

__all__ = [
    "Aggregate",
    "ClientContext",
    "Contribution",
    "Method",
    "MethodOptions",
    "MethodState",
    "RoundContext",
    "ServerContext",
    "ServerOptimizer",
    "ServerOptimizerOptions",
    "get",
    "names",
    "register",
]

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")
for _entry in entry_points(group="fedsrd.methods"):
    _entry.load()
