"""One update from the gradients of a tf.GradientTape: clipping, weight decay, dense variables, tables, global step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import keras
import tensorflow as tf

Gradients = Sequence[tf.Tensor | tf.IndexedSlices | None]
TableUpdate = Callable[[list[tf.Tensor | None], tf.Tensor], None]


class ClipMode(Enum):
    """What is clipped, and by which norm (global norm: Pascanu, Mikolov, Bengio 2013)."""

    GLOBAL_NORM = auto()  # all gradients, by one norm over dense and sparse ones
    DENSE_AND_SPARSE = auto()  # dense ones by their global norm, sparse ones by theirs
    NORM = auto()  # each tensor by its own norm
    VALUE = auto()  # each number to [-clip_norm, clip_norm]
    NONE = auto()


@dataclass(frozen=True)
class Clipping:
    """How gradients are clipped.

    Args:
      clip_norm: the limit; None clips nothing. DENSE_AND_SPARSE needs it.
      sparse_clip_norm: the limit of the gradients of embeddings. Without it GLOBAL_NORM takes `clip_norm`, and
        DENSE_AND_SPARSE leaves them as they are; other modes refuse it.
      sparse_warmup_steps: the sparse limit grows linearly from 0 at step 0 to its value at this step.

    Raises:
      ValueError: the mode lacks what it needs, or does not know what is given.
    """

    mode: ClipMode = ClipMode.GLOBAL_NORM
    clip_norm: float | None = None
    sparse_clip_norm: float | None = None
    sparse_warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.mode is ClipMode.DENSE_AND_SPARSE and self.clip_norm is None:
            raise ValueError("clip mode DENSE_AND_SPARSE needs clip_norm")
        global_modes = (ClipMode.GLOBAL_NORM, ClipMode.DENSE_AND_SPARSE)
        if self.mode not in global_modes and (self.sparse_clip_norm is not None or self.sparse_warmup_steps):
            raise ValueError(f"clip mode {self.mode.name} has no limit of its own for sparse gradients")


def clip(
    clipping: Clipping, dense: list[tf.Tensor], sparse: list[tf.Tensor], global_step: tf.Tensor
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """The gradients of dense variables and of embeddings, clipped: (dense, sparse).

    Raises:
      InvalidArgumentError: a norm is infinite or NaN; there is no direction to clip to.
    """
    limit, mode = clipping.clip_norm, clipping.mode
    if limit is None or mode is ClipMode.NONE:
        return dense, sparse
    if mode is ClipMode.VALUE:
        return _clip_values(dense, limit), _clip_values(sparse, limit)
    if mode is ClipMode.NORM:
        return _clip_each(dense, limit), _clip_each(sparse, limit)
    sparse_limit = _sparse_limit(clipping, global_step)
    if mode is ClipMode.GLOBAL_NORM:
        norm = _global_norm([*dense, *sparse])
        return _scale_down(dense, norm, limit), _scale_down(sparse, norm, sparse_limit)
    if clipping.sparse_clip_norm is not None:
        sparse = _scale_down(sparse, _global_norm(sparse), sparse_limit)
    return _scale_down(dense, _global_norm(dense), limit), sparse


def _sparse_limit(clipping: Clipping, global_step: tf.Tensor) -> tf.Tensor:
    limit = clipping.clip_norm if clipping.sparse_clip_norm is None else clipping.sparse_clip_norm
    if not clipping.sparse_warmup_steps:
        return tf.constant(limit, tf.float32)
    return limit * tf.minimum(tf.cast(global_step, tf.float32) / clipping.sparse_warmup_steps, 1.0)


def _global_norm(gradients: list[tf.Tensor]) -> tf.Tensor:
    if not gradients:
        return tf.constant(0.0)
    return tf.debugging.check_numerics(tf.linalg.global_norm(gradients), "the norm of the gradients is not finite")


def _scale_down(gradients: list[tf.Tensor], norm: tf.Tensor, limit: tf.Tensor | float) -> list[tf.Tensor]:
    """g * limit / max(norm, limit); a limit of 0 gives zeros."""
    factor = tf.math.divide_no_nan(tf.cast(limit, tf.float32), tf.maximum(norm, limit))
    return [gradient * factor for gradient in gradients]


def _clip_each(gradients: list[tf.Tensor], limit: float) -> list[tf.Tensor]:
    return [_scale_down([gradient], _global_norm([gradient]), limit)[0] for gradient in gradients]


def _clip_values(gradients: list[tf.Tensor], limit: float) -> list[tf.Tensor]:
    return [tf.clip_by_value(gradient, -limit, limit) for gradient in gradients]


class GradientUpdate(tf.Module):
    """Applies the gradients of one step.

    It is a tf.Module, so that tf.train.Checkpoint saves the gradients that `asynchronous_dense` holds back.

    Args:
      variables: trainable dense variables. One with an attribute `optimizer` is updated by that.
      optimizer: of all other variables.
      update_tables: called with the gradients of the embeddings, in the order given to `apply_gradients`, and with the
        global step before this update.
      global_step: incremented by each update, after everything else.
      dense_weight_decay: this times the variable is added to its gradient, after clipping.
      dense_reduce_mean: divide dense gradients by the batch size.
      asynchronous_dense: whether dense variables get the gradients of a step one step later; the first updates none.
      reduce_dense: takes the clipped dense gradients of this worker and returns their means over all workers.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        optimizer: keras.optimizers.Optimizer,
        update_tables: TableUpdate,
        global_step: tf.Variable,
        clipping: Clipping = Clipping(),
        dense_weight_decay: float = 0.0,
        dense_reduce_mean: bool = False,
        asynchronous_dense: bool = False,
        reduce_dense: Callable[[list[tf.Tensor]], list[tf.Tensor]] = list,
    ) -> None:
        super().__init__()
        self._variables, self._update_tables, self._global_step = list(variables), update_tables, global_step
        self._clipping, self._weight_decay, self._reduce_mean = clipping, dense_weight_decay, dense_reduce_mean
        self._reduce_dense = reduce_dense
        self._optimizers = [getattr(variable, "optimizer", optimizer) for variable in self._variables]
        for each in set(self._optimizers):
            each.build([v for v, its in zip(self._variables, self._optimizers, strict=True) if its is each])
        self._held: list[tf.Variable] | None = None
        if asynchronous_dense:
            self._held = [tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False) for v in self._variables]
            self._holds = tf.Variable(False, trainable=False)
        # A function of its own, because what it returns can be waited for.
        self._update = tf.function(self._update_all, reduce_retracing=True)

    def apply_gradients(self, dense: Gradients, sparse: Gradients, batch_size: int | tf.Tensor = 1) -> None:
        """Updates everything once; without any gradient nothing happens, and the step stays.

        Args:
          dense: gradients of `variables`; None where the loss does not depend on one.
          sparse: gradients of looked up embeddings; None likewise.
          batch_size: rows of this step.

        Raises:
          InvalidArgumentError: the norm to clip by is infinite or NaN (nothing was updated), or the gradient of an
            embedding is (tables are as they were).
        """
        if len(dense) != len(self._variables):
            raise ValueError(f"got {len(dense)} gradients for {len(self._variables)} variables")
        if all(gradient is None for gradient in (*dense, *sparse)):
            return
        updated = self._update(_densified(dense), _densified(sparse), tf.cast(batch_size, tf.float32))
        with tf.control_dependencies([updated]):
            self._global_step.assign_add(1)

    def _update_all(
        self, dense: list[tf.Tensor | None], sparse: list[tf.Tensor | None], batch_size: tf.Tensor
    ) -> tf.Tensor:
        step = self._global_step.read_value()
        used = [i for i, gradient in enumerate(dense) if gradient is not None]
        found = [i for i, gradient in enumerate(sparse) if gradient is not None]
        gradients = [dense[i] / batch_size if self._reduce_mean else dense[i] for i in used]
        gradients, embedding_gradients = clip(self._clipping, gradients, [sparse[i] for i in found], step)
        gradients = self._reduce_dense(gradients)
        if self._weight_decay:
            gradients = [g + self._weight_decay * self._variables[i] for i, g in zip(used, gradients, strict=True)]
        # No update begins before every norm is known to be finite.
        with tf.control_dependencies([*gradients, *embedding_gradients]):
            self._push_dense(used, gradients)
            if found:
                by_position = dict(zip(found, embedding_gradients, strict=True))
                self._update_tables([by_position.get(i) for i in range(len(sparse))], step)
        return step

    def _push_dense(self, used: list[int], gradients: list[tf.Tensor]) -> None:
        if self._held is None:
            self._apply_dense(used, gradients)
            return
        held = [self._held[i] for i in used]
        tf.cond(self._holds, lambda: self._apply_dense(used, held), lambda: None)
        for variable, gradient in zip(held, gradients, strict=True):
            variable.assign(gradient)
        self._holds.assign(True)

    def _apply_dense(self, used: list[int], gradients: Sequence[tf.Tensor]) -> None:
        groups: dict[keras.optimizers.Optimizer, list[tuple[tf.Tensor, keras.Variable]]] = {}
        for i, gradient in zip(used, gradients, strict=True):
            groups.setdefault(self._optimizers[i], []).append((tf.convert_to_tensor(gradient), self._variables[i]))
        for optimizer, pairs in groups.items():
            optimizer.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])


def _densified(gradients: Gradients) -> list[tf.Tensor | None]:
    return [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]
