"""Actions of an event feed are names; the steps of a recipe know numbers: there and back, batch by batch."""

from collections.abc import Mapping
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.runtime.errors import UserError
from millrace.transforms.batch import line_id, record_batch

_FIRST_UNKNOWN = 1 << 30
"""Names that the recipe does not number get numbers from here on, good for one batch."""

_COLUMNS = (line_id.FIELDS["actions"].column, line_id.FIELDS["pre_actions"].column)


class ActionNames:
    """Numbers of the actions of one batch.

    Args:
      ids: {name: number} of the recipe, `action_ids`.
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
        """(`batch` with numbers for names, what turns them back); (`batch`, None) when its actions are no names."""
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
    """The names of one batch: `names[i]` has the number `ids[i]`."""

    def __init__(self, names: pa.StringArray, ids: np.ndarray) -> None:
        self._names, self._ids = names, ids

    @classmethod
    def of(cls, known: Mapping[str, int], columns: list[pa.StringArray]) -> Self:
        seen = pc.unique(pa.chunked_array(columns, pa.string())).drop_null()
        unknown = seen.filter(pc.invert(pc.is_in(seen, value_set=pa.array(known, pa.string()))))
        names = pa.concat_arrays([pa.array(known, pa.string()), unknown])
        numbers = [*known.values(), *range(_FIRST_UNKNOWN, _FIRST_UNKNOWN + len(unknown))]
        return cls(names, np.asarray(numbers, np.int32))

    def numbers(self, names: pa.StringArray) -> pa.Array:
        return pa.array(self._ids).take(pc.index_in(names, value_set=self._names))

    def restored(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with names for numbers; a number that no name has becomes its decimal text."""
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
    """`batch` with the column's values exchanged, row by row as many as before."""
    mask = column.is_null() if column.null_count else None
    array = pa.ListArray.from_arrays(_offsets(column), values, mask=mask)
    return record_batch.with_column(batch, pa.field(name, array.type), array)


def _offsets(column: pa.ListArray) -> pa.Array:
    """The offsets of a possibly sliced column, as an array of their own: a mask allows no offset."""
    return pa.array(column.offsets.to_numpy(zero_copy_only=False))
