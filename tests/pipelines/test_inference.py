"""RunInference with exports: batches in, the same batches with scores out."""

import copy
import gc
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from apache_beam.ml.inference.base import RunInference
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that
from apache_beam.yaml import main as beam_yaml

from millrace.cli import main
from millrace.examples.feed_ranking import FeedRanking
from millrace.ops.embedding_table import NOW, EmbeddingStore
from millrace.pipelines.inference import ExportedModel, ExportHandler
from millrace.runtime.errors import UserError
from millrace.training.publish.exporter import Exporter
from millrace.training.step.train_step import TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.layout import TrainLayout
from millrace.transforms.batch import record_batch
from tests.fakes.exports import write_export, write_table_export
from tests.fakes.train_blocks import make_batch


def _rows(items: list[int | None]) -> pa.RecordBatch:
    columns = {"user_id": [1] * len(items), "item_id": items, "context.device": ["phone", None, "tv"][: len(items)]}
    types = {"user_id": pa.int64(), "item_id": pa.int64(), "context.device": pa.string()}
    return pa.record_batch({name: pa.array(values, types[name]) for name, values in columns.items()})


def _equal_scores(expected: dict[int, list[float]]) -> Callable[[list[pa.RecordBatch]], None]:
    def check(batches: list[pa.RecordBatch]) -> None:
        scores = {batch.num_rows: batch.column("score.click").to_pylist() for batch in batches}
        assert scores == expected, f"{scores} != {expected}"

    return check


def test_a_pipeline_scores_batches_with_the_tables_of_an_export(tmp_path: Path) -> None:
    folder = write_table_export(tmp_path, 3, {7: 0.5, 8: -1.0})
    with TestPipeline() as pipeline:
        batches = pipeline | beam.Create([_rows([7, 8, 9]), _rows([8]), _rows([])])
        scored = batches | RunInference(ExportHandler(folder))
        assert_that(scored, _equal_scores({3: [0.5, -1.0, 0.0], 1: [-1.0], 0: []}))


@pytest.mark.parametrize("converted", [True, False], ids=["JSON lines, converted", "plain Parquet"])
def test_the_example_in_beam_yaml_scores_a_file_of_requests(tmp_path: Path, converted: bool) -> None:
    requests = [{"user_id": 1, "item_id": item, "device": "phone"} for item in (7, 8, 9)]
    if converted:
        (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, requests)))
        arguments = main._parse(["records", "convert", f"{tmp_path}/requests.jsonl", f"{tmp_path}/requests.parquet"])
        assert arguments.run(arguments) == 0
    else:
        pq.write_table(pa.Table.from_pylist(requests), tmp_path / "requests.parquet")
    export = write_table_export(tmp_path, 9, {7: 0.5, 8: -1.0})
    paths = {"input": f"{tmp_path}/requests.parquet", "export": str(export), "output": f"{tmp_path}/scored"}
    example = Path(__file__).resolve().parents[2] / "examples" / "recipes" / "score.beam.yaml"
    flags = [f"--yaml_pipeline_file={example}", f"--jinja_variables={json.dumps(paths)}"]
    beam_yaml.run([*flags, "--json_schema_validation=none"])
    scored = pq.read_table(tmp_path / "scored")
    items = scored["item_id"].to_pylist() if converted else [item for (item,) in scored["item_id"].to_pylist()]
    assert dict(zip(items, scored["score.click"].to_pylist(), strict=True)) == {7: 0.5, 8: -1.0, 9: 0.0}


def test_the_columns_of_a_batch_stay_beside_its_scores(tmp_path: Path) -> None:
    model = ExportHandler(write_export(tmp_path, 2, bias=0.25)).load_model()
    rows = _rows([7, None, 9]).slice(1)
    scored = model.score(rows, {})
    assert scored.schema.names == [*rows.schema.names, "score.click", "score.version"]
    assert scored.select(rows.schema.names).equals(rows)
    assert scored.column("score.click").to_pylist() == [0.25, 0.25]
    assert scored.column("score.version").to_pylist() == [2, 2]


def test_an_input_may_have_a_column_of_any_name(tmp_path: Path) -> None:
    folder = write_table_export(tmp_path, 4, {7: 0.5})
    handler = ExportHandler(folder, {"item_id": "__ITEM_ID__"})
    batch = pa.record_batch({"__ITEM_ID__": pa.array([7, 6], pa.int32())})
    (scored,) = handler.run_inference([batch], handler.load_model())
    assert scored.column("score.click").to_pylist() == [0.5, 0.0]


def test_a_newer_version_takes_over_and_the_tables_of_the_older_one_are_freed(tmp_path: Path) -> None:
    handler = ExportHandler(write_table_export(tmp_path, 5, {7: 0.5}))
    model = handler.load_model()
    handler.update_model_path(str(write_table_export(tmp_path, 6, {7: 0.75})))
    handler.update_model_path(None)
    newer = handler.load_model()
    EmbeddingStore.attach("tiny@5")
    del model
    gc.collect()
    with pytest.raises(tf.errors.NotFoundError):
        EmbeddingStore.attach("tiny@5")
    (scored,) = handler.run_inference([_rows([7])], newer)
    assert scored.column("score.click").to_pylist() == [0.75]


def test_a_handler_travels_to_workers(tmp_path: Path) -> None:
    handler = ExportHandler(write_export(tmp_path, 1, bias=0.5))
    for other in (pickle.loads(pickle.dumps(handler)), copy.deepcopy(handler)):
        (scored,) = other.run_inference([_rows([1])], other.load_model())
        assert scored.column("score.click").to_pylist() == [0.5]
        assert other.get_num_bytes([_rows([1])]) == _rows([1]).nbytes


def test_a_missing_or_wrong_column_is_named(tmp_path: Path) -> None:
    model = ExportedModel(write_export(tmp_path, 1))
    with pytest.raises(UserError, match="input=user_id: the batch has no column user_id or context.user_id"):
        model.score(_rows([1]).drop_columns(["user_id"]), {})
    with pytest.raises(UserError, match="input=user_id: the batch has no column nobody"):
        model.score(_rows([1]), {"user_id": "nobody"})
    for values in (pa.array([[1, 2]]), pa.array(["phone"])):
        with pytest.raises(
            UserError, match="column user_id=.*: does not fit the model input user_id, .* one int64 per"
        ):
            model.score(_rows([1]).set_column(0, "user_id", values), {})


def test_the_fids_of_a_feeds_rows_are_refused_with_what_to_score_in_their_place(tmp_path: Path) -> None:
    model = ExportedModel(write_export(tmp_path, 1))
    rows = _rows([1]).set_column(0, record_batch.fid_field("user_id"), pa.array([[1 << 48]]))
    with pytest.raises(UserError, match="column user_id=list<.*int64>: holds fids, .* score rows of raw values"):
        model.score(rows, {})


def test_lists_of_one_value_are_scored_like_the_values(tmp_path: Path) -> None:
    model = ExportedModel(write_table_export(tmp_path, 1, {-1: 0.25, 7: 0.5, 8: -1.0}))
    lists = pa.array([[9], [7], [], None, [8]], pa.list_(pa.int64())).slice(1)
    scored = model.score(pa.record_batch({"item_id": lists}), {})
    assert scored.column("score.click").to_pylist() == [0.5, 0.25, 0.25, -1.0]


def test_a_folder_that_is_no_export_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="export=.*: TensorFlow cannot load it"):
        ExportHandler(tmp_path).load_model()
    with pytest.raises(UserError, match="inference_args=.*: an export takes none"):
        ExportHandler(tmp_path).validate_inference_args({"a": 1})


class _MatrixModel(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
    def score(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x[:, 0]}


def test_a_model_of_other_shapes_is_refused_by_name(tmp_path: Path) -> None:
    model = _MatrixModel()
    tf.saved_model.save(model, str(tmp_path / "1"), signatures={"serving_default": model.score})
    with pytest.raises(UserError, match=r"x has shape \(None, 2\), not one value per row"):
        ExportHandler(tmp_path / "1").load_model()


@pytest.mark.slow
def test_a_trained_model_scores_impressions_as_its_signature_does(tmp_path: Path) -> None:
    task = FeedRanking()
    queue = BatchQueue(TrainLayout.of(task, audit=True), "test-inference")
    store, audit = new_stores(task, queue.name, audit=True)
    step = TrainStep(task, store, queue, audit)
    for i in range(3):
        batch = make_batch(task, i * 50, 50)
        queue.put(Ticket.of(batch, 1), batch)
        step.step(NOW)
    exporter = Exporter(task, tmp_path)
    export = exporter.write(exporter.cut(step), step)
    users, items = list(range(20)), list(range(20, 40))
    rows = pa.record_batch(
        {
            "user_id": users,
            "item_id": items,
            "context.hour": [i % 24 if i else None for i in range(20)],
            "context.device": ["phone" if i % 2 else None for i in range(20)],
        }
    )
    model = tf.saved_model.load(str(export.path))
    expected = model.signatures["serving_default"](
        user_id=tf.constant(users, tf.int64),
        item_id=tf.constant(items, tf.int64),
        hour=tf.constant([i % 24 if i else -1 for i in range(20)], tf.int64),
        device=tf.constant(["phone" if i % 2 else "" for i in range(20)]),
    )["click"].numpy()
    with TestPipeline() as pipeline:
        scored = pipeline | beam.Create([rows]) | RunInference(ExportHandler(export.path))
        assert_that(scored, _equal_scores({20: expected.tolist()}))
