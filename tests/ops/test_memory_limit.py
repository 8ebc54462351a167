"""A store that finds no more memory: an error of the op, not the end of the process."""

import subprocess
import sys

_PROGRAM = """
import resource
import numpy as np
import tensorflow as tf
from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Sgd, TableConfig, Zeros

store = EmbeddingStore([TableConfig("t", 64, Sgd(1.0), Zeros())], "limited")
store.assign("t", [1], np.ones((1, 64)))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), resource.RLIM_INFINITY))
try:
    for first in range(0, 1 << 24, 1 << 15):
        store.lookup("t", np.arange(first, first + (1 << 15)), missing="create")
except tf.errors.ResourceExhaustedError as error:
    print("refused", error.message)
print("goes on", store.lookup("t", [1]).numpy()[0, 0])
"""


def test_a_store_without_memory_refuses_and_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused" in done.stdout
    assert "goes on 1.0" in done.stdout
