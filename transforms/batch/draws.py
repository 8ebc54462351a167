"""Random numbers that depend on the row alone, so that retries and backfills make the same choices."""

import functools

import numpy as np
import pyarrow as pa

from millrace.transforms.batch.hashes import GOLDEN_RATIO, mix64, siphash24


def uniform(seed: int, transform: str, partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> np.ndarray:
    """float64 [n] in [0, 1) from hash(seed, transform, provenance): the same in every process and every run.

    Args:
      transform: name of what draws; another name gives independent numbers.
      partition, offset, row: integers [n], the rows' provenance.
    """
    mixed = np.asarray(_start(seed, transform))
    for part in (partition, offset, row):
        mixed = mix64(mixed + np.asarray(part).astype(np.uint64) * np.uint64(GOLDEN_RATIO))
    # A float64 has 53 bits of precision: the upper 53 of the 64 are kept.
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


@functools.lru_cache(maxsize=1024)
def _start(seed: int, transform: str) -> np.uint64:
    return np.uint64(siphash24(pa.array([f"{seed}/{transform}"]))[0])
