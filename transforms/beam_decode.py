"""Codecs as PTransforms: blocks of raw records to records of one frame each, and to canonical rows."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from runtime import telemetry
from runtime.errors import UserError
from runtime.schema_registry import RegistrySettings, SchemaRegistry
from transforms import beam_coder, dead_letter  # noqa: F401 (the coder is registered)
from transforms.avro_codec import AvroCodec, RegistryAvroCodec
from transforms.framing import KAFKA_FRAMES, MAX_RECORD_BYTES, FrameOptions, deframe
from transforms.tf_example import TfExampleOptions, decode_tf_examples

DEAD_LETTERS = "dead_letters"
ROWS = "rows"

Decode: TypeAlias = Callable[[pa.RecordBatch], tuple[pa.RecordBatch, pa.RecordBatch]]
_DeadLetters: TypeAlias = beam.pvalue.TaggedOutput[Literal["dead_letters"], pa.RecordBatch]


class _DecodeBlocks(beam.PTransform):
    """Outputs `rows` and `dead_letters`.

    Args:
      kind: names the counters.
      make: makes the decoder, once for a worker's instance of the step.

    Counters (`millrace.transforms.<kind>`): `rows_in`, `rows_out`, `dead_letters_<reason>`.
    """

    def __init__(self, kind: str, make: Callable[[], Decode], shown: Mapping[str, Any]) -> None:
        super().__init__()
        self._kind, self._make, self._shown = kind, make, dict(shown)

    def expand(self, blocks: beam.PCollection[pa.RecordBatch]) -> beam.pvalue.DoOutputsTuple:
        decode = beam.ParDo(_DecodeDoFn(self._kind, self._make)).with_input_types(pa.RecordBatch)
        typed = decode.with_output_types(pa.RecordBatch, **{DEAD_LETTERS: pa.RecordBatch})
        return blocks | "Decode" >> typed.with_outputs(DEAD_LETTERS, main=ROWS)

    def display_data(self) -> dict[str, Any]:
        return self._shown


class _DecodeDoFn(beam.DoFn):
    def __init__(self, kind: str, make: Callable[[], Decode]) -> None:
        self._namespace, self._make = telemetry.namespace("transforms", kind), make
        self._in, self._out = (Metrics.counter(self._namespace, name) for name in ("rows_in", "rows_out"))

    def setup(self) -> None:
        self._decode = self._make()

    def process(self, block: pa.RecordBatch) -> Iterator[pa.RecordBatch | _DeadLetters]:
        rows, dead = self._decode(block)
        self._in.inc(block.num_rows)
        self._out.inc(rows.num_rows)
        if rows.num_rows:
            yield rows
        if dead.num_rows:
            for reason, count in dead_letter.count_by_reason(dead).items():
                Metrics.counter(self._namespace, f"dead_letters_{reason}").inc(count)
            yield beam.pvalue.TaggedOutput(DEAD_LETTERS, dead)


class Deframe(_DecodeBlocks):
    """Raw blocks whose values hold frames to raw blocks of one record a row (`framing.deframe`).

    Example:

        records = blocks | Deframe(FrameOptions(lagrangex_header=True))
        records["rows"], records["dead_letters"]

    Args:
      frames: the headers.
      max_record_bytes: longer records become dead letters.
    """

    def __init__(self, frames: FrameOptions = KAFKA_FRAMES, max_record_bytes: int = MAX_RECORD_BYTES) -> None:
        make = functools.partial(_make_deframe, frames, max_record_bytes)
        super().__init__("deframe", make, {"frames": str(frames), "max_record_bytes": max_record_bytes})


def _make_deframe(frames: FrameOptions, max_record_bytes: int) -> Decode:
    return functools.partial(deframe, options=frames, max_record_bytes=max_record_bytes)


class DecodeAvro(_DecodeBlocks):
    """Raw blocks of Avro values to canonical rows.

    Example:

        rows = blocks | DecodeAvro(Path("row.avsc").read_text(), registry_file="registry.properties")

    Args:
      reader_schema: what the rows shall have.
      schema: that all values were written with; or
      registry_file: settings of the registry that knows the schema that each value names
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
        make()  # wrong schemas are told now
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
