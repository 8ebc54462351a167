"""`millrace bench`: measures every stage on this machine, one line per case."""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from millrace.cli.common import add_command
from millrace.runtime.errors import UserError

_FOLDER = Path(__file__).resolve().parents[1] / "tests" / "benchmarks"
_LIMIT_SECONDS = 600.0  # per benchmark: one that hangs does not keep the others from running
_VERSIONS = ("tensorflow", "keras", "apache-beam", "pyarrow", "numpy", "confluent-kafka", "grpcio")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        subparsers,
        "bench",
        "Runs the benchmarks of tests/benchmarks one after the other and prints one line per case. Needs a checkout.",
        "millrace bench --only transforms\nmillrace bench --json > bench.jsonl",
        _run,
    )
    parser.add_argument("--only", metavar="NAME", help=f"one of {', '.join(_names())}")
    parser.add_argument("--json", action="store_true", help="one JSON object per line; the first describes the machine")


def _names() -> list[str]:
    return sorted(path.stem.removeprefix("bench_") for path in _FOLDER.glob("bench_*.py"))


def _run(arguments: argparse.Namespace) -> int:
    names = _names()
    if not names:
        raise UserError("tests/benchmarks", _FOLDER, "an installed package has no benchmarks", "run it in a checkout")
    if arguments.only and arguments.only not in names:
        raise UserError("--only", arguments.only, "there is no such benchmark", f"choose {', '.join(names)}")
    machine = describe_machine()
    print(json.dumps(machine) if arguments.json else "  ".join(f"{k} {v}" for k, v in machine.items()), flush=True)
    failed = 0
    for name in [arguments.only] if arguments.only else names:
        print(f"millrace bench: measuring {name}", file=sys.stderr)
        try:
            for case in run_benchmark(name):
                print(json.dumps(case) if arguments.json else _line(case), flush=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{_tail(error.stderr)}millrace bench: {name} failed: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def run_benchmark(name: str) -> Iterator[dict[str, object]]:
    """Cases of one script: {"benchmark", "case", "value", "unit"} and whatever else it says of them."""
    command = [sys.executable, str(_FOLDER / f"bench_{name}.py"), "--json"]
    env = os.environ | {"PYTHONPATH": str(_FOLDER.parent.parent), "TF_CPP_MIN_LOG_LEVEL": "2"}
    # What scripts and TensorFlow write to stderr is of interest only when they fail.
    done = subprocess.run(command, capture_output=True, env=env, timeout=_LIMIT_SECONDS, check=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            yield {"benchmark": name, **json.loads(line)}


def describe_machine() -> dict[str, object]:
    """Processor, cores, memory and the versions that decide speed."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions: dict[str, object] = {package: importlib.metadata.version(package) for package in _VERSIONS}
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "python": platform.python_version(),
    } | versions


def _tail(output: str | bytes | None, lines: int = 20) -> str:
    """The last lines of what a script wrote; a time-out gives bytes where the end of a process gives text."""
    text = output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""
    return "".join(text.splitlines(keepends=True)[-lines:])


def _lines(path: str) -> list[str]:
    return Path(path).read_text("utf-8").splitlines()


def _line(case: dict[str, object]) -> str:
    extra = {k: v for k, v in case.items() if k not in ("benchmark", "case", "value", "unit")}
    value = case["value"]
    shown = f"{value:>14,.4g}" if isinstance(value, float) and value < 100 else f"{value:>14,.0f}"
    words = "  ".join(f"{k}={v}" for k, v in extra.items())
    return f"{case['benchmark']!s:<12} {case['case']!s:<44} {shown} {case['unit']!s:<10} {words}"
