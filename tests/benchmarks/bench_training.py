"""Training speed: rows per second by batch size, the way of rows into the queue, and how long saving holds training up.

python tests/benchmarks/bench_training.py [--json]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from millrace.examples.feed_ranking import FeedRanking
from millrace.ops.embedding_table import NOW
from millrace.training.publish.exporter import Exporter
from millrace.training.state.checkpoint import Checkpoints
from millrace.training.step.train_step import TrainStep, limit_threads, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.batcher import Batcher
from millrace.training.stream.layout import TrainLayout
from millrace.training.stream.position import Position
from millrace.training.stream.seen_rows import SeenRows
from millrace.transforms.batch import record_batch
from tests.fakes.train_blocks import ROWS_PER_RECORD, make_batch

_SECONDS = 2.0
_USERS = 20_000
TASK = FeedRanking()
Case = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    limit_threads()
    for case in cases():
        text = f"{case['case']:<44} {case['value']:>12,} {case['unit']}"
        print(json.dumps(case) if arguments.json else text, flush=True)


def cases() -> Iterator[Case]:
    for rows, micro in ((64, 0), (512, 64), (512, 0), (4096, 0)):
        yield from step_cases(rows, micro)
    yield from reader_cases()
    yield from saving_cases()


def step_cases(rows: int, micro: int) -> Iterator[Case]:
    """Enqueue and step of whole batches, in one thread."""
    step, queue = new_step(micro)
    batches = [make_batch(TASK, i * 5000, rows // ROWS_PER_RECORD, users=_USERS) for i in range(20)]
    learn(step, queue, batches[0])
    count, seconds = repeat(lambda i: learn(step, queue, batches[i % len(batches)]))
    name = f"train batch {rows}" + (f" in slices of {micro}" if micro else "")
    yield {"case": name, "value": round(count * rows / seconds), "unit": "rows/s"}
    yield {"case": f"{name}, step", "value": round(1000 * seconds / count, 3), "unit": "ms"}
    queue.close()


def reader_cases() -> Iterator[Case]:
    """Decode, check, drop repeats, cut into batches: what the thread of TrainTopicReader does."""
    layout = TrainLayout.of(TASK, audit=True)
    blocks = [record_batch.to_bytes(make_batch(TASK, i * 100, 100)) for i in range(200)]
    batcher = Batcher(layout, 512, SeenRows())

    def feed(i: int) -> None:
        batch = record_batch.from_bytes(blocks[i % len(blocks)])
        layout.check(batch)
        batcher.add(batch, 0, i + 1)
        while batcher.rows >= 512 or (batcher.pending and i % 4 == 3):
            ticket, rows = batcher.take()
            if ticket.rows:
                layout.arrays(rows)

    start = time.perf_counter()
    for i in range(len(blocks)):
        feed(i)
    rows = len(blocks) * 100 * ROWS_PER_RECORD
    yield {"case": "reader, blocks of 400", "value": round(rows / (time.perf_counter() - start)), "unit": "rows/s"}


def saving_cases() -> Iterator[Case]:
    """Training stands still for a cut; the rest happens beside it."""
    step, queue = new_step(0)
    for i in range(50):
        learn(step, queue, make_batch(TASK, i * 1000, 1000, users=_USERS))
    entries = sum(step.store.sizes().values())
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, exporter = Checkpoints(Path(folder), TASK.name, "bench"), Exporter(TASK, Path(folder))
        cut, seconds = timed(lambda: checkpoints.cut(step, Position(), 0))
        yield {"case": "checkpoint, cut", "value": round(1000 * seconds, 1), "unit": "ms", "entries": entries}
        _, seconds = timed(lambda: checkpoints.finish(cut))
        yield {"case": "checkpoint, beside training", "value": round(1000 * seconds, 1), "unit": "ms"}
        exporter.write(exporter.cut(step), step)
        export_cut, seconds = timed(lambda: exporter.cut(step))
        yield {"case": "export, cut", "value": round(1000 * seconds, 1), "unit": "ms", "entries": entries}
        _, seconds = timed(lambda: exporter.write(export_cut, step))
        yield {"case": "export, beside training", "value": round(1000 * seconds, 1), "unit": "ms"}
    queue.close()


def new_step(micro: int) -> tuple[TrainStep, BatchQueue]:
    queue = BatchQueue(TrainLayout.of(TASK, audit=True), "bench")
    store, audit = new_stores(TASK, queue.name, audit=True)
    return TrainStep(TASK, store, queue, audit, micro), queue


def learn(step: TrainStep, queue: BatchQueue, batch: pa.RecordBatch) -> None:
    queue.put(Ticket.of(batch, 1), batch)
    queue.next_ticket(0.0)
    step.step(NOW)


def repeat(work: Callable[[int], None]) -> tuple[int, float]:
    """(calls, seconds) of at least `_SECONDS`."""
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < _SECONDS:
        work(count)
        count += 1
    return count, elapsed


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


if __name__ == "__main__":
    main()
