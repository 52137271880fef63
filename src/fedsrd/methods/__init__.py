"""Federated methods, one file each, all of the interface in `method`. Importing this package registers every one."""

from fedsrd.methods import fedavg, fedsrd
from fedsrd.methods.method import ClientStep, Method, MethodOptions, ServerStep, get, names

__all__ = ["ClientStep", "Method", "MethodOptions", "ServerStep", "fedavg", "fedsrd", "get", "names"]
