"""Stores in tf.train.Checkpoint: what is saved, what comes back, and what is removed."""

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Adagrad, Adam, CountingFilter, Occurrence, Segment, Sgd, TableConfig

TABLES = [
    TableConfig("items", segments=[Segment(1, Sgd(1.0)), Segment(4, Adam(0.1))]),
    TableConfig("rare", 2, Adagrad(0.1), occurrence=Occurrence(CountingFilter(1000), 1)),
]


class Model(tf.Module):
    """A dense variable, and stores below a list."""

    def __init__(self, stores: int = 1) -> None:
        super().__init__()
        self.bias = tf.Variable([0.0, 0.0])
        self.stores = [EmbeddingStore(TABLES, f"checkpoints-{uuid4().hex}") for _ in range(stores)]

    @property
    def store(self) -> EmbeddingStore:
        return self.stores[0]

    def train(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.bias.assign(random.normal(size=2))
        for store in self.stores:
            for table in ("items", "rare"):
                dim = store.table(table).dim
                store.apply_gradients(table, random.integers(0, 50, 30), random.normal(size=(30, dim)))

    def content(self) -> list[np.ndarray]:
        tables = [array for store in self.stores for name in ("items", "rare") for array in store.dump(name, True)]
        return [self.bias.numpy(), *tables]


def _assert_equal(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


def _folders_of_tables(folder: Path) -> list[str]:
    return sorted(path.name.split(".tables-")[0] for path in folder.glob("*.tables-*"))


@pytest.fixture
def model() -> Model:
    model = Model()
    for seed in range(3):
        model.train(seed)
    assert all(model.store.sizes().values())
    return model


def test_tables_with_their_state_and_filters_come_back_with_the_variables(model: Model, tmp_path: Path) -> None:
    path = tf.train.Checkpoint(model=model, step=tf.Variable(7)).save(str(tmp_path / "ckpt"))
    other, step = Model(), tf.Variable(0)
    other.train(1)
    tf.train.Checkpoint(model=other, step=step).restore(path).assert_consumed()
    _assert_equal(other.content(), model.content())
    assert step.numpy() == 7
    for each in (model, other):
        each.train(5)
    _assert_equal(other.content(), model.content())


_RESTORE = """
import sys
import tensorflow as tf
from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import TableConfig

model = tf.Module()
model.bias = tf.Variable([0.0, 0.0])
model.stores = [EmbeddingStore([TableConfig.from_text(text) for text in sys.argv[3:]], "another name")]
tf.train.Checkpoint(model=model).restore(sys.argv[1]).expect_partial()
model.stores[0].save(sys.argv[2])
print(model.bias.numpy().tolist())
"""


def test_another_process_restores_a_checkpoint(model: Model, tmp_path: Path) -> None:
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    texts = [table.to_text() for table in TABLES]
    done = subprocess.run(
        [sys.executable, "-c", _RESTORE, path, str(tmp_path / "there"), *texts],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(model.bias.numpy().tolist())
    for written in model.store.save(tmp_path / "here"):
        assert (tmp_path / "there" / Path(written).name).read_bytes() == Path(written).read_bytes()


def test_several_stores_are_told_apart_by_their_place_in_the_model(tmp_path: Path) -> None:
    model, other = Model(stores=2), Model(stores=2)
    model.train(0)
    model.store.erase("items", range(20))
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt"))
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    _assert_equal(other.content(), model.content())
    assert not np.array_equal(model.stores[0].dump("items")[0], model.stores[1].dump("items")[0])


def test_a_store_may_be_the_whole_checkpoint(model: Model, tmp_path: Path) -> None:
    path = tf.train.Checkpoint(model.store).write(str(tmp_path / "ckpt"))
    before = model.content()
    model.store.clear("items")
    tf.train.Checkpoint(model.store).read(path).assert_consumed()
    _assert_equal(model.content(), before)


def test_a_store_that_is_attached_after_the_restore_gets_its_tables_then(model: Model, tmp_path: Path) -> None:
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt"))
    later = tf.train.Checkpoint()
    later.read(path)
    later.model = Model()
    _assert_equal(later.model.content(), model.content())


def test_a_manager_removes_tables_one_save_after_their_checkpoint(model: Model, tmp_path: Path) -> None:
    checkpoint = tf.train.Checkpoint(model=model)
    manager = tf.train.CheckpointManager(checkpoint, str(tmp_path), max_to_keep=2)
    contents = {}
    for seed in range(5):
        model.train(seed)
        contents[manager.save()] = model.content()
    assert [Path(path).name for path in manager.checkpoints] == ["ckpt-4", "ckpt-5"]
    assert _folders_of_tables(tmp_path) == ["ckpt-3", "ckpt-4", "ckpt-5"]
    for path in manager.checkpoints:
        checkpoint.restore(path).assert_consumed()
        _assert_equal(model.content(), contents[path])


def test_tables_of_other_names_are_left_alone(model: Model, tmp_path: Path) -> None:
    for folder in ("other-1.tables-5", "ckpt-a.tables-5", "ckpt-1.tables-mine", "ckpt.tables-5", "ckpt-3.tables-5"):
        (tmp_path / folder).mkdir()
    tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt-2"))
    assert _folders_of_tables(tmp_path) == ["ckpt-1", "ckpt-2", "ckpt-a", "other-1"]


def test_a_prefix_that_is_written_twice_holds_what_was_written_last(model: Model, tmp_path: Path) -> None:
    checkpoint = tf.train.Checkpoint(model=model)
    for seed in range(3):
        model.train(seed)
        path = checkpoint.write(str(tmp_path / "ckpt"))
    last = model.content()
    model.train(3)
    checkpoint.read(path).assert_consumed()
    _assert_equal(model.content(), last)
    assert _folders_of_tables(tmp_path) == ["ckpt", "ckpt"]  # the one before goes with the next


def test_a_save_that_fails_leaves_the_checkpoint_as_it_was(model: Model, tmp_path: Path) -> None:
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.write(str(tmp_path / "ckpt"))
    before = model.content()
    model.train(1)
    cut = model.store.cut()
    with pytest.raises(tf.errors.FailedPreconditionError, match="a snapshot of store .* is being written"):
        checkpoint.write(path)
    cut.drop()
    checkpoint.read(path).assert_consumed()
    _assert_equal(model.content(), before)


def test_a_function_can_save(model: Model, tmp_path: Path) -> None:
    checkpoint = tf.train.Checkpoint(model=model)
    save = tf.function(checkpoint.write)
    for seed in range(2):
        model.train(seed)
        path = save(tf.constant(str(tmp_path / "ckpt")))
    saved = model.content()
    model.train(2)
    checkpoint.read(path.numpy().decode()).assert_consumed()
    _assert_equal(model.content(), saved)


def test_a_checkpoint_in_the_background_has_the_tables_too(model: Model, tmp_path: Path) -> None:
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.write(str(tmp_path / "ckpt"), options=tf.train.CheckpointOptions(enable_async=True))
    checkpoint.sync()
    saved = model.content()
    model.train(1)
    checkpoint.read(path).assert_consumed()
    _assert_equal(model.content(), saved)


def test_a_checkpoint_is_restored_from_where_its_folder_was_moved(model: Model, tmp_path: Path) -> None:
    checkpoint = tf.train.Checkpoint(model=model)
    checkpoint.write(str(tmp_path / "first" / "ckpt"))
    saved = model.content()
    model.train(1)
    (tmp_path / "first").rename(tmp_path / "second")
    checkpoint.read(str(tmp_path / "second" / "ckpt")).assert_consumed()
    _assert_equal(model.content(), saved)


def test_a_prefix_may_be_relative(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tf.train.Checkpoint(model=model)
    checkpoint.write("ckpt")
    saved = model.content()
    model.train(1)
    checkpoint.read("ckpt").assert_consumed()
    _assert_equal(model.content(), saved)


def test_damaged_tables_are_refused_and_the_store_stays(model: Model, tmp_path: Path) -> None:
    checkpoint = tf.train.Checkpoint(model.store)
    path = checkpoint.write(str(tmp_path / "ckpt"))
    (file,) = tmp_path.rglob("items.*.table")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    before = model.content()
    with pytest.raises(tf.errors.DataLossError, match=r"items.*\.table, block \d+"):
        checkpoint.read(path)
    file.unlink()
    with pytest.raises(tf.errors.NotFoundError, match=file.name):
        checkpoint.read(path)
    _assert_equal(model.content(), before)


def test_a_checkpoint_without_tables_leaves_the_store_as_it_is(model: Model, tmp_path: Path) -> None:
    path = tf.train.Checkpoint(model=tf.train.Checkpoint(bias=tf.Variable([3.0, 4.0]))).write(str(tmp_path / "ckpt"))
    before = model.content()[1:]
    tf.train.Checkpoint(model=model).read(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(model.bias, [3.0, 4.0])
    _assert_equal(model.content()[1:], before)


def test_a_saved_model_holds_no_tables_among_its_variables(model: Model, tmp_path: Path) -> None:
    tf.saved_model.save(model, str(tmp_path / "export"))
    assert sorted(path.name for path in (tmp_path / "export" / "variables").iterdir()) == [
        "variables.data-00000-of-00001",
        "variables.index",
    ]


def test_a_checkpoint_does_not_keep_a_store_from_being_freed(tmp_path: Path) -> None:
    store = EmbeddingStore(TABLES, "checkpoints-freed")
    tf.train.Checkpoint(store).write(str(tmp_path / "ckpt"))
    del store
    with pytest.raises(tf.errors.NotFoundError):
        EmbeddingStore.attach("checkpoints-freed")
