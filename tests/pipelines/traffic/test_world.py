"""The synthetic world: sizes, probabilities, repeatability, and how good a model can get."""

import dataclasses

import numpy as np
import pytest

from millrace.pipelines.traffic.source import ActionModel, GeneratedSource
from millrace.pipelines.traffic.world import EventWorld, WorldConfig
from millrace.runtime.errors import UserError
from millrace.training.step.metrics import auc

_NOW = 1_764_000_000_000


def test_equal_seeds_draw_equal_events() -> None:
    first, second, other = (GeneratedSource(EventWorld(WorldConfig(seed=seed))) for seed in (3, 3, 4))
    draws = [source.draw(100, _NOW) for source in (first, second, other)]
    assert np.array_equal(draws[0].item_ids, draws[1].item_ids)
    assert np.array_equal(draws[0].actions.delays_ms, draws[1].actions.delays_ms)
    assert not np.array_equal(draws[0].item_ids, draws[2].item_ids)


@pytest.mark.parametrize(("items", "shown"), [(1000, 3), (3, 3), (1, 1), (70, 64), (300, 64)])
def test_an_impression_shows_different_items(items: int, shown: int) -> None:
    draw = EventWorld(WorldConfig(users=10, items=items, items_per_impression=shown)).show(50, 12)
    assert draw.item_ids.shape == (50, shown)
    assert all(len(set(row)) == shown for row in draw.item_ids.tolist())
    assert draw.item_ids.min() >= 0
    assert draw.item_ids.max() < items


def test_clicks_follow_the_true_probabilities() -> None:
    draw = EventWorld(WorldConfig()).show(40_000, 12)
    for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.7), (0.7, 1.0)):
        chosen = (draw.p_click >= low) & (draw.p_click < high)
        assert draw.clicked[chosen].mean() == pytest.approx(draw.p_click[chosen].mean(), abs=0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_oracle_is_good_but_not_perfect(seed: int) -> None:
    draw = EventWorld(WorldConfig(seed=seed)).show(20_000, 12)
    assert 0.72 < auc(draw.clicked.ravel(), draw.p_click.ravel()) < 0.85


def test_what_was_true_becomes_less_so() -> None:
    world = EventWorld(WorldConfig())
    before = world._interests.value.copy()
    world.advance(60.0)
    assert np.corrcoef(before.ravel(), world._interests.value.ravel())[0, 1] == pytest.approx(np.exp(-0.2), abs=0.03)
    assert world._interests.value.std() == pytest.approx(before.std(), rel=0.05)


def test_shares_of_lost_late_and_repeated_actions() -> None:
    model = ActionModel(lost=0.1, late=0.2, duplicated=0.05)
    draw = GeneratedSource(EventWorld(WorldConfig()), model).draw(20_000, _NOW)
    actions = draw.actions
    planned = len(actions.rows) - draw.duplicated + draw.lost
    assert draw.lost / planned == pytest.approx(0.1, abs=0.02)
    assert draw.late / len(actions.rows) == pytest.approx(0.2, abs=0.02)
    assert draw.duplicated / planned == pytest.approx(0.045, abs=0.01)
    assert (~actions.in_time).sum() == draw.late
    assert draw.clicked.reshape(-1)[actions.rows].all()


def test_no_delay_is_near_the_end_of_the_window() -> None:
    model = ActionModel(late=0.3, duplicated=0.3, click_delay_seconds=3.0)
    actions = GeneratedSource(EventWorld(WorldConfig()), model).draw(20_000, _NOW).actions
    assert actions.delays_ms[actions.in_time].max() <= 4750
    assert actions.delays_ms[~actions.in_time].min() >= 6000


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"users": 0}, "--users"),
        ({"items": 2}, "--items"),
        ({"items_per_impression": 65}, "--items-per-impression"),
    ],
)
def test_a_wrong_size_is_named(changes: dict[str, int], field: str) -> None:
    with pytest.raises(UserError) as caught:
        dataclasses.replace(WorldConfig(), **changes)
    assert caught.value.field == field
