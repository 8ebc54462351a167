"""Which version goes in service: the held or pinned one, or the newest that the gate lets through."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from millrace.serving.agent.desired_state import Announced, Target
from millrace.serving.agent.export_facts import read_facts, with_event
from millrace.serving.agent.gate import ExportFacts, ExportGate

# Of versions that were looked at, some 1 KB each. More than lie beside each other: all of them are looked at several
# times per second, and with fewer each look reads their manifests anew (1,000 of them took 0.3 s).
_KEPT_FACTS = 10_000

OnDisk = Callable[[Path], Collection[int]]


@dataclass(frozen=True)
class Choice:
    """What should run.

    Attributes:
      held_back: the newest version, when it may not go in service by itself; 0 otherwise.
      reason: why it may not.
    """

    target: Target | None
    held_back: int = 0
    reason: str = ""


@dataclass(frozen=True)
class InService:
    """A version that answered last, and so tells what running clients send."""

    target: Target
    facts: ExportFacts


class VersionChooser:
    """Chooses what runs, and remembers what it has put in service.

    Args:
      pin: version that runs whatever is announced; None for none.
      admitted, in_service: the newest version that was let through, and the one that answers, of an earlier process.
      read: facts of the export in a folder, None when its manifest cannot be read.
    """

    def __init__(
        self,
        gate: ExportGate,
        pin: int | None = None,
        admitted: Target | None = None,
        in_service: InService | None = None,
        read: Callable[[Path], ExportFacts | None] = read_facts,
    ) -> None:
        self._gate, self._pin, self._read = gate, pin, read
        self.admitted, self.in_service = admitted, in_service
        self._facts: dict[Path, ExportFacts] = {}

    def choose(self, announced: Announced, on_disk: OnDisk) -> Choice:
        """What should run now.

        Args:
          on_disk: the versions that lie in a folder.
        """
        newest = announced.export
        if announced.retired:
            self.admitted = self.in_service = None
            return Choice(None)
        if self._pin is not None:
            return self._pinned(newest or announced.held or self.admitted)
        if announced.held is not None:
            return Choice(announced.held)
        if newest is None or announced.newest is None or newest == self.admitted:
            return Choice(self.admitted)
        objection = self._objection(with_event(self._facts_of(newest.path), announced.newest))
        if objection:
            return Choice(self.admitted or self._older(newest, on_disk), newest.version, objection)
        self.admitted = newest
        return Choice(newest)

    def is_usable(self, path: Path) -> bool:
        """Whether the export in `path` may stand in for one that is missing or refused."""
        facts = self._facts_of(path)
        return facts is None or not self._objection(facts)

    def note(self, target: Target | None, available: Collection[int], on_disk: OnDisk) -> None:
        """Notes what answers: running clients send what it takes, until it is neither loaded nor on disk."""
        if target and target.version in available:
            facts = self._facts_of(target.path)
            if facts:
                self.in_service = InService(target, facts)
        elif self.in_service:
            old = self.in_service.target
            if old.version not in available and old.version not in on_disk(old.path.parent):
                self.in_service = None

    def _pinned(self, beside: Target | None) -> Choice:
        """The pinned version as it was cut, from the folder in which `beside` lies."""
        if beside is None or self._pin is None:
            return Choice(None)
        path = beside.path.parent / str(self._pin)
        facts = self._facts_of(path)
        return Choice(Target(self._pin, path, True, facts.cut_at_ms if facts else 0))

    def _older(self, newest: Target, on_disk: OnDisk) -> Target | None:
        """The newest older version beside `newest` that the gate lets through: for a replica that is new."""
        base = newest.path.parent
        for version in sorted((v for v in on_disk(base) if v < newest.version), reverse=True):
            facts = self._facts_of(base / str(version))
            if facts and not self._objection(facts):
                return Target(version, base / str(version))
        return None

    def _objection(self, facts: ExportFacts) -> str:
        return self._gate.objection(facts, self.in_service.facts if self.in_service else None)

    def _facts_of(self, path: Path) -> ExportFacts | None:
        facts = self._facts.get(path) or self._read(path)
        if facts is None:
            return None
        if len(self._facts) >= _KEPT_FACTS:
            self._facts.pop(next(iter(self._facts)))
        self._facts[path] = facts
        return facts
