"""Dead letters in Beam's metrics: one counter per reason."""

import pyarrow as pa
from apache_beam.metrics import Metrics

from millrace.transforms.batch import dead_letter


def count_dead_letters(namespace: str, dead: pa.RecordBatch, prefix: str = "dead_letters") -> None:
    """Adds the rows of `dead` (`dead_letter.SCHEMA`) to the counters `<prefix>_<reason>`."""
    for reason, count in dead_letter.count_by_reason(dead).items():
        Metrics.counter(namespace, f"{prefix}_{reason}").inc(count)
