"""The steps of a recipe as one function over batches.

The chain knows neither Beam nor Kafka: a notebook, a test, the command line and every runner call `process`. Filters
that follow one another all look at the rows before the first of them, and the rows that stay are copied once.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch.provenance import MAX_COPIES
from millrace.transforms.batch.take_rows import take_rows
from millrace.transforms.recipe import run_flows
from millrace.transforms.recipe.action_names import ActionNames
from millrace.transforms.recipe.text import RecipeText, parse_recipe, read_recipe
from millrace.transforms.steps.features import projection, sparse_features
from millrace.transforms.steps.filters import filters, flows, predicates
from millrace.transforms.steps.labels import label_steps, negative_sample, reweight
from millrace.transforms.steps.negatives import negatives
from millrace.transforms.steps.sharding import sharded_fids
from millrace.transforms.steps.step import (
    Counts,
    Predicate,
    StatefulStep,
    Step,
    StepContext,
    join_states,
    split_states,
)

STEPS: Mapping[str, type[Step]] = {
    "filter_by_fid": filters.FilterByFid,
    "filter_by_action": filters.FilterByAction,
    "filter_by_label": filters.FilterByLabel,
    "filter_by_value": filters.FilterByValue,
    "filter_by_feature_value": filters.FilterByFeatureValue,
    "any_of": predicates.AnyOf,
    "all_of": predicates.AllOf,
    "none_of": predicates.NoneOf,
    "logical_or": predicates.LogicalOr,
    "special_strategy": filters.SpecialStrategy,
    "negative_sample": negative_sample.NegativeSample,
    "select_flows": flows.SelectFlows,
    "run_flows": run_flows.RunFlows,
    "add_action": label_steps.AddAction,
    "add_label": label_steps.AddLabel,
    "scatter_label": label_steps.ScatterLabel,
    "multi_label_gen": label_steps.MultiLabelGen,
    "label_upper_bound": label_steps.LabelUpperBound,
    "label_normalization": label_steps.LabelNormalization,
    "use_field_as_label": label_steps.UseFieldAsLabel,
    "fill_multi_rank_output": label_steps.FillMultiRankOutput,
    "reweight": reweight.Reweight,
    "generate_negatives": negatives.GenerateNegatives,
    "switch_slot": sparse_features.SwitchSlot,
    "combine_features": sparse_features.CombineFeatures,
    "mask_fid": sparse_features.MaskFid,
    "map_ids": sparse_features.MapIds,
    "extract_fids": sparse_features.ExtractFids,
    "convert_fids": sparse_features.ConvertFids,
    "decompress_embedding": sparse_features.DecompressEmbedding,
    "project": projection.Project,
    "shard_fids": sharded_fids.ShardFids,
}
"""{kind of a step: its class}, in the order of docs/transforms.md."""


def kind_of(config: pb.OneTransformConfig) -> str:
    """The key in `STEPS` of the step that `config` describes; empty when it has no kind."""
    if config.WhichOneof("transform") == "logical_or_config":
        return "logical_or"
    return config.basic_config.WhichOneof("type") or ""


def make_step(config: pb.OneTransformConfig, context: StepContext) -> Step:
    """The step of `config`; UserError names a wrong setting."""
    kind = kind_of(config)
    if not kind:
        raise UserError(context.id, "", "a step has one kind", f"choose one of {', '.join(STEPS)}")
    message = config.logical_or_config if kind == "logical_or" else getattr(config.basic_config, kind)
    return STEPS[kind](message, context)


class TransformChain:
    """The steps of a recipe.

    Args:
      config: the recipe.
      text: the text that it was read from, so that errors name the line of a mistake.

    Raises: UserError naming the first wrong setting.
    """

    def __init__(self, config: pb.TransformConfig, text: RecipeText | None = None) -> None:
        self.config = config
        self._actions = _action_names(config, text)
        self.steps = [self._make(index, each, text) for index, each in enumerate(config.configs)]
        # A step without rows renames the columns, so the actions get their names back before it.
        of_rows = [step for step in self.steps if step.gives_rows]
        self._layout = [step for step in self.steps if not step.gives_rows]
        self._stateful = [step for step in self.steps if isinstance(step, StatefulStep) and step.stateful]
        self._stages = [(is_filter, list(steps)) for is_filter, steps in itertools.groupby(of_rows, _is_filter)]
        self.counts: dict[str, Counts] = {step.context.id: Counter() for step in self.steps}
        self._check(text)

    @classmethod
    def read(cls, path: str) -> Self:
        """The chain of a recipe file; UserError names file, line and field of the first mistake."""
        text = read_recipe(path)
        return cls(text.config, text)

    @classmethod
    def parse(cls, recipe: str) -> Self:
        """The chain of a recipe in YAML or JSON text; UserError names line and field of the first mistake."""
        text = parse_recipe(recipe)
        return cls(text.config, text)

    def process(self, batch: pa.RecordBatch, number_actions: bool = False) -> pa.RecordBatch:
        """The rows that the steps make of `batch`, which is not changed; adds to `counts`.

        Args:
          number_actions: action names become the numbers that `action_ids` gives them, for formats that hold no names.

        Raises: UserError when `number_actions` is set and a row has an action whose name has no number.
        """
        batch, names = self._actions.numbered(batch)
        for is_filter, steps in self._stages:
            batch = self._filter(batch, steps) if is_filter else self._apply(batch, steps)
        if names and number_actions:
            names.refuse_unknown(batch)
        elif names:
            batch = names.restored(batch)
        return self._apply(batch, self._layout)

    def take_counts(self) -> dict[str, Counts]:
        """{id of the step: {counter: rows}} since the last call; every step has `rows_in` and `rows_out`."""
        taken, self.counts = self.counts, {step.context.id: Counter() for step in self.steps}
        return taken

    @property
    def stateful(self) -> bool:
        """Whether the output depends on earlier batches."""
        return bool(self._stateful)

    @property
    def gives_rows(self) -> bool:
        """Whether the output holds rows; false with `shard_fids`, which makes one sharded batch of many rows."""
        return not self._layout

    def required_features(self, wanted: Iterable[str] | None = None) -> frozenset[str] | None:
        """The features that a source must read for the chain to give those `wanted`: `projection.required_features`."""
        return projection.required_features(self.config, wanted)

    @property
    def fanout(self) -> int:
        """The largest number of rows that one row can become."""
        return math.prod(step.fanout for step in self.steps)

    @property
    def warms(self) -> bool:
        """Whether a bounded run shows the chain all rows by `warm` before it processes the first."""
        return any(step.warms for step in self._stateful)

    def warm(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Lets the steps that `warm` learn from all rows of a bounded run, before `process`; nothing is counted."""
        for batch in batches:
            self.warm_batch(batch)

    def warm_batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`warm` of one batch. Returns the rows after the last step, without those that `process` would generate."""
        rows, _ = self._actions.numbered(batch)
        for step in self.steps:
            if step.gives_rows:
                rows = step.warm(rows) if isinstance(step, StatefulStep) else step.process(rows, Counter())
        return rows

    def write_snapshots(self) -> list[Path]:
        """Writes the item pools of the steps that name a folder for them; returns the files."""
        return [path for step in self._stateful for path in step.write_snapshots()]

    def save(self) -> bytes:
        """The state of all stateful steps, for `restore`."""
        return join_states([step.save() for step in self._stateful])

    def restore(self, data: bytes) -> None:
        """Replaces the state by what `save` returned; ValueError for bytes of anything else."""
        for step, state in zip(self._stateful, split_states(data, len(self._stateful)), strict=True):
            step.restore(state)

    def _make(self, index: int, config: pb.OneTransformConfig, text: RecipeText | None) -> Step:
        kind = kind_of(config)
        context = StepContext(self.config.seed, config.id or f"{index}.{kind}")
        try:
            return make_step(config, context)
        except UserError as error:
            path = f"steps[{index}].{kind}{error.field.removeprefix(context.id)}"
            if text is not None:
                raise text.located(path, error) from error
            raise UserError(path, error.value, error.problem, error.remedy) from error

    def _check(self, text: RecipeText | None) -> None:
        ids = [step.context.id for step in self.steps]
        problem: tuple[int, UserError] | None = None
        for index, step in enumerate(self.steps):
            if step.context.id in ids[:index]:
                problem = index, UserError("", step.context.id, "another step has the same id", "give it its own")
            elif not step.gives_rows and index + 1 < len(self.steps):
                problem = index, UserError("", "", "steps follow shard_fids", "make it the last step")
        if self.fanout > MAX_COPIES:
            problem = 0, UserError("", self.fanout, "rows may come from one row", f"stay within {MAX_COPIES}")
        if problem:
            index, error = problem
            path = f"steps[{index}]"
            raise text.located(path, error) if text else UserError(path, error.value, error.problem, error.remedy)

    def _apply(self, batch: pa.RecordBatch, steps: Sequence[Step]) -> pa.RecordBatch:
        for step in steps:
            counts = self.counts[step.context.id]
            counts["rows_in"] += batch.num_rows
            batch = step.process(batch, counts)
            counts["rows_out"] += batch.num_rows
        return batch

    def _filter(self, batch: pa.RecordBatch, steps: Sequence[Step]) -> pa.RecordBatch:
        kept = np.ones(batch.num_rows, bool)
        before = batch.num_rows
        for step in steps:
            assert isinstance(step, Predicate)
            kept &= step.keep(batch)
            after = int(np.count_nonzero(kept))
            self.counts[step.context.id].update(rows_in=before, rows_out=after, rows_dropped=before - after)
            before = after
        return batch if before == batch.num_rows else take_rows(batch, np.flatnonzero(kept))


def _action_names(config: pb.TransformConfig, text: RecipeText | None) -> ActionNames:
    try:
        return ActionNames(config.action_ids)
    except UserError as error:
        raise text.located(error.field, error) if text else error from None


def _is_filter(step: Step) -> bool:
    return isinstance(step, Predicate)
