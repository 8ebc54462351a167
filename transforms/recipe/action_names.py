"""Turns the action names of an event feed into the numbers that the steps of a recipe know, and back again."""

from collections.abc import Mapping
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.runtime.errors import UserError
from millrace.transforms.batch import line_id, record_batch

_FIRST_UNKNOWN = 1 << 30
"""Names to which the recipe gives no number get numbers from here on, which are valid for one batch.

The numbers in `action_ids` must be lower; 2^30 leaves as many for the names that are not listed.
"""

_COLUMNS = (line_id.FIELDS["actions"].column, line_id.FIELDS["pre_actions"].column)


class ActionNames:
    """The numbers that a recipe gives to action names.

    Args:
      ids: {name: number}, `action_ids` of the recipe.

    Raises: UserError for a number that is out of range or given to two names.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        names: dict[int, str] = {}
        for name, number in sorted(ids.items()):
            where = f"action_ids.{name}"
            if not 0 <= number < _FIRST_UNKNOWN:
                raise UserError(where, number, "out of range", f"choose 0..{_FIRST_UNKNOWN - 1}")
            if names.setdefault(number, name) != name:
                raise UserError(where, number, f"{names[number]} has the same number", "number each action once")
        self._ids = dict(sorted(ids.items()))

    def numbered(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, "NumberedActions | None"]:
        """(`batch` with numbers in place of names, what turns them back), or (`batch`, None) if it has no names."""
        columns = {
            name: column
            for name in _COLUMNS
            if (column := record_batch.column_of(batch, name)) is not None and _holds_names(column)
        }
        if not columns:
            return batch, None
        names = NumberedActions.of(self._ids, [column.values for column in columns.values()])
        for name, column in columns.items():
            batch = _replaced(batch, name, column, names.numbers(column.values))
        return batch, names


class NumberedActions:
    """The names and numbers of the actions of one batch: `names[i]` has the number `ids[i]`."""

    def __init__(self, names: pa.StringArray, ids: np.ndarray) -> None:
        self._names, self._ids = names, ids

    @classmethod
    def of(cls, known: Mapping[str, int], columns: list[pa.StringArray]) -> Self:
        """The names in `known` with their numbers, and the other names in `columns` with new numbers."""
        seen = pc.unique(pa.chunked_array(columns, pa.string())).drop_null()
        unknown = seen.filter(pc.invert(pc.is_in(seen, value_set=pa.array(known, pa.string()))))
        names = pa.concat_arrays([pa.array(known, pa.string()), unknown])
        numbers = [*known.values(), *range(_FIRST_UNKNOWN, _FIRST_UNKNOWN + len(unknown))]
        return cls(names, np.asarray(numbers, np.int32))

    def numbers(self, names: pa.StringArray) -> pa.Array:
        """int32 [n]: the number of each name."""
        return pa.array(self._ids).take(pc.index_in(names, value_set=self._names))

    def refuse_unknown(self, batch: pa.RecordBatch) -> None:
        """UserError naming the first action of `batch` to which `action_ids` gives no number."""
        for name in _COLUMNS:
            column = record_batch.column_of(batch, name)
            if column is None:
                continue
            unknown = self._ids >= _FIRST_UNKNOWN
            found = pc.index_in(column.flatten(), value_set=pa.array(self._ids[unknown])).drop_null()
            if len(found):
                action = self._names.filter(pa.array(unknown))[found[0].as_py()].as_py()
                problem = "an action without a number, and the format holds numbers in place of names"
                free = int(self._ids[~unknown].max(initial=0)) + 1
                raise UserError(name, action, problem, f"give a recipe with action_ids: {{{action}: {free}}}")

    def restored(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with names in place of numbers; a number without a name becomes its decimal text."""
        for name in _COLUMNS:
            column = record_batch.column_of(batch, name)
            if column is not None and not _holds_names(column):
                index = pc.index_in(column.values, value_set=pa.array(self._ids))
                names = pc.coalesce(self._names.take(index), column.values.cast(pa.string()))
                batch = _replaced(batch, name, column, names)
        return batch


def _holds_names(column: pa.Array) -> bool:
    return pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type)


def _replaced(batch: pa.RecordBatch, name: str, column: pa.ListArray, values: pa.Array) -> pa.RecordBatch:
    """`batch` with other values in the lists of the column, as many in each row as before."""
    mask = column.is_null() if column.null_count else None
    array = pa.ListArray.from_arrays(_offsets(column), values, mask=mask)
    return record_batch.with_column(batch, pa.field(name, array.type), array)


def _offsets(column: pa.ListArray) -> pa.Array:
    """A copy of the offsets of a column, which may be a slice: Arrow takes no sliced offsets together with a mask."""
    return pa.array(column.offsets.to_numpy(zero_copy_only=False))
