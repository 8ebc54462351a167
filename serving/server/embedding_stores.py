"""Loads SavedModels with embedding stores, each load with a store of its own."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from millrace.serving.deltas.delta_applier import EmbeddingTables

_OPEN_STORE = "Millrace>OpenStore"
_NAME = "store_name"
_GRAPH = "saved_model.pb"
_loads = itertools.count(1)


class StoreAccess:
    """Access to the embedding stores that loading a SavedModel opens (`millrace.ops.embedding_table`)."""

    def load(self, folder: Path, shared_name: str) -> tuple[Any, str]:
        """The SavedModel in `folder` and the name of its store.

        An export names its store, and a process has one store of a name. A second load of it, or of a version of the
        same number from elsewhere, would therefore share the tables of the first, which answers requests. So it is
        loaded from a copy of its graph that names another store; what is large stays where it is.
        """
        from millrace.ops import library

        library.load()
        name = f"{shared_name}#{next(_loads)}" if self._is_open(shared_name) else shared_name
        try:
            if name == shared_name:
                return tf.saved_model.load(str(folder)), name
            with tempfile.TemporaryDirectory(prefix="millrace-serve-") as copy:
                _copy_renamed(folder, Path(copy), shared_name, name)
                return tf.saved_model.load(copy), name
        except BaseException:
            self.release(name)
            raise

    def attach(self, shared_name: str) -> EmbeddingTables:
        from millrace.ops.embedding_table import EmbeddingStore

        store: EmbeddingTables = EmbeddingStore.attach(shared_name)
        return store

    def release(self, shared_name: str) -> None:
        """Frees the tables of an unloaded version."""
        from millrace.ops.embedding_table import EmbeddingStore

        EmbeddingStore.release(shared_name)

    def _is_open(self, shared_name: str) -> bool:
        try:
            self.attach(shared_name)
        except tf.errors.NotFoundError:
            return False
        return True


def _copy_renamed(folder: Path, copy: Path, old: str, new: str) -> None:
    """`folder` with another name of its store: links to all files but the graph."""
    for path in folder.iterdir():
        if path.name != _GRAPH:
            (copy / path.name).symlink_to(path.resolve())
    graph = saved_model_pb2.SavedModel.FromString((folder / _GRAPH).read_bytes())
    _rename_store(graph, old, new)
    (copy / _GRAPH).write_bytes(graph.SerializeToString())


def _rename_store(graph: saved_model_pb2.SavedModel, old: str, new: str) -> None:
    for meta in graph.meta_graphs:
        nodes = itertools.chain(
            meta.graph_def.node, *(function.node_def for function in meta.graph_def.library.function)
        )
        for node in nodes:
            if node.op == _OPEN_STORE and node.attr[_NAME].s == old.encode():
                node.attr[_NAME].s = new.encode()
