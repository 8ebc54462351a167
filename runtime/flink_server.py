"""Beam's Flink job server with an embedded Flink, and a pool of Python workers that a test can kill one by one."""

import os
import signal
import sys
from pathlib import Path

from millrace.runtime.artifacts import Progress, java_program, maven_jars
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.daemon import free_port
from millrace.runtime.memory import WORKER_ENVIRONMENT

_START_SECONDS = 120.0  # a JVM with all of Flink, on a busy machine
# Flink's serialisers reach into these packages by reflection, which Java forbids unless told otherwise.
_OPENED_PACKAGES = ("java.util", "java.lang", "java.time", "java.nio")


class FlinkJobServer:
    """Runs portable Beam pipelines on an embedded Flink, or on the cluster `master`.

    Submit with `--runner=PortableRunner --job_endpoint=<job_endpoint>`.

    Args:
      folder: log, artifacts and temporary files; created when needed.
      master: "[local]" for the embedded Flink, or `host:port` of a cluster.
      heap: most memory of the Java heap, as Java spells it.
      progress: called with a few words on each step of the start.
    """

    def __init__(self, folder: Path, master: str = "[local]", heap: str = "3g", progress: Progress = print) -> None:
        self.folder = folder.absolute()
        self._master, self._heap, self._progress = master, heap, progress
        self._process: ChildProcess | None = None
        self.job_endpoint = ""

    @property
    def log(self) -> Path:
        return self.folder / "flink.log"

    def start(self) -> None:
        """Returns when it accepts connections; raises UserError when it does not start."""
        jars = maven_jars("flink", self._progress)
        temporary = self.folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        ports: list[int] = []
        for _ in range(3):
            ports.append(free_port(exclude=ports))
        job, artifact, expansion = ports
        command = [
            java_program(),
            f"-Xmx{self._heap}",
            "-XX:+UseSerialGC",
            f"-Djava.io.tmpdir={temporary}",
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED_PACKAGES),
            "-cp",
            f"{jars}/classes:{jars}/*",
            "org.apache.beam.runners.flink.FlinkJobServerDriver",
            f"--flink-master={self._master}",
            "--job-host=localhost",
            f"--job-port={job}",
            f"--artifact-port={artifact}",
            f"--expansion-port={expansion}",
            f"--artifacts-dir={self.folder / 'artifacts'}",
        ]
        self._progress(f"starting the Flink job server on localhost:{job}")
        self._process = ChildProcess("flink", command, self.folder, ready=False)
        self._process.start()
        self._process.wait_listening(job, _START_SECONDS, "--runner", "flink")
        self.job_endpoint = f"localhost:{job}"

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def __enter__(self) -> "FlinkJobServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class WorkerPool:
    """Starts Beam's Python workers in processes of their own; Flink recovers when one of them is killed.

    Submit with `--environment_type=EXTERNAL --environment_config=<address>`.

    Args:
      folder: logs of the pool and of the workers; created when needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._process: ChildProcess | None = None
        self.address = ""

    def start(self) -> None:
        """Returns when it accepts connections; raises UserError when it does not start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
        # The pool starts workers with the `python` on PATH, which must be this one with these packages.
        environment = WORKER_ENVIRONMENT | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": ":".join(path for path in sys.path if path),
        }
        self._process = ChildProcess("workers", command, self.folder, environment, ready=False)
        self._process.start()
        self._process.wait_listening(port, _START_SECONDS, "--runner", "flink")
        self.address = f"localhost:{port}"

    def worker_pids(self) -> list[int]:
        """Pids of the workers that run now."""
        if self._process is None or not self._process.running():
            return []
        # Linux lists a child under the thread that started it, and the pool starts workers from its gRPC threads.
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/children")
        return sorted(int(pid) for children in threads for pid in children.read_text("ascii").split())

    def stop(self) -> None:
        """Stops the pool and its workers."""
        workers = self.worker_pids()
        if self._process is not None:
            self._process.stop()
        for pid in workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def __enter__(self) -> "WorkerPool":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
