"""Joined rows to canonical train batches: fids, labels, down-sampled negatives."""

from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

from millrace.runtime import telemetry
from millrace.transforms.batch import list_columns, record_batch  # noqa: F401 (beam_coder registers the coder)
from millrace.transforms.batch.label_column import label_lists, label_matrix, label_rows
from millrace.transforms.beam import coder  # noqa: F401 (beam_coder registers the coder)
from millrace.transforms.feed import join  # noqa: F401 (beam_coder registers the coder)
from millrace.transforms.feed.config import FeedConfig, extract_fids
from millrace.transforms.feed.early_negatives import corrected_labels
from millrace.transforms.steps.labels.negative_sample import sample_negatives

_NAMESPACE = telemetry.namespace("transforms", "train_rows")


class RowsToTrainBatches(beam.PTransform):
    """Batches of `join.joined_schema(config)` to batches of `config.train_schema()`."""

    def __init__(self, config: FeedConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, pcoll: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        return pcoll | "ToTrainBatches" >> beam.ParDo(_ToTrainBatchDoFn(self._config))


class _ToTrainBatchDoFn(beam.DoFn):
    """Counters: `rows_in`, `rows_out`, `dropped_negatives`."""

    def __init__(self, config: FeedConfig) -> None:
        self._config = config
        self._rows_in = Metrics.counter(_NAMESPACE, "rows_in")
        self._rows_out = Metrics.counter(_NAMESPACE, "rows_out")
        self._dropped = Metrics.counter(_NAMESPACE, "dropped_negatives")

    def process(self, element: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        batch, dropped = rows_to_train_batch(element, self._config)
        self._rows_in.inc(element.num_rows)
        self._rows_out.inc(batch.num_rows)
        self._dropped.inc(dropped)
        if batch.num_rows:
            yield batch


def rows_to_train_batch(rows: pa.RecordBatch, config: FeedConfig) -> tuple[pa.RecordBatch, int]:
    """Makes the canonical batch of joined rows.

    Args:
      rows: `join.joined_schema(config)`.

    With `config.early_negatives` a row with its action is silent on the heads for which it is not positive: as an early
    negative it was a negative of every head.

    Returns: (batch of `config.train_schema()`, number of negatives dropped by sampling).
    """
    fids = extract_fids(rows, config.features, config.audit)
    actions, values = rows.column(join.JOINED_ACTIONS), rows.column(join.JOINED_VALUES)
    timestamps = record_batch.numpy_column(rows, "timestamp_ms")
    ones = pa.array(np.ones(rows.num_rows, np.float32))
    metadata = {
        record_batch.LABEL: _labels(actions, values, config),
        record_batch.WEIGHT: ones,
        record_batch.SAMPLE_RATE: ones,
        record_batch.UID: rows.column("user_id"),
        record_batch.ITEM_ID: rows.column("item_id"),
        record_batch.REQ_ID: rows.column("request_id"),
        record_batch.REQ_TIME: pa.array(timestamps // 1000),
        record_batch.EVENT_TIME_MS: rows.column(join.EVENT_TIME_MS),
        record_batch.ACTIONS: actions,
    }
    provenance = (record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW)
    metadata |= {name: rows.column(name) for name in provenance}
    columns = [*fids.columns, *(metadata[field.name] for field in record_batch.METADATA_FIELDS)]
    batch = pa.RecordBatch.from_arrays(columns, schema=config.train_schema())
    return sample_negatives(batch, config.negative_rate, config.seed)


def _labels(actions: pa.ListArray, values: pa.ListArray, config: FeedConfig) -> pa.ListArray:
    labels = label_rows(actions, values, config.labels)
    if not config.early_negatives:
        return labels
    return label_lists(corrected_labels(label_matrix(labels), list_columns.lengths(actions) > 0))
