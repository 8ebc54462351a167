"""Heaps that threads share: in processes of their own, as the settings are for good."""

import os
import subprocess
import sys

from millrace.runtime.memory import WORKER_ENVIRONMENT


def test_arrow_takes_memory_from_the_system_once_heaps_are_shared() -> None:
    code = "import pyarrow as pa; from millrace.runtime.memory import share_heaps; share_heaps(); share_heaps(); "
    assert _printed(code + "print(pa.default_memory_pool().backend_name)") == "system"


def test_a_worker_that_is_started_with_the_environment_does_the_same() -> None:
    code = "import pyarrow as pa; print(pa.default_memory_pool().backend_name)"
    assert _printed(code, WORKER_ENVIRONMENT) == "system"


def test_threads_take_no_more_than_two_arenas_once_heaps_are_shared() -> None:
    code = (
        "import ctypes, sys, threading; from millrace.runtime.memory import share_heaps; share_heaps()\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
        "all_there = threading.Barrier(9)\n"
        "def use(): libc.malloc(ctypes.c_size_t(1000)); all_there.wait(30); all_there.wait(30)\n"
        "for _ in range(8): threading.Thread(target=use).start()\n"
        "all_there.wait(30); libc.malloc_stats(); all_there.wait(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert 1 <= done.stderr.count("Arena ") <= 2


def test_what_is_free_goes_back_to_the_system() -> None:
    code = (
        "import ctypes, sys; from millrace.runtime.memory import trim_heaps\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p; libc.free.argtypes = [ctypes.c_void_p]\n"
        "held = [libc.malloc(ctypes.c_size_t(60_000)) for _ in range(1000)]\n"
        "for each in held: ctypes.memset(ctypes.c_void_p(each), 1, 60_000)\n"
        "for each in held[:-1]: libc.free(each)\n"  # the last one keeps the heap from shrinking
        "before = resident(); trim_heaps(); print(before - resident() > 30_000_000)\n"
    )
    assert _printed(code) == "True"


def _printed(code: str, environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env={**os.environ, **(environment or {})}
    ).stdout.strip()
