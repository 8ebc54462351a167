"""Row metadata: the fields of a LineId and the columns that hold them.

The column of the field `req_time` is `__REQ_TIME__`. A null, or no such column, means that the field is not set; its
value is then the default of the proto.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch


class LineIdField(NamedTuple):
    """One field: `number` on the wire, `type` of the column, `default` of a row that does not set it."""

    name: str
    number: int
    type: pa.DataType
    default: int | float | str | bool | None = None

    @property
    def column(self) -> str:
        return f"__{self.name.upper()}__"

    @property
    def repeated(self) -> bool:
        return pa.types.is_list(self.type)


_INTS = pa.list_(pa.int32())

FIELDS: dict[str, LineIdField] = {
    field.name: field
    for field in (
        LineIdField("uid", 2, pa.int64(), 0),
        LineIdField("req_time", 3, pa.int64(), 0),
        LineIdField("item_id", 4, pa.int64(), 0),
        LineIdField("actions", 6, _INTS),
        LineIdField("chnid", 19, pa.int64(), 0),
        LineIdField("pre_actions", 23, _INTS),
        LineIdField("sample_rate", 27, pa.float32(), 1.0),
        LineIdField("special_strategies", 39, _INTS),
        LineIdField("device_type", 41, pa.string(), ""),
        LineIdField("cid", 48, pa.string(), ""),
        LineIdField("user_id", 49, pa.string(), ""),
        LineIdField("is_draw", 87, pa.bool_(), False),
        LineIdField("rank", 145, pa.int32(), 0),
        LineIdField("data_source_name", 235, pa.string(), ""),
        LineIdField("did", 1001, pa.string(), ""),
        LineIdField("req_id", 1002, pa.string(), ""),
        LineIdField("vid", 1003, pa.string(), ""),
        LineIdField("read_count", 1004, pa.int64(), 0),
        LineIdField("video_play_time", 1005, pa.float32(), 0.0),
        LineIdField("video_finish_percent", 1006, pa.float32(), 0.0),
        LineIdField("q_pred", 1007, pa.float32(), 0.0),
        LineIdField("chnids", 1008, pa.list_(pa.int64())),
    )
}
"""{name: field}, in the order of `protos/line_id.proto`. uid and item_id hold the bits of unsigned numbers."""


def check_field(name: str, where: str) -> LineIdField:
    """The field `name`; UserError naming the setting `where` when a LineId has no such field."""
    if name not in FIELDS:
        raise UserError(where, name, "a line id has no such field", f"choose {', '.join(FIELDS)}")
    return FIELDS[name]


def column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """The column of field `name`, [rows]. Where a row does not set it, a scalar has its default and a list is null."""
    field = FIELDS[name]
    index = batch.schema.get_field_index(field.column)
    if index < 0:
        if field.repeated:
            return pa.nulls(batch.num_rows, field.type)
        return pa.repeat(pa.scalar(field.default, field.type), batch.num_rows)
    found = batch.column(index)
    return found if field.repeated or not found.null_count else pc.fill_null(found, field.default)


def set_column(batch: pa.RecordBatch, name: str, values: pa.Array | np.ndarray) -> pa.RecordBatch:
    """`batch` with the field `name` set to `values`, [rows], cast to the type of the field."""
    field = FIELDS[name]
    array = values if isinstance(values, pa.Array) else pa.array(values)
    if not field.repeated:
        array = array.cast(field.type)
    return record_batch.with_column(batch, pa.field(field.column, array.type), array)
