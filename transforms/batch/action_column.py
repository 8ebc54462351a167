"""Columns of actions, list<int32>: the action that has priority in a row, membership, and appending one."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch.list_columns import list_array, values_and_splits

_LARGEST_TABLE = 1 << 16
"""Actions that span fewer numbers than this are looked up in a table, half a megabyte, instead of a hash set."""


def most_prior(column: pa.ListArray, priority: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The action of each row that comes first in `priority`; where the row has none of those, the row's first action.

    Args:
      column: list<int32> [rows]; a null is no action.
      priority: actions in order of priority, without repetition.

    Returns: (int32 [rows], bool [rows]: true where the row has no action; the action is then 0).
    """
    values, splits = values_and_splits(column)
    none = splits[1:] == splits[:-1]
    first = np.append(values, np.int32(0))[splits[:-1]]
    best = best_positions(positions_in(priority, values), splits, len(priority))
    chosen = np.where(best < len(priority), np.asarray([*priority, 0], np.int32)[best], first)
    chosen[none] = 0
    return chosen, none


def has_action(column: pa.ListArray, wanted: Sequence[int]) -> np.ndarray:
    """bool [rows]: whether a row of list<int32> has one of the actions."""
    values, splits = values_and_splits(column)
    return best_positions(positions_in(wanted, values), splits, len(wanted)) < len(wanted)


def positions_in(listed: Sequence[int], actions: np.ndarray) -> np.ndarray:
    """int64 [n]: the position in `listed` of each action, int32 [n]; the length of `listed` where it is not listed."""
    if not listed or max(listed) - min(listed) >= _LARGEST_TABLE:
        found = pc.index_in(pa.array(actions, pa.int32()), value_set=pa.array(listed, pa.int32()))
        return pc.fill_null(found, len(listed)).to_numpy(zero_copy_only=False).astype(np.int64)
    low, size = min(listed), max(listed) - min(listed) + 1
    table = np.full(size + 1, len(listed), np.int64)
    table[np.asarray(listed[::-1]) - low] = np.arange(len(listed))[::-1]
    # As an unsigned number, an action below the lowest lies beyond the end of the table too.
    at = np.minimum((actions.astype(np.int64) - low).view(np.uint64), np.uint64(size))
    return table[at.view(np.int64)]


def best_positions(positions: np.ndarray, splits: np.ndarray, none: int) -> np.ndarray:
    """int64 [rows]: the lowest position in each row; `none` in a row without actions."""
    return reduce_rows(np.minimum, positions, splits, none)


def reduce_rows(function: np.ufunc, values: np.ndarray, splits: np.ndarray, neutral: float) -> np.ndarray:
    """[rows]: `function` reduced over the values of each row; `neutral` in a row without values.

    Args:
      neutral: a value that `function` leaves without effect, such as 1 for a product.
    """
    if not len(values):
        return np.full(len(splits) - 1, neutral, values.dtype)
    reduced = function.reduceat(np.append(values, values.dtype.type(neutral)), splits[:-1])
    reduced[splits[1:] == splits[:-1]] = neutral
    return reduced


def append_action(column: pa.ListArray, rows: np.ndarray, action: int) -> pa.ListArray:
    """`column`, list<int32> [rows], with `action` appended in the rows where `rows`, bool [rows], is true."""
    values, splits = values_and_splits(column)
    added = np.insert(values, splits[1:][rows], action).astype(np.int32)
    grown = splits + np.concatenate([[0], np.cumsum(rows)])
    nulls = column.is_null().to_numpy(zero_copy_only=False) & ~rows
    return list_array(added, grown, pa.int32(), nulls)
