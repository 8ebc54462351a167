"""Decoding against a row-wise reference, every kind of bad record, and garbage of all sorts."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.pipelines.traffic import bad_records
from millrace.transforms.batch import dead_letter
from millrace.transforms.batch.dead_letter import Reason, count_by_reason
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.feed import events as event_codec
from millrace.transforms.feed.events import DAY_MS
from tests.reference.rows_reference import is_good_action, is_good_impression

_NOW = 1_764_000_000_000
_CONTEXT = {"device": "string", "hour": "int64"}
_GOOD = {"schema_version": 1, "request_id": "r", "user_id": 17, "item_ids": [3, 9], "timestamp_ms": _NOW}
_ACTION = {"schema_version": 1, "request_id": "r", "item_id": 9, "action": "click", "timestamp_ms": _NOW}


def _block(values: list[bytes | None]) -> pa.RecordBatch:
    return raw_block("events.impressions", values, 3, range(100, 100 + len(values)), _NOW)


def _impression(**changes: Any) -> bytes:
    return json.dumps(_GOOD | changes).encode()


def _decode(values: list[bytes | None], context: dict[str, str] | None = None) -> tuple[list[dict], list[dict]]:
    good, bad = event_codec.decode_impressions(_block(values), _CONTEXT if context is None else context, _NOW)
    return good.to_pylist(), bad.to_pylist()


def test_an_impression_becomes_one_row_an_item_with_its_provenance() -> None:
    rows, dead = _decode([_impression(context={"device": "phone", "hour": 13, "other": {"deep": [1]}}, more="x")])
    assert dead == []
    assert [row["item_id"] for row in rows] == [3, 9]
    assert rows[1] == {
        "request_id": "r",
        "user_id": 17,
        "item_id": 9,
        "timestamp_ms": _NOW,
        "context.device": "phone",
        "context.hour": 13,
        "__SOURCE_PARTITION__": 3,
        "__SOURCE_OFFSET__": 100,
        "__SOURCE_ROW__": 1,
    }


@pytest.mark.parametrize("context", [None, {}, {"device": None}])
def test_missing_context_is_null(context: Any) -> None:
    rows, dead = _decode([_impression(context=context)])
    assert dead == []
    assert rows[0]["context.device"] is None


@pytest.mark.parametrize(("kind", "case"), bad_records.IMPRESSIONS.items(), ids=list(bad_records.IMPRESSIONS))
def test_a_bad_impression_is_one_dead_letter_and_its_neighbours_survive(kind: str, case: tuple[Reason, Any]) -> None:
    reason, build = case
    value = build(_NOW)
    rows, dead = _decode([_impression(), value, _impression()])
    assert [row["__SOURCE_OFFSET__"] for row in rows] == [100, 100, 102, 102]
    (letter,) = dead
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("events.impressions", 3, 101)
    assert letter["reason"] == reason
    assert letter["detail"]
    assert letter["value"] == (value or b"")[: dead_letter.MAX_VALUE_BYTES]
    assert letter["truncated_from"] == (len(value) if value and len(value) > dead_letter.MAX_VALUE_BYTES else None)


@pytest.mark.parametrize(("kind", "case"), bad_records.ACTIONS.items(), ids=list(bad_records.ACTIONS))
def test_a_bad_action_is_one_dead_letter_and_its_neighbours_survive(kind: str, case: tuple[Reason, Any]) -> None:
    good = json.dumps(_ACTION).encode()
    rows, dead = event_codec.decode_actions(_block([good, case[1](_NOW), good]), _NOW)
    assert rows.num_rows == 2
    assert dead["reason"].to_pylist() == [case[0]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xef\xbb\xbf" + _impression(), Reason.MALFORMED_JSON),
        (_impression() + b" trailing", Reason.MALFORMED_JSON),
        (_impression() + b"\0", Reason.MALFORMED_JSON),
        (b"{}", Reason.MISSING_FIELD),
        (b"null", Reason.WRONG_TYPE),
        (_impression(user_id=None), Reason.MISSING_FIELD),
        (_impression(user_id=3.0), Reason.WRONG_TYPE),
        (_impression(user_id=True), Reason.WRONG_TYPE),
        (_impression(user_id=1 << 70), Reason.OUT_OF_RANGE),
        (_impression(user_id=float("nan")), Reason.WRONG_TYPE),
        (_impression(item_ids=[1, None]), Reason.WRONG_TYPE),
        (_impression(item_ids=[1, "2"]), Reason.WRONG_TYPE),
        (_impression(item_ids=7), Reason.WRONG_TYPE),
        (_impression(request_id=""), Reason.OUT_OF_RANGE),
        (_impression(request_id="x" * 257), Reason.OUT_OF_RANGE),
        (_impression(context="phone"), Reason.WRONG_TYPE),
        (_impression(context={"device": 7}), Reason.WRONG_TYPE),
        (_impression(context={"hour": "13"}), Reason.WRONG_TYPE),
        (_impression(context={"hour": -1}), Reason.OUT_OF_RANGE),
        (_impression(context={"device": "x" * 1025}), Reason.OUT_OF_RANGE),
        (_impression(schema_version=2, user_id="seventeen"), Reason.UNKNOWN_SCHEMA_VERSION),
        (_impression(timestamp_ms=_NOW + DAY_MS + 1), Reason.BAD_TIMESTAMP),
        (_impression()[:-1] + b',"user_id":18}', Reason.MALFORMED_JSON),
        (_impression()[:-1] + b',"x":' + b"[" * 100_000 + b"}", Reason.MALFORMED_JSON),
        (_impression().replace(b'"r"', b'"a\nb"'), Reason.MALFORMED_JSON),
        (_impression().replace(b'"r"', b'"\\udc00"'), Reason.MALFORMED_JSON),
    ],
)
def test_an_odd_bad_record_gets_its_reason(value: bytes, reason: Reason) -> None:
    rows, dead = _decode([_impression(), value, _impression()])
    assert (len(rows), [letter["reason"] for letter in dead]) == (4, [reason])


@pytest.mark.parametrize(
    "value",
    [
        b" \r\n" + json.dumps(_GOOD, indent=2).encode() + b"\n",
        _impression()[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        _impression()[:-1] + b',"x":1,"x":2}',
        _impression(timestamp_ms=_NOW + DAY_MS),
        _impression(user_id=(1 << 48) - 1, item_ids=[0] * 64),
    ],
)
def test_an_odd_good_record_is_read(value: bytes) -> None:
    rows, dead = _decode([_impression(), value, _impression()])
    assert dead == []
    assert {row["__SOURCE_OFFSET__"] for row in rows} == {100, 101, 102}


def test_context_that_nothing_asks_for_is_not_looked_at() -> None:
    rows, dead = _decode([_impression(context=["anything"])], context={})
    assert (len(rows), dead) == (2, [])


def test_records_of_several_objects_do_not_shift_their_neighbours() -> None:
    one = _impression()
    rows, dead = _decode([one + one, one, b"{}", one + b"\n" + one, one])
    assert [letter["offset"] for letter in dead] == [100, 102, 103]
    assert {row["__SOURCE_OFFSET__"] for row in rows} == {101, 104}


def test_a_block_of_garbage_is_refused_record_by_record() -> None:
    rows, dead = _decode([b"{%d}" % index for index in range(300)] + [_impression()])
    assert (len(rows), len(dead)) == (2, 300)
    assert [letter["offset"] for letter in dead] == list(range(100, 400))


def test_an_empty_block_gives_empty_batches() -> None:
    assert _decode([]) == ([], [])


_scalar = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5),
    st.sampled_from([1 << 47, 1 << 48, 1 << 63, 1 << 64, _NOW, _NOW + 2 * DAY_MS, 1.0, 2.5, "", "r", "é", "x" * 300]),
)
_value = st.one_of(
    _scalar, st.lists(_scalar, max_size=3), st.dictionaries(st.sampled_from(["device", "hour"]), _scalar)
)
_fields = st.sampled_from(["schema_version", "request_id", "user_id", "item_ids", "timestamp_ms", "context", "other"])
_action_fields = st.sampled_from(["schema_version", "request_id", "item_id", "action", "timestamp_ms", "value"])


def _records(base: dict[str, Any], fields: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Good events, events with fields changed or removed, and bytes cut, joined or made up."""
    changed = st.dictionaries(fields, _value, max_size=2).map(lambda changes: json.dumps(base | changes).encode())
    without = fields.map(lambda name: json.dumps({key: value for key, value in base.items() if key != name}).encode())
    good = st.just(json.dumps(base).encode())
    cut = st.tuples(changed, st.integers(0, 120)).map(lambda pair: pair[0][: pair[1]])
    glued = st.tuples(changed, st.sampled_from([b"", b"\n", b",", b"\0", b" "]), changed).map(b"".join)
    spliced = st.tuples(good, st.integers(0, 100), st.binary(max_size=3)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
    )
    made_up = st.one_of(st.binary(max_size=20), st.text('{}[]",:0123abc\n \\', max_size=20).map(str.encode))
    return st.one_of(good, changed, without, cut, glued, spliced, made_up)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.none(), _records(_GOOD, _fields)), max_size=12))
def test_impressions_are_good_or_dead_as_the_reference_says(values: list[bytes | None]) -> None:
    good, dead = event_codec.decode_impressions(_block(values), _CONTEXT, _NOW)
    good.validate(full=True)
    expected = {100 + i for i, value in enumerate(values) if is_good_impression(value, _CONTEXT, _NOW + DAY_MS)}
    assert set(good["__SOURCE_OFFSET__"].to_pylist()) == expected
    assert dead["offset"].to_pylist() == [100 + i for i in range(len(values)) if 100 + i not in expected]
    assert dead["value"].to_pylist() == [value or b"" for i, value in enumerate(values) if 100 + i not in expected]
    by_offset = {100 + i: json.loads(value) for i, value in enumerate(values) if value and 100 + i in expected}
    for row in good.to_pylist():
        event = by_offset[row["__SOURCE_OFFSET__"]]
        assert row["item_id"] == event["item_ids"][row["__SOURCE_ROW__"]]
        assert (row["user_id"], row["request_id"]) == (event["user_id"], event["request_id"])
        assert row["context.hour"] == (event.get("context") or {}).get("hour")
    assert good.num_rows == sum(len(event["item_ids"]) for event in by_offset.values())


@settings(max_examples=150, deadline=None)
@given(st.lists(_records(_ACTION, _action_fields), max_size=12))
def test_actions_are_good_or_dead_as_the_reference_says(values: list[bytes]) -> None:
    good, dead = event_codec.decode_actions(_block(values), _NOW)
    expected = [is_good_action(value, _NOW + DAY_MS) for value in values]
    assert dead["offset"].to_pylist() == [100 + i for i, fine in enumerate(expected) if not fine]
    events = [json.loads(value) for value, fine in zip(values, expected, strict=True) if fine]
    assert good["item_id"].to_pylist() == [event["item_id"] for event in events]
    assert good["value"].to_pylist() == [event.get("value") for event in events]


def test_every_impression_record_gives_rows_or_one_dead_letter_with_its_reason() -> None:
    rows, dead = event_codec.decode_impressions(_block([_impression(), b"{", None]), _CONTEXT, _NOW)
    assert (rows.num_rows, dead.num_rows) == (2, 2)
    assert count_by_reason(dead) == {"malformed_json": 1, "empty_value": 1}


def test_every_action_record_gives_a_row_or_one_dead_letter() -> None:
    rows, dead = event_codec.decode_actions(_block([json.dumps(_ACTION).encode(), b"["]), _NOW)
    assert (rows.num_rows, dead.num_rows) == (1, 1)
