"""Feed settings: their checks, their JSON, and fids of columns."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.runtime.errors import UserError
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.feed.train_rows import row_fids
from tests.reference.rows_reference import fid_of

_FEATURES = (
    FidFeature("user", 1, "user_id"),
    FidFeature("device", 2, "context.device"),
    FidFeature("hour", 3, "context.hour", "int64"),
)
_CONFIG = FeedConfig("m", _FEATURES, (LabelRule("click", ("click",)), LabelRule("good", ("rate",), 4.0)), audit=True)


def test_settings_are_written_as_json() -> None:
    written = json.loads(_CONFIG.to_json())
    assert written["features"][1] == {"name": "device", "slot": 2, "column": "context.device", "dtype": None}
    assert written["labels"][1] == {"head": "good", "actions": ["rate"], "min_value": 4.0}
    assert (written["model"], written["audit"], written["routed_actions"]) == ("m", True, ["late"])


def test_what_a_feed_reads_and_writes() -> None:
    assert _CONFIG.context_fields() == {"device": "string", "hour": "int64"}
    assert _CONFIG.label_actions == ("click", "rate")
    assert _CONFIG.train_schema().names[:4] == ["user", "device", "hour", "__AUDIT__"]


_USER = FidFeature("u", 1, "user_id")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": ""}, "feed.model"),
        ({"window_seconds": 0}, "feed.window_seconds"),
        ({"negative_rate": 1.5}, "feed.negative_rate"),
        ({"features": ()}, "feed.features"),
        ({"features": (replace(_USER, slot=40000),)}, "feed.features[0].slot"),
        ({"features": (replace(_USER, column="user"),)}, "feed.features[0].column"),
        ({"features": (replace(_USER, column="item_id", dtype="string"),)}, "feed.features[0].dtype"),
        ({"features": (replace(_USER, name="__u"),)}, "feed.features[0].name"),
        ({"features": (_USER, _USER)}, "feed.features"),
        ({"labels": (LabelRule("click", ()),)}, "feed.labels[0].actions"),
        ({"allowed_lateness_seconds": -1.0}, "feed.allowed_lateness_seconds"),
        ({"routed_actions": ("late", "lost")}, "feed.routed_actions"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(_CONFIG, **changes)
    assert caught.value.field == field


_rows = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.integers(0, (1 << 48) - 1),
            "context.device": st.one_of(st.none(), st.text(max_size=12)),
            "context.hour": st.one_of(st.none(), st.integers(0, 23)),
            "__SOURCE_PARTITION__": st.integers(0, 255),
            "__SOURCE_OFFSET__": st.integers(0, (1 << 34) - 1),
            "__SOURCE_ROW__": st.integers(0, 63),
        }
    ),
    max_size=20,
)
_SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("context.device", pa.string()),
        ("context.hour", pa.int64()),
        ("__SOURCE_PARTITION__", pa.int64()),
        ("__SOURCE_OFFSET__", pa.int64()),
        ("__SOURCE_ROW__", pa.int32()),
    ]
)


@settings(deadline=None, max_examples=50)
@given(_rows)
def test_fids_equal_the_reference(rows: list[dict[str, Any]]) -> None:
    batch = row_fids(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA), _FEATURES, audit=True)
    for feature in _FEATURES:
        assert batch.column(feature.name).to_pylist() == [fid_of(row, feature) for row in rows]
    assert batch.num_columns == len(_FEATURES) + 1


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([-1]), "outside"),
        (pa.array([1 << 48]), "outside"),
        (pa.array(["17"]), "expected int64"),
    ],
)
def test_columns_that_make_no_fid_are_refused(column: pa.Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row_fids(pa.record_batch({"user_id": column}), _FEATURES[:1])


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"feature device: no column context\.device"):
        row_fids(pa.record_batch({"user_id": np.array([1])}), _FEATURES)


def test_rows_are_remembered_as_long_as_the_window_unless_told_otherwise() -> None:
    assert replace(_CONFIG, allowed_lateness_seconds=0.5).lateness_ms == 500
    assert _CONFIG.lateness_ms == _CONFIG.window_ms
