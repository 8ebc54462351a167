"""Records that are JSON objects to canonical rows, one per record. A key is the name of a column."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch.dead_letter import Reason, Refusals
from millrace.transforms.batch.provenance import PROVENANCE
from millrace.transforms.codecs.json_parser import parse_objects
from millrace.transforms.frames.framing import with_source


def decode_json(block: pa.RecordBatch, schema: pa.Schema) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """(rows, dead letters) of a raw block whose records are JSON objects.

    Args:
      schema: columns, features and metadata; other keys are ignored, and what an object lacks is null. Binary values
        are written as strings.
    """
    fields = [field for field in schema if field.name not in PROVENANCE]
    refusals = Refusals(block)
    parsed, rows = parse_objects(block, pa.schema(fields), refusals)
    for field in fields:
        _refuse_nulls_in_lists(parsed.column(field.name), field.name, rows, refusals)
    good = refusals.keep(rows)
    accepted = pa.RecordBatch.from_arrays(parsed.filter(pa.array(good)).columns, schema=pa.schema(fields))
    return with_source(accepted, block.drop_columns(["value"]).take(pa.array(rows[good]))), refusals.to_batch()


def _refuse_nulls_in_lists(column: pa.Array, name: str, rows: np.ndarray, refusals: Refusals) -> None:
    parents = np.arange(len(column))
    while pa.types.is_list(column.type):
        parents = parents[pc.list_parent_indices(column).to_numpy(zero_copy_only=False)]
        column = column.flatten()
        if column.null_count:
            nulls = pc.is_null(column).to_numpy(zero_copy_only=False)
            refusals.add(rows[np.unique(parents[nulls])], Reason.WRONG_TYPE, f"{name}: holds null")
