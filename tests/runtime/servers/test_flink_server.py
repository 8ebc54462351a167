"""Flink's job server and its workers for real."""

import os
import signal
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from millrace.runtime.deadline import wait_until
from millrace.runtime.servers.flink_server import FlinkJobServer
from tests.fakes.worker_pool import WorkerPool

pytestmark = pytest.mark.service


def test_a_pipeline_runs_through_the_death_of_a_worker(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with FlinkJobServer(tmp_path / "flink") as flink, WorkerPool(tmp_path / "workers") as workers:
        options = _options(flink, workers)
        pipeline = beam.Pipeline(options=options)
        folder, release = str(marks), str(tmp_path / "release")
        _ = pipeline | beam.Create([1, 2, 3]) | beam.Map(_mark, folder, release)
        result = pipeline.run()
        wait_until(lambda: (marks / "1").exists(), 60.0, "a worker at work")
        (worker,) = workers.worker_pids()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: workers.worker_pids() not in ([], [worker]), 60.0, "another worker")
        Path(release).touch()
        assert result.wait_until_finish() == "DONE"
        pids = workers.worker_pids()
    assert all((marks / f"done-{number}").exists() for number in (1, 2, 3))
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def _mark(number: int, folder: str, release: str) -> int:
    from millrace.runtime.deadline import wait_until as wait

    (Path(folder) / str(number)).touch()
    wait(Path(release).exists, 60.0, "release")
    (Path(folder) / f"done-{number}").touch()
    return number


def test_a_job_that_cannot_succeed_ends_after_twenty_restarts(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with FlinkJobServer(tmp_path / "flink") as flink, WorkerPool(tmp_path / "workers") as workers:
        pipeline = beam.Pipeline(options=_options(flink, workers))
        _ = pipeline | beam.Create([1]) | beam.Map(_fail, str(marks))
        with pytest.raises(RuntimeError, match="no number will do"):
            pipeline.run().wait_until_finish()
    assert len(list(marks.iterdir())) == 21


def _options(flink: FlinkJobServer, workers: WorkerPool) -> PipelineOptions:
    return PipelineOptions(
        [
            "--runner=PortableRunner",
            f"--job_endpoint={flink.job_endpoint}",
            "--environment_type=EXTERNAL",
            f"--environment_config={workers.address}",
            "--parallelism=1",
            "--streaming",
            "--checkpointing_interval=500",
            "--shutdown_sources_after_idle_ms=1000",
        ]
    )


def _fail(number: int, folder: str) -> None:
    import uuid

    (Path(folder) / uuid.uuid4().hex).touch()
    raise ValueError("no number will do")
