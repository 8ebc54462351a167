"""Raw blocks to canonical rows, in every format that records have."""

from collections.abc import Callable

import pyarrow as pa

from millrace.pipelines.files.format import TF_EXAMPLE, RecordSettings, json_schema
from millrace.transforms.batch import record_batch
from millrace.transforms.codecs.record_codec import DecodeOptions, FidLayout, decode_records
from millrace.transforms.frames.framing import FrameOptions, deframe

Decode = Callable[[pa.RecordBatch], tuple[pa.RecordBatch, pa.RecordBatch]]
"""Raw block to (canonical rows, dead letters)."""

# Offsets of one record when its rows may be more than the 64 that provenance can tell apart.
_ROW_STRIDE = 16


def make_decoder(settings: RecordSettings, frames: FrameOptions | None = None) -> Decode:
    """Decodes the blocks of one source, one after the other.

    Args:
      frames: headers of the frames that values hold; None: a value is one record.
    """
    decode: Decode
    if settings.format == "json":
        decode = _JsonDecoder(settings)
    elif settings.format == TF_EXAMPLE:
        decode = _tf_example_decoder(settings)
    else:
        return lambda block: decode_block(block, settings.format, frames, settings.fids)
    return decode if frames is None else lambda block: _deframed(block, frames, decode)


class _JsonDecoder:
    """The first block with objects decides about columns and types.

    An object within an object gives columns `outer.inner`; true and false become 1 and 0, as records hold them.
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


def _tf_example_decoder(settings: RecordSettings) -> Decode:
    from millrace.transforms.codecs.tf_example import decode_tf_examples

    options = settings.tf_example
    assert options is not None
    return lambda block: decode_tf_examples(block, options)


def decode_block(
    block: pa.RecordBatch, format: str, frames: FrameOptions | None = None, fids: FidLayout = "v2"
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """(canonical rows, dead letters) of a raw block, deframed first where values hold frames.

    An ExampleBatch may have 1,024 rows: its rows' source offsets are 16 times those of their records.
    """
    if frames is not None:
        return _deframed(block, frames, lambda values: decode_block(values, format, None, fids))
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
    """`batch` with its offsets multiplied and divided."""
    offsets = pa.array(record_batch.numpy_column(batch, "offset") * times // over)
    return record_batch.with_column(batch, batch.schema.field("offset"), offsets)
