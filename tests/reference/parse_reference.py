"""Row-wise reference of parsing: rows are dictionaries, one value at a time."""

from typing import Any

INVALID_LABEL = -3.4028234663852886e38

Row = dict[str, Any]


def sparse(rows: list[Row], name: str) -> list[list[int]]:
    """Fids of each row; lists of lists become one list."""
    result = []
    for row in rows:
        fids: list[int] = []
        for value in row.get(name) or []:
            fids += value if isinstance(value, list) else [value]
        result.append(fids)
    return result


def dense(rows: list[Row], name: str, shape: int, default: Any) -> list[list[Any]]:
    """The first `shape` values of each row, filled up with `default`; a plain value is a list of one."""
    result = []
    for row in rows:
        values = row.get(name)
        if values is None:
            values = []
        elif not isinstance(values, list):
            values = [values]
        cut = [default if value is None else value for value in values[:shape]]
        result.append(cut + [default] * (shape - len(cut)))
    return result


def weight(rows: list[Row]) -> list[list[float]]:
    return [[value if (value := row.get("__WEIGHT__")) is not None and value > 0 else 1.0] for row in rows]
