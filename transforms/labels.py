"""Labels of joined rows from label rules."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.feature_list import LabelRule


def label_rows(actions: pa.ListArray, values: pa.ListArray, rules: Sequence[LabelRule]) -> pa.ListArray:
    """One label a rule for each row: 1.0 where an action of the rule was seen with a sufficient value, else 0.0.

    Args:
      actions: list<string> [rows], the actions seen.
      values: list<double> [rows], their values in the same order, null where an action has none.

    Returns: list<float32> [rows], labels in the order of `rules`.
    """
    rows = len(actions)
    names, numbers = actions.flatten(), values.flatten()
    parents = pc.list_parent_indices(actions).to_numpy(zero_copy_only=False)
    labels = np.zeros((rows, len(rules)), np.float32)
    for column, rule in enumerate(rules):
        seen = pc.is_in(names, value_set=pa.array(rule.actions, pa.string()))
        if rule.min_value is not None:
            seen = pc.and_(seen, pc.fill_null(pc.greater_equal(numbers, rule.min_value), False))
        labels[parents[seen.to_numpy(zero_copy_only=False)], column] = 1.0
    return label_lists(labels)


def label_lists(labels: np.ndarray) -> pa.ListArray:
    """list<float32> [rows] of a float32 array [rows, heads]."""
    rows, heads = labels.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * np.int32(heads)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(labels.reshape(-1), pa.float32()))


def label_matrix(labels: pa.ListArray) -> np.ndarray:
    """float32 [rows, heads] of a `__LABEL__` column; ValueError when the rows have unequal numbers of labels."""
    counts = pc.list_value_length(labels).to_numpy(zero_copy_only=False)
    if len(counts) and (counts != counts[0]).any():
        raise ValueError(f"rows have {counts.min()} to {counts.max()} labels")
    heads = int(counts[0]) if len(counts) else 0
    return labels.flatten().to_numpy(zero_copy_only=False).reshape(len(counts), heads)
