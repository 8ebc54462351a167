"""The pipelines of docs/beam.md are run as they stand there."""

import re
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.pipelines.kafka.sink import KafkaRecord
from millrace.runtime.kafka_client import (
    KafkaConnection,
    ensure_topic,
    flush_or_raise,
    make_consumer,
    make_producer,
    watermarks,
)
from millrace.runtime.topics import Topics
from millrace.transforms.batch import line_id, record_batch
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.beam.codecs import DecodeAvro, DecodeTfExamples
from millrace.transforms.codecs.record_codec import decode_records, encode_records
from millrace.transforms.frames.framing import FILE_FRAMES, KAFKA_FRAMES, join_frames
from millrace.transforms.recipe.chain import TransformChain
from tests.reference.file_batches import events_block
from tests.reference.record_rows import random_rows

_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "beam.md").read_text("utf-8")


def _names() -> dict[str, Any]:
    """What all blocks of code of the page define."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", _PAGE, re.S):
        exec(compile(block, "docs/beam.md", "exec"), names)
    return names


def test_files_become_parquet_with_the_rows_of_the_recipe_and_the_refused_records(tmp_path: Path) -> None:
    names, rows = _names(), random_rows(300)
    values = pa.array([*encode_records(rows, "example").to_pylist(), b"\xff\xff"], pa.binary())
    (tmp_path / "part.pb").write_bytes(join_frames(values, FILE_FRAMES).to_pybytes())
    names["convert_files"](str(tmp_path / "*.pb"), str(tmp_path / "rows"))
    written = pa.concat_tables(pq.read_table(path) for path in (tmp_path / "rows").glob("*.parquet"))
    expected = TransformChain.parse(names["RECIPE"]).process(with_provenance(rows))
    found = written[record_batch.SOURCE_OFFSET].to_pylist()
    assert found == expected.column(record_batch.SOURCE_OFFSET).to_pylist()
    assert 50 < len(found) < 300
    assert pq.read_table(tmp_path / "rows" / "dead-letters")["reason"].to_pylist() == ["malformed_proto"]


class _WriteToFolder(beam.PTransform):
    """What stands in for Kafka: the values and reasons of the messages of a topic as files of its folder."""

    def __init__(self, folder: Path, topic: str) -> None:
        super().__init__()
        self._folder = folder / topic
        self._folder.mkdir()

    def expand(self, messages: beam.PCollection[KafkaRecord]) -> beam.PCollection[None]:
        return messages | beam.Map(_write_to, folder=self._folder)


def _write_to(message: KafkaRecord, folder: Path) -> None:
    reason = dict(message.headers).get("reason", b"")
    (folder / uuid.uuid4().hex).write_bytes(reason or message.value or b"")


def test_what_a_topic_holds_beside_framed_examples_becomes_dead_letters(tmp_path: Path) -> None:
    names, rows = _names(), random_rows(100)
    examples = encode_records(rows, "example")
    bad = join_frames(pa.array([b"\xff\xff"], pa.binary()), KAFKA_FRAMES).to_pybytes()
    framed = [join_frames(examples.slice(start, 10), KAFKA_FRAMES).to_pybytes() for start in range(0, 100, 10)]
    block = events_block([*framed, bad, examples[0].as_py()])
    names["ReadFromKafka"] = SimpleNamespace(of_topics=lambda *_, **__: beam.Create([block]))
    names["WriteToKafka"] = lambda _, topic: _WriteToFolder(tmp_path, topic)
    names["convert_topic"]("", "source", "target", "refusals", names["RECIPE"])
    assert 0 < len(list((tmp_path / "target").iterdir())) < 100
    reasons = sorted(path.read_bytes() for path in (tmp_path / "refusals").iterdir())
    assert reasons == [b"malformed_frame", b"malformed_proto"]


@pytest.mark.service
def test_a_topic_of_framed_examples_becomes_one_of_single_examples(kafka: KafkaConnection, topics: Topics) -> None:
    names, rows = _names(), random_rows(100)
    source, target, refusals = topics.impressions, topics.actions, topics.dead_letter
    for topic in (source, target, refusals):
        ensure_topic(kafka, topic)
    values, producer = encode_records(rows, "example"), make_producer(kafka)
    for start in range(0, len(values), 10):
        producer.produce(source, join_frames(values.slice(start, 10), KAFKA_FRAMES).to_pybytes())
    producer.produce(source, values[0].as_py())  # without a frame
    flush_or_raise(producer)
    names["convert_topic"](kafka.bootstrap_servers, source, target, refusals, names["RECIPE"])
    chain = TransformChain.parse("steps: [{filter_by_action: {has_actions: [1, 2, 3]}}]")
    acted = chain.process(with_provenance(rows)).num_rows
    (_, count) = watermarks(kafka, target)[0]
    assert 0 < count < acted
    assert [high - low for low, high in watermarks(kafka, refusals).values()] == [1]
    consumer = make_consumer(kafka, f"{topics.prefix}g")
    consumer.subscribe([target])
    found = {message.value() for message in consumer.consume(count, 60.0)}
    consumer.close()
    assert len(found) == count
    decoded, _ = decode_records(events_block(values.to_pylist()), "example")
    corrected = line_id.set_column(decoded, "sample_rate", np.full(100, 0.5, np.float32))
    assert found <= set(encode_records(corrected, "example").to_pylist())


def test_the_other_decoders_are_made() -> None:
    names = _names()
    assert isinstance(names["avro"], DecodeAvro)
    assert isinstance(names["examples"], DecodeTfExamples)
