"""Files as bounded sources: raw blocks of framed files, TFRecords and lines, canonical rows of Parquet, Avro and Arrow.

Every source gives `{"rows": ..., "dead_letters": ...}`. Provenance of a row: partition = number of its file in the
order of the paths, offset = its number in the file; rows that have provenance already keep it. One worker reads a whole
file, as files of records have no marks to split at; only the row groups of Parquet files are spread over workers.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics
from apache_beam.typehints.decorators import no_annotations

from millrace.pipelines.files.containers import (
    BATCH_ROWS,
    CONTAINERS,
    TOPIC,
    ParquetSettings,
    ReadFile,
    StreamSettings,
    bury_file,
    read_avro,
    read_parquet,
    read_records,
)
from millrace.pipelines.files.patterns import match_files
from millrace.pipelines.files.storage import open_file
from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.transforms.batch import dead_letter, record_batch  # noqa: F401 (the coder is registered)
from millrace.transforms.beam import coder  # noqa: F401 (the coder is registered)
from millrace.transforms.beam.codecs import ROWS
from millrace.transforms.beam.dead_letters import DEAD_LETTERS, DeadLetters, count_dead_letters
from millrace.transforms.codecs.avro_schema import arrow_schema, parse_schema
from millrace.transforms.frames.compression import Compression, compression_named
from millrace.transforms.frames.framing import FILE_FRAMES, LINES, MAX_RECORD_BYTES, TF_RECORDS, Framing
from millrace.transforms.frames.stream import BLOCK_BYTES

__all__ = [
    "DEAD_LETTERS",
    "ROWS",
    "ReadArrowFiles",
    "ReadAvroFiles",
    "ReadFramedFiles",
    "ReadJsonLines",
    "ReadParquetFiles",
    "ReadTfRecordFiles",
    "read_files",
]

_NAMESPACE = telemetry.namespace("pipelines", "file_sources")
_Output: TypeAlias = pa.RecordBatch | DeadLetters


class _ReadFiles(beam.PTransform):
    """What the sources have in common: numbered files, each of which one call of `read` reads."""

    read: ReadFile

    def __init__(self, patterns: str | Sequence[str], field: str, first_file: int = 0) -> None:
        super().__init__()
        self._patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        self._files = [(first_file + number, path) for number, path in match_files(patterns, field)]

    @no_annotations  # Beam knows no hints of several outputs
    def expand(self, begin: beam.pvalue.PBegin) -> dict[str, beam.PCollection]:
        files = begin | "ListFiles" >> beam.Create(self._files) | "SpreadFiles" >> beam.Reshuffle()
        read = files | "ReadFiles" >> _with_dead_letters(_ReadDoFn(self.read))
        return {ROWS: read[ROWS], DEAD_LETTERS: read[DEAD_LETTERS]}

    def display_data(self) -> dict[str, Any]:
        return {"patterns": ", ".join(self._patterns), "files": len(self._files)}


def _with_dead_letters(reader: beam.DoFn) -> beam.PTransform:
    typed = beam.ParDo(reader).with_output_types(pa.RecordBatch, **{DEAD_LETTERS: pa.RecordBatch})
    return typed.with_outputs(DEAD_LETTERS, main=ROWS)


class _CountingDoFn(beam.DoFn):
    """Gives rows and dead letters, and counts them.

    Counters (`millrace.pipelines.file_sources`): `rows_read`, `files_read`, `dead_letters_<reason>`.
    """

    def __init__(self) -> None:
        self._rows = Metrics.counter(_NAMESPACE, "rows_read")
        self._files = Metrics.counter(_NAMESPACE, "files_read")

    def give(self, rows: pa.RecordBatch, dead: pa.RecordBatch) -> Iterator[_Output]:
        if rows.num_rows:
            self._rows.inc(rows.num_rows)
            yield rows
        if dead.num_rows:
            count_dead_letters(_NAMESPACE, dead)
            yield beam.pvalue.TaggedOutput(DEAD_LETTERS, dead)


class _ReadDoFn(_CountingDoFn):
    """(number, path) to the rows and dead letters of the file."""

    def __init__(self, read: ReadFile) -> None:
        super().__init__()
        self._read = read

    def process(self, element: tuple[int, str]) -> Iterator[_Output]:
        number, path = element
        with open_file(path) as file:
            for rows, dead in self._read(file, number, path):
                yield from self.give(rows, dead)
        self._files.inc()


class _ReadStreams(_ReadFiles):
    """Files that are streams of records to raw blocks (`raw_block.raw_schema`).

    Args:
      patterns: of the paths, with wildcards and placeholders (`patterns.expand_pattern`).
      compression: or its name, such as "gzip"; default: by the end of each path.
      topic: of the raw blocks.
      block_bytes: approximate size of a block.
      max_record_bytes: longer records become dead letters.
      field: what an error calls the patterns.
      first_file: number of the first file.

    Raises: UserError when no file matches.
    """

    framing: Framing

    def __init__(
        self,
        patterns: str | Sequence[str],
        compression: Compression | str = Compression.UNKNOWN,
        topic: str = TOPIC,
        block_bytes: int = BLOCK_BYTES,
        max_record_bytes: int = MAX_RECORD_BYTES,
        field: str = "patterns",
        first_file: int = 0,
    ) -> None:
        super().__init__(patterns, field, first_file)
        self._compression = compression_named(compression)
        settings = StreamSettings(self._compression, topic, block_bytes, max_record_bytes)
        self.read = functools.partial(read_records, framing=self.framing, settings=settings)

    def display_data(self) -> dict[str, Any]:
        return super().display_data() | {"framing": str(self.framing), "compression": self._compression.name}


class ReadFramedFiles(_ReadStreams):
    """Files of framed records to raw blocks, with `data_source_key` if the header has it.

    Args:
      patterns: of the paths, with wildcards and placeholders (`patterns.expand_pattern`).
      frames: the headers; the default has sort ids only.
      settings: `compression`, `topic`, `block_bytes`, `max_record_bytes`, `field`, `first_file`, as of
        `ReadTfRecordFiles`.
    """

    def __init__(self, patterns: str | Sequence[str], frames: Framing = FILE_FRAMES, **settings: Any) -> None:
        self.framing = frames
        super().__init__(patterns, **settings)


class ReadTfRecordFiles(_ReadStreams):
    """TFRecord files to raw blocks; checksums are verified, and after damage reading goes on at the next record."""

    framing = TF_RECORDS


class ReadJsonLines(_ReadStreams):
    """Text files to raw blocks, one row per line that is not blank; offset = number of the line."""

    framing = LINES


class ReadParquetFiles(_ReadFiles):
    """Parquet files to canonical rows (`tables.to_canonical`), the row groups spread over the workers.

    Args:
      patterns: of the paths, with wildcards and placeholders (`patterns.expand_pattern`).
      columns: to read; default: all.
      column_types: {column: one of `tables.KINDS`} where types and field metadata do not say enough.
      batch_rows: largest number of rows per batch.
      first_file: number of the first file.
      features: in place of `columns`: the features to read, as far as a file has them, beside all row metadata.

    Raises: UserError when no file matches, or when a column of the first file is missing or cannot be a feature.
    """

    def __init__(
        self,
        patterns: str | Sequence[str],
        columns: Sequence[str] | None = None,
        column_types: Mapping[str, str] | None = None,
        batch_rows: int = BATCH_ROWS,
        field: str = "patterns",
        first_file: int = 0,
        features: Collection[str] | None = None,
    ) -> None:
        super().__init__(patterns, field, first_file)
        self._settings = ParquetSettings(columns and list(columns), dict(column_types or {}), batch_rows, features)
        with open_file(self._files[0][1]) as file:
            try:
                schema = pq.read_schema(file)
            except (pa.ArrowException, OSError) as error:
                path = self._files[0][1]
                raise UserError(field, path, f"is no Parquet file ({error})", "narrow the pattern") from error
        self._settings.columns_of(schema)

    @no_annotations  # Beam knows no hints of several outputs
    def expand(self, begin: beam.pvalue.PBegin) -> dict[str, beam.PCollection]:
        files = begin | "ListFiles" >> beam.Create(self._files) | "SpreadFiles" >> beam.Reshuffle()
        typed = {DEAD_LETTERS: pa.RecordBatch}
        list_groups = beam.ParDo(_ListRowGroupsDoFn()).with_output_types(_RowGroup, **typed)
        listed = files | "ListRowGroups" >> list_groups.with_outputs(DEAD_LETTERS, main="groups")
        read = (
            listed.groups
            | "SpreadRowGroups" >> beam.Reshuffle()
            | "Read" >> _with_dead_letters(_ReadRowGroupDoFn(self._settings))
        )
        dead = (listed[DEAD_LETTERS], read[DEAD_LETTERS]) | "DeadLetters" >> beam.Flatten()
        return {ROWS: read[ROWS], DEAD_LETTERS: dead}

    def display_data(self) -> dict[str, Any]:
        columns = self._settings.columns or sorted(self._settings.features or ["all"])
        return super().display_data() | {"columns": ", ".join(columns)}


class _RowGroup(NamedTuple):
    """One row group; `first_row` is the number of its first row in the file."""

    number: int
    path: str
    group: int
    first_row: int


class _ListRowGroupsDoFn(_CountingDoFn):
    def process(self, element: tuple[int, str]) -> Iterator[_RowGroup | DeadLetters]:
        number, path = element
        try:
            with open_file(path) as file:
                metadata = pq.read_metadata(file)
        except pa.ArrowException as error:
            yield from self.give(record_batch.empty(pa.schema([])), bury_file(number, path, 0, error))
            return
        first_row = 0
        for group in range(metadata.num_row_groups):
            yield _RowGroup(number, path, group, first_row)
            first_row += metadata.row_group(group).num_rows
        self._files.inc()


class _ReadRowGroupDoFn(_CountingDoFn):
    def __init__(self, settings: ParquetSettings) -> None:
        super().__init__()
        self._settings = settings

    def process(self, element: _RowGroup) -> Iterator[_Output]:
        with open_file(element.path) as file:
            read = read_parquet(file, element.number, element.path, self._settings, [element.group], element.first_row)
            for rows, dead in read:
                yield from self.give(rows, dead)


class ReadAvroFiles(_ReadFiles):
    """Avro container files to canonical rows, one batch per block of the file.

    Args:
      patterns: of the paths, with wildcards and placeholders (`patterns.expand_pattern`).
      reader_schema: what the rows shall have, by Avro's rules of schema resolution; default: each file's own.
      first_file: number of the first file.

    Raises: UserError when no file matches or the schema gives no rows.
    """

    def __init__(
        self,
        patterns: str | Sequence[str],
        reader_schema: str | Mapping[str, Any] | None = None,
        field: str = "patterns",
        first_file: int = 0,
    ) -> None:
        super().__init__(patterns, field, first_file)
        if reader_schema is not None:
            arrow_schema(parse_schema(reader_schema, "reader_schema"), "reader_schema")
        self.read = functools.partial(read_avro, reader_schema=reader_schema)


class ReadArrowFiles(_ReadFiles):
    """Arrow IPC files and streams of canonical batches.

    Args:
      patterns: of the paths, with wildcards and placeholders (`patterns.expand_pattern`).
      first_file: number of the first file.

    Raises: UserError when no file matches.
    """

    def __init__(self, patterns: str | Sequence[str], field: str = "patterns", first_file: int = 0) -> None:
        super().__init__(patterns, field, first_file)
        self.read = CONTAINERS["arrow"].read


_ROW_SOURCES: Mapping[str, Callable[..., _ReadFiles]] = {
    "avro": ReadAvroFiles,
    "arrow": ReadArrowFiles,
}


def read_files(
    patterns: str | Sequence[str],
    format: str,
    framing: Framing | None,
    field: str,
    first_file: int = 0,
    features: Collection[str] | None = None,
) -> _ReadFiles:
    """The source of files of any format of `format.FORMAT_NAMES` but dead letters.

    Args:
      framing: as of `format.file_framing`; None for files of rows.
      features: that are needed; Parquet files are read without the others. Default: all.
    """
    if format == "parquet":
        return ReadParquetFiles(patterns, field=field, first_file=first_file, features=features)
    if framing is None:
        return _ROW_SOURCES[format](patterns, field=field, first_file=first_file)
    return ReadFramedFiles(patterns, framing, field=field, first_file=first_file)
