"""Registers the Arrow IPC coder of `pa.RecordBatch`; every module that builds a pipeline imports this one.

Beam's default pickles the whole buffers behind a slice, so that ten rows of a million take eight megabytes. The coder
is not in `record_batch.py` because Beam takes seconds to import and a trainer needs only the schema.
"""

import apache_beam as beam
import pyarrow as pa

from millrace.transforms.batch import record_batch


class RecordBatchCoder(beam.coders.Coder):
    """Each batch as one Arrow IPC stream."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        return record_batch.to_bytes(value)

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        return record_batch.from_bytes(encoded)

    def estimate_size(self, value: pa.RecordBatch) -> int:
        return value.nbytes  # Beam samples sizes, and its default would encode the value for that

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type:
        return pa.RecordBatch


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
