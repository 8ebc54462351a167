"""Several DoFns in one step.

Prism fuses nothing, and Flink nothing behind a step with timers: there, every ParDo is a bundle of its own, with its
round trips, its encoding and, on Flink, its wait for the bundle's end. Chained DoFns hand elements over in memory.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue


class Chain(beam.DoFn):
    """Runs `steps` one after the other: DoFns whose `process` takes the element only, in the global window."""

    def __init__(self, *steps: beam.DoFn) -> None:
        self._steps = steps

    def setup(self) -> None:
        for step in self._steps:
            step.setup()

    def teardown(self) -> None:
        for step in self._steps:
            step.teardown()

    def start_bundle(self) -> None:
        for step in self._steps:
            step.start_bundle()

    def process(self, element: Any) -> Iterator[Any]:
        yield from self._from(0, [element])

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for index, step in enumerate(self._steps):
            values = [windowed.value for windowed in step.finish_bundle() or ()]
            for value in self._from(index + 1, values):
                yield GlobalWindows.windowed_value(value)

    def _from(self, index: int, elements: Iterable[Any]) -> Iterator[Any]:
        """What comes out of the last step when `elements` enter step `index`."""
        if index == len(self._steps):
            yield from elements
            return
        for element in elements:
            yield from self._from(index + 1, self._steps[index].process(element) or ())
