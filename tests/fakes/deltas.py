"""Deltas of a small model, and a model in memory that takes them: table "item" of width 2 and variable "bias" [2]."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.serving.deltas.delta_applier import DeltaApplier
from millrace.serving.deltas.delta_order import DeltaOrder


class MemoryStore:
    """Tables as dictionaries."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, list[float]]] = {"item": {}}

    def table(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(dim=2)

    def assign(self, table: str, ids: np.ndarray, values: np.ndarray) -> None:
        self.rows[table].update({int(key): value.tolist() for key, value in zip(ids, values, strict=True)})

    def erase(self, table: str, ids: np.ndarray) -> None:
        for key in ids:
            self.rows[table].pop(int(key), None)


class MemoryVariable:
    """A dense variable that counts how often it is assigned."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape or (2,)
        self.dtype = np.dtype("float32")
        self.value = np.zeros(self.shape, np.float32)
        self.assigned = 0

    def numpy(self) -> np.ndarray:
        return self.value

    def assign(self, value: np.ndarray) -> None:
        assert (value.shape, value.dtype) == (self.shape, self.dtype)
        self.value = value.copy()
        self.assigned += 1


class MemoryModel:
    """Store, variables and the applier over them; the export holds deltas up to sequence 10 of epoch 3."""

    def __init__(self, last_sequence: int = 10, epoch: int = 3, lineage: str = "born", **variables: Any) -> None:
        self.store = MemoryStore()
        self.variables = {"bias": MemoryVariable(2)} | variables
        order = DeltaOrder("m", lineage, epoch, last_sequence)
        self.applier = DeltaApplier(self.store, ["item"], self.variables, order)

    @property
    def items(self) -> dict[int, list[float]]:
        return self.store.rows["item"]

    def take(self, value: bytes) -> bool:
        """Checks and applies."""
        return self.applier.apply(self.applier.check(value))


def make_delta(
    sequence: int, rows: dict[int, float] | None = None, evicted: tuple[int, ...] = (), **fields: Any
) -> bytes:
    """A delta of model "m", lineage "born", epoch 3; row {fid: value} holds (value, -value). `fields` replace fields.

    `bias` is the value of that variable, `dense` a list of ModelDelta.Dense.
    """
    delta = ModelDelta(model_name="m", sequence=sequence, schema_version=2, lineage="born", epoch=3, created_at_ms=1000)
    if rows or evicted:
        rows = rows or {}
        delta.tables.add(
            name=fields.pop("table", "item"),
            dim=2,
            fids=np.array(list(rows), "<i8").tobytes(),
            values=np.array([[value, -value] for value in rows.values()], "<f4").tobytes(),
            evicted_fids=np.array(evicted, "<i8").tobytes(),
        )
    if "bias" in fields:
        values = np.array(fields.pop("bias"), fields.pop("dtype", "<f4"))
        delta.dense.add(name="bias", dtype=values.dtype.name, shape=values.shape, data=values.tobytes())
    delta.dense.extend(fields.pop("dense", []))
    for name, value in fields.items():
        setattr(delta, name, value)
    return delta.SerializeToString()
