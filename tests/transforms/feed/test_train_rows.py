"""Labels, sampling, shards and the whole chain from joined rows to train batches, against row-wise references."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Sgd, TableConfig
from millrace.transforms.batch import record_batch, train_check
from millrace.transforms.batch.draws import uniform
from millrace.transforms.batch.fid import fid_v2
from millrace.transforms.batch.label_column import label_lists, label_matrix
from millrace.transforms.batch.provenance import provenance_of
from millrace.transforms.feed import join
from millrace.transforms.feed import shards as fid_sharding
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.feed.sampling import positive_rows, sample_negatives
from millrace.transforms.feed.train_rows import label_rows, rows_to_train_batch
from tests.reference.rows_reference import fid_of, label_of, shard_of, uniform_of

_CONFIG = FeedConfig(
    "m",
    (FidFeature("user", 1, "user_id"), FidFeature("device", 2, "context.device")),
    (LabelRule("click", ("click", "like")), LabelRule("good", ("rate",), 4.0)),
)
_action = st.tuples(
    st.sampled_from(["click", "like", "rate", "share"]), st.one_of(st.none(), st.floats(0, 5, width=32))
)
_row = st.tuples(
    st.integers(0, 1 << 40), st.one_of(st.none(), st.sampled_from(["phone", "tv"])), st.lists(_action, max_size=3)
)


def _joined(rows: list[tuple[int, str | None, list[tuple[str, float | None]]]]) -> pa.RecordBatch:
    records = [
        {
            "request_id": f"r-{index}",
            "user_id": user,
            "item_id": index,
            "timestamp_ms": 1_764_000_000_999,
            "context.device": device,
            "__SOURCE_PARTITION__": index % 3,
            "__SOURCE_OFFSET__": index,
            "__SOURCE_ROW__": index % 64,
            "event_time_ms": 1_764_000_001_500,
            "actions": [name for name, _ in actions],
            "action_values": [value for _, value in actions],
        }
        for index, (user, device, actions) in enumerate(rows)
    ]
    return pa.RecordBatch.from_pylist(records, schema=join.joined_schema(_CONFIG))


@settings(deadline=None, max_examples=40)
@given(st.lists(_row, max_size=20))
def test_batches_equal_the_reference(rows: list[tuple[int, str | None, list[tuple[str, float | None]]]]) -> None:
    joined = _joined(rows)
    batch, dropped = rows_to_train_batch(joined, _CONFIG)
    assert dropped == 0
    train_check.validate_train_batch(batch, _CONFIG.feature_columns, len(_CONFIG.labels))
    for index, row in enumerate(joined.to_pylist()):
        made = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
        assert made["__LABEL__"] == [label_of(rows[index][2], rule) for rule in _CONFIG.labels]
        assert [made[feature.name] for feature in _CONFIG.features] == [fid_of(row, f) for f in _CONFIG.features]
        assert (made["__REQ_TIME__"], made["__EVENT_TIME_MS__"]) == (1_764_000_000, 1_764_000_001_500)
        assert made["__ACTIONS__"] == row["actions"]
        assert (made["__WEIGHT__"], made["__SAMPLE_RATE__"]) == (1.0, 1.0)


@settings(deadline=None, max_examples=40)
@given(st.lists(_row, max_size=40), st.floats(0.01, 0.99), st.integers(0, 3))
def test_sampling_keeps_positives_and_chooses_negatives_by_provenance(rows: list[Any], rate: float, seed: int) -> None:
    config = dataclasses.replace(_CONFIG, negative_rate=rate, seed=seed)
    whole, _ = rows_to_train_batch(_joined(rows), _CONFIG)
    sampled, dropped = rows_to_train_batch(_joined(rows), config)
    draws = uniform(seed, "negative_sampling", *provenance_of(whole))
    expected = [
        offset
        for offset, labels, draw in zip(
            whole["__SOURCE_OFFSET__"].to_pylist(), whole["__LABEL__"].to_pylist(), draws.tolist(), strict=True
        )
        if max(labels) > 0 or draw < rate
    ]
    assert sampled["__SOURCE_OFFSET__"].to_pylist() == expected
    assert dropped == len(rows) - len(expected)
    assert set(sampled["__SAMPLE_RATE__"].to_pylist()) <= {float(np.float32(rate))}


def test_a_slice_is_sampled_as_the_whole() -> None:
    whole, _ = rows_to_train_batch(_joined([(1, None, [])] * 500), _CONFIG)
    kept = sample_negatives(whole, 0.3, 7)[0]
    parts = [sample_negatives(whole.slice(at, 100), 0.3, 7)[0] for at in range(0, 500, 100)]
    assert record_batch.concat(parts).equals(kept)


def test_draws_are_uniform_and_differ_by_seed_and_transform() -> None:
    rows = np.arange(100_000)
    draws = uniform(0, "t", rows % 4, rows, rows % 3)
    counts = np.histogram(draws, bins=10, range=(0.0, 1.0))[0]
    assert abs(counts - 10_000).max() < 500
    assert abs(np.corrcoef(draws, uniform(1, "t", rows % 4, rows, rows % 3))[0, 1]) < 0.02
    assert abs(np.corrcoef(draws, uniform(0, "u", rows % 4, rows, rows % 3))[0, 1]) < 0.02
    assert [uniform_of(0, "t", (i % 4, i, i % 3)) for i in range(50)] == draws[:50].tolist()


def test_the_rate_corrects_the_odds_of_what_is_left() -> None:
    rng = np.random.default_rng(0)
    rows = [(1, None, [("click", None)] if rng.random() < 0.2 else []) for _ in range(20_000)]
    sampled, _ = sample_negatives(rows_to_train_batch(_joined(rows), _CONFIG)[0], 0.25, 0)
    seen = label_matrix(sampled["__LABEL__"])[:, 0].mean()
    rates = sampled["__SAMPLE_RATE__"].to_numpy()
    assert np.log(seen / (1 - seen)) + np.log(rates[0]) == pytest.approx(np.log(0.2 / 0.8), abs=0.06)


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.1])
def test_a_wrong_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        sample_negatives(rows_to_train_batch(_joined([]), _CONFIG)[0], rate, 0)


def test_labels_to_matrix_and_back() -> None:
    labels = np.array([[1.0, 0.0], [record_batch.INVALID_LABEL, 1.0]], np.float32)
    assert np.array_equal(label_matrix(label_lists(labels)), labels)
    assert label_matrix(label_lists(labels).slice(1)).tolist() == [labels[1].tolist()]
    with pytest.raises(ValueError, match="1 to 2 labels"):
        label_matrix(pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32())))


def test_labels_of_a_slice_are_its_own() -> None:
    actions = pa.array([["click"], [], ["rate"]]).slice(1)
    values = pa.array([[None], [], [5.0]], pa.list_(pa.float64())).slice(1)
    assert label_rows(actions, values, _CONFIG.labels).to_pylist() == [[0.0, 0.0], [0.0, 1.0]]
    assert positive_rows(label_rows(actions, values, _CONFIG.labels)).tolist() == [False, True]


@given(st.lists(st.integers(0, (1 << 48) - 1), max_size=30), st.integers(1, 7))
def test_rows_go_to_the_shard_of_their_user(users: list[int], shards: int) -> None:
    batch, _ = rows_to_train_batch(_joined([(user, None, []) for user in users]), _CONFIG)
    split = fid_sharding.by_user(batch, shards, fid_sharding.user_slot(_CONFIG))
    expected = [shard_of((1 << 48) | user, shards) for user in users]
    assert fid_sharding.shard_of(fid_v2(1, np.array(users, np.int64)), shards).tolist() == expected
    assert sum(part.num_rows for part in split.values()) == len(users)
    for shard, part in split.items():
        assert part["__SOURCE_OFFSET__"].to_pylist() == [i for i, wanted in enumerate(expected) if wanted == shard]


def test_feed_and_tables_give_every_fid_the_same_shard(tmp_path: Path) -> None:
    edges = [-(1 << 63), -8, -7, -1, 0, 6, 7, (1 << 48) - 1, 1 << 48, (1 << 63) - 1]
    fids = np.unique(np.array([*edges, *np.random.default_rng(1).integers(-(1 << 63), 1 << 63, 200, np.int64)]))
    store, part = (EmbeddingStore([TableConfig("t", dim=1, optimizer=Sgd(1.0))], name) for name in ("all", "part"))
    store.assign("t", fids, np.ones((len(fids), 1), np.float32))
    store.save(tmp_path)
    for shards in (1, 3, 7):
        expected = fid_sharding.shard_of(fids, shards)
        for shard in range(shards):
            part.restore(tmp_path, shard=shard, num_shards=shards)
            assert part.dump("t")[0].tolist() == fids[expected == shard].tolist()


def test_each_joined_row_is_kept_or_counted_as_dropped() -> None:
    config = dataclasses.replace(_CONFIG, negative_rate=0.5)
    batch, dropped = rows_to_train_batch(_joined([(1, None, [])] * 100), config)
    assert batch.num_rows + dropped == 100
    assert 20 < batch.num_rows < 80
