"""Dead letters in Beam: the output that holds them, and one counter per reason."""

from typing import Literal, TypeAlias

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from millrace.transforms.batch import dead_letter

DEAD_LETTERS = "dead_letters"
"""Name of the output that holds what could not be read."""
DeadLetters: TypeAlias = beam.pvalue.TaggedOutput[Literal["dead_letters"], pa.RecordBatch]


def count_dead_letters(namespace: str, dead: pa.RecordBatch, prefix: str = "dead_letters") -> None:
    """Adds the rows of `dead` (`dead_letter.SCHEMA`) to the counters `<prefix>_<reason>`."""
    for reason, count in dead_letter.count_by_reason(dead).items():
        Metrics.counter(namespace, f"{prefix}_{reason}").inc(count)
