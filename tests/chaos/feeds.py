"""`millrace feed` on a runner, as a process that faults strike."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.servers.flink_server import FlinkJobServer
from millrace.runtime.topics import Topics
from tests.chaos.scenario import Runner
from tests.fakes.worker_pool import WorkerPool

TASK = ("--task", "millrace.examples.feed_ranking:FeedRanking")
_START_SECONDS = 600.0  # a busy machine takes minutes
_STOP_SECONDS = 60.0
_REPOSITORY = Path(__file__).resolve().parents[2]


def millrace(folder: Path, name: str, *words: str, env: Mapping[str, str] | None = None) -> ChildProcess:
    """A `millrace` process of this checkout; its log is `<folder>/<name>.log`."""
    path = f"{_REPOSITORY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    return ChildProcess(
        name, [sys.executable, "-m", "millrace.cli.main", *words], folder, {"PYTHONPATH": path, **(env or {})}
    )


class Feed:
    """A feed that, started again, goes on where it ended.

    Args:
      flags: of `millrace feed`, besides those of Kafka, runner and start.
      env: of the processes in which rows are made.
    """

    def __init__(
        self,
        kafka: KafkaConnection,
        topics: Topics,
        folder: Path,
        flags: Sequence[str],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._folder, self._starts, self._env = folder, 0, env
        address = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix)
        self._flags = (*TASK, *address, "--group", f"{topics.prefix}feed", *flags)
        self._stack = ExitStack()
        self.process: ChildProcess | None = None

    def start(self) -> None:
        """Starts it, or another one from where the last one was; returns when it reads."""
        self._starts += 1
        flags = (*self._runner_flags(), "--work-dir", str(self._folder / f"work-{self._starts}"))
        self.process = millrace(self._folder, f"feed-{self._starts}", "feed", *self._flags, *flags, env=self._env)
        self.process.start()
        self.process.wait_ready(_START_SECONDS)

    def resubmit(self) -> None:
        """Cancels the job and submits it again."""
        self._running().stop(_STOP_SECONDS)
        self.start()

    def kill_feed(self) -> None:
        """Kills the process that submitted the job (SIGKILL), and starts another one."""
        self._running().kill()
        self.start()

    def kill_worker(self) -> None:
        raise NotImplementedError

    def pids(self) -> list[int]:
        """Of the feed, and of the processes in which rows are made."""
        return [self._running().pid]

    def check(self) -> None:
        """Raises RuntimeError when it has ended by itself."""
        if not self._running().running():
            raise RuntimeError(f"the feed ended: {self._running().log_tail()[-500:]}")

    def close(self) -> None:
        if self.process is not None:
            self.process.stop(_STOP_SECONDS)
        self._stack.close()

    def _runner_flags(self) -> tuple[str, ...]:
        raise NotImplementedError

    def _running(self) -> ChildProcess:
        if self.process is None:
            raise RuntimeError("the feed was never started")
        return self.process


class PrismFeed(Feed):
    """On Prism workers run inside the feed; a new one goes on from the offsets that the last one committed."""

    def kill_worker(self) -> None:
        self.kill_feed()

    def _runner_flags(self) -> tuple[str, ...]:
        return ("--runner", "prism", "--start", "group")


class FlinkFeed(Feed):
    """Flink and its workers outlive the feed; a resubmitted job goes on from the last checkpoint."""

    def __init__(
        self,
        kafka: KafkaConnection,
        topics: Topics,
        folder: Path,
        flags: Sequence[str],
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(kafka, topics, folder, flags)
        self._checkpoints = folder / "checkpoints"
        self._pool = self._stack.enter_context(WorkerPool(folder / "workers", env))
        self._server: FlinkJobServer | None = None

    def kill_worker(self) -> None:
        """Kills a Beam worker (SIGKILL); returns when Flink has another one."""
        wait_until(lambda: bool(self._pool.worker_pids()), _START_SECONDS, "a worker")
        killed = self._pool.worker_pids()
        os.kill(killed[0], signal.SIGKILL)
        wait_until(lambda: bool(set(self._pool.worker_pids()) - set(killed)), _START_SECONDS, "another worker")

    def pids(self) -> list[int]:
        return [*super().pids(), *self._pool.worker_pids()]

    def _runner_flags(self) -> tuple[str, ...]:
        if self._server is not None:
            self._server.stop()  # a cancelled job goes on for a moment, and may discard the checkpoint to begin from
        self._server = server = FlinkJobServer(self._folder / f"flink-{self._starts}", heap="1g")
        self._stack.enter_context(server)
        return (
            "--runner", "flink", "--start", "earliest", f"--job_endpoint={server.job_endpoint}",
            "--environment_type=EXTERNAL", f"--environment_config={self._pool.address}",
            "--externalized_checkpoints_enabled", "--retain_externalized_checkpoints_on_cancellation",
            f"--state_backend_storage_path={self._checkpoints.as_uri()}", *self._restore_flags(),
        )  # fmt: skip

    def _restore_flags(self) -> tuple[str, ...]:
        """Flags that name a configuration file, in which the embedded Flink finds the checkpoint to begin from."""
        done = sorted(self._checkpoints.glob("*/chk-*/_metadata"), key=lambda path: path.stat().st_mtime)
        if not done:
            return ()
        folder = self._folder / f"conf-{self._starts}"
        folder.mkdir()
        settings = f"execution.savepoint.path: {done[-1].parent.as_uri()}\n"
        for name in ("flink-conf.yaml", "config.yaml"):  # the name depends on Flink's version
            (folder / name).write_text(settings)
        return (f"--flink_conf_dir={folder}",)


FEEDS: dict[Runner, type[Feed]] = {"prism": PrismFeed, "flink": FlinkFeed}
