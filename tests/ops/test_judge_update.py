"""The op that says whether an update may be made, beside the same in numpy."""

import numpy as np
import pytest
import tensorflow as tf

from millrace.ops.judge_update import judge_update

BAD = [float("nan"), float("inf"), -float("inf"), 2e19]  # the square of 2e19 is no float32


def judge(loss: float, dense: list[np.ndarray], pooled: list[np.ndarray]) -> tuple[bool, float]:
    finite, rms = judge_update(loss, dense, pooled)
    return bool(finite), float(rms)


def gradients(rows: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(rows)
    dense = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 5), (5,), ())]
    return dense, [rng.normal(size=shape).astype(np.float32) for shape in ((rows, 7), (rows, 1), (rows, 3, 16))]


@pytest.mark.parametrize("rows", [1, 2, 5, 64, 1000])
def test_the_rms_is_that_of_the_norms_of_rows(rows: int) -> None:
    dense, pooled = gradients(rows)
    finite, rms = judge(0.5, dense, pooled)
    squares = sum(float(np.square(tensor, dtype=np.float64).sum()) for tensor in pooled)
    assert finite
    assert rms == pytest.approx(np.sqrt(squares / rows), rel=1e-5)


@pytest.mark.parametrize("bad", BAD)
def test_one_bad_number_at_any_place_is_found(bad: float) -> None:
    for group in range(2):
        for number, tensor in enumerate(gradients(5)[group]):
            for place in range(tensor.size):
                groups = gradients(5)
                groups[group][number].reshape(-1)[place] = bad
                finite, rms = judge(0.5, *groups)
                assert not finite
                assert np.isfinite(rms) == (group == 0)


@pytest.mark.parametrize("loss", BAD[:3])
def test_a_loss_that_is_not_finite_is_found(loss: float) -> None:
    assert not judge(loss, *gradients(5))[0]


def test_without_rows_or_gradients_all_is_finite() -> None:
    assert judge(0.5, *gradients(0)) == (True, 0.0)
    assert judge(0.5, [], []) == (True, 0.0)


def test_wrong_shapes_are_refused() -> None:
    for pooled, problem in (([1.0], "must have rows"), ([[[1.0]], [[1.0], [2.0]]], "equally many rows")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=problem):
            judge_update(0.5, [], pooled)
