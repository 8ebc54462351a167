"""Codecs as PTransforms: raw blocks to records of single frames or to canonical rows, and rows to raw blocks."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.typehints.decorators import no_annotations

from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.runtime.schema_registry import RegistrySettings, SchemaRegistry
from millrace.transforms.batch import dead_letter, record_batch  # noqa: F401 (the coder is registered)
from millrace.transforms.batch.provenance import provenance_of, split_source_partition
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.beam import coder  # noqa: F401 (the coder is registered)
from millrace.transforms.beam.dead_letters import DEAD_LETTERS, DeadLetters, count_dead_letters
from millrace.transforms.codecs.avro import AvroCodec, RegistryAvroCodec
from millrace.transforms.codecs.record_codec import DecodeOptions, FidLayout, decode_records, encode_records
from millrace.transforms.codecs.tf_example import TfExampleOptions, decode_tf_examples
from millrace.transforms.frames.framing import KAFKA_FRAMES, MAX_RECORD_BYTES, FrameOptions, deframe

ROWS = "rows"

RECORDS_TOPIC = "rows"
"""Topic of the raw blocks that `EncodeRecords` makes."""

Decode: TypeAlias = Callable[[pa.RecordBatch], tuple[pa.RecordBatch, pa.RecordBatch]]


class _DecodeBlocks(beam.PTransform):
    """Outputs `rows` and `dead_letters`.

    Args:
      kind: name of the step in its counters' namespace.
      make: makes the decoder, once per instance of the DoFn.
      shown: display data.

    Counters (`millrace.transforms.<kind>`): `rows_in`, `rows_out`, `dead_letters_<reason>`.
    """

    def __init__(self, kind: str, make: Callable[[], Decode], shown: Mapping[str, Any]) -> None:
        super().__init__()
        self._kind, self._make, self._shown = kind, make, dict(shown)

    @no_annotations  # Beam has no type hints for several outputs
    def expand(self, blocks: beam.PCollection) -> dict[str, beam.PCollection]:
        decode = beam.ParDo(_DecodeDoFn(self._kind, self._make)).with_input_types(pa.RecordBatch)
        typed = decode.with_output_types(pa.RecordBatch, **{DEAD_LETTERS: pa.RecordBatch})
        found = blocks | "Decode" >> typed.with_outputs(DEAD_LETTERS, main=ROWS)
        return {ROWS: found[ROWS], DEAD_LETTERS: found[DEAD_LETTERS]}

    def display_data(self) -> dict[str, Any]:
        return self._shown


class _DecodeDoFn(beam.DoFn):
    def __init__(self, kind: str, make: Callable[[], Decode]) -> None:
        self._namespace, self._make = telemetry.namespace("transforms", kind), make
        self._in, self._out = (Metrics.counter(self._namespace, name) for name in ("rows_in", "rows_out"))

    def setup(self) -> None:
        self._decode = self._make()

    def process(self, block: pa.RecordBatch) -> Iterator[pa.RecordBatch | DeadLetters]:
        rows, dead = self._decode(block)
        self._in.inc(block.num_rows)
        self._out.inc(rows.num_rows)
        if rows.num_rows:
            yield rows
        if dead.num_rows:
            count_dead_letters(self._namespace, dead)
            yield beam.pvalue.TaggedOutput(DEAD_LETTERS, dead)


class Deframe(_DecodeBlocks):
    """Raw blocks whose values hold frames to raw blocks of one record per row (`framing.deframe`).

    Example:

        records = blocks | Deframe(FrameOptions(lagrangex_header=True))
        records["rows"], records["dead_letters"]

    Args:
      frames: which headers a frame has.
      max_record_bytes: longest record; longer ones become dead letters.
    """

    def __init__(self, frames: FrameOptions = KAFKA_FRAMES, max_record_bytes: int = MAX_RECORD_BYTES) -> None:
        make = functools.partial(_make_deframe, frames, max_record_bytes)
        super().__init__("deframe", make, {"frames": str(frames), "max_record_bytes": max_record_bytes})


def _make_deframe(frames: FrameOptions, max_record_bytes: int) -> Decode:
    return functools.partial(deframe, options=frames, max_record_bytes=max_record_bytes)


class DecodeRecords(_DecodeBlocks):
    """Raw blocks of records to canonical rows (`record_codec.decode_records`).

    Example:

        read = pipeline | ReadFramedFiles("/data/*.pb")
        rows = read["rows"] | DecodeRecords("example")

    Args:
      format: one of `record_codec.FORMATS` that needs no schema: example, example_batch, instance, arrow.
      features: names of the features to decode; default: all.
      fids: "v2" converts fids v1, "as_is" keeps them.
    """

    def __init__(self, format: str, features: Sequence[str] | None = None, fids: FidLayout = "v2") -> None:
        options = DecodeOptions(features, fids)
        super().__init__("decode_records", functools.partial(_make_records, format, options), {"format": format})


def _make_records(format: str, options: DecodeOptions) -> Decode:
    return functools.partial(decode_records, format=format, options=options)


class DecodeAvro(_DecodeBlocks):
    """Raw blocks of Avro values to canonical rows.

    Example:

        rows = blocks | DecodeAvro(Path("row.avsc").read_text(), registry_file="registry.properties")

    Args:
      reader_schema: schema of the rows.
      schema: schema with which all values were written. Either this or `registry_file` is given.
      registry_file: settings of the registry that has the schemas whose numbers the values begin with
        (`schema_registry.RegistrySettings.from_file`).

    Raises: UserError for a schema that gives no rows, or a file that is wrong.
    """

    def __init__(
        self,
        reader_schema: str | Mapping[str, Any],
        schema: str | Mapping[str, Any] | None = None,
        registry_file: str | None = None,
    ) -> None:
        if schema is not None and registry_file is None:
            make: Callable[[], Decode] = functools.partial(_make_avro, schema, reader_schema)
        elif registry_file is not None and schema is None:
            make = functools.partial(_make_registry, RegistrySettings.from_file(registry_file), reader_schema)
        else:
            raise UserError("schema", schema, "either a schema or a registry tells how values are written", "give one")
        make()  # raises for wrong schemas now, not on a worker
        super().__init__("decode_avro", make, {"registry_file": registry_file or "none"})


def _make_avro(schema: str | Mapping[str, Any], reader_schema: str | Mapping[str, Any]) -> Decode:
    return AvroCodec(schema, reader_schema).decode


def _make_registry(settings: RegistrySettings, reader_schema: str | Mapping[str, Any]) -> Decode:
    return RegistryAvroCodec(SchemaRegistry(settings).lookup, reader_schema).decode


class DecodeTfExamples(_DecodeBlocks):
    """Raw blocks of serialized `tf.Example`s to canonical rows (`tf_example.decode_tf_examples`).

    Example:

        rows = blocks | DecodeTfExamples(TfExampleOptions({"item": 1}, ["age"], label="click"))
    """

    def __init__(self, options: TfExampleOptions) -> None:
        shown = {"sparse_features": ", ".join(options.sparse_features), "label": options.label}
        super().__init__("decode_tf_examples", functools.partial(_make_tf_examples, options), shown)


def _make_tf_examples(options: TfExampleOptions) -> Decode:
    return functools.partial(decode_tf_examples, options=options)


class EncodeRecords(beam.PTransform):
    """Canonical rows to raw blocks of one record per row, with the partitions and offsets of the rows' sources.

    Args:
      format: one of `record_codec.FORMATS` that holds one row per record: example, instance.
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
    """A raw block of one record per row.

    Raises: ValueError when the format puts several rows into a record.
    """
    values = encode_records(rows, format)
    if len(values) != rows.num_rows:
        raise ValueError(f"{format} puts several rows into one record: choose example or instance")
    partition, offset, _ = provenance_of(rows)
    return raw_block(RECORDS_TOPIC, values, split_source_partition(partition)[1], offset)
