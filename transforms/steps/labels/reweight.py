"""Corrected rows that make up for provisional ones: the number of copies of each row, by its actions and earlier ones.

A feed may send a row as a negative at once, and again when an action on it has come. The second row lists the actions
of the first one in `pre_actions`. `reweight` gives the second row a label and a number of copies with which a trainer
that learns from both rows ends up where it would with the right row alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch import line_id, record_batch
from millrace.transforms.batch.action_column import best_positions, positions_in, reduce_rows
from millrace.transforms.batch.label_column import label_at, label_column, set_label_at, with_labels
from millrace.transforms.batch.list_columns import splits_of, values_and_splits
from millrace.transforms.batch.provenance import MAX_COPIES, derived_rows
from millrace.transforms.batch.take_rows import take_rows
from millrace.transforms.steps.step import Counts, Step, StepContext, check_priority, keep_rows

_DEFAULT_REPLICAS = 64
_LARGEST_COUNT = 2.0**53


class ActionWeight(NamedTuple):
    """What an action counts for: its factor, and the label of a row whose best action it is."""

    action: int
    weight: int
    label: float


class Side(NamedTuple):
    """The actions of all rows on one side, before or now, [rows] each.

    Attributes:
      rank: int64, the position of the row's best action in the list of priorities, so that lower is better. Rows with
        unlisted actions alone come after all listed ones, and rows without actions come last.
      copies: float64, the number of rows that the actions count for.
      label: float64, the label of the best action, NaN where it has none.
    """

    rank: np.ndarray
    copies: np.ndarray
    label: np.ndarray


def replicas(
    before: pa.ListArray,
    now: pa.ListArray,
    labels: np.ndarray,
    priority: Sequence[int],
    weights: Sequence[ActionWeight],
) -> tuple[np.ndarray, np.ndarray]:
    """How often each row counts, and its label.

    A row whose actions are better than those before takes the label of its best action. It counts as often as the
    actions of both sides together if the two labels differ, because it undoes the earlier row and adds its own. If the
    labels are equal it counts as often as the two sides differ, with the label negated if the earlier row counted for
    more. A row whose actions are no better counts 0 times; a row without any actions counts once.

    Args:
      before, now: list<int32> [rows], the actions of an earlier row and of this one.
      labels: float32 [rows], the labels that the rows have.
      priority: actions, the most prior first.

    Returns: (int64 [rows], float32 [rows]).
    """
    lists = [values_and_splits(column) for column in (before, now)]
    rows = np.flatnonzero(np.logical_or(*(splits[1:] > splits[:-1] for _, splits in lists)))
    counts, relabelled = np.ones(len(labels), np.int64), labels.astype(np.float32)
    # Rows without values do not change where the lists of the others begin.
    earlier, later = (
        _side(values, np.append(splits[:-1][rows], splits[-1]), priority, weights) for values, splits in lists
    )
    counts[rows], relabelled[rows] = _compared(earlier, later, labels[rows])
    return counts, relabelled


def _compared(earlier: Side, later: Side, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(how often each row counts, its label) of rows that have actions on one side or on both."""
    better = earlier.rank > later.rank
    label = np.where(better & ~np.isnan(later.label), later.label, labels)
    same = np.trunc(earlier.label) == np.trunc(label)
    taken_back = earlier.copies - later.copies
    count = np.where(same, np.abs(taken_back), earlier.copies + later.copies)
    count = np.where(np.isnan(earlier.label), later.copies, count)
    label = np.where(better & same & (taken_back > 0), 0 - label, label)
    return np.where(better, count, 0).astype(np.int64), label


def _side(values: np.ndarray, splits: np.ndarray, priority: Sequence[int], weights: Sequence[ActionWeight]) -> Side:
    rows = len(splits) - 1
    if not len(values):
        return Side(np.full(rows, len(priority) + 1), np.zeros(rows), np.full(rows, np.nan))
    position = positions_in(priority, values)
    best = best_positions(position, splits, len(priority))
    superseded = (position < len(priority)) & (position != np.repeat(best, np.diff(splits)))
    weight = np.asarray([*(each.weight for each in weights), 1], np.float64)
    factors = weight[positions_in([each.action for each in weights], values)]
    copies = _products(np.where(superseded, 1.0, factors), splits)
    empty = splits[1:] == splits[:-1]
    labels = {each.action: each.label for each in weights}
    label = np.asarray([*(labels.get(action, np.nan) for action in priority), np.nan])
    return Side(np.where(empty, len(priority) + 1, best), np.where(empty, 0.0, copies), label[best])


def _products(factors: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """float64 [rows]: the product of each row's factors, at most 2^53, the largest exact count; 1 for an empty row."""
    with np.errstate(over="ignore", invalid="ignore"):
        products = reduce_rows(np.multiply, factors, splits, 1.0)
    # NaN comes of infinity times zero: the true product is zero.
    products[np.isnan(products)] = 0.0
    return np.minimum(products, _LARGEST_COUNT)


def repeat_rows(batch: pa.RecordBatch, times: np.ndarray, fanout: int) -> pa.RecordBatch:
    """Each row repeated `times`, int64 [rows] in [0, fanout]; every copy gets a `__SOURCE_ROW__` of its own."""
    splits = splits_of(times)
    copies = take_rows(batch, np.repeat(np.arange(batch.num_rows), times))
    if record_batch.column_of(batch, record_batch.SOURCE_ROW) is None:
        return copies
    number = np.arange(copies.num_rows) - np.repeat(splits[:-1], times)
    rows = derived_rows(record_batch.numpy_column(copies, record_batch.SOURCE_ROW), number, fanout)
    return record_batch.with_column(copies, pa.field(record_batch.SOURCE_ROW, pa.int32()), pa.array(rows))


class Reweight(Step):
    """Repeats a row, or multiplies its weight, so that it makes up for an earlier row of the same impression.

    The `actions` of the row are compared with its `pre_actions`, the actions of the earlier row. The best action of
    either side is the first of `action_priority` that it has. A side counts for the product of the weights of its
    actions; of the listed actions only the best one enters the product.

    If `actions` are better than `pre_actions`, the row takes the label of its best action. Unlisted actions alone are
    worse than any listed one, and no actions at all are worst. If the two labels differ, the row counts as often as
    both sides together; if they are equal, as often as the two sides differ, with the label negated if `pre_actions`
    counted for more. A row without actions on either side counts once. Rows whose actions are no better, and rows
    without labels, are dropped.
    """

    counters = {
        "rows_dropped": "rows that count zero times",
        "replicas_capped": "copies, or units of weight, beyond max_replicas",
    }
    example = "reweight: {action_priority: [2, 1], weights: [{action: 1, weight: 1}, {action: 2, weight: 4, label: 1}]}"

    def __init__(self, config: pb.ReweightConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        check_priority(self, config.action_priority)
        self._weights = [ActionWeight(weight.action, weight.weight, weight.label) for weight in config.weights]
        self._check_weights()
        self._most = config.max_replicas or _DEFAULT_REPLICAS
        if not 1 <= self._most <= MAX_COPIES:
            limit = f"choose 1..{MAX_COPIES}"
            raise self.wrong("max_replicas", config.max_replicas, "out of range", limit)
        self._copies = config.emit == pb.ReweightConfig.COPIES
        self.fanout = self._most if self._copies else 1

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        batch, times = self._weighed(batch)
        counts["replicas_capped"] += int(np.maximum(times - self._most, 0).sum())
        times = np.minimum(times, self._most)
        if not self._copies:
            return keep_rows(_with_weight(batch, times), times > 0, counts)
        counts["rows_dropped"] += int(np.count_nonzero(times == 0))
        return repeat_rows(batch, times, self.fanout)

    def _weighed(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, np.ndarray]:
        """(`batch` with its labels corrected, int64 [rows]: the number of times that each row counts)."""
        labels = label_column(batch)
        first, has_label = label_at(labels, 0)
        before, now = (line_id.column(batch, name) for name in ("pre_actions", "actions"))
        times, relabelled = replicas(before, now, first, self.config.action_priority, self._weights)
        batch = with_labels(batch, set_label_at(labels, 0, has_label, relabelled[has_label]))
        return batch, np.where(has_label, times, 0)

    def _check_weights(self) -> None:
        if not self._weights:
            raise self.wrong("weights", "", "no weights", "give one or more")
        seen: set[int] = set()
        for index, weight in enumerate(self._weights):
            if weight.action in seen:
                raise self.wrong(f"weights[{index}].action", weight.action, "has two weights", "name it once")
            if weight.weight < 0:
                raise self.wrong(f"weights[{index}].weight", weight.weight, "below zero", "choose 0 or more")
            seen.add(weight.action)


def _with_weight(batch: pa.RecordBatch, times: np.ndarray) -> pa.RecordBatch:
    """`batch` with `__WEIGHT__` multiplied by `times`; a weight that is null counts as 1."""
    column = record_batch.column_of(batch, record_batch.WEIGHT)
    before = 1.0 if column is None else pc.fill_null(column, 1.0).to_numpy()
    weights = pa.array((before * times).astype(np.float32))
    return record_batch.with_column(batch, pa.field(record_batch.WEIGHT, pa.float32()), weights)
