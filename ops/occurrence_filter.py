"""When an id may get an entry: filters and how often it has to be seen before. Imports no TensorFlow."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

_MAX_COUNT = 255  # of the 8 bits in which counting and sliding count
_MAX_SLOT = 32767


def _check_int(owner: str, name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{owner}: {name} must be an integer from {low} to {high}, not {value!r}")


@dataclasses.dataclass(frozen=True)
class ProbabilisticFilter:
    """Draws whether a new id is admitted; remembers none.

    Attributes:
      equal_probability: sightings count alike: each is admitted with 1 - 0.05^(1 / threshold), so an id seen
        `threshold` times is in with 95 %. False: an id seen n times in a batch with min(1, n / threshold).
      seed: of the draws, in [0, 2^53).
    """

    kind: ClassVar[str] = "probabilistic"
    max_threshold: ClassVar[int] = 2**32 - 1
    equal_probability: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.equal_probability, bool):
            raise ValueError(
                f"ProbabilisticFilter: equal_probability must be True or False, not {self.equal_probability!r}"
            )
        _check_int("ProbabilisticFilter", "seed", self.seed, 0, 2**53 - 1)


@dataclasses.dataclass(frozen=True)
class CountingFilter:
    """Counts ids and forgets none: about 5 bytes per id of `capacity`. Ids beyond it are admitted uncounted."""

    kind: ClassVar[str] = "counting"
    max_threshold: ClassVar[int] = _MAX_COUNT
    capacity: int = 1_000_000

    def __post_init__(self) -> None:
        _check_int("CountingFilter", "capacity", self.capacity, 1, 2**32 - 1)


@dataclasses.dataclass(frozen=True)
class SlidingFilter:
    """Counts about the last `capacity` ids: an id not seen while that many others came is forgotten.

    Counts lie in `split_num` rings of capacity / (split_num - 1) ids, forgotten ring by ring: about 6 bytes per id.
    """

    kind: ClassVar[str] = "sliding"
    max_threshold: ClassVar[int] = _MAX_COUNT
    capacity: int = 1_000_000
    split_num: int = 7

    def __post_init__(self) -> None:
        _check_int("SlidingFilter", "capacity", self.capacity, 1, 2**32 - 1)
        _check_int("SlidingFilter", "split_num", self.split_num, 5, 100)


OccurrenceFilter = ProbabilisticFilter | CountingFilter | SlidingFilter

FILTERS: dict[str, type[OccurrenceFilter]] = {
    rule.kind: rule for rule in (ProbabilisticFilter, CountingFilter, SlidingFilter)
}


@dataclasses.dataclass(frozen=True)
class Occurrence:
    """How often an id has to be seen before its table gives it an entry.

    Attributes:
      filter: how sightings are counted.
      threshold: sightings that do not suffice yet, of ids of any other slot; 0 admits at the first sighting.
      slot_thresholds: the same by slot; kept as sorted pairs, so that equal ones are equal and hashable.
    """

    filter: OccurrenceFilter = SlidingFilter()
    threshold: int = 0
    slot_thresholds: Mapping[int, int] | tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if type(self.filter) not in FILTERS.values():
            raise ValueError(
                f"Occurrence: filter must be ProbabilisticFilter, CountingFilter or SlidingFilter, not {self.filter!r}"
            )
        high = self.filter.max_threshold
        _check_int("Occurrence", f"threshold of a {self.filter.kind} filter", self.threshold, 0, high)
        by_slot = dict(self.slot_thresholds)
        for slot, threshold in by_slot.items():
            _check_int("Occurrence", "slot", slot, 0, _MAX_SLOT)
            _check_int("Occurrence", f"threshold of slot {slot} of a {self.filter.kind} filter", threshold, 0, high)
        object.__setattr__(self, "slot_thresholds", tuple(sorted(by_slot.items())))
