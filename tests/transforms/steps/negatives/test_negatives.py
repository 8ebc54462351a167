"""Generated negatives against the row-wise reference, however the rows are cut into batches."""

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch import fid, record_batch
from millrace.transforms.batch.provenance import provenance_of
from millrace.transforms.steps.negatives.negatives import GenerateNegatives
from millrace.transforms.steps.step import Counts, StepContext
from tests.conformance.covers import covers
from tests.reference.negatives_reference import NaivePools, Row, negatives_of

SEED, STEP = 7, "negatives"
SCHEMA = pa.schema(
    [
        record_batch.fid_field("genre"),
        record_batch.fid_field("user"),
        pa.field("price", pa.list_(pa.float32())),
        record_batch.fid_field("key"),
        record_batch.fid_field("channel"),
        pa.field("__LABEL__", pa.list_(pa.float32())),
        pa.field("__WEIGHT__", pa.float32()),
        pa.field("__ITEM_ID__", pa.int64()),
        pa.field("__REQ_ID__", pa.string()),
        pa.field("__ACTIONS__", pa.list_(pa.int32())),
        pa.field("__SOURCE_PARTITION__", pa.int64()),
        pa.field("__SOURCE_OFFSET__", pa.int64()),
        pa.field("__SOURCE_ROW__", pa.int32()),
    ]
)
DEFAULTS: dict[str, Any] = {
    "neg_num": 1,
    "per_channel": False,
    "channel_feature": "",
    "item_features": ["genre", "price"],
    "index_feature": "",
    "start_num": 0,
    "max_item_num": 100,
    "positive_label": 1.0,
    "label_index": 0,
    "positive_actions": [],
    "action_priority": [],
    "negative_label": -1.0,
    "negative_action": None,
    "cache_only_pos": False,
    "cache_negative_actions": [],
    "origin_neg_in_pool_proba": 1.0,
    "throw_origin": False,
    "throw_origin_neg": False,
    "real_neg_instance_weight": 1.0,
    "sampled_neg_instance_weight": -1.0,
    "unbias_sampled_neg": True,
    "neg_sample_declay_factor": 1.0,
    "easy_hard_ratio": 0.0,
    "allow_own_item": False,
}

few_values = st.none() | st.lists(st.integers(1, 5), max_size=2)
channels = st.none() | st.lists(st.integers(0, 4), max_size=2)
random_rows = st.fixed_dictionaries(
    {
        "genre": few_values,
        "user": few_values,
        "price": st.none() | st.lists(st.sampled_from([0.5, 2.0]), max_size=1),
        "key": few_values,
        "channel": channels,
        "__LABEL__": st.none() | st.lists(st.sampled_from([0.0, 1.0]), max_size=2),
        "__WEIGHT__": st.sampled_from([None, 1.0, 3.0]),
        "__ITEM_ID__": st.none() | st.integers(-2, 8),
        "__REQ_ID__": st.sampled_from([None, "r"]),
        "__ACTIONS__": st.none() | st.lists(st.integers(1, 4), max_size=3),
        "__SOURCE_ROW__": st.integers(0, 200),
    }
)
quarters = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def random_settings(draw: st.DrawFn) -> dict[str, Any]:
    start = draw(st.integers(0, 3))
    per_channel = draw(st.booleans())
    changed = {
        "neg_num": draw(st.integers(1, 3)),
        "per_channel": per_channel,
        "channel_feature": draw(st.sampled_from(["", "channel"])),
        "index_feature": draw(st.sampled_from(["", "key", "__ITEM_ID__"])),
        "start_num": start,
        "max_item_num": start + draw(st.integers(1, 4)),
        "label_index": draw(st.integers(0, 1)),
        "positive_actions": draw(st.sampled_from([[], [1], [2, 3]])),
        "action_priority": draw(st.sampled_from([[], [3, 1], [2]])),
        "negative_action": draw(st.sampled_from([None, 9])),
        "cache_only_pos": draw(st.booleans()),
        "cache_negative_actions": draw(st.sampled_from([[], [4]])),
        "origin_neg_in_pool_proba": draw(quarters),
        "throw_origin": draw(st.booleans()),
        "throw_origin_neg": draw(st.booleans()),
        "real_neg_instance_weight": draw(st.sampled_from([0.0, 0.5, 2.0])),
        "sampled_neg_instance_weight": draw(st.sampled_from([-1.0, 0.25])),
        "unbias_sampled_neg": draw(st.booleans()),
        "neg_sample_declay_factor": draw(st.sampled_from([0.0, 1.0, 2.0])),
        "easy_hard_ratio": draw(quarters) if per_channel else 0.0,
        "allow_own_item": draw(st.booleans()),
    }
    return DEFAULTS | changed


def step_of(changed: dict[str, Any]) -> GenerateNegatives:
    given = {name: value for name, value in (DEFAULTS | changed).items() if value is not None}
    return GenerateNegatives(pb.GenerateNegativesConfig(**given), StepContext(SEED, STEP))


def stream_of(rows: list[Row]) -> list[Row]:
    """Rows with the provenance of a stream."""
    return [row | {"__SOURCE_PARTITION__": 1, "__SOURCE_OFFSET__": i} for i, row in enumerate(rows)]


def item_row(item: int, label: float = 1.0, **more: Any) -> Row:
    values = {"genre": [item], "user": [100 + item], "price": [float(item)], "key": None, "channel": None}
    metadata = {"__LABEL__": [label], "__WEIGHT__": None, "__ITEM_ID__": item, "__REQ_ID__": f"r{item}"}
    return values | metadata | {"__ACTIONS__": [], "__SOURCE_ROW__": 0} | more


def batch_of(rows: list[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def batches_of(rows: list[Row], cuts: list[int]) -> list[pa.RecordBatch]:
    """The rows as slices of one batch."""
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    whole = batch_of(rows)
    return [whole.slice(start, stop - start) for start, stop in itertools.pairwise(edges)]


def run(step: GenerateNegatives, batches: list[pa.RecordBatch], counts: Counts | None = None) -> list[Row]:
    counts = Counts() if counts is None else counts
    return [row for batch in batches for row in step.process(batch, counts).to_pylist()]


def rounded(rows: list[Row]) -> list[Row]:
    return [row | {"__WEIGHT__": float(np.float32(row["__WEIGHT__"]))} for row in rows]


@settings(deadline=None, max_examples=300)
@given(st.lists(random_rows, max_size=30), random_settings(), st.lists(st.integers(0, 30), max_size=5))
def test_rows_equal_the_reference_however_they_are_cut(
    rows: list[Row], given_: dict[str, Any], cuts: list[int]
) -> None:
    rows = stream_of(rows)
    pools = NaivePools(given_["start_num"], given_["max_item_num"])
    expected = negatives_of(rows, pools, given_, SEED, STEP)
    step, counts = step_of(given_), Counts()
    made = run(step, batches_of(rows, cuts), counts)
    assert made == rounded(expected)
    assert len(rows) == counts["positives"] + counts["negatives_in"]
    assert len(made) == len(rows) + counts["negatives_generated"] - counts["rows_dropped"]
    assert counts["negatives_generated"] == counts["hard_draws"] + counts["easy_draws"]
    assert counts["draws_missed"] == counts["positives"] * given_["neg_num"] - counts["negatives_generated"]
    contents = step.pool.contents()
    held = [(channel, item) for channel, pool in pools.pools.items() for item in pool]
    assert contents.channels.tolist() == [channel for channel, _ in held]
    assert contents.keys.tolist() == [item.key for _, item in held]
    assert contents.pushed.tolist() == [item.pushed for _, item in held]
    assert contents.drawn.tolist() == [item.drawn for _, item in held]
    columns = [
        {name: row.get(name) for name in item.columns}
        for (_, item), row in zip(held, contents.items.to_pylist(), strict=True)
    ]
    assert columns == [item.columns for _, item in held]


@settings(deadline=None)
@given(st.lists(random_rows, max_size=30), random_settings(), st.lists(st.integers(0, 30), max_size=5))
def test_restoring_at_every_batch_changes_nothing(rows: list[Row], given_: dict[str, Any], cuts: list[int]) -> None:
    batches = batches_of(stream_of(rows), cuts)
    plain, restored = step_of(given_), step_of(given_)
    for batch in batches:
        saved = restored.save()
        restored = step_of(given_)
        restored.restore(saved)
        assert restored.save() == saved
        assert restored.process(batch, Counts()).equals(plain.process(batch, Counts()))
    assert restored.save() == plain.save()


@covers("data:v25")
def test_negatives_stand_before_their_positive() -> None:
    """Negative, negative, original, once the pool is warm."""
    step = step_of({"neg_num": 2})
    run(step, [batch_of(stream_of([item_row(1, 0.0), item_row(2, 0.0), item_row(3, 0.0)]))])
    made = run(step, [batch_of(stream_of([item_row(4)]))])
    assert [row["__LABEL__"] for row in made] == [[-1.0], [-1.0], [1.0]]
    assert [row["user"] for row in made] == [[104]] * 3
    assert [row["__SOURCE_ROW__"] for row in made] == [64, 128, 0]
    assert made[2]["genre"] == [4]
    for row in made[:2]:
        assert row["__ITEM_ID__"] in (1, 2, 3)
        assert (row["genre"], row["price"]) == ([row["__ITEM_ID__"]], [float(row["__ITEM_ID__"])])


@covers("data:v25")
def test_a_pool_gives_nothing_until_it_holds_more_than_start_num() -> None:
    """With start_num 10 the first 10 items yield no negatives."""
    rows = stream_of([item_row(item) for item in range(1, 13)])
    made = run(step_of({"start_num": 10}), batches_of(rows, [3, 5]))
    assert [row["__LABEL__"][0] for row in made] == [1.0] * 10 + [-1.0, 1.0] * 2


@covers("data:v25")
def test_an_item_that_comes_twice_keeps_its_first_columns_and_its_place() -> None:
    """It is counted twice."""
    step = step_of({})
    run(step, [batch_of(stream_of([item_row(1, 0.0), item_row(2, 0.0), item_row(1, 0.0, genre=[77])]))])
    contents = step.pool.contents()
    assert contents.keys.tolist() == [1, 2]
    assert contents.pushed.tolist() == [2, 1]
    assert contents.items.column("genre").to_pylist() == [[1], [2]]


@covers("data:v25")
@pytest.mark.parametrize("throw_origin", [False, True])
def test_counts_on_a_thousand_rows(throw_origin: bool) -> None:
    """Count = positives + negatives, generated in [(P - start) * neg_num, P * neg_num]."""
    neg_num, start = 3, 50
    rows = stream_of([item_row(i, float(i % 4 == 0)) for i in range(1000)])
    counts = Counts()
    made = run(step_of({"neg_num": neg_num, "start_num": start, "throw_origin": throw_origin, "max_item_num": 300}),
               batches_of(rows, [10, 200, 201]), counts)  # fmt: skip
    generated = [row for row in made if row["__LABEL__"] == [-1.0]]
    positives = [row for row in made if row["__LABEL__"] == [1.0]]
    real = [row for row in made if row["__LABEL__"] == [0.0]]
    assert len(made) == len(generated) + len(positives) + len(real)
    assert (len(positives), len(real)) == ((0, 0) if throw_origin else (250, 750))
    assert (250 - start) * neg_num <= len(generated) == counts["negatives_generated"] <= 250 * neg_num
    provenance = {(row["__SOURCE_OFFSET__"], row["__SOURCE_ROW__"]) for row in made}
    assert len(provenance) == len(made)


def test_weights_of_a_step_before_stay_factors() -> None:
    rows = stream_of([item_row(1, 0.0, __WEIGHT__=2.0), item_row(2, __WEIGHT__=4.0), item_row(3)])
    weights = {"real_neg_instance_weight": 0.5, "sampled_neg_instance_weight": 0.25}
    assert [row["__WEIGHT__"] for row in run(step_of(weights), [batch_of(rows)])] == [1.0, 1.0, 4.0, 0.25, 1.0]


def test_real_negatives_enter_the_pool_with_exactly_the_given_probability() -> None:
    rows = stream_of([item_row(item, 0.0) for item in range(4000)])
    for share, least, most in ((0.0, 0, 0), (0.01, 15, 70), (0.5, 1850, 2150), (1.0, 4000, 4000)):
        step = step_of({"origin_neg_in_pool_proba": share, "max_item_num": 5000})
        run(step, batches_of(rows, []))
        assert least <= len(step.pool) <= most


def test_easy_draws_go_by_the_size_of_the_pools() -> None:
    rows = [item_row(item, 0.0, channel=[1 if item < 300 else 2]) for item in range(400)]
    positives = [item_row(1000, channel=[0]) for _ in range(2000)]
    step = step_of({"per_channel": True, "channel_feature": "channel", "easy_hard_ratio": 1.0, "max_item_num": 1000})
    made = run(step, batches_of(stream_of([*rows, *positives]), []))
    drawn = [row["__ITEM_ID__"] for row in made if row["__LABEL__"] == [-1.0]]
    assert len(drawn) == 2000
    assert 0.7 < sum(item < 300 for item in drawn) / len(drawn) < 0.8
    assert len(set(drawn)) > 390


def test_an_item_alone_in_its_pool_is_no_negative_of_itself() -> None:
    rows = stream_of([item_row(1), item_row(1)])
    assert len(run(step_of({}), [batch_of(rows)])) == 2
    assert len(run(step_of({"allow_own_item": True}), [batch_of(rows)])) == 4


def test_a_first_pass_gives_early_rows_their_negatives() -> None:
    rows = stream_of([item_row(item) for item in range(20)])
    warmed = step_of({"neg_num": 2, "start_num": 10, "warm": True})
    for batch in batches_of(rows, [7]):
        assert warmed.warm(batch) is batch
    assert warmed.pool.contents().drawn.tolist() == [0] * 20
    assert len(run(warmed, batches_of(rows, [4]))) == 60


def test_pools_start_from_the_newest_snapshot_and_go_on_from_a_saved_state_without_it(tmp_path: Path) -> None:
    settings = {"neg_num": 2, "start_num": 10, "snapshot_folder": str(tmp_path)}
    first = step_of(settings)
    rows = stream_of([item_row(item) for item in range(20)])
    assert len(run(first, batches_of(rows, []))) == 20 + 2 * 10
    first.write_snapshots()
    second = step_of(settings)
    assert len(run(second, batches_of(rows, []))) == 60
    restored = step_of(settings)
    restored.restore(second.save())
    assert restored.pool.contents().pushed.tolist() == [2] * 20
    unused = step_of(settings)
    assert unused.save() == first.save()


def test_a_snapshot_of_more_features_gives_those_of_the_item_alone(tmp_path: Path) -> None:
    step = step_of({"item_features": ["genre", "price"], "snapshot_folder": str(tmp_path)})
    run(step, batches_of(stream_of([item_row(item) for item in range(3)]), []))
    step.write_snapshots()
    fewer = step_of({"item_features": ["genre"], "snapshot_folder": str(tmp_path)})
    assert fewer.pool.schema.names == ["__ITEM_ID__", "genre"]


def test_a_snapshot_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="snapshot_folder=.*none: no such folder"):
        step_of({"snapshot_folder": str(tmp_path / "none")})
    (tmp_path / "item_pool_0_0_1").write_bytes(b"nothing")
    step = step_of({"snapshot_folder": str(tmp_path)})
    with pytest.raises(UserError, match="snapshot_folder=.*item_pool_0_0_1: cannot be used"):
        step.save()


def test_a_column_that_comes_or_goes_is_null_where_it_is_missing() -> None:
    step = step_of({"item_features": ["genre", "price", "new"]})
    counts = Counts()
    old = batch_of(stream_of([item_row(1)]))
    new = old.drop_columns(["genre"]).append_column(record_batch.fid_field("new"), pa.array([[5]]))
    new = new.set_column(new.schema.get_field_index("__ITEM_ID__"), "__ITEM_ID__", pa.array([2]))
    step.process(old, counts)
    first = step.process(new, counts).to_pylist()
    assert [(row["__ITEM_ID__"], row["genre"], row["new"]) for row in first] == [(1, [1], None), (2, None, [5])]
    second = step.process(old, counts).to_pylist()
    assert [(row["__ITEM_ID__"], row["genre"], row["new"]) for row in second] == [(2, None, [5]), (1, [1], None)]
    assert counts["item_features_missing"] == 3


def test_a_column_of_another_type_is_refused_by_name_and_changes_nothing() -> None:
    step = step_of({})
    batch = batch_of(stream_of([item_row(1)]))
    step.process(batch, Counts())
    saved = step.save()
    index = batch.schema.get_field_index("price")
    changed = batch.set_column(index, "price", pa.array([["x"]]))
    with pytest.raises(ValueError, match="item column price: .*string.* in this batch, .*float.* in the item pools"):
        step.process(changed, Counts())
    assert step.save() == saved


def test_actions_of_names_and_keys_of_floats_are_refused_by_name() -> None:
    batch = batch_of(stream_of([item_row(1)]))
    index = batch.schema.get_field_index("__ACTIONS__")
    with pytest.raises(ValueError, match="column __ACTIONS__"):
        step_of({"positive_actions": [1]}).process(batch.set_column(index, "__ACTIONS__", pa.array([["a"]])), Counts())
    with pytest.raises(ValueError, match="column price: expected integers"):
        step_of({"index_feature": "price"}).process(batch, Counts())


def test_raw_features_of_a_negative_are_null_and_audit_ids_are_its_own() -> None:
    raw = pa.field("blob", pa.list_(pa.binary()), metadata=record_batch.RAW_METADATA)
    batch = batch_of(stream_of([item_row(1), item_row(2)]))
    audit = pa.array([[each] for each in fid.audit_fid(*provenance_of(batch)).tolist()])
    batch = batch.append_column(raw, pa.array([[b"a"], [b"b"]]))
    batch = batch.append_column(record_batch.fid_field(record_batch.AUDIT), audit)
    made = step_of({}).process(batch, Counts())
    assert made.column("blob").to_pylist() == [[b"a"], None, [b"b"]]
    expected = fid.audit_fid(*provenance_of(made)).tolist()
    assert made.column(record_batch.AUDIT).to_pylist() == [[each] for each in expected]
    assert len(set(expected)) == 3
    assert made.schema.field("blob").metadata == record_batch.RAW_METADATA


def test_the_input_stays_as_it_is_and_a_batch_of_no_rows_gives_none() -> None:
    batch = batch_of(stream_of([item_row(1), item_row(2)]))
    before = copy.deepcopy(batch.to_pylist())
    step = step_of({"negative_action": 3})
    step.process(batch, Counts())
    assert batch.to_pylist() == before
    assert step.process(batch.slice(0, 0), Counts()).num_rows == 0


def test_rows_that_do_not_say_where_they_come_from_are_refused() -> None:
    batch = batch_of(stream_of([item_row(1)])).drop_columns(["__SOURCE_OFFSET__"])
    with pytest.raises(ValueError, match="__SOURCE_OFFSET__"):
        step_of({}).process(batch, Counts())


def test_a_step_travels_to_another_process_with_its_pools() -> None:
    step = step_of({})
    run(step, [batch_of(stream_of([item_row(1), item_row(2)]))])
    assert pickle.loads(pickle.dumps(step.pool)).save() == step.save()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"neg_num": 0}, "neg_num"),
        ({"neg_num": 256}, "neg_num"),
        ({"label_index": -1}, "label_index"),
        ({"item_features": []}, "item_features"),
        ({"item_features": ["a", "a"]}, "item_features"),
        ({"item_features": ["__UID__"]}, "item_features"),
        ({"start_num": -1}, "start_num"),
        ({"start_num": 5, "max_item_num": 5}, "max_item_num"),
        ({"easy_hard_ratio": 1.5, "per_channel": True}, "easy_hard_ratio"),
        ({"easy_hard_ratio": 0.5}, "easy_hard_ratio"),
        ({"origin_neg_in_pool_proba": -0.1}, "origin_neg_in_pool_proba"),
        ({"action_priority": [1, 2, 1]}, "action_priority"),
        ({"positive_actions": [1], "cache_negative_actions": [1]}, "cache_negative_actions"),
        ({"neg_sample_declay_factor": float("inf")}, "neg_sample_declay_factor"),
        ({"negative_label": 1.0}, "negative_label"),
    ],
)
def test_a_wrong_setting_is_named(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=f"{STEP}.{field}"):
        step_of(changed)
