"""Chained DoFns behave like the same DoFns one step each."""

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from millrace.pipelines.feed.chain import Chain


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


def _bundle(chain: Chain, elements: list[int]) -> list[int]:
    chain.start_bundle()
    out = [value for element in elements for value in chain.process(element)]
    return out + [windowed.value for windowed in chain.finish_bundle()]


def test_every_output_of_a_step_enters_the_next() -> None:
    assert _bundle(Chain(_Twice(), _Twice()), [1]) == [1, 101, 101, 201]


def test_what_a_step_gives_at_the_end_passes_the_steps_behind_it_before_their_own_end() -> None:
    assert _bundle(Chain(_Twice(), _SumOfBundle(), _Negate()), [1, 2]) == [-206]
    assert _bundle(Chain(_SumOfBundle(), _SumOfBundle()), [1, 2]) == [3]


def test_a_bundle_starts_afresh() -> None:
    chain = Chain(_SumOfBundle())
    assert [_bundle(chain, [1]), _bundle(chain, [1])] == [[1], [1]]


def test_an_empty_chain_passes_everything() -> None:
    assert _bundle(Chain(), [1, 2]) == [1, 2]


def test_a_chain_runs_in_a_pipeline() -> None:
    with beam.Pipeline("apache_beam.runners.portability.fn_api_runner.FnApiRunner") as pipeline:
        sums = pipeline | beam.Create([1, 2, 3]) | beam.ParDo(Chain(_SumOfBundle(), _Negate()))
        assert_that(sums | beam.CombineGlobally(sum), equal_to([-6]))
