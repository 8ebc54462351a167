"""What a server answers, beside what the newest export says."""

import json
from pathlib import Path

import numpy as np

from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.serving.client.predict_client import PredictClient
from millrace.serving.server.saved_model_loader import SavedModelLoader
from millrace.serving.server.servable import VersionSource
from millrace.training.state.checkpoint import newest_manifest
from tests.chaos.feed_world import READY_SECONDS
from tests.chaos.trainer_world import MODEL_TASK, TrainerWorld, check, metric

_USERS = 50  # as many as the train blocks have
_CLOSE = 1e-5  # between two float32 computations of a probability
_REQUEST = {
    "user_id": np.arange(_USERS),
    "item_id": np.arange(_USERS)[::-1].copy(),
    "device": np.full(_USERS, b"phone", object),
    "hour": np.full(_USERS, 13),
}


class Served:
    """A server of the exports in `model_dir`, and a client of it."""

    def __init__(self, world: TrainerWorld, model_dir: Path) -> None:
        self.process = world.start_server(model_dir / "exports" / "standalone")
        self._client = PredictClient(str(self.process.ready["address"]), MODEL_TASK.name, timeout=30.0)
        wait_until(lambda: metric(self.process, "millrace_model_version") > 0, READY_SECONDS, "a served version", 0.5)

    def clicks(self) -> np.ndarray:
        """float32 [users]."""
        return np.ravel(self._client.predict(_REQUEST)["click"])

    def check_equals(self, model_dir: Path, trainer: ChildProcess) -> None:
        """Waits until the answers are those of the trainer's weights, or the server says that it needs an export.

        Nothing may be sent to the trainer any more.
        """
        wanted = _weights_of(_final_export(model_dir, trainer))

        def is_right() -> bool:
            check(self.process)
            if metric(self.process, "millrace_resync_required"):
                return True
            return bool(np.allclose(self.clicks(), wanted, atol=_CLOSE))

        wait_until(is_right, READY_SECONDS, "the server has the trainer's weights", 0.5)


def _final_export(model_dir: Path, trainer: ChildProcess) -> Path:
    """The export of the trainer's last step."""
    found: list[Path] = []

    def exported() -> bool:
        check(trainer)
        newest = newest_manifest(model_dir)
        for path in (model_dir / "exports" / "standalone").glob("[0-9]*"):
            if newest and _step_of(path) == newest[1].global_step:
                found.append(path)
        return bool(found)

    wait_until(exported, READY_SECONDS, "an export of the last step", 0.5)
    return found[-1]


def _step_of(export: Path) -> int:
    manifest = export / "assets.extra" / "millrace.json"
    return int(json.loads(manifest.read_text("utf-8"))["global_step"]) if manifest.exists() else -1


def _weights_of(export: Path) -> np.ndarray:
    """The answers of an export without deltas, float32 [users]."""
    loader = SavedModelLoader(MODEL_TASK.name, int(export.name), VersionSource(str(export)))
    servable = loader.load()
    try:
        return np.ravel(servable.run("", _REQUEST)["click"])
    finally:
        loader.unload()
