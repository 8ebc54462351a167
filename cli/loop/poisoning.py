"""Rows with wrong labels reach the train topic; the trainer's guard must stop what it publishes, and go on when told.

The labels are flipped: what a mistake in a rule of labels does, and what the guard finds surest, as each row then
contradicts what the model has learned. They come in one block; training goes on with all that came after it.
"""

import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from millrace.cli.loop import figures
from millrace.cli.loop.patience import StalledError
from millrace.cli.loop.scene import Scene
from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.kafka_client import KafkaConnection, flush_or_raise, make_producer, watermarks
from millrace.runtime.topic_range import TopicRange, read_messages, resolve_range
from millrace.training.state.guard_file import GuardState, read_guard_state
from millrace.training.task.task import load_task
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import audit_fid
from millrace.transforms.batch.provenance import set_provenance, source_number, source_partition

_PARTITION = 63  # of a source of its own; the topics of a run have 4 partitions, so that no audit fid is a sent row's
_NEWEST_BLOCKS = 200  # of each partition, from which the rows are taken
_GAPS = 6  # two are learned before, one is poisoned, one passed over, one judged after, one is to spare
_QUIET_SECONDS = 5.0  # so long nobody resumes: five deltas would have come


def poison(scene: Scene) -> dict[str, object]:
    """Sends rows with flipped labels, waits for the alarm, resumes, and waits until servers follow again.

    Returns: what the summary tells. Seconds count from the clock of the broker and of the trainer's own event.
    """
    guard = load_task(scene.scenario.task).guard
    given, least = scene.scenario.rows, 2 * guard.least_rows + _GAPS * guard.gap_rows
    if given is not None and given < least:
        return {"left_out": f"{given} rows are too few: the guard needs {least} before and after"}
    rows_needed, log = 2 * (guard.least_rows + guard.gap_rows), scene.processes["trainer"].log_path
    scene.wait(
        lambda: figures.rows_applied(scene.model_dir) >= rows_needed,
        f"{rows_needed} rows, which the guard judges by", "a higher --rate sends them sooner",
    )  # fmt: skip
    scene.pause_probes()
    failed, deltas = scene.counter.failed, watermarks(scene.kafka, scene.topics.deltas(scene.scenario.model))
    topic = scene.topics.train(scene.scenario.model)
    block = poisoned_block(_newest_rows(scene.kafka, topic, guard.gap_rows))
    scene.mark("poison", f"{block.num_rows} wrong labels")
    sent_ms = _send(scene.kafka, topic, block)
    scene.wait(lambda: _state(scene) is not None, "the guard's alarm", f"{log} says how far it has read")
    state = _state(scene)
    assert state is not None
    scene.mark("alarm", "guard: alarm")
    scene.wait(lambda: _alarm_ms(scene) > 0, "the hold that the guard announces", f"{log} says why it is not sent")
    alarm_ms = _alarm_ms(scene)
    scene.wait(lambda: _is_held(scene), "the hold at the server", f"{scene.folder / 'agent.log'} says why it waits")
    scene.stay(_QUIET_SECONDS)
    health, served = _health(scene), scene.served_version()
    late_deltas = _deltas_since(scene, deltas, alarm_ms)
    resumed = time.monotonic()
    scene.mark("resume", "--resume-from-good")
    scene.processes.resume_trainer(sent_ms + 1)
    going_on = _state(scene)  # says which blocks are passed over, until a checkpoint has them behind
    if going_on is None:
        raise StalledError(f"the alarm was gone as soon as the trainer was back; {log} says why")
    scene.passed_over = passed_over_fids(scene.kafka, topic, going_on)
    scene.wait(
        lambda: _follows_again(scene, served),
        "the end of the guard's hold",
        f"{log} says how it judges; more events help",
    )
    scene.mark("released", "published again")
    back_ms = time.time_ns() // 1_000_000
    scene.prober.go_on()
    return {
        "poisoned_rows": block.num_rows,
        "alarm_after_s": round((alarm_ms - sent_ms) / 1000, 2),
        "reason": state.reason,
        "healthz": health,
        "held_at": served,
        "deltas_after_alarm": late_deltas,
        "failed_requests": scene.counter.failed - failed,
        "back_after_s": round((back_ms - alarm_ms) / 1000, 2),
        "back_after_resume_s": round(time.monotonic() - resumed, 2),
    }


def poisoned_block(rows: pa.RecordBatch) -> pa.RecordBatch:
    """`rows` with the opposite labels, as rows of a source of their own, as many as one block holds."""
    rows = rows.replace_schema_metadata(None)  # floors of a block belong to its own rows
    labels = rows.column(record_batch.LABEL)
    flat = labels.flatten().to_numpy(zero_copy_only=False)
    flipped = np.where(record_batch.is_valid_label(flat), 1 - flat, flat).astype(np.float32)
    lengths = labels.value_lengths().to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    field = rows.schema.field(record_batch.LABEL)
    rows = record_batch.with_column(rows, field, pa.ListArray.from_arrays(offsets, pa.array(flipped), type=field.type))
    count = rows.num_rows
    numbers = np.arange(count)
    source = source_partition(source_number("demo", "poison"), _PARTITION)
    rows = set_provenance(rows, np.full(count, source), numbers, np.zeros(count, np.int64))
    if record_batch.column_of(rows, record_batch.AUDIT) is not None:
        field = rows.schema.field(record_batch.AUDIT)
        fids = pa.array(audit_fid(_PARTITION, numbers, np.zeros(count, np.int64)))
        ones = pa.array(np.arange(count + 1, dtype=np.int32))
        rows = record_batch.with_column(rows, field, pa.ListArray.from_arrays(ones, fids, type=field.type))
    return record_batch.split_to_bytes(rows)[0][0]


def passed_over_fids(kafka: KafkaConnection, topic: str, state: GuardState) -> np.ndarray:
    """int64 [rows]: audit fids of the blocks that are passed over after this alarm, without the poisoned rows."""
    offsets = {partition: (state.suspect_offsets.get(partition, 0), end) for partition, end in state.offsets.items()}
    audits = [block.column(record_batch.AUDIT).flatten() for block in _blocks(TopicRange(kafka, topic, offsets))]
    fids = np.concatenate([np.zeros(0, np.int64), *(audit.to_numpy(zero_copy_only=False) for audit in audits)])
    numbers = np.arange(1 << 16)
    return fids[~np.isin(fids, audit_fid(_PARTITION, numbers, np.zeros_like(numbers)))]


def _newest_rows(kafka: KafkaConnection, topic: str, count: int) -> pa.RecordBatch:
    ends = watermarks(kafka, topic)
    offsets = {each: (max(first, end - _NEWEST_BLOCKS), end) for each, (first, end) in ends.items()}
    blocks = [block for block in _blocks(TopicRange(kafka, topic, offsets)) if block.num_rows]
    rows = record_batch.concat([block.replace_schema_metadata(None) for block in blocks])
    return rows.slice(max(0, rows.num_rows - count))


def _blocks(wanted: TopicRange) -> Iterator[pa.RecordBatch]:
    for messages in read_messages(wanted):
        for message in messages:
            yield record_batch.from_bytes(message.value())


def _send(kafka: KafkaConnection, topic: str, block: pa.RecordBatch) -> int:
    """Writes the block; returns when, Unix milliseconds by the record itself."""
    times: list[int] = []
    producer = make_producer(kafka)

    def delivered(_: object, message) -> None:  # type: ignore[no-untyped-def]
        times.append(message.timestamp()[1])

    producer.produce(topic, record_batch.to_bytes(block), partition=0, on_delivery=delivered)
    flush_or_raise(producer)
    return times[0]


def _state(scene: Scene) -> GuardState | None:
    return read_guard_state(scene.model_dir)


def _alarm_ms(scene: Scene) -> int:
    """When the guard's hold was announced, Unix milliseconds; 0 before."""
    from millrace.serving.agent.model_events import parse_event

    newest = 0
    for messages in read_messages(resolve_range(scene.kafka, scene.topics.model_events)):
        for message in messages:
            event = parse_event(message.value() or b"")
            if event.kind == ModelEvent.ROLLBACK and event.held_by == "guard":
                newest = int(event.created_at_ms)
    return newest


def _is_held(scene: Scene) -> bool:
    return scene.processes.metrics("agent").get("millrace_agent_is_held", 0) > 0


def _health(scene: Scene) -> str:
    address = scene.processes["trainer"].ready["metrics"]
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=30.0) as response:
            return f"{response.status} {response.read().decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"


def _deltas_since(scene: Scene, since: dict[int, tuple[int, int]], alarm_ms: int) -> int:
    """Deltas that were made after the alarm; `since` are the watermarks from before it."""
    topic = scene.topics.deltas(scene.scenario.model)
    ends = watermarks(scene.kafka, topic)
    offsets = {partition: (since[partition][1], end) for partition, (_, end) in ends.items()}
    return sum(
        ModelDelta.FromString(message.value()).created_at_ms > alarm_ms
        for messages in read_messages(TopicRange(scene.kafka, topic, offsets))
        for message in messages
    )


def _follows_again(scene: Scene, held_at: int) -> bool:
    """Raises StalledError when the guard objects again."""
    state = _state(scene)
    if state is not None and not state.resumed:
        raise StalledError(
            f"the guard raised a second alarm after --resume-from-good: {state.reason}; a report of the rows after the "
            f"first one is in {scene.processes['trainer'].log_path}"
        )
    return not _is_held(scene) and scene.served_version() > held_at
