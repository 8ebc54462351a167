"""Decodes raw blocks to canonical rows, in every format of records."""

import functools
import json
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.json

from millrace.pipelines.files.format import TF_EXAMPLE, RecordSettings
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.codecs.record_codec import DecodeOptions, FidLayout, decode_records
from millrace.transforms.codecs.tables import to_canonical
from millrace.transforms.frames.framing import FrameOptions, deframe

Decode = Callable[[pa.RecordBatch], tuple[pa.RecordBatch, pa.RecordBatch]]
"""Raw block to (canonical rows, dead letters)."""

# An ExampleBatch has up to 1,024 rows, and the provenance of one offset tells 64 apart: a record takes 16 offsets.
_ROW_STRIDE = 16
# Records from which the columns of JSON are inferred: enough to meet rare keys, and parsed twice in under a second.
_SAMPLE = 10_000


def make_decoder(settings: RecordSettings, frames: FrameOptions | None = None) -> Decode:
    """A decoder for the blocks of one source, which must be given in order.

    Args:
      frames: headers of the frames in a value that holds several records; None: a value is one record.
    """
    decode: Decode
    if settings.format == "json":
        decode = _JsonDecoder(settings)
    elif settings.format == TF_EXAMPLE:
        decode = _tf_example_decoder(settings)
    else:
        decode = functools.partial(_decode_block, format=settings.format, fids=settings.fids)
    return decode if frames is None else lambda block: _deframed(block, frames, decode)


class _JsonDecoder:
    """Infers columns and types from the first block that has JSON objects.

    An object within an object gives columns `outer.inner`; true and false become the integers 1 and 0.
    """

    def __init__(self, settings: RecordSettings) -> None:
        self._kinds = settings.kinds
        self._schema = pa.schema([])

    def __call__(self, block: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        if not len(self._schema):
            self._schema = json_schema(block, self._kinds)
        rows, dead = decode_records(block, "json", DecodeOptions(features=self._schema))
        return _as_features(rows), dead


def _as_features(rows: pa.RecordBatch) -> pa.RecordBatch:
    while any(pa.types.is_struct(field.type) for field in rows.schema):
        table = pa.Table.from_batches([rows]).flatten()
        rows = record_batch.concat(table.to_batches(), table.schema)
    for field in rows.schema:
        if pa.types.is_boolean(field.type) and not record_batch.is_metadata_name(field.name):
            rows = record_batch.with_column(rows, field.with_type(pa.int64()), rows.column(field.name).cast(pa.int64()))
    return rows


def json_schema(block: pa.RecordBatch, kinds: Mapping[str, str]) -> pa.Schema:
    """Columns and types of JSON objects, inferred from the first 10,000 records of a raw block.

    Metadata columns have the types of `record_batch`. A key that has only nulls and empty lists there has no type and
    is left out.

    Raises: UserError where a key has values of several types.
    """
    lines = [value for value in block.column("value").slice(0, _SAMPLE).to_pylist() if _is_object(value)]
    if not lines:
        return pa.schema([])
    text = b"\n".join(line.replace(b"\n", b" ") for line in lines)
    options = pa.json.ReadOptions(use_threads=False, block_size=len(text) + 1)
    try:
        found = pa.json.read_json(pa.BufferReader(text), read_options=options).schema
    except pa.ArrowInvalid as error:
        raise UserError(
            "SOURCE", "json", str(error), "name the keys' types with --column-types, or correct it"
        ) from error
    typed = [_typed(each, kinds) for each in found]
    return pa.schema([each for each in typed if not _is_unknown(each.type)])


def _is_object(value: bytes | None) -> bool:
    try:
        return isinstance(json.loads(value or b""), dict)
    except (ValueError, RecursionError):
        return False


def _typed(found: pa.Field, kinds: Mapping[str, str]) -> pa.Field:
    if found.name in kinds or record_batch.is_metadata_name(found.name):
        bare = pa.field(found.name, pa.int64()) if _is_unknown(found.type) else found
        made = to_canonical(record_batch.empty(pa.schema([bare])), _only(kinds, found.name)).schema.field(0)
        as_list = pa.types.is_list(found.type) or pa.types.is_null(found.type)
        leaf = made.type.value_type if pa.types.is_list(made.type) and not as_list else made.type
        return pa.field(found.name, leaf, metadata=made.metadata)
    return pa.field(found.name, _without_times(found.type))


def _only(kinds: Mapping[str, str], name: str) -> dict[str, str]:
    return {name: kinds[name]} if name in kinds else {}


def _is_unknown(type: pa.DataType) -> bool:
    return pa.types.is_null(type.value_type if pa.types.is_list(type) else type)


def _without_times(type: pa.DataType) -> pa.DataType:
    """`type` with text in place of the times that Arrow infers from text that looks like a time."""
    if pa.types.is_timestamp(type):
        return pa.string()
    return pa.list_(_without_times(type.value_type)) if pa.types.is_list(type) else type


def _tf_example_decoder(settings: RecordSettings) -> Decode:
    from millrace.transforms.codecs.tf_example import decode_tf_examples

    options = settings.tf_example
    assert options is not None
    return lambda block: decode_tf_examples(block, options)


def _decode_block(block: pa.RecordBatch, format: str, fids: FidLayout) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """(canonical rows, dead letters) of a raw block.

    The source offsets of the rows of an ExampleBatch are 16 times the offsets of their records.
    """
    if format != "example_batch":
        return decode_records(block, format, DecodeOptions(fids=fids))
    options = DecodeOptions(fids=fids, row_stride=_ROW_STRIDE)
    rows, dead = decode_records(_spaced(block, _ROW_STRIDE, 1), format, options)
    return rows, _spaced(dead, 1, _ROW_STRIDE)


def _deframed(block: pa.RecordBatch, frames: FrameOptions, decode: Decode) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    values, dead_frames = deframe(block, frames)
    rows, dead = decode(values)
    return rows, record_batch.concat([dead_frames, dead]) if dead_frames.num_rows else dead


def _spaced(batch: pa.RecordBatch, times: int, over: int) -> pa.RecordBatch:
    """`batch` with its offsets multiplied by `times` and divided by `over`."""
    offsets = pa.array(record_batch.numpy_column(batch, "offset") * times // over)
    return record_batch.with_column(batch, batch.schema.field("offset"), offsets)
