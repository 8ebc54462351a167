"""Steps as PTransforms of batches: one generic DoFn, counters, type hints, display data."""

from collections.abc import Iterator
from typing import Any, ClassVar

import apache_beam as beam
import pyarrow as pa
import yaml
from apache_beam.metrics import Metrics

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime import telemetry
from millrace.transforms.beam import coder  # noqa: F401 (the coder is registered)
from millrace.transforms.recipe.chain import STEPS, TransformChain, kind_of
from millrace.transforms.recipe.text import RecipeText, parse_recipe

_ROWS = telemetry.counter("feed_step_rows", "Rows of a recipe's steps.", ("step", "outcome"))


class ApplyRecipe(beam.PTransform):
    """Runs the steps of a recipe, one after the other in one ParDo, on a collection of `pa.RecordBatch`.

    The state of stateful steps (such as the items of `generate_negatives`) stays in the memory of the worker. A feed
    that must keep it runs the recipe after its join instead.

    Example:

        rows | ApplyRecipe("steps: [{filter_by_label: {thresholds: [0]}}]")

    Args:
      recipe: YAML or JSON text, or a message.
      label: name of the step in the pipeline.

    Counters (`millrace.transforms.<kind>`): `rows_in`, `rows_out` and those of each step.
    Raises: UserError naming the first wrong setting.
    """

    def __init__(self, recipe: str | pb.TransformConfig, label: str | None = None) -> None:
        super().__init__(label)
        text = parse_recipe(recipe) if isinstance(recipe, str) else RecipeText(recipe, "recipe")
        self._config, self._kinds = text.config, _check(text)

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        run = beam.ParDo(RecipeDoFn(self._config)).with_input_types(pa.RecordBatch).with_output_types(pa.RecordBatch)
        return batches | "RunSteps" >> run

    def display_data(self) -> dict[str, Any]:
        return {"steps": ", ".join(self._kinds), "seed": self._config.seed}


class RecipeDoFn(beam.DoFn):
    """Runs the chain of a recipe on each batch; what is left without rows is not emitted."""

    def __init__(self, config: pb.TransformConfig) -> None:
        self._config = config.SerializeToString()
        self._chain: TransformChain | None = None

    def setup(self) -> None:
        config = pb.TransformConfig.FromString(self._config)
        self._chain = TransformChain(config)
        self._counters = StepCounters(self._chain)

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        assert self._chain is not None
        rows = self._chain.process(batch)
        self._counters.add()
        if rows.num_rows:
            yield rows


class StepCounters:
    """Passes a chain's counts to Beam's metrics and to the metrics that this process serves."""

    def __init__(self, chain: TransformChain) -> None:
        self._chain = chain
        pairs = zip(chain.steps, chain.config.configs, strict=True)
        self._kinds = {step.context.id: kind_of(config) for step, config in pairs}

    def add(self) -> None:
        """Counts what happened since the last call."""
        for step, counts in self._chain.take_counts().items():
            for name, count in counts.items():
                if count:
                    Metrics.counter(telemetry.namespace("transforms", self._kinds[step]), name).inc(count)
                    _ROWS.labels(step, name).inc(count)


class StepTransform(beam.PTransform):
    """One step as a PTransform; subclasses say which by `kind`, a key of `millrace.transforms.recipe.chain.STEPS`.

    Args:
      label: name of the step in the pipeline.
      seed: seed of the step's random choices.
      id: id of the step, on which random choices depend as well; default: its kind.
      settings: fields of the step's message in `protos/transform_config.proto`, as in a recipe.
    """

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.__doc__ = f"{STEPS[cls.kind].__doc__}\n\n{StepTransform.__doc__}"

    def __init__(self, label: str | None = None, *, seed: int = 0, id: str = "", **settings: Any) -> None:
        super().__init__(label)
        step = {self.kind: settings, "id": id or self.kind}
        text = parse_recipe(yaml.safe_dump({"seed": seed, "steps": [step]}), type(self).__name__)
        _check(text)
        self._config, self._settings = text.config, settings

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        return batches | self.kind >> ApplyRecipe(self._config)

    def display_data(self) -> dict[str, Any]:
        return {name: str(value) for name, value in self._settings.items()} | {"seed": self._config.seed}


def _check(text: RecipeText) -> list[str]:
    """Kinds of the steps; UserError when one of them is wrong."""
    TransformChain(text.config, text)
    return [kind_of(each) for each in text.config.configs]
