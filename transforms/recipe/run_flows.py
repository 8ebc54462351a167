"""The step that splits rows by data source, runs steps of their own on each flow, and merges the flows again."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.take_rows import take_rows
from millrace.transforms.steps.filters.flows import flow_keys, named_flow, source_keys
from millrace.transforms.steps.step import Counts, StatefulStep, StepContext, join_states, split_states

if TYPE_CHECKING:
    from millrace.transforms.recipe.chain import TransformChain

_ORDER = "__FLOW_ORDER__"
"""Column that the rows have while they are in their flows: the number of the row in the batch that was split."""


class RunFlows(StatefulStep):
    """Splits the rows by data source, runs the steps of each flow on its rows, and merges the flows again.

    A row belongs to the flow whose `data_source` has the row's `__DATA_SOURCE_KEY__`; the name becomes the row's
    `__DATA_SOURCE_NAME__`. Rows of other data sources are dropped. The rows that the steps give leave in the order in
    which their originals came in. A column that only some flows have is null in the rows of the others. A flow may have
    any steps, except `shard_fids` and `run_flows`.
    """

    stateful = False
    counters = {
        "rows_dropped": "rows of other data sources",
        "<flow>.<step>.<counter>": "what a step of a flow counts, such as `pc.0.negative_sample.rows_in`",
    }
    example = """\
run_flows:
  flows:
    - data_source: pc
      steps: [{negative_sample: {drop_rate: 0.9, threshold: 0.5, correct_sample_rate: true}}]
    - {data_source: mobile}"""

    def __init__(self, config: pb.RunFlowsConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        # The table of all steps, in the same module as the chain, lists this class.
        from millrace.transforms.recipe.chain import TransformChain, kind_of

        self._names = [flow.data_source for flow in config.flows]
        self._check_names()
        self._keys = flow_keys(self._names)
        self._chains = []
        for index, flow in enumerate(config.flows):
            # Random choices depend on a step's name: a step of a flow must not choose as a step outside of it does.
            prefix = self._prefix(flow.data_source)
            steps = [
                _named_step(each, f"{prefix}{each.id or f'{n}.{kind_of(each)}'}") for n, each in enumerate(flow.steps)
            ]
            try:
                self._chains.append(TransformChain(pb.TransformConfig(configs=steps, seed=context.seed)))
            except UserError as error:
                raise self.wrong(f"flows[{index}].{error.field}", error.value, error.problem, error.remedy) from error
        self._check_chains()
        self.fanout = max(chain.fanout for chain in self._chains)
        self.stateful = any(chain.stateful for chain in self._chains)
        self.warms = any(chain.warms for chain in self._chains)

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        counts["rows_dropped"] += int(np.count_nonzero(np.isin(source_keys(batch), self._keys, invert=True)))
        rows = self._each_flow(batch, lambda chain, rows: chain.process(rows))
        for name, chain in zip(self._names, self._chains, strict=True):
            self._count(name, chain.take_counts(), counts)
        return rows

    def warm(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return self._each_flow(batch, lambda chain, rows: chain.warm_batch(rows))

    def _each_flow(
        self, batch: pa.RecordBatch, run: Callable[["TransformChain", pa.RecordBatch], pa.RecordBatch]
    ) -> pa.RecordBatch:
        """The rows that `run` makes of each flow's, with its chain, merged in the order of the rows of `batch`.

        Raises: UserError naming a column to which two flows give different types.
        """
        keys = source_keys(batch)
        order = pa.array(np.arange(batch.num_rows))
        numbered = record_batch.with_column(batch, pa.field(_ORDER, order.type), order)
        parts = [
            run(chain, named_flow(take_rows(numbered, rows), name))
            for name, key, chain in zip(self._names, self._keys, self._chains, strict=True)
            if len(rows := np.flatnonzero(keys == key))
        ]
        if not parts:
            return named_flow(batch.slice(0, 0), "")
        try:
            merged = record_batch.concat(parts)
        except ValueError as error:
            remedy = "let the steps of all flows make the column of one type, or give it an output_name of its own"
            raise self.wrong("flows", ", ".join(self._names), str(error), remedy) from error
        if len(parts) > 1:
            merged = take_rows(merged, np.argsort(record_batch.numpy_column(merged, _ORDER), kind="stable"))
        return merged.drop_columns([_ORDER])

    def write_snapshots(self) -> list[Path]:
        return [path for chain in self._chains for path in chain.write_snapshots()]

    def save(self) -> bytes:
        return join_states([chain.save() for chain in self._chains])

    def restore(self, data: bytes) -> None:
        for chain, state in zip(self._chains, split_states(data, len(self._chains)), strict=True):
            chain.restore(state)

    def _prefix(self, flow: str) -> str:
        return f"{self.context.id}.{flow}."

    def _count(self, flow: str, found: dict[str, Counts], counts: Counts) -> None:
        """Adds what the steps of a flow counted, under the names that `counters` tells."""
        for step, each in found.items():
            short = f"{flow}.{step.removeprefix(self._prefix(flow))}"
            counts.update({f"{short}.{name}": number for name, number in each.items()})

    def _check_names(self) -> None:
        if not self._names:
            raise self.wrong("flows", "", "empty", "list one flow or more")
        for index, name in enumerate(self._names):
            if not name:
                raise self.wrong(f"flows[{index}].data_source", "", "empty", "name the data source of the flow")
            if name in self._names[:index]:
                raise self.wrong(f"flows[{index}].data_source", name, "has a flow already", "list each source once")

    def _check_chains(self) -> None:
        for index, chain in enumerate(self._chains):
            for number, step in enumerate(chain.steps):
                if isinstance(step, RunFlows) or not step.gives_rows:
                    problem = "is no step of a flow, whose rows are of one source and are merged with others"
                    remedy = "put it after run_flows"
                    raise self.wrong(f"flows[{index}].steps[{number}]", step.context.id, problem, remedy)


def _named_step(step: pb.OneTransformConfig, id: str) -> pb.OneTransformConfig:
    named = pb.OneTransformConfig()
    named.CopyFrom(step)
    named.id = id
    return named
