"""A delta's tables and dense variables, cut into parts that fit into messages."""

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np

from millrace.ops.embedding_table import EmbeddingStore
from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.runtime.telemetry import counter

_LOG = logging.getLogger(__name__)
_NOT_FINITE = counter("not_finite_left_out", "entries and dense variables with NaN or infinity, left out", ("table",))
_MESSAGE_BYTES = 1024  # of a message besides its parts, and of Kafka's frame around it
_PART_BYTES = 64  # of a part besides its name and its data
DENSE = "dense variables"
"""What the metric of left-out values calls the dense part."""


def part_bytes(record_bytes: int, names: Sequence[str]) -> int:
    """How many bytes of data fit into a record of `record_bytes` beside one part for each of `names`."""
    other = _MESSAGE_BYTES + sum(_PART_BYTES + len(name.encode()) for name in names)
    return max(record_bytes - other, record_bytes // 2)


def delta_messages(
    store: EmbeddingStore, touched: dict[str, np.ndarray], max_bytes: int
) -> Iterator[list[ModelDelta.Table]]:
    """The tables of each message, at most `max_bytes` of ids and values per message.

    Entries that are not finite are left out and counted: a server keeps their last good value. An entry that is larger
    than `max_bytes` is a message of its own.

    Args:
      store: where the values are read from.
      touched: {table: int64 [n], ids whose entry changed}; an id without an entry goes out as evicted.
    """
    tables: list[ModelDelta.Table] = []
    space = max_bytes
    for name, ids in touched.items():
        dim = store.table(name).dim
        there = np.asarray(store.contains(name, ids))
        evicted, ids = ids[~there], ids[there]
        entry_bytes = 8 + 4 * dim
        while len(ids) or len(evicted):
            if space < (entry_bytes if len(ids) else 8):
                if tables:
                    yield tables
                tables, space = [], max_bytes
            part = ids[: max(space // entry_bytes, 0 if tables else 1)]
            space -= len(part) * entry_bytes
            gone = evicted[: max(space // 8, 0 if tables or len(part) else 1)]
            space -= len(gone) * 8
            ids, evicted = ids[len(part) :], evicted[len(gone) :]
            sent, values = _finite(name, part, np.asarray(store.lookup(name, part)))
            if len(sent) or len(gone):
                tables.append(
                    ModelDelta.Table(
                        name=name,
                        dim=dim,
                        fids=sent.astype("<i8").tobytes(),
                        values=values.astype("<f4").tobytes(),
                        evicted_fids=gone.astype("<i8").tobytes(),
                    )
                )
    if tables:
        yield tables


def _finite(name: str, ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    good = np.isfinite(values).all(axis=1)
    if not good.all():
        count_not_finite(name, ids[~good])
    return ids[good], values[good]


def count_not_finite(table: str, ids: np.ndarray) -> None:
    """Counts and logs entries that are left out of what servers get."""
    _NOT_FINITE.labels(table).inc(len(ids))
    _LOG.error(
        "table %s: %d entries are not finite and are left out, the first are %s", table, len(ids), ids[:3].tolist()
    )


def are_finite(arrays: Sequence[np.ndarray]) -> bool:
    """Whether all dense variables are finite; if not, this is counted and logged."""
    count = sum(not np.isfinite(array).all() for array in arrays)
    if count:
        _NOT_FINITE.labels(DENSE).inc(count)
        _LOG.error("%d of %d dense variables are not finite; none of them is published", count, len(arrays))
    return count == 0


def dense_messages(variables: Sequence[tuple[str, np.ndarray]], max_bytes: int) -> Iterator[list[ModelDelta.Dense]]:
    """The dense variables or parts of them of each message, at most `max_bytes` of data per message.

    Args:
      variables: (name, value); values are cut in C order.
    """
    parts: list[ModelDelta.Dense] = []
    space = max_bytes
    for name, array in variables:
        flat = np.ascontiguousarray(array).reshape(-1)
        first = 0
        while first < len(flat) or (first == 0 and not len(flat)):
            if parts and space < flat.itemsize:
                yield parts
                parts, space = [], max_bytes
            part = flat[first : first + max(space // flat.itemsize, 1)]
            parts.append(
                ModelDelta.Dense(name=name, dtype=array.dtype.name, shape=array.shape, data=part.tobytes(), first=first)
            )
            space -= part.nbytes
            first += max(len(part), 1)
    if parts:
        yield parts


def dense_period(arrays: Sequence[np.ndarray], bytes_per_second: int) -> float:
    """Seconds between two deltas of dense variables of this size: one, or as many as keep to `bytes_per_second`."""
    return float(max(1, math.ceil(sum(array.nbytes for array in arrays) / bytes_per_second)))
