"""Standalone SavedModels: raw columns go in, one probability per head comes out; the graph computes the fids."""

import json
import shutil
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from millrace.ops.embedding_table import NOW, Cut, EmbeddingStore
from millrace.runtime.atomic_file import sync_folder, sync_tree
from millrace.runtime.checksum import crc32c_of_file
from millrace.runtime.errors import UserError
from millrace.training.state.checkpoint import Checkpoints
from millrace.training.step.train_step import TrainStep, new_step
from millrace.training.task import SparseFeature, Task
from millrace.training.task.heads import DenseModel
from millrace.transforms.batch.fid import SIGNATURE_BITS
from millrace.transforms.batch.hashes import HASH_KEY

_HASH_KEY = list(struct.unpack("<QQ", HASH_KEY))
_TEMPORARY = "temp-"
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
    """

    version: int
    global_step: int
    tables: Cut
    snapshot: Path
    dense: list[np.ndarray]
    delta_topic: str = ""
    delta_sequence: int = 0
    delta_offset: int = 0


@dataclass(frozen=True)
class Export:
    """A version on disk, all of whose files are durable."""

    version: int
    global_step: int
    path: Path
    size_bytes: int


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

    A version is written under another name, synced and then renamed, so a folder with a number is always complete.

    Args:
      keep: newest versions that stay: one that is served, one that is being loaded, and one to go back to.
    """

    def __init__(self, task: Task, model_dir: Path, keep: int = 3) -> None:
        self._task, self._keep = task, keep
        self.base = model_dir / "exports" / "standalone"

    def versions(self) -> list[int]:
        """The numbers of the versions on disk, ascending."""
        if not self.base.is_dir():
            return []
        return sorted(int(path.name) for path in self.base.iterdir() if path.name.isdecimal())

    def cut(
        self,
        step: TrainStep,
        delta_topic: str = "",
        delta_sequence: int = 0,
        delta_offset: int = 0,
        event_clock: int = 0,
    ) -> ExportCut:
        """Holds the model as it is now; to be called between steps.

        Args:
          delta_topic, delta_sequence, delta_offset: see ExportCut.
          event_clock: Unix seconds; entries that are expired by then are left out. 0: by the wall clock.

        Raises:
          OSError, tf.errors.OpError: the disk failed.
        """
        version = max([int(time.time()), *(version + 1 for version in self.versions()[-1:])])
        snapshot = self.base / f"{_TEMPORARY}{version}.tables"
        self.base.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        dense = [np.array(variable.numpy()) for variable in step.dense.variables]
        global_step = int(step.global_step.numpy())
        return ExportCut(
            version,
            global_step,
            step.store.cut(event_clock or NOW),
            snapshot,
            dense,
            delta_topic,
            delta_sequence,
            delta_offset,
        )

    def write(self, cut: ExportCut, step: TrainStep) -> Export:
        """Makes the cut a durable version and removes the oldest ones; steps may go on meanwhile.

        Raises:
          OSError, tf.errors.OpError: the disk failed.
        """
        store_name = f"{self._task.name}@{cut.version}"
        temporary = self.base / f"{_TEMPORARY}{cut.version}"
        cut.tables.write(cut.snapshot, with_state=False)
        tables = [table.for_serving() for table in self._task.tables()]
        store = EmbeddingStore(tables, shared_name=store_name, snapshot=str(cut.snapshot))
        try:
            model = ServingModel(self._task, step.dense, cut.dense, store)
            tf.saved_model.save(model, str(temporary), signatures={"serving_default": model.predict})
        finally:
            EmbeddingStore.release(store_name)
        shutil.rmtree(cut.snapshot)
        size = self._describe(cut, temporary, store_name, step.dense.names)
        sync_tree(temporary)
        path = self.base / str(cut.version)
        temporary.rename(path)
        sync_folder(self.base)
        for old in self.versions()[: -self._keep]:
            shutil.rmtree(self.base / str(old), ignore_errors=True)
        return Export(cut.version, cut.global_step, path, size)

    def _describe(self, cut: ExportCut, folder: Path, store_name: str, dense_names: list[str]) -> int:
        """Writes assets.extra/millrace.json; returns the size of all files."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        description = {
            "schema_version": 1,
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
        """Removes what a crash left. Only one export is written at a time, so none of it is in use."""
        for path in self.base.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)


def export_checkpoint(task: Task, model_dir: Path) -> Export:
    """Exports the newest checkpoint of `model_dir` that verifies. Raises UserError when there is none."""
    step = new_step(task, f"{task.name}/export")
    restored = Checkpoints(model_dir, task.name, task.schema_fingerprint()).restore(step)
    if not restored.name:
        raise UserError("--model-dir", model_dir, "no checkpoint there verifies", "let a trainer save one")
    exporter = Exporter(task, model_dir)
    cut = exporter.cut(step, delta_sequence=restored.delta_sequence)
    return exporter.write(cut, step)
