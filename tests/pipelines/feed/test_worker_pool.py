"""The pool of workers: on loopback, for runners of this machine, and telling what a bundle raised."""

import os
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2

from millrace.pipelines.feed import runners
from millrace.pipelines.feed.worker_pool import worker_pool
from millrace.runtime.deadline import wait_until
from tests.sockets import listening


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@pytest.fixture
def pool(failures: list[BaseException]) -> Iterator[str]:
    with worker_pool(0, failures.append) as address:
        yield address


def start_worker(pool: str, control: str) -> str:
    """The error of a request for a worker that is controlled from `control`; empty when there is none."""
    request = beam_fn_api_pb2.StartWorkerRequest(
        worker_id="w", control_endpoint=endpoints_pb2.ApiServiceDescriptor(url=control)
    )
    with grpc.insecure_channel(pool) as channel:
        answer = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel).StartWorker(request, timeout=30)
    return str(answer.error)


def test_the_pool_listens_on_loopback_only(pool: str) -> None:
    port = int(pool.rpartition(":")[2])
    assert [address for address, number in listening(os.getpid()) if number == port] == ["127.0.0.1"]


@pytest.mark.parametrize(
    "control", ["10.0.0.7:50000", "example.org:443", "localhost.example.org:443", "[2001:db8::1]:9"]
)
def test_a_worker_connects_to_this_machine_only(pool: str, control: str) -> None:
    assert start_worker(pool, control) == f"{control} is not an address of this machine"


class _Refuse(beam.DoFn):
    def process(self, element: int) -> Iterator[int]:
        if element == 3:
            raise ValueError("three is refused")
        yield element


@pytest.mark.service
def test_what_a_bundle_raised_is_told(tmp_path: Path) -> None:
    told: list[BaseException] = []
    with runners.started("prism", False, (), tmp_path, lambda _: None, told.append) as flags:
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        _ = pipeline | beam.Create([1, 2, 3]) | beam.ParDo(_Refuse())
        pipeline.run()
        wait_until(lambda: bool(told), 60.0, "the failure is told")
    assert "three is refused" in str(told[0])
