"""Brings what is loaded in line with what is aspired: the policy decides, worker threads act."""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from millrace.serving.server import version_policy
from millrace.serving.server.errors import NotFoundError, ServingError, UnavailableError
from millrace.serving.server.servable import LoaderFactory, ServableHandle, ServableId, ServableVersion, State
from millrace.serving.server.version_policy import Action, ActionKind, VersionSnapshot

_LOG = logging.getLogger(__name__)
# With one worker a version that waits for its deltas would delay every other model.
_WORKERS = 2
# Ended versions kept per model for GetModelStatus.
_KEPT_ENDED = 5


@dataclass(frozen=True)
class VersionStatus:
    """One row of GetModelStatus; `error` is "" unless the version failed to load."""

    version: int
    state: State
    error: str


class VersionManager:
    """Owns the versions of every model.

    Sources call `aspire`; requests call `acquire`; loads and unloads run on worker threads, never on a caller's.

    Args:
      make_loader: builds the Loader of a version; must not block.
      on_change: called after each state change with (id, state, error).
    """

    def __init__(
        self,
        make_loader: LoaderFactory,
        on_change: Callable[[ServableId, State, str], None] = lambda *_: None,
    ) -> None:
        self._make_loader = make_loader
        self._on_change = on_change
        self._lock = threading.RLock()
        self._models: dict[str, dict[int, ServableVersion]] = {}
        self._aspired: dict[str, frozenset[int]] = {}
        self._closed = False
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="versions")

    def aspire(self, name: str, versions: Mapping[int, str], retry_failed: bool = False) -> None:
        """Declares that exactly `versions` ({version: path}) of `name` should be loaded; others should not.

        Args:
          retry_failed: also try again those that ended with an error.
        """
        with self._lock:
            if self._closed:
                return
            known = self._models.setdefault(name, {})
            self._aspired[name] = frozenset(versions)
            for version, path in versions.items():
                old = known.get(version)
                if old is None or (old.state is State.END and (retry_failed or old.error is None)):
                    known[version] = self._new_version(ServableId(name, version), path)
        self._advance(name)

    def forget(self, name: str) -> None:
        """Unloads every version of `name`; requests for it then get NOT_FOUND."""
        with self._lock:
            if name not in self._models:
                return
            self._aspired.pop(name, None)
        self._advance(name)

    def acquire(self, name: str, version: int | None = None) -> ServableHandle:
        """A handle on `version` of `name`, or on its newest AVAILABLE version.

        Raises:
          NotFoundError: the model or the version is unknown.
          UnavailableError: the model is known but nothing of it is loaded (yet).
        """
        with self._lock:
            known = self._models.get(name)
            if known is None or (name not in self._aspired and not _available(known)):
                choices = ", ".join(sorted(self._aspired)) or "none"
                raise NotFoundError(f"model '{name}' is not served here; models: {choices}")
            # Acquired under the lock: the policy may otherwise retire the chosen version between choice and use.
            number = max(_available(known), default=None) if version is None else version
            chosen = known.get(number) if number is not None else None
            if chosen and (handle := chosen.acquire()):
                return handle
            raise self._why_not(name, version, known)

    def _why_not(self, name: str, version: int | None, known: Mapping[int, ServableVersion]) -> ServingError:
        states = ", ".join(f"{number} {known[number].state.name}" for number in sorted(known, reverse=True)) or "none"
        coming = version is not None and version in known and known[version].state < State.AVAILABLE
        if version is None or coming:
            return UnavailableError(f"model '{name}' is not loaded yet; versions: {states}")
        return NotFoundError(f"model '{name}' has no loaded version {version}; versions: {states}")

    def statuses(self, name: str) -> list[VersionStatus]:
        """Status of every version of `name`, newest first; NotFoundError when it is unknown."""
        with self._lock:
            if name not in self._models:
                raise NotFoundError(f"model '{name}' is not served here; models: {', '.join(sorted(self._models))}")
            versions = sorted(self._models[name].items(), reverse=True)
            return [VersionStatus(number, version.state, version.error or "") for number, version in versions]

    def models(self) -> list[str]:
        """Names that are aspired."""
        with self._lock:
            return sorted(self._aspired)

    def close(self) -> None:
        """Unloads everything, after the requests in flight; takes no new aspirations."""
        with self._lock:
            names = list(self._models)
            self._closed = True
            self._aspired = {name: frozenset() for name in names}
        for name in names:
            self._advance(name)
        self._workers.shutdown(wait=True)
        # A load that was under way when its worker pool closed ends AVAILABLE, and nobody else will unload it.
        for versions in self._models.values():
            for number in _available(versions):
                versions[number].begin_unload()
                versions[number].unload()

    def _new_version(self, servable_id: ServableId, path: str) -> ServableVersion:
        loader = self._make_loader(servable_id.name, servable_id.version, path)
        return ServableVersion(servable_id, path, loader, self._changed)

    def _changed(self, version: ServableVersion) -> None:
        if version.error:
            _LOG.warning("%s is not served: %s", version.id, version.error)
        else:
            _LOG.info("%s %s", version.id, version.state.name)
        self._on_change(version.id, version.state, version.error or "")

    def _advance(self, name: str) -> None:
        """Starts actions until the policy asks for no more."""
        with self._lock:
            while action := version_policy.next_action(self._snapshot(name)):
                self._start(self._models[name][action.version], action)
            self._drop_ended(name)

    def _snapshot(self, name: str) -> list[VersionSnapshot]:
        aspired = self._aspired.get(name, frozenset())
        return [
            VersionSnapshot(number, version.state, number in aspired)
            for number, version in self._models.get(name, {}).items()
        ]

    def _start(self, version: ServableVersion, action: Action) -> None:
        if action.kind is ActionKind.LOAD:
            version.begin_load()
            work = version.load
        else:
            version.begin_unload()
            work = version.unload
        try:
            self._workers.submit(self._run, version, work)
        except RuntimeError:  # the pool closed between the decision and here: `close` unloads what is left
            if action.kind is ActionKind.UNLOAD:
                version.unload()

    def _run(self, version: ServableVersion, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            _LOG.exception("%s: action failed", version.id)
        self._advance(version.id.name)

    def _drop_ended(self, name: str) -> None:
        known = self._models.get(name, {})
        aspired = self._aspired.get(name, frozenset())
        unwanted = [n for n, v in known.items() if n not in aspired and v.state in (State.START, State.END)]
        for number in sorted(unwanted)[: -_KEPT_ENDED or None]:
            del known[number]
        if name not in self._aspired and all(v.state in (State.START, State.END) for v in known.values()):
            self._models.pop(name, None)


def _available(versions: Mapping[int, ServableVersion]) -> list[int]:
    return [number for number, version in versions.items() if version.state is State.AVAILABLE]
