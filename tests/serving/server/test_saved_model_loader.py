"""Exports with embedding tables, loaded beside each other and freed again."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from prometheus_client import REGISTRY

from millrace.ops.embedding_table import EmbeddingStore
from millrace.runtime.kafka_client import KafkaConnection
from millrace.serving.server.errors import ExportError
from millrace.serving.server.model_roots import ModelRoots
from millrace.serving.server.saved_model_loader import SavedModelLoader, SavedModelServable
from millrace.serving.server.servable import VersionSource
from tests.fakes.exports import MODEL, write_export, write_table_export


def _click(loader: SavedModelLoader, items: list[int]) -> list[float]:
    outputs = loader.load().run("", {"item_id": np.array(items, np.int64)})
    return [round(float(value), 4) for value in outputs["click"]]


def test_two_versions_with_tables_live_side_by_side_and_are_freed(tmp_path: Path) -> None:
    write_table_export(tmp_path, 1, {7: 0.25})
    write_table_export(tmp_path, 2, {7: 0.5, 8: 0.75})
    old, new = (SavedModelLoader(MODEL, version, VersionSource(str(tmp_path / str(version)))) for version in (1, 2))
    assert _click(old, [7, 8]) == [0.25, 0.0]
    assert _click(new, [7, 8]) == [0.5, 0.75]
    old.unload()
    with pytest.raises(tf.errors.NotFoundError):
        EmbeddingStore.attach(f"{MODEL}@1")
    assert EmbeddingStore.attach(f"{MODEL}@2").size("item") == 2
    new.unload()
    again = SavedModelLoader(MODEL, 1, VersionSource(str(tmp_path / "1")))
    assert _click(again, [7]) == [0.25]
    again.unload()


def test_what_is_assigned_to_the_store_is_what_the_signature_reads(tmp_path: Path) -> None:
    write_table_export(tmp_path, 3, {7: 0.25})
    loader = SavedModelLoader(MODEL, 3, VersionSource(str(tmp_path / "3")))
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
    loader = SavedModelLoader(
        MODEL, 1, VersionSource(str(export)), KafkaConnection("127.0.0.1:1"), catch_up_seconds=0.1
    )
    with pytest.raises(ExportError, match="2 dense variables are named, the SavedModel has 1"):
        loader.load()


def test_without_a_broker_an_export_is_served_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export = write_export(tmp_path, 1, bias=0.5, delta_topic="deltas")
    loader = SavedModelLoader(
        MODEL, 1, VersionSource(str(export)), KafkaConnection("127.0.0.1:1"), catch_up_seconds=0.2
    )
    servable = loader.load()
    assert "user_id" in servable.inputs("")
    assert "not read to its end" in caplog.text
    loader.unload()


def test_a_second_load_of_a_version_has_tables_of_its_own(tmp_path: Path) -> None:
    write_table_export(tmp_path, 1, {7: 0.25})
    first, second = (SavedModelLoader(MODEL, 1, VersionSource(str(tmp_path / "1"))) for _ in range(2))
    serving = first.load()
    replacement = second.load()
    EmbeddingStore.attach(f"{MODEL}@1").assign("item", np.array([7]), np.array([[9.0]], np.float32))

    def click(servable: SavedModelServable) -> float:
        return float(servable.run("", {"item_id": np.array([7], np.int64)})["click"][0])

    assert (click(serving), click(replacement)) == (9.0, 0.25)
    first.unload()
    assert click(replacement) == 0.25
    second.unload()
    with pytest.raises(tf.errors.NotFoundError):
        EmbeddingStore.attach(f"{MODEL}@1")


def test_a_load_that_fails_leaves_the_tables_of_another_load_alone(tmp_path: Path) -> None:
    write_table_export(tmp_path, 1, {7: 0.25})
    first = SavedModelLoader(MODEL, 1, VersionSource(str(tmp_path / "1")))
    first.load()
    manifest = tmp_path / "1" / "assets.extra" / "millrace.json"
    manifest.write_text(
        manifest.read_text()
        .replace('["bias"]', '["bias", "kernel"]')
        .replace('"delta_topic": ""', '"delta_topic": "d"')
        .replace('"delta_offsets": {}', '"delta_offsets": {"0": 0}')
    )
    second = SavedModelLoader(MODEL, 1, VersionSource(str(tmp_path / "1")), KafkaConnection("127.0.0.1:1"))
    with pytest.raises(ExportError, match="2 dense variables"):
        second.load()
    assert EmbeddingStore.attach(f"{MODEL}@1").size("item") == 1
    first.unload()


def test_an_export_outside_of_the_roots_is_not_loaded_even_through_a_link(tmp_path: Path) -> None:
    write_export(tmp_path / "outside", 1)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "1").symlink_to(tmp_path / "outside" / "1")
    source = VersionSource(str(tmp_path / "models" / "1"))
    loader = SavedModelLoader(MODEL, 1, source, roots=ModelRoots([str(tmp_path / "models")]))
    with pytest.raises(ExportError, match="is not below a --model-root"):
        loader.load()


def test_the_age_of_an_export_is_known_before_the_first_delta(tmp_path: Path) -> None:
    export = write_export(tmp_path, 1, delta_topic="deltas")
    manifest = export / "assets.extra" / "millrace.json"
    manifest.write_text(manifest.read_text().replace('"created_at_ms"', '"event_time_ms": 1000, "created_at_ms"'))
    loader = SavedModelLoader(
        MODEL, 1, VersionSource(str(export)), KafkaConnection("127.0.0.1:1"), catch_up_seconds=0.1
    )
    loader.load()
    fresh = loader.freshness()
    assert fresh.model_age_ms > fresh.delta_lag_ms >= 100
    assert not fresh.resync_required
    labels = {"model": MODEL, "version": "1"}
    assert REGISTRY.get_sample_value("millrace_delta_lag_seconds", labels) is not None
    loader.unload()
    assert REGISTRY.get_sample_value("millrace_delta_lag_seconds", labels) is None
