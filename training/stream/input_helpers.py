"""Small helpers between parsed batches and a model: conversion to tensors, a look-ahead, windows of batches."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from millrace.transforms.batch.arrays import Ragged


def to_tensors(parsed: Mapping[str, Ragged | np.ndarray]) -> dict[str, Any]:
    """What `transforms.batch.arrays.to_arrays` gives, as tensors.

    A sparse feature becomes a `tf.RaggedTensor` int64 [rows, None]; the others float32, int64 or string [rows, shape].
    """
    return {name: _tensor(value) for name, value in parsed.items()}


def cache_one(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """(element, is_last) for each element, found by looking ahead by one, so that workers in step can stop together."""
    is_tuple = isinstance(dataset.element_spec, tuple)

    def look(*window: Any) -> tf.data.Dataset:
        pair = tf.data.Dataset.zip(window if is_tuple else window[0])
        is_last = pair.reduce(0, lambda count, *_: count + 1) < 2
        return pair.take(1).map(lambda *element: (element if is_tuple else element[0], is_last))

    return dataset.window(2, shift=1).flat_map(look)


def merged_window(dataset: tf.data.Dataset, size: int = 2, drop_remainder: bool = True) -> tf.data.Dataset:
    """`size` consecutive batches as one: [rows, ...] becomes [rows of all, ...], scalars become [size].

    Args:
      drop_remainder: whether fewer than `size` batches at the end are left out.
    """
    spec = dataset.element_spec

    def merge(*window: Any) -> Any:
        return tf.nest.map_structure(_merged, spec, window if isinstance(spec, tuple) else window[0])

    return dataset.ragged_batch(size, drop_remainder).map(merge)


def _tensor(value: Ragged | np.ndarray) -> Any:
    if isinstance(value, tuple):
        return tf.RaggedTensor.from_row_splits(*value, validate=False)
    return tf.convert_to_tensor(value, tf.string if value.dtype == object else None)


def _merged(spec: Any, window: Any) -> Any:
    """A component of the window, [size, rows, ...], as [size * rows, ...]."""
    if isinstance(window, tf.RaggedTensor):
        rows = window.merge_dims(0, 1)
        return rows.to_tensor() if isinstance(spec, tf.TensorSpec) and isinstance(rows, tf.RaggedTensor) else rows
    if spec.shape.rank == 0:
        return window
    return tf.reshape(window, tf.concat([[-1], tf.shape(window)[2:]], axis=0))
