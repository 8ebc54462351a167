"""Flows as Beam collections: split into one output per flow, and merged into one collection again."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.typehints.decorators import no_annotations

from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.transforms.batch import dead_letter, record_batch
from millrace.transforms.batch.provenance import PARTITIONS_PER_SOURCE
from millrace.transforms.beam.dead_letters import DEAD_LETTERS
from millrace.transforms.steps.filters.flows import flow_keys, named_flow, source_keys, split_flows

"""Tag of the output for rows that belong to no named flow."""

_NAMESPACE = telemetry.namespace("transforms", "split_flows")


class SplitFlows(beam.PTransform):
    """A collection of `pa.RecordBatch` to one output per flow, by `__DATA_SOURCE_KEY__`, and dead letters.

    Example:

        flows = rows | SplitFlows(["pc", "mobile"])
        flows["pc"], flows["mobile"], flows[DEAD_LETTERS]

    In Beam YAML a flow is the output of its name, such as `Split.pc`.

    Args:
      names: the data sources of the flows. Rows of others go to `DEAD_LETTERS`, as `batch.dead_letter.SCHEMA`.
      label: name of the step in the pipeline.

    Counters (`millrace.transforms.split_flows`): `rows_in`, `rows_out`, `dead_letters`.
    Raises: UserError when two names have the same key, or there are no names.
    """

    def __init__(self, names: Sequence[str], label: str | None = None) -> None:
        super().__init__(label)
        flow_keys(names)
        if not names or DEAD_LETTERS in names:
            raise UserError("flows", ", ".join(names), f"no names, or {DEAD_LETTERS}", "choose names of data sources")
        self._names = list(names)

    @no_annotations  # Beam knows no hints of several outputs
    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> dict[str, beam.PCollection]:
        tags = [*self._names, DEAD_LETTERS]
        split = beam.ParDo(_SplitDoFn(self._names)).with_input_types(pa.RecordBatch)
        typed = split.with_output_types(pa.RecordBatch, **dict.fromkeys(tags, pa.RecordBatch))
        split_rows = batches | "SplitRows" >> typed.with_outputs(*tags)
        return {tag: split_rows[tag] for tag in tags}

    def display_data(self) -> dict[str, Any]:
        return {"flows": ", ".join(self._names)}


class MergeFlows(beam.PTransform):
    """{name: collection of `pa.RecordBatch`} to one collection, each row with the name of its flow.

    Example:

        rows = {"pc": pc_rows, "mobile": mobile_rows} | MergeFlows()
    """

    def expand(self, flows: Mapping[str, beam.PCollection[pa.RecordBatch]]) -> beam.PCollection[pa.RecordBatch]:
        named = [
            rows | f"Name[{name}]" >> beam.Map(named_flow, name).with_output_types(pa.RecordBatch)
            for name, rows in flows.items()
        ]
        return named | "MergeFlows" >> beam.Flatten().with_output_types(pa.RecordBatch)


class _SplitDoFn(beam.DoFn):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._in, self._out, self._dead = (
            Metrics.counter(_NAMESPACE, name) for name in ("rows_in", "rows_out", "dead_letters")
        )

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        flows, unknown = split_flows(batch, self._names)
        self._in.inc(batch.num_rows)
        self._out.inc(batch.num_rows - unknown.num_rows)
        yield from (beam.pvalue.TaggedOutput(name, rows) for name, rows in flows.items() if rows.num_rows)
        if unknown.num_rows:
            self._dead.inc(unknown.num_rows)
            yield beam.pvalue.TaggedOutput(DEAD_LETTERS, unknown_source_letters(unknown))


def unknown_source_letters(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Dead letters, `dead_letter.SCHEMA`, of rows that no flow takes; the value is the row as an Arrow IPC stream."""
    values = [record_batch.to_bytes(rows.slice(row, 1)) for row in range(rows.num_rows)]
    lengths = np.fromiter(map(len, values), np.int64)
    columns = [
        pa.array([value[: dead_letter.MAX_VALUE_BYTES] for value in values], pa.binary()),
        pa.nulls(rows.num_rows, pa.string()),
        _plain_partitions(rows),
        _column_or_nulls(rows, record_batch.SOURCE_OFFSET, pa.int64()),
        pa.repeat(pa.scalar(dead_letter.Reason.UNKNOWN_DATA_SOURCE.value), rows.num_rows),
        pa.array([f"data source key {key}" for key in source_keys(rows).tolist()], pa.string()),
        pa.array(lengths, mask=lengths <= dead_letter.MAX_VALUE_BYTES),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=dead_letter.SCHEMA)


def _plain_partitions(rows: pa.RecordBatch) -> pa.Array:
    """int32: the partition of each row without the number of its source."""
    numbers = _column_or_nulls(rows, record_batch.SOURCE_PARTITION, pa.int64())
    return pc.bit_wise_and(numbers, PARTITIONS_PER_SOURCE - 1).cast(pa.int32())


def _column_or_nulls(rows: pa.RecordBatch, name: str, type: pa.DataType) -> pa.Array:
    column = record_batch.column_of(rows, name)
    return pa.nulls(rows.num_rows, type) if column is None else column.cast(type)
