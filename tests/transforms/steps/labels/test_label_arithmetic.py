"""Bounds, normalisation and fields as labels."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.protos import transform_config_pb2 as pb
from millrace.protos.transform_config_pb2 import LabelNormalizationConfig as Normalization
from millrace.runtime.errors import UserError
from millrace.transforms.batch.record_batch import INVALID_LABEL
from millrace.transforms.steps.labels.label_arithmetic import bound_labels, normalize_labels
from millrace.transforms.steps.labels.label_steps import LabelNormalization, LabelUpperBound, UseFieldAsLabel
from tests.conformance.covers import covers
from tests.reference import label_arithmetic as reference
from tests.transforms.batch.line_id_batches import batch_of, float32, labels, rows_of

_LABELS = pa.list_(pa.float32())
_bound = st.sampled_from([-1.0, 0.25, 1.0, 100.0])


def _labels_after(step: Any, rows: list[dict[str, Any]], fields: list[str] | None = None) -> tuple[list[Any], Any]:
    counts: Counter[str] = Counter()
    return [row["label"] for row in rows_of(step.process(batch_of(rows, fields or []), counts), [])], counts


@covers("data:v21")
def test_labels_are_bounded_from_above() -> None:
    made, counts = _labels_after(
        LabelUpperBound(pb.LabelUpperBoundConfig(bounds=[0.5, 0.5])), [{"label": [0, 1]}, {"label": [1]}, {}]
    )
    assert made == [[0.0, 0.5], [1.0], None]
    assert counts["rows_short"] == 2


@covers("data:v21")
def test_a_chain_of_operations_changes_every_label() -> None:
    operations = [{"method": "SCALE", "value": 0.5}, {"method": "REPOW", "value": 3}]
    made, _ = _labels_after(LabelNormalization(pb.LabelNormalizationConfig(operations=operations)), [{"label": [0, 1]}])
    assert made == [[0.0, 8.0]]


@covers("data:v22")
@pytest.mark.parametrize(
    ("overwrite", "threshold", "before", "after"),
    [(False, None, [0, 1], [1, 1]), (True, 1.1, [0, 0.5], [1, 1]), (True, 0.9, [0, 0.5], [0, 0.5])],
)
def test_a_field_becomes_the_label(overwrite: bool, threshold: float | None, before: Any, after: Any) -> None:
    config = pb.UseFieldAsLabelConfig(
        field_name="sample_rate", overwrite_invalid_value=overwrite, label_threshold=threshold
    )
    assert _labels_after(UseFieldAsLabel(config), [{"label": before}])[0] == [after]


@given(st.lists(labels, max_size=8), st.lists(_bound, min_size=1, max_size=3), st.integers(0, 3))
def test_bounded_labels_equal_the_reference(rows: list[Any], bounds: list[float], start: int) -> None:
    made = bound_labels(pa.array(rows, _LABELS).slice(start), bounds).to_pylist()
    assert made == [row and reference.bound(row, bounds) for row in rows[start:]]


_operation = st.one_of(
    st.tuples(st.sampled_from([Normalization.LOG, Normalization.SCALE]), st.sampled_from([0.5, 2.0, 60.0])),
    st.tuples(st.just(Normalization.SCALE2INT), st.sampled_from([0.5, 7.0, -3.0])),
    st.tuples(st.just(Normalization.SCALELOG), st.sampled_from([0.5, 7.0, 300.0])),
    st.tuples(st.just(Normalization.REPOW), st.sampled_from([0.5, 1.5, 3.0])),
    st.tuples(st.just(Normalization.POW), st.sampled_from([1.0, 2.0])),
)


@given(st.lists(labels, max_size=8), _operation, st.integers(0, 3))
def test_normalized_labels_equal_the_reference(rows: list[Any], operation: tuple[int, float], start: int) -> None:
    made, _ = normalize_labels(pa.array(rows, _LABELS).slice(start), [operation])
    expected = [row and [reference.normalize(label, [operation]) for label in row] for row in rows[start:]]
    assert [row and pytest.approx(row, rel=1e-6) for row in made.to_pylist()] == expected


_values = st.one_of(st.none(), st.sampled_from([-3.0, 0.25, 2.0, 7199.0, 7200.0]))


@given(st.lists(st.fixed_dictionaries({"label": labels, "video_play_time": _values}), max_size=8), st.booleans())
def test_labels_of_fields_equal_the_reference(rows: list[dict[str, Any]], overwrite: bool) -> None:
    step = UseFieldAsLabel(pb.UseFieldAsLabelConfig(field_name="video_play_time", overwrite_invalid_value=overwrite))
    made, _ = _labels_after(step, rows, ["video_play_time"])
    floors = [row["video_play_time"] or 0.0 for row in rows]
    floors = [0.0 if overwrite and floor >= 7200 else floor for floor in floors]
    expected = [
        row["label"] and reference.raise_to(row["label"], floor) for row, floor in zip(rows, floors, strict=True)
    ]
    assert made == [float32(row) for row in expected]


def test_labels_that_say_nothing_stay_so() -> None:
    column = pa.array([[INVALID_LABEL, 3.0]], _LABELS)
    scaled, lost = normalize_labels(column, [(Normalization.SCALE, 1e-3), (Normalization.POW, 2.0)])
    assert scaled.to_pylist()[0][0] == INVALID_LABEL
    assert lost == 0
    assert bound_labels(column, [-1.0, 1.0]).to_pylist() == [[INVALID_LABEL, 1.0]]


def test_labels_that_are_lost_to_the_arithmetic_are_counted() -> None:
    step = LabelNormalization(pb.LabelNormalizationConfig(operations=[{"method": "LOG", "value": 0}]))
    made, counts = _labels_after(step, [{"label": [0.0, 1.0]}, {"label": [-2.0, INVALID_LABEL]}])
    assert made == [[-float("inf"), 0.0], [-float("inf"), INVALID_LABEL]]
    assert counts["labels_not_finite"] == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LabelUpperBound(pb.LabelUpperBoundConfig()), "bounds"),
        (lambda: LabelNormalization(pb.LabelNormalizationConfig()), "operations=: no operations"),
        (
            lambda: LabelNormalization(pb.LabelNormalizationConfig(operations=[{"value": 1}])),
            r"operations\[0\].method=0: unknown; choose log, scale, scale2int, pow, repow, scalelog",
        ),
        (
            lambda: LabelNormalization(pb.LabelNormalizationConfig(operations=[{"method": "SCALELOG"}])),
            r"operations\[0\].value=0: labels are divided by it",
        ),
        (lambda: UseFieldAsLabel(pb.UseFieldAsLabelConfig(field_name="did")), "field_name=did: not a number"),
        (lambda: UseFieldAsLabel(pb.UseFieldAsLabelConfig(field_name="chnids")), "field_name=chnids: not a number"),
    ],
)
def test_wrong_settings_are_refused_by_name(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()
