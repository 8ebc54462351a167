"""Scenarios of a server beside a trainer; each function strikes a world and counts the trainer's rows."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from millrace.runtime.deadline import wait_until
from millrace.runtime.servers.dev_servers import KafkaServer
from millrace.serving.server.servable import State
from tests.chaos.audit import Audit
from tests.chaos.feed_world import READY_SECONDS
from tests.chaos.served import Served
from tests.chaos.trainer_world import MODEL_TASK, TrainerWorld, check

_STOPPED_SECONDS, _RUNNING_SECONDS = 0.45, 0.05  # of each pulse: the server runs at a tenth of its speed
_ADVANCES, _MOST_IN_MEMORY = 3, 3
_IN_MEMORY = {State.LOADING, State.AVAILABLE, State.UNLOADING}


def deltas_anew(server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """The topic of deltas is deleted and made again while a trainer writes it and a server reads it."""
    model_dir = folder / "model"
    with TrainerWorld(server, folder) as world:
        world.send()
        trainer = world.start_trainer(model_dir, "trainer")
        served = Served(world, model_dir)
        world.learn_more(model_dir, trainer)
        world.make_anew(world.topics.deltas(MODEL_TASK.name), partitions=1)
        before = served.clicks()
        world.learn_more(model_dir, trainer)
        wait_until(lambda: not np.allclose(served.clicks(), before), READY_SECONDS, "the server learns on")
        world.drain(model_dir, trainer)
        served.check_equals(model_dir, trainer)
        return world.audit(model_dir, trainer)


def slow_load(server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """Loads take longer than the time between two exports; the served version advances, three at most in memory."""
    model_dir = folder / "model"
    exports = model_dir / "exports" / "standalone"
    with TrainerWorld(server, folder) as world:
        world.send()
        trainer = world.start_trainer(model_dir, "trainer")
        served = Served(world, model_dir)
        world.learn_more(model_dir, trainer)
        seen: list[int] = []
        passed_over, most = 0, 0

        def advanced() -> bool:
            nonlocal passed_over, most
            check(trainer)
            check(served.process)
            states = _states(str(served.process.ready["address"]))
            most = max(most, sum(state in _IN_MEMORY for state in states.values()))
            newest = max((version for version, state in states.items() if state is State.AVAILABLE), default=0)
            if newest and newest not in seen:
                between = [int(path.name) for path in exports.glob("[0-9]*") if seen and seen[-1] < int(path.name)]
                passed_over += sum(version < newest for version in between)
                seen.append(newest)
            return len(seen) > _ADVANCES and passed_over > 0

        with _pulses(served.process.pid):
            wait_until(advanced, 4 * READY_SECONDS, f"{_ADVANCES} versions, some passed over", 0.2)
        if most > _MOST_IN_MEMORY:
            raise AssertionError(f"{most} versions were in memory")
        if seen != sorted(seen):
            raise AssertionError(f"the served version went back: {seen}")
        world.drain(model_dir, trainer)
        served.check_equals(model_dir, trainer)
        return world.audit(model_dir, trainer)


def _states(address: str) -> dict[int, State]:
    """{version: state}."""
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = MODEL_TASK.name
    with grpc.insecure_channel(address) as channel:
        answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=READY_SECONDS)
    return {row.version: State(row.state) for row in answer.model_version_status}


@contextmanager
def _pulses(pid: int) -> Iterator[None]:
    """Slows a process down: stops it and lets it go on many times per second."""
    end = threading.Event()

    def pulse() -> None:
        while not end.wait(_RUNNING_SECONDS):
            os.kill(pid, signal.SIGSTOP)
            end.wait(_STOPPED_SECONDS)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


SERVING_SCENARIOS = {"deltas-anew": deltas_anew, "slow-load": slow_load}
