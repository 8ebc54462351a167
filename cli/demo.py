"""`millrace demo`: the whole loop on this machine, measured."""

import argparse
import signal
import sys
from pathlib import Path

from millrace.cli.common import RECIPES, add_command
from millrace.cli.loop.options import PARTS
from millrace.runtime.errors import UserError

_RATE = 1300.0  # events per second of the generated world: more than 1,000 even in a slow second
_SECONDS = 100.0


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        subparsers,
        "demo",
        "Runs Kafka, ZooKeeper, a feed, a trainer, a model server and its agent on this machine, and reports what "
        "happened: the trainer is killed; an operator rolls back and releases; rows with wrong labels come, the "
        "trainer's guard stops publishing, and training goes on from before them. Takes under three minutes, and "
        "longer on a busy machine, which it waits for as long as anything moves. It stops all that it started. The "
        "first run fetches the servers and builds the runner before. `millrace events ratings my-ratings` writes "
        "ratings for --data.",
        f"millrace demo\nmillrace demo --runner flink\nmillrace demo --recipe {RECIPES}/full.yaml\n"
        "millrace demo --data my-ratings",
        _run,
    )
    parser.add_argument("--runner", choices=("prism", "flink"), default="prism", help="Beam runner of the feed")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="steps that the feed runs on its rows")
    parser.add_argument("--data", type=Path, metavar="DIR", help="replay the MovieLens ratings in DIR")
    parser.add_argument("--rate", type=float, help="events per second (default: 1300; ratings: so that they last)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=_SECONDS,
        help="how long events flow, and longer until all has happened (default: 100)",
    )
    parser.add_argument(
        "--without",
        choices=PARTS,
        action="append",
        default=[],
        metavar="PART",
        help="leave a part out: kill, rollback or poison; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated world")
    parser.add_argument("--bad-records", type=int, default=1, help="malformed events of each kind among the generated")
    parser.add_argument("--report", type=Path, default=Path("demo-report"), metavar="DIR", help="where the report goes")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def _run(arguments: argparse.Namespace) -> int:
    from millrace.cli.loop import scenario
    from millrace.cli.loop.options import LoopOptions
    from millrace.cli.loop.run import LoopRun, print_summary
    from millrace.runtime.child_process import ChildProcessError

    if arguments.rate is not None and not arguments.rate > 0:
        raise UserError("--rate", arguments.rate, "not positive", "give events per second, such as 1000")
    if not 20 <= arguments.seconds <= 600:
        raise UserError("--seconds", arguments.seconds, "out of range", "choose 20 to 600")
    if arguments.data:
        chosen = scenario.movielens(arguments.data, arguments.rate, arguments.seconds)
    else:
        chosen = scenario.generated(arguments.rate or _RATE, arguments.seed, arguments.bad_records)
    _stop_all_on_signals()
    _fetch(arguments.runner)
    options = LoopOptions(
        runner=arguments.runner, recipe=arguments.recipe, report=arguments.report, seconds=arguments.seconds,
        parts=[part for part in PARTS if part not in arguments.without],
    )  # fmt: skip
    try:
        record = LoopRun(chosen, options).run()
    except ChildProcessError as error:  # nothing ran that a report could tell of
        print(f"millrace demo: {error}", file=sys.stderr)
        return 1
    print_summary(record.summary, arguments.report, arguments.json)
    for failure in record.failures():
        print(f"millrace demo: {failure}", file=sys.stderr)
    return 1 if record.failures() else 0


def _stop_all_on_signals() -> None:
    """SIGTERM and SIGINT stop what was started; a shell has the latter ignored by commands in the background."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)


def _fetch(runner: str) -> None:
    """Fetches what the cache lacks before anything starts: a first build takes minutes, which a start has not."""
    from millrace.runtime.servers.artifacts import maven_jars, prism_binary

    for name in ("kafka", "zookeeper", *(("flink",) if runner == "flink" else ())):
        maven_jars(name, _say)
    if runner == "prism":
        prism_binary(_say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
