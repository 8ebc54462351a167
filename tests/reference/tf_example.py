"""What a tf.Example becomes, value by value."""

import math
from typing import Any

import pyarrow as pa

from millrace.transforms.batch.hashes import siphash24


def reference_row(row: dict[str, list[Any]], slots: dict[str, int], weight: str) -> dict[str, Any]:
    """The sparse features and the weight of one record, given as {feature: values}."""
    made: dict[str, Any] = {
        name: [slot << 48 | _signature(value) for value in row[name]] if name in row else None
        for name, slot in slots.items()
    }
    weights = row.get(weight, [])
    made["__WEIGHT__"] = weights[0] if len(weights) == 1 and isinstance(weights[0], float) else 1.0
    return made


def _signature(value: int | float | bytes) -> int:
    if isinstance(value, bytes):
        return int(siphash24(pa.array([value]))[0]) % (1 << 48)
    if isinstance(value, int):
        return value % (1 << 48)
    if math.isnan(value):
        return 0
    return 128 if math.isinf(value) else int(math.log2(abs(value) + 1))
