"""Freshness and predict latency of the whole loop, from outside.

python tests/benchmarks/bench_freshness.py [--json]
"""

import argparse
import json
import tempfile
from pathlib import Path

from millrace.cli.loop.options import LoopOptions
from millrace.cli.loop.run import LoopRun
from millrace.cli.loop.scenario import generated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rate", type=float, default=1300.0, help="events per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = LoopOptions(
            report=Path(folder) / "report", state=Path(folder) / "state", seconds=arguments.seconds,
            probe_interval_seconds=0.3, parts=(),
        )  # fmt: skip
        summary = LoopRun(generated(arguments.rate, seed=0, bad_records=0), options).run().summary
    for name in ("freshness_ms", "predict_ms"):
        figures = summary[name]
        assert isinstance(figures, dict)
        for quantile in ("p50", "p99"):
            case = {
                "case": f"{name.removesuffix('_ms')} {quantile}",
                "value": figures[quantile],
                "unit": "ms",
                "n": figures["n"],
            }
            print(json.dumps(case) if arguments.json else f"{case['case']:<20} {case['value']:>10} ms  n={case['n']}")


if __name__ == "__main__":
    main()
