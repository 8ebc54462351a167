"""Which deltas are for a loaded version, and which of them come next: by lineage, epoch and sequence."""

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.runtime.topics import NUMBER_LIMIT


class DeltaError(ValueError):
    """A delta that is not applied.

    Args:
      reason: label of the counter.
      resync: whether something is lost by that, so that an export is needed.
    """

    def __init__(self, reason: str, problem: str, resync: bool = True) -> None:
        super().__init__(problem)
        self.reason = reason
        self.resync = resync


class DeltaOrder:
    """The place of one version in the deltas of its model.

    Args:
      model_name, lineage: of the export; deltas of another model are none of this version.
      epoch, last_sequence: last delta whose content the export holds, of each shard.
    """

    def __init__(self, model_name: str, lineage: str = "", epoch: int = 0, last_sequence: int = 0) -> None:
        self._model_name = model_name
        self._lineage = lineage
        self._epoch = epoch
        self._base: int | None = last_sequence
        self._sequences: dict[int, int] = {}

    def check(self, delta: ModelDelta) -> None:
        """Raises DeltaError for a delta of another model, of a trainer that has been replaced, or of no trainer."""
        if delta.model_name != self._model_name:
            raise DeltaError("model", f"is of model '{delta.model_name}', not of '{self._model_name}'", resync=False)
        if max(delta.epoch, delta.sequence) >= NUMBER_LIMIT:
            raise DeltaError("malformed", f"has epoch {delta.epoch} and sequence {delta.sequence}, must be below 2^62")
        if delta.lineage != self._lineage:
            # The model was born anew: nothing of its deltas fits here, and only its own export can follow them.
            raise DeltaError("lineage", f"is of lineage '{delta.lineage}', the export of '{self._lineage}'")
        if delta.epoch < self._epoch:
            problem = f"is of epoch {delta.epoch}, whose trainer was replaced by that of epoch {self._epoch}"
            raise DeltaError("epoch", problem, resync=False)

    def note(self, delta: ModelDelta) -> tuple[bool, str]:
        """Moves on to a delta that `check` lets pass.

        Returns:
          Whether it is new, and, when something before it may be missing, what.
        """
        if delta.epoch > self._epoch:
            old, self._epoch = self._epoch, delta.epoch
            self._base, self._sequences = None, {delta.shard: delta.sequence}
            return True, f"epoch {delta.epoch} follows {old}: its trainer may have gone back to an older checkpoint"
        last = self._sequences.get(delta.shard, self._base)
        if last is not None and delta.sequence <= last:
            return False, ""
        self._sequences[delta.shard] = delta.sequence
        is_gap = last is not None and delta.sequence > last + 1
        return True, f"shard {delta.shard}: {delta.sequence} follows {last}" if is_gap else ""
