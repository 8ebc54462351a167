"""What happens to a loop while events flow: the trainer is killed, and an operator rolls back and releases."""

import time
from contextlib import suppress

from grpc import RpcError

from millrace.cli.loop.scene import Scene

_EXPORTS = 2  # new versions that a rollback must outlast here
_ASK_SECONDS = 0.1


def kill_trainer(scene: Scene) -> dict[str, object]:
    """SIGKILL, start again, and how long until the new process trains."""
    trainer = scene.processes["trainer"]
    scene.mark("kill", "trainer killed")
    killed = time.monotonic()
    trainer.kill()
    trainer.start()
    scene.processes.wait_ready("trainer")
    scene.wait(
        lambda: scene.processes.metrics("trainer").get("millrace_rows_trained_total", 0) > 0,
        "the first rows after the trainer was killed",
        f"{trainer.log_path} says what it does",
    )
    seconds = round(time.monotonic() - killed, 2)
    scene.mark("back", f"back after {seconds:g} s")
    return {"process": "trainer", "signal": "SIGKILL", "back_after_s": seconds}


def roll_back(scene: Scene) -> dict[str, object]:
    """`millrace rollback` to the version before the newest, some exports later `millrace release`.

    Returns: what the summary tells; `held` says whether a fixed request had the same answer, bit for bit, meanwhile.
    """
    log = scene.processes["trainer"].log_path
    scene.wait(lambda: len(scene.versions()) > 1, "a version to go back to", f"{log} says when it exports")
    scene.pause_probes()
    version = scene.versions()[-2]
    scene.mark("rollback", f"millrace rollback to {version}")
    began = time.monotonic()
    scene.command("rollback", "--to", str(version), "--reason", "the demo shows a rollback")
    in_force = round(time.monotonic() - began, 2)
    scene.mark("held", "held")
    before, seen, answers, asked = set(scene.versions()), set[int](), set[bytes](), 0

    def exports_pass() -> bool:
        nonlocal asked
        with suppress(RpcError):  # the counter has counted it
            answers.add(scene.ask())
            asked += 1
        seen.update(scene.versions())
        time.sleep(_ASK_SECONDS)
        return len(seen - before) >= _EXPORTS

    scene.wait(exports_pass, f"{_EXPORTS} exports during the rollback", f"{log} says when it exports")
    scene.mark("release", "millrace release")
    began = time.monotonic()
    scene.command("release", "--reason", "the demo has shown it")
    scene.wait(lambda: scene.served_version() > version, "a later version after the release", "see agent.log")
    released = round(time.monotonic() - began, 2)
    scene.mark("released", "released")
    scene.prober.go_on()
    return {
        "to": version,
        "exports_passed": len(seen - before),
        "held": len(answers) == 1,
        "answers_compared": asked,
        "seconds_until_in_force": in_force,
        "seconds_until_released": released,
    }
