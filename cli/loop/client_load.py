"""A client that keeps asking for predictions, and counts what it got."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from millrace.serving.client.predict_client import PredictClient


def serving_inputs(users: np.ndarray, items: np.ndarray, others: Mapping[str, str | int]) -> dict[str, np.ndarray]:
    """A request's inputs: int64 [n] users and items, and each of `others` repeated for every row."""
    inputs = {"user_id": users, "item_id": items}
    for name, value in others.items():
        dtype = object if isinstance(value, str) else np.int64
        inputs[name] = np.full(len(items), value.encode() if isinstance(value, str) else value, dtype)
    return inputs


@dataclass
class PredictCounter:
    """Wraps a client: counts requests that worked and that failed, with latencies (seconds)."""

    client: "PredictClient"
    ok: int = 0
    failed: int = 0
    latencies: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        start = time.perf_counter()
        try:
            outputs = self.client.predict(dict(inputs))
        except Exception:
            with self._lock:
                self.failed += 1
            raise
        with self._lock:
            self.ok += 1
            self.latencies.append(time.perf_counter() - start)
        return outputs


class ClientLoad:
    """Asks for `batch` random (user, item) pairs, `requests_per_second` times per second, until `close`."""

    def __init__(
        self,
        counter: PredictCounter,
        users: int,
        items: int,
        inputs: Mapping[str, str | int],
        requests_per_second: float = 20.0,
        batch: int = 20,
        seed: int = 0,
    ) -> None:
        self._counter, self._users, self._items, self._inputs = counter, users, items, inputs
        self._interval, self._batch = 1.0 / requests_per_second, batch
        self._random = np.random.default_rng(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="client-load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10.0)

    def _loop(self) -> None:
        while not self._stop.wait(self._interval):
            users = np.full(self._batch, self._random.integers(self._users), np.int64)
            items = self._random.integers(self._items, size=self._batch).astype(np.int64)
            try:
                self._counter(serving_inputs(users, items, self._inputs))
            except Exception:  # counted; the load goes on
                continue
