"""The contract a modeller implements: features, heads and a dense model, declared without TensorFlow."""

import hashlib
import importlib
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from millrace.ops.table_config import (
    NEVER_DAYS,
    Adagrad,
    Compressor,
    Fp32,
    Initializer,
    Occurrence,
    Optimizer,
    PooledFeature,
    TableConfig,
    Zeros,
)
from millrace.runtime.errors import UserError
from millrace.training.task.guard import Guard
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule

_INTEGER_COLUMNS = ("user_id", "item_id")
_CONTEXT = "context."
MAX_SLOT = 32766  # 32767 belongs to the audit table


@dataclass(frozen=True)
class SparseFeature:
    """Ids of one event column, looked up in a table and combined to one vector per row, float32 [batch, dim].

    Args:
      name: key of the vector in `embeddings` of `Task.build_model`.
      slot: 1..32766, upper 15 bits of the fids; features of one column and slot share their fids.
      column: `user_id`, `item_id` or `context.<field>`.
      dim: floats per entry of the table.
      combiner: "sum" or "mean" over the ids of a row; a row without ids gives zeros.
      table: name of the table; features of one table share its entries. By default the feature's name.
      optimizer, initializer: how entries learn, and what they begin with.
      dtype: "int64" or "string", how the column arrives; by default ids are int64 and context is string.
      compressor: how servers hold the weights.
      occurrence: how often an id has to be seen before it gets an entry; None: once.
      expire_days: an entry that was not updated for so many days is removed.
    """

    name: str
    slot: int
    column: str
    dim: int
    combiner: str = "sum"
    table: str | None = None
    optimizer: Optimizer = field(default_factory=Adagrad)
    initializer: Initializer = field(default_factory=Zeros)
    dtype: str | None = None
    compressor: Compressor = field(default_factory=Fp32)
    occurrence: Occurrence | None = None
    expire_days: float = NEVER_DAYS

    @property
    def table_name(self) -> str:
        return self.table or self.name

    @property
    def input_name(self) -> str:
        """Name of the serving input: the column without `context.`."""
        return self.column.removeprefix(_CONTEXT)

    @property
    def input_dtype(self) -> str:
        return self.dtype or ("int64" if self.column in _INTEGER_COLUMNS else "string")

    def check(self) -> None:
        """Raises UserError naming the first wrong setting."""
        where = f"feature {self.name}"
        if not 1 <= self.slot <= MAX_SLOT:
            raise UserError(f"{where}.slot", self.slot, "out of range", f"choose 1..{MAX_SLOT}")
        if self.column not in _INTEGER_COLUMNS and not self.column.startswith(_CONTEXT):
            raise UserError(f"{where}.column", self.column, "unknown", "choose user_id, item_id or context.<field>")
        if self.dim < 1:
            raise UserError(f"{where}.dim", self.dim, "not positive", "choose 1 or more")
        if self.combiner not in ("sum", "mean"):
            raise UserError(f"{where}.combiner", self.combiner, "unknown", "choose sum or mean")
        if self.input_dtype not in ("int64", "string"):
            raise UserError(f"{where}.dtype", self.dtype, "unknown", "choose int64 or string")


@dataclass(frozen=True)
class Head:
    """One binary outcome that the model predicts.

    Args:
      name: key of its logits in what `Task.build_model` returns, and of its probability in a server's answer.
      label: which actions make an impression a positive.
      loss: "binary_crossentropy", the only one so far.
      weight: factor of its loss in the total loss, more than 0.
    """

    name: str
    label: LabelRule
    loss: str = "binary_crossentropy"
    weight: float = 1.0

    def check(self) -> None:
        """Raises UserError naming the first wrong setting."""
        if self.loss != "binary_crossentropy":
            raise UserError(f"head {self.name}.loss", self.loss, "unknown", "choose binary_crossentropy")
        if not self.weight > 0:
            raise UserError(f"head {self.name}.weight", self.weight, "not positive", "choose more than 0")


class Task(ABC):
    """The declaration of a model: derive from it, set the class attributes, and build the dense part.

    Attributes:
      name: the model's name in topics, folders and requests.
      features, heads: what goes in and what comes out; batches, checkpoints and exports keep this order.
      dense_learning_rate: learning rate of Adam, the optimizer of the dense variables.
      window_seconds: how long an impression waits for its actions before it counts as negative.
      negative_rate: the probability with which the feed keeps a negative, in (0, 1].
      early_negatives: rows reach the trainer as negatives at once, and again when their action comes within the window;
        the loss is weighted accordingly (`millrace.transforms.feed.early_negatives`).
      guard: when the trainer stops publishing the model; `Guard(enabled=False)`: never.
    """

    name: str
    features: Sequence[SparseFeature]
    heads: Sequence[Head]
    dense_learning_rate: float = 0.001
    window_seconds: float = 5.0
    negative_rate: float = 1.0
    early_negatives: bool = False
    guard: Guard = Guard()

    @abstractmethod
    def build_model(self, embeddings: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
        """Builds the dense part as a Keras functional graph; Keras is to be imported in here.

        Args:
          embeddings: {name of a feature: Keras tensor float32 [batch, dim]}.
          dense: {name of a dense input: Keras tensor}; empty so far.

        Returns:
          {name of a head: logits, float32 [batch] or [batch, 1]}.
        """

    def check(self) -> None:
        """Raises UserError naming the first setting that is wrong or contradicts another."""
        _check_unique(f"{type(self).__name__}.features", [feature.name for feature in self.features])
        _check_unique(f"{type(self).__name__}.heads", [head.name for head in self.heads])
        for feature in self.features:
            feature.check()
        for head in self.heads:
            head.check()
        self.tables()

    def feed_config(self, **overrides: Any) -> FeedConfig:
        """What the feed must produce for this task; `overrides` are fields of FeedConfig with other values."""
        columns = self.fid_columns()
        settings: dict[str, Any] = {
            "model": self.name,
            "features": tuple(
                FidFeature(feature.name, feature.slot, feature.column, feature.input_dtype)
                for feature in self.features
                if columns[feature.name] == feature.name
            ),
            "labels": tuple(head.label for head in self.heads),
            "window_seconds": self.window_seconds,
            "negative_rate": self.negative_rate,
            "early_negatives": self.early_negatives,
        }
        return FeedConfig(**(settings | overrides))

    def fid_columns(self) -> dict[str, str]:
        """{feature: batch column of its fids}: the first feature with the same slot and column gives the name."""
        first: dict[tuple[int, str], str] = {}
        return {f.name: first.setdefault((f.slot, f.column), f.name) for f in self.features}

    def tables(self) -> tuple[TableConfig, ...]:
        """The configuration of each table. Raises UserError when two features of one table disagree."""
        tables: dict[str, TableConfig] = {}
        for feature in self.features:
            config = TableConfig(
                feature.table_name,
                feature.dim,
                feature.optimizer,
                feature.initializer,
                compressor=feature.compressor,
                occurrence=feature.occurrence,
                expire_days=feature.expire_days,
            )
            if tables.setdefault(config.name, config) != config:
                raise UserError(
                    f"feature {feature.name}.table",
                    config.name,
                    "another feature gives this table another dim, rule, occurrence or expiry",
                    "make them equal or name another table",
                )
        return tuple(tables.values())

    def pooled_features(self) -> tuple[PooledFeature, ...]:
        """What a lookup needs to know of each feature, in their order."""
        return tuple(PooledFeature(f.name, f.table_name, f.combiner) for f in self.features)

    def serving_inputs(self) -> dict[str, str]:
        """{name of an input of the exported model: its dtype, "int64" or "string"}; each is a tensor [batch]."""
        return {feature.input_name: feature.input_dtype for feature in self.features}

    def schema_fingerprint(self) -> str:
        """16 hex digits that differ whenever a checkpoint of the old declaration would not fit the new one."""
        shape = {
            "model": self.name,
            "features": [[f.name, f.slot, f.column, f.combiner, f.table_name, f.input_dtype] for f in self.features],
            "tables": [
                [t.name, t.dim, type(t.optimizer).__name__, type(t.initializer).__name__] for t in self.tables()
            ],
            "heads": [[h.name, asdict(h.label)] for h in self.heads],
        }
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]


def load_task(path: str, field_name: str = "--task") -> Task:
    """An instance of the class at `package.module:ClassName`, checked. The working folder is searched, too.

    Args:
      path: as a user typed it.
      field_name: the flag that errors name.

    Raises:
      UserError: there is no such module or task, or the task is declared wrong; it says which tasks there are.
    """
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise UserError(field_name, path, "not package.module:ClassName", "e.g. millrace.examples.movies:MovieRanking")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise UserError(field_name, path, f"its import of {error.name} failed", "install what it needs") from error
        raise UserError(field_name, path, f"no module {module_name}", "run in its folder or set PYTHONPATH") from error
    choices = sorted(name for name, value in vars(module).items() if _is_task(value))
    if class_name not in choices:
        there = ", ".join(choices) or "no task"
        raise UserError(field_name, path, f"no task {class_name} in {module_name}", f"it holds: {there}")
    task: Task = getattr(module, class_name)()
    task.check()
    return task


def _is_task(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Task) and value is not Task


def _check_unique(field_name: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not names:
        problem = "names are not unique" if repeated else "is empty"
        raise UserError(field_name, ", ".join(repeated or names), problem, "name each one once, and at least one")
