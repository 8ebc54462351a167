"""Model of the counting filter in ops/cc/embedding, without its capacity and its hash collisions."""

from millrace.ops.occurrence_filter import Occurrence

_MAX_COUNT = 255


class CountingModel:
    """Also of a sliding filter for as long as it forgets nothing."""

    def __init__(self, occurrence: Occurrence) -> None:
        self._fallback = occurrence.threshold
        self._by_slot = dict(occurrence.slot_thresholds)
        self._seen: dict[int, int] = {}

    def threshold_of(self, fid: int) -> int:
        return self._by_slot.get(fid >> 48 & 0x7FFF, self._fallback)

    def admit(self, fid: int, count: int = 1) -> bool:
        """Whether an id without an entry may get one, seen `count` times more."""
        threshold = self.threshold_of(fid)
        if threshold == 0:
            return True
        old = self._seen.get(fid, 0)
        self._seen[fid] = min(old + count, _MAX_COUNT)
        return old >= threshold
