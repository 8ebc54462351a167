"""Loaders that load nothing, and sources and servers that hold what a test puts into them."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from millrace.protos.serving_control_pb2 import ModelPlan, ModelState
from millrace.runtime.topic_reader import Record
from millrace.serving.server.errors import ServerDownError
from millrace.serving.server.servable import Freshness, State, VersionSource


@dataclass
class FakeLoader:
    """Its servable is "name:version".

    `gate` holds `load` back; `error` makes it fail; `newest_ms` is the newest delta that it has taken.
    """

    name: str
    version: int
    source: VersionSource
    gate: threading.Event = field(default_factory=threading.Event)
    error: str = ""
    loads: int = 0
    unloads: int = 0
    newest_ms: int = 0
    fresh: Freshness = Freshness()

    def load(self) -> str:
        self.loads += 1
        if not self.gate.wait(10):
            raise TimeoutError("the test never opened the gate")
        if self.error:
            raise ValueError(self.error)
        return f"{self.name}:{self.version}"

    def unload(self) -> None:
        self.unloads += 1

    def hold(self, as_of_ms: int | None) -> bool:
        return as_of_ms is None or self.newest_ms <= as_of_ms

    def freshness(self) -> Freshness:
        return self.fresh


class FakeLoaders:
    """A LoaderFactory that keeps the loaders it made; open ones unless `gated`, failing ones for `failing` versions."""

    def __init__(self, gated: bool = False) -> None:
        self.gated = gated
        self.failing: dict[int, str] = {}
        self.made: list[FakeLoader] = []

    def __call__(self, name: str, version: int, source: VersionSource) -> FakeLoader:
        loader = FakeLoader(name, version, source, error=self.failing.get(version, ""))
        if not self.gated:
            loader.gate.set()
        self.made.append(loader)
        return loader

    def in_memory(self) -> int:
        """Copies of models that are loaded or being loaded."""
        return sum(loader.loads - loader.unloads for loader in self.made if not loader.error)

    def of(self, version: int) -> FakeLoader:
        """The newest loader of `version`."""
        return [loader for loader in self.made if loader.version == version][-1]


class FakeTopic:
    """Records in memory that a consumer reads as they are put; `at_end` is what `reached_end` says.

    `begin_anew` deletes what was not read and starts offsets at 0 again, as a topic that was made anew.
    """

    def __init__(self, *values: bytes | None) -> None:
        self.at_end = self.heard = True
        self.closed = False
        self.opened: list[dict[int, int]] = []
        self._records: list[Record] = []
        self._position = 0
        self._anew = False
        self.put(*values)

    def put(self, *values: bytes | None) -> None:
        for value in values:
            self._records.append(Record(0, len(self._records), None, value, 0))

    def open_at(self, start: Mapping[int, int]) -> "FakeTopic":
        self.opened.append(dict(start))
        self.closed, self._position, self._anew = False, start[0], False
        return self

    def begin_anew(self) -> None:
        self._records, self._anew = [], True

    def began_anew(self) -> bool:
        return self._anew

    @property
    def positions(self) -> dict[int, int]:
        return {0: self._position}

    def read(self, max_records: int = 500, seconds: float = 0.0) -> list[Record]:
        records = self._records[self._position : self._position + max_records]
        self._position += len(records)
        if not records:
            threading.Event().wait(min(seconds, 0.005))
        return records

    def reached_end(self) -> bool:
        return self.at_end and self._position >= len(self._records)

    def close(self) -> None:
        self.closed = True


class FakeServer:
    """What the agent sees of a model server; a configured version stays in START until the test moves it on."""

    def __init__(self) -> None:
        self.down = False
        self.rows: dict[int, ModelState.Version] = {}
        self.configured: list[tuple[str, tuple[int, ...]]] = []
        self.plans: list[ModelPlan] = []

    def configure(self, plan: ModelPlan) -> ModelState:
        if self.down:
            raise ServerDownError("down")
        if plan not in self.plans[-1:] or not self.rows.keys() >= set(plan.versions):  # not merely asked how it is
            self.configured.append((plan.base_path, tuple(plan.versions)))
        self.plans.append(plan)
        for version in plan.versions:
            if version not in self.rows:
                self.move(version, State.START)
        return ModelState(versions=[self.rows[version] for version in sorted(self.rows, reverse=True)])

    def move(self, version: int, state: State, error: str = "", **fields: Any) -> None:
        """`fields` are those of `ModelState.Version`; a loaded version is held as the last plan says."""
        fields = {"model_age_ms": -1, "delta_lag_ms": -1} | fields
        fields.setdefault("is_held", bool(self.plans and self.plans[-1].is_held))
        self.rows[version] = ModelState.Version(version=version, state=int(state), error=error, **fields)
