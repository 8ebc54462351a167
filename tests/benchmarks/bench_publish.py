"""What a transaction adds to a delta: the same messages sent plainly and in transactions of one, by turns.

python -m tests.benchmarks.bench_publish [--json]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.runtime.servers.dev_servers import DevServers
from millrace.training.publish.transactions import NewRecord, TransactionalProducer

_BYTES = {"2 KB": 2_000, "900 KB": 890_000}
_SENDS = 200

Case = dict[str, str | float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as name:
        servers = DevServers(Path(name), progress=lambda text: print(text, file=sys.stderr))
        servers.kafka.start()
        try:
            for case in _cases(KafkaConnection(servers.kafka_address)):
                if as_json:
                    print(json.dumps(case), flush=True)
                else:
                    print(f"{case['case']:<40} p50 {case['value']:>7} ms  p99 {case['p99']:>7} ms", flush=True)
        finally:
            servers.down()


def _cases(kafka: KafkaConnection) -> Iterator[Case]:
    ensure_topic(kafka, "deltas")
    plain, transactional = make_producer(kafka), TransactionalProducer(kafka, "bench", 900_000)
    transactional.open()

    def send_plainly(value: bytes) -> None:
        plain.produce("deltas", value, partition=0)
        flush_or_raise(plain)

    def send_in_transaction(value: bytes) -> None:
        transactional.send([NewRecord("deltas", value, None, 0)])

    for size, count in _BYTES.items():
        value = os.urandom(count)
        ways = {"idempotent send": send_plainly, "transaction": send_in_transaction}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(_SENDS):  # by turns, so that what else the machine does hits both
            for way, send in ways.items():
                seconds[way].append(_timed(send, value))
        for way, times in seconds.items():
            p50, p99 = np.percentile(1000 * np.array(times[10:]), (50, 99)).round(1).tolist()
            yield {"case": f"delta of {size}, {way}", "value": p50, "unit": "ms", "p99": p99}


def _timed(send: Callable[[bytes], None], value: bytes) -> float:
    start = time.perf_counter()
    send(value)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
