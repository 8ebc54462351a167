"""Adam in one op per variable: the numbers of Keras' Adam, and nothing at all where an update is left out."""

import keras
import numpy as np
import tensorflow as tf

from millrace.training.step.dense_adam import DenseAdam

SHAPES = ((3, 4), (4,))


def variables() -> list[keras.Variable]:
    rng = np.random.default_rng(1)
    return [keras.Variable(rng.normal(size=shape), dtype="float32") for shape in SHAPES]


def gradients(seed: int) -> list[tf.Tensor]:
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=shape) * 10.0 ** (seed % 5 - 2), tf.float32) for shape in SHAPES]


def numbers(optimizer: keras.optimizers.Adam, trained: list[keras.Variable]) -> list[np.ndarray]:
    return [np.array(variable) for variable in (*trained, *optimizer.variables)]


def test_updates_are_those_of_keras_and_variables_have_its_names() -> None:
    own, theirs = DenseAdam(0.01), keras.optimizers.Adam(0.01, name="adam")
    trained, expected = variables(), variables()
    own.build(trained)
    theirs.build(expected)
    for seed in range(20):
        own.apply_if(tf.constant(True), gradients(seed), trained)
        theirs.apply(gradients(seed), expected)
    for found, wanted in zip(numbers(own, trained), numbers(theirs, expected), strict=True):
        assert np.allclose(found, wanted, rtol=1e-4, atol=1e-7)  # the op rounds beta_2 to float32 before 1 - beta_2
    assert len(own.variables) == len(theirs.variables)
    assert own.variables[0].path == theirs.variables[0].path == "adam/iteration"


def test_an_update_that_is_left_out_changes_nothing_whatever_the_gradients_are() -> None:
    optimizer, trained = DenseAdam(0.01), variables()
    optimizer.build(trained)
    optimizer.apply_if(tf.constant(True), gradients(1), trained)
    before = numbers(optimizer, trained)
    for bad in (float("nan"), float("inf"), -float("inf"), 3e38, 1.0):
        optimizer.apply_if(tf.constant(False), [tf.fill(shape, bad) for shape in SHAPES], trained)
    for found, wanted in zip(numbers(optimizer, trained), before, strict=True):
        assert np.array_equal(found, wanted)
