"""Beam's Flink job server with an embedded Flink."""

from pathlib import Path

from millrace.runtime.atomic_file import write_text
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.servers.artifacts import Progress, java_program, maven_jars
from millrace.runtime.servers.daemon import free_port

_START_SECONDS = 120.0  # a JVM with all of Flink, on a busy machine
# Flink's serialisers reach into these packages by reflection, which Java forbids unless told otherwise.
_OPENED_PACKAGES = ("java.util", "java.lang", "java.time", "java.nio")


# What the embedded Flink itself listens on; the servers of Beam in it are those of patches/flink. And how often a job
# may fail: a bundle that waits for a broker fails once per minute, so that an outage of any length never ends the job,
# while a bundle that cannot succeed fails every second or so, and ends it within a minute.
_FLINK_CONFIGURATION = """\
jobmanager.bind-host: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.address: 127.0.0.1
taskmanager.bind-host: 127.0.0.1
taskmanager.host: 127.0.0.1
restart-strategy.type: failure-rate
restart-strategy.failure-rate.max-failures-per-interval: 20
restart-strategy.failure-rate.failure-rate-interval: 10 min
restart-strategy.failure-rate.delay: 500 ms
"""


class FlinkJobServer:
    """Runs portable Beam pipelines on an embedded Flink; all that it listens on is on 127.0.0.1.

    Submit with `--runner=PortableRunner --job_endpoint=<job_endpoint>`.

    Args:
      folder: log, artifacts and temporary files; created when needed.
      heap: most memory of the Java heap, as Java spells it.
      progress: called with a few words on each step of the start.
    """

    def __init__(self, folder: Path, heap: str = "3g", progress: Progress = print) -> None:
        self.folder = folder.absolute()
        self._heap, self._progress = heap, progress
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
        settings = self.folder / "conf" / "flink-conf.yaml"
        settings.parent.mkdir(exist_ok=True)
        write_text(settings, _FLINK_CONFIGURATION)
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
            "--flink-master=[local]",
            f"--flink-conf-dir={settings.parent}",
            "--job-host=127.0.0.1",
            f"--job-port={job}",
            f"--artifact-port={artifact}",
            f"--expansion-port={expansion}",
            f"--artifacts-dir={self.folder / 'artifacts'}",
        ]
        self._progress(f"starting the Flink job server on 127.0.0.1:{job}")
        self._process = ChildProcess("flink", command, self.folder, ready=False)
        self._process.start()
        self._process.wait_listening(job, _START_SECONDS, "--runner", "flink")
        self.job_endpoint = f"127.0.0.1:{job}"

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def __enter__(self) -> "FlinkJobServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
