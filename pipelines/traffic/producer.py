"""Sends events to Kafka in real time at a given rate and keeps the ledger of what was sent."""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from millrace.pipelines.traffic import bad_records
from millrace.pipelines.traffic.ledger import EventLedger, oracle_auc
from millrace.pipelines.traffic.source import ACTION_NAMES, PlannedImpressions, TrafficSource
from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, make_producer
from millrace.runtime.topics import Topics

_LOG = logging.getLogger(__name__)

_TICK_SECONDS = 0.02  # between two sends: short beside the second after which a model shall have learned
_PROGRESS_SECONDS = 5.0
_FLUSH_SECONDS = 30.0
# The latest planned actions come 1.6 windows after their impression (`source._LATE`): 8 s by default, and some reserve.
_DRAIN_SECONDS = 12.0
# The bad record of 5 MB must pass Kafka, so that the feed is what refuses it.
_MAX_MESSAGE_BYTES = 8_000_000
# Without a duration the bad records are spread over a minute, so that whoever watches sees them come.
_BAD_RECORDS_SECONDS = 60.0

_SENT = telemetry.counter("events_sent", "Records handed to Kafka", ("topic",))
_UNDELIVERED = telemetry.counter("events_undelivered", "Records that no broker acknowledged")


@dataclass(frozen=True)
class ProducerConfig:
    """How to send.

    Args:
      rate: records per second, both topics together.
      duration_seconds: None: until the source ends or `stop` is set.
      bad_records: how many of each kind in `bad_records` are mixed in.
      partitions: of topics that do not exist yet.
      ledger: where to write the ledger (Parquet) and, beside it, the summary (`.json`).
      seed: part of the request ids, so that those of two producers on one topic differ.
    """

    rate: float
    duration_seconds: float | None = None
    bad_records: int = 0
    partitions: int = 4
    ledger: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1e6:
            raise UserError("--rate", self.rate, "out of range", "give more than 0 events per second, at most 1000000")
        if self.duration_seconds is not None and not self.duration_seconds > 0.0:
            raise UserError("--duration", self.duration_seconds, "not positive", "give seconds, or leave it out")
        if self.bad_records < 0:
            raise UserError("--bad-records", self.bad_records, "negative", "give 0 or more")
        if not 1 <= self.partitions <= 256:
            raise UserError("--partitions", self.partitions, "out of range", "give 1..256")


class EventProducer:
    """Sends what `source` draws until it ends, the duration is over or `stop` is set; for one run.

    Args:
      clock: Unix seconds.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics,
        source: TrafficSource,
        config: ProducerConfig,
        clock: Callable[[], float] = time.time,
    ) -> None:
        for topic in (topics.impressions, topics.actions):
            ensure_topic(connection, topic, config.partitions, {"max.message.bytes": str(_MAX_MESSAGE_BYTES)})
        self._topics, self._source, self._config, self._clock = topics, source, config, clock
        self._producer = make_producer(connection, linger_ms=10, queue_buffering_max_messages=500_000)
        self._started_ms = int(clock() * 1000)
        self._ledger = EventLedger(topics.impressions, f"r-{config.seed:x}-{self._started_ms:x}")
        self._agenda = _Agenda()
        self._counts = {"impressions": 0, "actions": 0, "lost": 0, "late": 0, "duplicated": 0}
        self._bad = _BadRecords(config)
        self._bad_delivered = self._undelivered = 0
        self._rate = 0.0

    def run(self, stop: threading.Event) -> dict[str, Any]:
        """Sends everything, writes the ledger and returns the summary; after `stop`, of what was sent until then."""
        try:
            self._send_all(stop)
            # The actions on the last impressions are still to come, each at its time.
            give_up = time.monotonic() + _DRAIN_SECONDS
            while len(self._agenda) and not stop.is_set() and time.monotonic() < give_up:
                self._send_actions(self._now_ms())
                self._producer.poll(0)
                stop.wait(_TICK_SECONDS)
        finally:
            left = self._producer.flush(_FLUSH_SECONDS)
            if left:
                _LOG.warning("%d records were not acknowledged within %g s", left, _FLUSH_SECONDS)
        return self._finish()

    @property
    def events(self) -> int:
        """Records sent so far, bad ones included."""
        return self._counts["impressions"] + self._counts["actions"] + self._bad.sent

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _send_all(self, stop: threading.Event) -> None:
        config, began, more = self._config, time.monotonic(), True
        next_progress = _PROGRESS_SECONDS
        while more and not stop.is_set():
            elapsed = time.monotonic() - began
            if config.duration_seconds is not None and elapsed >= config.duration_seconds:
                break
            now_ms = self._now_ms()
            self._send_actions(now_ms)
            self._send_bad(elapsed, now_ms)
            due = int(config.rate * elapsed) - self.events
            # After a stall the backlog is sent at five times the rate at most, not in one burst.
            due = min(due, max(1, int(config.rate * 5 * _TICK_SECONDS)))
            if due > 0:
                more = self._send_impressions(due, now_ms)
            self._producer.poll(0)
            if elapsed >= next_progress:
                next_progress += _PROGRESS_SECONDS
                _LOG.info("sent %d events, %.0f a second", self.events, self.events / elapsed)
            stop.wait(max(0.0, _TICK_SECONDS - (time.monotonic() - began - elapsed)))
        self._rate = self.events / max(time.monotonic() - began, _TICK_SECONDS)
        if not stop.is_set():
            self._send_bad(float("inf"), self._now_ms())

    def _send_impressions(self, count: int, now_ms: int) -> bool:
        draw = self._source.draw(count, now_ms)
        if draw is None:
            return False
        first = self._ledger.add(draw, now_ms)
        self._agenda.plan(draw, self._ledger.draws - 1, first, now_ms)
        requests = [self._ledger.request_id(first + index) for index in range(len(draw.user_ids))]
        for request_id, value in zip(requests, impression_values(draw, requests, now_ms), strict=True):
            self._produce(self._topics.impressions, value, request_id, self._on_impression)
        self._count("impressions", len(requests))
        for name in ("lost", "late", "duplicated"):
            self._counts[name] += getattr(draw, name)
        return True

    def _send_actions(self, now_ms: int) -> None:
        for row in self._agenda.due(now_ms):
            request_id = self._ledger.request_id(row.impression)
            value = "" if np.isnan(row.value) else f',"value":{row.value:g}'
            event = (
                f'{{"schema_version":1,"request_id":"{request_id}","item_id":{row.item_id},'
                f'"action":"{ACTION_NAMES[row.code]}","timestamp_ms":{now_ms}{value}}}'
            )
            self._produce(self._topics.actions, event, request_id, self._on_action)
            if row.in_time:
                self._ledger.observe(row.draw, row.row)
            self._count("actions", 1)

    def _send_bad(self, elapsed: float, now_ms: int) -> None:
        for topic_name, value in self._bad.due(elapsed, now_ms):
            self._produce(getattr(self._topics, topic_name), value, "r-bad", self._on_bad)

    def _count(self, kind: str, count: int) -> None:
        self._counts[kind] += count
        _SENT.labels(getattr(self._topics, kind)).inc(count)

    def _produce(self, topic: str, value: str | bytes | None, key: str, delivered: Callable[..., None]) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=delivered)
                return
            except BufferError:
                self._producer.poll(0.1)

    def _on_impression(self, error: object, message: Any) -> None:
        if error is None:
            number = int(message.key().rpartition(b"-")[2])
            self._ledger.delivered(number, message.partition(), message.offset())
        else:
            self._lose(error)

    def _on_action(self, error: object, message: Any) -> None:
        if error is not None:
            self._lose(error)

    def _on_bad(self, error: object, message: Any) -> None:
        if error is None:
            self._bad_delivered += 1
        else:
            self._lose(error)

    def _lose(self, error: object) -> None:
        if not self._undelivered:
            _LOG.warning("a record was not delivered: %s", error)
        self._undelivered += 1
        _UNDELIVERED.inc()

    def _finish(self) -> dict[str, Any]:
        table = self._ledger.to_table()
        seconds = self._clock() - self._started_ms / 1000.0
        summary = {
            "events": self.events,
            "impressions": self._counts["impressions"],
            "actions": self._counts["actions"],
            "rows": table.num_rows,
            "rows_clicked": int(np.sum(table["clicked"].to_numpy(zero_copy_only=False))),
            "rows_observed": int(np.sum(table["observed"].to_numpy(zero_copy_only=False))),
            "actions_lost": self._counts["lost"],
            "actions_late": self._counts["late"],
            "actions_duplicated": self._counts["duplicated"],
            "actions_unsent": len(self._agenda),
            "bad_records": self._bad_delivered,
            "undelivered": self._undelivered,
            "seconds": round(seconds, 2),
            "events_per_second": round(self._rate, 1),
            **oracle_auc(table),
        }
        if self._config.ledger:
            self._ledger.write(self._config.ledger, table, summary)
        return summary


def impression_values(draw: PlannedImpressions, requests: Sequence[str], now_ms: int) -> list[str]:
    """The JSON of each impression of `draw`."""
    items = ",".join(["%d"] * draw.item_ids.shape[1])
    form = '{"schema_version":1,"request_id":"%s","user_id":%d,"item_ids":[' + items + f'],"timestamp_ms":{now_ms}%s}}'
    contexts = [context and f',"context":{context}' for context in draw.contexts]
    rows = zip(requests, draw.user_ids.tolist(), draw.item_ids.tolist(), contexts, strict=True)
    return [form % (request_id, user, *shown, context) for request_id, user, shown, context in rows]


class _Due(NamedTuple):
    """One action to send now."""

    draw: int
    row: int
    impression: int
    item_id: int
    code: int
    value: float
    in_time: bool


class _Agenda:
    """Planned actions that are still to be sent, as columns of `_AGENDA_TYPES`."""

    def __init__(self) -> None:
        self._columns: list[np.ndarray] = [np.zeros(0, kind) for kind in _AGENDA_TYPES]

    def __len__(self) -> int:
        return len(self._columns[0])

    def plan(self, draw: PlannedImpressions, number: int, first: int, now_ms: int) -> None:
        """Adds the actions of the `number`-th draw, whose first impression is `first`."""
        actions, shown = draw.actions, draw.item_ids.shape[1]
        new = (
            now_ms + actions.delays_ms,
            np.full(len(actions.rows), number),
            actions.rows,
            first + actions.rows // shown,
            draw.item_ids.reshape(-1)[actions.rows],
            actions.codes,
            actions.values,
            actions.in_time,
        )
        self._columns = [np.concatenate(pair) for pair in zip(self._columns, new, strict=True)]

    def due(self, now_ms: int) -> list[_Due]:
        """Removes the actions whose time has come and returns them in the order of their times."""
        ready = self._columns[0] <= now_ms
        if not ready.any():
            return []
        taken = [column[ready] for column in self._columns]
        self._columns = [column[~ready] for column in self._columns]
        order = np.argsort(taken[0], kind="stable")
        return [_Due(*row) for row in zip(*(column[order].tolist() for column in taken[1:]), strict=True)]


_AGENDA_TYPES = (np.int64, np.int64, np.int64, np.int64, np.int64, np.int64, np.float64, np.bool_)


class _BadRecords:
    """Spreads the bad records evenly over a run."""

    def __init__(self, config: ProducerConfig) -> None:
        kinds = [("impressions", build) for _, build in bad_records.IMPRESSIONS.values()]
        kinds += [("actions", build) for _, build in bad_records.ACTIONS.values()]
        self._todo = kinds * config.bad_records
        seconds = config.duration_seconds or _BAD_RECORDS_SECONDS
        self._interval = seconds / (len(self._todo) + 1)
        self.sent = 0

    def due(self, elapsed: float, now_ms: int) -> list[tuple[str, bytes | None]]:
        """(name of the topic in `Topics`, value) of the records whose time has come; at infinity all that are left."""
        wanted = len(self._todo) if elapsed == float("inf") else min(len(self._todo), int(elapsed / self._interval))
        chosen = self._todo[self.sent : wanted]
        self.sent = max(self.sent, wanted)
        return [(topic, build(now_ms)) for topic, build in chosen]


def describe(summary: dict[str, Any]) -> str:
    """The summary as one line of text."""
    oracle = summary["auc_oracle"]
    known = f", oracle AUC {oracle:.4f}" if oracle is not None else ""
    return (
        f"sent {summary['events']} events in {summary['seconds']:g} s ({summary['events_per_second']:g} per second): "
        f"{summary['impressions']} impressions of {summary['rows']} rows, {summary['actions']} actions, "
        f"{summary['bad_records']} bad records{known}"
    )


def to_json(summary: dict[str, Any]) -> str:
    return json.dumps(summary)
