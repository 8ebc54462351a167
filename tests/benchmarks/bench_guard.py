"""How soon the guard finds poisoned rows, and whether it takes honest traffic for poison.

python tests/benchmarks/bench_guard.py --data ml-latest-small [--seeds 10] [--first-seed 0] [--only ramp] [--json]

Poison: a model is trained up to a place that the seed chooses and then on 3,072 poisoned rows, three seconds at 1,000
rows/s. Honest traffic: positives come at once and negatives a window later, while the rate changes, the trainer or the
feed comes back and catches up, or traffic ends. Both with MovieLens and with the world of `millrace events generate`.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.examples.feed_ranking import FeedRanking
from millrace.examples.movies import MovieRanking
from millrace.ops.embedding_table import EmbeddingStore
from millrace.pipelines.traffic.world import DEVICES, EventWorld, WorldConfig
from millrace.training.movielens import read_movielens
from millrace.training.online.guard import Judge
from millrace.training.step.train_step import TrainStep, limit_threads, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.layout import TrainLayout
from millrace.training.task import Task
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.record_batch import EVENT_TIME_MS, LABEL, WEIGHT
from millrace.transforms.feed.train_rows import row_fids

MICRO_BATCH, LARGEST_BATCH = 64, 512
BATCH_MS = 50
CLEAN_ROWS, POISONED_ROWS = 24_576, 3_072
KINDS = ("labels flipped", "ids shuffled", "weights times 1,000")
PARTITIONS = 4
WORLD_RATE = 1_000.0


class Arrivals(NamedTuple):
    """Rows in the order in which they are learned.

    Attributes:
      rows: int64 [n], index of each; -1 restarts the trainer.
      event_ms, wall_ms: int64 [n].
    """

    rows: np.ndarray
    event_ms: np.ndarray
    wall_ms: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MovieLens")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    limit_threads()
    movies = read_movielens(arguments.data, MovieRanking())
    for name in (*HONEST, *KINDS):
        if arguments.only not in name:
            continue
        for world in ("MovieLens", "generated"):
            task: Task = MovieRanking() if world == "MovieLens" else FeedRanking()
            found, reasons = [], []
            for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
                rng = np.random.default_rng(seed)
                data = some(movies, rng) if world == "MovieLens" else generated(task, seed)
                alarm, after = honest(task, data, name) if name in HONEST else poison(task, data, name, rng)
                if alarm:
                    found.append(after)
                    reasons.append(alarm)
            facts = {"case": name, "data": world, "seeds": arguments.seeds, "alarms": len(found), "rows": sorted(found)}
            said = sorted(set(reasons)) if name in HONEST else []
            text = f"{name}, {world}: {len(found)} of {arguments.seeds} alarms, after {sorted(found)} rows {said or ''}"
            print(json.dumps(facts) if arguments.json else text, flush=True)


def some(movies: pa.RecordBatch, rng: np.random.Generator) -> pa.RecordBatch:
    return movies.slice(int(rng.integers(0, 30_000)))


def generated(task: Task, seed: int, rows: int = 70_000) -> pa.RecordBatch:
    """Rows of the world that `millrace demo` shows, drifting as at 1,000 rows/s."""
    world, draws = EventWorld(WorldConfig(seed=seed)), []
    shown = world.config.items_per_impression
    for _ in range(rows // 300):
        draws.append(world.show(100, 12))
        world.advance(300 / WORLD_RATE)
    users, devices, hours = (
        np.repeat(np.concatenate([getattr(draw, name) for draw in draws]), shown)
        for name in ("user_ids", "devices", "hours")
    )
    items, clicked = (
        np.concatenate([getattr(draw, name) for draw in draws]).reshape(-1) for name in ("item_ids", "clicked")
    )
    raw = {"user_id": users, "item_id": items, "context.device": pa.array(np.array(DEVICES)[devices]),
           "context.hour": hours}  # fmt: skip
    count, config = len(users), task.feed_config()
    fids = row_fids(pa.RecordBatch.from_pydict(raw), config.features)
    zeros = np.zeros(count, np.int64)
    flat = dict.fromkeys((field.name for field in record_batch.METADATA_FIELDS), zeros) | {
        LABEL: list(clicked.astype(np.float32)[:, np.newaxis]),
        WEIGHT: np.ones(count),
        record_batch.SAMPLE_RATE: np.ones(count),
        record_batch.REQ_ID: [""] * count,
        record_batch.ACTIONS: [[]] * count,
    }
    arrays = [*fids.columns, *(pa.array(flat[f.name], f.type) for f in record_batch.METADATA_FIELDS)]
    return pa.RecordBatch.from_arrays(arrays, schema=config.train_schema())


def delayed(event_ms: np.ndarray, labels: np.ndarray, window_seconds: float) -> Arrivals:
    """Positives come at once, negatives after the window; rows without a time are left out, times without a row too."""
    count = min(len(event_ms), len(labels))
    event_ms, labels = event_ms[:count], labels[:count]
    ready = event_ms + np.where(labels > 0.5, 50, 1_000 * window_seconds + 100).astype(np.int64)
    order = np.argsort(ready, kind="stable")
    return Arrivals(order, event_ms[order], ready[order])


def at_rates(rates: list[tuple[float, float]]) -> np.ndarray:
    """Event times, int64 ms, of rows that come at (rows per second, seconds) one after the other."""
    times, start = [], 1_000_000_000.0
    for rate, seconds in rates:
        times.append(start + np.arange(int(rate * seconds)) / max(rate, 1e-9) * 1_000)
        start += seconds * 1_000
    return np.concatenate(times).astype(np.int64)


def ramp(labels: np.ndarray, window: float) -> Arrivals:
    base = 160.0  # so slow that calibration is judged too: it needs some 150 seconds that are complete
    return delayed(at_rates([(base, 260), (10 * base, 8), (base, 5), (0, 2 * window), (base, 30)]), labels, window)


def end(labels: np.ndarray) -> Arrivals:
    return delayed(at_rates([(200.0, 280)]), labels, 60)


def restart(labels: np.ndarray) -> Arrivals:
    """The trainer is killed after 190 s and back after 20: it reads what has gathered partition by partition."""
    rows, event, wall = delayed(at_rates([(250.0, 240)]), labels, 5)
    start = wall.min()
    killed, back = start + 190_000, start + 210_000
    partition = rows // 3 % PARTITIONS
    is_backlog = (wall >= killed) & (wall < back)
    order = np.lexsort((wall, np.where(is_backlog, partition, PARTITIONS), np.where(wall < killed, 0, 1)))
    order = np.concatenate([order[wall[order] < killed], order[wall[order] >= killed]])
    rows, event, wall = rows[order], event[order], wall[order]
    first = int((wall < killed).sum())
    backlog = int(is_backlog.sum())
    # It learns 20,000 rows/s.
    wall[first : first + backlog] = back + np.arange(backlog) // 20
    wall = np.maximum.accumulate(wall)
    return Arrivals(np.insert(rows, first, -1), np.insert(event, first, 0), np.insert(wall, first, back))


def catch_up(labels: np.ndarray) -> Arrivals:
    """After live traffic the feed goes on with a day that it has missed, at 1,000 rows/s."""
    live = delayed(at_rates([(160.0, 260)]), labels, 60)
    begun, rows = len(live.rows), 18_000
    event = live.event_ms.max() + np.sort(np.random.default_rng(rows).integers(0, 86_400_000, rows))
    day = delayed(event, labels[begun:], 60)
    # Source partitions are read in turns of 500 records: what one has is ahead of the others.
    turn = np.arange(rows) // (500 * PARTITIONS)
    order = np.lexsort((np.arange(rows), day.rows // 3 % PARTITIONS, turn))
    wall = live.wall_ms.max() + np.arange(rows)
    return Arrivals(
        np.concatenate([live.rows, begun + day.rows[order]]), np.concatenate([live.event_ms, day.event_ms[order]]),
        np.concatenate([live.wall_ms, wall]),
    )  # fmt: skip


HONEST = {
    "steady, window of 5 s": lambda labels: delayed(at_rates([(1_000.0, 65)]), labels, 5),
    "ramp, window of 5 s": lambda labels: ramp(labels, 5),
    "ramp, window of 60 s": lambda labels: ramp(labels, 60),
    "end, window of 60 s": end,
    "restart with a backlog": restart,
    "catching up of a day": catch_up,
}


def honest(task: Task, data: pa.RecordBatch, case: str) -> tuple[str, int]:
    return judged(task, data, HONEST[case](np.asarray(data.column(LABEL).flatten())))


def poison(task: Task, data: pa.RecordBatch, kind: str, rng: np.random.Generator) -> tuple[str, int]:
    start = int(rng.integers(10_000, CLEAN_ROWS))
    bad = poisoned(data.slice(start, POISONED_ROWS), kind, rng, task)
    count = start + POISONED_ROWS
    times = np.arange(count)
    rows = pa.concat_tables([pa.table(data.slice(0, start)), pa.table(bad)]).combine_chunks().to_batches()[0]
    alarm, after = judged(task, rows, Arrivals(times, times, times))
    return (alarm, after - start) if after > start else ("", 0)


def poisoned(rows: pa.RecordBatch, kind: str, rng: np.random.Generator, task: Task) -> pa.RecordBatch:
    """The rows with wrong labels, ids or weights."""
    if kind == "labels flipped":
        flipped = 1.0 - np.asarray(rows.column(LABEL).flatten())
        return replaced(rows, LABEL, pa.array(flipped[:, np.newaxis].tolist(), rows.schema.field(LABEL).type))
    if kind == "weights times 1,000":
        return replaced(rows, WEIGHT, pa.array(np.full(rows.num_rows, 1000.0, np.float32)))
    for name in TrainLayout.of(task).fid_columns:
        rows = replaced(rows, name, rows.column(name).take(pa.array(rng.permutation(rows.num_rows))))
    return rows


def replaced(rows: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    return rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)


def judged(task: Task, data: pa.RecordBatch, arrivals: Arrivals) -> tuple[str, int]:
    """Trains on rows as they arrive: the alarm, or "", and after how many rows."""
    batches = BatchQueue(TrainLayout.of(task), "bench-guard")
    store, _ = new_stores(task, batches.name, audit=False)
    heads = tuple(head.name for head in task.heads)
    step, judge = TrainStep(task, store, batches, micro_batch=MICRO_BATCH), Judge(task.guard, heads)
    learned = 0
    for part in parts(arrivals):
        now_ms = int(arrivals.wall_ms[part.stop - 1])
        if arrivals.rows[part.start] < 0:
            past = json.loads(json.dumps(judge.past()))
            judge = Judge(task.guard, heads)
            judge.remember(past, now_ms, {})
            continue
        rows = data.take(pa.array(arrivals.rows[part]))
        rows = replaced(rows, EVENT_TIME_MS, pa.array(arrivals.event_ms[part]))
        ticket = Ticket.of(rows, len(heads))
        batches.put(ticket, rows)
        batches.next_ticket(0.0)
        logits, finite, rms = (tensor.numpy() for tensor in step.step(1))
        judge.add(ticket.labels, logits, ticket.sample_rates, ticket.event_times_ms, finite, rms, now_ms, {})
        learned += rows.num_rows
        if judge.alarm is not None:
            break
    batches.close()
    EmbeddingStore.release(store.shared_name)
    return ("", 0) if judge.alarm is None else (judge.alarm.reason, learned)


def parts(arrivals: Arrivals) -> Iterator[slice]:
    """What arrived within 50 ms, as far as it fits into a batch."""
    bounds = np.flatnonzero(np.diff(arrivals.wall_ms // BATCH_MS, prepend=-1) | (arrivals.rows < 0))
    bounds = np.unique([*bounds, *(np.flatnonzero(arrivals.rows < 0) + 1), len(arrivals.rows)])
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        for first in range(start, stop, LARGEST_BATCH):
            yield slice(first, min(first + LARGEST_BATCH, stop))


if __name__ == "__main__":
    main()
