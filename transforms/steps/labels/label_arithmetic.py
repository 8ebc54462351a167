"""Arithmetic on labels. INVALID_LABEL, which stands for no label, stays as it is."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch.label_column import with_label_values
from millrace.transforms.batch.list_columns import row_of_value, values_and_splits
from millrace.transforms.batch.record_batch import is_valid_label

NORMALIZATIONS: Mapping[int, Callable[[np.ndarray, float], np.ndarray]] = {
    pb.LabelNormalizationConfig.LOG: lambda labels, value: np.log(np.maximum(labels + value, 0)),
    pb.LabelNormalizationConfig.SCALE: lambda labels, value: labels / value,
    pb.LabelNormalizationConfig.SCALE2INT: lambda labels, value: np.trunc(labels / value),
    pb.LabelNormalizationConfig.POW: lambda labels, value: (labels + 1) ** value,
    pb.LabelNormalizationConfig.REPOW: lambda labels, value: np.where(labels > 0, np.abs(labels) ** value, 0),
    pb.LabelNormalizationConfig.SCALELOG: lambda labels, value: np.log(np.maximum(labels / value + 1, 0)),
}
"""{method: function of float64 labels and the argument `value`}."""


def bound_labels(labels: pa.ListArray, bounds: Sequence[float]) -> pa.ListArray:
    """The labels, with label i of a row at most `bounds[i]`; a row with fewer labels than bounds stays as it is."""
    values, splits = values_and_splits(labels)
    position = np.arange(len(values)) - np.repeat(splits[:-1], np.diff(splits))
    bounded = np.repeat(np.diff(splits) >= len(bounds), np.diff(splits)) & (position < len(bounds))
    limits = np.asarray(bounds, np.float32)[np.where(bounded, position, 0)]
    return with_label_values(labels, np.where(bounded & is_valid_label(values), np.minimum(values, limits), values))


def normalize_labels(labels: pa.ListArray, operations: Sequence[tuple[int, float]]) -> tuple[pa.ListArray, int]:
    """The labels after all `operations`, which are done one after the other in float64.

    Args:
      operations: (method, value) pairs; a method is a key of `NORMALIZATIONS`.

    Returns: (labels, number of labels that the operations made infinite or NaN).
    """
    values, _ = values_and_splits(labels)
    with np.errstate(all="ignore"):
        result = values.astype(np.float64)
        for method, value in operations:
            result = NORMALIZATIONS[method](result, value)
        rounded = result.astype(np.float32)
    normalized = np.where(is_valid_label(values), rounded, values)
    lost = int(np.count_nonzero(np.isfinite(values) & ~np.isfinite(normalized)))
    return with_label_values(labels, normalized), lost


def raise_labels(labels: pa.ListArray, floor: np.ndarray) -> pa.ListArray:
    """The labels, each raised to the `floor`, float32 [rows], of its row where it is below."""
    values, splits = values_and_splits(labels)
    raised = np.maximum(values, floor[row_of_value(splits)])
    return with_label_values(labels, np.where(is_valid_label(values), raised, values))
