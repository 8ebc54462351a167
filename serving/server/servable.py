"""One version of a model: its id, its states, and handles that keep it loaded while a request uses it."""

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol


@dataclass(frozen=True, order=True)
class ServableId:
    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


class State(enum.IntEnum):
    """States of a version, numbered like `tensorflow.serving.ModelVersionStatus.State`."""

    START = 10  # aspired, nothing done yet
    LOADING = 20  # being verified, loaded, warmed up and caught up with deltas
    AVAILABLE = 30  # answers requests
    UNLOADING = 40  # takes no new request; waits for those in flight, then frees memory
    END = 50  # unloaded, or could not be loaded: then `error` says why


@dataclass(frozen=True)
class VersionSource:
    """What makes a version: its folder, and the newest creation time of a delta that it takes (Unix milliseconds).

    `as_of_ms` is None for a version that takes all deltas. A version with a time is held: somebody rolled back to it.
    """

    path: str
    as_of_ms: int | None = None


@dataclass(frozen=True)
class Freshness:
    """How old a version is. Ages in milliseconds, -1 if unknown; `resync_required`: it needs an export to be right."""

    model_age_ms: int = -1
    delta_lag_ms: int = -1
    resync_required: bool = False


class Loader(Protocol):
    """Knows how to bring one version into memory. The manager's threads call `load` and `unload`, one at a time."""

    def load(self) -> Any:
        """Returns the servable that handles give out; raises when it must not be served."""

    def unload(self) -> None:
        """Frees what `load` made; must not raise. Not called after a failed `load`."""

    def hold(self, as_of_ms: int | None) -> bool:
        """Takes deltas up to this creation time from now on, all of them for None.

        Returns False, and changes nothing, when later ones are in it already. Called only between `load` and `unload`;
        must not block for long.
        """

    def freshness(self) -> Freshness:
        """Of what is loaded, now."""


# (name, version, where it comes from) -> Loader
LoaderFactory = Callable[[str, int, VersionSource], Loader]


class ServableVersion:
    """The state machine START -> LOADING -> AVAILABLE -> UNLOADING -> END of one version.

    `on_change(version)` runs after each change, outside the lock.
    """

    def __init__(
        self,
        servable_id: ServableId,
        source: VersionSource,
        loader: Loader,
        on_change: Callable[["ServableVersion"], None],
    ) -> None:
        self.id = servable_id
        self.source = source
        self.state = State.START
        self.error: str | None = None
        self._loader = loader
        self._on_change = on_change
        self._servable: Any = None
        self._in_flight = 0
        self._idle = threading.Condition()

    def begin_load(self) -> None:
        """START -> LOADING; the caller runs `load` next, on a thread of its choice."""
        self._become(State.LOADING, expected=State.START)

    def load(self) -> None:
        """LOADING -> AVAILABLE, or -> END with `error`. Blocks; raises nothing for a loader that fails."""
        try:
            self._servable = self._loader.load()
        except Exception as error:  # any reason not to serve this version is a state, not a crash of the server
            self.error = f"{type(error).__name__}: {error}"
            self._become(State.END, expected=State.LOADING)
            return
        self._become(State.AVAILABLE, expected=State.LOADING)

    def begin_unload(self) -> None:
        """AVAILABLE -> UNLOADING: from here on `acquire` refuses."""
        self._become(State.UNLOADING, expected=State.AVAILABLE)

    def unload(self) -> None:
        """UNLOADING -> END, after the last handle was closed. Blocks."""
        with self._idle:
            self._idle.wait_for(lambda: self._in_flight == 0)
            self._servable = None
        self._loader.unload()
        self._become(State.END, expected=State.UNLOADING)

    def hold(self, as_of_ms: int | None) -> bool:
        """Changes `source.as_of_ms` of an AVAILABLE version in place; False when only loading it anew can do that."""
        if self.state is not State.AVAILABLE or not self._loader.hold(as_of_ms):
            return False
        self.source = VersionSource(self.source.path, as_of_ms)
        return True

    def freshness(self) -> Freshness:
        """Of an AVAILABLE version; nothing is known of another."""
        return self._loader.freshness() if self.state is State.AVAILABLE else Freshness()

    def acquire(self) -> "ServableHandle | None":
        """A handle, or None unless AVAILABLE."""
        with self._idle:
            if self.state is not State.AVAILABLE:
                return None
            self._in_flight += 1
            return ServableHandle(self, self._servable)

    def release(self) -> None:
        with self._idle:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.notify_all()

    def _become(self, state: State, expected: State) -> None:
        with self._idle:
            if self.state is not expected:
                raise RuntimeError(f"{self.id}: {self.state.name} -> {state.name}, expected {expected.name}")
            self.state = state
        self._on_change(self)


class ServableHandle:
    """Keeps a version loaded until it is closed; a context manager that gives the servable."""

    def __init__(self, version: ServableVersion, servable: Any) -> None:
        self.id = version.id
        self._version: ServableVersion | None = version
        self._servable = servable

    def __enter__(self) -> Any:
        return self._servable

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Releases the version; a second call does nothing."""
        version, self._version, self._servable = self._version, None, None
        if version is not None:
            version.release()
