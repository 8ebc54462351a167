"""The task contract: what the feed and the server get from it, and what a wrong declaration says."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from millrace.ops.table_config import Adagrad, Int8, Occurrence
from millrace.runtime.errors import UserError
from millrace.training.task import Head, LabelRule, SparseFeature, Task, load_task
from millrace.transforms.feed.config import FidFeature

REPOSITORY = Path(__file__).resolve().parents[3]
CLICK = Head("click", LabelRule("click", ("click",)))


def task_of(*features: SparseFeature, heads: tuple[Head, ...] = (CLICK,)) -> Task:
    class Made(Task):
        name = "made"

        def build_model(self, embeddings: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
            return {}

    made = Made()
    made.features, made.heads = features, heads
    return made


def test_features_of_one_column_and_slot_share_a_batch_column() -> None:
    task = task_of(SparseFeature("user", 1, "user_id", 8), SparseFeature("user_bias", 1, "user_id", 1))
    task.check()
    assert task.fid_columns() == {"user": "user", "user_bias": "user"}
    assert task.feed_config().features == (FidFeature("user", 1, "user_id", "int64"),)
    assert [table.name for table in task.tables()] == ["user", "user_bias"]


def test_feed_settings_can_be_overridden() -> None:
    task = task_of(SparseFeature("user", 1, "user_id", 8))
    config = task.feed_config(audit=True, window_seconds=2.5)
    assert (config.model, config.audit, config.window_seconds) == ("made", True, 2.5)


def test_serving_inputs_are_named_without_context() -> None:
    task = task_of(
        SparseFeature("u", 1, "user_id", 8),
        SparseFeature("d", 2, "context.device", 1),
        SparseFeature("h", 3, "context.hour", 1, dtype="int64"),
    )
    assert task.serving_inputs() == {"user_id": "int64", "device": "string", "hour": "int64"}


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (SparseFeature("user", 32767, "user_id", 8), r"user\.slot=32767.*1\.\.32766"),
        (SparseFeature("user", 1, "uid", 8), r"user\.column=uid.*context"),
        (SparseFeature("user", 1, "user_id", 0), r"user\.dim=0"),
        (SparseFeature("user", 1, "user_id", 8, combiner="max"), r"user\.combiner=max.*sum or mean"),
    ],
)
def test_a_wrong_feature_is_refused_by_name(feature: SparseFeature, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_of(feature).check()


def test_features_of_one_table_must_agree() -> None:
    task = task_of(
        SparseFeature("a", 1, "user_id", 8, table="shared"),
        SparseFeature("b", 2, "item_id", 8, table="shared", optimizer=Adagrad(0.9)),
    )
    with pytest.raises(UserError, match="shared"):
        task.check()


def test_a_repeated_feature_name_and_no_head_are_refused() -> None:
    twice = SparseFeature("a", 1, "user_id", 8)
    with pytest.raises(UserError, match="not unique"):
        task_of(twice, twice).check()
    with pytest.raises(UserError, match="heads"):
        task_of(twice, heads=()).check()


def test_the_fingerprint_changes_with_the_shape_but_not_with_a_learning_rate() -> None:
    plain = task_of(SparseFeature("a", 1, "user_id", 8)).schema_fingerprint()
    assert task_of(SparseFeature("a", 1, "user_id", 8, optimizer=Adagrad(0.7))).schema_fingerprint() == plain
    assert task_of(SparseFeature("a", 1, "user_id", 9)).schema_fingerprint() != plain


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("millrace.examples.movies", "not package.module:ClassName"),
        ("examples.nothing:Task", "no module examples.nothing"),
        ("millrace.examples.movies:Nothing", "it holds: MovieContent, MovieRanking"),
    ],
)
def test_an_unknown_task_is_a_users_error_with_the_choices(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task(path)


def test_loading_a_task_imports_no_tensorflow() -> None:
    code = (
        "import sys; from millrace.training.task import load_task;"
        "load_task('millrace.examples.movies:MovieRanking').feed_config();"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60).returncode == 0


def test_a_feature_says_how_its_table_is_compressed_filtered_and_expired() -> None:
    user, item = task_of(
        SparseFeature("user", 1, "user_id", 4, compressor=Int8(2.0), occurrence=Occurrence(threshold=2)),
        SparseFeature("item", 2, "item_id", 4, expire_days=30.0),
    ).tables()
    assert (user.segments[0].compressor, user.occurrence) == (Int8(2.0), Occurrence(threshold=2))
    assert (item.expire_days, item.occurrence) == (30.0, None)
