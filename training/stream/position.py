"""How far a trainer has come: next offsets of the train topic, and which source rows it has applied."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from millrace.transforms.batch.provenance import MAX_COPIES, ROWS_PER_RECORD

_INITIAL_RECORDS = 1 << 12
_ROWS = ROWS_PER_RECORD * MAX_COPIES


class ProvenanceError(ValueError):
    """A row index that no step makes, a negative offset, or a saved state that cannot be read."""


class SeenRows:
    """Which source rows (partition, offset, row) were applied: one bit per row of the newest records of each partition.

    The 64 rows of a source record are the bits of one word. Rows that a step copied have other numbers: their first
    copies are the bits of another word, and so on. There is one window of words per partition and number of the copy.

    Args:
      horizon: how many source records before the newest one a window remembers, rounded up to a power of two. Of older
        rows it is not known whether they were applied, so they are refused and counted. A record takes 8 bytes.
    """

    def __init__(self, horizon: int = 1 << 20) -> None:
        self.horizon = 1 << max(0, horizon - 1).bit_length()
        self._windows: dict[tuple[int, int], _Window] = {}

    def admit(self, partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> "Admission":
        """Marks the rows that are new; of equal rows in one call the first is new.

        Args:
          partition, offset, row: int64 [n].

        Raises:
          ProvenanceError: a row's number or offset is out of range; nothing is marked then.
        """
        if not len(row):
            return Admission(np.zeros(0, bool), 0, 0)
        if row.min() < 0 or row.max() >= _ROWS or offset.min() < 0:
            raise ProvenanceError(
                f"source rows {row.min()}..{row.max()} from offset {offset.min()} on: not in 0..{_ROWS - 1}, >= 0"
            )
        new = np.zeros(len(row), bool)
        too_old = 0
        windows = partition * MAX_COPIES + row // ROWS_PER_RECORD
        for each in np.unique(windows).tolist():
            chosen = np.flatnonzero(windows == each)
            key = divmod(each, MAX_COPIES)
            if key not in self._windows:
                self._windows[key] = _Window(self.horizon)
            fresh, old = self._windows[key].admit(offset[chosen], row[chosen] % ROWS_PER_RECORD)
            new[chosen] = fresh
            too_old += old
        return Admission(new, int(len(row) - new.sum() - too_old), too_old)

    def save(self) -> bytes:
        """The state as a compressed NumPy archive."""
        arrays: dict[str, np.ndarray] = {}
        for key, window in self._windows.items():
            name = _name_of(*key)
            base, words = window.content()
            arrays[f"base_{name}"] = np.array(base)
            arrays[f"words_{name}"] = words
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, horizon=np.array(self.horizon), **arrays)
        return buffer.getvalue()

    @classmethod
    def load(cls, data: bytes) -> "SeenRows":
        """The state that `save` wrote. Raises ProvenanceError when `data` is anything else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                seen = cls(int(arrays["horizon"]))
                for name in arrays.files:
                    if name.startswith("base_"):
                        window = name.removeprefix("base_")
                        words = arrays[f"words_{window}"]
                        seen._windows[_key_of(window)] = _Window(seen.horizon, int(arrays[name]), words)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ProvenanceError(f"saved provenance cannot be read: {error}") from error
        return seen


def _name_of(partition: int, copy: int) -> str:
    """The name of a window in a saved state."""
    return f"{partition}_{copy}" if copy else str(partition)


def _key_of(name: str) -> tuple[int, int]:
    """(partition, copy) of a name that `_name_of` gave. Raises ValueError for any other."""
    partition, _, copy = name.partition("_")
    return int(partition), int(copy or 0)


@dataclass(frozen=True)
class Admission:
    """What `SeenRows.admit` found: `new` is bool [n]; of the rows that are not new, some are repeats, some too old."""

    new: np.ndarray
    duplicates: int
    too_old: int


class _Window:
    """Words of the records [base, end) of one partition and copy, in a ring that grows up to the horizon."""

    def __init__(self, horizon: int, base: int = -1, words: np.ndarray | None = None) -> None:
        self._horizon = horizon
        count = 0 if words is None else len(words)
        self._ring = np.zeros(min(horizon, max(_INITIAL_RECORDS, 1 << max(0, count - 1).bit_length())), np.uint64)
        self._base, self._end = base, base + count
        if words is not None and count:
            self._ring[np.arange(base, base + count) & (len(self._ring) - 1)] = words

    def admit(self, offset: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, int]:
        """(bool [n]: the row is new, and is marked now; the number of rows that are too old)."""
        self._cover(int(offset.min()), int(offset.max()))
        in_reach = offset >= self._base
        keys = offset * ROWS_PER_RECORD + row
        first = np.zeros(len(keys), bool)
        first[np.unique(keys, return_index=True)[1]] = True
        index = offset & (len(self._ring) - 1)
        bit = np.uint64(1) << row.astype(np.uint64)
        new = in_reach & first & ((self._ring[index] & bit) == 0)
        np.bitwise_or.at(self._ring, index[new], bit[new])
        return new, int((~in_reach).sum())

    def content(self) -> tuple[int, np.ndarray]:
        """(first record of the window, its words uint64 [end - base])."""
        return self._base, self._ring[np.arange(self._base, self._end) & (len(self._ring) - 1)].copy()

    def _cover(self, low: int, high: int) -> None:
        """Moves the window so that it contains record `high`, and record `low` where the horizon allows it."""
        if self._end <= self._base:
            self._base = self._end = max(low, high + 1 - self._horizon, 0)
        base = max(min(self._base, low), max(self._end, high + 1) - self._horizon, 0)
        end = max(self._end, high + 1)
        if end - base > len(self._ring):
            self._grow(end - base, base)
        # The ring holds zeros outside of [base, end): what leaves is wiped, what enters is already clean.
        if base > self._base:
            self._wipe(self._base, min(base, self._end))
        self._base, self._end = base, end

    def _grow(self, needed: int, base: int) -> None:
        """Makes the ring large enough for `needed` words, with those of record `base` and later ones."""
        size = min(self._horizon, 1 << (needed - 1).bit_length())
        kept = np.arange(max(base, self._base), self._end)
        old, self._ring = self._ring, np.zeros(size, np.uint64)
        self._ring[kept & (size - 1)] = old[kept & (len(old) - 1)]
        self._base = max(base, self._base)

    def _wipe(self, start: int, stop: int) -> None:
        if stop - start >= len(self._ring):
            self._ring[:] = 0
        elif stop > start:
            self._ring[np.arange(start, stop) & (len(self._ring) - 1)] = 0


@dataclass
class Position:
    """What a checkpoint says about the input: rows before `offsets` are in the model, and later ones that `seen` has.

    Attributes:
      offsets: {partition of the train topic: next offset to read}; every row before it was applied or refused.
      seen: source rows applied.
      rows_applied, rows_duplicate, rows_too_old: since the model was born.
    """

    offsets: dict[int, int] = field(default_factory=dict)
    seen: SeenRows = field(default_factory=SeenRows)
    rows_applied: int = 0
    rows_duplicate: int = 0
    rows_too_old: int = 0

    def applied(self, partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> None:
        """Records rows that a step has just learned.

        Args:
          partition, offset, row: int64 [n], provenance.

        Raises:
          ProvenanceError: one of the rows was learned before.
        """
        if not self.seen.admit(partition, offset, row).new.all():
            raise ProvenanceError("a row that was already applied has reached the train step")
        self.rows_applied += len(row)

    def passed(self, offsets: Mapping[int, int], duplicates: int = 0, too_old: int = 0) -> None:
        """Records that all blocks before `offsets` are applied or refused, and how many rows of them were refused.

        Args:
          offsets: {partition of the train topic: next offset}; one that is below the recorded one changes nothing.
        """
        for partition, offset in offsets.items():
            self.offsets[partition] = max(offset, self.offsets.get(partition, 0))
        self.rows_duplicate += duplicates
        self.rows_too_old += too_old
