"""Where versions come from: folders of exports, by the rules of TF Serving's model configuration."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from millrace.serving.server.errors import InvalidRequestError
from millrace.serving.server.servable import VersionSource

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Latest:
    """The newest `count` versions that can be loaded."""

    count: int = 1


@dataclass(frozen=True)
class All:
    """Every version in the folder."""


@dataclass(frozen=True)
class Specific:
    """Exactly these versions."""

    versions: tuple[int, ...]


@dataclass(frozen=True)
class ModelConfig:
    """What to serve of one model: the versions that `policy` picks below `base_path`.

    `as_of_ms`: newest creation time of a delta that they take, Unix milliseconds; None for all deltas.
    """

    name: str
    base_path: str
    policy: Latest | All | Specific = Latest()
    labels: Mapping[str, int] = field(default_factory=dict)
    as_of_ms: int | None = None


class AspiredVersions(Protocol):
    """The receiver of what a source finds; `VersionManager` is one."""

    def aspire(self, name: str, versions: Mapping[int, VersionSource], retry_failed: bool = False) -> None: ...

    def forget(self, name: str) -> None: ...


def versions_in(base_path: Path) -> dict[int, str]:
    """{version: folder} of the exports below `base_path`; names that are no positive number are passed over."""
    if not base_path.is_dir():
        return {}
    return {
        int(folder.name): str(folder)
        for folder in base_path.iterdir()
        if folder.name.isascii() and folder.name.isdecimal() and folder.is_dir()
    }


class DirectorySource:
    """Aspires versions of configured models, and looks again every `poll_seconds` for new ones.

    A model is configured in a list of models, which replaces the list before it, or alone by a plan. The two do not
    touch each other's models, except that a plan takes a model out of the list.

    Args:
      aspired: is told which versions should be loaded.
      has_failed: whether a (model, version) was refused before; `Latest` then falls back to the one before it.
    """

    def __init__(
        self,
        aspired: AspiredVersions,
        has_failed: Callable[[str, int], bool] = lambda *_: False,
        poll_seconds: float = 1.0,
    ) -> None:
        self._aspired = aspired
        self._has_failed = has_failed
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._configs: dict[str, ModelConfig] = {}
        self._planned: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-source", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def configure(self, configs: Mapping[str, ModelConfig]) -> None:
        """Replaces the list: models that are not in it are unloaded, failed versions in it tried again.

        Raises:
          InvalidRequestError: a model of the list has a plan.
        """
        with self._lock:
            planned = sorted(self._planned & set(configs))
            if planned:
                raise InvalidRequestError(f"models that an agent has configured: {', '.join(planned)}; leave them out")
            gone = set(self._configs) - set(configs) - self._planned
            self._configs = {name: self._configs[name] for name in self._planned} | dict(configs)
            for name in gone:
                self._aspired.forget(name)
            for config in configs.values():
                self._aspire(config, retry_failed=True)

    def plan(self, config: ModelConfig) -> None:
        """Configures one model and leaves the others as they are; failed versions are tried again."""
        with self._lock:
            self._planned.add(config.name)
            self._configs[config.name] = config
            self._aspire(config, retry_failed=True)

    def drop(self, name: str) -> None:
        """Unloads one model, whoever configured it."""
        with self._lock:
            self._planned.discard(name)
            if self._configs.pop(name, None):
                self._aspired.forget(name)

    def label(self, name: str, label: str) -> int | None:
        """The version that `label` of model `name` stands for."""
        config = self._configs.get(name)
        return config.labels.get(label) if config else None

    def poll(self) -> None:
        """Looks for new versions once."""
        with self._lock:
            for config in self._configs.values():
                self._aspire(config, retry_failed=False)

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _aspire(self, config: ModelConfig, retry_failed: bool) -> None:
        chosen = self._choose(config, retry_failed)
        sources = {version: VersionSource(path, config.as_of_ms) for version, path in chosen.items()}
        self._aspired.aspire(config.name, sources, retry_failed)

    def _choose(self, config: ModelConfig, retry_failed: bool) -> dict[int, str]:
        if isinstance(config.policy, Specific):
            return {version: str(Path(config.base_path) / str(version)) for version in config.policy.versions}
        found = versions_in(Path(config.base_path))
        if isinstance(config.policy, Latest):
            usable = sorted(v for v in found if retry_failed or not self._has_failed(config.name, v))
            return {version: found[version] for version in usable[-config.policy.count :]}
        return found

    def _run(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self.poll()
            except OSError as error:
                _LOG.warning("looking for versions: %s", error)
