"""Small exports as the trainer lays them out."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Sgd, TableConfig, Zeros
from millrace.runtime.checksum import crc32c_of_file
from tests.fakes.stores import open_store

MODEL = "tiny"


class TinyModel(tf.Module):
    """click = bias for every row; version = the version for every row."""

    def __init__(self, bias: float, version: int) -> None:
        super().__init__()
        self.bias = tf.Variable([bias], dtype=tf.float32)
        self.dense_variables = [self.bias]
        self._version = version

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, "user_id"),
            tf.TensorSpec([None], tf.int64, "item_id"),
            tf.TensorSpec([None], tf.string, "context.device"),
        ]
    )
    def score(self, user_id: tf.Tensor, item_id: tf.Tensor, device: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.cast(user_id + item_id, tf.float32) * 0.0 + tf.cast(tf.strings.length(device), tf.float32) * 0.0
        return {"click": rows + self.bias, "version": tf.cast(rows, tf.int64) + self._version}


class TableModel(tf.Module):
    """click = the weight of the item in table "item" (0.0 for an unknown one) + bias."""

    def __init__(self, store: EmbeddingStore, bias: float) -> None:
        super().__init__()
        self.store = store
        self.bias = tf.Variable([bias], dtype=tf.float32)
        self.dense_variables = [self.bias]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "item_id")])
    def score(self, item_id: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"click": self.store.lookup("item", item_id)[:, 0] + self.bias}


def write_export(
    base_path: Path,
    version: int,
    bias: float = 0.0,
    delta_topic: str = "",
    delta_offset: int = 0,
    delta_sequence: int = 0,
    model: str = MODEL,
) -> Path:
    """Writes one version of a TinyModel below `base_path`; returns its folder."""
    temporary = base_path / f"temp-{version}"
    tiny = TinyModel(bias, version)
    tf.saved_model.save(tiny, str(temporary), signatures={"serving_default": tiny.score})
    deltas = {"delta_topic": delta_topic, "delta_offsets": {"0": delta_offset} if delta_topic else {}}
    return _publish(temporary, model, version, deltas | {"delta_sequence": delta_sequence})


def write_table_export(
    base_path: Path, version: int, rows: Mapping[int, float], delta_topic: str = "", delta_offset: int = 0,
    delta_sequence: int = 0, model: str = MODEL, **fields: object,
) -> Path:  # fmt: skip
    """Writes one version of a TableModel whose items have these weights; returns its folder.

    `fields` replace fields of the manifest.
    """
    temporary = base_path / f"temp-{version}"
    snapshot = base_path / f"temp-{version}-tables"
    shared_name = f"{model}@{version}"
    tables = [TableConfig("item", dim=1, optimizer=Sgd(0.1), initializer=Zeros())]
    source = open_store(*tables)
    source.assign("item", list(rows), [[value] for value in rows.values()])
    source.save(snapshot, with_state=False)
    serving = EmbeddingStore([table.for_serving() for table in tables], shared_name, snapshot=snapshot)
    table_model = TableModel(serving, 0.0)
    tf.saved_model.save(table_model, str(temporary), signatures={"serving_default": table_model.score})
    EmbeddingStore.release(shared_name)
    shutil.rmtree(snapshot)
    deltas = {"delta_topic": delta_topic, "delta_offsets": {"0": delta_offset} if delta_topic else {}}
    tables_fields = {"store": shared_name, "tables": ["item"], "delta_sequence": delta_sequence}
    signature = {"signature": {"inputs": {"item_id": "int64"}, "outputs": ["click"]}}
    return _publish(temporary, model, version, deltas | tables_fields | signature | fields)


def _publish(temporary: Path, model: str, version: int, fields: Mapping[str, object]) -> Path:
    """Adds the manifest and gives the export its name, as an exporter does last."""
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {
        "schema_version": 1,
        "model_name": model,
        "version": version,
        "global_step": version,
        "store": "",
        "tables": [],
        "dense_variables": ["bias"],
        "created_at_ms": time.time_ns() // 1_000_000,
        "signature": {"inputs": {}, "outputs": []},
        "files": [
            {
                "path": str(path.relative_to(temporary)),
                "size_bytes": path.stat().st_size,
                "crc32c": crc32c_of_file(path),
            }
            for path in files
        ],
    }
    (temporary / "assets.extra").mkdir()
    (temporary / "assets.extra" / "millrace.json").write_text(json.dumps(manifest | dict(fields)))
    return temporary.rename(temporary.with_name(str(version)))
