"""The same feed written in the usual Beam way: one element per record, `json.loads`, state and timer per key.

python -m tests.benchmarks.peer_feed --kafka HOST:PORT --prefix P --runner prism|flink|direct [--until-end]

It joins impressions with clicks by request id within the window and writes one JSON object per row to the train topic.
Its records come out of the same reader as those of `millrace feed`, which spares it a slower one.
"""

import argparse
import json
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from millrace.pipelines.feed import runners
from millrace.pipelines.kafka.sink import KafkaRecord, WriteToKafka
from millrace.pipelines.kafka.source import ReadFromKafka
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topics import Topics

WINDOW_SECONDS = 2.0


class _Parse(beam.DoFn):
    def process(self, block: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        for value in block.column("value").to_pylist():
            event = json.loads(value)
            yield event["request_id"], event


class _JoinInState(beam.DoFn):
    _EVENTS = BagStateSpec("events", coders.StrUtf8Coder())
    _TIMER = TimerSpec("close", TimeDomain.REAL_TIME)

    def process(
        self,
        element: tuple[str, dict[str, Any]],
        events: Any = beam.DoFn.StateParam(_EVENTS),  # noqa: B008
        timer: Any = beam.DoFn.TimerParam(_TIMER),  # noqa: B008
    ) -> None:
        events.add(json.dumps(element[1]))
        if "item_ids" in element[1]:
            timer.set(Timestamp.now() + WINDOW_SECONDS)

    @on_timer(_TIMER)
    def close(self, events: Any = beam.DoFn.StateParam(_EVENTS)) -> Iterator[dict[str, Any]]:  # noqa: B008
        found = [json.loads(event) for event in events.read()]
        events.clear()
        yield from _rows(found)


def _rows(events: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    events = list(events)
    clicks = {event["item_id"]: event["timestamp_ms"] for event in events if "item_id" in event}
    for impression in (event for event in events if "item_ids" in event):
        for item in impression["item_ids"]:
            label = float(item in clicks)
            yield {
                "user": impression["user_id"],
                "item": item,
                "device": impression["context"]["device"],
                "hour": impression["context"]["hour"],
                "label": label,
                "event_time_ms": clicks.get(item, impression["timestamp_ms"]),
                "due_ms": impression["timestamp_ms"] + round(1000 * WINDOW_SECONDS),
            }


def build(pipeline: beam.Pipeline, kafka: KafkaConnection, topics: Topics, bounded: bool, limit: int | None) -> None:
    """Adds the feed to `pipeline`; bounded, it reads at most `limit` offsets of each partition."""
    read = ReadFromKafka.of_topics(
        kafka, [topics.impressions, topics.actions], "earliest", _until(limit) if bounded else None
    )
    parsed = pipeline | read | "Parse" >> beam.ParDo(_Parse()).with_output_types(tuple[str, dict[str, Any]])
    if bounded:
        rows = parsed | beam.GroupByKey() | "Join" >> beam.FlatMap(lambda group: _rows(group[1]))
    else:
        rows = parsed | "Join" >> beam.ParDo(_JoinInState()).with_output_types(dict[str, Any])
    records = rows | "Encode" >> beam.Map(lambda row: KafkaRecord(json.dumps(row).encode(), str(row["user"]).encode()))
    _ = records | WriteToKafka(kafka, topics.train("peer"))


def _until(limit: int | None) -> str:
    return "end" if limit is None else json.dumps({str(partition): limit for partition in range(4)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--runner", required=True, choices=("prism", "flink", "direct"))
    parser.add_argument("--until-end", action="store_true")
    parser.add_argument("--limit", type=int, help="offsets of each partition, with --until-end")
    parser.add_argument("--ready-file", type=Path)
    arguments = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with (
        tempfile.TemporaryDirectory() as folder,
        runners.started(arguments.runner, not arguments.until_end, (), Path(folder), lambda _: None) as flags,
    ):
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        kafka, topics = KafkaConnection(arguments.kafka), Topics(arguments.prefix)
        build(pipeline, kafka, topics, arguments.until_end, arguments.limit)
        result = pipeline.run()
        if arguments.ready_file:
            arguments.ready_file.write_text("{}")
        if arguments.until_end:
            result.wait_until_finish()
        else:
            stop.wait()
            result.cancel()


if __name__ == "__main__":
    main()
