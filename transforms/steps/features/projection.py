"""Projection: batches without the features that nobody needs, and which features a source must read.

`required_features` is computed once, from the steps of a recipe and what follows them. Sources of Parquet files read no
other columns (`pipelines.files.containers.ParquetSettings`); sources of records decode all, and `project` drops some.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
from google.protobuf.message import Message

from millrace.protos import sharded_batch_pb2
from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.steps.features.feature_list import FeatureList, read_feature_list, slot_of_name
from millrace.transforms.steps.step import Counts, Step, StepContext

_ALONE = StepContext()
_FID_FIELDS = ("has_fids", "filter_fids", "select_fids")
_NAMING_FIELDS = {"feature_name", "feature_names", "channel_feature", "index_feature", "item_features"}


class SlotPair(NamedTuple):
    """A feature that is named by its slot: `v1` in feature lists of fids v1 and `v2` in those of fids v2."""

    v1: int
    v2: int


class Project(Step):
    """Keeps the named features, or those that a feature list names, and all columns of row metadata.

    A feature that a batch does not have is no error. A feature list names a column by the feature's name, with or
    without the prefixes `fc_` and `f_`, or by its slot, as `slot_<n>` or `fc_slot_<n>`. Sources of Parquet files do not
    read the columns that `feature_names` leaves out, if no step before looks at them.
    """

    example = "project:\n  feature_names: [user_id, item_id]"

    def __init__(self, config: pb.ProjectConfig, context: StepContext = _ALONE) -> None:
        super().__init__(config, context)
        if bool(config.feature_names) == bool(config.feature_list_file):
            raise self.wrong(
                "feature_names",
                ", ".join(config.feature_names),
                "both or none of the two ways to name features",
                "give either feature_names or feature_list_file",
            )
        self._wanted: Callable[[str], bool] = set(config.feature_names).__contains__
        if config.feature_list_file:
            features = read_feature_list(config.feature_list_file)
            self._wanted = _Listed(features)

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        return project(batch, [name for name in batch.schema.names if self._wanted(name)])


class _Listed:
    """Tells whether a feature list has a column of a name."""

    def __init__(self, features: FeatureList) -> None:
        self._features = features

    def __call__(self, name: str) -> bool:
        if self._features.find(name):
            return True
        try:
            return bool(self._features.of_slot(slot_of_name(name)))
        except KeyError:
            return False


def project(batch: pa.RecordBatch, names: Collection[str]) -> pa.RecordBatch:
    """`batch` with its row metadata and, of its features, only `names`; columns keep their order."""
    wanted = set(names)
    kept = [name for name in batch.schema.names if name in wanted or record_batch.is_metadata_name(name)]
    return batch if len(kept) == batch.num_columns else batch.select(kept)


def resolve_features(slots: Mapping[str, int], wanted: Iterable[str | SlotPair]) -> dict[str, int]:
    """{feature: slot} of the features wanted, in the order of `slots`.

    Args:
      slots: {feature: slot} of a feature list; several features may share a slot.
      wanted: features by name, or by a pair of slots; a feature with either slot is wanted.

    Raises: UserError for a name or a pair that no feature has.
    """
    found: set[str] = set()
    for each in wanted:
        names = [name for name, slot in slots.items() if (name == each if isinstance(each, str) else slot in each)]
        if not names:
            problem = "no feature has this name" if isinstance(each, str) else "no feature has one of these slots"
            raise UserError("features", each, problem, "name features of the feature list")
        found.update(names)
    return {name: slot for name, slot in slots.items() if name in found}


def required_features(
    config: pb.TransformConfig, wanted: Iterable[str] | None = None, features: FeatureList | None = None
) -> frozenset[str] | None:
    """The features that a source must read for a recipe to give those `wanted`; None when it may need each one.

    The steps are walked from the last to the first: each one adds the features that it names, and `project` takes away
    those that it does not let through. A filter by fids looks at all features, unless a feature list tells which of
    them can hold its fids. Columns of row metadata are not among the features: a source always reads them.

    Args:
      wanted: features that are used after the last step; None: all that it lets through.
      features: a list whose features have the names of the columns.

    Raises: UserError naming a fid or slot that no feature of the list has.
    """
    return _needed_before(config.configs, None if wanted is None else frozenset(wanted), features)


def _needed_before(
    steps: Sequence[pb.OneTransformConfig], needed: frozenset[str] | None, features: FeatureList | None
) -> frozenset[str] | None:
    """The features that must be there before `steps`, when `needed` must be there after them; None: all."""
    for step in reversed(steps):
        basic = step.basic_config
        if basic.HasField("run_flows"):
            needed = _united([_needed_before(flow.steps, needed, features) for flow in basic.run_flows.flows])
        elif basic.HasField("project") and basic.project.feature_names:
            let_through = frozenset(basic.project.feature_names)
            needed = let_through if needed is None else needed & let_through
        else:
            needed = _united([needed, _features_used(step, features)])
    return needed


def _united(parts: Sequence[frozenset[str] | None]) -> frozenset[str] | None:
    known = [part for part in parts if part is not None]
    return frozenset().union(*known) if len(known) == len(parts) else None


def _features_used(step: Message, features: FeatureList | None) -> frozenset[str] | None:
    """The features that a step looks at; None when it may look at each one."""
    names: set[str] = set()
    for message in _messages(step):
        if isinstance(message, pb.FilterByFidConfig):
            if features is None and _looks_at_fids(message):
                return None
            names |= _features_of(message, features) if features else set()
        elif isinstance(message, sharded_batch_pb2.FeatureConfigs):
            names.update(message.feature_configs)
        names |= _named_in(message)
    return frozenset(names)


def _messages(message: Message) -> Iterable[Message]:
    """`message` and all messages within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in value if isinstance(value, Collection) else [value]:
            yield from _messages(each)


def _named_in(message: Message) -> set[str]:
    """The features that the settings of `message` itself name."""
    names: set[str] = set()
    for field, value in message.ListFields():
        if field.name in _NAMING_FIELDS:
            names.update([value] if isinstance(value, str) else value)
    return names


def _looks_at_fids(config: pb.FilterByFidConfig) -> bool:
    """Whether the filter has a condition on fids or slots, and not only on actions or the time."""
    return any(getattr(config, name) for name in (*_FID_FIELDS, "select_slots"))


def _features_of(config: pb.FilterByFidConfig, features: FeatureList) -> set[str]:
    """The features that can hold a fid or a slot that the filter looks for."""
    found: set[str] = set()
    for name in _FID_FIELDS:
        try:
            found.update(each.feature_name for each in features.of_fids(getattr(config, name)))
        except ValueError as error:
            raise UserError(f"filter_by_fid.{name}", "", str(error), "name a fid of the feature list") from error
    for slot in config.select_slots:
        if not features.of_slot(slot):
            raise UserError("filter_by_fid.select_slots", slot, "no feature has it", "name a slot of the feature list")
        found.update(each.feature_name for each in features.of_slot(slot))
    return found
