"""One Beam worker as a process: `python -m millrace.pipelines.feed.worker_process CONTROL ID`; see `worker_pool`."""

import sys

from apache_beam.runners.worker.sdk_worker import SdkHarness

from millrace.runtime.telemetry import setup_logging


def main(control: str, worker_id: str) -> None:
    """Does what the runner at `control` (host:port) asks for, until it ends."""
    setup_logging(f"worker-{worker_id}")
    SdkHarness(control, worker_id=worker_id).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
