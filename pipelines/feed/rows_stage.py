"""Makes train rows: adds labels and fids to joined rows, runs the steps of the recipe, and fills nulls.

Unbounded feeds use a stage as part of a feed shard's machine (`millrace.pipelines.feed.machine`), bounded ones alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import MAX_COPIES, ROWS_PER_RECORD
from millrace.transforms.beam.steps import StepCounters
from millrace.transforms.feed.config import FeedConfig
from millrace.transforms.feed.sampling import positive_rows
from millrace.transforms.feed.train_batch import to_train_batch
from millrace.transforms.feed.train_rows import rows_to_train_batch
from millrace.transforms.recipe.chain import TransformChain
from millrace.transforms.steps.step import Counts

_NAMESPACE = telemetry.namespace("pipelines", "training_feed")
_EMITTED = telemetry.counter("feed_rows_emitted", "Rows of train blocks.", ("label",))
_DROPPED = telemetry.counter("feed_rows_dropped", "Rows that no train block holds.", ("reason",))
_LABELS = ("labels_missing", "labels_cut")


@dataclass(frozen=True)
class RowsStageFactory:
    """Makes the stage of a feed, in the worker.

    Args:
      config: features, heads, sampling, audit.
      recipe: a serialized `TransformConfig`.
      joined: whether rows come from the join of events and have neither fids nor labels yet.

    Raises: UserError for a recipe that cannot work, or that gives a trainer no rows.
    """

    config: FeedConfig
    recipe: bytes = b""
    joined: bool = True

    def __post_init__(self) -> None:
        chain = self._chain()
        if not chain.gives_rows:
            problem = "ends with shard_fids, which gives sharded batches, but a train block holds rows"
            raise UserError("recipe", chain.steps[-1].context.id, problem, "leave the step out of a feed's recipe")
        if self.config.early_negatives and 2 * chain.fanout > MAX_COPIES:
            problem = f"makes up to {chain.fanout} rows of one, and early negatives make two"
            raise UserError("recipe", f"{chain.fanout} rows", problem, f"stay within {MAX_COPIES} in all")

    def __call__(self) -> "TrainRowsStage":
        return TrainRowsStage(self.config, self._chain(), self.joined)

    @property
    def stateful(self) -> bool:
        """Whether rows depend on the rows before them."""
        return self._chain().stateful

    @property
    def required_features(self) -> frozenset[str] | None:
        """The features that the rows must have for the train rows to be right; None when it may be each one."""
        return self._chain().required_features(_features_of(self.config))

    def _chain(self) -> TransformChain:
        return TransformChain(pb.TransformConfig.FromString(self.recipe))


class TrainRowsStage:
    """Makes train rows of rows; a `millrace.pipelines.feed.machine.RowsStage`.

    Counters (`millrace.pipelines.training_feed`): `rows_emitted_positive`, `rows_emitted_negative`,
    `rows_dropped_negative_sampling`, `rows_dropped_recipe` (not counting copies that the recipe made),
    `labels_missing`, `labels_cut`; and those of the recipe's steps.
    """

    def __init__(self, config: FeedConfig, chain: TransformChain, joined: bool) -> None:
        self._config, self._chain, self._joined = config, chain, joined
        self._features = _features_of(config)
        self._steps = StepCounters(chain)
        self._counts: Counts = Counter()

    def process(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Train rows of `config.train_schema()`."""
        if self._joined:
            rows, dropped = rows_to_train_batch(rows, self._config)
            self._counts["negative_sampling"] += dropped
        if self._chain.steps or not self._joined:
            before = _originals(rows)
            rows = self._chain.process(rows)
            self._counts["recipe"] += before - _originals(rows)
            heads = len(self._config.labels)
            rows = to_train_batch(rows, self._features, heads, self._counts, self._config.audit)
        positives = int(positive_rows(rows.column(record_batch.LABEL)).sum())
        self._counts.update(positive=positives, negative=rows.num_rows - positives)
        return rows

    def warm(self, batches: Iterable[pa.RecordBatch]) -> None:
        """A first pass over all rows of a bounded run, for recipes with a step that `warm`s; nothing is counted."""
        if self._chain.warms:
            joined = self._joined
            self._chain.warm(rows_to_train_batch(rows, self._config)[0] if joined else rows for rows in batches)

    def save(self) -> bytes:
        return self._chain.save()

    def restore(self, data: bytes) -> None:
        self._chain.restore(data)

    def take_counts(self) -> Mapping[str, Any]:
        counts, self._counts = self._counts, Counter()
        return {**counts, **self._chain.take_counts()}

    def publish(self) -> None:
        """Passes the counts since the last call on to Beam's metrics and to `/metrics` of this process."""
        self._steps.add()
        counts, self._counts = self._counts, Counter()
        for label in ("positive", "negative"):
            Metrics.counter(_NAMESPACE, f"rows_emitted_{label}").inc(counts[label])
            _EMITTED.labels(label).inc(counts[label])
        for reason in ("negative_sampling", "recipe"):
            Metrics.counter(_NAMESPACE, f"rows_dropped_{reason}").inc(counts[reason])
            _DROPPED.labels(reason).inc(counts[reason])
        for name in _LABELS:
            Metrics.counter(_NAMESPACE, name).inc(counts[name])


def _features_of(config: FeedConfig) -> list[str]:
    """The features of the train rows that come with the rows: all but the audit feature, which is made at the end."""
    return [name for name in config.feature_columns if name != record_batch.AUDIT]


def _originals(rows: pa.RecordBatch) -> int:
    """Counts the rows that are not copies of another row."""
    return int(np.count_nonzero(record_batch.numpy_column(rows, record_batch.SOURCE_ROW) < ROWS_PER_RECORD))
