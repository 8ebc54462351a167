"""A Dataflow job of the feed is built whole, and not sent."""

from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2

from millrace.pipelines.feed import runners
from millrace.pipelines.feed.graph import build_feed
from millrace.pipelines.feed.options import FeedOptions, KafkaSettings
from millrace.pipelines.feed.read_plan import ReadPlan
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topics import Topics
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.recipe.chain import TransformChain

_FLAGS = (
    "--project=shop",
    "--region=europe-west1",
    "--temp_location=gs://bucket/tmp",
    "--sdk_container_image=registry.example/millrace-beam:1",
    "--dry_run=true",
)


def _built(tmp_path: Path, until: str | None) -> tuple[beam_runner_api_pb2.Pipeline, object]:
    """(the pipeline as Dataflow gets it, the job)."""
    config = FeedConfig("m", (FidFeature("item", 1, "item_id"),), (LabelRule("click", ("click",)),))
    recipe = TransformChain.parse("steps: [{negative_sample: {drop_rate: 0.5, threshold: 0.5}}]").config
    source = KafkaSettings(KafkaConnection("kafka.example:9092"), Topics(), "earliest", until)
    options = FeedOptions(config, source, runner="dataflow", recipe=recipe.SerializeToString())
    start = {("events.impressions", 0): 0, ("events.actions", 0): 0}
    end = None if until is None else dict.fromkeys(start, 10)
    with runners.started("dataflow", options.streaming, _FLAGS, tmp_path, lambda _: None) as flags:
        flags = [flag for flag in flags if not flag.startswith("--setup_file")]  # the image has the package
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        build_feed(pipeline, options, ReadPlan(Topics(), start, end, 4))
        result = pipeline.run()
    return result.job.proto_pipeline, result.job


def test_a_streaming_job_carries_the_graph_its_image_and_the_runner_that_it_needs(tmp_path: Path) -> None:
    pipeline, job = _built(tmp_path, until=None)
    names = {each.unique_name.split("/")[0] for each in pipeline.components.transforms.values()}
    assert {"ReadEvents", "DecodeEvents", "JoinAndWrite"} <= names
    images = [
        beam_runner_api_pb2.DockerPayload.FromString(each.payload).container_image
        for each in pipeline.components.environments.values()
    ]
    assert images == ["registry.example/millrace-beam:1"]
    streaming = str(job.options.get_all_options()["streaming"])  # type: ignore[attr-defined]
    assert streaming == "True"


def test_a_bounded_job_is_built_from_the_same_graph(tmp_path: Path) -> None:
    pipeline, job = _built(tmp_path, until="end")
    unbounded = beam_runner_api_pb2.IsBounded.UNBOUNDED
    assert all(each.is_bounded != unbounded for each in pipeline.components.pcollections.values())
    assert not job.options.get_all_options()["streaming"]  # type: ignore[attr-defined]
