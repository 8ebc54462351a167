"""Flags that a pipeline is submitted with, and settings refused before anything starts."""

import os
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

from millrace.pipelines.feed import runners
from millrace.pipelines.feed.options import FeedOptions, FileSettings, KafkaSettings, Tuning
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule

CONFIG = FeedConfig("m", (FidFeature("item", 1, "item_id"),), (LabelRule("click", ("click",)),))
CONNECTION = KafkaConnection("127.0.0.1:1")


def _flags(runner: str, streaming: bool, *given: str, folder: Path) -> list[str]:
    with runners.started(runner, streaming, given, folder, lambda _: None) as flags:
        return flags


def test_direct_runs_in_this_process_and_is_bounded(tmp_path: Path) -> None:
    flags = _flags("direct", False, folder=tmp_path)
    assert "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner" in flags
    assert "--streaming" not in flags


def test_a_users_flag_beats_the_default_whichever_way_it_is_written(tmp_path: Path) -> None:
    endpoint = "--job_endpoint=localhost:1"
    flags = _flags("flink", True, endpoint, "--parallelism", "4", "--checkpointing_interval=9", folder=tmp_path)
    assert flags[-4:] == [endpoint, "--parallelism", "4", "--checkpointing_interval=9"]
    assert not any(flag in flags for flag in ("--parallelism=1", "--checkpointing_interval=1000"))
    assert "--streaming" in flags and "--environment_type=EXTERNAL" in flags


@pytest.mark.parametrize("given", [(), ("--environment_type=LOOPBACK",), ("--environment_type", "LOOPBACK")])
@pytest.mark.parametrize("runner", ["prism", "flink"])
def test_workers_of_this_process_come_from_a_pool_on_loopback(
    runner: str, given: tuple[str, ...], tmp_path: Path
) -> None:
    flags = _flags(runner, True, "--job_endpoint=localhost:1", *given, folder=tmp_path)
    options = PipelineOptions(flags).view_as(PortableOptions)
    assert options.environment_type == "EXTERNAL" and options.environment_config.startswith("127.0.0.1:")


def test_a_cache_of_state_that_is_no_number_names_its_flag(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--max_cache_memory_usage_mb=lots: not a number"):
        _flags("prism", True, "--job_endpoint=h:1", "--max_cache_memory_usage_mb", "lots", folder=tmp_path)


def test_workers_that_the_user_names_are_used(tmp_path: Path) -> None:
    given = ("--job_endpoint=localhost:1", "--environment_type=EXTERNAL", "--environment_config=localhost:9")
    flags = _flags("flink", True, *given, folder=tmp_path)
    assert [flag for flag in flags if flag.startswith("--environment")] == list(given[1:])


def test_a_job_server_that_the_user_names_is_used_and_none_is_started(tmp_path: Path) -> None:
    flags = _flags("prism", True, "--job_endpoint=localhost:1", folder=tmp_path)
    assert [flag for flag in flags if flag.startswith("--job_endpoint")] == ["--job_endpoint=localhost:1"]
    assert not list(tmp_path.glob("*.log"))


def test_a_feed_on_prism_may_run_for_longer_than_beam_waits_for_an_answer(tmp_path: Path) -> None:
    flags = _flags("prism", True, "--job_endpoint=localhost:1", folder=tmp_path)
    options = PipelineOptions(flags).view_as(PortableOptions)
    assert options.job_server_timeout > 365 * 86_400


def test_dataflow_names_the_flag_that_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--region=.*add --region"):
        _flags("dataflow", True, "--project=p", folder=tmp_path)
    given = ("--project=p", "--region=r", "--temp_location=gs://b/t")
    setup_file = next(flag for flag in _flags("dataflow", True, *given, folder=tmp_path) if "setup_file" in flag)
    assert Path(setup_file.partition("=")[2]).is_file()


def test_dataflow_builds_the_package_for_its_workers_unless_they_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--project=p", "--region=r", "--temp_location=gs://b/t")
    monkeypatch.delenv("MILLRACE_WITHOUT_OPS", raising=False)
    with_image = _flags("dataflow", True, *given, "--sdk_container_image=i", folder=tmp_path)
    assert not any(flag.startswith("--setup_file") for flag in with_image)
    assert "MILLRACE_WITHOUT_OPS" not in os.environ
    _flags("dataflow", True, *given, folder=tmp_path)
    assert os.environ["MILLRACE_WITHOUT_OPS"] == "1", "the workers have no TensorFlow to build the op library with"
    monkeypatch.setattr(runners, "_SETUP_FILE", tmp_path / "setup.py")
    with pytest.raises(UserError, match="--sdk_container_image=: .*from a checkout only.*beam-worker"):
        _flags("dataflow", True, *given, folder=tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runner": "spark"}, "--runner=spark: unknown; choose prism, flink, direct, dataflow"),
        ({"runner": "direct"}, "--runner=direct: .*use --runner prism or flink"),
        ({"parquet": Path("x")}, "--output-parquet=x: the feed is unbounded; add --until end"),
        ({"source": FileSettings("a", "b")}, "--impression-files=a: no output; add --output-parquet"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FeedOptions(**({"config": CONFIG, "source": KafkaSettings(CONNECTION)} | settings))


@pytest.mark.parametrize(("name", "value"), [("join_shards", 0), ("feed_shards", 2000), ("poll_seconds", 0.0)])
def test_tuning_out_of_range_names_its_flag(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')}={value}: out of range"):
        Tuning(**{name: value})
