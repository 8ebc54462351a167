"""Which columns of a train block become which tensors of a train step."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import tensorflow as tf

from millrace.training.task import Task
from millrace.transforms.batch import record_batch, train_check
from millrace.transforms.batch.list_columns import values_and_splits

_ROW_COLUMNS = (
    record_batch.LABEL,
    record_batch.WEIGHT,
    record_batch.SAMPLE_RATE,
    record_batch.EVENT_TIME_MS,
    record_batch.SOURCE_PARTITION,
    record_batch.SOURCE_OFFSET,
    record_batch.SOURCE_ROW,
)


class TrainTensors(NamedTuple):
    """One batch as a train step takes it; a TensorFlow nest, of tensors, NumPy arrays or `tf.TensorSpec`s.

    Attributes:
      values: {fid column: int64 [n]}, the fids of all rows one after the other.
      splits: {fid column: int64 [rows + 1]}; row r has the fids values[splits[r] : splits[r + 1]].
      labels: float32 [rows, heads].
      weights: float32 [rows], factors of the loss.
      sample_rates: float32 [rows], the probability with which the feed kept a row.
    """

    values: dict[str, Any]
    splits: dict[str, Any]
    labels: Any
    weights: Any
    sample_rates: Any

    def rows(self, start: tf.Tensor, stop: tf.Tensor) -> "TrainTensors":
        """Rows [start, stop) as a batch of their own; to be called on tensors."""
        values, splits = {}, {}
        for name, whole in self.splits.items():
            part = whole[start : stop + 1]
            values[name] = self.values[name][part[0] : part[-1]]
            splits[name] = part - part[0]
        flat = (tensor[start:stop] for tensor in (self.labels, self.weights, self.sample_rates))
        return TrainTensors(values, splits, *flat)


@dataclass(frozen=True)
class TrainLayout:
    """The columns of a train block that one task's train step needs.

    Args:
      features: names of the fid columns that the task's features read, without repeats.
      heads: labels per row.
      audit: whether blocks carry `__AUDIT__`, one fid per row that tells which source row it is.
    """

    features: tuple[str, ...]
    heads: int
    audit: bool = False

    @classmethod
    def of(cls, task: Task, audit: bool = False) -> "TrainLayout":
        """The layout of the blocks that a feed of `task` writes, with or without its flag --audit."""
        return cls(tuple(dict.fromkeys(task.fid_columns().values())), len(task.heads), audit)

    @property
    def fid_columns(self) -> tuple[str, ...]:
        """`features`, and `__AUDIT__` if the blocks carry it."""
        return (*self.features, record_batch.AUDIT) if self.audit else self.features

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """What `project` keeps: the fid columns, labels, weight, sample rate, event time and provenance."""
        flat = {field.name: field for field in record_batch.METADATA_FIELDS}
        fids = [record_batch.fid_field(name) for name in self.fid_columns]
        return pa.schema(fids + [flat[name] for name in _ROW_COLUMNS])

    @property
    def specs(self) -> TrainTensors:
        """The `tf.TensorSpec` of each tensor; the number of rows and of fids is unknown."""
        ids, flat = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.float32)
        names = self.fid_columns
        labels = tf.TensorSpec([None, self.heads], tf.float32)
        return TrainTensors(dict.fromkeys(names, ids), dict.fromkeys(names, ids), labels, flat, flat)

    def arrays(self, batch: pa.RecordBatch) -> TrainTensors:
        """A batch without a row that `Gate` refuses, as NumPy arrays."""
        values, splits = {}, {}
        for name in self.fid_columns:
            fids, splits[name] = values_and_splits(batch.column(name))
            values[name] = fids.astype(np.int64, copy=False)
        weights, rates = (
            record_batch.numpy_column(batch, name).astype(np.float32, copy=False)
            for name in (record_batch.WEIGHT, record_batch.SAMPLE_RATE)
        )
        return TrainTensors(values, splits, labels_of(batch, self.heads), weights, rates)

    def check_columns(self, batch: pa.RecordBatch) -> None:
        """Raises ValueError naming the column that is missing or of another type."""
        train_check.check_train_columns(batch, self.fid_columns)

    def project(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of `schema` only, so that blocks of different feeds can be concatenated."""
        schema = self.schema
        return pa.RecordBatch.from_arrays([batch.column(name) for name in schema.names], schema=schema)


def labels_of(batch: pa.RecordBatch, heads: int) -> np.ndarray:
    """The labels of a batch with `heads` of them per row: float32 [rows, heads]."""
    values, _ = values_and_splits(batch.column(record_batch.LABEL))
    return values.astype(np.float32, copy=False).reshape(batch.num_rows, heads)
