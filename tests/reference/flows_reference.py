"""Row-wise reference of flows: one dictionary at a time."""

from typing import Any

Row = dict[str, Any]


def key_of(name: str) -> int:
    """Key of a data source: Java's string hash, shifted by 8 bits."""
    value = 0
    for byte in name.encode():
        value = (31 * value + byte) % 2**32
    return (value << 8) % 2**32


def flow_of(row: Row, names: list[str]) -> str | None:
    """The flow of the row, None for none."""
    key = row.get("__DATA_SOURCE_KEY__") or 0
    return next((name for name in names if key_of(name) == key), None)
