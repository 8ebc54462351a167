"""Fused DoFns behave like the same DoFns as steps of their own."""

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from millrace.pipelines.feed.fused_steps import FusedSteps


class _Twice(beam.DoFn):
    def process(self, element: int) -> Iterator[int]:
        yield element
        yield element + 100


class _SumOfBundle(beam.DoFn):
    """Gives nothing but the sum, at the bundle's end."""

    def start_bundle(self) -> None:
        self._sum = 0

    def process(self, element: int) -> None:
        self._sum += element

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield GlobalWindows.windowed_value(self._sum)


class _Negate(beam.DoFn):
    def process(self, element: int) -> Iterator[int]:
        yield -element


def _bundle(steps: FusedSteps, elements: list[int]) -> list[int]:
    steps.start_bundle()
    out = [value for element in elements for value in steps.process(element)]
    return out + [windowed.value for windowed in steps.finish_bundle()]


def test_every_output_of_a_step_enters_the_next() -> None:
    assert _bundle(FusedSteps(_Twice(), _Twice()), [1]) == [1, 101, 101, 201]


def test_what_a_step_gives_at_the_end_passes_the_steps_after_it_before_their_own_end() -> None:
    assert _bundle(FusedSteps(_Twice(), _SumOfBundle(), _Negate()), [1, 2]) == [-206]
    assert _bundle(FusedSteps(_SumOfBundle(), _SumOfBundle()), [1, 2]) == [3]


def test_a_bundle_starts_afresh() -> None:
    fused = FusedSteps(_SumOfBundle())
    assert [_bundle(fused, [1]), _bundle(fused, [1])] == [[1], [1]]


def test_without_steps_everything_passes() -> None:
    assert _bundle(FusedSteps(), [1, 2]) == [1, 2]


def test_fused_steps_run_in_a_pipeline() -> None:
    with beam.Pipeline("apache_beam.runners.portability.fn_api_runner.FnApiRunner") as pipeline:
        sums = pipeline | beam.Create([1, 2, 3]) | beam.ParDo(FusedSteps(_SumOfBundle(), _Negate()))
        assert_that(sums | beam.CombineGlobally(sum), equal_to([-6]))
