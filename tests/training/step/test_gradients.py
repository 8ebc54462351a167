"""One update: norms, order and lag, against a real store."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Constant, Sgd, TableConfig
from millrace.training.step.gradients import ClipMode, Clipping, GradientUpdate, clip
from tests.conformance.covers import covers

ID = [7]


class Model:
    """loss = sum of the first three dimensions of one entry + one variable; everything begins as 1."""

    def __init__(self, name: str, with_variable: bool = True, **settings: Any) -> None:
        self.store = EmbeddingStore([TableConfig("t", dim=4, optimizer=Sgd(1.0), initializer=Constant(1.0))], name)
        self.variable = keras.Variable(1.0)
        self.step = tf.Variable(0, dtype=tf.int64)
        self.with_variable = with_variable
        variables = [self.variable] if with_variable else []
        self.update = GradientUpdate(variables, keras.optimizers.SGD(1.0), self.push, self.step, **settings)
        self.run = tf.function(self.learn)

    def push(self, gradients: list[tf.Tensor | None], global_step: tf.Tensor) -> None:
        self.store.apply_gradients("t", ID, gradients[0], global_step)

    def learn(self) -> None:
        embedding = self.store.lookup("t", ID, missing="create")
        variables = [self.variable.value] if self.with_variable else []
        with tf.GradientTape() as tape:
            tape.watch(embedding)
            loss = tf.reduce_sum(embedding[:, :3]) + (self.variable.value if self.with_variable else 0.0)
        dense, sparse = tape.gradient(loss, (variables, [embedding]))
        self.update.apply_gradients(dense, sparse)

    def state(self) -> tuple[float, list[float], int]:
        return float(self.variable.numpy()), self.store.lookup("t", ID).numpy()[0].tolist(), int(self.step.numpy())


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"test/{request.node.name}"
    yield name
    EmbeddingStore.release(name)


@pytest.mark.parametrize("traced", [False, True])
@covers("emb:L9")
def test_one_norm_over_dense_and_sparse_halves_both(name: str, traced: bool) -> None:
    model = Model(name, clipping=Clipping(clip_norm=1.0))
    (model.run if traced else model.learn)()
    assert model.state() == (0.5, [0.5, 0.5, 0.5, 1.0], 1)


@covers("emb:L10")
def test_without_a_limit_embeddings_alone_take_the_whole_gradient(name: str) -> None:
    model = Model(name, with_variable=False)
    model.run()
    assert model.state() == (1.0, [0.0, 0.0, 0.0, 1.0], 1)


@pytest.mark.parametrize("traced", [False, True])
@covers("emb:L11")
def test_an_asynchronous_push_of_dense_gradients_lags_one_step(name: str, traced: bool) -> None:
    model = Model(name, asynchronous_dense=True)
    for _ in range(3):
        (model.run if traced else model.learn)()
    assert model.state() == (-1.0, [-2.0, -2.0, -2.0, 1.0], 3)


def test_a_checkpoint_carries_the_gradient_that_an_asynchronous_push_holds_back(name: str, tmp_path: Any) -> None:
    model, other = Model(name, asynchronous_dense=True), Model(name, asynchronous_dense=True)
    model.run()
    path = tf.train.Checkpoint(update=model.update).write(str(tmp_path / "held"))
    tf.train.Checkpoint(update=other.update).read(path)
    other.run()
    assert other.state()[0] == 0.0


def test_without_any_gradient_nothing_happens(name: str) -> None:
    model = Model(name)
    model.update.apply_gradients([None], [None])
    assert (float(model.variable.numpy()), int(model.step.numpy())) == (1.0, 0)


def test_a_missing_gradient_leaves_the_others_in_their_place(name: str) -> None:
    pushed: list[list[tf.Tensor | None]] = []
    step = tf.Variable(0, dtype=tf.int64)
    update = GradientUpdate([], keras.optimizers.SGD(1.0), lambda gradients, _: pushed.append(gradients), step)
    update.apply_gradients([], [None, tf.ones([1, 2])])
    assert pushed[0][0] is None and pushed[0][1] is not None


def test_mean_comes_before_clipping_and_decay_after_it() -> None:
    variable = keras.Variable(10.0)
    update = GradientUpdate(
        [variable],
        keras.optimizers.SGD(1.0),
        lambda *_: None,
        tf.Variable(0, dtype=tf.int64),
        Clipping(clip_norm=1.0),
        dense_weight_decay=0.1,
        dense_reduce_mean=True,
    )
    update.apply_gradients([tf.constant(2.0)], [], batch_size=4)
    assert variable.numpy() == pytest.approx(10.0 - (0.5 + 0.1 * 10.0))


def test_gradients_of_workers_are_reduced_between_clipping_and_decay() -> None:
    variable = keras.Variable(1.0)
    update = GradientUpdate(
        [variable],
        keras.optimizers.SGD(1.0),
        lambda *_: None,
        tf.Variable(0, dtype=tf.int64),
        Clipping(clip_norm=1.0),
        dense_weight_decay=1.0,
        reduce_dense=lambda gradients: [gradient / 2 for gradient in gradients],
    )
    update.apply_gradients([tf.constant(4.0)], [])
    assert variable.numpy() == pytest.approx(1.0 - (0.5 + 1.0))


def test_a_variable_with_an_optimizer_of_its_own_is_updated_by_that() -> None:
    own, shared = keras.Variable(1.0), keras.Variable(1.0)
    own.optimizer = keras.optimizers.SGD(0.25)
    update = GradientUpdate([own, shared], keras.optimizers.SGD(1.0), lambda *_: None, tf.Variable(0, dtype=tf.int64))
    update.apply_gradients([tf.constant(1.0), tf.constant(1.0)], [])
    assert (own.numpy(), shared.numpy()) == (0.75, 0.0)


def test_tables_see_the_step_before_it_is_incremented(name: str) -> None:
    seen: list[int] = []
    step = tf.Variable(41, dtype=tf.int64)

    def push(_: list[tf.Tensor | None], global_step: tf.Tensor) -> None:
        tf.py_function(lambda value: seen.append(int(value)), [global_step], [])

    update = GradientUpdate([], keras.optimizers.SGD(1.0), push, step)
    tf.function(lambda: update.apply_gradients([], [tf.ones([1, 1])]))()
    assert (seen, int(step.numpy())) == ([41], 42)


@pytest.mark.parametrize("traced", [False, True])
def test_an_update_that_fails_leaves_the_step(name: str, traced: bool) -> None:
    model = Model(name)
    push = tf.function(lambda: model.update.apply_gradients([tf.constant(1.0)], [tf.fill([1, 4], float("nan"))]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="table"):
        push() if traced else push.python_function()
    assert int(model.step.numpy()) == 0


@pytest.mark.parametrize("mode", [ClipMode.GLOBAL_NORM, ClipMode.DENSE_AND_SPARSE, ClipMode.NORM])
def test_an_infinite_norm_is_an_error_and_updates_nothing(name: str, mode: ClipMode) -> None:
    sparse_limit = None if mode is ClipMode.NORM else 1.0
    model = Model(name, clipping=Clipping(mode, 1.0, sparse_limit))
    with pytest.raises(tf.errors.InvalidArgumentError, match="norm of the gradients"):
        model.update.apply_gradients([tf.constant(1.0)], [tf.fill([1, 4], float("inf"))])
    assert (float(model.variable.numpy()), model.store.size("t"), int(model.step.numpy())) == (1.0, 0, 0)


def clipped(clipping: Clipping, step: int = 0) -> tuple[list[Any], list[Any]]:
    """Dense gradients (3, 4) and (0, 12), sparse ones (0, 84): norms 5, 12, 84; dense 13, all 85."""
    dense = [tf.constant([3.0, 4.0]), tf.constant([0.0, 12.0])]
    dense, sparse = clip(clipping, dense, [tf.constant([[0.0, 84.0]])], tf.constant(step, tf.int64))
    return [gradient.numpy().tolist() for gradient in dense], sparse[0].numpy().tolist()


@pytest.mark.parametrize(
    ("clipping", "dense_scales", "sparse_scale"),
    [
        (Clipping(ClipMode.NONE, 1.0), (1, 1), 1),
        (Clipping(ClipMode.GLOBAL_NORM), (1, 1), 1),
        (Clipping(ClipMode.GLOBAL_NORM, 17.0), (0.2, 0.2), 0.2),
        (Clipping(ClipMode.GLOBAL_NORM, 100.0), (1, 1), 1),
        (Clipping(ClipMode.GLOBAL_NORM, 17.0, sparse_clip_norm=34.0), (0.2, 0.2), 0.4),
        (Clipping(ClipMode.DENSE_AND_SPARSE, 6.5), (0.5, 0.5), 1),
        (Clipping(ClipMode.DENSE_AND_SPARSE, 6.5, sparse_clip_norm=21.0), (0.5, 0.5), 0.25),
        (Clipping(ClipMode.NORM, 6.0), (1, 0.5), 6 / 84),
    ],
)
def test_each_mode_scales_by_its_own_norms(
    clipping: Clipping, dense_scales: tuple[float, float], sparse_scale: float
) -> None:
    dense, sparse = clipped(clipping)
    np.testing.assert_allclose(dense[0], np.array([3, 4]) * dense_scales[0], rtol=1e-6)
    np.testing.assert_allclose(dense[1], np.array([0, 12]) * dense_scales[1], rtol=1e-6)
    np.testing.assert_allclose(sparse, np.array([[0, 84]]) * sparse_scale, rtol=1e-6)


def test_clipping_by_value_cuts_each_number() -> None:
    dense, sparse = clip(
        Clipping(ClipMode.VALUE, 2.0), [tf.constant([-3.0, 1.0])], [tf.constant([5.0])], tf.constant(0)
    )
    assert (dense[0].numpy().tolist(), sparse[0].numpy().tolist()) == ([-2.0, 1.0], [2.0])


@pytest.mark.parametrize(("step", "scale"), [(0, 0.0), (5, 0.1), (10, 0.2), (99, 0.2)])
def test_the_sparse_limit_warms_up_from_zero(step: int, scale: float) -> None:
    dense, sparse = clipped(Clipping(clip_norm=17.0, sparse_warmup_steps=10), step)
    np.testing.assert_allclose(dense[0], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(sparse, [[0, 84 * scale]], rtol=1e-6)


def test_zero_gradients_stay_zero_also_at_a_limit_of_zero() -> None:
    dense, sparse = clip(
        Clipping(clip_norm=1.0, sparse_warmup_steps=10), [tf.zeros([2])], [tf.zeros([2])], tf.constant(0)
    )
    assert (dense[0].numpy().tolist(), sparse[0].numpy().tolist()) == ([0, 0], [0, 0])


def test_limits_that_contradict_the_mode_are_refused() -> None:
    with pytest.raises(ValueError, match="needs clip_norm"):
        Clipping(ClipMode.DENSE_AND_SPARSE)
    with pytest.raises(ValueError, match="NORM has no limit of its own"):
        Clipping(ClipMode.NORM, 1.0, sparse_clip_norm=2.0)


def test_gradients_must_be_one_a_variable() -> None:
    update = GradientUpdate([], keras.optimizers.SGD(1.0), lambda *_: None, tf.Variable(0, dtype=tf.int64))
    with pytest.raises(ValueError, match="1 gradients for 0 variables"):
        update.apply_gradients([tf.constant(1.0)], [])


def test_gradients_of_a_gathered_variable_are_applied_densely() -> None:
    variable = keras.Variable(np.ones((3, 2), np.float32))
    update = GradientUpdate(
        [variable],
        keras.optimizers.SGD(1.0),
        lambda *_: None,
        tf.Variable(0, dtype=tf.int64),
        Clipping(clip_norm=1.0),
    )
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(variable.value, [1, 1]))
    update.apply_gradients(tape.gradient(loss, [variable.value]), [])
    np.testing.assert_allclose(variable.numpy(), [[1, 1], [1 - 0.5**0.5, 1 - 0.5**0.5], [1, 1]], rtol=1e-6)
