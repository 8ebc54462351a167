"""Several DoFns fused into one step of the pipeline.

Prism fuses no steps, and Flink fuses none after a step with timers. There, every ParDo of its own costs a bundle: round
trips to the runner, encoding of all elements and, on Flink, the wait for the end of the bundle before it. Fused DoFns
hand elements over in memory.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue


class FusedSteps(beam.DoFn):
    """Runs DoFns one after the other, as one DoFn: what one gives, the next one takes. Without any, it passes all on.

    Args:
      steps: DoFns whose `process` takes the element only, and whose elements are all in the global window.
    """

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
        """What the last step gives when `elements` enter the step at place `index`."""
        if index == len(self._steps):
            yield from elements
            return
        for element in elements:
            yield from self._from(index + 1, self._steps[index].process(element) or ())


class WithSide(beam.DoFn):
    """A DoFn whose output of one tag goes to another DoFn in the same step: its rows leave only with that output.

    Args:
      step: DoFn whose `process` takes the element only.
      tag: of the output that `side` takes.
      side: what it gives joins the main output.
    """

    def __init__(self, step: beam.DoFn, tag: str, side: beam.DoFn) -> None:
        self._step, self._tag, self._side = step, tag, side

    def setup(self) -> None:
        self._step.setup()
        self._side.setup()

    def teardown(self) -> None:
        self._step.teardown()
        self._side.teardown()

    def start_bundle(self) -> None:
        self._step.start_bundle()
        self._side.start_bundle()

    def process(self, element: Any) -> Iterator[Any]:
        for each in self._step.process(element) or ():
            if isinstance(each, beam.pvalue.TaggedOutput) and each.tag == self._tag:
                yield from self._side.process(each.value) or ()
            else:
                yield each

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield from self._step.finish_bundle() or ()
        yield from self._side.finish_bundle() or ()
