"""Sends events at a rate that `millrace events` does not reach, from one thread.

python -m tests.benchmarks.feed_load --kafka HOST:PORT --prefix P --rate N [--seconds S | --events N]

Two thirds are impressions of four items, one third clicks on every second impression, half a second after it.
"""

import argparse
import json
import time
from collections import deque

from millrace.runtime.kafka_client import KafkaConnection, flush_or_raise, make_producer
from millrace.runtime.topics import Topics

ITEMS = 4
PARTITIONS = 4
_TICK_SECONDS = 0.02
_ACTION_DELAY_SECONDS = 0.5
_USERS = 20_000
_IMPRESSION = (
    '{"schema_version":1,"request_id":"%s","user_id":%d,"item_ids":[%d,%d,%d,%d],"timestamp_ms":%d,'
    '"context":{"device":"phone","hour":13}}'
)
_ACTION = '{"schema_version":1,"request_id":"%s","item_id":%d,"action":"click","timestamp_ms":%d}'


class Load:
    """Makes and sends events."""

    def __init__(self, kafka: KafkaConnection, topics: Topics) -> None:
        self._topics, self._run = topics, f"{time.time_ns():x}"
        self._producer = make_producer(kafka, linger_ms=10, queue_buffering_max_messages=1_000_000)
        self._impressions = 0
        self._clicks: deque[tuple[float, int, int]] = deque()  # (when, first impression, count)
        self.events = 0

    def send_for(self, rate: float, seconds: float) -> float:
        """Sends `rate` events per second; returns the rate that was reached."""
        before, began = self.events, time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            self.send(int(rate * elapsed) - (self.events - before))
            self._producer.poll(0)
            time.sleep(max(0.0, _TICK_SECONDS - (time.monotonic() - began - elapsed)))
        return (self.events - before) / (time.monotonic() - began)

    def send(self, count: int) -> None:
        """Sends `count` events: the clicks that are due, and impressions."""
        now = time.monotonic()
        while self._clicks and self._clicks[0][0] <= now:
            _, first, impressions = self._clicks.popleft()
            self._send_clicks(range(first + first % 2, first + impressions, 2))
            count -= impressions // 2
        if count > 0:
            self._clicks.append((now + _ACTION_DELAY_SECONDS, self._impressions, count))
            self._send_impressions(range(self._impressions, self._impressions + count))
            self._impressions += count

    def end(self) -> None:
        """Sends the clicks that are left, and waits for the brokers."""
        while self._clicks:
            _, first, impressions = self._clicks.popleft()
            self._send_clicks(range(first + first % 2, first + impressions, 2))
        flush_or_raise(self._producer, 60.0)

    def _send_impressions(self, numbers: range) -> None:
        now_ms = time.time_ns() // 1_000_000
        values = []
        for number in numbers:
            item = number % 1000 * 10
            names = (f"{self._run}-{number}", number % _USERS, item, item + 1, item + 2, item + 3, now_ms)
            values.append({"value": _IMPRESSION % names})
        self._produce(self._topics.impressions, values)

    def _send_clicks(self, numbers: range) -> None:
        now_ms = time.time_ns() // 1_000_000
        values = [{"value": _ACTION % (f"{self._run}-{n}", n % 1000 * 10 + n // 2 % ITEMS, now_ms)} for n in numbers]
        self._produce(self._topics.actions, values)

    def _produce(self, topic: str, messages: list[dict[str, str]]) -> None:
        self.events += len(messages)
        while messages:
            try:
                queued = self._producer.produce_batch(topic, messages)
            except BufferError:
                queued = 0
            messages = messages[queued:]
            if messages:
                self._producer.poll(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    load = Load(KafkaConnection(arguments.kafka), Topics(arguments.prefix))
    reached = load.send_for(arguments.rate, arguments.seconds)
    load.end()
    print(json.dumps({"events": load.events, "events_per_second": round(reached)}))


if __name__ == "__main__":
    main()
