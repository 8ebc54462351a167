"""Whether an update may be made: one op over its loss and all its gradients."""

from collections.abc import Sequence

import tensorflow as tf

from millrace.ops import library


def judge_update(
    loss: tf.Tensor, gradients: Sequence[tf.Tensor], pooled_gradients: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """(bool scalar: whether loss and gradients are finite; float32 scalar: gradient_rms).

    A norm of gradients above 1e19, whose square is no float32, is not finite here. gradient_rms is the root of the mean
    over rows of the squared norm of a row's pooled gradients, 0 without rows; NaN or infinite when those are.

    Args:
      loss: float32 scalar.
      gradients: float32 of any shapes.
      pooled_gradients: float32 [rows, ...].

    Raises:
      InvalidArgumentError: `pooled_gradients` differ in their rows.
    """
    finite, gradient_rms = library.load().millrace_judge_update(
        loss=loss, gradients=list(gradients), pooled_gradients=list(pooled_gradients)
    )
    return finite, gradient_rms
