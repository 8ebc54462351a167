"""A probe counts as fresh when its item, and not its control, has moved."""

from collections.abc import Mapping

import numpy as np
import pytest

from millrace.cli.loop import freshness
from millrace.cli.loop.freshness import FreshnessProber, Probe, ProbeEvents
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topics import Topics


@pytest.fixture
def prober() -> FreshnessProber:
    events = ProbeEvents("click", None, {"device": "phone"}, {"device": "phone", "hour": 12})
    return FreshnessProber(KafkaConnection("127.0.0.1:1"), Topics(), lambda _: {}, "click", events, users=10)


def test_a_score_that_moved_with_its_control_is_not_fresh(prober: FreshnessProber) -> None:
    prober.predict = lambda inputs: {"click": np.full(len(inputs["item_id"]), 0.7)}
    probe = Probe(0, 3, sent_at=1.0)
    prober._check([probe])
    assert probe.moved_at is None


def test_a_score_that_left_its_control_is_fresh(prober: FreshnessProber) -> None:
    asked: list[Mapping[str, np.ndarray]] = []

    def predict(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        asked.append(inputs)
        return {"click": np.where(inputs["item_id"] == Probe(1, 3).item_id, 0.6, 0.5)}

    prober.predict = predict
    still, moved = Probe(0, 3, sent_at=1.0), Probe(1, 3, sent_at=1.0)
    prober.probes += [still, moved]
    prober._check([still, moved])
    assert still.moved_at is None and moved.moved_at is not None
    assert len(prober.latencies_ms()) == 1
    assert asked[0]["device"].tolist() == [b"phone"] * 4 and asked[0]["hour"].tolist() == [12] * 4


def test_a_failed_request_moves_nothing(prober: FreshnessProber) -> None:
    def predict(_: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        raise ConnectionError

    prober.predict = predict
    probe = Probe(0, 3, sent_at=1.0)
    prober._check([probe])
    assert probe.moved_at is None


def test_probed_and_control_items_never_meet() -> None:
    assert Probe(10**6, 0).item_id < freshness._FIRST_CONTROL_ITEM


def test_a_probe_set_aside_is_waited_for_no_more_and_tells_no_freshness(prober: FreshnessProber) -> None:
    moved, still = Probe(0, 3, sent_at=1.0, moved_at=2.0), Probe(1, 3, sent_at=1.0)
    prober.probes += [moved, still]
    assert prober.outstanding() == [still]
    prober.set_aside()
    assert prober.outstanding() == [] and still.is_set_aside and not moved.is_set_aside
    assert prober.latencies_ms().tolist() == [1000.0]
