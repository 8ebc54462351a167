"""Events a second of a backfill of stored events, with one worker and with two, start of the processes included.

python tests/benchmarks/bench_backfill.py [--json] [--units 8] [--impressions 200000]
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from millrace.examples.feed_ranking import FeedRanking
from millrace.pipelines.feed.backfill import Backfill, file_units, run_backfill
from millrace.pipelines.feed.options import FeedOptions, FileSettings
from millrace.pipelines.traffic.producer import impression_values
from millrace.pipelines.traffic.source import GeneratedSource
from millrace.pipelines.traffic.world import EventWorld, WorldConfig

_NOW = 1_764_000_000_000
_DRAW = 20_000
_CLICKED_EVERY = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--impressions", type=int, default=200_000, help="a unit")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        events = sum(_write_unit(folder, unit, arguments.impressions) for unit in range(arguments.units))
        for case in _cases(folder, arguments.units, events):
            print(json.dumps(case) if arguments.json else "  ".join(f"{k}={v}" for k, v in case.items()), flush=True)


def _cases(folder: Path, units: int, events: int) -> Iterator[dict[str, object]]:
    pattern = f"{{INT(0, {units - 1})}}.jsonl"
    source = FileSettings(str(folder / f"impressions-{pattern}"), str(folder / f"actions-{pattern}"))
    options = FeedOptions(FeedRanking().feed_config(), source, folder / "rows", "direct")
    one = 0.0
    for workers in (1, 2):
        backfill = Backfill(tuple(file_units(options)), folder / f"rows-{workers}", workers)
        began = time.perf_counter()
        run_backfill(backfill, threading.Event())
        seconds = time.perf_counter() - began
        one = one or seconds
        name = f"backfill, {workers} worker{'s' * (workers > 1)}"
        yield {"case": name, "value": round(events / seconds), "unit": "events/s", "ratio": round(one / seconds, 2)}


def _write_unit(folder: Path, unit: int, impressions: int) -> int:
    """Writes the files of one unit; returns its number of events."""
    source, actions = GeneratedSource(EventWorld(WorldConfig(seed=unit))), 0
    form = '{"schema_version":1,"request_id":"%s","item_id":%d,"action":"click","timestamp_ms":%d}\n'
    with (
        open(folder / f"impressions-{unit}.jsonl", "w") as shown,
        open(folder / f"actions-{unit}.jsonl", "w") as acted,
    ):
        for first in range(0, impressions, _DRAW):
            names = [f"r-{unit}-{number}" for number in range(first, first + _DRAW)]
            values = impression_values(source.draw(_DRAW, _NOW), names, _NOW)
            shown.write("\n".join(values) + "\n")
            for name, value in zip(names[::_CLICKED_EVERY], values[::_CLICKED_EVERY], strict=True):
                acted.write(form % (name, json.loads(value)["item_ids"][0], _NOW + 1000))
                actions += 1
    return impressions + actions


if __name__ == "__main__":
    main()
