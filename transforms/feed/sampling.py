"""The feed's own down-sampling of negatives, and the sample rate that lets the trainer correct for it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.action_column import reduce_rows
from millrace.transforms.batch.draws import uniform
from millrace.transforms.batch.list_columns import values_and_splits
from millrace.transforms.batch.provenance import provenance_of

_TRANSFORM = "negative_sampling"


def sample_negatives(batch: pa.RecordBatch, rate: float, seed: int) -> tuple[pa.RecordBatch, int]:
    """Keeps every row with a positive label and the others with probability `rate`.

    `__SAMPLE_RATE__` of every row that is kept, positive or not, is multiplied by `rate`: among the rows that are left
    the odds of a positive are 1 / rate times too high, and the trainer's correction (logit - ln rate) undoes that. It
    is exact for one head; with several, a row is kept if any head is positive.

    Args:
      batch: rows with `__LABEL__`, `__SAMPLE_RATE__` and provenance.
      rate: in (0, 1].

    Returns: (kept rows in order, number of dropped ones).
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"rate {rate}: expected more than 0, up to 1")
    if rate == 1.0 or not batch.num_rows:
        return batch, 0
    keep = positive_rows(batch.column(record_batch.LABEL))
    keep |= uniform(seed, _TRANSFORM, *provenance_of(batch)) < rate
    kept = batch.filter(pa.array(keep))
    index = kept.schema.get_field_index(record_batch.SAMPLE_RATE)
    corrected = pc.multiply(kept.column(index), pa.scalar(rate, pa.float32()))
    return kept.set_column(index, kept.schema.field(index), corrected), batch.num_rows - kept.num_rows


def positive_rows(labels: pa.ListArray) -> np.ndarray:
    """bool [rows]: whether any label is above zero."""
    values, splits = values_and_splits(labels)
    return reduce_rows(np.logical_or, values > 0, splits, False)
