"""Brings what is loaded in line with what is aspired: the policy decides, worker threads act."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from millrace.serving.server import version_policy
from millrace.serving.server.errors import NotFoundError, ServingError, UnavailableError
from millrace.serving.server.servable import (
    Freshness,
    LoaderFactory,
    ServableHandle,
    ServableId,
    ServableVersion,
    State,
    VersionSource,
)
from millrace.serving.server.version_policy import Action, ActionKind, VersionSnapshot

_LOG = logging.getLogger(__name__)
# With one worker a version that waits for its deltas would delay every other model.
_WORKERS = 2
# Ended versions kept per model for GetModelStatus.
_KEPT_ENDED = 5
# A version that was refused is loaded again at once when somebody asks, then with pauses, as a load may read gigabytes.
_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class VersionStatus:
    """One row of GetModelStatus; `error` is "" unless the version failed to load."""

    version: int
    state: State
    error: str
    freshness: Freshness = field(default=Freshness(), compare=False)
    is_held: bool = False


@dataclass
class _Failures:
    """Of one version from one source: how many loads in a row failed, and when the next may begin."""

    count: int = 0
    not_before: float = -math.inf


class VersionManager:
    """Owns the versions of every model.

    Sources call `aspire`; requests call `acquire`; loads and unloads run on worker threads, never on a caller's.

    Args:
      make_loader: builds the Loader of a version; must not block.
      on_change: called after each state change with (id, state, error).
      clock: monotonic seconds.
    """

    def __init__(
        self,
        make_loader: LoaderFactory,
        on_change: Callable[[ServableId, State, str], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_loader = make_loader
        self._on_change = on_change
        self._clock = clock
        self._lock = threading.RLock()
        self._models: dict[str, list[ServableVersion]] = {}
        self._aspired: dict[str, dict[int, VersionSource]] = {}
        # The best version of each model, for requests; what may change it takes it out.
        self._best: dict[str, ServableVersion] = {}
        self._failures: dict[tuple[ServableId, VersionSource], _Failures] = {}
        self._closed = False
        # Unloads have workers of their own: behind loads they would wait, and so would the memory that they free.
        self._loading = ThreadPoolExecutor(_WORKERS, thread_name_prefix="loads")
        self._unloading = ThreadPoolExecutor(_WORKERS, thread_name_prefix="unloads")

    def aspire(self, name: str, versions: Mapping[int, VersionSource], retry_failed: bool = False) -> None:
        """Declares that exactly `versions` of `name` should be loaded; others should not.

        Args:
          retry_failed: also try again those that ended with an error: at once after the first, later with pauses.
        """
        with self._lock:
            if self._closed:
                return
            known = self._models.setdefault(name, [])
            self._aspired[name] = dict(versions)
            known[:] = [
                each for each in known if each.state is not State.START or versions.get(each.id.version) == each.source
            ]
            for number, source in versions.items():
                self._want(known, ServableId(name, number), source, retry_failed)
        self._advance(name)

    def forget(self, name: str) -> None:
        """Unloads every version of `name`; requests for it then get NOT_FOUND."""
        with self._lock:
            if name not in self._models:
                return
            self._aspired.pop(name, None)
        self._advance(name)

    def acquire(self, name: str, version: int | None = None) -> ServableHandle:
        """A handle on `version` of `name`, or on the one that the policy says is best.

        Raises:
          NotFoundError: the model or the version is unknown.
          UnavailableError: the model is known but nothing of it is loaded (yet).
        """
        with self._lock:
            known = self._models.get(name)
            if known is None or (name not in self._aspired and not _is_available(known)):
                choices = ", ".join(sorted(self._aspired)) or "none"
                raise NotFoundError(f"model '{name}' is not served here; models: {choices}")
            # Acquired under the lock: the policy may otherwise retire the chosen version between choice and use.
            chosen = self._choose(name, version, known)
            if chosen is not None and (handle := chosen.acquire()):
                return handle
            raise self._why_not(name, version, known)

    def _choose(self, name: str, version: int | None, known: list[ServableVersion]) -> ServableVersion | None:
        if version is None and name in self._best:
            return self._best[name]
        among = known if version is None else [each for each in known if each.id.version == version]
        place = version_policy.best(self._snapshot(name, among))
        if place is None:
            return None
        if version is None:
            self._best[name] = among[place]
        return among[place]

    def _why_not(self, name: str, version: int | None, known: list[ServableVersion]) -> ServingError:
        rows = sorted(known, key=lambda each: -each.id.version)
        states = ", ".join(f"{each.id.version} {each.state.name}" for each in rows) or "none"
        coming = any(each.id.version == version and each.state < State.AVAILABLE for each in known)
        if version is None or coming:
            return UnavailableError(f"model '{name}' is not loaded yet; versions: {states}")
        return NotFoundError(f"model '{name}' has no loaded version {version}; versions: {states}")

    def statuses(self, name: str) -> list[VersionStatus]:
        """Status of every version of `name`, newest first; NotFoundError when it is unknown.

        Where a version replaces one of the same number, it is the status of the one that answers.
        """
        with self._lock:
            if name not in self._models:
                raise NotFoundError(f"model '{name}' is not served here; models: {', '.join(sorted(self._models))}")
            rows: dict[int, ServableVersion] = {}
            for each in self._models[name]:
                shown = rows.get(each.id.version)
                if shown is None or shown.state is not State.AVAILABLE:
                    rows[each.id.version] = each
            return [_status(rows[number]) for number in sorted(rows, reverse=True)]

    def close(self) -> None:
        """Unloads everything, after the requests in flight; takes no new aspirations."""
        with self._lock:
            names = list(self._models)
            self._closed = True
            self._aspired = {name: {} for name in names}
        for name in names:
            self._advance(name)
        self._loading.shutdown(wait=True)
        self._unloading.shutdown(wait=True)

    def _want(
        self, known: list[ServableVersion], servable_id: ServableId, source: VersionSource, retry_failed: bool
    ) -> None:
        """Adds a version in START unless it is there, or was refused and may not be tried again yet."""
        same = [each for each in known if (each.id, each.source) == (servable_id, source)]
        if any(each.state in (State.START, State.LOADING, State.AVAILABLE) for each in same):
            return
        not_before = self._failures.get((servable_id, source), _Failures()).not_before
        if any(each.error for each in same) and not (retry_failed and self._clock() >= not_before):
            return
        for each in same:
            if each.state is State.END:
                known.remove(each)
        loader = self._make_loader(servable_id.name, servable_id.version, source)
        known.append(ServableVersion(servable_id, source, loader, self._changed))

    def _changed(self, version: ServableVersion) -> None:
        if version.error:
            _LOG.warning("%s is not served: %s", version.id, version.error)
        else:
            _LOG.info("%s %s", version.id, version.state.name)
        with self._lock:
            self._best.pop(version.id.name, None)
            self._note_outcome(version)
        self._on_change(version.id, version.state, version.error or "")

    def _note_outcome(self, version: ServableVersion) -> None:
        key = (version.id, version.source)
        if version.state is State.AVAILABLE:
            self._failures.pop(key, None)
        elif version.error:
            failures = self._failures.setdefault(key, _Failures())
            pause = (
                min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** (failures.count - 1)) if failures.count else 0.0
            )
            failures.count += 1
            failures.not_before = self._clock() + pause

    def _advance(self, name: str) -> None:
        """Starts actions until the policy asks for no more."""
        with self._lock:
            self._best.pop(name, None)
            self._hold_in_place(name)
            while action := version_policy.next_action(self._snapshot(name, self._models.get(name, []))):
                self._start(self._models[name][action.index], action)
            self._drop_ended(name)

    def _hold_in_place(self, name: str) -> None:
        """Where a loaded version differs from an aspired one only in its hold, changes the hold, if it still can."""
        known = self._models.get(name, [])
        for new in [each for each in known if each.state is State.START]:
            for old in known:
                is_same = (old.id, old.source.path) == (new.id, new.source.path)
                if is_same and old is not new and old.hold(new.source.as_of_ms):
                    known.remove(new)
                    break

    def _snapshot(self, name: str, versions: list[ServableVersion]) -> list[VersionSnapshot]:
        aspired = self._aspired.get(name, {})
        return [
            VersionSnapshot(each.id.version, each.state, aspired.get(each.id.version) == each.source)
            for each in versions
        ]

    def _start(self, version: ServableVersion, action: Action) -> None:
        if action.kind is ActionKind.LOAD:
            version.begin_load()
            self._loading.submit(self._run, version, version.load)
        else:
            version.begin_unload()
            self._unloading.submit(self._run, version, version.unload)

    def _run(self, version: ServableVersion, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            _LOG.exception("%s: action failed", version.id)
        self._advance(version.id.name)

    def _drop_ended(self, name: str) -> None:
        known = self._models.get(name, [])
        aspired = self._aspired.get(name, {})
        ended = [each for each in known if each.state is State.END and aspired.get(each.id.version) != each.source]
        for each in sorted(ended, key=lambda each: each.id.version)[:-_KEPT_ENDED]:
            known.remove(each)
            self._failures.pop((each.id, each.source), None)
        if name not in self._aspired and all(each.state is State.END for each in known):
            for each in self._models.pop(name, []):
                self._failures.pop((each.id, each.source), None)


def _status(version: ServableVersion) -> VersionStatus:
    is_held = version.source.as_of_ms is not None
    return VersionStatus(version.id.version, version.state, version.error or "", version.freshness(), is_held)


def _is_available(versions: list[ServableVersion]) -> bool:
    return any(each.state is State.AVAILABLE for each in versions)
