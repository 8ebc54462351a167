"""Positions of rows by 64-bit key, for rows that are added in order and forgotten in order.

A key is a hash of (request id, item), so two rows with one hash would count as one (`row_keys` says how rarely that
happens); among keys the look-up is exact. The index is log-structured: each addition is a sorted run, runs of similar
size are merged, and a look-up is one binary search per run. Both work on whole blocks in numpy, so that a key costs 16
bytes and no Python object.
"""

import numpy as np
import pyarrow as pa

from millrace.transforms.batch.hashes import GOLDEN_RATIO, mix64, siphash24

_KEY = b"millrace-join-01"  # of the hash of request ids, other than that which chooses their shard


def row_keys(request_ids: pa.Array, item_ids: np.ndarray) -> np.ndarray:
    """uint64 [n]: key of each (request id, item), a 64-bit hash.

    Among a million keys held at once, two are equal with a probability of 3e-8: (10^6)^2 / 2 pairs / 2^64.
    """
    mixed = siphash24(request_ids, _KEY) + item_ids.astype(np.uint64) * np.uint64(GOLDEN_RATIO)
    return mix64(mixed)


class KeyIndex:
    """Finds the position of each key that was added and not forgotten."""

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._base = 0

    def add(self, keys: np.ndarray, positions: np.ndarray) -> None:
        """Adds keys, uint64 [n], that are not in the index; their positions, int64 [n], lie above all earlier ones."""
        if not len(keys):
            return
        order = np.argsort(keys)
        self._runs.append((keys[order], positions[order]))
        while len(self._runs) > 1 and 2 * len(self._runs[-1][0]) >= len(self._runs[-2][0]):
            self._runs[-2:] = [self._merge(self._runs[-2], self._runs[-1])]

    def positions_of(self, keys: np.ndarray) -> np.ndarray:
        """int64 [n]: position of each key, uint64 [n]; -1 where the index does not have it."""
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
        """Bytes held in memory."""
        return sum(keys.nbytes + positions.nbytes for keys, positions in self._runs)

    def _merge(
        self, left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        keys, positions = (np.concatenate(pair) for pair in zip(left, right, strict=True))
        live = positions >= self._base
        keys, positions = keys[live], positions[live]
        order = np.argsort(keys, kind="stable")
        return keys[order], positions[order]
