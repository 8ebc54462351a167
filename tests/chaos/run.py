"""Strikes the processes of the loop while events flow, and counts what is trained.

python -m tests.chaos.run [--seeds 8] [--only prism|flink] [--seed N] [--scenario NAME] [--full]

Each scenario gets a broker of its own. It passes when every row that was sent is applied exactly once, no other one is,
and every bad record has its dead letter. --seeds 0 leaves the seeded scenarios out.
"""

import argparse
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from millrace.cli.common import tensorflow_import
from millrace.runtime.servers.dev_servers import KafkaServer
from tests.chaos.audit import Audit
from tests.chaos.feed_scenarios import FEED_SCENARIOS
from tests.chaos.scenario import Runner, Scenario, scenario_of
from tests.chaos.seeded import run_seeded

_STOP_SECONDS, _FULL_STOP_SECONDS = 20.0, 60.0


class Case(NamedTuple):
    """A scenario with its name, which is also that of its folder, and one line about it."""

    name: str
    about: str
    run: Callable[[KafkaServer, Path], Audit]


@dataclass(frozen=True)
class Result:
    """The outcome of a scenario; `problem` is "" when it passed."""

    case: Case
    audit: Audit | None
    seconds: float
    problem: str

    def line(self) -> str:
        audit = self.audit
        counts = ["-"] * 7
        if audit is not None:
            letters = f"{audit.dead_letters}/{audit.dead_letters_sent}"
            numbers = (audit.sent, audit.applied, audit.repeated, audit.lost, audit.doubled, audit.unknown)
            counts = [*map(str, numbers), letters]
        columns = _columns(self.case.name, *counts, f"{self.seconds:.0f} s")
        labels = f", {audit.mislabelled} early negatives" if audit and audit.mislabelled is not None else ""
        return f"{columns}  {self.problem or 'ok'}{labels}: {self.case.about}"


def _columns(name: str, *cells: str) -> str:
    return f"{name:<26}" + "  ".join(f"{cell:>8}" for cell in cells)


HEADER = _columns("scenario", "sent", "applied", "repeated", "lost", "doubled", "unknown", "letters", "time")


def seeded_case(scenario: Scenario) -> Case:
    return Case(scenario.name, scenario.describe(), lambda server, folder: run_seeded(scenario, server, folder))


def named_cases(stop_seconds: float, runners: tuple[Runner, ...]) -> Iterator[tuple[str, Case]]:
    """(name, case) of each scenario on each runner on which it makes sense."""
    for name, run in FEED_SCENARIOS.items():
        for runner in runners:

            def struck(server: KafkaServer, folder: Path, run=run, runner=runner) -> Audit:  # type: ignore[no-untyped-def]
                return run(runner, server, folder, stop_seconds)

            yield name, Case(f"{name}-{runner}", str(run.__doc__), struck)
    with tensorflow_import():  # which takes seconds, and a part of the scenarios needs it
        from tests.chaos.serving_scenarios import SERVING_SCENARIOS
        from tests.chaos.trainer_scenarios import TRAINER_SCENARIOS

    for name, run_trainer in (TRAINER_SCENARIOS | SERVING_SCENARIOS).items():

        def strike(server: KafkaServer, folder: Path, run=run_trainer) -> Audit:  # type: ignore[no-untyped-def]
            return run(server, folder, stop_seconds)

        yield name, Case(name, str(run_trainer.__doc__), strike)


def run_case(case: Case, folder: Path) -> Result:
    """Runs it in `folder`, which keeps the logs."""
    folder.mkdir(parents=True)
    began = time.monotonic()
    server = KafkaServer(folder / "kafka", lambda _: None)
    audit, problem = None, ""
    try:
        server.start()
        audit = case.run(server, folder)
        problem = "" if audit.clean else "FAILED"
    except Exception as error:  # the others must still run
        (folder / "error.log").write_text(traceback.format_exc(), "utf-8")
        lines = [*str(error).splitlines(), type(error).__name__]  # the last line of a log says what it ended with
        problem = f"FAILED: {lines[0][:120]} ... {lines[-2][-200:] if lines[2:] else lines[-1]}"
    finally:
        server.stop()
    return Result(case, audit, time.monotonic() - began, problem)


def _chosen(arguments: argparse.Namespace) -> Iterator[Case]:
    runners: tuple[Runner, ...] = (arguments.only,) if arguments.only else ("prism", "flink")
    if arguments.scenario is None or arguments.seed is not None:
        seeds = range(arguments.seeds // len(runners)) if arguments.seed is None else [arguments.seed]
        yield from (seeded_case(scenario_of(runner, seed)) for seed in seeds for runner in runners)
    if arguments.seed is None:
        named = list(named_cases(_FULL_STOP_SECONDS if arguments.full else _STOP_SECONDS, runners))
        if arguments.scenario not in {None, *(name for name, _ in named)}:
            raise SystemExit(f"no scenario {arguments.scenario}: there are {', '.join(dict(named))}")
        yield from (case for name, case in named if arguments.scenario in (None, name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="seeded scenarios, over both runners (default: 8)")
    parser.add_argument("--only", choices=("prism", "flink"))
    parser.add_argument("--seed", type=int, help="this seeded one only")
    parser.add_argument("--scenario", help="this named one only")
    parser.add_argument("--full", action="store_true", help="processes stand still for 60 s instead of 20 s")
    parser.add_argument("--keep", type=Path, help="folder for the logs; default: a temporary one that is removed")
    arguments = parser.parse_args()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # a broker that is away on purpose is no news
    print(HEADER, flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        for case in _chosen(arguments):
            result = run_case(case, (arguments.keep or Path(temporary)) / case.name)
            failed += bool(result.problem)
            print(result.line(), flush=True)
    print("all passed" if not failed else f"{failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
