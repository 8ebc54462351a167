"""Ids for the benchmarks of the embedding store: those of the peer's script and of store_bench."""

import numpy as np


class IdStream:
    """Batches of ids drawn from `keys`, the r-th of them with weight r**-zipf (0: all alike)."""

    def __init__(self, keys: np.ndarray, zipf: float) -> None:
        self._keys = keys
        self._random = np.random.default_rng(1)
        self._cdf = np.cumsum(np.arange(1, keys.size + 1) ** -zipf) if zipf else None

    def draw(self, count: int) -> np.ndarray:
        """int64 [count]."""
        if self._cdf is None:
            return self._keys[self._random.integers(0, self._keys.size, count)]
        return self._keys[np.searchsorted(self._cdf, self._random.random(count) * self._cdf[-1])]


def distinct_keys(count: int) -> np.ndarray:
    """int64 [count], scattered, in random order."""
    return (np.random.default_rng(0).permutation(count).astype(np.int64) + 1) * 7919


def touch_memory(count: int) -> None:
    """Writes to `count` bytes and frees them: a virtual machine's host makes the first touch of a page expensive."""
    memory = np.empty(count, np.uint8)
    memory[::4096] = 1
