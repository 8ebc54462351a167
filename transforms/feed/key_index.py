"""Finds the position of a row by its 64-bit key; rows are added and forgotten in order of position.

A key is a hash of (request id, item id), so two rows with equal hashes would count as one (`row_keys` says how rarely
that happens). A look-up compares whole keys, so it never takes one key for another. The index is a few sorted arrays,
called runs: each addition makes one, runs of similar size are merged, and a look-up is one binary search per run.
Additions and look-ups take many keys at once in numpy. A key costs 16 bytes, 8 for itself and 8 for its position, and
no Python object.
"""

import numpy as np
import pyarrow as pa

from millrace.transforms.batch.hashes import GOLDEN_RATIO, mix64, siphash24

_KEY = b"millrace-join-01"
"""Key of the hash of request ids; another than that of `shards.by_request`, whose hashes are skewed within a shard."""


def row_keys(request_ids: pa.Array, item_ids: np.ndarray) -> np.ndarray:
    """uint64 [n]: 64-bit hash of each (request id, item id), from string [n] and int64 [n].

    Two items of one request never have one key. Among a million keys held at once, two are equal with a probability of
    3e-8: (10^6)^2 / 2 pairs, each with 1 / 2^64.
    """
    mixed = siphash24(request_ids, _KEY) + item_ids.astype(np.uint64) * np.uint64(GOLDEN_RATIO)
    return mix64(mixed)


class KeyIndex:
    """Maps each key that was added and not forgotten to its position."""

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._base = 0

    def add(self, keys: np.ndarray, positions: np.ndarray) -> None:
        """Adds keys with their positions.

        Args:
          keys: uint64 [n], no two equal and none in the index; not checked.
          positions: int64 [n], each above all positions of earlier calls, so that forgetting keeps the order.
        """
        if not len(keys):
            return
        order = np.argsort(keys)
        self._runs.append((keys[order], positions[order]))
        while len(self._runs) > 1 and 2 * len(self._runs[-1][0]) >= len(self._runs[-2][0]):
            self._runs[-2:] = [self._merge(self._runs[-2], self._runs[-1])]

    def positions_of(self, keys: np.ndarray) -> np.ndarray:
        """int64 [n]: position of each key, uint64 [n]; -1 for a key that is not in the index."""
        found = np.full(len(keys), -1, np.int64)
        for run_keys, run_positions in self._runs:
            at = np.minimum(np.searchsorted(run_keys, keys), len(run_keys) - 1)
            # A forgotten key stays in its run until the next merge; it may have been added again, to a later run.
            hit = (run_keys[at] == keys) & (run_positions[at] >= self._base)
            found[hit] = run_positions[at[hit]]
        return found

    def forget_below(self, base: int) -> None:
        """Forgets all keys at positions below `base`. `base` must not be lower than in an earlier call."""
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
