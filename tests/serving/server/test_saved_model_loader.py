"""Exports with embedding tables, loaded beside each other and freed again."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.runtime.kafka_client import KafkaConnection
from millrace.serving.server.errors import ExportError
from millrace.serving.server.saved_model_loader import SavedModelLoader
from tests.fakes.exports import MODEL, write_export, write_table_export


def _click(loader: SavedModelLoader, items: list[int]) -> list[float]:
    outputs = loader.load().run("", {"item_id": np.array(items, np.int64)})
    return [round(float(value), 4) for value in outputs["click"]]


def test_two_versions_with_tables_live_side_by_side_and_are_freed(tmp_path: Path) -> None:
    write_table_export(tmp_path, 1, {7: 0.25})
    write_table_export(tmp_path, 2, {7: 0.5, 8: 0.75})
    old, new = (SavedModelLoader(MODEL, version, str(tmp_path / str(version))) for version in (1, 2))
    assert _click(old, [7, 8]) == [0.25, 0.0]
    assert _click(new, [7, 8]) == [0.5, 0.75]
    old.unload()
    with pytest.raises(tf.errors.NotFoundError):
        EmbeddingStore.attach(f"{MODEL}@1")
    assert EmbeddingStore.attach(f"{MODEL}@2").size("item") == 2
    new.unload()
    again = SavedModelLoader(MODEL, 1, str(tmp_path / "1"))
    assert _click(again, [7]) == [0.25]
    again.unload()


def test_what_is_assigned_to_the_store_is_what_the_signature_reads(tmp_path: Path) -> None:
    write_table_export(tmp_path, 3, {7: 0.25})
    loader = SavedModelLoader(MODEL, 3, str(tmp_path / "3"))
    servable = loader.load()
    store = EmbeddingStore.attach(f"{MODEL}@3")
    store.assign("item", np.array([7, 9]), np.array([[1.0], [2.0]], np.float32))
    store.erase("item", np.array([7]))
    outputs = servable.run("", {"item_id": np.array([7, 9], np.int64)})
    assert outputs["click"].tolist() == [0.0, 2.0]
    loader.unload()


def test_a_manifest_that_names_other_dense_variables_is_refused(tmp_path: Path) -> None:
    export = write_export(tmp_path, 1, delta_topic="deltas")
    manifest = export / "assets.extra" / "millrace.json"
    manifest.write_text(manifest.read_text().replace('["bias"]', '["bias", "kernel"]'))
    loader = SavedModelLoader(MODEL, 1, str(export), KafkaConnection("127.0.0.1:1"), catch_up_seconds=0.1)
    with pytest.raises(ExportError, match="2 dense variables are named, the SavedModel has 1"):
        loader.load()


def test_without_a_broker_an_export_is_served_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export = write_export(tmp_path, 1, bias=0.5, delta_topic="deltas")
    loader = SavedModelLoader(MODEL, 1, str(export), KafkaConnection("127.0.0.1:1"), catch_up_seconds=0.2)
    servable = loader.load()
    assert "user_id" in servable.inputs("")
    assert "not read to its end" in caplog.text
    loader.unload()
