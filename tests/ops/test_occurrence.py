"""Which ids get an entry: occurrence filters, and what they remember over a restart."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import (
    CountingFilter,
    Occurrence,
    PooledFeature,
    ProbabilisticFilter,
    Sgd,
    SlidingFilter,
    TableConfig,
    Zeros,
)
from tests.conformance.covers import covers
from tests.fakes.stores import open_store

_FAR = 3 << 17
_SLIDING = SlidingFilter(capacity=100, split_num=7)


def _table(occurrence: Occurrence | None, learning_rate: float = 0.1) -> TableConfig:
    return TableConfig("t", 1, Sgd(learning_rate), Zeros(), occurrence=occurrence)


def _kept(store: EmbeddingStore, ids: Sequence[int]) -> list[int]:
    """For each of `ids`, seen one after the other, 1 where its gradient was taken."""
    kept = []
    for fid in ids:
        before = store.lookup("t", [fid]).numpy()
        store.apply_gradients("t", [fid], [[-1.0]])
        kept.append(int((store.lookup("t", [fid]).numpy() != before).any()))
    return kept


# The vector's numbers are those of a call that asks for each sighting alone. A call with several sightings of an id
# sums their gradients and asks once, with their number: of [0, 0, 1] both sightings of 0 are taken or none.
@covers("emb:H8")
def test_an_id_is_admitted_once_it_was_seen_often_enough() -> None:
    one_by_one, together = (open_store(_table(Occurrence(CountingFilter(), threshold=3))) for _ in range(2))
    read: list[list[float]] = []
    read_together: list[list[float]] = []
    for _ in range(4):
        _kept(one_by_one, [0, 0, 1])
        together.apply_gradients("t", [0, 0, 1], [[-1.0]] * 3)
        for store, reads in ((one_by_one, read), (together, read_together)):
            reads.append([round(float(weight), 4) for weight in store.lookup("t", [0, 1]).numpy()[:, 0]])
    assert read == [[0, 0], [0.1, 0], [0.3, 0], [0.5, 0.1]]
    assert read_together == [[0, 0], [0, 0], [0.2, 0], [0.4, 0.1]]


@covers("emb:F6")
def test_a_table_without_a_filter_takes_every_id_and_saves_no_filter(tmp_path: Path) -> None:
    tables = {"none": _table(None), "sliding": _table(Occurrence(_SLIDING, threshold=3))}
    files = {}
    for name, table in tables.items():
        store = open_store(table)
        store.apply_gradients("t", [1, _FAR, -5], [[-1.0]] * 3)
        store.save(tmp_path / name)
        files[name] = sorted(path.name for path in (tmp_path / name).iterdir() if "filter" in path.name)
        assert store.size("t") == (3 if name == "none" else 0)
    assert files["none"] == []
    assert len(files["sliding"]) == 1


def test_sightings_of_one_batch_count_together_and_do_not_admit_by_themselves() -> None:
    store = open_store(_table(Occurrence(CountingFilter(), threshold=3)))
    store.apply_gradients("t", [0, 0, 0, 0, 1], [[-1.0]] * 5)
    assert store.size("t") == 0
    store.apply_gradients("t", [0, 1], [[-1.0]] * 2)
    assert store.contains("t", [0, 1]).numpy().tolist() == [True, False]
    features = [PooledFeature("a", "t"), PooledFeature("b", "t")]
    store.apply_pooled_gradients(features, [[1], [1]], [[0, 1]] * 2, [[[-1.0]]] * 2)
    store.apply_pooled_gradients(features[:1], [[1]], [[0, 1]], [[[-1.0]]])
    assert store.contains("t", [0, 1]).numpy().tolist() == [True, True]


@covers("emb:F3")
@pytest.mark.parametrize("kind", [_SLIDING, CountingFilter()])
def test_gradients_are_taken_from_the_sighting_after_the_threshold_on(kind: SlidingFilter) -> None:
    store = open_store(_table(Occurrence(kind, threshold=3)))
    assert [_kept(store, [1, _FAR, 1]) for _ in range(4)] == [[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]]
    stats = store.stats("t")
    assert (stats.admitted, stats.rejected) == (2, 6)


_GO_ON = """
import json, sys
from tests.ops.test_occurrence import _FAR, _SLIDING, _kept, _table
from millrace.ops.table_config import Occurrence
from tests.fakes.stores import open_store

store = open_store(_table(Occurrence(_SLIDING, threshold=3)))
store.restore(sys.argv[1])
print(json.dumps([_kept(store, [1, _FAR, 1]) for _ in range(2)]))
"""


@covers("emb:F11", "emb:F4")
def test_a_filter_decides_alike_in_the_process_that_restores_it(tmp_path: Path) -> None:
    store = open_store(_table(Occurrence(_SLIDING, threshold=3)))
    for _ in range(2):
        _kept(store, [1, _FAR, 1])
    store.save(tmp_path)
    expected = [_kept(store, [1, _FAR, 1]) for _ in range(2)]
    assert expected == [[1, 0, 1], [1, 1, 1]]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", _GO_ON, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_assignments_pass_unasked() -> None:
    store = open_store(_table(Occurrence(ProbabilisticFilter(), threshold=1_000_000)))
    store.assign("t", range(100), np.ones((100, 1)))
    store.assign_add("t", range(100, 200), np.ones((100, 1)))
    assert store.size("t") == 200
    store.assign("t", range(200, 300), np.ones((100, 1)), ask_filter=True)
    assert store.size("t") < 210


@covers("emb:F9")
def test_added_values_are_dropped_until_their_id_is_admitted(tmp_path: Path) -> None:
    store = open_store(_table(Occurrence(_SLIDING, threshold=2)))

    def add_and_read(to: EmbeddingStore) -> float:
        to.assign_add("t", [7], [[1.0]], ask_filter=True)
        return float(to.lookup("t", [7])[0, 0])

    assert add_and_read(store) == 0
    store.save(tmp_path)
    assert [add_and_read(store) for _ in range(2)] == [0, 1]
    store.restore(tmp_path)
    assert [add_and_read(store) for _ in range(2)] == [0, 1]


@covers("emb:F10")
@pytest.mark.parametrize("kind", [_SLIDING, CountingFilter()])
def test_a_threshold_of_40_admits_at_the_41st_sighting(kind: SlidingFilter) -> None:
    store = open_store(_table(Occurrence(kind, threshold=40)))
    assert _kept(store, [5] * 42) == [0] * 40 + [1] * 2


def test_thresholds_differ_by_slot() -> None:
    store = open_store(_table(Occurrence(CountingFilter(), threshold=1, slot_thresholds={2: 0, 3: 2})))
    slots = [1 << 48, 2 << 48, 3 << 48]
    assert [_kept(store, slots) for _ in range(3)] == [[0, 1, 0], [1, 1, 0], [1, 1, 1]]


def test_a_lookup_creates_nothing_and_counts_nothing_in_a_filtered_table() -> None:
    store = open_store(_table(Occurrence(CountingFilter(), threshold=1)))
    for _ in range(3):
        store.lookup("t", [1], missing="create")
    assert store.size("t") == 0
    assert _kept(store, [1, 1]) == [0, 1]


def test_a_probabilistic_filter_admits_about_as_many_as_it_should() -> None:
    store = open_store(_table(Occurrence(ProbabilisticFilter(equal_probability=False), threshold=7)))
    store.apply_gradients("t", np.arange(10_000), np.ones((10_000, 1)))
    assert abs(store.size("t") - 1428) < 150
    other = open_store(*store.tables)
    other.apply_gradients("t", np.arange(10_000), np.ones((10_000, 1)))
    np.testing.assert_array_equal(other.dump("t")[0], store.dump("t")[0])


def test_a_gradient_that_is_left_out_is_no_sighting() -> None:
    table = TableConfig("t", 1, Sgd(), Zeros(), occurrence=Occurrence(CountingFilter(), 1), non_finite="skip")
    store = open_store(table)
    for gradient in (np.nan, 1.0, np.nan):
        store.apply_gradients("t", [1], [[gradient]])
        assert store.size("t") == 0
    store.apply_gradients("t", [1], [[1.0]])
    assert store.size("t") == 1


def test_a_cleared_table_has_seen_nothing() -> None:
    store = open_store(_table(Occurrence(CountingFilter(), threshold=2)))
    _kept(store, [1, 1])
    store.clear("t")
    assert _kept(store, [1, 1, 1]) == [0, 0, 1]


def test_a_snapshot_without_filter_is_restored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, counting = open_store(_table(None)), open_store(_table(Occurrence(CountingFilter(), threshold=1)))
    plain.assign("t", [1], [[0.5]])
    plain.save(tmp_path / "plain")
    counting.restore(tmp_path / "plain")
    assert "the occurrence filter of table 't' has no state for this shard: it starts empty" in caplog.text
    assert counting.size("t") == 1
    assert _kept(counting, [2, 2]) == [0, 1]


def test_the_state_of_another_filter_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    counting, sliding = (open_store(_table(Occurrence(kind, 1))) for kind in (CountingFilter(), _SLIDING))
    counting.assign("t", [1], [[0.5]])
    counting.save(tmp_path)
    sliding.assign("t", [2], [[0.5]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="filter"):
        sliding.restore(tmp_path)
    assert sliding.dump("t")[0].tolist() == [2]


def test_an_export_has_no_filter(tmp_path: Path) -> None:
    store = open_store(_table(Occurrence(CountingFilter(), threshold=5)))
    assert [Path(path).suffix for path in store.save(tmp_path / "all")] == [".table", ".filter"]
    assert [Path(path).suffix for path in store.save(tmp_path / "export", with_state=False)] == [".table"]
    serving = open_store(store.tables[0].for_serving())
    serving.assign("t", [1], [[1.0]], ask_filter=True)
    assert serving.size("t") == 1
