"""Feeds of records: every format gives the same train rows, with state or without; bad ones are dead letters."""

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.cli import main
from millrace.pipelines.feed.launch import FeedFailedError, run_feed
from millrace.pipelines.feed.options import FeedOptions, RecordFiles, RecordFormat, Tuning
from millrace.pipelines.files.decode import make_decoder
from millrace.pipelines.files.format import RecordSettings
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch, train_check
from millrace.transforms.batch.provenance import provenance_of, with_provenance
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.codecs.record_codec import encode_records
from millrace.transforms.codecs.tf_example import TfExampleOptions, decode_tf_examples, encode_tf_examples
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.feed.shards import by_partition
from millrace.transforms.frames.framing import FILE_FRAMES, TF_RECORDS, FrameOptions, join_frames
from millrace.transforms.recipe.chain import TransformChain
from tests.conformance.covers import covers
from tests.reference.file_batches import events_block
from tests.reference.record_rows import random_rows

_CONFIG = FeedConfig(
    "m", (FidFeature("user", 1, "user_id"), FidFeature("item", 2, "item_id")), (LabelRule("click", ("click",)),)
)
_FILTER = "steps: [{filter_by_action: {has_actions: [1, 2]}}, {negative_sample: {drop_rate: 0.3, threshold: 0.5}}]"
_NEGATIVES = "steps: [{generate_negatives: {neg_num: 2, item_features: [item], start_num: 5}}]"


def _write(path: Path, rows: pa.RecordBatch, format: str, bad: bytes | None = None) -> None:
    values = encode_records(rows, format).to_pylist()
    if bad is not None:
        values[len(values) // 2 : len(values) // 2] = [bad]
    path.write_bytes(join_frames(pa.array(values, pa.binary()), FILE_FRAMES).to_pybytes())


def _fed(folder: Path, pattern: str, format: str, recipe: str, name: str = "rows") -> pa.Table:
    config = TransformChain.parse(recipe).config.SerializeToString()
    source = RecordFiles(str(folder / pattern), RecordFormat(format))
    options = FeedOptions(_CONFIG, source, folder / name, "direct", tuning=Tuning(2), recipe=config)
    run_feed(options, threading.Event())
    files = sorted((folder / name).glob("*.parquet"))
    return pa.concat_tables(pq.read_table(file) for file in files)


def _items(rows: pa.Table) -> list[tuple[object, ...]]:
    names = ("user", "item", "__LABEL__", "__UID__", "__SOURCE_PARTITION__", "__SOURCE_OFFSET__", "__SOURCE_ROW__")
    return sorted(zip(*(map(str, rows[name].to_pylist()) for name in names), strict=True))


@pytest.mark.parametrize("format", ["example", "instance"])
def test_records_in_framed_files_become_train_rows(format: str, tmp_path: Path) -> None:
    for number in range(2):
        _write(tmp_path / f"part-{number}", random_rows(100, number), format)
    fed = _fed(tmp_path, "part-*", format, _FILTER)
    (batch,) = fed.combine_chunks().to_batches()
    train_check.validate_train_batch(batch, ["user", "item"], 1)
    chain = TransformChain.parse(_FILTER)
    kept = sum(chain.process(with_provenance(random_rows(100, n), n)).num_rows for n in range(2))
    assert fed.num_rows == kept > 20


def test_tf_examples_in_a_tfrecord_file_become_train_rows(tmp_path: Path) -> None:
    options = TfExampleOptions({"user": 1, "item": 2}, label="__LABEL__")
    rows = random_rows(40)
    values = encode_tf_examples(rows, options)
    (tmp_path / "part.tfrecord").write_bytes(join_frames(values, TF_RECORDS).to_pybytes())
    expected, dead = decode_tf_examples(events_block(values.to_pylist()), options)
    source = RecordFiles(str(tmp_path / "part.tfrecord"), RecordFormat("tf_example", tf_example=options))
    run_feed(FeedOptions(_CONFIG, source, tmp_path / "rows", "direct"), threading.Event())
    fed = pa.concat_tables(pq.read_table(file) for file in (tmp_path / "rows").glob("*.parquet"))
    assert dead.num_rows == 0
    assert fed.num_rows == 40
    for name in ("user", "item"):
        assert fed[name].to_pylist() == [fids or [] for fids in expected.column(name).to_pylist()], name
    first = [labels[0] if labels else record_batch.INVALID_LABEL for labels in expected.column("__LABEL__").to_pylist()]
    assert fed["__LABEL__"].to_pylist() == [[label] for label in first]
    assert fed["__SOURCE_OFFSET__"].to_pylist() == list(range(40))


def test_a_container_of_rows_gives_what_records_of_the_same_rows_give(tmp_path: Path) -> None:
    rows = random_rows(80)
    _write(tmp_path / "rows.pb", rows, "example")
    plain = rows.drop_columns([n for n in rows.schema.names if n.startswith("__SOURCE")])
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, plain.schema) as writer:
        writer.write_batch(plain)
    pq.write_table(pa.Table.from_batches([plain]), tmp_path / "rows.pq", row_group_size=30)
    expected = _items(_fed(tmp_path, "rows.pb", "example", _FILTER, "a"))
    assert _items(_fed(tmp_path, "rows.arrow", "arrow", _FILTER, "b")) == expected
    assert _items(_fed(tmp_path, "rows.pq", "parquet", _FILTER, "c")) == expected


def _with_unreadable_column(path: Path, name: str) -> None:
    """Writes rows to a Parquet file in which the column `name` cannot be a feature."""
    rows = random_rows(80)
    plain = pa.Table.from_batches([rows.drop_columns([n for n in rows.schema.names if n.startswith("__SOURCE")])])
    pq.write_table(plain.append_column(name, pa.array([{"a": 1}] * 80)), path)


def test_a_feed_reads_no_other_columns_of_parquet_than_the_task_and_the_recipe_need(tmp_path: Path) -> None:
    _with_unreadable_column(tmp_path / "rows.pq", "unused")
    assert _fed(tmp_path, "rows.pq", "parquet", _FILTER).num_rows > 10
    _with_unreadable_column(tmp_path / "rows.pq", "used")
    used = "steps: [{mask_fid: {feature_name: used, fid: 1, output_name: m}}]"
    with pytest.raises(UserError, match="column used"):
        _fed(tmp_path, "rows.pq", "parquet", used, "refused")


def test_a_feed_keeps_the_rows_of_a_parquet_file_without_any_column_that_it_needs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"other": [[1]] * 7}), tmp_path / "rows.pq")
    fed = _fed(tmp_path, "rows.pq", "parquet", "steps: []")
    assert fed["user"].to_pylist() == [[]] * 7


def test_generated_negatives_of_stored_records_are_the_same_in_every_run(tmp_path: Path) -> None:
    for number in range(3):
        _write(tmp_path / f"part-{number}", random_rows(100, number), "example")
    first, again = (_fed(tmp_path, "part-*", "example", _NEGATIVES, name) for name in ("first", "again"))
    assert first.num_rows > 300
    assert _items(first) == _items(again)


def test_a_feed_of_stored_records_fills_its_pools_in_a_first_pass(tmp_path: Path) -> None:
    _write(tmp_path / "part", random_rows(100), "example")
    cold = _fed(tmp_path, "part", "example", _NEGATIVES, "cold")
    warm = _fed(tmp_path, "part", "example", _NEGATIVES.replace("neg_num: 2", "neg_num: 2, warm: true"), "warm")
    assert cold.num_rows < warm.num_rows


def test_a_bad_record_is_one_dead_letter_and_its_neighbours_are_rows(tmp_path: Path) -> None:
    _write(tmp_path / "part", random_rows(50), "example", bad=b"\xff\xff\xff")
    fed = _fed(tmp_path, "part", "example", "steps: []")
    assert fed.num_rows == 50
    dead = pq.read_table(tmp_path / "rows" / "dead-letters")
    assert (dead["reason"].to_pylist(), dead["value"].to_pylist()) == (["malformed_proto"], [b"\xff\xff\xff"])


def test_a_file_of_bad_records_stops_the_feed(tmp_path: Path) -> None:
    values = pa.array([b"\xff\xff\xff"] * 2500, pa.binary())
    (tmp_path / "part").write_bytes(join_frames(values, FILE_FRAMES).to_pybytes())
    with pytest.raises(FeedFailedError, match=r"cannot be read \(malformed_proto 2500"):
        _fed(tmp_path, "part", "example", "steps: []")


@covers("data:v7")
def test_a_kafka_value_with_two_frames_gives_two_rows_of_one_source_record() -> None:
    values = encode_records(random_rows(2), "example")
    two = join_frames(values, FrameOptions()).to_pybytes()
    block = raw_block("records", [two, two], 3, [7, 8])
    rows, dead = make_decoder(RecordSettings("example"), FrameOptions())(block)
    assert dead.num_rows == 0
    assert list(zip(*(each.tolist() for each in provenance_of(rows)), strict=True)) == [
        (3, 7, 0),
        (3, 7, 1),
        (3, 8, 0),
        (3, 8, 1),
    ]


def test_rows_of_one_partition_stay_in_one_shard_in_order() -> None:
    rows = pa.concat_batches([with_provenance(random_rows(10, n), n, 5) for n in range(4)])
    shards = dict(by_partition(rows, 3))
    assert {n: set(part.column("__SOURCE_PARTITION__").to_pylist()) for n, part in shards.items()} == {
        0: {0, 3},
        1: {1},
        2: {2},
    }
    assert shards[0].column("__SOURCE_OFFSET__").to_pylist() == [*range(5, 15), *range(5, 15)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--records", "xml", "--records-topic", "t"], "--records=xml: unknown; choose example"),
        (["--records", "example"], "give one of them"),
        (["--records", "tf_example", "--records-topic", "t"], "--tf-features=: missing, and topic:t holds tf.Examples"),
        (["--records-topic", "t"], "name the format of the records of --records-topic"),
        (
            ["--records", "example", "--records-topic", "t", "--frames", "sort"],
            "--frames=sort: unknown; choose",
        ),
        (["--records", "example", "--record-files", "x", "--runner", "direct"], "no output; add --output-parquet"),
    ],
)
def test_flags_of_records_that_contradict_each_other_are_refused(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["feed", "--task", "millrace.examples.feed_ranking:FeedRanking", "--kafka", "x:1", *flags]) == 2
    assert words in capsys.readouterr().err
