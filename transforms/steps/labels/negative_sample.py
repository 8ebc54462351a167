"""Sampling of negatives: every run with the same seed drops the same rows, and the sample rate tells the trainer."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch import line_id
from millrace.transforms.batch.action_column import most_prior, positions_in
from millrace.transforms.batch.label_column import label_at, label_column
from millrace.transforms.steps.step import Counts, Step, StepContext, check_priority, keep_rows


def drop_rates(
    actions: pa.ListArray, priority: Sequence[int], rates: Mapping[int, float], default: float
) -> np.ndarray:
    """float64 [rows]: the rate of the row's most prior action, or `default` if it has none or `rates` lacks it."""
    action, none = most_prior(actions, priority)
    rate_at = np.asarray([*rates.values(), default])
    return np.where(none, default, rate_at[positions_in(list(rates), action)])


class NegativeSample(Step):
    """Drops a share of the negatives: rows whose label `label_index` is below `threshold`.

    Rows of a feed have the labels 0 and 1: set `threshold` to 0.5, since at its default, 0, no row is dropped. Set
    `correct_sample_rate` too, which is off by default, or the model predicts positives too often.

    The share is `drop_rate`. With `per_action_drop_rate` it is the rate of the row's most prior action, if that is
    listed there; the most prior action is the first of `action_priority` that the row has, else its first action.
    INVALID_LABEL is below every threshold; a row without a label at `label_index` is kept. `correct_sample_rate`
    multiplies the sample rate of every row that is kept by 1 - `drop_rate`; the trainer subtracts the logarithm of the
    sample rate from the logit, which undoes the effect of the sampling on the odds of a positive.
    """

    counters = {"rows_dropped": "negatives that are dropped"}
    example = "negative_sample: {drop_rate: 0.9, threshold: 0.5, correct_sample_rate: true}"

    def __init__(self, config: pb.NegativeSampleConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        self._check_rate("drop_rate", config.drop_rate)
        if config.label_index < 0:
            raise self.wrong("label_index", config.label_index, "out of range", "choose 0 or more")
        check_priority(self, config.action_priority)
        self._rates: dict[int, float] = {}
        for index, each in enumerate(config.per_action_drop_rate):
            self._check_rate(f"per_action_drop_rate[{index}].rate", each.rate)
            if self._rates.setdefault(each.action, each.rate) != each.rate:
                raise self.wrong(
                    f"per_action_drop_rate[{index}]",
                    each.rate,
                    "is a second rate of the action",
                    "give each action one rate",
                )
        self._check_together()

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        labels, has_label = label_at(label_column(batch), self.config.label_index)
        negative = has_label & (labels < np.float32(self.config.threshold))
        kept = keep_rows(batch, ~(negative & (self.draw(batch) < self._drop_rates(batch))), counts)
        if not self.config.correct_sample_rate:
            return kept
        rate = pa.scalar(1 - self.config.drop_rate, pa.float32())
        return line_id.set_column(kept, "sample_rate", pc.multiply(line_id.column(kept, "sample_rate"), rate))

    def _drop_rates(self, batch: pa.RecordBatch) -> np.ndarray | float:
        if not self._rates:
            return self.config.drop_rate
        actions = line_id.column(batch, "actions")
        return drop_rates(actions, self.config.action_priority, self._rates, self.config.drop_rate)

    def _check_rate(self, name: str, rate: float) -> None:
        if not 0 <= rate <= 1:
            raise self.wrong(name, rate, "not a share", "choose 0 to 1")

    def _check_together(self) -> None:
        config = self.config
        if bool(self._rates) != bool(config.action_priority):
            missing = "action_priority" if self._rates else "per_action_drop_rate"
            raise self.wrong(missing, "", "needed with the rates of actions, and only there", "give both or none")
        if config.correct_sample_rate and (self._rates or config.drop_rate == 1):
            raise self.wrong("correct_sample_rate", True, "one rate below 1 can be corrected", "drop at one such rate")
