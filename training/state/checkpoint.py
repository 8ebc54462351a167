"""Checkpoints: dense variables, tables, offsets and provenance of one moment between two steps, under one manifest."""

import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format

from millrace.ops.embedding_table import NOW, Cut, EmbeddingStore
from millrace.protos.checkpoint_pb2 import CheckpointManifest
from millrace.runtime.atomic_file import sync_folder, sync_tree, write_text
from millrace.runtime.checksum import crc32c_of_file
from millrace.runtime.errors import UserError
from millrace.training.state import dense_file
from millrace.training.state.retention import Retention, Saved, read_exempt
from millrace.training.state.temporary_folder import remove_leftovers, temporary_name
from millrace.training.step.train_step import AUDIT_TABLE, TrainStep
from millrace.training.stream.position import Position
from millrace.training.stream.seen_rows import SeenRows

_LOG = logging.getLogger(__name__)
_FORMAT_VERSION = 2
_READ_VERSIONS = (1, 2)  # 1: dense variables by position
_MANIFEST = "manifest.json"
_TABLES, _AUDIT = "tables", "audit"
_REPLACED = ".replaced"  # ending of a checkpoint's name while another one of its step takes its place
_SET_ASIDE = "suspect-"  # beginning of the name of a checkpoint that nothing goes on from
_CHECKPOINT = re.compile(rf"(\d+)({re.escape(_REPLACED)})?")


@dataclass(frozen=True)
class CheckpointCut:
    """The trainer at one moment between two steps, held in memory.

    Attributes:
      folder: checkpoints/<step>, where it will be.
      tables: {folder below `folder`: cut of a store}.
      position: a copy of the trainer's.
      delta_sequence: number of the last delta whose content the tables have.
      prediction_rows: rows of predictions.bin at this moment.
      dense: {name: value} of dense variables and their optimizer.
      event_clock, guard: see Restored.
    """

    folder: Path
    tables: dict[str, Cut]
    global_step: int
    position: Position
    delta_sequence: int
    prediction_rows: int = 0
    dense: Mapping[str, np.ndarray] = field(default_factory=dict)
    event_clock: int = 0
    guard: Mapping[str, Any] = field(default_factory=dict)

    def drop(self) -> None:
        """Frees what a cut that is not written holds: a store takes no other one before."""
        for cut in self.tables.values():
            cut.drop()


@dataclass(frozen=True)
class Restored:
    """What a trainer goes on from.

    Attributes:
      event_clock: Unix seconds, the event time up to which the model has learned; 0 when it is not known.
      guard: what the guard knew of the past, see `Judge.past`; empty when nothing is known.
      name: of the checkpoint's folder; empty without a checkpoint, when everything stands at the beginning.
      lineage, epoch: of the trainer that saved it; empty and 0 when it is from before there were lineages.
    """

    position: Position = field(default_factory=Position)
    global_step: int = 0
    delta_sequence: int = 0
    prediction_rows: int = 0
    name: str = ""
    event_clock: int = 0
    guard: Mapping[str, Any] = field(default_factory=dict)
    lineage: str = ""
    epoch: int = 0


class CheckpointError(ValueError):
    """A file of a checkpoint is missing, torn or corrupt; the message names it."""


class UnfinishedError(CheckpointError):
    """The folder has no manifest: the process that wrote it has died."""


class Checkpoints:
    """The checkpoints of one model, in `<model_dir>/checkpoints/<step>`.

    A folder is a checkpoint only with a manifest whose files verify. It is written under another name and renamed when
    all of it is durable, so after a crash at any point the checkpoint before is still there, also one of the same step.

    Args:
      schema_fingerprint: of the task; a checkpoint with another one is refused.
      keep, keep_every_seconds: which checkpoints stay, see Retention. `<model_dir>/exempt_checkpoints.json` names
        others that stay, too; it is read at each save.

    Attributes:
      trusted_ms: Unix milliseconds; the newest checkpoint from before stays, whatever the rules say. 0: none does.
    """

    def __init__(
        self,
        model_dir: Path,
        model_name: str,
        schema_fingerprint: str,
        keep: int = 3,
        keep_every_seconds: float | None = None,
    ) -> None:
        self._folder = model_dir / "checkpoints"
        self._exempt = model_dir / "exempt_checkpoints.json"
        self._model_name, self._fingerprint = model_name, schema_fingerprint
        self._retention = Retention(keep, keep_every_seconds)
        self.trusted_ms = 0
        self._lineage, self._epoch = "", 0

    def write_as(self, lineage: str, epoch: int) -> None:
        """Has later checkpoints say of which lineage the model is, and which epoch's trainer saved them."""
        self._lineage, self._epoch = lineage, epoch

    def cut(
        self,
        step: TrainStep,
        position: Position,
        delta_sequence: int,
        prediction_rows: int = 0,
        event_clock: int = 0,
        guard: Mapping[str, Any] | None = None,
    ) -> CheckpointCut:
        """Holds what the next step would change; to be called between steps.

        Args:
          event_clock: Unix seconds; entries that are expired by then are left out. 0: by the wall clock.
          guard: see Restored.

        Raises:
          OSError, tf.errors.OpError: the disk failed.
        """
        global_step = int(step.global_step.numpy())
        stores = {_TABLES: step.store, _AUDIT: step.audit_store}
        cuts = {name: store.cut(event_clock or NOW) for name, store in stores.items() if store is not None}
        return CheckpointCut(
            self._folder / str(global_step), cuts, global_step, position.copy(), delta_sequence,
            prediction_rows, dense_file.dense_arrays(step), event_clock, guard or {},
        )  # fmt: skip

    def finish(self, cut: CheckpointCut) -> CheckpointManifest:
        """Makes the cut durable and removes superfluous checkpoints; steps may go on meanwhile.

        Raises:
          OSError, tf.errors.OpError: the disk failed.
        """
        temporary = self._folder / temporary_name(str(cut.global_step))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            manifest = self._write(cut, temporary)
            self._put_in_place(temporary, cut.folder)
        except BaseException:
            cut.drop()
            shutil.rmtree(temporary, ignore_errors=True)  # it is no checkpoint, and the disk may be full
            for cut_of_store in cut.tables.values():
                cut_of_store.drop()  # a store takes no other cut while it holds one
            raise
        self._remove_old()
        return manifest

    def _put_in_place(self, temporary: Path, folder: Path) -> None:
        replaced = folder.with_name(folder.name + _REPLACED)
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        temporary.rename(folder)
        sync_folder(self._folder)
        if replaced.exists():
            shutil.rmtree(replaced, ignore_errors=True)

    def _write(self, cut: CheckpointCut, folder: Path) -> CheckpointManifest:
        position = cut.position
        folder.mkdir()
        for name, cut_of_store in cut.tables.items():
            cut_of_store.write(folder / name)
        state = {
            "offsets": {str(partition): offset for partition, offset in position.offsets.items()},
            "topic_ids": {str(partition): topic_id for partition, topic_id in position.topic_ids.items()},
            "rows_duplicate": position.rows_duplicate,
            "rows_too_old": position.rows_too_old,
            "rows_not_finite": position.rows_not_finite,
            "event_clock": cut.event_clock,
            "guard": cut.guard,
            "prediction_rows": cut.prediction_rows,
        }
        (folder / "offsets.json").write_text(json.dumps(state), "utf-8")
        (folder / dense_file.DENSE_FILE).write_bytes(dense_file.encode_dense(cut.dense))
        position.seen.save(folder)
        manifest = CheckpointManifest(
            format_version=_FORMAT_VERSION,
            model_name=self._model_name,
            global_step=cut.global_step,
            created_at_ms=time.time_ns() // 1_000_000,
            files=[_describe(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()],
            offsets=[
                CheckpointManifest.Offset(
                    partition=partition, next_offset=offset, topic_id=position.topic_ids.get(partition, "")
                )
                for partition, offset in sorted(position.offsets.items())
            ],
            rows_applied=position.rows_applied,
            delta_sequence=cut.delta_sequence,
            schema_fingerprint=self._fingerprint,
            lineage=self._lineage,
            epoch=self._epoch,
        )
        write_text(folder / _MANIFEST, json_format.MessageToJson(manifest, preserving_proto_field_name=True))
        sync_tree(folder)
        return manifest

    def set_aside(self, since_ms: int) -> list[Path]:
        """Renames checkpoints that were written at `since_ms`, Unix milliseconds, or later: they are restored no more.

        Those that an earlier call has set aside are removed.

        Returns: the checkpoints' folders, under their new names.

        Raises:
          UserError: none is older.
        """
        manifests = {folder: folder / _MANIFEST for folder in self._newest_first() if (folder / _MANIFEST).exists()}
        late = [folder for folder, path in manifests.items() if path.stat().st_mtime * 1000 >= since_ms]
        if late and len(late) == len(manifests):
            raise UserError(
                "--resume-from-good",
                self._folder,
                "all checkpoints were written after the model began to go wrong",
                "start a new model directory, or put a checkpoint from before there",
            )
        for folder in self._folder.glob(f"{_SET_ASIDE}*"):
            shutil.rmtree(folder, ignore_errors=True)
        return [folder.rename(folder.with_name(_SET_ASIDE + folder.name)) for folder in late]

    def restore(self, step: TrainStep) -> Restored:
        """Loads the newest checkpoint that verifies into `step`; logs a warning for each newer one that does not.

        Raises:
          UserError: the checkpoint is of another task or of another declaration of this one, or of another dense model;
            or there are checkpoints and none can be read: the folder is not empty, and to begin anew would put an empty
            model in its place.
        """
        problems = []
        for folder in self._newest_first():
            try:
                manifest = verify_checkpoint(folder)
                self._check_schema(folder, manifest)
                return self._load(folder, manifest, step)
            except (CheckpointError, dense_file.DenseFileError, OSError, tf.errors.OpError) as error:
                _LOG.warning("checkpoint %s is skipped: %s", folder, error)
                problems += [] if isinstance(error, UnfinishedError) else [error]
        if problems:
            raise UserError(
                "--model-dir",
                self._folder,
                f"none of its checkpoints can be read ({problems[0]})",
                "see that the disk is mounted and answers, put a good checkpoint there, or name another folder",
            )
        return Restored()

    def _load(self, folder: Path, manifest: CheckpointManifest, step: TrainStep) -> Restored:
        state = json.loads((folder / "offsets.json").read_text("utf-8"))
        position = Position(
            offsets={int(partition): int(offset) for partition, offset in state["offsets"].items()},
            seen=SeenRows.load(folder),
            rows_applied=manifest.rows_applied,
            rows_duplicate=state["rows_duplicate"],
            rows_too_old=state["rows_too_old"],
            rows_not_finite=state.get("rows_not_finite", 0),
            topic_ids={int(partition): str(topic_id) for partition, topic_id in state.get("topic_ids", {}).items()},
        )
        dense = self._read_dense(folder, manifest, step)
        step.store.restore(folder / _TABLES)
        if step.audit_store is not None and (folder / _AUDIT).is_dir():
            step.audit_store.restore(folder / _AUDIT)
        dense_file.assign_dense(dense, step)
        step.global_step.assign(manifest.global_step)
        return Restored(
            position, manifest.global_step, manifest.delta_sequence, state["prediction_rows"], folder.name,
            state.get("event_clock", 0), state.get("guard", {}), manifest.lineage, manifest.epoch,
        )  # fmt: skip

    def _read_dense(self, folder: Path, manifest: CheckpointManifest, step: TrainStep) -> dict[str, np.ndarray]:
        """Values of the dense variables and their optimizer that fit `step`. Raises UserError when they do not."""
        if manifest.format_version == 1:
            _LOG.warning(
                "checkpoint %s is of format 1, which has no names of dense variables: each gets the value at its "
                "position. If layers of build_model were added, removed or swapped since, start in another folder",
                folder,
            )
            arrays = dense_file.read_format_1(folder, step)
        else:
            arrays = dense_file.decode_dense((folder / dense_file.DENSE_FILE).read_bytes())
        dense_file.check_dense_fits(arrays, step, folder)
        return arrays

    def _check_schema(self, folder: Path, manifest: CheckpointManifest) -> None:
        for what, found, wanted in (
            ("model", manifest.model_name, self._model_name),
            ("schema fingerprint", manifest.schema_fingerprint, self._fingerprint),
        ):
            if found != wanted:
                raise UserError(
                    "--model-dir",
                    folder,
                    f"this checkpoint has {what} {found}, the task has {wanted}",
                    "restore the task's declaration or start in another folder",
                )

    def _newest_first(self) -> list[Path]:
        return newest_first(self._folder)

    def _remove_leftovers(self) -> None:
        """Removes what dead processes left. Before a save, not after it: on a full disk this makes room for it."""
        for path in remove_leftovers(self._folder):
            _LOG.info("%s is removed: the process that wrote it is gone", path)
        for folder in self._newest_first():
            # A folder that has a step as its name is written by nobody any more.
            if not folder.is_symlink() and not (folder / _MANIFEST).exists():
                shutil.rmtree(folder, ignore_errors=True)

    def _remove_old(self) -> None:
        manifests = [path for folder in self._newest_first() if (path := folder.resolve() / _MANIFEST).exists()]
        saved = [Saved(path.parent, path.stat().st_mtime) for path in reversed(manifests)]
        try:
            exempt = read_exempt(self._exempt)
        except (OSError, ValueError) as error:
            _LOG.warning("no checkpoint is removed: %s", error)
            return
        trusted = [each.path for each in saved if each.saved_at * 1000 < self.trusted_ms]
        for folder in self._retention.superfluous(saved, exempt | set(trusted[-1:])):
            # The manifest goes first: what a crash leaves of the rest is no checkpoint.
            (folder / _MANIFEST).unlink()
            shutil.rmtree(folder)


def newest_first(folder: Path) -> list[Path]:
    """The folders of `folder` that have a step as their name, complete or not, the highest step first.

    Among them is `<step>.replaced`, what a process that died while it put another checkpoint in its place has left.
    """
    found = [path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (_step_of(path), path.name.isdecimal()), reverse=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removesuffix(_REPLACED))


def verify_checkpoint(folder: Path) -> CheckpointManifest:
    """The manifest of a checkpoint all of whose files have the recorded size and CRC-32C.

    Raises:
      CheckpointError: naming the file that is missing, torn or corrupt.
    """
    path = folder / _MANIFEST
    try:
        manifest = json_format.Parse(path.read_text("utf-8"), CheckpointManifest())
    except FileNotFoundError as error:
        raise UnfinishedError(f"{path} is missing, it was not finished") from error
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be parsed") from error
    if manifest.format_version not in _READ_VERSIONS:
        raise CheckpointError(f"{path} has format version {manifest.format_version}, not {_FORMAT_VERSION}")
    for file in manifest.files:
        found = folder / file.path
        size = found.stat().st_size if found.is_file() else -1
        if size != file.size_bytes:
            raise CheckpointError(f"{found} has {max(size, 0)} bytes instead of {file.size_bytes}")
        if crc32c_of_file(found) != file.crc32c:
            raise CheckpointError(f"{found} is corrupt: its checksum differs from the manifest's")
    return manifest


def newest_manifest(model_dir: Path) -> tuple[Path, CheckpointManifest] | None:
    """(folder, manifest) of the newest checkpoint that verifies; None without one."""
    for folder in newest_first(model_dir / "checkpoints"):
        try:
            return folder, verify_checkpoint(folder)
        except (CheckpointError, OSError):
            continue
    return None


def read_audit(model_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """How often each source row was applied, as the newest checkpoint says: (audit fids int64 [n], float32 [n]).

    Both are empty when there is no checkpoint, or none with an audit table.
    """
    newest = newest_manifest(model_dir)
    if newest is None or not (newest[0] / _AUDIT).is_dir():
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    name = f"audit/{uuid.uuid4().hex}"
    store = EmbeddingStore([AUDIT_TABLE], shared_name=name)
    try:
        store.restore(newest[0] / _AUDIT)
        fids, counts = store.dump(AUDIT_TABLE.name)
        return fids, counts[:, 0]
    finally:
        EmbeddingStore.release(name)


def _describe(path: Path, folder: Path) -> CheckpointManifest.File:
    return CheckpointManifest.File(
        path=str(path.relative_to(folder)), size_bytes=path.stat().st_size, crc32c=crc32c_of_file(path)
    )
