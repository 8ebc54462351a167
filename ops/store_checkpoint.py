"""Embedding stores in tf.train.Checkpoint: saved and restored with the variables of the objects that reach them.

    checkpoint = tf.train.Checkpoint(model=model, step=step)  # model.store is an EmbeddingStore
    manager = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=3)
    manager.save()
    checkpoint.restore(manager.latest_checkpoint)

The tables of checkpoint `ckpt-7` lie in a folder `ckpt-7.tables-<microseconds>` beside its index, written before it;
the checkpoint names their files. So no index names half a snapshot, also when a prefix is written twice. To copy a
checkpoint, copy `ckpt-7.*`, folders included.

TensorFlow deletes a checkpoint's own files only. So a save first removes folders of tables that no checkpoint of its
name (but for the number) refers to: a deleted checkpoint's tables go with the next save, as do those of a save that
failed. Two jobs must not save under one prefix.

The tables of one store are saved as of one moment. Different stores, and stores and variables, are not: save between
two steps. A store is restored whole or not at all.
"""

import re
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

# The registry of savers has no public name.
from tensorflow.python.saved_model import registration

from millrace.ops import library
from millrace.ops.expired_entries import report_expired

_SAVER = ("Millrace", "EmbeddingStore")
_CHILD = "tables"
_FOLDER = ".tables-"
_KEY = "/FILES"
_NEWEST = -1  # watermark: the newest time stamp of each table


class CheckpointedStore(tf.saved_model.experimental.TrackableResource):
    """A store that checkpoints save. In a SavedModel it carries its tables as assets instead."""

    def __init__(self, device: str) -> None:
        super().__init__(device=device)
        self._in_checkpoint = _Tables(self)

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        children = super()._trackable_children(save_type, **kwargs)
        return {**children, _CHILD: self._in_checkpoint} if save_type == "checkpoint" else children


class _Tables(tf.Module):
    """The child of a store that a checkpoint saves."""

    def __init__(self, store: CheckpointedStore) -> None:
        super().__init__()
        self._store = weakref.ref(store)  # the store is freed with its last user, not by the garbage collector

    @property
    def handle(self) -> tf.Tensor:
        store = self._store()
        assert store is not None, "a checkpoint reaches its tables through the store"
        return store.resource_handle

    def report(self, written: tf.Tensor, expired: tf.Tensor) -> None:
        """Logs what a save left out; both int64 [tables], entries."""
        store: Any = self._store()
        names = [table.name for table in store.tables]
        report_expired(store.shared_name, names, written.numpy().tolist(), expired.numpy().tolist())


def _save(trackables: Mapping[str, _Tables], file_prefix: tf.Tensor) -> tf.Tensor:
    """Writes all tables, and a part of the checkpoint that names their files; returns its prefix."""
    prefix = tf.strings.regex_replace(file_prefix, re.escape("-" + ".".join(_SAVER)) + "$", "")
    tf.py_function(_remove_unnamed_folders, [prefix], [])
    microseconds = tf.strings.as_string(tf.cast(tf.timestamp() * 1e6, tf.int64))
    folder = tf.strings.join([prefix, _FOLDER, microseconds])
    files = [_write(tables, tf.strings.join([folder, "/", name])) for name, tables in trackables.items()]
    saved = tf.raw_ops.SaveV2(
        prefix=file_prefix,
        tensor_names=_keys(trackables),
        shape_and_slices=[""] * len(files),
        tensors=[tf.strings.substr(paths, tf.strings.length(_parent(prefix)), tf.int32.max) for paths in files],
    )
    with tf.control_dependencies([saved]):
        return tf.identity(file_prefix)


def _restore(trackables: Mapping[str, _Tables], merged_prefix: tf.Tensor) -> None:
    """Replaces the content of all tables by that of the files that the checkpoint names."""
    files = tf.raw_ops.RestoreV2(
        prefix=merged_prefix,
        tensor_names=_keys(trackables),
        shape_and_slices=[""] * len(trackables),
        dtypes=[tf.string] * len(trackables),
    )
    for tables, names in zip(trackables.values(), files, strict=True):
        library.load().millrace_restore(store=tables.handle, files=tf.strings.join([_parent(merged_prefix), names]))


def _keys(trackables: Mapping[str, _Tables]) -> list[str]:
    return [f"{name}{_KEY}" for name in trackables]


def _write(tables: _Tables, folder: tf.Tensor) -> tf.Tensor:
    """Paths of the files that the store's tables are in afterwards."""
    ops = library.load()
    handle = tables.handle
    cut = ops.millrace_begin_cut(store=handle, watermark=tf.constant(_NEWEST, tf.int64))
    with tf.device(handle.device):
        files, written, expired = ops.millrace_write_cut(cut=cut, folder=folder)
    tf.py_function(tables.report, [written, expired], [])
    return files


def _parent(prefix: tf.Tensor) -> tf.Tensor:
    """The folder of a checkpoint, with a slash; empty for a prefix without one."""
    return tf.strings.regex_replace(prefix, "[^/]*$", "")


def _remove_unnamed_folders(prefix: tf.Tensor) -> None:
    """Removes folders of tables that no checkpoint named like `prefix`, but for its number, refers to."""
    path = Path(prefix.numpy().decode())
    family = re.escape(re.sub(r"-\d+$", "", path.name))
    pattern = re.compile(rf"({family}(-\d+)?){re.escape(_FOLDER)}\d+")
    for folder in list(path.parent.iterdir()):
        match = pattern.fullmatch(folder.name)
        if match and not _is_named(folder.name, path.parent / match[1]):
            shutil.rmtree(folder)


def _is_named(folder: str, checkpoint: Path) -> bool:
    """Whether a checkpoint, that may have been deleted, has its tables in `folder`."""
    if not checkpoint.with_name(f"{checkpoint.name}.index").exists():
        return False
    try:
        reader = tf.train.load_checkpoint(str(checkpoint))
    except tf.errors.OpError:
        return True  # a damaged checkpoint may still be repaired by hand
    keys = [key for key in reader.get_variable_to_shape_map() if key.endswith(_CHILD + _KEY)]
    return any(file.decode().startswith(f"{folder}/") for key in keys for file in reader.get_tensor(key))


registration.register_checkpoint_saver(
    *_SAVER, predicate=lambda node: isinstance(node, _Tables), save_fn=_save, restore_fn=_restore
)
