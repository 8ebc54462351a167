"""Trainers that hang, die and meet, and a server that follows their deltas and exports.

Applying and ordering deltas are the product's. The lease, its epoch and the numbers of deltas follow the rules of
`millrace.training.state.lease` and `millrace.training.publish`; broker, disk and weights are not real. In the end the
server must have the weights of the trainer that has the model, or say that it needs an export. After that export it
must have them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.serving.deltas.delta_applier import DeltaApplier
from millrace.serving.deltas.delta_order import DeltaError, DeltaOrder
from tests.simulation.log import FencedError, Log
from tests.simulation.world import World

_DELTAS, _EVENTS, _TABLE, _DENSE = "model.deltas.m", "model.events", "items", "kernel"
_STEPS = 90
_FIDS = 12
_DENSE_SIZE = 6
_DENSE_PART = 4  # elements in a message: the variable never fits into one
_FEW = 5  # deltas that a server reads at a time


@dataclass
class _Saved:
    """A checkpoint."""

    weights: dict[int, float]
    dense: np.ndarray
    rows: int
    sequence: int
    lineage: str
    epoch: int


@dataclass
class _Folder:
    """A model directory; `owner` is the process that has its lock."""

    saved: _Saved | None = None
    lineage: str = ""
    epoch: int = 0
    owner: "_Trainer | None" = None


@dataclass
class _Trainer:
    """What dies with the process."""

    folder: _Folder
    lineage: str
    epoch: int
    sequence: int
    producer: int
    weights: dict[int, float]
    dense: np.ndarray
    rows: int
    hangs: bool = False
    knows_end: bool = False
    touched: set[int] = field(default_factory=set)
    dense_changed: bool = True


@dataclass(frozen=True)
class _Export:
    """A version as it lies on disk and is announced."""

    version: int
    lineage: str
    epoch: int
    sequence: int
    topic_id: int
    offset: int
    weights: Mapping[int, float]
    dense: np.ndarray
    rows: int


class _Store:
    """A table in memory, as `DeltaApplier` takes it."""

    def __init__(self, weights: Mapping[int, float]) -> None:
        self.weights = dict(weights)
        self.dim = 1

    def table(self, name: str) -> "_Store":
        return self

    def assign(self, table: str, ids: np.ndarray, values: np.ndarray) -> None:
        self.weights.update(zip(ids.tolist(), values[:, 0].tolist(), strict=True))

    def erase(self, table: str, ids: np.ndarray) -> None:
        for each in ids.tolist():
            self.weights.pop(each, None)


class _Variable:
    """A dense variable in memory, as `DeltaApplier` takes it."""

    def __init__(self, values: np.ndarray) -> None:
        self.shape, self.dtype, self._values = values.shape, values.dtype, values.copy()

    def numpy(self) -> np.ndarray:
        return self._values

    def assign(self, values: np.ndarray) -> None:
        self._values = np.array(values)


class PublishWorld(World):
    """See the module."""

    def __init__(self, seed: int, without: Collection[str] = ()) -> None:
        super().__init__(seed, without)
        self._log = Log()
        self._log.create(_DELTAS, 1)
        self._log.create(_EVENTS, 1)
        self._folder = _Folder()
        self._trainers: list[_Trainer] = []
        self._births = self._versions = 0
        self._learned = 0
        self._export: _Export | None = None
        self._open_export(_Export(0, "", 0, 0, 0, 0, {}, np.zeros(_DENSE_SIZE, np.float32), 0))
        self._start_trainer(self._folder)

    def run(self) -> None:
        for _ in range(_STEPS):
            self.one_of(
                [
                    (20, self._learn), (20, self._publish), (20, self._serve), (6, self._save), (5, self._announce),
                    (6, self._load), (3, self._hang), (3, self._wake), (3, self._kill), (4, self._supervise),
                    (1, self._empty_topic), (1, self._foreign_delta), (1, self._unmounted),
                ]
            )  # fmt: skip
        self._settle()

    # Trainers.

    def _start_trainer(self, folder: _Folder, elsewhere: bool = False) -> None:
        """A trainer takes the lease, restores, and shuts earlier ones out.

        Args:
          elsewhere: it is on another host, where the lock does not count.
        """
        owner = folder.owner
        if owner is not None and not elsewhere and "lease" not in self.without:
            return  # refused: somebody has it
        known = list(self._log.values(_EVENTS))
        newest = max(known, key=lambda each: (each.epoch, each.version), default=None)
        saved = folder.saved
        if saved is None and newest is not None and "known lineage" not in self.without:
            return  # refused: readers know a model that is not in the folder
        lineage = saved.lineage if saved else folder.lineage or self._born()
        if newest is not None and newest.lineage != lineage and "known lineage" not in self.without:
            return  # refused likewise
        delta = self._newest_delta()
        epochs = [folder.epoch, saved.epoch if saved else 0, *(each.epoch for each in known)]
        epoch = 1 if "epochs" in self.without else 1 + max([*epochs, delta.epoch if delta else 0])
        producer = self._log.init_transactions("m") if "lease" not in self.without else 0
        sequence = saved.sequence if saved else 0
        if "epochs" in self.without:
            sequence = delta.sequence if delta else 0
        folder.lineage, folder.epoch = lineage, epoch
        trainer = _Trainer(
            folder, lineage, epoch, sequence, producer, dict(saved.weights) if saved else {},
            saved.dense.copy() if saved else np.zeros(_DENSE_SIZE, np.float32), saved.rows if saved else 0,
        )  # fmt: skip
        folder.owner = trainer
        self._trainers.append(trainer)

    def _born(self) -> str:
        self._births += 1
        return f"lineage-{self._births}"

    def _some_trainer(self) -> _Trainer | None:
        awake = [each for each in self._trainers if not each.hangs]
        return self.random.choice(awake) if awake else None

    def _learn(self) -> None:
        trainer = self._some_trainer()
        if trainer is None:
            return
        for fid in self.random.sample(range(_FIDS), self.random.randint(1, 3)):
            self._learned += 1
            trainer.weights[fid] = float(self._learned)
            trainer.touched.add(fid)
        if trainer.weights and self.random.random() < 0.1:
            gone = self.random.choice(sorted(trainer.weights))
            del trainer.weights[gone]
            trainer.touched.add(gone)
        trainer.dense = trainer.dense + np.float32(1.0) * self.random.randint(0, 1)
        trainer.dense_changed = True
        trainer.rows += 1

    def _publish(self) -> None:
        trainer = self._some_trainer()
        if trainer is not None:
            self._send(trainer, fails=self.random.random() < 0.1)

    def _send(self, trainer: _Trainer, fails: bool = False) -> None:
        """One delta: what changed, or a heartbeat, as one transaction."""
        if not trainer.knows_end and "epochs" not in self.without:
            delta = self._newest_delta()
            trainer.sequence = max(trainer.sequence, delta.sequence if delta else 0)
            trainer.knows_end = True
        messages = self._messages(trainer)
        if fails and self.random.random() < 0.5:
            trainer.knows_end = False  # nothing was written
            return
        records = [(_DELTAS, 0, message) for message in messages]
        try:
            if "lease" in self.without:
                for _, _, message in records:
                    self._log.partitions(_DELTAS)[0].append(message)
            else:
                self._log.commit("m", trainer.producer, records)
        except FencedError:
            self._end(trainer)
            return
        if fails:
            trainer.knows_end = False  # it was written, and the trainer does not know
            return
        trainer.sequence = messages[-1].sequence
        trainer.touched.clear()
        trainer.dense_changed = False

    def _messages(self, trainer: _Trainer) -> list[ModelDelta]:
        messages = []
        if trainer.touched:
            there = sorted(fid for fid in trainer.touched if fid in trainer.weights)
            gone = sorted(trainer.touched - set(there))
            values = np.array([trainer.weights[fid] for fid in there], "<f4")
            table = ModelDelta.Table(
                name=_TABLE, dim=1, fids=np.array(there, "<i8").tobytes(), values=values.tobytes(),
                evicted_fids=np.array(gone, "<i8").tobytes(),
            )  # fmt: skip
            messages.append(ModelDelta(tables=[table]))
        if trainer.dense_changed and "dense parts" not in self.without:
            for first in range(0, _DENSE_SIZE, _DENSE_PART):
                part = trainer.dense[first : first + _DENSE_PART].tobytes()
                dense = ModelDelta.Dense(name=_DENSE, dtype="float32", shape=[_DENSE_SIZE], data=part, first=first)
                messages.append(ModelDelta(dense=[dense]))
        messages = messages or [ModelDelta()]
        for number, message in enumerate(messages, trainer.sequence + 1):
            message.model_name, message.lineage, message.epoch = "m", trainer.lineage, trainer.epoch
            message.sequence, message.schema_version = number, 2
        return messages

    def _newest_delta(self) -> ModelDelta | None:
        found = None
        for delta in self._log.values(_DELTAS):
            found = delta if delta.model_name == "m" else found
        return found

    def _save(self) -> None:
        trainer = self._some_trainer()
        if trainer is not None and trainer.rows and trainer.folder.owner is trainer:
            trainer.folder.saved = _Saved(
                dict(trainer.weights), trainer.dense.copy(), trainer.rows, trainer.sequence, trainer.lineage,
                trainer.epoch,
            )  # fmt: skip

    def _announce(self) -> None:
        trainer = self._some_trainer()
        if trainer is not None and (trainer.rows or "known lineage" in self.without):
            self._announce_of(trainer)

    def _announce_of(self, trainer: _Trainer) -> None:
        if not trainer.knows_end and "epochs" not in self.without:
            return  # where its deltas stand is not known before the first
        self._versions += 1
        export = _Export(
            self._versions, trainer.lineage, trainer.epoch, trainer.sequence, self._log.id_of(_DELTAS),
            self._log.partitions(_DELTAS)[0].end, dict(trainer.weights), trainer.dense.copy(), trainer.rows,
        )  # fmt: skip
        try:
            if "lease" in self.without:
                self._log.partitions(_EVENTS)[0].append(export)
            else:
                self._log.commit("m", trainer.producer, [(_EVENTS, 0, export)])
        except FencedError:
            self._end(trainer)
            return
        self.promise(export.rows > 0, "a model that has learned nothing was announced")
        # What is touched and not sent yet is in the export; a delta repeats it, which does no harm.

    def _end(self, trainer: _Trainer) -> None:
        self._trainers = [each for each in self._trainers if each is not trainer]
        if trainer.folder.owner is trainer:
            trainer.folder.owner = None

    def _hang(self) -> None:
        trainer = self._some_trainer()
        if trainer is not None:
            trainer.hangs = True

    def _wake(self) -> None:
        for trainer in self._trainers:
            trainer.hangs = False

    def _kill(self) -> None:
        if self._trainers:
            self._end(self.random.choice(self._trainers))

    def _supervise(self) -> None:
        """A supervisor that sees no trainer at work starts one, sometimes on another host."""
        if not any(not each.hangs for each in self._trainers):
            self._start_trainer(self._folder, elsewhere=self.random.random() < 0.5)
        elif self.random.random() < 0.2:
            self._start_trainer(self._folder, elsewhere=self.random.random() < 0.3)

    def _unmounted(self) -> None:
        """A trainer is started while the file system of the folder is not there."""
        self._start_trainer(_Folder())

    # Topics.

    def _empty_topic(self) -> None:
        self._log.create(_DELTAS, 1)
        for trainer in self._trainers:  # a producer whose topic is gone fails, and looks at the end again
            trainer.knows_end = False

    def _foreign_delta(self) -> None:
        delta = ModelDelta(model_name="other", sequence=1 << 60, schema_version=2, lineage="x", epoch=9)
        self._log.partitions(_DELTAS)[0].append(delta)

    # The server.

    def _open_export(self, export: _Export) -> None:
        self._serving = export
        self._store, self._dense = _Store(export.weights), _Variable(export.dense)
        self._applier = DeltaApplier(
            self._store, [_TABLE], {_DENSE: self._dense},
            DeltaOrder("m", export.lineage, export.epoch, export.sequence),
        )  # fmt: skip
        self._topic_id = self._log.id_of(_DELTAS)
        self._offset = export.offset if export.topic_id == self._topic_id else 0
        if export.topic_id != self._topic_id:
            self._applier.note_loss("the topic was made anew")

    def _load(self) -> None:
        known = list(self._log.values(_EVENTS))
        newest = max(known, key=lambda each: (each.epoch, each.version), default=None)
        if newest is not None and newest is not self._serving:
            self.promise(
                newest.lineage == self._serving.lineage or not self._serving.lineage,
                "a model of another lineage was put in service",
            )
            self._open_export(newest)

    def _serve(self, most: int = _FEW) -> bool:
        if self._log.id_of(_DELTAS) != self._topic_id:
            self._topic_id, self._offset = self._log.id_of(_DELTAS), 0
            self._applier.note_loss("the topic was made anew")
        part = self._log.partitions(_DELTAS)[0]
        if self._offset > part.end:
            self._offset = 0
        records, self._offset = part.read(self._offset, most)
        for _, delta in records:
            try:
                self._applier.apply(self._applier.check(delta.SerializeToString()))
            except DeltaError:
                continue
        self._applier.flush()
        return bool(records)

    # The end.

    def _settle(self) -> None:
        self._wake()
        if self._folder.owner is None or self._folder.owner not in self._trainers:
            self._folder.owner = None
            self._start_trainer(self._folder)
        for trainer in list(self._trainers):
            self._send(trainer)  # zombies learn that they are
        trainer = self._folder.owner
        if trainer is None or not trainer.rows or self._serving.lineage != trainer.lineage:
            return
        self.promise(len(self._trainers) == 1, f"{len(self._trainers)} trainers publish one model")
        self._serve(1 << 30)
        if not self._applier.resync_required:
            self._compare(trainer, "and says so to nobody")
        self._announce_of(trainer)
        self._load()
        self._send(trainer)
        self._serve(1 << 30)
        self.promise(not self._applier.resync_required, "an export is asked for after the newest was loaded")
        self._compare(trainer, "after the newest export")

    def _compare(self, trainer: _Trainer, when: str) -> None:
        self.promise(self._store.weights == trainer.weights, f"the server has other entries than the trainer, {when}")
        same = np.array_equal(self._dense.numpy(), trainer.dense)
        self.promise(same, f"the server has other dense weights than the trainer, {when}")
