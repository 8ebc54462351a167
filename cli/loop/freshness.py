"""Freshness seen from outside: how long until the score of a never-seen item moves after an action on it."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from millrace.cli.loop.client_load import serving_inputs
from millrace.runtime.kafka_client import KafkaConnection, make_producer
from millrace.runtime.topics import Topics

# Far above any item of a generated world or of MovieLens, and below the 48-bit limit of an id.
_FIRST_PROBE_ITEM = 1_000_000_000
_FIRST_CONTROL_ITEM = 2_000_000_000
_MOVED = 1e-4  # smallest difference of two probabilities that counts as a move; float noise is 1e-7
_POLL_SECONDS = 0.03

Predict = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass
class Probe:
    """One impression of one never-seen item, with its action.

    `sent_at` and `moved_at` are Unix seconds; `partition` and `offset` say where the impression lies in its topic.
    `is_set_aside` is true for a probe whose effect servers were kept from showing: it says nothing about freshness.
    """

    index: int
    user_id: int
    sent_at: float = 0.0
    moved_at: float | None = None
    partition: int = -1
    offset: int = -1
    is_set_aside: bool = False

    @property
    def item_id(self) -> int:
        return _FIRST_PROBE_ITEM + self.index

    @property
    def control_id(self) -> int:
        return _FIRST_CONTROL_ITEM + self.index


@dataclass(frozen=True)
class ProbeEvents:
    """What a probe sends: the action's name and value, the impression's context, and serving inputs beside the ids."""

    action: str
    value: float | None
    context: Mapping[str, str | int]
    inputs: Mapping[str, str | int]


@dataclass
class FreshnessProber:
    """Sends a probe every `interval_seconds` and polls `predict` until each item's score has left the default.

    The default is the score of a control item, never seen by anybody, for the same user in the same request: it moves
    with the dense weights and the user's vector just as the probed item's would, so only the item itself can part them.
    """

    kafka: KafkaConnection
    topics: Topics
    predict: Predict
    head: str
    events: ProbeEvents
    users: int
    interval_seconds: float = 0.5
    seed: int = 0
    probes: list[Probe] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._producer = make_producer(self.kafka, linger_ms=0)
        self._stop_sending = threading.Event()
        self._stop = threading.Event()
        self._may_send = threading.Event()
        self._may_send.set()
        self._random = np.random.default_rng(self.seed)
        self._threads = [
            threading.Thread(target=self._send_loop, name="probe-send", daemon=True),
            threading.Thread(target=self._poll_loop, name="probe-poll", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop_sending(self) -> None:
        self._stop_sending.set()

    def pause(self) -> None:
        """Sends nothing until `go_on`, for a time in which servers are held and show no effect."""
        self._may_send.clear()

    def go_on(self) -> None:
        """Ends a pause."""
        self._may_send.set()

    def set_aside(self) -> None:
        """Waits no more for probes that have not moved anything yet."""
        for probe in self.outstanding():
            probe.is_set_aside = True

    def outstanding(self) -> list[Probe]:
        """Probes that are waited for."""
        return [probe for probe in list(self.probes) if probe.moved_at is None and not probe.is_set_aside]

    def close(self) -> None:
        self._stop_sending.set()
        self._stop.set()
        for thread in self._threads:
            thread.join(10.0)
        self._producer.flush(5.0)

    def latencies_ms(self) -> np.ndarray:
        """Milliseconds from action to moved score, float64 [probes that moved]."""
        return np.array([(p.moved_at - p.sent_at) * 1e3 for p in self.probes if p.moved_at is not None])

    def _send_loop(self) -> None:
        while not self._stop_sending.wait(self.interval_seconds):
            if not self._may_send.is_set():
                continue
            probe = Probe(len(self.probes), int(self._random.integers(self.users)))
            self._send(probe)
            self.probes.append(probe)

    def _send(self, probe: Probe) -> None:
        request_id, now_ms = f"probe-{probe.index}", int(time.time() * 1e3)
        common = {"schema_version": 1, "request_id": request_id, "timestamp_ms": now_ms}
        impression = common | {
            "user_id": probe.user_id,
            "item_ids": [probe.item_id],
            "context": dict(self.events.context),
        }
        action = common | {"item_id": probe.item_id, "action": self.events.action}
        if self.events.value is not None:
            action["value"] = self.events.value

        def delivered(error: object, message) -> None:  # type: ignore[no-untyped-def]
            if error is None:
                probe.partition, probe.offset = message.partition(), message.offset()

        probe.sent_at = time.time()
        self._producer.produce(self.topics.impressions, json.dumps(impression), request_id, on_delivery=delivered)
        self._producer.produce(self.topics.actions, json.dumps(action), request_id)
        self._producer.poll(0)

    def _poll_loop(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._producer.poll(0)
            probes = self.outstanding()
            if probes:
                self._check(probes)

    def _check(self, probes: list[Probe]) -> None:
        """Asks for every outstanding probe and its control in one request."""
        users = np.repeat(np.array([p.user_id for p in probes], np.int64), 2)
        items = np.array([[p.item_id, p.control_id] for p in probes], np.int64).ravel()
        inputs = serving_inputs(users, items, self.events.inputs)
        try:
            scores = np.asarray(self.predict(inputs)[self.head]).reshape(-1, 2)
        except Exception:  # a failed request is counted by the predict function itself
            return
        now = time.time()
        for probe, moved in zip(probes, np.abs(scores[:, 0] - scores[:, 1]) > _MOVED, strict=True):
            if moved:
                probe.moved_at = now
