"""Adam for the dense variables, in one op per variable, that leaves out an update when told to."""

import keras
import tensorflow as tf


class DenseAdam(keras.optimizers.Adam):
    """The update of Keras' Adam, with its variables and their names.

    Keras makes the update of a variable from some 15 small ops, and under a condition each of their inputs goes through
    one more.
    """

    def __init__(self, learning_rate: float) -> None:
        super().__init__(learning_rate, name="adam")

    def apply_if(self, finite: tf.Tensor, gradients: list[tf.Tensor], variables: list[keras.Variable]) -> None:
        """Updates `variables`, those that it was built with, in their order; changes nothing if `finite` is false.

        Args:
          finite: bool scalar. The gradients may be NaN or infinite where it is false.
        """
        step = tf.cast(self.iterations.value + 1, tf.float32)
        one = tf.ones([])
        kept = tf.cast(finite, tf.float32)
        # With both betas 1, a gradient of 0 and a rate of 0 the formulas of Adam give back what was there.
        beta1, beta2 = (tf.where(finite, tf.constant(beta), one) for beta in (self.beta_1, self.beta_2))
        powers = [tf.pow(beta, step) for beta in (self.beta_1, self.beta_2)]
        rate = tf.convert_to_tensor(self.learning_rate) * kept
        for variable, momentum, velocity, gradient in zip(
            variables, self._momentums, self._velocities, gradients, strict=True
        ):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.value.handle,
                m=momentum.value.handle,
                v=velocity.value.handle,
                beta1_power=powers[0],
                beta2_power=powers[1],
                lr=rate,
                beta1=beta1,
                beta2=beta2,
                epsilon=self.epsilon,
                grad=tf.math.multiply_no_nan(gradient, kept),  # 0 where `kept` is, also for NaN
            )
        self.iterations.value.assign_add(tf.cast(finite, self.iterations.dtype))
