"""Backfill: makes rows of stored events in units, each of which is complete or absent in the output.

A unit is one hour of Kafka records, by their time stamps, or one expansion of a file pattern. It is a bounded feed of
its own, with the graph of the live feed. Its folder is written under a temporary name, marked as complete, and then
renamed. A unit that is complete is not run again.
"""

import concurrent.futures
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from millrace.pipelines.feed.folder import mark_success
from millrace.pipelines.feed.launch import run_feed
from millrace.pipelines.feed.options import FeedOptions, FileSettings, KafkaSettings, RecordFiles
from millrace.pipelines.files.patterns import expand_pattern
from millrace.runtime.atomic_file import sync_folder
from millrace.runtime.child_process import end_with_parent
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import check_broker
from millrace.runtime.kafka_positions import resolve_start
from millrace.transforms.feed.join import DEFAULT_SKEW_MS
from millrace.transforms.feed.rows_folder import SUCCESS

__all__ = ["Backfill", "Unit", "file_units", "hour_units", "parse_hour", "run_backfill"]

_LOGGER = logging.getLogger(__name__)
_HOUR_FORMAT = "%Y%m%d%H"
_MAX_UNITS = 24 * 366 * 10  # ten years of hours: more is a mistake in --from or --to
_POLL_SECONDS = 0.2  # how soon a stop is noticed while units run in other processes


@dataclass(frozen=True)
class Unit:
    """One bounded feed; `name` is its folder inside the output folder."""

    name: str
    options: FeedOptions


@dataclass(frozen=True)
class Backfill:
    """A backfill.

    Args:
      units: bounded feeds, in the order in which they run.
      output: folder that holds the folders of all units.
      workers: units that run at the same time, each in a process of its own.
    """

    units: tuple[Unit, ...]
    output: Path
    workers: int = 1

    def __post_init__(self) -> None:
        if not self.units:
            raise UserError("--output-parquet", self.output, "nothing to do: no file matches", "check the patterns")
        if not 1 <= self.workers <= 256:
            raise UserError("--workers", self.workers, "out of range", "choose 1..256")

    @property
    def fingerprint(self) -> str:
        """A hash of features, labels and recipe, since rows of different ones may not share a folder."""
        options = self.units[0].options
        return hashlib.sha256(options.config.to_json().encode() + b"\0" + options.recipe).hexdigest()[:16]


def parse_hour(text: str, flag: str) -> datetime:
    """The UTC hour `YYYYMMDDHH`; UserError for other text."""
    try:
        if len(text) != 10:
            raise ValueError
        return datetime.strptime(text, _HOUR_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise UserError(flag, text, "not an hour", "write YYYYMMDDHH in UTC, such as 2026013105") from None


def hour_units(options: FeedOptions, first: datetime, end: datetime) -> Iterator[Unit]:
    """One unit per hour in [first, end): the impressions of that hour, and all actions that can join them.

    Args:
      options: a feed from Kafka; each unit replaces its `start` and `until`.
      first, end: hours, in UTC.

    Raises: UserError for an empty or too long range, an unreachable broker or a missing topic.
    """
    source = options.source
    if not isinstance(source, KafkaSettings):
        raise TypeError(f"source must be Kafka topics, got {source!r}")
    if not first < end:
        raise UserError("--to", end.strftime(_HOUR_FORMAT), "not after --from", "choose a later hour")
    if (end - first) // timedelta(hours=1) > _MAX_UNITS:
        raise UserError("--to", end.strftime(_HOUR_FORMAT), f"more than {_MAX_UNITS} hours", "choose fewer")
    check_broker(source.connection)
    reach_ms = options.config.window_ms + DEFAULT_SKEW_MS
    hour = first
    while hour < end:
        after = hour + timedelta(hours=1)
        begin_ms, end_ms = (int(each.timestamp()) * 1000 for each in (hour, after))
        start = {
            "impressions": _offsets(source, source.topics.impressions, begin_ms),
            "actions": _offsets(source, source.topics.actions, begin_ms - DEFAULT_SKEW_MS),
        }
        until = {
            "impressions": _offsets(source, source.topics.impressions, end_ms),
            "actions": _offsets(source, source.topics.actions, end_ms + reach_ms),
        }
        of_hour = replace(source, start=json.dumps(start), until=json.dumps(until))
        yield Unit(f"dt={hour:%Y%m%d}/hour={hour:%H}", replace(options, source=of_hour))
        hour = after


def _offsets(source: KafkaSettings, topic: str, time_ms: int) -> dict[str, int]:
    found = resolve_start(source.connection, topic, f"time:{time_ms}", source.group, "--from")
    return {str(partition): offset for partition, offset in found.items()}


def file_units(options: FeedOptions) -> Iterator[Unit]:
    """One unit per expansion of a file pattern; an expansion that matches no file gives none.

    The actions of a unit are those of its own expansion and of the next one, in which late actions may lie. Files are
    numbered over all units, so that no two rows have the same provenance.

    Args:
      options: a feed from event files, or from files of records.

    Raises: UserError for patterns of impressions and actions that expand to different numbers of patterns.
    """
    source, first_file = options.source, 0
    if isinstance(source, RecordFiles):
        for index, pattern in enumerate(expand_pattern(source.pattern, "--record-files")):
            if count := _count_files(pattern):
                of_pattern = replace(source, pattern=pattern, first_file=first_file)
                yield Unit(f"unit-{index:05d}", replace(options, source=of_pattern))
                first_file += count
        return
    if not isinstance(source, FileSettings) or not isinstance(source.actions, str):
        raise TypeError(f"source must be files, got {source!r}")
    impressions = expand_pattern(source.impressions, "--impression-files")
    actions = expand_pattern(source.actions, "--action-files")
    if len(impressions) != len(actions):
        problem = f"expands to {len(actions)} patterns, --impression-files to {len(impressions)}"
        raise UserError("--action-files", source.actions, problem, "use the same placeholders in both")
    for index, pattern in enumerate(impressions):
        if count := _count_files(pattern):
            files = FileSettings(pattern, tuple(actions[index : index + 2]), first_file)
            yield Unit(f"unit-{index:05d}", replace(options, source=files))
            first_file += count


def _count_files(pattern: str) -> int:
    return len(FileSystems.match([pattern])[0].metadata_list)


def run_backfill(
    backfill: Backfill, stop: threading.Event, on_unit: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, int]:
    """Runs the units that are not complete yet.

    Args:
      stop: set it to end after the units that run now; a unit of this process is given up.
      on_unit: called with (name, complete units, all units) after each unit.

    Returns: {counter: value}, summed over all complete units, those of earlier runs included.
    Raises:
      UserError: the output belongs to another backfill, or a setting is wrong.
      FeedFailedError: a unit failed; complete units stay.
    """
    _check_output(backfill)
    open_units = [unit for unit in backfill.units if not _done(backfill, unit)]
    done = len(backfill.units) - len(open_units)
    if done:
        _LOGGER.info("%d of %d units are complete already", done, len(backfill.units))
    for name in _run_all(backfill, open_units, stop):
        done += 1
        on_unit(name, done, len(backfill.units))
    totals: dict[str, int] = {}
    for unit in backfill.units:
        if _done(backfill, unit):
            for name, count in _summary(backfill.output / unit.name)["counters"].items():
                totals[name] = totals.get(name, 0) + count
    if done == len(backfill.units):
        summary = {"fingerprint": backfill.fingerprint, "units": len(backfill.units), "counters": totals}
        mark_success(backfill.output, summary)
    return totals


def _run_all(backfill: Backfill, units: list[Unit], stop: threading.Event) -> Iterator[str]:
    """Runs `units`; gives the name of each as it ends."""
    if backfill.workers == 1 or len(units) < 2:
        for unit in units:
            if stop.is_set() or not _run_unit(backfill, unit, stop):
                return
            yield unit.name
        return
    context = multiprocessing.get_context("spawn")  # Beam's and librdkafka's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(
        backfill.workers, context, initializer=end_with_parent, initargs=(os.getpid(),)
    ) as pool:
        waiting = {pool.submit(_run_apart, backfill, unit): unit for unit in units}
        try:
            while waiting and not stop.is_set():
                ended, _ = concurrent.futures.wait(
                    waiting, _POLL_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in ended:
                    unit = waiting.pop(future)
                    future.result()
                    yield unit.name
        finally:
            for future in waiting:
                future.cancel()


def _run_apart(backfill: Backfill, unit: Unit) -> None:
    """Runs a unit in a process of the pool, where `stop` cannot reach it: it ends, or is killed."""
    _run_unit(backfill, unit, threading.Event())


def _run_unit(backfill: Backfill, unit: Unit, stop: threading.Event) -> bool:
    """Writes the folder of a unit under a temporary name, then renames it; returns False when it was stopped."""
    pa.set_cpu_count(1)  # one core per worker: more workers use more cores
    final = backfill.output / unit.name
    unfinished = final.with_name(f".{final.name}.unfinished")
    for rest in (unfinished, final):  # of a run that was killed
        shutil.rmtree(rest, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    counters = run_feed(replace(unit.options, parquet=unfinished), stop)
    if stop.is_set():
        shutil.rmtree(unfinished, ignore_errors=True)
        return False
    mark_success(unfinished, {"fingerprint": backfill.fingerprint, "counters": counters})
    os.rename(unfinished, final)
    sync_folder(final.parent)
    return True


def _check_output(backfill: Backfill) -> None:
    for marker in sorted(backfill.output.rglob(SUCCESS)):
        found = _summary(marker.parent).get("fingerprint")
        if found != backfill.fingerprint:
            raise UserError(
                "--output-parquet",
                backfill.output,
                "holds rows of other features, labels or another recipe",
                "choose a new folder",
            )


def _done(backfill: Backfill, unit: Unit) -> bool:
    return (backfill.output / unit.name / SUCCESS).exists()


def _summary(folder: Path) -> dict:
    try:
        found = json.loads((folder / SUCCESS).read_text("utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
