"""Feed settings as JSON, their checks, and fids of columns."""

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


def test_settings_survive_json() -> None:
    assert FeedConfig.from_json(_CONFIG.to_json()) == _CONFIG


def test_what_a_feed_reads_and_writes() -> None:
    assert _CONFIG.context_fields() == {"device": "string", "hour": "int64"}
    assert _CONFIG.label_actions == ("click", "rate")
    assert _CONFIG.train_schema().names[:4] == ["user", "device", "hour", "__AUDIT__"]


def _settings(**changes: Any) -> str:
    plain = {
        "model": "m",
        "features": [{"name": "user", "slot": 1, "column": "user_id"}],
        "labels": [{"head": "click", "actions": ["click"]}],
    }
    return json.dumps({name: value for name, value in (plain | changes).items() if value is not None})


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("not json", "feed"),
        ("[]", "feed"),
        (_settings(model=None), "feed.model"),
        (_settings(model=""), "feed.model"),
        (_settings(model=3), "feed.model"),
        (_settings(windows=5), "feed.windows"),
        (_settings(window_seconds=0), "feed.window_seconds"),
        (_settings(window_seconds="5"), "feed.window_seconds"),
        (_settings(negative_rate=1.5), "feed.negative_rate"),
        (_settings(seed=True), "feed.seed"),
        (_settings(features=[]), "feed.features"),
        (_settings(features=[{"name": "u", "slot": 1}]), "feed.features[0].column"),
        (_settings(features=[{"name": "u", "slot": 40000, "column": "user_id"}]), "feed.features[0].slot"),
        (_settings(features=[{"name": "u", "slot": 1, "column": "user"}]), "feed.features[0].column"),
        (
            _settings(features=[{"name": "u", "slot": 1, "column": "item_id", "dtype": "string"}]),
            "feed.features[0].dtype",
        ),
        (_settings(features=[{"name": "__u", "slot": 1, "column": "user_id"}]), "feed.features[0].name"),
        (_settings(features=[{"name": "u", "slot": 1, "column": "user_id"}] * 2), "feed.features"),
        (_settings(labels=[{"head": "click", "actions": []}]), "feed.labels[0].actions"),
    ],
)
def test_a_wrong_setting_is_named(text: str, field: str) -> None:
    with pytest.raises(UserError) as caught:
        FeedConfig.from_json(text)
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
        ("__SOURCE_PARTITION__", pa.int32()),
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


def test_settings_of_the_join_survive_json() -> None:
    config = replace(_CONFIG, allowed_lateness_seconds=0.5, routed_actions=("late", "duplicate"), early_negatives=True)
    assert FeedConfig.from_json(config.to_json()) == config
    assert config.lateness_ms == 500
    assert _CONFIG.lateness_ms == _CONFIG.window_ms


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"allowed_lateness_seconds": -1.0}, "feed.allowed_lateness_seconds"),
        ({"routed_actions": ("late", "lost")}, "feed.routed_actions"),
    ],
)
def test_wrong_settings_of_the_join_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field):
        replace(_CONFIG, **changes)
