"""Records to canonical batches and back: Example, ExampleBatch, Instance, Arrow IPC, JSON.

`FORMATS` lists the formats. The protos are read from the wire into Arrow buffers in C++ (`ops/cc/records`). In all
formats a record that cannot be read is one dead letter, and the records around it are not affected.

Rows of the protos: a feature is a column of its name, null where a row has none of it. Its type is that of the oneof's
member: fids `list<int64>` of kind `fid`, `float_list` `list<float>`, `float_lists` `list<list<float>>`, `float_value`
`float`, and so on; raw features `list<binary>` of kind `raw`. The field metadata `millrace.id` has the feature's
number; `millrace.shared` is "1" where the records gave one list for all their rows. An Instance's fids v1 become one
feature `fc_slot_<n>` per slot, with the slot as number, and its `value` a feature of that name; of an InstanceFeature
the first list that has values is taken. A record with a name given twice is refused.

`__LABEL__`, `__WEIGHT__`, `__DATA_SOURCE_KEY__` and the fields of the LineId (`transforms/batch/line_id.py`) are null
where they are not set; a data source key of 0 counts as not set, except in an Instance. Among features `__LINE_ID__`,
`__LABEL__` and `instance_weight` stand for these: the first replaces the record's own LineId, labels are appended, and
the weight is 1 where its list is empty. The key of a record's header wins over its own.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import pyarrow as pa

from millrace.ops import record_library
from millrace.runtime.errors import UserError
from millrace.transforms.batch import line_id, record_batch
from millrace.transforms.batch.dead_letter import Refusals
from millrace.transforms.batch.provenance import ROWS_PER_RECORD
from millrace.transforms.batch.raw_block import source_partitions
from millrace.transforms.codecs import record_schema
from millrace.transforms.codecs.arrow import decode_arrow, encode_arrow
from millrace.transforms.codecs.json_decoder import decode_json
from millrace.transforms.frames.framing import RECORD_ROW, RECORD_SOURCE_KEY

FidLayout = Literal["v2", "as_is"]
Pruning = Literal["as_is", "features", "raw_features"]

_PRUNING: dict[Pruning, int] = {"as_is": 0, "features": 1, "raw_features": 2}  # as `Pruning` of record_rows.h
_EXAMPLE, _EXAMPLE_BATCH, _INSTANCE = 0, 1, 2  # as `Format` of record_decoder.h
_FIELDS_THAT_OCCUR = -1


class DecodeOptions(NamedTuple):
    """How records are decoded; formats other than the protos use only `features` and `row_stride`.

    Attributes:
      features: names to decode, or a schema, which also fixes types: a feature that no record has is then a null
        column, and one of another type makes its record a dead letter. Other features are skipped unread. Default: all
        that the block has, in order of appearance; the first to come decides the type.
      fids: "v2" converts fids v1 and refuses fids v2 with the reserved bit; "as_is" keeps v1 as kind `fid_v1`.
      pruning: which features are dropped: none ("as_is"), the named ones ("features") or the raw ones ("raw_features").
      line_id: fields of the LineId that become columns; default: those that a record of the block sets.
      row_stride: difference between the offsets of successive records. Row n of a record gets the record's offset +
        n // 64 and `__SOURCE_ROW__` n % 64, so a record has 64 x `row_stride` rows at most. Successive records of one
        offset are numbered as one record: they were framed in one value.
    """

    features: Sequence[str] | pa.Schema | None = None
    fids: FidLayout = "v2"
    pruning: Pruning = "raw_features"
    line_id: Sequence[str] | None = None
    row_stride: int = 1


Decode = Callable[[pa.RecordBatch, DecodeOptions], tuple[pa.RecordBatch, pa.RecordBatch]]
Encode = Callable[[pa.RecordBatch], pa.BinaryArray]


class RecordCodec(NamedTuple):
    """`decode`: (raw block, options) to (rows, dead letters). `encode`: rows to values of records; None for a format
    that is only read."""

    decode: Decode
    encode: Encode | None


def decode_records(
    block: pa.RecordBatch, format: str, options: DecodeOptions = DecodeOptions()
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Decodes the records of a raw block (`raw_block.raw_schema`).

    Returns: (rows with their provenance, dead letters of `dead_letter.SCHEMA`).
    Raises: UserError for an unknown format or an option that makes no sense.
    """
    return _codec(format).decode(block, options)


def encode_records(batch: pa.RecordBatch, format: str) -> pa.BinaryArray:
    """binary [n]: records with the content of `batch`, without its provenance and its nulls.

    An ExampleBatch takes up to 64 rows of one data source key, an Arrow block as many as fit a Kafka message, every
    other record one row.

    Raises: UserError naming a column that the format cannot hold, or an unknown format.
    """
    encode = _codec(format).encode
    if encode is None:
        raise UserError("format", format, "can only be read", f"choose {_names(writable=True)}")
    return encode(batch)


def _codec(format: str) -> RecordCodec:
    if format not in FORMATS:
        raise UserError("format", format, "there is no such format of records", f"choose {_names()}")
    return FORMATS[format]


def _names(writable: bool = False) -> str:
    return ", ".join(name for name, codec in FORMATS.items() if codec.encode or not writable)


def _proto_codec(kind: int) -> RecordCodec:
    def decode(block: pa.RecordBatch, options: DecodeOptions) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        rows, refused = record_library.decode_protos(
            _source(block),
            kind,
            options.fids == "as_is",
            _PRUNING[options.pruning],
            _line_id_bits(options.line_id),
            options.row_stride,
            record_schema.wanted_features(options.features),
        )
        refusals = Refusals(block)
        reasons, details = refused.column("reason").to_pylist(), refused.column("detail").to_pylist()
        refusals.add_each(refused.column("row").to_numpy(), reasons, details)
        return rows, refusals.to_batch()

    def encode(batch: pa.RecordBatch) -> pa.BinaryArray:
        fitting = record_schema.encodable(batch, is_instance=kind == _INSTANCE)
        return record_library.encode_protos(fitting, kind, ROWS_PER_RECORD)

    return RecordCodec(decode, encode)


def _source(block: pa.RecordBatch) -> pa.RecordBatch:
    """The columns of a raw block that the decoder takes; those that only a deframed block has are null in others."""
    columns = [block.column("value"), source_partitions(block), block.column("offset")]
    for name, type in ((RECORD_ROW, pa.int32()), (RECORD_SOURCE_KEY, pa.uint32())):
        column = record_batch.column_of(block, name)
        columns.append(pa.nulls(block.num_rows, type) if column is None else column)
    return pa.RecordBatch.from_arrays(columns, ["value", "partition", "offset", RECORD_ROW, RECORD_SOURCE_KEY])


def _line_id_bits(fields: Sequence[str] | None) -> int:
    if fields is None:
        return _FIELDS_THAT_OCCUR
    numbers = list(line_id.FIELDS)
    return sum(1 << numbers.index(line_id.check_field(name, "line_id").name) for name in set(fields))


def _decode_arrow(block: pa.RecordBatch, options: DecodeOptions) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    return decode_arrow(block, options.features, options.row_stride)


def _decode_json(block: pa.RecordBatch, options: DecodeOptions) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    if not isinstance(options.features, pa.Schema):
        raise UserError("features", options.features, "JSON does not say the types of columns", "give a schema")
    return decode_json(block, options.features)


FORMATS: dict[str, RecordCodec] = {
    "example": _proto_codec(_EXAMPLE),
    "example_batch": _proto_codec(_EXAMPLE_BATCH),
    "instance": _proto_codec(_INSTANCE),
    "arrow": RecordCodec(_decode_arrow, encode_arrow),
    "json": RecordCodec(_decode_json, None),
}
"""{name: codec} of the formats that need no settings of their own."""
