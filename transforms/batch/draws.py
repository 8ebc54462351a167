"""Random choices that depend on the row alone, so that retries and backfills make the same ones."""

import functools

import numpy as np
import pyarrow as pa

from millrace.transforms.batch.hashes import mix64, siphash24


def uniform(seed: int, transform: str, partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> np.ndarray:
    """float64 [n] in [0, 1) from hash(seed, transform, provenance): equal wherever and whenever it is computed."""
    mixed = np.asarray(_start(seed, transform))
    for part in (partition, offset, row):
        mixed = mix64(mixed + np.asarray(part).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


@functools.lru_cache(maxsize=1024)
def _start(seed: int, transform: str) -> np.uint64:
    return np.uint64(siphash24(pa.array([f"{seed}/{transform}"]))[0])
