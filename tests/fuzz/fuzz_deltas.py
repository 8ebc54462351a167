"""Feeds changed deltas to the applier: nothing but DeltaError comes out, and a refused delta changes nothing.

    python -m tests.fuzz.fuzz_deltas --runs 1000000 --seed 1

A run depends on the sum of seed and its number alone.
"""

import logging
import random
from types import SimpleNamespace
from typing import Any

import numpy as np

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.serving.deltas.delta_applier import DeltaApplier
from millrace.serving.deltas.delta_order import DeltaError, DeltaOrder
from tests.fuzz import runs

_DIMS = {"item": 2, "user": 3}
_NAMES = ["item", "user", "bias", "", "unknown", "float32", "float64", "<f4", "object"]
_NUMBERS = [0, 1, -1, 2, 3, 4, 2**31 - 1, -(2**31)]


class Store:
    """Tables as dictionaries that refuse what a real store refuses."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, list[float]]] = {table: {} for table in _DIMS}

    def table(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(dim=_DIMS[name])

    def assign(self, table: str, ids: np.ndarray, values: np.ndarray) -> None:
        if ids.dtype != np.int64 or values.dtype != np.float32 or values.shape != (len(ids), _DIMS[table]):
            raise ValueError(f"{ids.dtype} ids, {values.dtype}{values.shape} values")
        self.rows[table].update(zip(ids.tolist(), values.tolist(), strict=True))

    def erase(self, table: str, ids: np.ndarray) -> None:
        if ids.dtype != np.int64:
            raise ValueError(f"{ids.dtype} ids")
        for fid in ids.tolist():
            self.rows[table].pop(fid, None)


class Variable:
    """A dense variable that refuses other shapes."""

    def __init__(self) -> None:
        self.shape = (2, 2)
        self.dtype = np.dtype("float32")
        self.value = np.zeros((2, 2), np.float32)

    def numpy(self) -> np.ndarray:
        return self.value

    def assign(self, value: np.ndarray) -> None:
        if value.shape != self.shape or value.dtype != self.dtype:
            raise ValueError(f"{value.dtype}{value.shape}")
        self.value = value.copy()


def _valid(draw: random.Random) -> ModelDelta:
    delta = ModelDelta(
        model_name="m", sequence=1, schema_version=2, lineage="born", epoch=2, created_at_ms=1000, ids_forgotten=False
    )
    for name, dim in _DIMS.items():
        fids = [draw.randrange(-3, 9) for _ in range(draw.randrange(4))]
        delta.tables.add(
            name=name,
            dim=dim,
            fids=np.array(fids, "<i8").tobytes(),
            values=np.array([draw.uniform(-1, 1) for _ in range(dim * len(fids))], "<f4").tobytes(),
            evicted_fids=np.array([draw.randrange(-3, 9) for _ in range(draw.randrange(3))], "<i8").tobytes(),
        )
    bias = np.array([draw.random() for _ in range(4)], "<f4")
    delta.dense.add(name="bias", dtype="float32", shape=(2, 2), data=bias.tobytes())
    return delta


def _change_bytes(value: bytes, draw: random.Random) -> bytes:
    at, length = draw.randrange(len(value)), draw.randrange(1, 16)
    kind = draw.randrange(5)
    if kind == 0:
        flipped = bytearray(value)
        flipped[at] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    if kind == 1:
        return value[:at]
    if kind == 2:
        return value[:at] + draw.randbytes(length) + value[at:]
    if kind == 3:
        return value[:at] + value[at + length :]
    other = _valid(draw).SerializeToString()
    return value[:at] + other[draw.randrange(len(other)) :]


def _resized(data: bytes, draw: random.Random) -> bytes:
    return draw.choice([b"", data + draw.randbytes(draw.choice([1, 4, 8, 12])), data[: draw.randrange(len(data) + 1)]])


def _change_table(table: Any, draw: random.Random) -> None:
    kind = draw.randrange(5)
    if kind == 0:
        table.name = draw.choice(_NAMES)
    elif kind == 1:
        table.dim = draw.choice([*_NUMBERS, min(table.dim + 1, 2**31 - 1)])
    elif kind == 2:  # as many bytes in rows of another width
        table.dim = draw.choice([1, 2, 3, 6])
        table.fids = draw.randbytes(8 * (len(table.values) // (4 * table.dim)))
    elif kind == 3:
        table.values = np.array(
            [draw.choice([np.nan, np.inf, 1.0]) for _ in range(len(table.values) // 4)], "<f4"
        ).tobytes()
    else:
        field = draw.choice(["fids", "values", "evicted_fids"])
        setattr(table, field, _resized(getattr(table, field), draw))


def _change_dense(dense: Any, draw: random.Random) -> None:
    kind = draw.randrange(6)
    if kind == 0:
        dense.name = draw.choice(_NAMES)
    elif kind == 1:
        dense.dtype = draw.choice(_NAMES)
    elif kind == 4:
        dense.first = draw.choice([*_NUMBERS, 2**63 - 1])
    elif kind == 5:  # a part
        dense.first = draw.randrange(4)
        dense.data = dense.data[: 4 * draw.randrange(5 - dense.first)]
    elif kind == 2:
        dense.shape[:] = [draw.choice(_NUMBERS) for _ in range(draw.randrange(4))]
    else:
        dense.data = _resized(dense.data, draw)


def _change_fields(delta: ModelDelta, draw: random.Random) -> None:
    kind = draw.randrange(8)
    if kind == 0:
        delta.schema_version = draw.choice(_NUMBERS)
    elif kind == 1:
        delta.sequence = draw.choice([*_NUMBERS, 2**63 - 1, -(2**63)])
    elif kind == 4:
        delta.epoch = draw.choice([*_NUMBERS, 2**63 - 1])
    elif kind == 5:
        setattr(delta, draw.choice(["model_name", "lineage"]), draw.choice([*_NAMES, "m", "born"]))
    elif kind == 2:
        delta.tables.append(draw.choice(delta.tables))
    elif kind == 3:
        _change_dense(delta.dense[0], draw)
    else:
        _change_table(draw.choice(delta.tables), draw)


def _expected(rows: dict[str, dict[int, list[float]]], delta: ModelDelta) -> dict[str, dict[int, list[float]]]:
    """`rows` after the delta, entry by entry; those that are not finite are left out."""
    rows = {name: dict(of_table) for name, of_table in rows.items()}
    for table in delta.tables:
        values = np.frombuffer(table.values, "<f4").reshape(-1, table.dim).tolist()
        for fid, value in zip(np.frombuffer(table.fids, "<i8").tolist(), values, strict=True):
            if np.isfinite(value).all():
                rows[table.name][fid] = value
        for fid in np.frombuffer(table.evicted_fids, "<i8").tolist():
            rows[table.name].pop(fid, None)
    return rows


def _dense_after(delta: ModelDelta | None) -> bytes:
    """The variable, zeros before, after the finite parts of the delta."""
    values = np.zeros(4, "<f4")
    for part in delta.dense if delta is not None else ():
        data = np.frombuffer(part.data, "<f4")
        if np.isfinite(data).all():
            values[part.first : part.first + len(data)] = data
    return values.tobytes()


def _run(seed: int) -> bool:
    """Whether the applier took the changed delta. Raises AssertionError when it did wrong."""
    draw = random.Random(seed)
    store, variable = Store(), Variable()
    for name, dim in _DIMS.items():
        store.rows[name] = {fid: [0.5] * dim for fid in range(3)}
    before = {name: dict(of_table) for name, of_table in store.rows.items()}
    delta = _valid(draw)
    if draw.random() < 0.5:
        for _ in range(draw.randrange(1, 3)):
            _change_fields(delta, draw)
        value = delta.SerializeToString()
    else:
        value = _change_bytes(delta.SerializeToString(), draw)
    applier = DeltaApplier(store, list(_DIMS), {"bias": variable}, DeltaOrder("m", "born", epoch=1))
    applied: ModelDelta | None = None
    try:
        checked = applier.check(value)
        applied = checked if applier.apply(checked) else None
    except DeltaError:
        pass
    applier.flush()
    assert store.rows == (before if applied is None else _expected(before, applied)), "a table is half written"
    assert variable.value.tobytes() == _dense_after(applied), "a dense variable is half written"
    return applied is not None


def fuzz(count: int, seed: int) -> int:
    """Returns how many of the changed deltas were applied; the rest was refused or seen before."""
    return runs.count(_run, count, seed)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # a line for every gap
    runs.main(__doc__.splitlines()[0], fuzz, "accepted")
