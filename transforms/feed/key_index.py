"""Exact 64-bit key -> position, for keys that arrive in order and leave in order.

A log-structured index: each addition is a sorted run, runs of like size are merged, a look-up is one binary search a
run. Additions and look-ups are numpy over whole blocks; no Python object is held a key.
"""

import numpy as np
import pyarrow as pa

from millrace.transforms.batch.hashes import mix64, siphash24

_KEY = b"millrace-join-01"


def row_keys(request_ids: pa.Array, item_ids: np.ndarray) -> np.ndarray:
    """uint64 [n] key of each (request id, item). Two of a million live keys collide with probability 3e-8."""
    mixed = siphash24(request_ids, _KEY) + item_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mix64(mixed)


class KeyIndex:
    """Finds positions by key; positions below `base` are forgotten."""

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._base = 0

    def add(self, keys: np.ndarray, positions: np.ndarray) -> None:
        """Adds keys (uint64 [n]) that are not in the index; positions (int64 [n]) grow from call to call."""
        if not len(keys):
            return
        order = np.argsort(keys)
        self._runs.append((keys[order], positions[order]))
        while len(self._runs) > 1 and 2 * len(self._runs[-1][0]) >= len(self._runs[-2][0]):
            self._runs[-2:] = [self._merge(self._runs[-2], self._runs[-1])]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """int64 [n]: position of each key, -1 where it is not there."""
        found = np.full(len(keys), -1, np.int64)
        for run_keys, run_positions in self._runs:
            at = np.minimum(np.searchsorted(run_keys, keys), len(run_keys) - 1)
            # Forgotten entries stay in a run until its next merge and may repeat a key of a later run.
            hit = (run_keys[at] == keys) & (run_positions[at] >= self._base)
            found[hit] = run_positions[at[hit]]
        return found

    def forget_below(self, base: int) -> None:
        """Forgets positions below `base`."""
        self._base = base
        self._runs = [run for run in self._runs if int(run[1].max()) >= base]

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + positions.nbytes for keys, positions in self._runs)

    def _merge(
        self, left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        keys, positions = (np.concatenate(pair) for pair in zip(left, right, strict=True))
        live = positions >= self._base
        keys, positions = keys[live], positions[live]
        order = np.argsort(keys, kind="stable")
        return keys[order], positions[order]
