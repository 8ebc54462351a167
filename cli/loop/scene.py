"""What the parts of a run share: its processes, its clients, waits that end, and commands of an operator."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from millrace.cli.loop import figures
from millrace.cli.loop.client_load import PredictCounter, serving_inputs
from millrace.cli.loop.freshness import FreshnessProber
from millrace.cli.loop.patience import StalledError
from millrace.cli.loop.processes import START_SECONDS, Processes
from millrace.cli.loop.sampler import Sampler
from millrace.cli.loop.scenario import Scenario
from millrace.runtime.child_process import ChildProcessError
from millrace.runtime.deadline import Deadline
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topics import Topics

_POLL_SECONDS = 0.05
_SETTLE_SECONDS = 60.0  # for probes on their way, before a part that would hide their effect; others are set aside
_LOG_TAIL = 1000  # characters of a command's messages that an error shows


@dataclass
class Scene:
    """One run while its parts happen.

    Args:
      folder: of the run; `model` in it is the model directory.
      look: called between two looks at what is waited for; raises when a process has ended.

    Attributes:
      passed_over: int64 [rows], audit fids of rows that the trainer was told to pass over.
    """

    scenario: Scenario
    topics: Topics
    kafka: KafkaConnection
    folder: Path
    processes: Processes
    sampler: Sampler
    counter: PredictCounter
    prober: FreshnessProber
    look: Callable[[], None]
    passed_over: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def model_dir(self) -> Path:
        return self.folder / "model"

    def mark(self, kind: str, label: str) -> None:
        """Puts a mark on the timeline, at this moment."""
        self.sampler.mark(kind, label)

    def wait(self, condition: Callable[[], bool], what: str, remedy: str, seconds: float = START_SECONDS) -> None:
        """Returns once `condition()` holds.

        Raises:
          StalledError: it does not within `seconds`; the message says what was waited for, and what helps.
          ChildProcessError: a process has ended meanwhile.
        """
        deadline = Deadline(seconds)
        while not condition():
            if deadline.expired():
                raise StalledError(f"{what}: not within {seconds:g} s; {remedy}")
            self.stay(_POLL_SECONDS)

    def stay(self, seconds: float) -> None:
        """Lets time pass; raises ChildProcessError when a process ends meanwhile."""
        deadline = Deadline(seconds)
        while not deadline.expired():
            self.look()
            time.sleep(min(_POLL_SECONDS, deadline.remaining()))

    def versions(self) -> list[int]:
        """Numbers of the exports on disk, ascending."""
        return figures.versions_on_disk(self.model_dir)

    def served_version(self) -> int:
        """Newest version that the server has; 0 for none, or while it does not answer."""
        return int(self.processes.metrics("server").get("millrace_model_version", 0))

    def ask(self) -> bytes:
        """The answer to a fixed request, bit for bit; the same users, items and inputs each time."""
        items = np.arange(20, dtype=np.int64)
        outputs = self.counter(serving_inputs(items, items, self.scenario.probe.inputs))
        return b"".join(np.asarray(outputs[name]).tobytes() for name in sorted(outputs))

    def pause_probes(self) -> None:
        """Sends no more probes; those whose effect does not show soon are set aside, since now it could not show."""
        self.prober.pause()
        deadline = Deadline(_SETTLE_SECONDS)
        while self.prober.outstanding() and not deadline.expired():
            self.stay(_POLL_SECONDS)
        self.prober.set_aside()

    def command(self, name: str, *words: str) -> dict[str, object]:
        """Runs `millrace NAME` for the model as an operator would; returns what it prints as JSON.

        Raises:
          ChildProcessError: its exit code is not 0; the message has what it said.
        """
        printed, said = self.folder / f"{name}.json", self.folder / f"{name}.log"
        args = [
            sys.executable, "-m", "millrace.cli.main", name, "--model", self.scenario.model, *words, "--json",
            "--timeout", f"{START_SECONDS:g}", "--kafka", self.kafka.bootstrap_servers,
            "--topic-prefix", self.topics.prefix,
        ]  # fmt: skip
        with open(printed, "wb") as out, open(said, "wb") as err:
            process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        try:
            self.wait(lambda: process.poll() is not None, f"millrace {name}", f"{said} says what it waits for")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            tail = said.read_text("utf-8", "replace")[-_LOG_TAIL:].strip()
            raise ChildProcessError(f"millrace {name} exited with {process.returncode}: {tail}")
        return dict(json.loads(printed.read_text("utf-8")))
