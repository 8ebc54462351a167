"""How a process with many threads takes memory from the system."""

import ctypes

import pyarrow as pa

_M_ARENA_MAX = -8  # of <malloc.h>
_ARENAS = 2
_libc = ctypes.CDLL(None)

WORKER_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": str(_ARENAS)}
"""The same for a process that is yet to start."""


def share_heaps() -> None:
    """Lets all threads take memory from a few heaps, Arrow's buffers included; for what is allocated from now on.

    By default each thread has heaps of its own, in glibc and in Arrow's mimalloc, and gives back little of what others
    free: a Beam worker hands each bundle to any of dozens of threads, and held four times what was in use.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    if hasattr(_libc, "mallopt"):  # not in every C library
        _libc.mallopt(_M_ARENA_MAX, _ARENAS)


def trim_heaps() -> None:
    """Gives back to the system what is free; some milliseconds in which other threads may wait for memory."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
