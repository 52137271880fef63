"""A whole state as bytes, exact: for clients that join late, or are too far behind for single broadcasts."""

import torch

from fedsrd import wire
from fedsrd.core.lora import modules_of
from fedsrd.core.tensors import GlobalState, SparseTensor, Tensors, TensorSpec, TensorTable
from fedsrd.errors import PayloadError
from fedsrd.federation.messages import Snapshot


def take(state: GlobalState, table: TensorTable) -> Snapshot:
    """The tensors' float32 values, and the change of the frozen weights where there is one; `table` is the state's."""
    changes = b""
    if state.base_delta:
        changes = _encode(state.base_delta, base_table(table), state.version)
    return Snapshot(state.version, _encode(state.tensors, table, state.version), changes, state.digest)


def read(snapshot: Snapshot, table: TensorTable, *, changes_base: bool = True) -> GlobalState:
    """The state of a snapshot.

    Args:
        snapshot: of `take`.
        table: the state's tensors.
        changes_base: whether the method changes the frozen weights, so that a change of them may be here.

    Raises:
        PayloadError: it is damaged, for another adapter, of another version, or not whole; or it changes the frozen
            weights, and the method does not.
    """
    if snapshot.base and not changes_base:
        raise PayloadError("a snapshot with a change of the frozen weights: this method makes none")
    whole = _decode(snapshot.payload, table, snapshot.version)
    # A tensor without elements never travels.
    some = [spec for spec in table.specs if spec.elements]
    missing = [spec.name for spec in some if spec.name not in whole or whole[spec.name].positions is not None]
    if missing:
        raise PayloadError(f"a snapshot without all of {missing[0]}")
    tensors = {
        name: whole[name].dense() if name in whole else torch.zeros(shape) for name, shape in table.shapes.items()
    }
    base = {}
    if snapshot.base:
        changes = _decode(snapshot.base, base_table(table), snapshot.version)
        base = {module: sparse.dense() for module, sparse in changes.items()}
    return GlobalState(tensors, base, snapshot.version)


def base_table(table: TensorTable) -> TensorTable:
    """The frozen weights whose change may travel, by module: (out_features, in_features) each."""
    return TensorTable(tuple(TensorSpec(m.name, (m.out_features, m.in_features)) for m in modules_of(table)))


def _encode(tensors: Tensors, table: TensorTable, version: int) -> bytes:
    whole = {name: SparseTensor.from_dense(tensor.contiguous()) for name, tensor in tensors.items()}
    return wire.encode_delta(whole, table, wire.Kind.SNAPSHOT, version, version, wire.WireOptions())


def _decode(payload: bytes, table: TensorTable, version: int) -> dict[str, SparseTensor]:
    header, delta = wire.decode_delta(payload, table)
    if header.kind is not wire.Kind.SNAPSHOT or header.version != version:
        raise PayloadError(
            f"a {header.kind.name.lower()} of version {header.version}: expected a snapshot of version {version}"
        )
    return delta
