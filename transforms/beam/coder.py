"""Registers the Arrow IPC coder of `pa.RecordBatch`; imported by every module that builds a pipeline.

Beam's fallback pickles whole parent buffers: ten rows sliced from a million encode to eight megabytes. It is apart from
`record_batch.py` because Beam takes seconds to import and a trainer needs only the schema.
"""

import apache_beam as beam
import pyarrow as pa

from millrace.transforms.batch import record_batch


class RecordBatchCoder(beam.coders.Coder):
    """One Arrow IPC stream a batch."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        return record_batch.to_bytes(value)

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        return record_batch.from_bytes(encoded)

    def estimate_size(self, value: pa.RecordBatch) -> int:
        return value.nbytes  # Beam samples sizes; its default encodes the value for it

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type:
        return pa.RecordBatch


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
