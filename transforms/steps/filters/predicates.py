"""Filters that combine other filters: any, all or none of several, and the `logical_or` of two."""

from typing import Any

import numpy as np
import pyarrow as pa

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.steps.filters import filters, flows
from millrace.transforms.steps.step import Predicate, Step, StepContext

_ALONE = StepContext()


class _Tree(Predicate):
    """A filter that combines the results of other filters, its `children`."""

    def __init__(self, config: pb.PredicatesConfig, context: StepContext = _ALONE) -> None:
        super().__init__(config, context)
        if not config.predicates:
            raise self.wrong("predicates", "", "empty", "list one filter or more")
        self.children = [
            make_predicate(self, f"predicates[{index}]", each) for index, each in enumerate(config.predicates)
        ]


class AnyOf(_Tree):
    """Keeps rows that at least one of the filters keeps."""

    example = (
        "any_of:\n  predicates:\n    - filter_by_action: {has_actions: [2]}\n    - filter_by_label: {thresholds: [0]}"
    )

    def keep(self, batch: pa.RecordBatch) -> np.ndarray:
        return np.logical_or.reduce([child.keep(batch) for child in self.children])


class AllOf(_Tree):
    """Keeps rows that every one of the filters keeps, as steps one after the other do; for use within `any_of`."""

    example = (
        "all_of:\n  predicates:\n    - filter_by_action: {has_actions: [2]}\n    - filter_by_label: {thresholds: [0]}"
    )

    def keep(self, batch: pa.RecordBatch) -> np.ndarray:
        return np.logical_and.reduce([child.keep(batch) for child in self.children])


class NoneOf(_Tree):
    """Keeps rows that none of the filters keeps."""

    example = "none_of:\n  predicates:\n    - filter_by_value: {field_name: rank, op: gt, int_operand: [9]}"

    def keep(self, batch: pa.RecordBatch) -> np.ndarray:
        return ~np.logical_or.reduce([child.keep(batch) for child in self.children])


class LogicalOr(Predicate):
    """Keeps rows that filter `x`, filter `y` or both keep."""

    example = "logical_or:\n  x: {filter_by_action: {has_actions: [2]}}\n  y: {filter_by_label: {thresholds: [0]}}"

    def __init__(self, config: pb.LogicalOrConfig, context: StepContext = _ALONE) -> None:
        super().__init__(config, context)
        self.children = [make_predicate(self, name, getattr(config, name)) for name in ("x", "y")]

    def keep(self, batch: pa.RecordBatch) -> np.ndarray:
        x, y = (child.keep(batch) for child in self.children)
        return x | y


PREDICATES: dict[str, type[Predicate]] = {
    "filter_by_fid": filters.FilterByFid,
    "filter_by_action": filters.FilterByAction,
    "filter_by_label": filters.FilterByLabel,
    "filter_by_value": filters.FilterByValue,
    "filter_by_feature_value": filters.FilterByFeatureValue,
    "select_flows": flows.SelectFlows,
    "any_of": AnyOf,
    "all_of": AllOf,
    "none_of": NoneOf,
}
"""{kind of a step: its class} of the steps that can be combined: those that look at rows and do not change them."""


def make_predicate(parent: Step, setting: str, config: pb.BasicTransformConfig) -> Predicate:
    """The filter that `parent` has as `setting`; UserError when it is no filter or one of its settings is wrong."""
    kind: Any = config.WhichOneof("type")
    if kind not in PREDICATES:
        problem = f"{kind} is no filter: it changes rows" if kind else "missing"
        raise parent.wrong(setting, kind or "", problem, f"choose {', '.join(PREDICATES)}")
    context = StepContext(parent.context.seed, parent.field(f"{setting}.{kind}"))
    return PREDICATES[kind](getattr(config, kind), context)
