"""A whole state as bytes, exact: for clients that join late, or are too far behind for single broadcasts."""

from torch import Tensor

from fedsrd import wire
from fedsrd.core.factors import Base, Factors, LoraPair, ModuleShape, ShapeTable, Slot, SparseTensor, digest, slots
from fedsrd.errors import PayloadError
from fedsrd.federation.messages import Snapshot


def take(factors: Factors, base: Base, version: int) -> Snapshot:
    """The factors' float32 values, and the change of the frozen weights where there is one."""
    table = ShapeTable.of(factors)
    whole = {slot: SparseTensor.from_dense(tensor.contiguous()) for slot, tensor in slots(factors)}
    payload = wire.encode_delta(whole, table, wire.Kind.SNAPSHOT, version, version, wire.Coding())
    changes = b""
    if base:
        dense = {Slot(name, "B"): SparseTensor.from_dense(tensor.contiguous()) for name, tensor in base.items()}
        changes = wire.encode_delta(dense, _square(table), wire.Kind.SNAPSHOT, version, version, wire.Coding())
    return Snapshot(version, payload, changes, digest(factors, base))


def read(snapshot: Snapshot, table: ShapeTable) -> tuple[dict[str, LoraPair], dict[str, Tensor]]:
    """Factors and base of a snapshot.

    Raises:
        PayloadError: it is damaged, for another adapter, of another version, or not whole.
    """
    whole = _read(snapshot.payload, table, snapshot.version)
    missing = [slot for slot in table.shapes if slot not in whole or whole[slot].positions is not None]
    if missing:
        raise PayloadError(f"a snapshot without all of {missing[0].module}, factor {missing[0].factor}")
    factors = {
        module.name: LoraPair(whole[Slot(module.name, "B")].dense(), whole[Slot(module.name, "A")].dense())
        for module in table.modules
    }
    base = {}
    if snapshot.base:
        changes = _read(snapshot.base, _square(table), snapshot.version)
        base = {slot.module: sparse.dense() for slot, sparse in changes.items() if slot.factor == "B"}
    return factors, base


def _read(payload: bytes, table: ShapeTable, version: int) -> dict[Slot, SparseTensor]:
    header, delta = wire.decode_delta(payload, table)
    if header.kind is not wire.Kind.SNAPSHOT or header.version != version:
        raise PayloadError(
            f"a {header.kind.name.lower()} of version {header.version}: expected a snapshot of version {version}"
        )
    return dict(delta)


def _square(table: ShapeTable) -> ShapeTable:
    # A change of (out_features, in_features) travels as the factor B of a module whose rank is in_features.
    return ShapeTable(tuple(ModuleShape(m.name, m.out_features, m.in_features, m.in_features) for m in table.modules))
