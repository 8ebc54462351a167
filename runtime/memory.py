"""How a process takes memory from the system, and when it gives it back."""

import ctypes

import pyarrow as pa

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of <malloc.h>
_ARENAS = 2
_libc = ctypes.CDLL(None)

WORKER_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": str(_ARENAS)}
"""Environment variables that do what `share_heaps` does, for a process that is not started yet."""


def keep_freed_memory() -> None:
    """A batch frees the megabytes that the next one needs: glibc would return them, and each page be fetched anew."""
    _set(_M_MMAP_THRESHOLD, 32 << 20)
    _set(_M_TRIM_THRESHOLD, 512 << 20)


def share_heaps() -> None:
    """Lets all threads take memory from a few heaps, Arrow's buffers included; for what is allocated from now on.

    By default each thread has heaps of its own, in glibc and in Arrow's mimalloc, and gives back little of what others
    free: a Beam worker hands each bundle to any of dozens of threads, and held four times what was in use.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    _set(_M_ARENA_MAX, _ARENAS)


def trim_heaps() -> None:
    """Gives back to the system what is free; some milliseconds in which other threads may wait for memory."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def _set(option: int, value: int) -> None:
    if hasattr(_libc, "mallopt"):  # not in every C library
        _libc.mallopt(option, value)
