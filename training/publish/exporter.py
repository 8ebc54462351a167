"""Standalone SavedModels: raw columns go in, one probability per head comes out; the graph computes the fids."""

import json
import logging
import shutil
import struct
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf

from millrace.ops.embedding_table import NOW, Cut, EmbeddingStore
from millrace.ops.table_config import TableConfig
from millrace.runtime.atomic_file import sync_folder, sync_tree
from millrace.runtime.checksum import crc32c_of_file
from millrace.runtime.errors import UserError
from millrace.training.publish.delta_split import are_finite, count_not_finite
from millrace.training.publish.published import ModelWriter
from millrace.training.state.checkpoint import Checkpoints
from millrace.training.state.lease import Lease
from millrace.training.state.saver import UnfitError
from millrace.training.state.temporary_folder import temporary_name
from millrace.training.step.train_step import TrainStep, new_step
from millrace.training.task import SparseFeature, Task
from millrace.training.task.heads import DenseModel
from millrace.transforms.batch.fid import SIGNATURE_BITS
from millrace.transforms.batch.hashes import HASH_KEY

_LOG = logging.getLogger(__name__)
_HASH_KEY = list(struct.unpack("<QQ", HASH_KEY))
_TEMPORARY = "temp-"
_EPOCHS = 1_000_000_000  # above every epoch; names of before there were epochs have a version there, Unix seconds
MANIFEST_PATH = Path("assets.extra") / "millrace.json"


@dataclass(frozen=True)
class ExportCut:
    """The model at one moment between two steps, to be written as one version.

    Attributes:
      version: the version's number, Unix seconds or higher.
      tables: the tables' content.
      snapshot: folder that they are written to; it is removed once the export is written.
      dense: values of the dense variables, in their order.
      delta_topic: topic of the model's deltas; empty when there are none.
      delta_sequence, delta_offset: number of the last delta that the content has, and offset of the next one.
      cut_at_ms: time of the cut, Unix milliseconds.
      event_time_ms: newest event that the model had learned.
      quality: how well the model predicted by then: rows, auc, log_loss, calibration, those that are known.
    """

    version: int
    global_step: int
    tables: Cut
    snapshot: Path
    dense: list[np.ndarray]
    delta_topic: str = ""
    delta_sequence: int = 0
    delta_offset: int = 0
    cut_at_ms: int = 0
    event_time_ms: int = 0
    quality: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """A version on disk, all of whose files are durable."""

    version: int
    global_step: int
    path: Path
    size_bytes: int
    delta_sequence: int = 0
    event_time_ms: int = 0
    quality: dict[str, float] = field(default_factory=dict)


class ServingModel(tf.Module):
    """What a server loads: tables, dense variables that deltas can assign, and the signature `serving_default`.

    Args:
      values: of the dense variables, in the order of `dense.names`.
      store: the tables; the SavedModel holds them.
    """

    def __init__(self, task: Task, dense: DenseModel, values: list[np.ndarray], store: EmbeddingStore) -> None:
        super().__init__()
        self.store = store
        self.dense_variables = [
            tf.Variable(value, name=name.replace("#", "_")) for name, value in zip(dense.names, values, strict=True)
        ]
        self._task, self._dense = task, dense
        inputs = {name: tf.TensorSpec([None], _DTYPES[dtype], name) for name, dtype in task.serving_inputs().items()}
        self.predict = tf.function(self._predict, input_signature=[inputs])

    def _predict(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """{head: probabilities float32 [batch]} of {input: raw column [batch]}."""
        ragged = [serving_fids(feature, inputs[feature.input_name]) for feature in self._task.features]
        pooled = self.store.pooled_lookup(
            list(self._task.pooled_features()), [values for values, _ in ragged], [splits for _, splits in ragged]
        )
        embeddings = {}
        for feature, tensor in zip(self._task.features, pooled, strict=True):
            tensor.set_shape([None, feature.dim])
            embeddings[feature.name] = tensor
        logits = self._dense.logits_with([tf.convert_to_tensor(v) for v in self.dense_variables], embeddings)
        return {head.name: tf.sigmoid(logits[:, i]) for i, head in enumerate(self._task.heads)}


_DTYPES = {"int64": tf.int64, "string": tf.string}


def serving_fids(feature: SparseFeature, column: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(fids int64 [n], row_splits int64 [batch + 1]) of a raw column, the same fids as the feed computes.

    An empty string and an integer outside of [0, 2^48) stand for a missing value, which gives no fid.

    Args:
      column: [batch] of the feature's `input_dtype`.
    """
    slot = tf.constant(feature.slot << SIGNATURE_BITS, tf.int64)
    if feature.input_dtype == "string":
        present = tf.strings.length(column) > 0
        signature = tf.strings.to_hash_bucket_strong(column, 1 << SIGNATURE_BITS, key=_HASH_KEY)
    else:
        present = tf.logical_and(column >= 0, column < 1 << SIGNATURE_BITS)
        signature = column
    counts = tf.cast(present, tf.int64)
    splits = tf.concat([tf.zeros([1], tf.int64), tf.cumsum(counts)], axis=0)
    return tf.bitwise.bitwise_or(tf.boolean_mask(signature, present), slot), splits


class Exporter:
    """Writes versions as folders of `<model_dir>/exports/standalone`.

    A version is written under another name, synced and then renamed, so a folder with a number is always complete. The
    process has the lease of `model_dir`: nobody else writes there.

    Args:
      writer: whose model it is; its lineage and epoch go into every version. None: nobody's.
      keep: newest versions that stay: one that is served, one that is being loaded, and one to go back to.
      in_use: versions that stay beside them, because somebody serves or holds them; None: nobody can tell now, and all
        versions stay. Asked before a version is removed.

    Attributes:
      trusted: a version that stays, too: the newest one that no alarm can question any more. 0: none does.
    """

    def __init__(
        self,
        task: Task,
        model_dir: Path,
        writer: ModelWriter | None = None,
        keep: int = 3,
        in_use: Callable[[], Collection[int] | None] = lambda: (),
    ) -> None:
        self._task, self._keep, self._in_use = task, keep, in_use
        self._writer = writer or ModelWriter(task.name)
        self.base = model_dir / "exports" / "standalone"
        self.trusted = 0

    def versions(self) -> list[int]:
        """The numbers of the versions on disk, ascending."""
        if not self.base.is_dir():
            return []
        return sorted(int(path.name) for path in self.base.iterdir() if path.name.isdecimal())

    def newest_epoch(self) -> int:
        """The highest epoch of the versions on disk; 0 without any, or for versions from before there were epochs."""
        return max([0, *(self._number(version, "epoch") for version in self.versions())])

    def cut_times(self) -> dict[int, int]:
        """{version on disk: time of its cut, Unix milliseconds}."""
        # Versions from before manifests had the time are numbered by its seconds.
        return {version: self._number(version, "cut_at_ms") or version * 1000 for version in self.versions()}

    def _number(self, version: int, name: str) -> int:
        """A field of a version's manifest; 0 where it has none."""
        try:
            fields = json.loads((self.base / str(version) / MANIFEST_PATH).read_bytes())
            return int(fields.get(name, 0))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            _LOG.warning("version %d says no %s: %s", version, name, error)
            return 0

    def cut(
        self,
        step: TrainStep,
        delta_topic: str = "",
        delta_position: tuple[int, int] = (0, 0),
        event_time_ms: int = 0,
        quality: dict[str, float] | None = None,
        event_clock: int = 0,
    ) -> ExportCut:
        """Holds the model as it is now; to be called between steps.

        Args:
          delta_position: (delta_sequence, delta_offset) of ExportCut, where the other arguments are explained.
          event_clock: Unix seconds; entries that are expired by then are left out. 0: by the wall clock.

        Raises:
          UnfitError: a dense variable is NaN or infinite.
          OSError, tf.errors.OpError: the disk failed.
        """
        dense = [np.array(variable.numpy()) for variable in step.dense.variables]
        if not are_finite(dense):
            raise UnfitError("dense variables are not finite: servers keep what they have")
        version = max([int(time.time()), *(version + 1 for version in self.versions()[-1:])])
        snapshot = self.base / self._temporary(f"{version}-tables")
        self.base.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        global_step = int(step.global_step.numpy())
        return ExportCut(
            version, global_step, step.store.cut(event_clock or NOW), snapshot, dense, delta_topic, *delta_position,
            time.time_ns() // 1_000_000, event_time_ms, quality or {},
        )  # fmt: skip

    def write(self, cut: ExportCut, step: TrainStep) -> Export:
        """Makes the cut a durable version and removes old ones; steps may go on meanwhile.

        Raises:
          OSError, tf.errors.OpError: the disk failed.
        """
        temporary = self.base / self._temporary(cut.version)
        try:
            size = self._write(cut, step, temporary)
            path = self.base / str(cut.version)
            temporary.rename(path)
        except BaseException:
            cut.tables.drop()  # a store takes no other cut while it holds one
            for folder in (temporary, cut.snapshot):
                shutil.rmtree(folder, ignore_errors=True)  # the disk may be full
            raise
        sync_folder(self.base)
        self._remove_old()
        return Export(
            cut.version, cut.global_step, path, size, cut.delta_sequence, cut.event_time_ms, dict(cut.quality)
        )

    def _write(self, cut: ExportCut, step: TrainStep, temporary: Path) -> int:
        """Writes the version into `temporary`; returns the size of all files."""
        store_name = f"{self._task.name}@{cut.version}"
        cut.tables.write(cut.snapshot, with_state=False)
        tables = [table.for_serving() for table in self._task.tables()]
        _leave_out(cut.snapshot, tables, _not_finite(step.store), f"{store_name}/finite")
        store = EmbeddingStore(tables, shared_name=store_name, snapshot=str(cut.snapshot))
        try:
            model = ServingModel(self._task, step.dense, cut.dense, store)
            tf.saved_model.save(model, str(temporary), signatures={"serving_default": model.predict})
        finally:
            EmbeddingStore.release(store_name)
        shutil.rmtree(cut.snapshot)
        size = self._describe(cut, temporary, store_name, step.dense.names)
        sync_tree(temporary)
        return size

    def _temporary(self, version: int | str) -> str:
        """A name that says which epoch's owner of the lease writes it."""
        return temporary_name(f"{self._writer.epoch}-{version}")

    def _remove_old(self) -> None:
        old = self.versions()[: -self._keep]
        in_use = self._in_use() if old else ()
        for version in old:
            if in_use is not None and version not in in_use and version != self.trusted:
                shutil.rmtree(self.base / str(version), ignore_errors=True)

    def _describe(self, cut: ExportCut, folder: Path, store_name: str, dense_names: list[str]) -> int:
        """Writes assets.extra/millrace.json; returns the size of all files."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        description = {
            "schema_version": 2,
            "lineage": self._writer.lineage,
            "epoch": self._writer.epoch,
            "model_name": self._task.name,
            "version": cut.version,
            "global_step": cut.global_step,
            "store": store_name,
            "tables": [table.name for table in self._task.tables()],
            "dense_variables": dense_names,
            "delta_topic": cut.delta_topic,
            "delta_offsets": {"0": cut.delta_offset} if cut.delta_topic else {},
            "delta_sequence": cut.delta_sequence,
            "created_at_ms": time.time_ns() // 1_000_000,
            "cut_at_ms": cut.cut_at_ms,
            "event_time_ms": cut.event_time_ms,
            "quality": cut.quality,
            "signature": {"inputs": self._task.serving_inputs(), "outputs": [head.name for head in self._task.heads]},
            "files": [
                {
                    "path": str(path.relative_to(folder)),
                    "size_bytes": path.stat().st_size,
                    "crc32c": crc32c_of_file(path),
                }
                for path in files
            ],
        }
        manifest = folder / MANIFEST_PATH
        manifest.parent.mkdir(exist_ok=True)
        manifest.write_text(json.dumps(description, indent=1), "utf-8")
        return sum(path.stat().st_size for path in [*files, manifest])

    def _remove_leftovers(self) -> None:
        """Removes what a failed write or a dead process left: who has the lease knows that earlier owners are gone.

        What a later owner writes stays: this process has lost the lease then, and learns of it.
        """
        for path in self.base.glob(f"{_TEMPORARY}*"):
            epoch = path.name.removeprefix(_TEMPORARY).partition("-")[0]
            if not (epoch.isdecimal() and self._writer.epoch < int(epoch) < _EPOCHS):
                shutil.rmtree(path, ignore_errors=True)


def _not_finite(store: EmbeddingStore) -> dict[str, np.ndarray]:
    """{table: ids of entries with a weight that is not finite}, without tables that have none."""
    found = {}
    for table in store.tables:
        pages = [page.ids[~np.isfinite(page.values[:, : table.dim]).all(axis=1)] for page in store.entries(table.name)]
        ids = np.concatenate(pages) if pages else np.zeros(0, np.int64)
        if len(ids):
            count_not_finite(table.name, ids)
            found[table.name] = ids
    return found


def _leave_out(snapshot: Path, tables: list[TableConfig], ids: dict[str, np.ndarray], name: str) -> None:
    """Removes entries from table files; they are read into memory for it, which is rare enough."""
    if not ids:
        return
    store = EmbeddingStore(tables, shared_name=name)
    try:
        store.restore(snapshot)
        for table, unwanted in ids.items():
            store.erase(table, unwanted)
        cut = store.cut()
        shutil.rmtree(snapshot)
        cut.write(snapshot, with_state=False)
    finally:
        EmbeddingStore.release(name)


def export_checkpoint(task: Task, model_dir: Path) -> Export:
    """Exports the newest checkpoint of `model_dir` that verifies.

    Raises:
      UserError: there is none, or a trainer is at work in the folder.
    """
    lease = Lease(model_dir)
    try:
        step = new_step(task, f"{task.name}/export")
        restored = Checkpoints(model_dir, task.name, task.schema_fingerprint()).restore(step)
        if not restored.name:
            raise UserError("--model-dir", model_dir, "no checkpoint there verifies", "let a trainer save one")
        exporter = Exporter(task, model_dir, ModelWriter(task.name, restored.lineage, restored.epoch))
        cut = exporter.cut(step, delta_position=(restored.delta_sequence, 0), event_clock=restored.event_clock)
        return exporter.write(cut, step)
    finally:
        lease.close()
