"""Exports, rollbacks and restarts against one agent and one server, whose loads take any time.

The agent's reducer, its plan and the server's policy are those of the product; the topic, the disk and the clock are
not. After all of it the server must answer with the version that a person would name.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from millrace.protos.model_event_pb2 import ModelEvent
from millrace.serving.agent.desired_state import DesiredState, Target
from millrace.serving.agent.model_events import event_key, event_to_json
from millrace.serving.agent.reconciler import make_plan
from millrace.serving.server.servable import State, VersionSource
from millrace.serving.server.version_manager import VersionStatus
from millrace.serving.server.version_policy import Action, ActionKind, VersionSnapshot, best, next_action
from tests.simulation.world import World

_TICKS = 160
_SETTLED_TICKS = 60  # longer than two loads and two unloads take
_MOST_LOADED = 3
_BASE = Path("/exports")


@dataclass
class _Loaded:
    version: int
    source: VersionSource
    state: State
    ticks_left: int = 0


class VersionWorld(World):
    """See the module."""

    def __init__(self, seed: int, without: Collection[str] = ()) -> None:
        super().__init__(seed, without)
        self._now = 1000
        self._topic: list[tuple[str, bytes]] = []
        self._exports: list[tuple[int, int]] = []  # (epoch, version) as announced
        self._held: ModelEvent | None = None
        self._retired = False
        self._epoch, self._version = 1, 100
        self._between = self.random.randint(3, 12)
        self._load_ticks = self.random.randint(1, 3 * self._between)
        self._server: list[_Loaded] = []
        self._served_since: dict[int, int] = {}
        self._was_served = False
        self._start_agent()

    def run(self) -> None:
        for tick in range(_TICKS):
            if tick % self._between == 0 and not self._retired:
                self._export()
            self.one_of(
                [
                    (60, lambda: None), (3, self._rollback), (3, self._release), (1, self._retire),
                    (3, self._compact), (3, self._start_agent), (1, self._restart_server), (2, self._raise_epoch),
                    (2, self._repeat_event),
                ]
            )  # fmt: skip
            self._tick()
        if self._retired:
            self._export()
        for _ in range(_SETTLED_TICKS + 4 * self._load_ticks):
            self._tick()
            if len(self._server) == 1 and self._answering() is not None:
                break
        self._check_end()

    def _tick(self) -> None:
        self._now += 1
        self._read_events()
        self._reconcile()
        self._work()
        self._check()

    # What happens.

    def _send(self, event: ModelEvent) -> None:
        self._topic.append((event_key(event), event_to_json(event).encode()))

    def _event(self, kind: "ModelEvent.Kind", **fields: object) -> ModelEvent:
        return ModelEvent(
            event_id=str(self._now), bzid="default", model_name="m", kind=kind, created_at_ms=self._now,
            schema_version=2, lineage="a", epoch=self._epoch, **fields,  # type: ignore[arg-type]
        )  # fmt: skip

    def _export(self) -> None:
        self._version += 1
        self._retired = False
        self._exports.append((self._epoch, self._version))
        self._send(self._event(ModelEvent.EXPORT, version=self._version, export_base=str(_BASE)))

    def _rollback(self) -> None:
        if len(self._exports) > 1 and not self._retired:
            version = self.random.choice(self._exports[-4:])[1]
            self._held = self._event(
                ModelEvent.ROLLBACK, version=version, export_base=str(_BASE), as_of_ms=self._now - 1
            )
            self._send(self._held)

    def _release(self) -> None:
        if self._held is not None:
            self._held = None
            self._send(self._event(ModelEvent.RELEASE))

    def _retire(self) -> None:
        if self._exports:
            self._retired = True
            self._send(self._event(ModelEvent.RETIRE))

    def _raise_epoch(self) -> None:
        self._epoch += 1

    def _repeat_event(self) -> None:
        """A producer that heard no answer sends an export again."""
        exports = [each for each in self._topic if each[0] == "default/m"]
        if exports and not self._retired:
            self._topic.append(exports[-1])

    def _compact(self) -> None:
        newest = {key: index for index, (key, _) in enumerate(self._topic)}
        kept = [each for index, each in enumerate(self._topic) if newest[each[0]] == index]
        self._read = sum(newest[key] == index for index, (key, _) in enumerate(self._topic[: self._read]))
        self._topic = kept

    def _start_agent(self) -> None:
        self._desired, self._read = DesiredState("default", "m"), 0
        self._target: Target | None = None

    def _restart_server(self) -> None:
        self._server, self._was_served = [], False

    # What the product does.

    def _read_events(self) -> None:
        new = self._topic[self._read :]
        for _, value in new:
            self._desired.apply(value)
        self._read = len(self._topic)
        if new:
            announced = self._desired.announced
            self._target = None if announced.retired else announced.held or announced.export

    def _reconcile(self) -> None:
        rows: dict[int, _Loaded] = {}
        for each in self._server:
            if each.version not in rows or each.state is State.AVAILABLE:
                rows[each.version] = each
        target = self._target
        statuses = [VersionStatus(each.version, each.state, "") for each in rows.values()]
        on_disk = [version for _, version in self._exports]
        plan = make_plan(target, self._desired.announced.retired, statuses, on_disk)
        if plan.versions is None:
            return
        as_of = target.as_of_ms if target is not None and target.is_held else None
        self._aspired = {version: VersionSource(f"{_BASE}/{version}", as_of) for version in plan.versions}
        self._server = [
            each
            for each in self._server
            if each.state is not State.START or self._aspired.get(each.version) == each.source
        ]
        for version, source in self._aspired.items():
            if not any((each.version, each.source) == (version, source) for each in self._server if _is_wanted(each)):
                self._server.append(_Loaded(version, source, State.START))

    def _snapshot(self) -> list[VersionSnapshot]:
        return [
            VersionSnapshot(each.version, each.state, self._aspired.get(each.version) == each.source)
            for each in self._server
        ]

    def _work(self) -> None:
        for each in self._server:
            if each.state in (State.LOADING, State.UNLOADING):
                each.ticks_left -= 1
                if each.ticks_left <= 0:
                    each.state = State.AVAILABLE if each.state is State.LOADING else State.END
        self._server = [each for each in self._server if each.state is not State.END]
        if not self._server:
            return
        decide = _next_action_that_breaks_off if "spared versions" in self.without else next_action
        while action := decide(self._snapshot()):
            chosen = self._server[action.index]
            if action.kind is ActionKind.LOAD:
                chosen.state, chosen.ticks_left = State.LOADING, self.random.randint(1, self._load_ticks)
            else:
                chosen.state, chosen.ticks_left = State.UNLOADING, self.random.randint(1, 2)

    # What must hold.

    def _answering(self) -> _Loaded | None:
        place = best(self._snapshot()) if self._server else None
        return None if place is None else self._server[place]

    def _check(self) -> None:
        loaded = sum(each.state in (State.LOADING, State.AVAILABLE, State.UNLOADING) for each in self._server)
        self.promise(loaded <= _MOST_LOADED, f"{loaded} versions are in memory")
        answering = self._answering()
        if self._was_served and not self._desired.announced.retired:
            self.promise(answering is not None, "nothing answers, though a version did before")
        if answering is not None:
            self._was_served = True
            self._check_progress(answering)
        elif self._desired.announced.retired:
            self._was_served = False

    def _check_progress(self, answering: _Loaded) -> None:
        """A version that is newer than what answers must come to answer, however often still newer ones come."""
        newest = self._target
        if newest is None or newest.is_held:
            self._served_since.clear()
            return
        self._served_since = {v: t for v, t in self._served_since.items() if v == answering.version}
        since = self._served_since.setdefault(answering.version, self._now)
        waited = self._now - since
        if newest.version > answering.version:
            limit = 2 * self._load_ticks + 2 * self._between + 10
            self.promise(waited <= limit, f"version {answering.version} is not replaced for {waited} ticks")
        else:
            self._served_since[answering.version] = self._now

    def _check_end(self) -> None:
        wanted = self._held.version if self._held is not None else max(self._exports)[1]
        as_of = self._held.as_of_ms if self._held is not None else None
        answering = self._answering()
        self.promise(answering is not None, "nothing answers in the end")
        assert answering is not None
        found = (answering.version, answering.source.as_of_ms)
        self.promise(found == (wanted, as_of), f"{found} answers in the end, must be {(wanted, as_of)}")
        self.promise(len(self._server) == 1, f"{len(self._server)} versions stay in memory")


def _is_wanted(loaded: _Loaded) -> bool:
    return loaded.state in (State.START, State.LOADING, State.AVAILABLE)


def _next_action_that_breaks_off(versions: list[VersionSnapshot]) -> Action | None:
    """A policy that unloads whatever is not aspired once anything aspired is AVAILABLE, and loads all that is."""
    new = [i for i, each in enumerate(versions) if each.is_aspired and each.state is State.START]
    if new:
        return Action(ActionKind.LOAD, max(new, key=lambda i: versions[i].version))
    any_aspired = any(each.is_aspired for each in versions)
    answers = any(each.is_aspired and each.state is State.AVAILABLE for each in versions)
    stale = [i for i, each in enumerate(versions) if not each.is_aspired and each.state is State.AVAILABLE]
    if stale and (answers or not any_aspired):
        return Action(ActionKind.UNLOAD, min(stale, key=lambda i: versions[i].version))
    return None
