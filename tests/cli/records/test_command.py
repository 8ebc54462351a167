"""`millrace records` on files: every format, good and bad records, and what two sources differ in."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.cli import main
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.codecs.record_codec import encode_records
from millrace.transforms.codecs.tables import mark_canonical
from millrace.transforms.frames.framing import FILE_FRAMES, TF_RECORDS, Framing, join_frames
from millrace.transforms.recipe.chain import TransformChain
from millrace.transforms.steps.sharding.shard_layout import ShardLayout
from millrace.transforms.steps.sharding.sharded_batch import ShardedFids
from millrace.transforms.steps.sharding.sharded_fids import shard_with
from tests.conftest import RunCli
from tests.reference.record_rows import random_rows

BAD = b"\xff\xff"
_V1 = ["fc_slot_1", "fc_slot_2"]


def run(*arguments: str | Path) -> int:
    parsed = main._parse(["records", *map(str, arguments)])
    code = parsed.run(parsed)
    assert isinstance(code, int)
    return code


def write(
    path: Path, rows: pa.RecordBatch, format: str = "example", bad: int = 0, framing: Framing = FILE_FRAMES
) -> Path:
    """Framed records of `rows`; `bad` bad ones follow the third."""
    values = encode_records(rows.drop_columns([name for name in _V1 if name in rows.schema.names]), format).to_pylist()
    values[3:3] = [BAD] * bad
    path.write_bytes(join_frames(pa.array(values, pa.binary()), framing).to_pybytes())
    return path


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def facts(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run(*arguments, "--json") == code
    (found,) = lines(capsys)
    return found


@pytest.fixture
def rows() -> pa.RecordBatch:
    return random_rows(50)


# head


def test_head_prints_the_first_rows_of_all_files(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "part-0", rows.slice(0, 4))
    write(tmp_path / "part-1", rows.slice(4))
    assert run("head", tmp_path / "part-{INT(0, 1)}", "--records", "example", "-n", "6") == 0
    found = lines(capsys)
    assert [row["__REQ_TIME__"] for row in found] == rows.column("__REQ_TIME__").to_pylist()[:6]
    assert [row["__SOURCE_PARTITION__"] for row in found] == [0] * 4 + [1] * 2
    assert [row.get("user") for row in found] == rows.column("user").to_pylist()[:6]


def test_head_tells_which_records_it_passed_over(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "part", rows, bad=2)
    assert run("head", path, "--records", "example", "-n", "50") == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 50
    assert (
        output.err == "2 records before the end of these rows cannot be read: malformed_proto 2 (malformed at byte 0)\n"
    )


def test_head_shows_slots_and_chosen_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = pa.RecordBatch.from_pylist(
        [{"item": [(2 << 48) | 9], "other": [1]}],
        schema=pa.schema([record_batch.fid_field("item"), ("other", pa.list_(pa.int64()))]),
    )
    path = write(tmp_path / "part", batch)
    assert run("head", path, "--records", "example", "--fids", "--columns", "item") == 0
    assert lines(capsys) == [{"item": ["2/9"]}]
    with pytest.raises(UserError, match="choose of item, other"):
        run("head", path, "--records", "example", "--columns", "nothing")


def test_head_shows_fids_v1_as_they_are_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    field = pa.field("fc_slot_700", pa.list_(pa.int64()), metadata=record_batch.FID_V1_METADATA)
    number = (700 << 54) | (1 << 50) | 5
    batch = pa.RecordBatch.from_arrays([pa.array([[number - (1 << 64)]])], schema=pa.schema([field]))
    path = tmp_path / "part"
    path.write_bytes(join_frames(encode_records(batch, "instance"), FILE_FRAMES).to_pybytes())
    for flags, expected in (
        ((), [(700 << 48) | 5]),
        (("--fids-v1",), [number]),
        (("--fids-v1", "--fids"), [f"v1:700/{(1 << 50) | 5}"]),
    ):
        assert run("head", path, "--records", "instance", "--columns", "fc_slot_700", *flags) == 0
        assert lines(capsys) == [{"fc_slot_700": expected}]


def test_head_filters_rows_by_a_recipe(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "rows.yaml"
    recipe.write_text("steps: [{filter_by_value: {field_name: rank, op: gt, int_operand: [15]}}]")
    path = write(tmp_path / "part", rows)
    assert run("head", path, "--records", "example", "-n", "3", "--where", recipe) == 0
    found = [row["__RANK__"] for row in lines(capsys)]
    assert found == [rank for rank in rows.column("__RANK__").to_pylist() if (rank or 0) > 15][:3]


def test_head_prints_a_table_for_people(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "part", rows)
    assert run("head", path, "--records", "example", "--format", "table", "-n", "2") == 0
    text = capsys.readouterr().out
    assert "row 1" in text and "row 2" in text and "row 3" not in text
    assert any(line.split()[:2] == ["__REQ_TIME__", "1764000000"] for line in text.splitlines())


def test_head_shows_json_with_a_column_for_each_inner_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": "r-1", "context": {"device": {"name": "phone"}}, "at": "2026-01-01T00:00:00Z"},
        {"id": "r-2", "ids": [1, 2], "new": True},
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(["no JSON", *map(json.dumps, rows)]))
    assert run("head", tmp_path / "events.jsonl", "--columns", "id,context.device.name,at,ids,new") == 0
    output = capsys.readouterr()
    assert [json.loads(line) for line in output.out.splitlines()] == [
        {"id": "r-1", "context.device.name": "phone", "at": "2026-01-01T00:00:00Z"},
        {"id": "r-2", "ids": [1, 2], "new": 1},
    ]
    assert "1 record before the end of these rows cannot be read: malformed_json 1" in output.err


def test_a_file_that_is_of_another_format_is_told_as_one(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.parquet", rows)
    assert run("head", path) == 0
    output = capsys.readouterr()
    assert output.out == "" and "malformed_frame 1" in output.err and "Parquet magic bytes" in output.err


# stat


def test_stat_counts_what_is_there(rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "part", rows, bad=2)
    found = facts(capsys, "stat", path, "--records", "example")
    assert (found["records"], found["rows"]) == (52, 50)
    assert found["dead_letters"] == {"malformed_proto": {"records": 2, "first": "malformed at byte 0"}}
    assert found["partitions"] == {"0": {"records": 52, "first": 0, "last": 51}}
    users = rows.column("user")
    values = users.flatten().to_pylist()
    assert found["features"]["user"] == {
        "type": "list<fid>",
        "rows": 50 - users.null_count,
        "values": len(values),
        "distinct": len(set(values)),
        "slots": {"min": 1, "max": 1},
        "lengths": found["features"]["user"]["lengths"],
    }
    assert sum(found["features"]["user"]["lengths"].values()) == 50 - users.null_count
    ranks = rows.column("__RANK__").drop_null().to_pylist()
    rank = found["features"]["__RANK__"]
    assert (rank["min"], rank["max"], rank["distinct"]) == (min(ranks), max(ranks), len(set(ranks)))
    assert found["times"] == {"req_time": {"min": 1_764_000_000, "max": 1_764_000_049}}
    labels = [row[0] for row in rows.column("__LABEL__").to_pylist() if row]
    assert found["labels"][0] == {f"{value:g}": labels.count(value) for value in set(labels)}
    actions = rows.column("__ACTIONS__").flatten().to_pylist()
    assert found["actions"] == {str(value): actions.count(value) for value in set(actions)}


def test_stat_shows_a_person_the_same(rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stat", write(tmp_path / "part", rows, bad=1), "--records", "example") == 0
    text = capsys.readouterr().out
    assert ": 51 records, " in text and ", 50 rows\n" in text
    assert "req_time: 2025-11-24 16:00:00 to 2025-11-24 16:00:49" in text
    assert "malformed_proto" in text and "slot 1" in text and "█" in text


def test_stat_reads_rows_as_well_and_stops_at_a_limit(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        pq.write_table(pa.Table.from_batches([rows]), tmp_path / f"{number}.parquet")
    assert facts(capsys, "stat", tmp_path / "*.parquet")["rows"] == 150
    assert facts(capsys, "stat", tmp_path / "*.parquet", "--limit", "60")["rows"] == 100


def test_stat_shows_a_person_columns_whose_rows_a_recipe_has_all_dropped(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "none.yaml"
    recipe.write_text("steps: [{filter_by_value: {field_name: uid, op: in, int_operand: [-1]}}]\n")
    assert run("stat", write(tmp_path / "part", rows), "--records", "example", "--where", recipe) == 0
    shown = capsys.readouterr().out
    assert "50 records" in shown and "0 rows" in shown
    assert re.search(r"^user +fid\[\] +0\.0%", shown, re.MULTILINE)


def test_stat_of_nothing_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "part").write_bytes(b"")
    assert run("stat", tmp_path / "part", "--records", "example") == 0
    found = facts(capsys, "stat", tmp_path / "part", "--records", "example")
    assert (found["records"], found["rows"], found["features"]) == (0, 0, {})


# convert


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("rows.avro", ""),
        ("rows.arrow", ""),
        ("rows.tfrecord.gz", "--to example"),
        ("rows.snappy", "--to example"),
        ("rows.zlib", "--to example --to-frames kafka-dump,sort-id"),
        ("rows", "--to example_batch"),
    ],
)
def test_rows_survive_every_format(
    name: str, flags: str, rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, parquet = write(tmp_path / "part", rows), tmp_path / "rows.parquet"
    assert run("convert", path, parquet, "--records", "example") == 0
    assert run("convert", parquet, tmp_path / name, *flags.split()) == 0
    back = flags.replace("--to-frames", "--frames").replace("--to", "--records-b").split()
    difference = facts(capsys, "diff", parquet, tmp_path / name, *back, "--key", "__REQ_TIME__")
    assert difference["equal"] and difference["rows_b"] == 50


def test_rows_survive_json_that_is_told_its_types(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    types = tmp_path / "types.json"
    types.write_text('{"price": 3, "user": 2}')
    path, lines_path = write(tmp_path / "part", rows), tmp_path / "rows.jsonl.zst"
    assert run("convert", path, lines_path, "--records", "example") == 0
    again = tmp_path / "again"
    assert run("convert", lines_path, again, "--to", "example", "--column-types", types) == 0
    difference = facts(capsys, "diff", path, again, "--records", "example", "--key", "__REQ_TIME__")
    assert difference["equal"]


def test_an_instance_holds_all_but_empty_features(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "part", rows)
    assert run("convert", path, tmp_path / "instances", "--records", "example", "--to", "instance") == 0
    both = ("diff", path, tmp_path / "instances", "--records", "example", "--records-b", "instance", "--limit", "50")
    changed = facts(capsys, *both, code=1)["examples"]
    assert all(not value for each in changed for name, value in each["a"].items() if name not in _PLACE)


def test_tf_examples_need_a_description_and_come_back(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = tmp_path / "features.yaml"
    features.write_text("sparse_features: {user: 1, item: 2}\ndense_features: [price]\nlabel: label\n")
    path = write(tmp_path / "part", rows)
    with pytest.raises(UserError, match="--tf-features"):
        run("convert", path, tmp_path / "rows.tfrecord", "--records", "example")
    assert run("convert", path, tmp_path / "rows.tfrecord", "--records", "example", "--tf-features", features) == 0
    capsys.readouterr()
    assert run("head", tmp_path / "rows.tfrecord", "--tf-features", features, "-n", "50") == 0
    found = lines(capsys)
    assert [row.get("user") or None for row in found] == [user or None for user in rows.column("user").to_pylist()]


def test_a_recipe_is_applied_on_the_way(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "rows.yaml"
    recipe.write_text("steps: [{negative_sample: {drop_rate: 0.5, threshold: 0.5}}]")
    path = write(tmp_path / "part", rows)
    result = facts(capsys, "convert", path, tmp_path / "rows.parquet", "--records", "example", "--recipe", recipe)
    assert result["rows_read"] == 50 > result["rows_written"] > 0
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == result["rows_written"]
    recipe.write_text("steps: [{negative_sample: {drop_rate: 2}}]")
    with pytest.raises(UserError, match=r"rows.yaml:1: steps\[0\]"):
        run("convert", path, tmp_path / "rows.parquet", "--records", "example", "--recipe", recipe)


def test_bad_records_refuse_the_conversion_or_go_to_a_file_of_their_own(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, dest, dead = write(tmp_path / "part", rows, bad=2), tmp_path / "rows.arrow", tmp_path / "dead.parquet"
    assert run("convert", path, dest, "--records", "example") == 1
    assert "2 records cannot be read, so nothing was written: malformed_proto 2" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["part"]
    result = facts(capsys, "convert", path, dest, "--records", "example", "--dead-letters", dead)
    assert (result["rows_written"], result["dead_letters"]["malformed_proto"]["records"]) == (50, 2)
    assert pq.read_table(dead)["value"].to_pylist() == [BAD, BAD]
    capsys.readouterr()
    assert run("head", dead, "--records", "dead_letter", "--columns", "offset,reason") == 0
    assert lines(capsys) == [{"offset": number, "reason": "malformed_proto"} for number in (3, 4)]


def test_a_column_that_turns_up_late_is_null_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("early", "late", "early")):
        write(tmp_path / f"part-{number}", pa.record_batch({name: pa.array([[number]], pa.list_(pa.int64()))}))
    assert run("convert", tmp_path / "part-*", tmp_path / "rows.parquet", "--records", "example") == 0
    table = pq.read_table(tmp_path / "rows.parquet")
    assert (table["early"].to_pylist(), table["late"].to_pylist()) == ([[0], None, [2]], [None, [1], None])
    assert table["__SOURCE_PARTITION__"].to_pylist() == [0, 1, 2]


def test_json_becomes_rows_where_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events, dest = tmp_path / "events.jsonl", tmp_path / "rows.parquet"
    events.write_text('{"id": 1, "context": {"hour": 3}}\n\n{"id": 2, "__REQ_TIME__": 7}\n')
    assert run("convert", events, dest) == 0
    capsys.readouterr()
    assert run("head", dest, "--columns", "id,context.hour,__REQ_TIME__,__SOURCE_OFFSET__") == 0
    first, second = {"id": 1, "context.hour": 3}, {"id": 2, "__REQ_TIME__": 7}
    assert lines(capsys) == [first | {"__SOURCE_OFFSET__": 0}, second | {"__SOURCE_OFFSET__": 2}]
    events.write_text('{"id": 1, "items": [{"id": 3}]}')
    with pytest.raises(UserError, match="column items=list<.*>: cannot be read as"):
        run("convert", events, dest)


@pytest.mark.parametrize("dest", ["rows.parquet", "rows.avro", "rows.arrow", "rows.jsonl", "rows.snappy"])
def test_nothing_becomes_a_file_of_no_rows(dest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").write_bytes(b"")
    to = ("--to", "example") if dest == "rows.snappy" else ()
    assert run("convert", tmp_path / "empty", tmp_path / dest, "--records", "example", *to) == 0
    assert (
        facts(capsys, "stat", tmp_path / dest, "--records", "example" if to else dest[5:].replace("jsonl", "json"))[
            "rows"
        ]
        == 0
    )


def test_a_column_of_two_types_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "part-0", pa.record_batch({"x": pa.array([[1]], pa.list_(pa.int64()))}))
    write(tmp_path / "part-1", pa.record_batch({"x": pa.array([[1.5]], pa.list_(pa.float32()))}))
    with pytest.raises(UserError, match=r"column x=list<.*float>: in earlier records it is list<.*int64>"):
        run("convert", tmp_path / "part-*", tmp_path / "rows.parquet", "--records", "example")
    assert not (tmp_path / "rows.parquet").exists()


def test_records_of_a_tfrecord_file_may_be_examples(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.tfrecord", rows, framing=TF_RECORDS)
    assert facts(capsys, "stat", path, "--records", "example")["rows"] == 50


def test_the_actions_of_a_feeds_rows_become_the_numbers_of_the_recipe_in_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = [record_batch.fid_field("item"), ("__LABEL__", pa.list_(pa.float32())), ("__UID__", pa.int64())]
    schema = pa.schema([*fields, ("__ACTIONS__", pa.list_(pa.string()))])
    rows = [
        {"item": [2 << 48 | n], "__LABEL__": [n % 2], "__UID__": 7, "__ACTIONS__": ["click"] if n % 2 else None}
        for n in range(40)
    ]
    feed = with_provenance(pa.RecordBatch.from_pylist(rows, schema=schema))
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.Table.from_batches([mark_canonical(feed)]), tmp_path / "rows" / "part-0.parquet")
    source, dest = f"{tmp_path}/rows/*.parquet", tmp_path / "examples.tfrecord.gz"
    with pytest.raises(UserError, match=r"__ACTIONS__.*give a recipe with action_ids: \{click: 1\}"):
        run("convert", source, dest, "--to", "example")
    assert not dest.exists()
    recipe = Path(__file__).resolve().parents[3] / "examples" / "recipes" / "full.yaml"
    assert run("convert", source, dest, "--to", "example", "--recipe", recipe) == 0
    capsys.readouterr()
    assert run("head", dest, "--records", "example", "-n", "100", "--columns", "__ACTIONS__,__LABEL__") == 0
    acted = [row for row in lines(capsys) if "__ACTIONS__" in row]
    assert acted == [{"__ACTIONS__": [1], "__LABEL__": [1.0]}] * 19


# diff


def _changed(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Without its first row, with another city in row 10 and 11, and with row 20 twice."""
    cities = rows.column("city").to_pylist()
    cities[10], cities[11] = [1, 2, 3, 4], [5, 6, 7, 8]
    rows = rows.set_column(rows.schema.get_field_index("city"), "city", pa.array(cities, pa.list_(pa.int64())))
    return rows.take(pa.array([*range(1, rows.num_rows), 20]))


def _parquet(path: Path, rows: pa.RecordBatch) -> Path:
    pq.write_table(pa.Table.from_batches([rows]), path)
    return path


def test_diff_names_rows_and_columns(rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = _parquet(tmp_path / "a.parquet", rows), _parquet(tmp_path / "b.parquet", _changed(rows))
    for key in ((), ("--key", "__REQ_TIME__")):
        found = facts(capsys, "diff", a, b, *key, code=1)
        assert not found["equal"]
        assert (found["rows_a"], found["rows_b"]) == (50, 50)
        assert (found["only_a"], found["only_b"], found["changed"]) == (1, 1, 2)
        assert found["columns"] == {"city": 2}
        only_a, only_b, *pairs = found["examples"]
        assert only_a["a"]["__REQ_TIME__"] == 1_764_000_000 and only_b["b"]["__REQ_TIME__"] == 1_764_000_020
        assert sorted(each["b"]["city"] for each in pairs) == [[1, 2, 3, 4], [5, 6, 7, 8]]
        assert all(set(each["b"]) - {"__REQ_TIME__"} <= {"city", *_PLACE} for each in pairs)


_PLACE = ("__SOURCE_PARTITION__", "__SOURCE_OFFSET__", "__SOURCE_ROW__")


def test_diff_shows_a_person_the_same(rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = _parquet(tmp_path / "a.parquet", rows), _parquet(tmp_path / "b.parquet", _changed(rows))
    assert run("diff", a, b) == 1
    text = capsys.readouterr().out
    assert "changed columns" in text and '"city":[5,6,7,8]' in text
    assert run("diff", a, a) == 0
    assert "the rows are equal, in the same order" in capsys.readouterr().out


def test_diff_counts_another_order_when_asked(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = _parquet(tmp_path / "a.parquet", rows)
    b = _parquet(tmp_path / "b.parquet", rows.take(pa.array([*range(1, 50), 0])))
    assert facts(capsys, "diff", a, b)["same_order"] is False
    assert facts(capsys, "diff", a, b, "--ordered", code=1)["equal"] is False


def test_diff_of_keys_that_are_not_there_names_them(rows: pa.RecordBatch, tmp_path: Path) -> None:
    a = _parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(UserError, match="--key=nothing: .*a.parquet has no such column"):
        run("diff", a, a, "--key", "nothing")


def test_diff_pairs_rows_of_a_key_that_is_there_often(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def file(name: str, values: list[int]) -> Path:
        batch = pa.record_batch({"key": pa.array([["k"]] * len(values)), "x": pa.array([[each] for each in values])})
        return _parquet(tmp_path / name, batch)

    a, b = file("a.parquet", [1, 1, 2, 3]), file("b.parquet", [1, 4, 4, 4, 5])
    found = facts(capsys, "diff", a, b, "--key", "key", code=1)
    assert (found["only_a"], found["only_b"], found["changed"], found["columns"]) == (0, 1, 3, {"x": 3})


# What is wrong is told in one line.


def test_mistakes_are_told_in_one_line(rows: pa.RecordBatch, tmp_path: Path) -> None:
    path = write(tmp_path / "part", rows)
    for arguments, problem in (
        (("head", path), "--records=: missing"),
        (("head", path, "--records", "nothing"), "--records=nothing: unknown"),
        (("head", tmp_path / "none*"), "--records=: missing"),
        (("head", tmp_path / "none*.parquet"), "SOURCE=.*: no file matches"),
        (("head", tmp_path, "--records", "parquet"), "cannot be read"),
        (("head", path, "--records", "example", "--frames", "x"), "--frames=x: unknown"),
        (("convert", path, "x", "--records", "example"), "--to=: missing"),
        (("convert", path, "topic:x", "--records", "example"), "DEST=topic:x: is a topic"),
        (("convert", path, path / "x.parquet", "--records", "example"), "DEST=.*: cannot be written"),
        (("convert", path, tmp_path / "x.jsonl", "--dead-letters", tmp_path / "x.jsonl"), "--dead-letters=.*as well"),
        (("convert", path, "x.jsonl", "--records", "example", "--dead-letters", path / "bad"), f"exists: {path}"),
        (("convert", path, "x.parquet.gz", "--records", "example"), "compresses by itself"),
        (("replay", path), "TOPIC=: missing"),
        (("replay", path, "x", "--reason", "malformed_proto"), "add --from-dead-letters"),
    ):
        with pytest.raises(UserError, match=problem):
            run(*arguments)


def test_a_reader_that_leaves_ends_the_command(rows: pa.RecordBatch, tmp_path: Path, run_millrace: RunCli) -> None:
    path = write(tmp_path / "part", random_rows(3000))
    done = run_millrace("records", "head", str(path), "--records", "example", "-n", "2", timeout=120)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 2, "")


# pools of items


def test_convert_writes_the_pools_that_the_next_run_starts_from(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, recipe, pools = write(tmp_path / "part", rows), tmp_path / "recipe.yaml", tmp_path / "pools"
    pools.mkdir()
    step = f"neg_num: 2, item_features: [item], start_num: 5, positive_label: 1, snapshot_folder: {pools}"
    recipe.write_text(f"steps: [{{generate_negatives: {{{step}}}}}]")
    arguments = ("convert", source, tmp_path / "out.arrow", "--records", "example", "--recipe", recipe)
    first = facts(capsys, *arguments, "--save-pools")
    second = facts(capsys, *arguments)
    assert second["rows_written"] > first["rows_written"]
    assert [path.name for path in pools.iterdir()] == ["model.ckpt-0_item_pool_0_0_1"]
    recipe.write_text(f"steps: [{{generate_negatives: {{{step}, warm: true}}}}]".replace(str(pools), str(tmp_path)))
    assert facts(capsys, *arguments)["rows_written"] == second["rows_written"]


def test_convert_says_that_no_step_has_a_folder_for_its_pools(rows: pa.RecordBatch, tmp_path: Path) -> None:
    source = write(tmp_path / "part", rows)
    with pytest.raises(UserError, match="--save-pools=: no step has a snapshot_folder"):
        run("convert", source, tmp_path / "out.arrow", "--records", "example", "--save-pools")


# projection


def test_convert_reads_only_the_columns_that_a_projection_lets_through(
    rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = pa.Table.from_batches([rows]).append_column("unreadable", pa.array([{"a": 1}] * 50))
    pq.write_table(plain, tmp_path / "rows.parquet")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: [{project: {feature_names: [item, price]}}]")
    dest = tmp_path / "few.parquet"
    assert run("convert", tmp_path / "rows.parquet", dest, "--recipe", recipe) == 0
    found = pq.read_table(dest)
    assert [name for name in found.schema.names if not name.startswith("__")] == ["item", "price"]
    assert found["item"].to_pylist() == rows.column("item").to_pylist()
    assert found["__UID__"].to_pylist() == rows.column("__UID__").to_pylist()
    capsys.readouterr()
    assert run("head", tmp_path / "rows.parquet", "--where", recipe, "-n", "1") == 0
    (shown,) = lines(capsys)
    assert "item" in shown and "user" not in shown


# shard_fids


_SHARDING = """\
steps:
- shard_fids:
    ps_num: 2
    feature_configs: {feature_configs: {user: {table: user, slice_dims: [1, 16]}}}
"""


@pytest.mark.parametrize("format", ["arrow", "parquet"])
def test_convert_shards_the_fids_of_every_batch_into_a_file_that_gives_them_back(
    format: str, rows: pa.RecordBatch, tmp_path: Path
) -> None:
    parts = [rows.slice(0, 20), rows.slice(20)]
    for number, part in enumerate(parts):
        write(tmp_path / f"part-{number}", part)
    recipe, dest = tmp_path / "recipe.yaml", tmp_path / f"sharded.{format}"
    recipe.write_text(_SHARDING)
    assert run("convert", tmp_path / "part-*", dest, "--records", "example", "--recipe", recipe) == 0
    layout = ShardLayout(TransformChain.read(str(recipe)).config.configs[0].basic_config.shard_fids.feature_configs, 2)
    table = pq.read_table(dest) if format == "parquet" else pa.ipc.open_file(dest).read_all()
    found = [ShardedFids.from_record_batch(each, layout) for each in table.to_batches(max_chunksize=1)]
    assert [each.batch_size for each in found] == [20, 30]
    for sharded, part in zip(found, parts, strict=True):
        expected = shard_with(part, layout, unique=False)
        assert sharded.fids.tolist() == expected.fids.tolist()
        assert sharded.fid_offset.tolist() == expected.fid_offset.tolist()


def test_a_format_that_cannot_hold_sharded_batches_is_refused(rows: pa.RecordBatch, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_SHARDING)
    source = write(tmp_path / "part", rows)
    with pytest.raises(UserError, match="--to=avro: cannot hold the sharded batches of shard_fids; choose arrow or"):
        run("convert", source, tmp_path / "rows.avro", "--records", "example", "--recipe", recipe)
    assert not (tmp_path / "rows.avro").exists()


def test_head_prints_a_sharded_batch(rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_SHARDING)
    assert run("head", write(tmp_path / "part", rows), "--records", "example", "--where", recipe) == 0
    (found,) = lines(capsys)
    assert found["sharded.batch_size"] == [50]
    assert len(found["rows.__SOURCE_OFFSET__"]) == 50


# Standard input


class Pipe(io.BytesIO):
    """Bytes that come once."""

    def seekable(self) -> bool:
        return False


def give(monkeypatch: pytest.MonkeyPatch, data: io.BytesIO) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_records_come_from_standard_input(
    name: str, rows: pa.RecordBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, Pipe(write(tmp_path / "part", rows).read_bytes()))
    assert facts(capsys, "stat", name, "--records", "example")["rows"] == rows.num_rows
    give(monkeypatch, Pipe(b'{"a": 1}\n\n{"a": 2}\n'))
    assert facts(capsys, "convert", name, tmp_path / "rows.parquet", "--records", "json")["rows_written"] == 2


def test_a_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        run("head", "-", "--records", "json")


def test_a_second_pass_over_a_pipe_is_refused_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = (pa.record_batch({name: pa.array([[b"x" * 1_000_000]])}) for name in ("early", "late"))
    values = write(tmp_path / "a", early).read_bytes() * 10 + write(tmp_path / "b", late).read_bytes()
    arguments = ("convert", "-", tmp_path / "rows.parquet", "--records", "example")
    give(monkeypatch, Pipe(values))
    with pytest.raises(UserError, match="two passes"):
        run(*arguments)
    assert not (tmp_path / "rows.parquet").exists()
    give(monkeypatch, io.BytesIO(values))
    assert run(*arguments) == 0


def test_files_of_rows_do_not_come_through_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, Pipe(b"PAR1"))
    with pytest.raises(UserError, match="cannot be read as parquet"):
        run("stat", "-", "--records", "parquet")
