"""Sources and sinks of files on Beam's Direct runner: what is written is read again, and damage is named."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from millrace.pipelines.feed.source import ReadEventFiles
from millrace.pipelines.files import sinks as file_sinks
from millrace.pipelines.files import sources
from millrace.pipelines.files.storage import publish
from millrace.runtime.errors import UserError
from millrace.transforms.batch import dead_letter, record_batch
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.codecs.avro_file import write_avro
from millrace.transforms.codecs.tables import is_canonical, mark_canonical
from millrace.transforms.frames.compression import SUFFIXES, Compression, write_chunks
from millrace.transforms.frames.framing import FILE_FRAMES, TF_RECORDS, FrameOptions, join_frames
from tests.reference.file_batches import canonical_batch, events_block

VALUES = [f"record {number}".encode() for number in range(1000)]


def frame_file(path: Path, values: list[bytes], frames: Any = FILE_FRAMES, kind: Compression = Compression.NO) -> None:
    with open(path, "wb") as file:
        write_chunks(file, iter([join_frames(pa.array(values, pa.binary()), frames)]), kind)


def read(source: beam.PTransform, check: Callable[[list[dict], list[dict]], None]) -> None:
    """Runs the source and checks (rows in the order of their provenance, dead letters)."""

    def check_both(found: list[tuple[list[dict], list[dict]]]) -> None:
        rows = [row for part, _ in found for row in part]
        dead = [row for _, part in found for row in part]
        check(sorted(rows, key=_place), sorted(dead, key=_place))

    with TestPipeline() as pipeline:
        outputs = pipeline | source
        rows = outputs["rows"] | "Rows" >> beam.Map(lambda batch: (batch.to_pylist(), []))
        dead = outputs["dead_letters"] | "Dead" >> beam.Map(lambda batch: ([], batch.to_pylist()))
        assert_that((rows, dead) | beam.Flatten(), check_both)


def _place(row: dict) -> tuple[int, int]:
    if "__SOURCE_OFFSET__" in row:
        return row["__SOURCE_PARTITION__"], row["__SOURCE_OFFSET__"]
    return row["partition"], row["offset"]


@pytest.mark.parametrize("kind", [Compression.NO, Compression.SNAPPY, Compression.GZIP])
def test_framed_files_give_every_record_with_file_and_number(tmp_path: Path, kind: Compression) -> None:
    suffix = {found: ending for ending, found in SUFFIXES.items()}.get(kind, "")
    for name, part in (("a", VALUES[:400]), ("b", VALUES[400:])):
        frame_file(tmp_path / f"{name}{suffix}", part, kind=kind)

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert dead == []
        assert [row["value"] for row in rows] == VALUES
        places = [(row["partition"], row["offset"]) for row in rows]
        assert places == [(0, number) for number in range(400)] + [(1, number) for number in range(600)]

    read(sources.ReadFramedFiles(f"{tmp_path}/*", block_bytes=1000), check)


def test_a_lagrangex_header_gives_the_key_of_the_data_source(tmp_path: Path) -> None:
    frames = FrameOptions(lagrangex_header=True)
    data = join_frames(pa.array([b"x"], pa.binary()), frames, "pc").to_pybytes()
    (tmp_path / "a").write_bytes(data + join_frames(pa.array([b"y"], pa.binary()), frames).to_pybytes())

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert [row["data_source_key"] for row in rows] == [914176, 0]

    read(sources.ReadFramedFiles(f"{tmp_path}/a", frames), check)


def test_a_file_that_ends_in_mid_record_gives_the_good_ones_and_one_dead_letter(tmp_path: Path) -> None:
    frame_file(tmp_path / "a", VALUES[:10])
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[:-3])
    frame_file(tmp_path / "b", VALUES[10:20])

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert [row["value"] for row in rows] == VALUES[:9] + VALUES[10:20]
        (letter,) = dead
        assert (letter["reason"], letter["partition"], letter["offset"]) == ("truncated", 0, 9)
        assert f"{tmp_path}/a byte {len(data) - 24}" in letter["detail"]

    read(sources.ReadFramedFiles(f"{tmp_path}/*"), check)


def test_a_truncated_compressed_file_gives_what_could_be_decompressed(tmp_path: Path) -> None:
    data = join_frames(pa.array(VALUES, pa.binary()), TF_RECORDS).to_pybytes()
    (tmp_path / "a.gz").write_bytes(gzip.compress(data)[:-100])

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert 0 < len(rows) < len(VALUES)
        assert [row["value"] for row in rows] == VALUES[: len(rows)]
        (letter,) = dead
        assert (letter["reason"], letter["offset"]) == ("truncated", len(rows))

    read(sources.ReadTfRecordFiles(f"{tmp_path}/*"), check)


def test_after_damage_a_tf_record_file_goes_on(tmp_path: Path) -> None:
    data = bytearray(join_frames(pa.array(VALUES[:10], pa.binary()), TF_RECORDS).to_pybytes())
    size = len(VALUES[0]) + 16
    data[3 * size] ^= 1  # a length
    data[6 * size + 12] ^= 1  # a payload
    (tmp_path / "a").write_bytes(data)

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert [row["value"] for row in rows] == [VALUES[number] for number in (0, 1, 2, 4, 5, 7, 8, 9)]
        assert [(row["reason"], row["offset"]) for row in dead] == [("malformed_frame", 3), ("bad_checksum", 6)]

    read(sources.ReadTfRecordFiles(f"{tmp_path}/a"), check)


def test_lines_that_are_blank_are_no_records_but_count(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'{"a": 1}\n\n' + b" \t" * 99 + b'\n{"a": 2}\r\n{"a": 3}')

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert [(row["offset"], json.loads(row["value"])["a"]) for row in rows] == [(0, 1), (3, 2), (4, 3)]
        assert dead == []

    read(sources.ReadJsonLines(f"{tmp_path}/a"), check)


def test_a_line_that_is_too_long_is_one_dead_letter(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1\n" + b"x" * 5000 + b"\n2\n")

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert [(row["offset"], row["value"]) for row in rows] == [(0, b"1"), (2, b"2")]
        assert [(row["offset"], row["reason"], len(row["value"])) for row in dead] == [(1, "too_large", 5001)]

    read(sources.ReadJsonLines(f"{tmp_path}/a", max_record_bytes=1000), check)


def test_damaged_event_files_fail_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:-12])
    with pytest.raises(Exception, match="damaged"), TestPipeline() as pipeline:
        _ = pipeline | ReadEventFiles(f"{tmp_path}/*", "events", "--files")


def test_parquet_is_read_by_row_groups_and_columns(tmp_path: Path) -> None:
    table = pa.table({"f": [[1, 2], [3], None, []], "g": [1.0, 2.0, None, 4.0], "__REQ_TIME__": [10, 11, 12, 13]})
    pq.write_table(table, tmp_path / "a", row_group_size=3)

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert dead == []
        assert [row["f"] for row in rows] == [[1, 2], [3], None, []]
        assert [row["__REQ_TIME__"] for row in rows] == [10, 11, 12, 13]
        assert [row["__SOURCE_OFFSET__"] for row in rows] == [0, 1, 2, 3]
        assert "g" not in rows[0]

    columns = ["__REQ_TIME__", "f"]
    read(sources.ReadParquetFiles(f"{tmp_path}/*", columns, {"f": "fid_v2"}, batch_rows=2), check)


@pytest.mark.parametrize(
    ("columns", "types", "problem"),
    [
        (["h"], {}, "has no such column"),
        (["f", "f"], {}, "is there twice"),
        (None, {"g": "fid_v2"}, "cannot be read as fid_v2"),
        (None, {"g": "text"}, "is no kind of column"),
    ],
)
def test_wrong_parquet_columns_are_refused_before_anything_runs(
    tmp_path: Path, columns: list[str] | None, types: dict[str, str], problem: str
) -> None:
    pq.write_table(pa.table({"f": [[1]], "g": [1.0]}), tmp_path / "a")
    with pytest.raises(UserError, match=problem):
        sources.ReadParquetFiles(f"{tmp_path}/*", columns, types)


def test_a_parquet_file_of_other_types_is_one_dead_letter_that_names_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"f": [[1]]}), tmp_path / "a")
    pq.write_table(pa.table({"f": [{"x": 1}]}), tmp_path / "b")
    (tmp_path / "c").write_bytes(b"PAR1 no, it is not PAR1")

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert [row["f"] for row in rows] == [[1]]
        assert [row["partition"] for row in dead] == [1, 2]
        assert "column f" in dead[0]["detail"]

    read(sources.ReadParquetFiles(f"{tmp_path}/*"), check)


def test_avro_files_are_read_by_a_readers_schema(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as file:
        write_avro(file, [canonical_batch(10)])
    schema = {
        "type": "record",
        "name": "Row",
        "fields": [
            {"name": "__UID__", "type": ["null", "long"]},
            {"name": "extra", "type": "long", "default": 7},
        ],
    }

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert dead == []
        assert [row["__UID__"] for row in rows] == canonical_batch(10).column("__UID__").to_pylist()
        assert {tuple(row["extra"]) for row in rows} == {(7,)}

    read(sources.ReadAvroFiles(f"{tmp_path}/*", schema), check)


def test_a_file_that_is_no_avro_or_arrow_file_is_one_dead_letter(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello")

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert rows == []
        assert len(dead) == 1

    read(sources.ReadAvroFiles(f"{tmp_path}/a"), check)
    read(sources.ReadArrowFiles(f"{tmp_path}/a"), check)


@pytest.mark.parametrize("source", ["ReadFramedFiles", "ReadParquetFiles", "ReadAvroFiles", "ReadArrowFiles"])
def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError, match="no file matches"):
        getattr(sources, source)(f"{tmp_path}/none", field="--files")


def write(batches: list[pa.RecordBatch], sink: beam.PTransform, names: list[str], folder: Path) -> None:
    with TestPipeline() as pipeline:
        paths = pipeline | beam.Create(batches) | sink
        assert_that(paths, equal_to([f"{folder}/{name}" for name in names]))


CANONICAL = [
    (file_sinks.WriteParquetFiles, sources.ReadParquetFiles, "parquet"),
    (file_sinks.WriteAvroFiles, sources.ReadAvroFiles, "avro"),
    (file_sinks.WriteArrowFiles, sources.ReadArrowFiles, "arrow"),
]


@pytest.mark.parametrize(("sink", "source", "suffix"), CANONICAL)
def test_canonical_rows_that_are_written_are_read_again(tmp_path: Path, sink: Any, source: Any, suffix: str) -> None:
    batch = canonical_batch(100)
    parts = [batch.slice(0, 30), batch.slice(30, 0), batch.slice(30)]
    write(parts, sink(str(tmp_path), 2), [f"part-0000{shard}-of-00002.{suffix}" for shard in (0, 1)], tmp_path)

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert dead == []
        assert rows == batch.to_pylist()

    read(source(f"{tmp_path}/*.{suffix}"), check)


@pytest.mark.parametrize(("sink", "source", "suffix"), CANONICAL)
def test_a_retried_write_gives_the_same_file(tmp_path: Path, sink: Any, source: Any, suffix: str) -> None:
    batch = canonical_batch(50)
    name = f"part-00000-of-00001.{suffix}"
    write([batch.slice(0, 20), batch.slice(20)], sink(str(tmp_path), 1), [name], tmp_path)
    before = (tmp_path / name).read_bytes()
    write([batch.slice(20), batch.slice(0, 20)], sink(str(tmp_path), 1), [name], tmp_path)
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("sink", "source", "suffix"),
    [
        (file_sinks.WriteFramedFiles, sources.ReadFramedFiles, "bin"),
        (file_sinks.WriteTfRecordFiles, sources.ReadTfRecordFiles, "tfrecord"),
        (file_sinks.WriteJsonLines, sources.ReadJsonLines, "jsonl"),
    ],
)
@pytest.mark.parametrize("kind", [Compression.NO, Compression.ZSTD])
def test_raw_records_that_are_written_are_read_again(
    tmp_path: Path, sink: Any, source: Any, suffix: str, kind: Compression
) -> None:
    ending = ".zst" if kind == Compression.ZSTD else ""
    blocks = [events_block(VALUES[:300]), events_block(VALUES[300:], first_offset=300)]
    write(blocks, sink(str(tmp_path), compression=kind), [f"part-00000-of-00001.{suffix}{ending}"], tmp_path)

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert [row["value"] for row in rows] == VALUES

    read(source(f"{tmp_path}/*"), check)


def test_hourly_files_lie_in_the_folder_of_their_event_time(tmp_path: Path) -> None:
    hour = 1_764_000_000 // 3600 * 3600
    times = pa.array([hour * 1000, (hour + 3599) * 1000, (hour + 3600) * 1000, None, -5])
    batch = pa.RecordBatch.from_arrays([times], ["__EVENT_TIME_MS__"])
    names = [
        "dt=20251124/hour=16/part-00000-of-00001.parquet",
        "dt=20251124/hour=17/part-00000-of-00001.parquet",
        "dt=unknown/hour=unknown/part-00000-of-00001.parquet",
    ]
    rows = [with_provenance(batch)]
    write(rows, file_sinks.WriteParquetFiles(str(tmp_path), hourly=True), names, tmp_path)
    assert [pq.read_metadata(tmp_path / name).num_rows for name in names] == [2, 1, 2]


def test_dead_letters_in_a_parquet_file_do_not_say_that_they_are_rows(tmp_path: Path) -> None:
    row = {"value": b"v", "topic": "t", "partition": 0, "offset": 7, "reason": "truncated"}
    dead = pa.RecordBatch.from_pylist([row], schema=dead_letter.SCHEMA)
    name = "part-00000-of-00001.parquet"
    write([dead], file_sinks.WriteParquetFiles(str(tmp_path / "dead")), [name], tmp_path / "dead")
    write([canonical_batch(3)], file_sinks.WriteParquetFiles(str(tmp_path / "rows")), [name], tmp_path / "rows")
    assert [is_canonical(pq.read_schema(tmp_path / kind / name)) for kind in ("dead", "rows")] == [False, True]


def test_each_window_has_files_of_its_own(tmp_path: Path) -> None:
    batch = canonical_batch(10)
    with TestPipeline() as pipeline:
        blocks = pipeline | beam.Create([(0, batch.slice(0, 4)), (60, batch.slice(4, 3)), (61, batch.slice(7))])
        stamp = beam.MapTuple(lambda second, rows: TimestampedValue(rows, second)).with_output_types(pa.RecordBatch)
        paths = blocks | stamp | beam.WindowInto(FixedWindows(60)) | file_sinks.WriteParquetFiles(str(tmp_path))
        names = ["part-00000-of-00001-19700101T000000.parquet", "part-00000-of-00001-19700101T000100.parquet"]
        assert_that(paths, equal_to([f"{tmp_path}/{name}" for name in names]))
    assert [pq.read_metadata(tmp_path / name).num_rows for name in names] == [4, 6]


def test_a_line_with_a_line_feed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="line feed"), TestPipeline() as pipeline:
        _ = pipeline | beam.Create([events_block([b"a\nb"])]) | file_sinks.WriteJsonLines(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(file: io.BufferedWriter) -> None:
        file.write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        publish(str(path), fail)
    assert path.read_bytes() == b"old"


def test_arrow_streams_are_read_as_arrow_files_are(tmp_path: Path) -> None:
    batch = mark_canonical(canonical_batch(5))
    (tmp_path / "a").write_bytes(record_batch.to_bytes(batch))

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert rows == batch.to_pylist()

    read(sources.ReadArrowFiles(f"{tmp_path}/a"), check)


def test_sources_and_sinks_show_their_settings(tmp_path: Path) -> None:
    frame_file(tmp_path / "a", VALUES[:1])
    shown = sources.ReadFramedFiles(f"{tmp_path}/a").display_data()
    assert shown["files"] == 1 and "has_sort_id=True" in shown["framing"]
    assert file_sinks.WriteParquetFiles("out", 3, hourly=True).display_data() == {
        "folder": "out",
        "shards": 3,
        "hourly": True,
    }


@pytest.mark.parametrize("name", ["GZIP", "gzip"])
def test_a_compression_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    with TestPipeline() as pipeline:
        blocks = pipeline | beam.Create([events_block(VALUES)])
        _ = blocks | file_sinks.WriteFramedFiles(str(tmp_path / "out"), compression=name)
    (written,) = (tmp_path / "out").iterdir()
    assert written.suffix == ".gz"
    renamed = written.rename(tmp_path / "plain-name")

    def check(rows: list[dict], dead: list[dict]) -> None:
        assert [row["value"] for row in rows] == VALUES
        assert not dead

    read(sources.ReadFramedFiles(str(renamed), compression=name), check)


@pytest.mark.parametrize("given", ["brotli", "", 5])
def test_an_unknown_compression_is_refused_before_anything_runs(tmp_path: Path, given: Any) -> None:
    frame_file(tmp_path / "a.bin", VALUES[:2])
    for make in (
        lambda: file_sinks.WriteTfRecordFiles(str(tmp_path / "out"), compression=given),
        lambda: sources.ReadFramedFiles(str(tmp_path / "a.bin"), compression=given),
    ):
        with pytest.raises(UserError, match="compression=.*choose UNKNOWN, NO, SNAPPY, ZSTD, ZLIB, GZIP"):
            make()
