"""Records to rows and back, as PTransforms."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.typehints.decorators import no_annotations

from runtime import telemetry
from transforms import beam_coder, dead_letter, record_batch  # noqa: F401 (the coder is registered)
from transforms.framing import FrameOptions, deframe
from transforms.record_codec import DecodeOptions, FidLayout, decode_records, encode_records
from transforms.step import provenance

DEAD_LETTERS, ROWS = "dead_letters", "rows"
RECORDS_TOPIC = "rows"
"""Topic of raw blocks that are made of rows."""

_NAMESPACE = telemetry.namespace("transforms", "beam_codec")
_DeadLetters: TypeAlias = beam.pvalue.TaggedOutput[Literal["dead_letters"], pa.RecordBatch]


class DecodeRecords(beam.PTransform):
    """Raw blocks to canonical rows: `{"rows": ..., "dead_letters": ...}`.

    Example:

        read = pipeline | ReadFramedFiles("/data/*.pb")
        rows = read["rows"] | DecodeRecords("example")

    Args:
      format: one of `record_codec.FORMATS` that needs no schema: example, example_batch, instance, arrow.
      features: names of the features to decode; default: all.
      fids: "v2" converts fids v1, "as_is" keeps them.
      frames: names of the headers that are set (`FrameOptions`) when a value holds frames; default: it is one record.

    Counters (`millrace.transforms.beam_codec`): `rows_decoded`, `dead_letters_<reason>`.
    """

    def __init__(
        self,
        format: str,
        features: Sequence[str] | None = None,
        fids: FidLayout = "v2",
        frames: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        options = None if frames is None else FrameOptions(**dict.fromkeys(frames, True))
        self._decode = _DecodeDoFn(format, DecodeOptions(features, fids), options)
        self._format = format

    @no_annotations  # Beam knows no hints of several outputs
    def expand(self, blocks: beam.PCollection) -> dict[str, beam.PCollection]:
        decode = beam.ParDo(self._decode).with_input_types(pa.RecordBatch).with_output_types(pa.RecordBatch)
        found = blocks | "Decode" >> decode.with_outputs(DEAD_LETTERS, main=ROWS)
        return {ROWS: found[ROWS], DEAD_LETTERS: found[DEAD_LETTERS]}

    def display_data(self) -> dict[str, Any]:
        return {"format": self._format}


class _DecodeDoFn(beam.DoFn):
    def __init__(self, format: str, options: DecodeOptions, frames: FrameOptions | None) -> None:
        self._format, self._options, self._frames = format, options, frames
        self._rows = Metrics.counter(_NAMESPACE, "rows_decoded")

    def process(self, block: pa.RecordBatch) -> Iterator[pa.RecordBatch | _DeadLetters]:
        refused = []
        if self._frames is not None:
            block, broken = deframe(block, self._frames)
            refused.append(broken)
        rows, dead = decode_records(block, self._format, self._options)
        refused.append(dead)
        self._rows.inc(rows.num_rows)
        if rows.num_rows:
            yield rows
        for letters in refused:
            if letters.num_rows:
                for reason, count in dead_letter.count_by_reason(letters).items():
                    Metrics.counter(_NAMESPACE, f"dead_letters_{reason}").inc(count)
                yield beam.pvalue.TaggedOutput(DEAD_LETTERS, letters)


class EncodeRecords(beam.PTransform):
    """Canonical rows to raw blocks of records, one a row, where the rows came from.

    Args:
      format: one of `record_codec.FORMATS` that can be written a row at a time: example, instance.
    """

    def __init__(self, format: str) -> None:
        super().__init__()
        self._format = format

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        return rows | "Encode" >> beam.ParDo(_EncodeDoFn(self._format)).with_output_types(pa.RecordBatch)

    def display_data(self) -> dict[str, Any]:
        return {"format": self._format}


class _EncodeDoFn(beam.DoFn):
    def __init__(self, format: str) -> None:
        self._format = format

    def process(self, rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield encode_block(rows, self._format)


def encode_block(rows: pa.RecordBatch, format: str) -> pa.RecordBatch:
    """A raw block (`record_batch.raw_schema`) of one record a row.

    Raises: ValueError when the format puts several rows into a record.
    """
    values = encode_records(rows, format)
    if len(values) != rows.num_rows:
        raise ValueError(f"{format} puts several rows into a record: choose example or instance")
    partition, offset, _ = provenance(rows)
    columns = [
        values,
        pa.array(partition.astype(np.int32)),
        pa.array(offset),
        pa.array(np.zeros(rows.num_rows, np.int64)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=record_batch.raw_schema(RECORDS_TOPIC))
