"""Steps in pipelines: the same rows as without Beam, counters, type hints, and Beam YAML."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
import yaml
from apache_beam.metrics import MetricsFilter
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from millrace.runtime.errors import UserError
from millrace.transforms.beam import ptransforms
from millrace.transforms.beam.steps import ApplyRecipe, StepTransform
from millrace.transforms.recipe.chain import STEPS, TransformChain
from tests.reference.record_rows import random_rows

_PROVIDER = Path(__file__).resolve().parents[3] / "pipelines" / "beam_yaml.yaml"
_CLASSES = [getattr(ptransforms, name) for name in ptransforms.__all__ if name != "ApplyRecipe"]


def _settings(kind: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(STEPS[kind].example)[kind]
    return settings


def _holds(expected: pa.RecordBatch) -> Callable[[list[pa.RecordBatch]], None]:
    def check(found: list[pa.RecordBatch]) -> None:
        assert [row for batch in found for row in batch.to_pylist()] == expected.to_pylist()

    return check


def test_every_step_is_a_ptransform_of_the_same_name_and_listed_for_beam_yaml() -> None:
    assert {each.kind: each.__name__ for each in _CLASSES} == {kind: step.__name__ for kind, step in STEPS.items()}
    (provider,) = yaml.safe_load(_PROVIDER.read_text("utf-8"))
    listed = {
        name: path
        for name, path in provider["transforms"].items()
        if path.startswith("millrace.transforms.beam.ptransforms")
    }
    assert listed == {name: f"millrace.transforms.beam.ptransforms.{name}" for name in ptransforms.__all__}


@pytest.mark.parametrize("transform", _CLASSES, ids=lambda each: each.kind)
def test_a_ptransform_gives_the_rows_of_its_step(transform: type[StepTransform]) -> None:
    rows = random_rows(50)
    settings = _settings(transform.kind)
    text = yaml.safe_dump({"seed": 3, "steps": [{transform.kind: settings, "id": transform.kind}]})
    expected = TransformChain.parse(text).process(rows)
    with TestPipeline() as pipeline:
        found = pipeline | beam.Create([rows]) | transform(seed=3, **settings)
        assert found.element_type == pa.RecordBatch
        assert_that(found, _holds(expected))


def test_a_recipe_runs_in_one_step_and_counts_by_kind() -> None:
    text = "steps: [{filter_by_action: {has_actions: [1]}}, {negative_sample: {drop_rate: 0.5, threshold: 0.5}}]"
    rows = random_rows(200)
    expected = TransformChain.parse(text)
    with TestPipeline() as pipeline:
        assert_that(pipeline | beam.Create([rows]) | ApplyRecipe(text), _holds(expected.process(rows)))
    found = pipeline.result.metrics().query(MetricsFilter().with_namespace("millrace.transforms.negative_sample"))
    counters = {each.key.metric.name: each.committed for each in found["counters"]}
    assert counters == dict(expected.take_counts()["1.negative_sample"])


def test_a_wrong_setting_is_refused_when_the_transform_is_made() -> None:
    with pytest.raises(UserError, match="has_fid=: unknown field; did you mean has_fids"):
        ptransforms.FilterByFid(has_fid=[1])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="drop_rate"):
        ptransforms.NegativeSample(drop_rate=2)


def test_display_data_tells_the_settings() -> None:
    assert ptransforms.NegativeSample(drop_rate=0.5, seed=7).display_data() == {"drop_rate": "0.5", "seed": 7}
    assert ApplyRecipe("steps: [{convert_fids: {}}]").display_data()["steps"] == "convert_fids"
