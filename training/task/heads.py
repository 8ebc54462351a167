"""The dense part of a model: the Keras graph that makes logits, and the loss of these logits."""

import keras
import tensorflow as tf

from millrace.training.task import Head, Task
from millrace.transforms.batch.record_batch import is_valid_label

_LEAST_RATE = 1e-12  # keeps the logarithm finite


def correct_logits(logits: tf.Tensor, sample_rates: tf.Tensor) -> tf.Tensor:
    """x - ln r, float32 [rows, heads]: the logit x in data whose negatives were kept with probability r.

    The loss takes the corrected logit. A server takes the raw one: its sigmoid is the probability before sampling.

    Args:
      logits: float32 [rows, heads].
      sample_rates: float32 [rows], clipped to [1e-12, 1].
    """
    return logits - tf.math.log(tf.clip_by_value(sample_rates, _LEAST_RATE, 1.0))[:, tf.newaxis]


def early_negative_weights(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Weights of the losses, float32 [rows, heads], when each row comes once as an early negative.

    `transforms.feed.early_negatives` has the formula and its reason.

    Args:
      logits: float32 [rows, heads], not corrected for sampling; no gradient flows through them.
      labels: float32 [rows, heads]; the weight where one is invalid means nothing.

    Returns: float32 [rows, heads].
    """
    probabilities = tf.stop_gradient(tf.sigmoid(logits))
    return (1.0 + probabilities) * tf.where(labels > 0.0, 1.0, 1.0 - probabilities)


def total_loss(
    heads: tuple[Head, ...],
    logits: tf.Tensor,
    labels: tf.Tensor,
    weights: tf.Tensor,
    sample_rates: tf.Tensor,
    early_negatives: bool = False,
) -> tf.Tensor:
    """Sum over rows and heads of weight * cross entropy of the corrected logit, a scalar; invalid labels add nothing.

    A sum, not a mean: the gradient of an entry is then that of the rows that have it, whatever the size of the batch.

    Args:
      heads: their weights multiply those of the rows.
      logits, labels: float32 [rows, heads].
      weights, sample_rates: float32 [rows].
      early_negatives: whether the feed sends each row as a negative at once, and again when its action comes.
    """
    valid = is_valid_label(labels)
    targets = tf.where(valid, labels, 0.0)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, correct_logits(logits, sample_rates))
    if early_negatives:
        losses *= early_negative_weights(logits, labels)
    head_weights = tf.constant([[head.weight for head in heads]], tf.float32)
    return tf.reduce_sum(tf.where(valid, losses, 0.0) * head_weights * weights[:, tf.newaxis])


class DenseModel:
    """The Keras model of a task, with its heads in declared order.

    Attributes:
      model: Keras functional model; its inputs have the names of the features.
      variables: its TensorFlow variables, trainable ones first.
      names: one unique name per variable, the same in every process that builds this task.

    Raises:
      ValueError: `build_model` returns no logits for one of the heads.
    """

    def __init__(self, task: Task) -> None:
        # Automatic layer names count up in a process; from zero they are the same in every process.
        keras.utils.clear_session(free_memory=False)
        self._heads = tuple(task.heads)
        inputs = {feature.name: keras.Input((feature.dim,), name=feature.name) for feature in task.features}
        outputs = task.build_model(dict(inputs), {})
        missing = [head.name for head in self._heads if head.name not in outputs]
        if missing:
            raise ValueError(f"build_model of task {task.name} returns no logits for head {missing[0]}")
        self.model = keras.Model(inputs, {head.name: outputs[head.name] for head in self._heads})
        ordered = [*self.model.trainable_variables, *self.model.non_trainable_variables]
        self.variables: list[tf.Variable] = [variable.value for variable in ordered]
        self.names = unique_names([variable.path for variable in ordered])

    @property
    def trainable(self) -> list[keras.Variable]:
        """The variables that an optimizer updates."""
        return list(self.model.trainable_variables)

    def logits(self, embeddings: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Logits float32 [rows, heads] of {feature: float32 [rows, dim]}."""
        return self._stack(self.model(embeddings, training=training))

    def logits_with(self, variables: list[tf.Tensor], embeddings: dict[str, tf.Tensor]) -> tf.Tensor:
        """The same, with other values in the place of `self.variables`, in their order."""
        count = len(self.model.trainable_variables)
        outputs, _ = self.model.stateless_call(variables[:count], variables[count:], embeddings, training=False)
        return self._stack(outputs)

    def _stack(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.stack([tf.reshape(outputs[head.name], [-1]) for head in self._heads], axis=1)


def unique_names(paths: list[str]) -> list[str]:
    """The paths; a path that stood before gets its position appended."""
    return [path if paths.index(path) == i else f"{path}#{i}" for i, path in enumerate(paths)]
