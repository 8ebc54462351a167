"""The configuration of a training feed: features, label rules and settings, as values that are written as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from millrace.runtime.errors import UserError
from millrace.transforms.batch import fid, record_batch

ID_COLUMNS = ("user_id", "item_id")
CONTEXT_PREFIX = "context."
DTYPES = ("int64", "string")

ROUTES = {
    "late": "after the window and within the lateness, or after the row left as a negative",
    "orphan": "no row within window and lateness",
    "before_impression": "earlier than the row by more than the skew",
    "duplicate": "the row had left with the same action",
    "superseded": "the row had left with another action",
    "ignored": "no label rule names it",
}
"""{reason: when an action does not join for it}."""


@dataclass(frozen=True)
class FidFeature:
    """A feature of a train batch: the fids of one event column.

    Args:
      name: column of the train batch.
      slot: 0..32766, the upper bits of the feature's fids; each feature has its own.
      column: `user_id`, `item_id` or `context.<field>`.
      dtype: type of the event's field, "int64" or "string"; by default ids are int64 and context fields are strings.
    """

    name: str
    slot: int
    column: str
    dtype: str | None = None

    @property
    def column_dtype(self) -> str:
        return self.dtype or ("int64" if self.column in ID_COLUMNS else "string")

    def check(self, where: str) -> None:
        """Raises UserError naming the first wrong setting."""
        if not self.name or self.name.startswith("__"):
            raise UserError(f"{where}.name", self.name, "empty or reserved", "give a name that does not begin with __")
        if not 0 <= self.slot < fid.AUDIT_SLOT:
            raise UserError(f"{where}.slot", self.slot, "out of range", f"choose 0..{fid.AUDIT_SLOT - 1}")
        if self.column not in ID_COLUMNS and not self.column.startswith(CONTEXT_PREFIX):
            raise UserError(f"{where}.column", self.column, "unknown", "choose user_id, item_id or context.<field>")
        if self.column_dtype not in DTYPES:
            raise UserError(f"{where}.dtype", self.dtype, "unknown", f"choose {' or '.join(DTYPES)}")
        if self.column in ID_COLUMNS and self.column_dtype != "int64":
            raise UserError(f"{where}.dtype", self.dtype, f"{self.column} is an integer", "choose int64")


@dataclass(frozen=True)
class LabelRule:
    """Label of a head: 1.0 if the row has one of `actions` (with a value >= `min_value`, if given), else 0.0."""

    head: str
    actions: tuple[str, ...]
    min_value: float | None = None

    def check(self, where: str) -> None:
        """Raises UserError naming the first wrong setting."""
        if not self.head:
            raise UserError(f"{where}.head", self.head, "empty", "name the head")
        if not self.actions or not all(self.actions):
            raise UserError(f"{where}.actions", list(self.actions), "empty", "name one action or more, e.g. click")


@dataclass(frozen=True)
class FeedConfig:
    """Settings of one training feed.

    Args:
      model: name of the model, as in `train.<model>`.
      features: the sparse features, in the order of the batch's columns.
      labels: the label rules, one per head, in the order of the labels in a row.
      window_seconds: how long an impression waits for an action before it becomes a negative.
      negative_rate: share of negatives kept, in (0, 1].
      seed: seed of every random choice.
      audit: whether to add the feature `__AUDIT__`, one fid per source row, by which lost and repeated rows are found.
      allowed_lateness_seconds: how long after its window a row is remembered, so that late and repeated events can be
        counted as such; None: as long as the window.
      routed_actions: keys of `ROUTES`: for these reasons the actions that do not join go to an output of their own.
      early_negatives: each row leaves as a negative at once, and once more when its action comes
        (`millrace.transforms.feed.early_negatives` says how to train on that).
    """

    model: str
    features: tuple[FidFeature, ...]
    labels: tuple[LabelRule, ...]
    window_seconds: float = 5.0
    negative_rate: float = 1.0
    seed: int = 0
    audit: bool = False
    allowed_lateness_seconds: float | None = None
    routed_actions: tuple[str, ...] = ("late",)
    early_negatives: bool = False

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("feed.model", self.model, "empty", "name the model")
        for index, feature in enumerate(self.features):
            feature.check(f"feed.features[{index}]")
        for index, rule in enumerate(self.labels):
            rule.check(f"feed.labels[{index}]")
        _check_unique("feed.features", [feature.name for feature in self.features])
        _check_unique("feed.labels", [rule.head for rule in self.labels])
        _check_dtypes(self.features)
        if not 0.0 < self.window_seconds <= 86_400.0:
            raise UserError("feed.window_seconds", self.window_seconds, "out of range", "choose more than 0, to 86400")
        if not 0.0 < self.negative_rate <= 1.0:
            raise UserError("feed.negative_rate", self.negative_rate, "out of range", "choose more than 0, to 1")
        lateness = self.allowed_lateness_seconds
        if lateness is not None and not 0.0 <= lateness <= 86_400.0:
            raise UserError("feed.allowed_lateness_seconds", lateness, "out of range", "choose 0 to 86400")
        for reason in self.routed_actions:
            if reason not in tuple(ROUTES):
                raise UserError("feed.routed_actions", reason, "unknown", f"choose from {', '.join(ROUTES)}")

    @property
    def window_ms(self) -> int:
        return round(self.window_seconds * 1000)

    @property
    def lateness_ms(self) -> int:
        lateness = self.allowed_lateness_seconds
        return self.window_ms if lateness is None else round(lateness * 1000)

    @property
    def label_actions(self) -> tuple[str, ...]:
        """The actions that label rules name, sorted: with these a row leaves the join."""
        return tuple(sorted({action for rule in self.labels for action in rule.actions}))

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """Names of the sparse features of a train batch, in order."""
        names = tuple(feature.name for feature in self.features)
        return (*names, record_batch.AUDIT) if self.audit else names

    def context_fields(self) -> dict[str, str]:
        """{context field: "int64" or "string"} that the features read."""
        return {
            feature.column.removeprefix(CONTEXT_PREFIX): feature.column_dtype
            for feature in self.features
            if feature.column not in ID_COLUMNS
        }

    def train_schema(self) -> pa.Schema:
        return record_batch.train_schema(self.feature_columns)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def _check_unique(where: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not names:
        problem = "names are not unique" if repeated else "empty"
        raise UserError(where, ", ".join(repeated), problem, "name each one once, and at least one")


def _check_dtypes(features: Sequence[FidFeature]) -> None:
    seen: dict[str, str] = {}
    for feature in features:
        if seen.setdefault(feature.column, feature.column_dtype) != feature.column_dtype:
            raise UserError("feed.features", feature.name, f"{feature.column} has two dtypes", "give it one")
