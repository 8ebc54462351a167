"""Row-wise reference of a whole recipe: the references of its steps, one after the other, over dictionaries."""

from typing import Any

import pyarrow as pa

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.steps.labels.reweight import ActionWeight
from tests.reference.filters_reference import Row, kept_by
from tests.reference.label_steps import add_label
from tests.reference.negatives_reference import NaivePools, negatives_of
from tests.reference.reweight import reweight
from tests.reference.sharding_reference import Feature, Sharded, shard
from tests.reference.sparse_features import switch_slot

_NEGATIVES = {
    "negative_action": None,
    "positive_label": 1.0,
    "negative_label": -1.0,
    "origin_neg_in_pool_proba": 1.0,
    "real_neg_instance_weight": 1.0,
    "sampled_neg_instance_weight": -1.0,
    "unbias_sampled_neg": True,
    "neg_sample_declay_factor": 1.0,
}


class ReferenceChain:
    """Filters, `add_label` of tasks without sampling, `reweight` by weight, negatives, slots in place, projection,
    and at last `shard_fids`; each at most once, filters as often as wanted.

    Args:
      config: the recipe.
      schema: of the rows.
    """

    def __init__(self, config: pb.TransformConfig, schema: pa.Schema) -> None:
        self._config, self._schema = config, schema
        self._steps = [(each.basic_config.WhichOneof("type") or "", each.basic_config) for each in config.configs]
        self._pools: NaivePools | None = None

    def rows(self, rows: list[Row]) -> list[Row]:
        """What comes before `shard_fids`."""
        for index, (kind, config) in enumerate(self._steps):
            if kind == "generate_negatives":
                rows = self._negatives(rows, config.generate_negatives, f"{index}.{kind}")
            elif kind != "shard_fids":
                rows = [made for row in rows if (made := self._row(row, kind, config)) is not None]
        return rows

    def sharded(self, rows: list[Row]) -> Sharded:
        """The fids of rows that `rows` gave."""
        config = self._steps[-1][1].shard_fids
        features = {
            name: Feature(each.table, sum(each.slice_dims), [row[name] or [] for row in rows])
            for name, each in config.feature_configs.feature_configs.items()
        }
        return shard(features, config.ps_num, config.unique, config.version or 5)

    def _row(self, row: Row, kind: str, config: pb.BasicTransformConfig) -> Row | None:
        if kind == "add_label":
            draws = [0.0] * len(config.add_label.task_label_configs)
            made = add_label({"label": row.get("__LABEL__"), "actions": row["__ACTIONS__"]}, config.add_label, draws)
            return row | {"__LABEL__": made["label"], "__SAMPLE_RATE__": made["sample_rate"]}
        if kind == "reweight":
            return _reweighted(row, config.reweight)
        if kind == "switch_slot":
            return row | {
                each.feature_name: [switch_slot(fid, each.slot, False, False) for fid in row[each.feature_name] or []]
                for each in config.switch_slot.features
            }
        if kind == "project":
            wanted = config.project.feature_names
            return {name: value for name, value in row.items() if name in wanted or name.startswith("__")}
        return row if kept_by(row, self._schema, config) else None

    def _negatives(self, rows: list[Row], config: pb.GenerateNegativesConfig, step: str) -> list[Row]:
        given = {field.name: value for field, value in config.ListFields()}
        every = {field.name: getattr(config, field.name) for field in config.DESCRIPTOR.fields}
        settings: dict[str, Any] = every | _NEGATIVES | given
        if self._pools is None:
            self._pools = NaivePools(settings["start_num"], settings["max_item_num"])
        return negatives_of(rows, self._pools, settings, self._config.seed, step)


def _reweighted(row: Row, config: pb.ReweightConfig) -> Row | None:
    labels = row.get("__LABEL__") or []
    if not labels:
        return None
    weights = [ActionWeight(each.action, each.weight, each.label) for each in config.weights]
    before, now = row.get("__PRE_ACTIONS__") or [], row["__ACTIONS__"] or []
    times, label = reweight(before, now, labels[0], list(config.action_priority), weights)
    weight = row.get("__WEIGHT__")
    made = row | {"__LABEL__": [label, *labels[1:]], "__WEIGHT__": (1.0 if weight is None else weight) * min(times, 64)}
    return made if times else None
